"""The body of a request, read into memory: every attempt sends the bytes that were signed, even if a file changes."""

from collections.abc import Iterator
from typing import Any

import requests

from peerseal.errors import UnsignableRequest

_PIECE = 1 << 16  # bytes read at once


def settle_body(request: requests.PreparedRequest, *, buffer: bool, max_buffer: int) -> None:
    """Replace the body by its bytes, and set Content-Length.

    A file is read from the position at which the request was made; a stream that can be read only once, if ``buffer``
    is set. Raises UnsignableRequest for any other stream, and for a body of more than ``max_buffer`` bytes.
    """
    body: Any = request.body
    if body is None or isinstance(body, bytes):
        return
    if isinstance(body, str):
        request.body = body.encode("utf-8")  # as urllib3 sends it, and requests counted it
        return
    if isinstance(body, bytearray | memoryview):
        content = bytes(body)
    else:
        content = _read(body, request._body_position, buffer, max_buffer)
    request.body = content
    request._body_position = None  # requests must not rewind bytes; it has no public way to say so
    request.headers.pop("Transfer-Encoding", None)
    request.headers["Content-Length"] = str(len(content))


def _read(body: Any, position: object, buffer: bool, max_buffer: int) -> bytes:
    if isinstance(position, int) and hasattr(body, "seek"):
        body.seek(position)
    elif not buffer:
        raise UnsignableRequest("the body can be read only once: give bytes or a file, or set buffer=True")
    content = bytearray()
    for piece in _pieces(body):
        content += piece.encode("utf-8") if isinstance(piece, str) else piece
        if len(content) > max_buffer:
            raise UnsignableRequest(f"the body is longer than max_buffer, {max_buffer} bytes")
    return bytes(content)


def _pieces(body: Any) -> Iterator[bytes | str]:
    if not hasattr(body, "read"):
        yield from body
        return
    while piece := body.read(_PIECE):
        yield piece
