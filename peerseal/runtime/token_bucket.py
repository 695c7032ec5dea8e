"""A budget for what strangers may cause."""

import threading
from collections.abc import Callable

from peerseal.runtime.forks import in_each_child


class TokenBucket:
    """Allows ``most`` events at once and ``rate`` a second after that. ``clock`` gives seconds. Safe to use from
    threads."""

    def __init__(self, most: float, rate: float, clock: Callable[[], float]) -> None:
        self._most = most
        self._rate = rate
        self._clock = clock
        self._tokens = most
        self._filled_at = 0.0
        self._renew_lock()
        in_each_child(self._renew_lock)

    def has_token(self) -> bool:
        """Whether one more event is allowed now."""
        with self._lock:
            return self._fill() >= 1

    def take(self) -> bool:
        """Count one event. False where it is not allowed now."""
        with self._lock:
            allowed = self._fill() >= 1
            self._tokens -= allowed
            return allowed

    def spend(self) -> None:
        """Count one event that has happened, allowed or not: after too many the budget is in debt."""
        with self._lock:
            self._fill()
            self._tokens -= 1

    def _fill(self) -> float:
        now = self._clock()
        self._tokens = min(self._most, self._tokens + max(0.0, now - self._filled_at) * self._rate)
        self._filled_at = now
        return self._tokens

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()
