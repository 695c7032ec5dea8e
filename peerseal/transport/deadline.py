"""How long a thread may wait for the registry: all calls and all locks of one verification together."""

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from peerseal.errors import TrustUnavailable


class _OfThisThread(threading.local):
    """``until`` is when the present wait must end (monotonic seconds). ``deadline`` is the budget of all waits."""

    until = math.inf
    deadline: "Deadline | None" = None


_of_this_thread = _OfThisThread()


@contextmanager
def no_longer_than(seconds: float) -> Iterator[None]:
    """In the block, all calls and locks of this thread end within ``seconds``: mirrors in turn, a proof that a document
    needs, the wait for a thread that fetches the same. Nested limits can only be shorter."""
    before = _of_this_thread.until
    _of_this_thread.until = min(before, time.monotonic() + seconds)
    try:
        yield
    finally:
        _of_this_thread.until = before


class Deadline:
    """In the block, this thread waits for ``seconds`` at most, over all its waits (`waiting`) together.

    Only waits use up the budget, so a slow request body takes nothing of it. A nested deadline can only be shorter, and
    uses the budget of the outer one too. Use each once.
    """

    __slots__ = ("_outer", "_seconds", "left")

    def __init__(self, seconds: float) -> None:
        self.left = self._seconds = seconds

    def __enter__(self) -> Self:
        outer = self._outer = _of_this_thread.deadline
        if outer is not None and outer.left < self.left:
            self.left = self._seconds = outer.left
        _of_this_thread.deadline = self
        return self

    def __exit__(self, *_: object) -> None:
        outer = _of_this_thread.deadline = self._outer
        if outer is not None:
            outer.left -= self._seconds - self.left


@contextmanager
def waiting(seconds: float) -> Iterator[None]:
    """One wait of this thread: for ``seconds`` at most, and no longer than the `Deadline` around it leaves."""
    with Deadline(seconds) as deadline:
        left, began = deadline.left, time.monotonic()
        try:
            with no_longer_than(left):
                yield
        finally:
            deadline.left = max(0.0, left - (time.monotonic() - began))  # waits within this one are part of it


def time_left() -> float:
    """Seconds that this thread may still wait; ``math.inf`` where nothing limits it."""
    return max(0.0, _of_this_thread.until - time.monotonic())


def acquired_in_time(lock: threading.Lock) -> bool:
    """Take the lock, unless the time is over before that."""
    return lock.acquire(timeout=min(time_left(), threading.TIMEOUT_MAX))


@contextmanager
def held_in_time(lock: threading.Lock, what: str) -> Iterator[None]:
    """Be the one thread that fetches ``what``. Raises TrustUnavailable where the time is over before that."""
    if not acquired_in_time(lock):
        raise TrustUnavailable(f"{what} cannot be had in time: a fetch is running", retry_after=1)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def held_if_free(lock: threading.Lock) -> Iterator[bool]:
    """Hold the lock if no thread holds it now; the block gets whether it does."""
    held = lock.acquire(blocking=False)
    try:
        yield held
    finally:
        if held:
            lock.release()
