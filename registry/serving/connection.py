"""One client's connection, with or without TLS. `send` returns when the data has left this process, and closing a
connection cuts off no answer."""

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self

from registry.serving import gunicorn_conf
from registry.serving.incoming import PIECE

LINGER = 2
"""Seconds for which a closing connection is still read: the rest of a refused request, or the next request of a client
while the worker stops (RFC 9112 section 9.6)."""
SLICE = 64 * 1024
"""Bytes of an answer that are written at once."""
POLL_INTERVAL = 0.05
"""Seconds between two checks of the data that a TLS client has not read yet."""


class _Stream(asyncio.StreamReaderProtocol):
    """A stream that reports the end of its client's data."""

    def __init__(self, reader: asyncio.StreamReader, tls: ssl.SSLContext | None) -> None:
        super().__init__(reader, loop=asyncio.get_running_loop())
        self.ended = False
        self.on_end: Callable[[], object] = _nothing
        self._half_closes = tls is None

    def eof_received(self) -> bool | None:
        """See asyncio."""
        super().eof_received()
        self._end()
        return self._half_closes

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio."""
        self._end()
        super().connection_lost(error)

    def _end(self) -> None:
        self.ended = True
        self.on_end()


class Connection:
    """A connection. ``transport`` is the encrypted transport over ``plain`` under TLS, and ``plain`` itself without.
    ``client`` and ``server`` are the addresses of the two ends."""

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
        """The connection over an accepted socket. ``client`` is given, because asyncio cannot find it out after the
        client has closed the connection. Raises OSError where the TLS handshake fails or takes too long."""
        loop, reader = asyncio.get_running_loop(), asyncio.StreamReader(PIECE)
        stream = _Stream(reader, tls)
        plain, _ = await loop.connect_accepted_socket(lambda: stream if tls is None else asyncio.Protocol(), accepted)
        plain.set_write_buffer_limits(0)  # `drain` returns when the kernel has all data
        if tls is None:
            return cls(client, stream, reader, plain, plain)
        timeout = gunicorn_conf.SOCKET_TIMEOUT
        transport = await loop.start_tls(plain, stream, tls, server_side=True, ssl_handshake_timeout=timeout)
        if transport is None:
            raise ConnectionAbortedError
        transport.set_write_buffer_limits(1, 0)  # with 0 asyncio pauses after every other write
        stream.connection_made(transport)
        return cls(client, stream, reader, transport, plain)

    def on_end(self, callback: Callable[[], object] | None) -> None:
        """Has ``callback`` called when the client's data ends, at once if it has ended; None removes it."""
        self._stream.on_end = callback or _nothing
        if self._stream.ended:
            self._stream.on_end()

    async def send(self, pieces: list[bytes]) -> None:
        """Sends an answer. A long answer is sent in slices, so that a slow client occupies the memory of one or two
        slices. Raises TimeoutError or another OSError where the client does not read it."""
        if sum(map(len, pieces)) <= SLICE:
            pieces = [b"".join(pieces)]
        async with asyncio.timeout(gunicorn_conf.REQUEST_DEADLINE):
            for piece in pieces:
                for at in range(0, len(piece), SLICE):
                    self.writer.write(piece[at : at + SLICE])
                    await self.writer.drain()
            while self._plain.get_write_buffer_size():  # under TLS, drained data may still be here
                await asyncio.sleep(POLL_INTERVAL)

    async def linger(self) -> None:
        """Closes the connection. The rest of the request is read first: unread data would cut off the answer."""
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
        """Closes the connection at once."""
        self.writer.transport.abort()


def _nothing() -> None:
    """The callback of a stream without one."""
