"""One client's connection, plain or under TLS. What was sent has left this process, and the end cuts off no answer."""

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

from registry.serving import gunicorn_conf
from registry.serving.incoming import PIECE

LINGER = 2
"""Seconds for which a connection is kept that ends: for the rest of a request that was refused, or a next one that a
client already sends while the worker stops (RFC 9112 section 9.6)."""
SLICE = 64 * 1024
"""Bytes of an answer that are sent at once."""
LOOK_AGAIN = 0.05
"""Seconds between two looks at what a client under TLS has not taken yet."""


class _Stream(asyncio.StreamReaderProtocol):
    """A stream that remembers, and tells, that its client has nothing more to say."""

    def __init__(self, reader: asyncio.StreamReader, tls: ssl.SSLContext | None) -> None:
        super().__init__(reader, loop=asyncio.get_running_loop())
        self.over = False
        self.when_over: Callable[[], object] = _nothing
        self._half_closes = tls is None

    def eof_received(self) -> bool | None:
        """See asyncio."""
        super().eof_received()
        self._is_over()
        return self._half_closes

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio."""
        self._is_over()
        super().connection_lost(error)

    def _is_over(self) -> None:
        self.over = True
        self.when_over()


class Connection:
    """A connection, with what came in over it. ``plain`` is the transport of what ``transport`` may encrypt.
    ``client`` and ``server`` are the addresses of its ends."""

    def __init__(
        self,
        client: Any,
        stream: _Stream,
        reader: asyncio.StreamReader,
        transport: asyncio.Transport,
        plain: asyncio.Transport,
    ) -> None:
        self.client = client
        self.reader = reader
        self.writer = asyncio.StreamWriter(transport, stream, reader, asyncio.get_running_loop())
        self.server = self.writer.get_extra_info("sockname")
        self._stream = stream
        self._plain = plain

    @classmethod
    async def accepted(cls, accepted: socket.socket, client: Any, tls: ssl.SSLContext | None) -> Self:
        """The connection over a socket from that client, whose address asyncio does not know where it hung up already.
        Raises OSError where TLS was not agreed on in time."""
        loop, reader = asyncio.get_running_loop(), asyncio.StreamReader(PIECE)
        stream = _Stream(reader, tls)
        plain, _ = await loop.connect_accepted_socket(lambda: stream if tls is None else asyncio.Protocol(), accepted)
        plain.set_write_buffer_limits(0)  # what is drained was taken by the kernel
        if tls is None:
            return cls(client, stream, reader, plain, plain)
        within = gunicorn_conf.SOCKET_TIMEOUT
        transport = await loop.start_tls(plain, stream, tls, server_side=True, ssl_handshake_timeout=within)
        if transport is None:
            raise ConnectionAbortedError
        transport.set_write_buffer_limits(1, 0)  # with 0 asyncio takes each other write for one that must wait
        stream.connection_made(transport)
        return cls(client, stream, reader, transport, plain)

    def when_over(self, tell: Callable[[], object] | None) -> None:
        """Has ``tell`` called once the client has nothing more to say; at once where that is so already."""
        self._stream.when_over = tell or _nothing
        if self._stream.over:
            self._stream.when_over()

    async def send(self, pieces: list[bytes]) -> None:
        """Send an answer; a long one by slices, of which a client that reads slowly holds one or two in memory. Raises
        TimeoutError, or another OSError, where the client does not take it."""
        if sum(map(len, pieces)) <= SLICE:
            pieces = [b"".join(pieces)]
        async with asyncio.timeout(gunicorn_conf.REQUEST_DEADLINE):
            for piece in pieces:
                for at in range(0, len(piece), SLICE):
                    self.writer.write(piece[at : at + SLICE])
                    await self.writer.drain()
            while self._plain.get_write_buffer_size():  # under TLS, what is drained may be here
                await asyncio.sleep(LOOK_AGAIN)

    async def linger(self) -> None:
        """End it so that a rest of the request that nobody reads does not cut off the answer."""
        with suppress(OSError):
            async with asyncio.timeout(LINGER):
                if not self.writer.can_write_eof():  # under TLS
                    self.writer.close()
                    await self.writer.wait_closed()
                    return
                self.writer.write_eof()
                while await self.reader.read(PIECE):
                    pass

    def abort(self) -> None:
        """End it now."""
        self.writer.transport.abort()


def _nothing() -> None:
    """Nobody is to be told."""
