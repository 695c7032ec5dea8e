"""A raw HTTP/1 request (RFC 9112), as a capture or an editor holds it, and single header lines."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from peerseal.errors import ConfigurationError
from peerseal.protocol.encoding import HTTP_TOKEN, natural
from peerseal.protocol.plain import text_like

MAX_HEAD = 64 * 1024
"""Bytes of request line and headers, at most."""

_END_OF_HEAD = re.compile(rb"\r?\n\r?\n")  # RFC 9112 section 2.2: a line may end with LF alone
_REQUEST_LINE = re.compile(rf"({HTTP_TOKEN}) ([^\s\x00-\x20\x7f]+) HTTP/1\.[01]")
_FIELD = re.compile(rf"({HTTP_TOKEN}):([\t -~\x80-\xff]*)")


@dataclass(frozen=True, slots=True)
class RawRequest:
    """One request. ``target`` is the request-target as it was sent; ``headers`` has lower-case names."""

    method: str
    target: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    body: bytes = field(default=b"", repr=False)

    @classmethod
    def parse(cls, raw: bytes) -> "RawRequest":
        """The request in these bytes, the body by Content-Length. Raises ConfigurationError, which names the part that
        cannot be read."""
        if not isinstance(raw, bytes):
            raise ConfigurationError(f"a request is bytes, not {type(raw).__name__}")
        end = _END_OF_HEAD.search(raw, 0, MAX_HEAD)
        if end is None:
            raise ConfigurationError(f"no empty line ends the headers within {MAX_HEAD} bytes (RFC 9112 section 2.1)")
        first, *lines = re.split(r"\r?\n", raw[: end.start()].decode("latin-1"))
        line = _REQUEST_LINE.fullmatch(first)
        if line is None:
            raise ConfigurationError("line 1 is no request line; expected one such as GET /path?query HTTP/1.1")
        headers = headers_of(lines, first=2)
        return cls(line[1], line[2], headers, _body(headers, raw[end.end() :]))


def headers_of(lines: Iterable[str], *, first: int = 1) -> dict[str, str]:
    """The headers in lines such as ``Name: value``, by lower-case names. Values of a repeated name are joined by a
    comma, as servers do (RFC 9110 section 5.3). Raises ConfigurationError with the number of the line, counted from
    ``first``; it quotes nothing, since the line may hold a secret."""
    found: dict[str, str] = {}
    for number, line in enumerate(lines, first):
        match = _FIELD.fullmatch(line)
        if match is None:
            raise ConfigurationError(f"header line {number} is not of the form 'Name: value' (RFC 9112 section 5)")
        lower, value = match[1].lower(), match[2].strip("\t ")
        found[lower] = f"{found[lower]}, {value}" if lower in found else value
    return found


def _body(headers: Mapping[str, str], rest: bytes) -> bytes:
    """The body, which must be all that follows the headers."""
    if "transfer-encoding" in headers:
        raise ConfigurationError("the request has a Transfer-Encoding: write the decoded body, with Content-Length")
    declared = headers.get("content-length", "0")
    length = natural(declared)
    if length is None:
        raise ConfigurationError(f"Content-Length is {text_like(declared)}; expected one number")
    if length != len(rest):
        raise ConfigurationError(f"Content-Length is {length}, and {len(rest)} bytes follow the headers")
    return rest
