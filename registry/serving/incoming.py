"""Requests as they come in over a connection, each read in bounded time and size before anything serves it."""

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
"""Bytes of a request line with all headers. gunicorn limits their number and the length of each."""
MAX_BODY = 64 * 1024 + 1
"""Bytes of a body that are read: one more than `registry.settings.Limits.body`, so that a longer one is refused."""
MAX_BUFFER = 2 * MAX_BODY
"""Bytes of a body with the sizes of its chunks and its trailers."""
PIECE = 16 * 1024
"""Bytes that are taken from a connection at once; twice as many are read ahead."""

_END_OF_HEAD = b"\r\n\r\n"
_BARE_LF = re.compile(rb"(?<!\r)\n")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;|\Z)")
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Incoming:
    """The requests of one connection, as gunicorn parses them. ``client`` is the address of the other side."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, cfg: Any, client: Any) -> None:
        self._reader = reader
        self._writer = writer
        self._cfg = cfg
        self._client = client
        self._buffer = bytearray()
        self.ends = False

    async def begin(self) -> bool:
        """Wait for the first byte of the next request; False where the client ends the connection instead."""
        return bool(self._buffer) or await self._more()

    async def read(self) -> Any:
        """The next request, once all of it is here; ``ends`` is set where no other request can follow it.

        Raises TimeoutError where it takes too long, gunicorn's NoMoreData, an OSError, where the client ends the
        connection before, and gunicorn's ParseException where it is none.
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
        """The body as it was sent, or the beginning of one that is too long."""
        reader = request.body.reader
        chunked = isinstance(reader, ChunkedReader)
        length = MAX_BODY if chunked else reader.length
        self.ends = chunked or length > MAX_BODY or "close" in _values(request, "CONNECTION")
        if chunked:
            return await self._chunks(request)
        if length > MAX_BODY:  # the application refuses it by its length, or does not want it
            return b""
        if length > len(self._buffer):
            await self._let_it_come(request)
        while length > len(self._buffer):
            await self._needs_more()
        return self._take(length)

    async def _chunks(self, request: Any) -> bytes:
        """The chunks as they were sent, or the beginning of too many of them. gunicorn reads them again, strictly."""
        await self._let_it_come(request)
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

    async def _let_it_come(self, request: Any) -> None:
        """Some clients send a body when they are told that it is welcome (RFC 9110 section 10.1.1)."""
        if "100-continue" in _values(request, "EXPECT") and request.version >= (1, 1):
            self._writer.write(_CONTINUE)
            await self._writer.drain()

    async def _until(self, end: bytes, begin: int, most: int = MAX_BUFFER) -> int:
        """Where the next ``end`` behind ``begin`` is, once it is here. Raises gunicorn's InvalidHeader where a line has
        another end, as the awaited one would never come."""
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
    """What is in the chunks. Raises ParseException, here and not while the application reads."""
    try:
        return bytes(request.body.read(MAX_BODY))
    except OSError as error:  # gunicorn's error for bad chunks is one, in some of its releases
        raise InvalidHeader("TRANSFER-ENCODING") from error


def _chunk_size(line: bytes) -> int | None:
    """The bytes of the chunk that such a line begins; None where it begins none."""
    match = _CHUNK_SIZE.match(line)
    return None if match is None else int(match[1], 16)


def _source(pieces: list[bytes]) -> Iterator[bytes]:
    """What gunicorn's parser reads from: the pieces, and then the end."""
    while True:
        yield pieces.pop(0) if pieces else b""
