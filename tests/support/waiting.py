"""Waits for an effect of another thread or process."""

import time
from collections.abc import Callable

PATIENCE = 20.0
"""Seconds after which the effect counts as missing."""


def until(true: Callable[[], bool], patience: float = PATIENCE, *, what: str = "it", every: float = 0.005) -> float:
    """Returns once it is true: the seconds that it took. Raises AssertionError after ``patience`` seconds."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < patience, f"{what} did not happen in {patience:g} s"
        time.sleep(every)
    return time.monotonic() - began
