"""The metrics of one service, and the counters of all workers of one server on one host.

Each worker writes its counters to a file of its own, which it replaces as a whole; the sum of all files is what a
worker reports. Gauges are not added up, since each belongs to one process. When a worker has ended, another worker adds
its counters to the file ``ended`` and removes its file, so that the sum never decreases. Errors of files do not affect
requests: the log reports the first one, and the sum lacks the counters of that file.
"""

import json
import logging
import os
import re
import secrets
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any, Final

from peerseal.errors import PeersealError, TrustUnavailable
from peerseal.identity.signing_keys import SigningKeys
from peerseal.runtime.files import Folder
from peerseal.runtime.forks import in_each_child, notice_fork, process_runs
from peerseal.runtime.metrics import Metric, Source, Tally, merged
from peerseal.runtime.options import check_callable
from peerseal.session.circuit import CircuitStatus

log = logging.getLogger("peerseal.metrics")

_LARGEST: Final = 1 << 20
"""Bytes of one file: a hundred sets of labels of each metric are far less."""
_WORKER: Final = re.compile(r"-([0-9]{1,10})-[0-9a-f]{8}\.json\Z")
"""The end of the name of a worker's file: its process id, and a random part, since process ids are used again."""
_FOLDED: Final = 64
"""Names of files that ``ended`` lists as added: another worker may have read these files just before."""
_FORGOTTEN_AFTER: Final = 7 * 24 * 3600.0
"""Seconds without a change after which the files of another server are removed."""


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
    """The counters of the workers of this server, in ``folder``. Workers of one server have one parent process."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._works = True
        self._published: list[Metric] | None = None
        self._begin()
        in_each_child(self._begin)

    def publish(self, own: Iterable[Metric]) -> None:
        """Write the counters of this process for the other workers. Raises nothing."""
        notice_fork()
        counters = _counters(own)
        if counters == self._published:
            return
        try:
            if self._published is None:
                self._remove_forgotten()
            self._folder.write(self._name, _encoded(counters, ()), durable=False)
            self._fold()
            self._published, self._works = counters, True
        except (OSError, PeersealError) as error:
            self._complain(error)

    def total(self, own: Iterable[Metric]) -> list[Metric]:
        """The given metrics, plus the counters of all other workers, including those that have ended."""
        notice_fork()
        found = list(own)
        try:
            others = list(self._of_others())
        except (OSError, PeersealError) as error:
            self._complain(error)
            return found
        return merged([*found, *others])

    def _begin(self) -> None:
        """Choose the file names of this process."""
        self._server = f"{socket.gethostname()}-{os.getppid()}-"
        self._name = f"{self._server}{os.getpid()}-{secrets.token_hex(4)}.json"
        self._ended = f"{self._server}ended.json"
        self._published = None

    def _of_others(self) -> Iterator[Metric]:
        """Reads the files of workers before ``ended``: a worker that ends in between is then found in ``ended``."""
        workers = {name: self._read(name)[0] for name in self._workers() if name != self._name}
        ended, folded = self._read(self._ended)
        for name, metrics in workers.items():
            if name not in folded:
                yield from metrics
        yield from ended

    def _workers(self) -> list[str]:
        return [name for name in self._folder.names() if name.startswith(self._server) and _WORKER.search(name)]

    def _fold(self) -> None:
        """Add the counters of ended workers to ``ended``, unless another process does so now."""
        gone = [name for name in self._workers() if name != self._name and not _runs(name)]
        if not gone:
            return
        with self._folder.locked("lock", wait=0.0) as locked:
            if not locked:
                return
            ended, folded = self._read(self._ended)
            there = [name for name in gone if name not in folded]
            counted = [metric for name in there for metric in self._read(name)[0]]
            self._folder.write(self._ended, _encoded(merged([*ended, *counted]), [*folded, *there]), durable=False)
            for name in gone:
                self._folder.remove(name)

    def _read(self, name: str) -> tuple[list[Metric], list[str]]:
        """The metrics in a file, and the files that they replace. Empty if the file is gone or cannot be read."""
        try:
            members = json.loads(self._folder.read(name, _LARGEST))
            return [_metric(*each) for each in members["metrics"]], list(members["folded"])
        except (FileNotFoundError, ValueError, TypeError, KeyError, PeersealError):
            return [], []

    def _remove_forgotten(self) -> None:
        before = time.time() - _FORGOTTEN_AFTER
        for name in self._folder.names():
            with suppress(FileNotFoundError):
                if not name.startswith(self._server) and self._folder.stat(name).st_mtime < before:
                    self._folder.remove(name)

    def _complain(self, error: Exception) -> None:
        if self._works:
            log.warning("the counters of the workers cannot be added up: %s", error)
        self._works = False


def _counters(metrics: Iterable[Metric]) -> list[Metric]:
    return [metric for metric in merged(metrics) if metric.kind == "counter"]


def _encoded(metrics: Iterable[Metric], folded: Iterable[str]) -> bytes:
    found = [
        [metric.name, metric.help, [[dict(labels), number] for labels, number in metric.samples]] for metric in metrics
    ]
    return json.dumps({"metrics": found, "folded": list(folded)[-_FOLDED:]}).encode("ascii")


def _metric(name: str, help: str, samples: list[Any]) -> Metric:
    read = (({str(label): str(value) for label, value in labels.items()}, float(number)) for labels, number in samples)
    return Metric(name, "counter", help, tuple(read))


def _runs(name: str) -> bool:
    """Whether the worker of that file still runs. This process may have its process id now."""
    found = _WORKER.search(name)
    pid = int(found[1]) if found else 0
    return pid != os.getpid() and process_runs(pid)
