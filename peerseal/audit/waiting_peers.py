"""The questions for changes that peers ask a mirror, and that wait for the answer.

An answer is a list of changes as the registry signed it for the mirror's own question. Peers that follow the mirror ask
the same question. For another one the answer is 404: the peer then reads the recent changes, which the mirror has by
that time. One event loop holds all questions: each takes a socket, and no thread.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from socket import socket
from threading import Thread
from typing import Final, NamedTuple, Self

from peerseal.protocol.documents.changes import Changes

WAITING: Final = 1000
"""Questions that wait at once, at most. Each takes a file descriptor and some 10 KB of memory. One more is answered at
once, and its peer polls."""
LONGEST: Final = 30.0
"""Seconds for which a question waits, at most. Peers ask for 15."""
_TRANSFER: Final = 10.0
"""Seconds for a peer to take an answer."""
_NOT_FOUND: Final = b"HTTP/1.0 404 Not Found\r\nContent-Length: 0\r\nCache-Control: no-store\r\n\r\n"


class SignedList(NamedTuple):
    """A list of changes that passed all checks, and as it was signed."""

    changes: Changes
    jws: str


class WaitingPeers:
    """The questions that wait, ``most`` at once. They wait in the block of a ``with`` statement; its end answers all of
    them. ``clock`` gives seconds since the epoch."""

    def __init__(self, most: int = WAITING, clock: Callable[[], float] = time.time) -> None:
        self.most = most
        self._clock = clock
        self._newest: SignedList | None = None
        self._waiting: dict[asyncio.Future[None], int] = {}  # and the entry after which each asks
        self._ended = False
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="mirror-waiting", daemon=True)

    def __len__(self) -> int:
        """The number of questions that wait."""
        return len(self._waiting)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def tell(self, newest: SignedList) -> None:
        """Answers the questions that the list answers: the mirror has the documents that it names."""
        self._loop.call_soon_threadsafe(self._tell, newest)

    def answer(self, connection: socket, since: int, seconds: float) -> None:
        """Answers on this connection what changed after the entry ``since``, when the mirror has newer entries, after
        ``seconds`` at most; then closes it."""
        asyncio.run_coroutine_threadsafe(self._answer(connection, since, min(seconds, LONGEST)), self._loop)

    def _tell(self, newest: SignedList) -> None:
        before, self._newest = self._newest, newest
        replaced = before is not None and newest.changes.seq < before.changes.seq  # by another ledger
        for told, since in self._waiting.items():
            if (since < newest.changes.seq or replaced) and not told.done():
                told.set_result(None)

    async def _answer(self, connection: socket, since: int, seconds: float) -> None:
        with connection, suppress(OSError):  # TimeoutError is one
            connection.setblocking(False)
            if await self._stays(connection, since, seconds):
                async with asyncio.timeout(_TRANSFER):
                    await self._loop.sock_sendall(connection, self._answer_now(since))

    async def _stays(self, connection: socket, since: int, seconds: float) -> bool:
        """Waits until there is an answer. False where the peer leaves meanwhile. Raises OSError."""
        known = self._newest is not None and since < self._newest.changes.seq
        if known or self._ended or len(self._waiting) >= self.most:
            return True
        told = self._loop.create_future()
        left = self._loop.create_task(self._loop.sock_recv(connection, 1))
        self._waiting[told] = since
        try:
            done, _ = await asyncio.wait((told, left), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            del self._waiting[told]
            left.cancel()
            await asyncio.gather(left, return_exceptions=True)  # the loop watches the socket until then
        return left not in done

    def _answer_now(self, since: int) -> bytes:
        newest = self._newest
        if newest is None or newest.changes.since != since or newest.changes.reset:
            return _NOT_FOUND
        if self._clock() >= newest.changes.expires_at:
            return _NOT_FOUND
        body = newest.jws.encode("ascii")
        head = f"HTTP/1.0 200 OK\r\nContent-Type: application/jwt\r\nContent-Length: {len(body)}\r\n"
        return f"{head}Cache-Control: no-cache\r\n\r\n".encode("ascii") + body

    async def _end(self) -> None:
        self._ended = True
        for told in self._waiting:
            if not told.done():
                told.set_result(None)
        if others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)
