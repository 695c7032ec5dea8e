"""The metrics of workers, added up through files: what stays when a worker ends."""

import os
import signal
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


def test_a_gauge_counts_while_its_worker_runs_and_what_only_grows_counts_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready, done = os.pipe()
    worker = os.fork()
    if worker == 0:
        WorkerFiles(Folder(tmp_path / "counts"), no_complaint).publish(numbers(running=3, answered=5))
        os.write(done, b"!")
        signal.pause()
    os.read(ready, 1)
    monkeypatch.setattr(os, "getppid", os.getpid)  # as if this process and its child had one parent
    files = WorkerFiles(Folder(tmp_path / "counts"), no_complaint)
    assert files.of_others() == numbers(running=3, answered=5)
    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)
    lasting = {family: values for family, values in numbers(0, 5).items() if family != RUNNING}
    assert files.of_others() == lasting
    files.publish(numbers(running=1, answered=1))
    assert len(list((tmp_path / "counts").glob("*.json"))) == 2, "its own, and that of all ended workers"
    assert files.of_others() == lasting
