"""The metrics of all workers of one server, added up through files: each worker replaces its own file.

A failure to count changes no answer. Where a file cannot be written or read, the log says so once, and ``/metrics``
shows the rest: at worst the metrics of the worker that answers. No file is mapped into memory, because on a full disk
its use would end the process.
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

from peerseal.runtime.forks import process_runs

log = logging.getLogger(__name__)

FOLDER = "counts"
"""The folder in the registry's home, with one folder of each server, named by the process id of its master."""
_OF_RUNNING_WORKERS = "gauge"
"""Samples of this type count only while their worker runs. Other samples stay, because a counter does not go back."""

Family = tuple[str, str, str]
"""Name, type, documentation."""
Samples = dict[Family, Counter[tuple[str, tuple[tuple[str, str], ...]]]]


class WorkerMetrics(Collector):
    """The metrics in ``process``, added up over this worker and the others of its server; of this worker alone until
    `share_in` names a folder."""

    def __init__(self, process: CollectorRegistry) -> None:
        self._process = process
        self._servers: Path | None = None
        self._works = True

    def share_in(self, home: Path | None) -> None:
        """Publishes from now on in the registry's home, which must exist; nowhere if it is None."""
        self._servers = None if home is None else home / FOLDER

    def publish(self) -> None:
        """Writes this worker's metrics for the others."""
        servers = self._servers
        if servers is None:
            return
        try:
            self._write(_server_folder(servers) / _file_name())
            self._works = True
        except OSError as error:
            if self._works:
                log.warning("what this worker counts cannot be shared: %s", error)
            self._works = False

    def collect(self) -> Iterator[Metric]:
        """See Collector."""
        total = _samples(self._process.collect())
        for name, samples in self._of_others():
            gone = not _runs(name)
            for family, values in samples.items():
                if not (gone and family[1] == _OF_RUNNING_WORKERS):
                    total.setdefault(family, Counter()).update(values)
        for (name, kind, documentation), found in total.items():
            metric = Metric(name, documentation, kind)
            for (sample, labels), value in found.items():
                metric.add_sample(sample, dict(labels), value)
            yield metric

    def _write(self, file: Path) -> None:
        text = json.dumps(
            [[*family, list(found.items())] for family, found in _samples(self._process.collect()).items()]
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


def _server_folder(servers: Path) -> Path:
    """This server's folder. If it is missing it is created, and the folders of servers that have ended are removed."""
    folder = servers / _server_name()
    if not folder.is_dir():
        for other in servers.glob("*"):
            if not _runs(other.name):
                shutil.rmtree(other, ignore_errors=True)
        servers.mkdir(mode=0o700, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def remove_metrics(home: Path) -> None:
    """Removes the files of a server's workers. Its master calls this last."""
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
    """Without the creation times of counters, which do not add up."""
    found: Samples = {}
    for metric in metrics:
        counter: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()
        for sample in metric.samples:
            if not sample.name.endswith("_created"):
                counter[sample.name, tuple(sorted(sample.labels.items()))] = sample.value  # type: ignore[assignment]
        found[metric.name, metric.type, metric.documentation] = counter
    return found


def _server_name() -> str:
    """The workers of one server have the same parent."""
    return f"{socket.gethostname()}-{os.getppid()}"


def _file_name() -> str:
    return f"{socket.gethostname()}-{os.getpid()}.json"


def _runs(name: str) -> bool:
    """Whether the process runs. A process of another host is taken to run."""
    host, _, pid = name.rpartition("-")
    if host != socket.gethostname() or not pid.isdigit():
        return True
    return process_runs(int(pid))
