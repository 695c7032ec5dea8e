"""A dict of bounded size, for values that are cheap to compute again."""

from threading import Lock
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class BoundedCache(Generic[K, V]):
    """Keeps the newest ``limit`` values: when it is full, the oldest is dropped. Reads take no lock. Two threads that
    miss at the same time at worst compute the same value twice."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept: dict[K, V] = {}
        self._writing = Lock()  # another thread's change would break `next(iter(…))`

    def get(self, key: K) -> V | None:
        """The value under that key, None where there is none."""
        return self._kept.get(key)

    def put(self, key: K, value: V) -> V:
        """Keeps the value as the newest one, and returns it."""
        with self._writing:
            self._kept.pop(key, None)
            self._kept[key] = value
            while len(self._kept) > self._limit:
                del self._kept[next(iter(self._kept))]
        return value

    def clear(self) -> None:
        """Drops all values."""
        with self._writing:
            self._kept = {}

    def __len__(self) -> int:
        """The number of values."""
        return len(self._kept)
