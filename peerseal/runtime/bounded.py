"""Memories of bounded size, for what strangers may name. One thread at a time may write to each."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


class BoundedDict(dict[K, V]):
    """A dict of at most ``most`` items, one at least. Where one more is set, the oldest is dropped."""

    def __init__(self, most: int, items: Mapping[K, V] | None = None) -> None:
        super().__init__(items or {})
        self._most = max(most, 1)

    def __setitem__(self, key: K, value: V) -> None:
        super().__setitem__(key, value)
        while len(self) > self._most:
            del self[next(iter(self))]


class AbsentNames:
    """Names that were looked for and not found, each for ``ttl`` seconds. Of more than ``most`` the oldest is
    dropped."""

    def __init__(self, most: int, ttl: float) -> None:
        self._most, self._ttl = most, ttl
        self.clear()

    def has(self, name: str, now: float) -> bool:
        """Whether the name was not found less than ``ttl`` seconds ago."""
        return now < self._until.get(name, 0.0)

    def add(self, name: str, now: float) -> None:
        """Remember that there is no such name."""
        self._until[name] = now + self._ttl

    def discard(self, names: Iterable[str]) -> None:
        """Forget these names: they are there now."""
        for name in names:
            self._until.pop(name, None)

    def clear(self) -> None:
        """Forget all. Safe while another thread writes."""
        self._until = BoundedDict[str, float](self._most)
