"""A fetcher that records its questions to the registry."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from peerseal.transport.fetch import Answer, HttpFetcher

T = TypeVar("T")


class CountedFetcher(HttpFetcher):
    """``times`` has the time (`time.monotonic`) and path of each question for a signed document."""

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
