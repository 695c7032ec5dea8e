"""The metrics of workers, added up through files: what stays when a worker ends."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from peerseal.runtime.files import Folder
from peerseal.runtime.worker_counters import Families, Family, WorkerFiles

RUNNING, ANSWERED = Family("calls_running", "gauge", "Running."), Family("calls_total", "counter", "Answered.")
SECONDS = Family("call_seconds", "histogram", "Seconds.")


def numbers(running: float, answered: float) -> Families:
    buckets = {("call_seconds_bucket", (("le", "+Inf"),)): answered, ("call_seconds_count", ()): answered}
    return {RUNNING: {("calls_running", ()): running}, ANSWERED: {("calls_total", ()): answered}, SECONDS: buckets}


def no_complaint(error: Exception) -> None:
    raise AssertionError from error


@contextmanager
def worker_in(folder: Path) -> Iterator[int]:
    """The process id of another worker, which has published and is killed at the end."""
    ready, done = os.pipe()
    worker = os.fork()
    if worker == 0:
        WorkerFiles(Folder(folder), no_complaint).publish(numbers(running=3, answered=5))
        os.write(done, b"!")
        signal.pause()
    os.read(ready, 1)
    try:
        yield worker
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)


@pytest.fixture(autouse=True)
def _one_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this process and its children had one parent."""
    parent = os.getpid()
    monkeypatch.setattr(os, "getppid", lambda: parent)


def test_a_gauge_counts_while_its_worker_runs_and_what_only_grows_counts_for_ever(tmp_path: Path) -> None:
    files = WorkerFiles(Folder(tmp_path / "counts"), no_complaint)
    with worker_in(tmp_path / "counts"):
        assert files.of_others() == numbers(running=3, answered=5)
    lasting = {family: values for family, values in numbers(0, 5).items() if family != RUNNING}
    assert files.of_others() == lasting
    files.publish(numbers(running=1, answered=1))
    assert len(list((tmp_path / "counts").glob("*.json"))) == 2, "its own, and that of all ended workers"
    assert files.of_others() == lasting


def test_a_gauge_of_an_ended_worker_does_not_count_where_another_process_has_its_process_id(
    tmp_path: Path,
) -> None:
    """In a restarted container, process ids begin at 1 again."""
    files = WorkerFiles(Folder(tmp_path / "counts"), no_complaint)
    with worker_in(tmp_path / "counts") as worker:
        pass
    other = subprocess.Popen(["sleep", "600"])
    try:
        (file,) = (tmp_path / "counts").glob("*.json")
        file.rename(file.with_name(file.name.replace(f"-{worker}", f"-{other.pid}")))
        assert files.of_others() == {family: values for family, values in numbers(0, 5).items() if family != RUNNING}
    finally:
        other.kill()
        other.wait()
