"""The metrics of all workers of one server on one host, added up through files.

Each worker writes its metrics to a file of its own, which it replaces as a whole; the sum of all files is what a worker
reports. When a worker has ended, another worker adds its counters to the file ``ended`` and removes its file, so that
no sum of counters decreases. Errors of files do not affect requests: the first one is reported, and the sum lacks the
metrics of that file. No file is mapped into memory, because on a full disk its use would end the process.
"""

import json
import logging
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import starmap
from typing import Final, NamedTuple

from peerseal.errors import PeersealError
from peerseal.runtime.files import Folder
from peerseal.runtime.forks import in_each_child, notice_fork, process_runs, process_started
from peerseal.runtime.metrics import Metric, Source, Tally, merged
from peerseal.runtime.options import check_callable

log = logging.getLogger("peerseal.metrics")

_LARGEST: Final = 1 << 20
"""Bytes of one file: a hundred sets of labels of each metric are far less."""
_WORKER: Final = re.compile(r"-([0-9]{1,10})(?:\.([0-9]{0,20}))?-[0-9a-f]{8}\.json\Z")
"""The end of the name of a worker's file: its process id, when the process began, since a restarted container uses the
same process ids again, and a random part."""
_FOLDED: Final = 64
"""Names of files that ``ended`` lists as added: another worker may have read these files just before."""
_FORGOTTEN_AFTER: Final = 7 * 24 * 3600.0
"""Seconds without a change after which the files of another server are removed."""


class Family(NamedTuple):
    """One metric. A ``gauge`` counts only while its worker runs; any other kind only grows."""

    name: str
    kind: str
    help: str


Numbers = dict[tuple[str, tuple[tuple[str, str], ...]], float]
"""The numbers of one metric, by the sample's name and the pairs of its labels."""
Families = dict[Family, Numbers]


def server_name() -> str:
    """The server that this process is a worker of. Workers of one server have one parent process."""
    return f"{socket.gethostname()}-{os.getppid()}"


def added(found: Iterable[Families]) -> Families:
    """The sums, in order of appearance."""
    total: Families = {}
    for families in found:
        for family, numbers in families.items():
            sums = total.setdefault(family, {})
            for sample, number in numbers.items():
                sums[sample] = sums.get(sample, 0) + number
    return total


class WorkerFiles:
    """The files of the workers of this server, in ``folder``. ``complain`` is called with the first error of several
    in a row. No method raises an error of the files."""

    def __init__(self, folder: Folder, complain: Callable[[Exception], None]) -> None:
        self._folder = folder
        self._complain = complain
        self._works = True
        self._published: Families | None = None
        self._begin()
        in_each_child(self._begin)

    def publish(self, own: Families) -> None:
        """Write the metrics of this process for the other workers."""
        notice_fork()
        if own == self._published:
            return
        try:
            if self._published is None:
                self._remove_forgotten()
            self._folder.write(self._name, _encoded(own, ()), durable=False)
            self._fold()
            self._published, self._works = own, True
        except (OSError, PeersealError) as error:
            self._failed(error)

    def of_others(self) -> Families:
        """The sums of all other workers, including the counters of those that have ended."""
        notice_fork()
        try:
            return added(self._of_others())
        except (OSError, PeersealError) as error:
            self._failed(error)
            return {}

    def _begin(self) -> None:
        """Choose the file names of this process."""
        self._server = f"{server_name()}-"
        pid = os.getpid()
        self._name = f"{self._server}{pid}.{process_started(pid)}-{secrets.token_hex(4)}.json"
        self._ended = f"{self._server}ended.json"
        self._published = None

    def _of_others(self) -> Iterator[Families]:
        """Reads the files of workers before ``ended``: a worker that ends in between is then found in ``ended``."""
        workers = {name: self._read(name)[0] for name in self._workers() if name != self._name}
        ended, folded = self._read(self._ended)
        for name, families in workers.items():
            if name not in folded:
                yield families if _runs(name) else _lasting(families)
        yield ended

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
            total = added([ended, *(_lasting(self._read(name)[0]) for name in there)])
            self._folder.write(self._ended, _encoded(total, [*folded, *there]), durable=False)
            for name in gone:
                self._folder.remove(name)

    def _read(self, name: str) -> tuple[Families, list[str]]:
        """The metrics in a file, and the files that they replace. Empty if the file is gone or cannot be read."""
        try:
            return _decoded(self._folder.read(name, _LARGEST))
        except (FileNotFoundError, ValueError, TypeError, KeyError, PeersealError):
            return {}, []

    def _remove_forgotten(self) -> None:
        before = time.time() - _FORGOTTEN_AFTER
        for name in self._folder.names():
            with suppress(FileNotFoundError):
                if not name.startswith(self._server) and self._folder.stat(name).st_mtime < before:
                    self._folder.remove(name)

    def _failed(self, error: Exception) -> None:
        if self._works:
            self._complain(error)
        self._works = False


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


def _lasting(families: Families) -> Families:
    return {family: numbers for family, numbers in families.items() if family.kind != "gauge"}


def _encoded(families: Families, folded: Iterable[str]) -> bytes:
    found = [
        [*family, [[sample, labels, number] for (sample, labels), number in numbers.items()]]
        for family, numbers in families.items()
    ]
    return json.dumps({"metrics": found, "folded": list(folded)[-_FOLDED:]}).encode("ascii")


def _decoded(data: bytes) -> tuple[Families, list[str]]:
    members = json.loads(data)
    found: Families = {}
    for name, kind, help, samples in members["metrics"]:
        found[Family(str(name), str(kind), str(help))] = {
            (str(sample), tuple((str(label), str(value)) for label, value in labels)): float(number)
            for sample, labels, number in samples
        }
    return found, list(members["folded"])


def _runs(name: str) -> bool:
    """Whether the worker of that file still runs. This process may have its process id now."""
    found = _WORKER.search(name)
    pid, started = (int(found[1]), found[2] or "") if found else (0, "")
    return pid != os.getpid() and process_runs(pid, started)


def _numbers(metric: Metric) -> Numbers:
    return {(metric.name, tuple(labels.items())): number for labels, number in metric.samples}


def _counter(family: Family, numbers: Numbers) -> Metric:
    samples = ((dict(labels), number) for (_, labels), number in numbers.items())
    return Metric(family.name, "counter", family.help, tuple(samples))


def _complain(error: Exception) -> None:
    log.warning("the counters of the workers cannot be added up: %s", error)
