"""Separate processor cores for the servers and for the load, so that neither takes time from the other."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


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
