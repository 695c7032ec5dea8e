"""What the workers of one server on one host count, added up through files: one of each worker, replaced whole.

Only counters are added up, since a gauge is of one process. What a worker counted stays when it ends, or the sum would
go back: one of the others adds it to the file ``ended`` and removes the worker's own. Counting never decides an answer:
where a file cannot be written or read, the log says so once, and the sum lacks what it held.
"""

import fcntl
import json
import logging
import os
import re
import secrets
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Final

from peerseal.errors import PeersealError
from peerseal.runtime.files import Folder
from peerseal.runtime.forks import in_each_child, notice_fork
from peerseal.runtime.metrics import Metric, Sample, merged
from peerseal.runtime.trusted_path import Opened

log = logging.getLogger("peerseal.metrics")

_LARGEST: Final = 1 << 20
"""Bytes of one file: a hundred sets of labels of each metric are far less."""
_WORKER: Final = re.compile(r"-([0-9]{1,10})-[0-9a-f]{8}\.json\Z")
"""How the name of a worker's file ends: in its process id, and what tells it from an earlier one with the same."""
_FOLDED: Final = 64
"""Names of files that ``ended`` remembers: one who reads meanwhile may have seen them already."""
_FORGOTTEN_AFTER: Final = 7 * 24 * 3600.0
"""Seconds after which the files of another server, which writes no more, are removed."""


class SharedCounts:
    """The counts of this server's workers, in ``folder``. Workers of one server have one parent process."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._works = True
        self._published: list[Metric] | None = None
        self._begin()
        in_each_child(self._begin)

    def publish(self, own: Iterable[Metric]) -> None:
        """Let the others know what this process has counted. Raises nothing."""
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
        """What is given, with the counters of the other workers added, those that have ended among them."""
        notice_fork()
        found = list(own)
        try:
            others = list(self._of_others())
        except (OSError, PeersealError) as error:
            self._complain(error)
            return found
        return merged([*found, *others])

    def _begin(self) -> None:
        """In this process. A later one may get the same process id."""
        self._server = f"{socket.gethostname()}-{os.getppid()}-"
        self._name = f"{self._server}{os.getpid()}-{secrets.token_hex(4)}.json"
        self._ended = f"{self._server}ended.json"
        self._published = None

    def _of_others(self) -> Iterator[Metric]:
        """Files of workers first, and then what has ended: a worker that is folded in between is in the second."""
        workers = {name: self._read(name)[0] for name in self._workers() if name != self._name}
        ended, folded = self._read(self._ended)
        for name, metrics in workers.items():
            if name not in folded:
                yield from metrics
        yield from ended

    def _workers(self) -> list[str]:
        return [name for name in self._folder.names() if name.startswith(self._server) and _WORKER.search(name)]

    def _fold(self) -> None:
        """Add what ended workers have counted to the file of those, unless another process is at it."""
        gone = [name for name in self._workers() if name != self._name and not _runs(name)]
        if not gone:
            return
        lock = Opened(self._folder.open("lock", os.O_CREAT | os.O_RDWR))
        try:
            fcntl.flock(lock.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ended, folded = self._read(self._ended)
            there = [name for name in gone if name not in folded]
            counted = [metric for name in there for metric in self._read(name)[0]]
            self._folder.write(self._ended, _encoded(merged([*ended, *counted]), [*folded, *there]), durable=False)
            for name in gone:
                self._folder.remove(name)
        except BlockingIOError:
            return
        finally:
            lock.unlock()

    def _read(self, name: str) -> tuple[list[Metric], list[str]]:
        """The metrics in a file, and which files they replace; none where it is gone, or none of ours."""
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
            log.warning("what the workers count cannot be added up: %s", error)
        self._works = False


def _counters(metrics: Iterable[Metric]) -> list[Metric]:
    return [metric for metric in merged(metrics) if metric.kind == "counter"]


def _encoded(metrics: Iterable[Metric], folded: Iterable[str]) -> bytes:
    found = [
        [metric.name, metric.help, [[dict(labels), number] for labels, number in metric.samples]] for metric in metrics
    ]
    return json.dumps({"metrics": found, "folded": list(folded)[-_FOLDED:]}).encode("ascii")


def _metric(name: str, help: str, samples: list[tuple[dict[str, str], float]]) -> Metric:
    read: tuple[Sample, ...] = tuple(
        ({str(label): str(value) for label, value in labels.items()}, float(number)) for labels, number in samples
    )
    return Metric(name, "counter", help, read)


def _runs(name: str) -> bool:
    """Whether the worker that a file is named after still runs. Its id may have gone to this process."""
    found = _WORKER.search(name)
    pid = int(found[1]) if found else 0
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
