"""The connections of an agent that have not been answered yet: each user of the host may open them on loopback."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

log = logging.getLogger("peerseal.agent")

_AT_ONCE: Final = 0.5
"""Seconds in which a program on a busy host sends its request, and the event loop reads it. Until then its connection
is not closed."""
_QUIET: Final = 60.0
"""Seconds between two lines of the log: a crowd must not fill a disk."""


class Newcomers:
    """Connections without an answer, oldest first. More than ``most`` close the oldest, so that programs that send
    nothing, or half a request, keep no program out that asks at once. It belongs to one event loop."""

    def __init__(self, most: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._quiet_until = clock()
        self._since: dict[asyncio.Transport, float] = {}

    def add(self, transport: asyncio.Transport) -> None:
        """A connection was made."""
        now = self._clock()
        self._since[transport] = now
        while len(self._since) > self._most:
            oldest, since = next(iter(self._since.items()))
            if now - since < _AT_ONCE:
                return
            self.discard(oldest)
            oldest.abort()
            self._warn(now)

    def discard(self, transport: asyncio.Transport) -> None:
        """It was answered and is kept, or it is gone. Does nothing where it is no newcomer."""
        self._since.pop(transport, None)

    def _warn(self, now: float) -> None:
        if now >= self._quiet_until:
            self._quiet_until = now + _QUIET
            log.warning("more than %d connections without an answer: the oldest of them are closed", self._most)
