"""How long a thread may be held up by the registry, all calls and locks together."""

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

_of_this_thread = threading.local()
_RIGHT_BEHIND = 0.01
"""Seconds within which a verification gets from one of its questions to the next."""


@contextmanager
def no_longer_than(seconds: float) -> Iterator[None]:
    """Bounds what this thread waits for within, be it one call or several: mirrors in turn, a proof that a document
    needs, another thread that fetches the same. Nested limits can only be shorter."""
    before = getattr(_of_this_thread, "until", math.inf)
    _of_this_thread.until = min(before, time.monotonic() + seconds)
    try:
        yield
    finally:
        _of_this_thread.until = before


@contextmanager
def no_longer_in_all(seconds: float, *, last: bool) -> Iterator[None]:
    """As `no_longer_than`, for waits of which several may belong to one verification: one that begins right behind
    another has what that has left, unless it was the ``last`` of its verification, or in vain."""
    ended_at, left = getattr(_of_this_thread, "left_over", (-math.inf, seconds))
    budget = min(left, seconds) if time.monotonic() - ended_at < _RIGHT_BEHIND else seconds
    ends = time.monotonic() + budget
    _of_this_thread.left_over = (-math.inf, seconds)
    with no_longer_than(budget):
        yield
    if not last:
        now = time.monotonic()
        _of_this_thread.left_over = (now, max(0.0, ends - now))


class WouldWait(Exception):
    """Memory alone has no answer, and this thread may not wait for one (`not_waiting`)."""


@contextmanager
def not_waiting() -> Iterator[None]:
    """Has what would wait in this thread raise WouldWait: an event loop runs on it."""
    _of_this_thread.must_not_wait = True
    try:
        yield
    finally:
        _of_this_thread.must_not_wait = False


def check_may_wait() -> None:
    """Passes a thread that may wait. Raises WouldWait."""
    if getattr(_of_this_thread, "must_not_wait", False):
        raise WouldWait


def time_left() -> float:
    """Seconds that this thread may still wait; ``math.inf`` where nothing bounds it."""
    return max(0.0, getattr(_of_this_thread, "until", math.inf) - time.monotonic())


def acquired_in_time(lock: threading.Lock) -> bool:
    """Take the lock, unless the time is over before that."""
    return lock.acquire(timeout=min(time_left(), threading.TIMEOUT_MAX))
