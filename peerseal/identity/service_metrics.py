"""The metrics of one service, and the counters of all workers of one server on one host."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import starmap
from types import MappingProxyType

from peerseal.errors import TrustUnavailable
from peerseal.identity.signing_keys import SigningKeys
from peerseal.runtime.files import Folder
from peerseal.runtime.metrics import Metric, Source, Tally, merged
from peerseal.runtime.options import check_callable
from peerseal.runtime.worker_counters import Family, Numbers, WorkerFiles
from peerseal.session.circuit import CircuitStatus

log = logging.getLogger("peerseal.metrics")


class ServiceMetrics:
    """The metrics of all sources that were added. With a ``folder``, counters are those of all workers."""

    def __init__(self, folder: Folder | None) -> None:
        self._sources: list[Source] = []
        self._workers = None if folder is None else WorkerCounters(folder)
        self._failures = Tally("peerseal_metrics_failures_total", "Sources of metrics that failed.")

    def add(self, source: Source) -> None:
        """Add a source. Raises ConfigurationError if it is no function."""
        check_callable("a source of metrics", source)
        self._sources.append(source)

    def collect(self) -> list[Metric]:
        """The metrics as of now. A source that fails is logged and counted; the others are still reported."""
        own = self._own()
        return own if self._workers is None else self._workers.total(own)

    def publish(self) -> None:
        """Write the counters of this process for the other workers. Raises nothing."""
        if self._workers is not None:
            self._workers.publish(self._own())

    def _own(self) -> list[Metric]:
        found: list[Metric] = []
        for source in list(self._sources):
            try:
                found.extend(source())
            except Exception:
                self._failures.add()
                log.warning("a source of metrics failed: %r", source, exc_info=True)
        return [*found, self._failures.metric()]


def key_metrics(keys: SigningKeys) -> Iterator[Metric]:
    """The metrics of the key that signs now; none if there is no key."""
    with suppress(TrustUnavailable):
        key, now = keys.current(), keys.clock()
        yield _gauge("identity_info", "The service that this is.", 1, {"service": key.owner})
        yield _gauge("key_age_seconds", "Since the signing key was registered.", now - (key.registered_at or now))
        yield _gauge("key_good_for_seconds", "Until the signing key ends.", key.expires_at - now)


def circuit_metrics(circuits: Iterable[CircuitStatus]) -> Iterator[Metric]:
    """The state and the counts of each circuit."""
    for circuit in circuits:
        origin = {"origin": circuit.origin}
        yield _gauge("circuit_state", "1 for the state that the circuit is in.", 1, {**origin, "state": circuit.state})
        yield _gauge("circuit_failures", "The last failures in a row.", circuit.failures, origin)
        yield _gauge("circuit_opened", "How often the circuit opened.", circuit.opened, origin)
        yield _gauge("circuit_refused", "Calls that were not made.", circuit.refused, origin)
        yield _gauge("circuit_waiting", "Calls that wait for a place.", circuit.waiting, origin)
        yield _gauge("circuit_running", "Calls that run.", circuit.running, origin)


def _gauge(name: str, help: str, value: float, labels: Mapping[str, str] = MappingProxyType({})) -> Metric:
    return Metric(f"peerseal_{name}", "gauge", help, ((labels, value),))


class WorkerCounters:
    """The counters of the workers of this server, in ``folder``. Gauges are not added up: each is of one process."""

    def __init__(self, folder: Folder) -> None:
        self._files = WorkerFiles(folder, _complain)

    def publish(self, own: Iterable[Metric]) -> None:
        """Write the counters of this process for the other workers. Raises nothing."""
        counters = (metric for metric in merged(own) if metric.kind == "counter")
        self._files.publish({Family(each.name, each.kind, each.help): _numbers(each) for each in counters})

    def total(self, own: Iterable[Metric]) -> list[Metric]:
        """The given metrics, plus the counters of all other workers, including those that have ended."""
        return merged([*own, *starmap(_counter, self._files.of_others().items())])


def _numbers(metric: Metric) -> Numbers:
    return {(metric.name, tuple(labels.items())): number for labels, number in metric.samples}


def _counter(family: Family, numbers: Numbers) -> Metric:
    samples = ((dict(labels), number) for (_, labels), number in numbers.items())
    return Metric(family.name, "counter", family.help, tuple(samples))


def _complain(error: Exception) -> None:
    log.warning("the counters of the workers cannot be added up: %s", error)
