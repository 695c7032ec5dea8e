"""Signed responses, the caller's side: what a session requires of each answer. For the adapters of all clients."""

import io
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, Final

import requests
from urllib3 import BaseHTTPResponse, HTTPResponse
from urllib3.exceptions import HTTPError, ProtocolError

from peerseal.errors import ConfigurationError, ResponseRefused
from peerseal.session.options import SessionOptions
from peerseal.session.signing import Signer
from peerseal.verify.response import UNSIGNED, WRONG_BINDING, ResponseHead, ResponseVerifier, check_asked_for

_PIECE: Final = 64 * 1024  # bytes read at once

NO_ONE_SIGNS: Final = "the URL leads to another origin, whose answers are not signed; require_signed_response is set"
"""Why a request to another origin is not sent."""


def response_verifier(signer: Signer, audience: str, options: SessionOptions) -> ResponseVerifier | None:
    """What verifies the answers of ``audience``; None where the session does not require signed ones. Raises
    ConfigurationError for a ``signer`` that is no identity."""
    if not options.require_signed_response:
        return None
    trust, caller, clock = (getattr(signer, name, None) for name in ("trust", "service", "clock"))
    if trust is None or caller is None or clock is None:
        raise ConfigurationError("require_signed_response: the signer is no peerseal.Identity, with its trust")
    names = options.signed_response_headers
    return ResponseVerifier(trust, caller=caller, audience=audience, headers=names, clock=clock)


def too_long(limit: int) -> ResponseRefused:
    """The error for a body that is longer than the session reads."""
    return ResponseRefused(WRONG_BINDING, f"the body is longer than max_buffer, {limit} bytes: it cannot be checked")


def other_origin() -> ResponseRefused:
    """The error for a request to another origin."""
    return ResponseRefused(UNSIGNED, NO_ONE_SIGNS)


def proven(response: requests.Response, verifier: ResponseVerifier, request_token: str, limit: int) -> None:
    """Checks an answer of `requests` whose body is still to be read. The body is in memory afterwards, as it arrived,
    and is read or streamed from there. Raises ResponseRefused, or as a read of the body does."""
    raw: BaseHTTPResponse = response.raw
    check_asked_for(raw.status, response.request.headers)
    checked = verifier.check(ResponseHead.of(raw.status, raw.headers.items()), request_token=request_token)
    content = bytearray()
    for piece in _pieces(raw):
        content += piece
        if len(content) > limit:
            raise too_long(limit)
    checked.with_content(bytes(content))
    response.raw = _with_body(raw, bytes(content), str(response.request.method))


def _pieces(raw: BaseHTTPResponse) -> Iterator[bytes]:
    """The body as it arrives, before it is unpacked. Raises the errors of requests."""
    try:
        while piece := raw.read(_PIECE, decode_content=False):
            yield piece
    except ProtocolError as error:
        raise requests.exceptions.ChunkedEncodingError(error) from error
    except HTTPError as error:  # such as a ReadTimeoutError
        raise requests.ConnectionError(error) from error


def _with_body(raw: BaseHTTPResponse, content: bytes, method: str) -> HTTPResponse:
    """The same answer with this body. Requests takes cookies from the ``original_response``."""
    cookies: Any = SimpleNamespace(msg=raw.headers, close=lambda: None, isclosed=lambda: True)
    return HTTPResponse(
        body=io.BytesIO(content),
        headers=raw.headers,
        status=raw.status,
        reason=raw.reason,
        version=raw.version,
        preload_content=False,
        decode_content=False,
        original_response=cookies,
        request_method=method,
    )
