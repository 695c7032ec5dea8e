"""The parts of a request that a verifier needs, from a WSGI environ (PEP 3333), for adapters of WSGI frameworks."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import lru_cache, partial
from io import BytesIO, RawIOBase
from typing import IO, TYPE_CHECKING, Any, Final

from peerseal.errors import ContentTooLarge, ContentUnreadable, WrongBinding
from peerseal.protocol.encoding import natural
from peerseal.protocol.tokens.bearer import BLANKS
from peerseal.protocol.tokens.bearer import bearer_token as bearer_token
from peerseal.protocol.trace_context import TRACEPARENT
from peerseal.runtime.tracing import Attributes
from peerseal.verify.context import REQUEST_ID, RequestSpan, current_trace, reset_trace, set_trace, within
from peerseal.verify.request import RequestHeaders
from peerseal.verify.target import routed_target

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse

MAX_BODY = 16 * 1024 * 1024
"""Bytes of the longest body that is read by default."""

REQUEST_ID_KEY: Final = f"HTTP_{REQUEST_ID.upper().replace('-', '_')}"
"""The key of the request id in an environ."""
TRACEPARENT_KEY: Final = f"HTTP_{TRACEPARENT.upper()}"
"""The key of the trace that the request belongs to."""

METHOD_KEY: Final = "REQUEST_METHOD"
"""The key of the method."""

_HTTP_1 = ("HTTP/1.1", "HTTP/1.0")  # where a request without the two headers of a body has none
_SHORT = 256  # characters of the longest target that is cached: services get the same targets again and again
_PIECE = 1024 * 1024  # bytes read at once
_CGI_HEADERS = ("CONTENT_TYPE", "CONTENT_LENGTH")  # without HTTP_; empty is as good as missing (PEP 3333)


def wsgi_target(environ: Mapping[str, Any], external_prefix: str = "") -> str:
    """`peerseal.verify.target.routed_target` of a request.

    Raises WrongBinding, also where the server does not tell the raw target (``RAW_URI`` or ``REQUEST_URI``), and for a
    request header ``SCRIPT_NAME``, which gunicorn obeys from the hosts in ``forwarded_allow_ips``. The raw target then
    still decodes to the routed path, but of another view than the caller meant: with ``/admin`` as script name,
    ``/admin/x`` is the view of ``/x``.
    """
    if "HTTP_SCRIPT_NAME" in environ:
        raise WrongBinding("a header shifts the routing")
    raw_uri = environ.get("RAW_URI") or environ.get("REQUEST_URI")
    if raw_uri is None:
        raise WrongBinding("the server does not tell the raw request-target: neither RAW_URI nor REQUEST_URI is there")
    script_name, path_info = environ.get("SCRIPT_NAME", ""), environ.get("PATH_INFO", "")
    exact = type(raw_uri) is type(script_name) is type(path_info) is str
    routed = _routed_target_of_short if exact and len(raw_uri) <= _SHORT else routed_target
    return routed(raw_uri, script_name, path_info, external_prefix)


def received_target(environ: Mapping[str, Any]) -> str:
    """The target as the server received it, for the log; the routed path where the server does not tell it."""
    raw_uri = environ.get("RAW_URI") or environ.get("REQUEST_URI")
    return str(raw_uri or f"{environ.get('SCRIPT_NAME', '')}{environ.get('PATH_INFO', '')}")


_routed_target_of_short = lru_cache(maxsize=2048)(routed_target)


@lru_cache(maxsize=256)
def environ_key(name: str) -> str:
    """Where an environ has the header of that name."""
    key = name.upper().replace("-", "_")
    return key if key in _CGI_HEADERS else f"HTTP_{key}"


class EnvironHeaders(RequestHeaders):
    """A request's headers by lower-case name, each looked up in the environ when it is asked for."""

    __slots__ = ("_environ",)

    def __init__(self, environ: Mapping[str, Any]) -> None:
        self._environ = environ

    def get(self, name: str, default: Any = None) -> Any:
        """As `Mapping.get`, without a KeyError: most requests lack most headers."""
        value = self._environ.get(environ_key(name))
        if value is None or (value == "" and environ_key(name) in _CGI_HEADERS):
            return default
        return value.strip(BLANKS)  # some servers leave the blanks of RFC 9110 section 5.5

    def __getitem__(self, name: str) -> str:
        value: str | None = self.get(name)
        if value is None:
            raise KeyError(name)
        return value

    def __iter__(self) -> Iterator[str]:
        names = (key.removeprefix("HTTP_") for key in self._environ if key.startswith(("HTTP_", "CONTENT_")))
        return (name.replace("_", "-").lower() for name in names if self.get(name) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)


def path_info(environ: Mapping[str, Any]) -> str:
    """``PATH_INFO`` as frameworks decode it. Bytes that are no UTF-8 become surrogates, and characters that are no
    bytes backslashes."""
    path: str = environ.get("PATH_INFO", "")
    return path if path.isascii() else path.encode("latin-1", "backslashreplace").decode("utf-8", "surrogateescape")


def read_body(environ: dict[str, Any], limit: int = MAX_BODY) -> bytes:
    """The whole body, which the application can read again.

    Where the server does not end the stream itself (``wsgi.input_terminated``), Content-Length is its length, and
    without that header there is no body. Raises ContentTooLarge, with the stream as before, or ContentUnreadable.
    """
    declared = environ.get("CONTENT_LENGTH") or ""
    if not declared and "HTTP_TRANSFER_ENCODING" not in environ and environ.get("SERVER_PROTOCOL") in _HTTP_1:
        return _with_body(environ, b"")  # RFC 9112 section 6.3
    length = _length(declared)
    if length > limit:
        raise ContentTooLarge(f"the body is longer than {limit} bytes")
    if not environ.get("wsgi.input_terminated") and "HTTP_TRANSFER_ENCODING" in environ:
        raise ContentUnreadable("this server does not tell where a chunked body ends: send it with Content-Length")
    stream: IO[bytes] = environ["wsgi.input"]
    try:
        body = _read_up_to(stream, limit + 1 if environ.get("wsgi.input_terminated") else length)
    except Exception as error:  # each server has its own error for a body that ends early or is not chunked
        raise ContentUnreadable(f"the body could not be read: {type(error).__name__}") from error
    if len(body) > limit:
        environ["wsgi.input"] = _Rejoined(body, stream)
        raise ContentTooLarge(f"the body is longer than {limit} bytes")
    return _with_body(environ, body)


def _with_body(environ: dict[str, Any], body: bytes) -> bytes:
    """The body, which the application will read, also an application that reads as much as Content-Length says."""
    if "HTTP_TRANSFER_ENCODING" in environ:
        del environ["HTTP_TRANSFER_ENCODING"]
        environ["CONTENT_LENGTH"] = str(len(body))
    environ["wsgi.input"] = BytesIO(body)
    environ["wsgi.input_terminated"] = True
    return body


def _length(declared: str) -> int:
    """The number in Content-Length; ``sys.maxsize`` for too many digits, 0 for anything else."""
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
    """A stream of which a piece was read before."""

    def __init__(self, piece: bytes, rest: IO[bytes]) -> None:
        self._piece = BytesIO(piece)
        self._rest = rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._piece.read(len(buffer)) or self._rest.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def telling(span: RequestSpan | None, environ: Mapping[str, Any], start_response: "StartResponse") -> "StartResponse":
    """``start_response``; where the request has a span, one that adds the status and the route to it."""
    if span is None:
        return start_response

    def start(status: str, headers: list[tuple[str, str]], *error: Any) -> Callable[[bytes], object]:
        span.add(_answered(status, environ))
        return start_response(status, headers, *error)

    return start


def _answered(status: str, environ: Mapping[str, Any]) -> Attributes:
    """What a span tells of an answer: its status, and the route where Werkzeug's request is in the environ. A path may
    name a person, a route does not."""
    code, rule = status[:3], getattr(environ.get("werkzeug.request"), "url_rule", None)
    known: dict[str, str | int] = {"http.response.status_code": int(code)} if code.isdecimal() else {}
    return known if rule is None else {**known, "http.route": rule.rule}


def within_request(body: Iterable[bytes], environ: Mapping[str, Any]) -> Iterable[bytes]:
    """An application's body, whose pieces are made within the current request: servers ask for them after the
    application has returned. A list, and a file that the server sends itself, are returned as they are."""
    if not isinstance(body, Iterator) or is_file(body, environ):
        return body
    return PiecesWithin(body, partial(within, current_trace()))


def is_file(body: Iterable[bytes], environ: Mapping[str, Any]) -> bool:
    """Whether the body is a file that the server sends itself."""
    file_wrapper = environ.get("wsgi.file_wrapper")
    return isinstance(file_wrapper, type) and isinstance(body, file_wrapper)


class WholeBody:
    """A body that is made already: only its `close` runs within the request."""

    __slots__ = ("_body", "_trace")

    def __init__(self, body: Iterable[bytes]) -> None:
        self._body = body
        self._trace = current_trace()

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)

    def close(self) -> None:
        """Close the body (PEP 3333)."""
        before = set_trace(self._trace)
        try:
            getattr(self._body, "close", lambda: None)()
        finally:
            reset_trace(before)


class PiecesWithin(Iterator[Any]):
    """The pieces of a body. Each is made in a context of ``enter``, and the thread is outside of it between them."""

    def __init__(self, body: Iterable[Any], enter: Callable[[], AbstractContextManager[object]]) -> None:
        self._body = body
        self._pieces = iter(body)
        self._enter = enter

    def __next__(self) -> Any:
        with self._enter():
            return next(self._pieces)

    def close(self) -> None:
        """Close the body, even one that never began (PEP 3333)."""
        with self._enter():
            self._pieces = iter(())  # also ends an iterator of the body
            getattr(self._body, "close", lambda: None)()
