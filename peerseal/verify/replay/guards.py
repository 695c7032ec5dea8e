"""Replay guards: each token is accepted once.

A guard is asked last (step 11), so it only records tokens that passed all other checks: no one else can fill it. It
keeps (``iss``, ``jti``) until the token can no longer be accepted. To claim a token is to record it as accepted.
"""

import time
from collections.abc import Callable
from typing import Protocol

from peerseal.errors import TrustUnavailable
from peerseal.runtime.metrics import Metric
from peerseal.runtime.options import check_callable, check_whole
from peerseal.verify.replay.file import FileReplayGuard, guard_metrics

__all__ = ["FileReplayGuard", "MemoryReplayGuard", "ReplayGuard"]


class ReplayGuard(Protocol):
    """Remembers which tokens were accepted."""

    def claim(self, issuer: str, jti: str, until: float) -> bool:
        """True for the first claim of this (issuer, jti), False for each other one before the time ``until`` (seconds
        since the epoch). One atomic insert. Raises TrustUnavailable where the guard cannot answer.

        ``until`` must depend on the token alone: the guard looks for a token by it.
        """


class MemoryReplayGuard:
    """For one process, until it ends: other workers and hosts accept the same tokens.

    Expired tokens are dropped within ``PURGE_EVERY`` seconds. While ``limit`` other tokens are held, further ones are
    refused.
    """

    PURGE_EVERY = 30

    def __init__(self, *, limit: int = 1_000_000, clock: Callable[[], float] = time.time) -> None:
        check_whole("limit", limit, at_least=1)
        check_callable("clock", clock)
        self._limit = limit
        self._clock = clock
        self._seen: dict[str, object] = {}
        self._by_end: dict[float, list[str]] = {}
        self._purged_at = 0.0

    def claim(self, issuer: str, jti: str, until: float) -> bool:
        """See ReplayGuard. ``dict.setdefault`` is the atomic insert: no lock that a fork could leave held."""
        now = self._clock()
        if not 0 <= now - self._purged_at < self.PURGE_EVERY:
            self._purged_at = now
            self._purge(now)
        if len(self._seen) >= self._limit:
            raise TrustUnavailable("the replay guard is full", retry_after=self.PURGE_EVERY)
        token, mine = f"{issuer} {jti}", object()
        if self._seen.setdefault(token, mine) is not mine:
            return False
        end = until // self.PURGE_EVERY
        (self._by_end.get(end) or self._by_end.setdefault(end, [])).append(token)
        return True

    def __len__(self) -> int:
        """How many tokens are held."""
        return len(self._seen)

    def collect(self) -> list[Metric]:
        """The number of tokens that are held, and the part of the limit that they are."""
        return guard_metrics("memory", len(self), len(self) / self._limit)

    def _purge(self, now: float) -> None:
        for end in [end for end in list(self._by_end) if (end + 1) * self.PURGE_EVERY < now]:
            for token in self._by_end.pop(end, ()):
                self._seen.pop(token, None)
