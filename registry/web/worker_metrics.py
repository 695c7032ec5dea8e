"""The metrics of all workers of one server, from prometheus_client's and for it.

A failure to count changes no answer. Where a file cannot be written or read, the log says so once, and ``/metrics``
shows the rest: at worst the metrics of the worker that answers.
"""

import logging
import os
import shutil
import socket
from collections.abc import Iterable, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from peerseal.runtime.files import Access, Folder
from peerseal.runtime.forks import process_runs
from peerseal.runtime.worker_counters import Families, Family, WorkerFiles, added, server_name

log = logging.getLogger(__name__)

FOLDER = "counts"
"""The folder in the registry's home, with one folder of each server, named by the process id of its master."""


class WorkerMetrics(Collector):
    """The metrics in ``process``, added up over this worker and the others of its server; of this worker alone until
    `share_in` names a folder."""

    def __init__(self, process: CollectorRegistry) -> None:
        self._process = process
        self._home: Path | None = None
        self._files: dict[str, WorkerFiles] = {}

    def share_in(self, home: Path | None) -> None:
        """Publishes from now on in the registry's home, which must exist; nowhere if it is None."""
        if home != self._home:  # else this process has a file there
            self._home, self._files = home, {}

    def publish(self) -> None:
        """Writes this worker's metrics for the others."""
        if self._home is not None:
            self._files_in(self._home).publish(_families(self._process.collect()))

    def collect(self) -> Iterator[Metric]:
        """See Collector."""
        own = _families(self._process.collect())
        total = own if self._home is None else added([own, self._files_in(self._home).of_others()])
        for (name, kind, documentation), numbers in total.items():
            metric = Metric(name, documentation, kind)
            for (sample, labels), number in numbers.items():
                metric.add_sample(sample, dict(labels), number)
            yield metric

    def _files_in(self, home: Path) -> WorkerFiles:
        """The files of this server: a worker that was forked from a loaded application has another one."""
        server = server_name()
        files = self._files.get(server)
        if files is None:
            _remove_ended(home / FOLDER)
            there = Folder(home, "REGISTRY_HOME", access=Access.COMMON, mode=None)
            servers = Folder(FOLDER, "REGISTRY_HOME", named=home, parent=there)
            files = self._files.setdefault(server, WorkerFiles(servers.inner(server), _complain))
        return files


def remove_metrics(home: Path) -> None:
    """Removes the files of a server's workers. Its master calls this last."""
    shutil.rmtree(home / FOLDER / f"{socket.gethostname()}-{os.getpid()}", ignore_errors=True)


def _remove_ended(servers: Path) -> None:
    """Removes the folders of servers of this host that have ended."""
    for folder in servers.glob(f"{socket.gethostname()}-*"):
        pid = folder.name.rpartition("-")[2]
        if pid.isdigit() and not process_runs(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _families(metrics: Iterable[Metric]) -> Families:
    """Without the creation times of counters, which do not add up."""
    return {
        Family(metric.name, metric.type, metric.documentation): {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for sample in metric.samples
            if not sample.name.endswith("_created")
        }
        for metric in metrics
    }


def _complain(error: Exception) -> None:
    log.warning("what this worker counts cannot be shared: %s", error)
