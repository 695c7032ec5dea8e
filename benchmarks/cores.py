"""Separate processor cores for the servers and for the load, so that neither takes time from the other; and the
processor time and the memory that a server took."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def shared_out() -> tuple[set[int], set[int]]:
    """The servers' cores and the load's. With one core they must share it; from three on the servers have two."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) == 1:
        return set(cores), set(cores)
    servers = 2 if len(cores) > 2 else 1
    return set(cores[:servers]), set(cores[servers:])


@contextmanager
def on(cores: set[int]) -> Iterator[None]:
    """This thread, and the processes that it starts, on these cores only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def processor_seconds(pid: int) -> float:
    """The seconds that the process and its children have run, as Linux counts them in nanoseconds by thread."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            if pid in (int(stat.parent.name), int(stat.read_text().rpartition(")")[2].split()[1])):
                total += sum(int(task.read_text().split()[0]) for task in stat.parent.glob("task/*/schedstat"))
    return total / 1e9


def memory_of_workers(pid: int) -> int:
    """Bytes of the processes that gunicorn's master has started, each one's share of common pages counted once."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            if int(status.read_text().rpartition(")")[2].split()[1]) == pid:
                rollup = (status.parent / "smaps_rollup").read_text()
                total += 1024 * int(rollup.partition("Pss:")[2].split()[0])
    return total
