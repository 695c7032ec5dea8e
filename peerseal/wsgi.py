"""What a verifier needs to know of a request, from a WSGI environ (PEP 3333). Adapters of WSGI frameworks share it."""

import functools
import sys
from collections.abc import Iterable, Iterator, Mapping
from io import BytesIO, RawIOBase
from typing import IO, Any, Final

from peerseal.errors import ContentTooLarge, ContentUnreadable, WrongBinding
from peerseal.protocol.encoding import natural
from peerseal.protocol.tokens.bearer import BLANKS, bearer_token
from peerseal.verify.context import REQUEST_ID, RequestTrace, current_trace, within
from peerseal.verify.request import RequestHeaders
from peerseal.verify.target import routed_target

__all__ = [
    "MAX_BODY",
    "REQUEST_ID_KEY",
    "EnvironHeaders",
    "bearer_token",
    "environ_key",
    "read_body",
    "within_request",
    "wsgi_target",
]

MAX_BODY = 16 * 1024 * 1024
"""Bytes of the longest body that is read to be checked, unless the application says otherwise."""

REQUEST_ID_KEY: Final = f"HTTP_{REQUEST_ID.upper().replace('-', '_')}"
"""Where an environ has the id that came with the request."""

_PIECE = 1024 * 1024  # bytes read at once
_CGI_HEADERS = ("CONTENT_TYPE", "CONTENT_LENGTH")  # without HTTP_; empty is as good as missing (PEP 3333)


def wsgi_target(environ: Mapping[str, Any], external_prefix: str = "") -> str:
    """`peerseal.verify.target.routed_target` of a request.

    Raises WrongBinding, also where the server does not tell the raw target (``RAW_URI`` or ``REQUEST_URI``), and where
    a request header is called ``SCRIPT_NAME``: gunicorn obeys it from the hosts in ``forwarded_allow_ips``. The raw
    target then still decodes to what was routed, but to another view than the caller meant: with ``/admin`` as script
    name, ``/admin/x`` is the view of ``/x``.
    """
    if "HTTP_SCRIPT_NAME" in environ:
        raise WrongBinding("a header shifts the routing")
    raw_uri = environ.get("RAW_URI") or environ.get("REQUEST_URI")
    if raw_uri is None:
        raise WrongBinding("the server does not tell the raw request-target: neither RAW_URI nor REQUEST_URI is there")
    return routed_target(raw_uri, environ.get("SCRIPT_NAME", ""), environ.get("PATH_INFO", ""), external_prefix)


@functools.lru_cache(maxsize=256)
def environ_key(name: str) -> str:
    """Where an environ has the header of that name."""
    key = name.upper().replace("-", "_")
    return key if key in _CGI_HEADERS else f"HTTP_{key}"


class EnvironHeaders(RequestHeaders):
    """A request's headers by lower-case name, each looked up in the environ when it is asked for."""

    __slots__ = ("_environ",)

    def __init__(self, environ: Mapping[str, Any]) -> None:
        self._environ = environ

    def _look_up(self, name: str) -> str | None:
        key = environ_key(name)
        value: str | None = self._environ.get(key)
        if value is None or (value == "" and key in _CGI_HEADERS):
            return None
        return value.strip(BLANKS)  # some servers leave what RFC 9110 section 5.5 does not count

    def get(self, name: str, default: Any = None) -> Any:
        """As Mapping's, without its detour over KeyError: most headers that are asked for are not there."""
        value = self._look_up(name)
        return default if value is None else value

    def __getitem__(self, name: str) -> str:
        value = self._look_up(name)
        if value is None:
            raise KeyError(name)
        return value

    def __iter__(self) -> Iterator[str]:
        names = (key.removeprefix("HTTP_") for key in self._environ if key.startswith(("HTTP_", "CONTENT_")))
        return (name.replace("_", "-").lower() for name in names if self._look_up(name) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def read_body(environ: dict[str, Any], limit: int = MAX_BODY) -> bytes:
    """The whole body, which is put back for the application to read anew.

    Where the server does not end the stream itself (``wsgi.input_terminated``), it is as long as Content-Length says,
    and without one there is none. Raises ContentTooLarge, with the stream as it was, or ContentUnreadable.
    """
    declared = environ.get("CONTENT_LENGTH") or ""
    length = _length(declared)
    if length > limit:
        raise ContentTooLarge(f"the body is longer than {limit} bytes")
    if not environ.get("wsgi.input_terminated") and "HTTP_TRANSFER_ENCODING" in environ:  # whatever length stands by it
        raise ContentUnreadable("this server does not tell where a chunked body ends: send it with Content-Length")
    stream: IO[bytes] = environ["wsgi.input"]
    try:
        body = _read_up_to(stream, limit + 1 if environ.get("wsgi.input_terminated") else length)
    except Exception as error:  # each server has its own for a body that breaks off or is no chunked body
        raise ContentUnreadable(f"the body could not be read: {type(error).__name__}") from error
    if len(body) > limit:
        environ["wsgi.input"] = _Rejoined(body, stream)
        raise ContentTooLarge(f"the body is longer than {limit} bytes")
    environ["wsgi.input"] = BytesIO(body)
    environ["wsgi.input_terminated"] = True
    return body


def _length(declared: str) -> int:
    """What Content-Length says; of more digits than any body has, more than any limit. Anything else is none."""
    if not (declared.isascii() and declared.isdigit()):
        return 0
    length = natural(declared.lstrip("0") or "0")
    return sys.maxsize if length is None else length


def _read_up_to(stream: IO[bytes], size: int) -> bytes:
    pieces = []
    while size and (piece := stream.read(min(size, _PIECE))):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


class _Rejoined(RawIOBase):
    """A stream of which a piece was read already."""

    def __init__(self, piece: bytes, rest: IO[bytes]) -> None:
        self._piece = BytesIO(piece)
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._piece.read(len(buffer)) or self._rest.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def within_request(body: Iterable[bytes], environ: Mapping[str, Any]) -> Iterable[bytes]:
    """An application's answer, of which each piece is made within the current request: servers ask for the pieces once
    the application has returned. A list, and a file that the server sends by itself, are given back as they are."""
    trace, file_wrapper = current_trace(), environ.get("wsgi.file_wrapper")
    is_file = isinstance(file_wrapper, type) and isinstance(body, file_wrapper)
    return _Within(body, trace) if isinstance(body, Iterator) and not is_file else body


class _Within(Iterator[bytes]):
    """Pieces that are made within a request."""

    def __init__(self, pieces: Iterator[bytes], trace: RequestTrace | None) -> None:
        self._pieces = pieces
        self._trace = trace

    def __next__(self) -> bytes:
        with within(self._trace):
            return next(self._pieces)

    def close(self) -> None:
        """See PEP 3333."""
        with within(self._trace):
            getattr(self._pieces, "close", lambda: None)()
