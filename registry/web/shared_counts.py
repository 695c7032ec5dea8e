"""What the workers of one server count, added up through files: one of each worker, replaced whole.

Counting never decides an answer. Where a file cannot be written or read, the log says so once, and `/metrics` tells
what is left: at worst the counts of the one worker that is asked. There is no memory-mapped file, whose use on a full
disk would end the process.
"""

import json
import logging
import os
import shutil
import socket
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

log = logging.getLogger(__name__)

FOLDER = "counts"
"""The folder in the registry's home, with a folder of each server, named by its master's process id."""
_OF_THE_LIVING = "gauge"
"""Samples of this type are of a worker that runs; the others stay when it has ended: a counter does not go back."""

Family = tuple[str, str, str]
"""Name, type, documentation."""
Samples = dict[Family, Counter[tuple[str, tuple[tuple[str, str], ...]]]]


class SharedCounts(Collector):
    """The counts in ``counted``, of this worker and the others of its server. Without a folder: of this one alone."""

    def __init__(self, counted: CollectorRegistry) -> None:
        self._counted = counted
        self._servers: Path | None = None
        self._works = True

    def share_in(self, home: Path | None) -> None:
        """Publish from now on in the registry's folder ``home``, which must exist; nowhere without one."""
        self._servers = None if home is None else home / FOLDER

    def publish(self) -> None:
        """Write what this worker has counted, for the others."""
        servers = self._servers
        if servers is None:
            return
        try:
            self._write(_made(servers) / _file_name())
            self._works = True
        except OSError as error:
            if self._works:
                log.warning("what this worker counts cannot be shared: %s", error)
            self._works = False

    def collect(self) -> Iterator[Metric]:
        """See Collector."""
        total = _samples(self._counted.collect())
        for name, samples in self._of_others():
            gone = not _runs(name)
            for family, values in samples.items():
                if not (gone and family[1] == _OF_THE_LIVING):
                    total.setdefault(family, Counter()).update(values)
        for (name, kind, documentation), found in total.items():
            metric = Metric(name, documentation, kind)
            for (sample, labels), value in found.items():
                metric.add_sample(sample, dict(labels), value)
            yield metric

    def _write(self, file: Path) -> None:
        text = json.dumps(
            [[*family, list(found.items())] for family, found in _samples(self._counted.collect()).items()]
        )
        draft = file.with_name(f".new-{file.stem}")  # one for each worker; other workers read *.json only
        try:
            draft.write_text(text, encoding="ascii")
            os.replace(draft, file)
        except OSError:
            with suppress(OSError):
                draft.unlink()
            raise

    def _of_others(self) -> Iterator[tuple[str, Samples]]:
        servers = self._servers
        if servers is None:
            return
        for file in (servers / _server_name()).glob("*.json"):
            if file.name != _file_name():
                with suppress(OSError, ValueError, TypeError):
                    yield file.stem, _read(file)


def _made(servers: Path) -> Path:
    """This server's folder, made where it is missing; folders of servers that have ended are removed then."""
    folder = servers / _server_name()
    if not folder.is_dir():
        for other in servers.glob("*"):
            if not _runs(other.name):
                shutil.rmtree(other, ignore_errors=True)
        servers.mkdir(mode=0o700, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def remove_counts(home: Path) -> None:
    """What a server's master does last: its workers' files are of no use any more."""
    shutil.rmtree(home / FOLDER / f"{socket.gethostname()}-{os.getpid()}", ignore_errors=True)


def _read(file: Path) -> Samples:
    found: Samples = {}
    for name, kind, documentation, values in json.loads(file.read_text(encoding="ascii")):
        counter: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()
        for (sample, labels), value in values:
            counter[str(sample), tuple((str(label), str(text)) for label, text in labels)] = value
        found[str(name), str(kind), str(documentation)] = counter
    return found


def _samples(metrics: Iterable[Metric]) -> Samples:
    """Without the times at which counters were made, which do not add up."""
    found: Samples = {}
    for metric in metrics:
        counter: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()
        for sample in metric.samples:
            if not sample.name.endswith("_created"):
                counter[sample.name, tuple(sorted(sample.labels.items()))] = sample.value  # type: ignore[assignment]
        found[metric.name, metric.type, metric.documentation] = counter
    return found


def _server_name() -> str:
    """Workers of one server have one parent."""
    return f"{socket.gethostname()}-{os.getppid()}"


def _file_name() -> str:
    return f"{socket.gethostname()}-{os.getpid()}.json"


def _runs(name: str) -> bool:
    """Whether the process runs, as far as this host knows. Another host's is left alone."""
    host, _, pid = name.rpartition("-")
    if host != socket.gethostname() or not pid.isdigit():
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
