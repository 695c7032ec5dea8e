"""A dict of bounded size, for values that are cheap to compute again."""

from collections.abc import Callable
from threading import Lock
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


def _one(_value: object) -> int:
    """The size where a cache counts its values."""
    return 1


class BoundedCache(Generic[K, V]):
    """Keeps the newest values whose sizes together are ``limit`` at most, and drops the oldest ones for a new one.

    ``size`` returns the bytes of a value; without it each counts as one. A value that alone exceeds the limit is not
    kept. Reads take no lock. Two threads that miss at the same time at worst compute the same value twice.
    """

    def __init__(self, limit: int, size: Callable[[V], int] = _one) -> None:
        self._limit = limit
        self._size = size
        self._kept: dict[K, V] = {}
        self._held = 0
        self._writing = Lock()  # another thread's change would break `next(iter(…))`

    @property
    def held(self) -> int:
        """The sizes of the values together."""
        return self._held

    def get(self, key: K) -> V | None:
        """The value under that key, None where there is none."""
        return self._kept.get(key)

    def put(self, key: K, value: V) -> V:
        """Keeps the value as the newest one, and returns it."""
        size = self._size(value)
        with self._writing:
            self._drop(key)
            if size <= self._limit:
                self._kept[key] = value
                self._held += size
            while self._held > self._limit:
                self._drop(next(iter(self._kept)))
        return value

    def clear(self) -> None:
        """Drops all values."""
        with self._writing:
            self._kept, self._held = {}, 0

    def __len__(self) -> int:
        """The number of values."""
        return len(self._kept)

    def _drop(self, key: K) -> None:
        value = self._kept.pop(key, None)
        if value is not None:
            self._held -= self._size(value)
