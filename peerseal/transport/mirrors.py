"""Which of a registry's URLs failed: lately, so that they are asked last or not at all for a while; or one question."""

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from peerseal.errors import DocumentRefused, FetchError
from peerseal.runtime.backoff import backoff
from peerseal.runtime.limits import FetchLimits

_of_this_thread = threading.local()


@contextmanager
def asking_resting_urls() -> Iterator[None]:
    """In the block, the calls of this thread also go to URLs that rest after a slow failure (see `MirrorHealth`)."""
    _of_this_thread.asks_all = True
    try:
        yield
    finally:
        _of_this_thread.asks_all = False


@dataclass(slots=True)
class _Trouble:
    """How often in a row a URL failed, when it failed last, and until when it rests (monotonic seconds)."""

    failures: int = 0
    since: float = 0.0
    rests_until: float = 0.0


class MirrorHealth:
    """The failures of each URL of a registry. Safe to use from threads: only single references are written.

    A URL that failed is asked after those that did not, until it works again. Where a failure took long, the registry
    hangs rather than refuses, and would hold up each call: then the URL rests, for longer each time, and calls fail at
    once. The first call after the rest finds out whether the URL works. A URL does not rest if it answered another
    call in that time: then the trouble is with one document.
    """

    def __init__(self, urls: Sequence[str], limits: FetchLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._urls = tuple(urls)
        self._limits = limits
        self._clock = clock
        self._trouble: dict[str, _Trouble] = {}
        self._worked_at: dict[str, float] = {}

    def in_order(self) -> Sequence[str]:
        """All URLs: in their order, then those that failed, the one that failed longest ago first."""
        if not self._trouble:
            return self._urls
        trouble = dict(self._trouble)
        return sorted(self._urls, key=lambda url: trouble[url].since if url in trouble else 0.0)

    def check(self, url: str) -> None:
        """Passes a URL that may be asked now; after a rest one call passes alone. Raises FetchError."""
        trouble, now = self._trouble.get(url), self._clock()
        if trouble is None or trouble.rests_until == 0.0 or getattr(_of_this_thread, "asks_all", False):
            return
        if now < trouble.rests_until:
            raise FetchError(f"{url} did not answer in time, and is not asked for {trouble.rests_until - now:.1f} s")
        self._trouble[url] = _Trouble(trouble.failures, trouble.since, now + self._limits.shortest_rest)

    def worked(self, url: str) -> None:
        """It answered."""
        self._worked_at[url] = self._clock()
        self._trouble.pop(url, None)

    def failed(self, url: str, seconds: float) -> None:
        """It failed after that many seconds."""
        before, now = self._trouble.get(url) or _Trouble(), self._clock()
        failures = before.failures + 1
        rest = backoff(failures, first=self._limits.shortest_rest, longest=self._limits.longest_rest)
        hangs = seconds >= self._limits.slow and self._worked_at.get(url, -math.inf) < now - seconds
        rests_until = now + rest if hangs else 0.0
        self._trouble[url] = _Trouble(failures, now, rests_until)


class Failures:
    """What went wrong with the mirrors of one question."""

    def __init__(self) -> None:
        self._worst: FetchError | DocumentRefused | None = None
        self._importance = 0
        self._primary_refused = self._primary_lacks = False

    def add(self, error: FetchError | DocumentRefused, *, of_primary: bool) -> None:
        """Note the failure of one mirror, or the refusal of its answer."""
        importance = _importance(error, of_primary)
        self._primary_refused |= of_primary and isinstance(error, DocumentRefused)
        self._primary_lacks |= of_primary and getattr(error, "http_status", None) == 404
        if importance >= self._importance:
            self._worst, self._importance = error, importance

    def raise_most_important(self) -> None:
        """Passes where there was no failure."""
        if isinstance(self._worst, DocumentRefused):
            self._worst.by_mirror = not self._primary_refused
        elif self._worst is not None:
            self._worst.by_mirror = self._worst.http_status == 404 and not self._primary_lacks
        if self._worst is not None:
            raise self._worst


def _importance(error: FetchError | DocumentRefused, of_primary: bool) -> int:
    """The importance of a failure: 3 for another registry, 2 for a refused answer, 1 for 404, 0 for any other."""
    if isinstance(error, DocumentRefused):
        return 3 if of_primary and error.code == "document_wrong_root" else 2
    return 1 if error.http_status == 404 else 0
