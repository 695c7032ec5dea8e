"""A fetcher that writes down what is asked of the registry."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from peerseal.transport.fetch import Answer, HttpFetcher

T = TypeVar("T")


class CountedFetcher(HttpFetcher):
    """``times`` has the time (`time.monotonic`) and path of each question for something signed."""

    def __init__(self, urls: Sequence[str]) -> None:
        super().__init__(urls)
        self.times: list[tuple[float, str]] = []

    def ask(
        self,
        path: str,
        read: Callable[[Answer], T | None],
        *,
        headers: Mapping[str, str] | None = None,
        wait: float = 0.0,
    ) -> T | None:
        """See Fetcher."""
        self.times.append((time.monotonic(), path))
        return super().ask(path, read, headers=headers, wait=wait)
