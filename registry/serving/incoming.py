"""Reads the requests of a connection. Each is read completely, in bounded time and size, before a thread serves it."""

import asyncio
import io
import re
from collections.abc import Iterator
from typing import Any

from gunicorn import http  # type: ignore[import-untyped]
from gunicorn.http.body import ChunkedReader  # type: ignore[import-untyped]
from gunicorn.http.errors import InvalidHeader, LimitRequestHeaders, NoMoreData  # type: ignore[import-untyped]

from registry.serving import gunicorn_conf

MAX_HEAD = 64 * 1024
"""Bytes of the request line and all headers. gunicorn limits the number of headers and the length of each."""
MAX_BODY = 64 * 1024 + 1
"""Bytes of a body that are read: one more than `registry.settings.Limits.body`, so that longer bodies are refused."""
MAX_BUFFER = 2 * MAX_BODY
"""Bytes of a body with its chunk sizes and trailers."""
PIECE = 16 * 1024
"""Bytes read from a connection at once; asyncio reads twice as many ahead."""

_END_OF_HEAD = b"\r\n\r\n"
_BARE_LF = re.compile(rb"(?<!\r)\n")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;|\Z)")
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Incoming:
    """The requests of one connection, as gunicorn parses them. ``client`` is the client's address, and ``ends`` tells
    that no further request can follow the last one."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, cfg: Any, client: Any) -> None:
        self._reader = reader
        self._writer = writer
        self._cfg = cfg
        self._client = client
        self._buffer = bytearray()
        self.ends = False

    async def begin(self) -> bool:
        """Waits for the first byte of the next request; False where the client closes the connection instead."""
        return bool(self._buffer) or await self._more()

    async def read(self) -> Any:
        """The next request, when all of it has arrived.

        Raises TimeoutError where that takes too long, gunicorn's NoMoreData (an OSError) where the client closes the
        connection first, and gunicorn's ParseException for anything that is no valid request.
        """
        async with asyncio.timeout(gunicorn_conf.REQUEST_DEADLINE):
            pieces = [await self._head()]
            request = next(http.get_parser(self._cfg, _source(pieces), self._client))
            if request.version >= (1, 1) and not _values(request, "HOST"):  # RFC 9112 section 3.2
                raise InvalidHeader("HOST", req=request)
            body = await self._body(request)
            pieces.append(body)
            if self.ends and body:
                request.body = io.BytesIO(_joined(request))
            return request

    async def _head(self) -> bytes:
        return self._take(await self._until(_END_OF_HEAD, 0, MAX_HEAD) + len(_END_OF_HEAD))

    async def _body(self, request: Any) -> bytes:
        """The body as sent, or its beginning where it is too long."""
        reader = request.body.reader
        chunked = isinstance(reader, ChunkedReader)
        length = MAX_BODY if chunked else reader.length
        self.ends = chunked or length > MAX_BODY or "close" in _values(request, "CONNECTION")
        if chunked:
            return await self._chunks(request)
        if length > MAX_BODY:  # the application refuses it by its length, or ignores it
            return b""
        if length > len(self._buffer):
            await self._continue(request)
        while length > len(self._buffer):
            await self._needs_more()
        return self._take(length)

    async def _chunks(self, request: Any) -> bytes:
        """The chunks as sent, or their beginning where they are too many. gunicorn parses them again, strictly."""
        await self._continue(request)
        at, content, line_ends = 0, 0, 0
        size: int | None = 1
        while size and content < MAX_BODY:
            line_ends = await self._until(b"\r\n", at)
            size = _chunk_size(bytes(self._buffer[at:line_ends]))
            while size and len(self._buffer) < line_ends + 2 + min(size, MAX_BODY - content):
                await self._needs_more()
            if size is None:
                break
            content += size
            at = line_ends + 2 + size + 2
        if size == 0:
            await self._until(_END_OF_HEAD, line_ends)  # the trailers
        return self._take(len(self._buffer))

    async def _continue(self, request: Any) -> None:
        """Sends 100 Continue to a client that waits for it before it sends the body (RFC 9110 section 10.1.1)."""
        if "100-continue" in _values(request, "EXPECT") and request.version >= (1, 1):
            self._writer.write(_CONTINUE)
            await self._writer.drain()

    async def _until(self, end: bytes, begin: int, most: int = MAX_BUFFER) -> int:
        """The position of the next ``end`` after ``begin``, when it has arrived. Raises gunicorn's InvalidHeader for a
        line that ends in a bare LF, since ``end`` would never arrive."""
        looked = begin
        while (found := self._buffer.find(end, max(begin, looked - len(end)))) < 0:
            if _BARE_LF.search(self._buffer, looked):
                raise InvalidHeader("bare LF as line terminator")
            looked = len(self._buffer)
            await self._needs_more(most)
        return found

    async def _needs_more(self, most: int = MAX_BUFFER) -> None:
        if len(self._buffer) > most:
            raise LimitRequestHeaders("limit request headers, trailers or chunk sizes")
        async with asyncio.timeout(gunicorn_conf.SOCKET_TIMEOUT):
            if not await self._more():
                raise NoMoreData

    async def _more(self) -> bool:
        piece = await self._reader.read(PIECE)
        self._buffer += piece
        return bool(piece)

    def _take(self, length: int) -> bytes:
        taken = bytes(self._buffer[:length])
        del self._buffer[:length]
        return taken


def _values(request: Any, name: str) -> list[str]:
    """The members of a header that is a list, in lower case (RFC 9110 section 5.6.1)."""
    values = (value for header, value in request.headers if header == name)
    return [member.strip(" \t").lower() for value in values for member in value.split(",")]


def _joined(request: Any) -> bytes:
    """The data in the chunks. It raises ParseException here, and not while the application reads."""
    try:
        return bytes(request.body.read(MAX_BODY))
    except OSError as error:  # in some releases gunicorn's error for bad chunks is an OSError
        raise InvalidHeader("TRANSFER-ENCODING") from error


def _chunk_size(line: bytes) -> int | None:
    """The size that this line declares for its chunk; None where the line is no chunk header."""
    match = _CHUNK_SIZE.match(line)
    return None if match is None else int(match[1], 16)


def _source(pieces: list[bytes]) -> Iterator[bytes]:
    """The input of gunicorn's parser: the pieces, and then the end of the stream."""
    while True:
        yield pieces.pop(0) if pieces else b""
