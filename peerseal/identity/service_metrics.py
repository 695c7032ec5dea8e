"""The metrics of one service: of its identity, and of what stands in front of it and behind it."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import TYPE_CHECKING

from peerseal.errors import TrustUnavailable
from peerseal.identity.rotation import KeyKeeper
from peerseal.identity.shared_counts import SharedCounts
from peerseal.runtime.files import Folder
from peerseal.runtime.metrics import Metric, Source, Tally
from peerseal.runtime.options import check_callable
from peerseal.session.circuit import CircuitStatus

if TYPE_CHECKING:
    from peerseal.identity.identity import Identity

log = logging.getLogger("peerseal.metrics")


class ServiceMetrics:
    """Metrics from all sources that were added. With a ``folder``, the counters are those of all workers of this server
    on this host."""

    def __init__(self, folder: Folder | None) -> None:
        self._sources: list[Source] = []
        self._shared = None if folder is None else SharedCounts(folder)
        self._failures = Tally("peerseal_metrics_failures_total", "Sources of metrics that failed.")

    def add(self, source: Source) -> None:
        """Ask that source as well, from now on. Raises ConfigurationError for what is no function."""
        check_callable("a source of metrics", source)
        self._sources.append(source)

    def collect(self) -> list[Metric]:
        """As of now. A source that fails is logged and counted, and the others are told."""
        own = self._own()
        return own if self._shared is None else self._shared.total(own)

    def publish(self) -> None:
        """Let the other workers know what this process has counted. Raises nothing."""
        if self._shared is not None:
            self._shared.publish(self._own())

    def _own(self) -> list[Metric]:
        found: list[Metric] = []
        for source in list(self._sources):
            try:
                found.extend(source())
            except Exception:
                self._failures.add()
                log.warning("a source of metrics failed: %r", source, exc_info=True)
        return [*found, self._failures.metric()]


def identity_metrics(identity: "Identity", keeper: KeyKeeper) -> Iterator[Metric]:
    """Of the trust store, of the key that signs now, and of the circuits to other services."""
    yield from identity.trust.status(start=False).collect()
    with suppress(TrustUnavailable):
        key, now = keeper.signing_key(), identity.clock()
        info = {"service": identity.id}
        yield _gauge("identity_info", "The service that this is.", 1, info)
        yield _gauge("key_age_seconds", "Since the signing key was registered.", now - (key.registered_at or now))
        yield _gauge("key_good_for_seconds", "Until the signing key ends.", key.expires_at - now)
    for circuit in identity.circuits():
        yield from _circuit_metrics(circuit)


def _circuit_metrics(circuit: CircuitStatus) -> Iterator[Metric]:
    """Of the circuit to one origin: its state, and what it counts."""
    origin = {"origin": circuit.origin}
    yield _gauge("circuit_state", "1 for the state that the circuit is in.", 1, {**origin, "state": circuit.state})
    yield _gauge("circuit_failures", "The last failures in a row.", circuit.failures, origin)
    yield _gauge("circuit_opened", "How often the circuit opened.", circuit.opened, origin)
    yield _gauge("circuit_refused", "Calls that were not made.", circuit.refused, origin)
    yield _gauge("circuit_waiting", "Calls that wait for a place.", circuit.waiting, origin)
    yield _gauge("circuit_running", "Calls that run.", circuit.running, origin)


def _gauge(name: str, help: str, value: float, labels: Mapping[str, str] = MappingProxyType({})) -> Metric:
    return Metric(f"peerseal_{name}", "gauge", help, ((labels, value),))
