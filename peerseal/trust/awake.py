"""Detects breaks, in which this process did not run: what it knew before a break, a start or a fork may be out of date.

A stopped process, a frozen container and a suspended machine do not notice that time passes. So a thread notes the time
several times in each poll (`peerseal.trust.background.BackgroundThread`), and a note that is older than a poll means
that there was a break. The clock is CLOCK_BOOTTIME where the system has it: CLOCK_MONOTONIC stands still while a
machine is suspended.
"""

import threading
import time
from collections.abc import Callable

from peerseal.runtime.forks import in_each_child
from peerseal.runtime.limits import TrustLimits

NEVER = 0
"""The period of a belief that nothing confirmed in this process."""

_BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_SHORTEST_BREAK = 0.5


def uptime() -> float:
    """Seconds since the machine started, including the time for which it was suspended."""
    return time.clock_gettime(_BOOT_CLOCK)


class AwakePeriods:
    """The periods in which this process runs without a break, numbered from 1. ``began_at`` (by ``uptime``) is when the
    current one began; ``slept`` is the length of the break before it in seconds, as far as known. Safe to use from
    threads. A forked child begins a period of its own.
    """

    def __init__(self, limits: TrustLimits, uptime: Callable[[], float] = uptime) -> None:
        self.longest_break = min(max(limits.poll_interval, _SHORTEST_BREAK), limits.longest_poll_pause)
        self.began_at = uptime()
        self.slept = 0.0
        self.uptime = uptime
        self._number = NEVER + 1
        self._until = self.began_at + self.longest_break
        self._lock = threading.Lock()
        in_each_child(self._begin_in_child)

    def is_current(self, period: int) -> bool:
        """Whether that period is the current one. It takes no lock, since each request calls it."""
        return self.uptime() < self._until and period == self._number

    def current(self) -> int:
        """Note the time, and return the number of the current period."""
        with self._lock:
            now = self.uptime()
            if now >= self._until:
                self._begin(now)
            self._until = now + self.longest_break
            return self._number

    def period_at(self, asked_at: float) -> int:
        """The number of the current period if that uptime lies in it, else NEVER."""
        number = self.current()
        return number if asked_at >= self.began_at else NEVER

    def _begin(self, now: float) -> None:
        self.slept = now - self._until + self.longest_break
        self.began_at = now
        self._number += 1  # before `_until` changes: `is_current` reads `_until` first

    def _begin_in_child(self) -> None:
        self._lock = threading.Lock()
        self._begin(self.uptime())
