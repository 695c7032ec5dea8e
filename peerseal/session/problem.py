"""A refusal, read without using up the body of the answer."""

import functools
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any, Final

import requests
from urllib3 import HTTPResponse
from urllib3.exceptions import HTTPError

from peerseal.errors import MalformedToken
from peerseal.protocol.encoding import strict_json_object
from peerseal.protocol.problem_document import MEDIA_TYPE
from peerseal.verify.context import REQUEST_ID, valid_request_id

MAX_PROBLEM: Final = 4096
"""Bytes of an answer that are read: a problem document of a callee has about a hundred."""

REFUSAL: Final = "peerseal_refusal"
"""The attribute of an answer that holds its refusal."""

ERRORS_PAGE: Final = "docs/reference/errors.md#a-call-is-refused"
"""The page with each code, its causes, and what to do."""


@dataclass(frozen=True, slots=True)
class PeerRefusal:
    """Why a callee refused a call, as its problem document (RFC 9457) says; the callee is believed as far as its
    connection is.

    ``code`` is the stable code, ``request_id`` finds the line in the callee's log, and ``docs`` is the page with the
    causes of the code. ``title``, ``detail`` and ``request_id`` are None where the answer has none.
    """

    status: int
    code: str
    title: str | None
    detail: str | None
    request_id: str | None
    docs: str = ERRORS_PAGE


def refusal_in(response: requests.Response) -> PeerRefusal | None:
    """The refusal in an answer whose body is still to be read; None for any answer but a problem document with a
    ``code``. The body can be read or streamed afterwards from its beginning. Raises requests.ConnectionError if no body
    comes."""
    return refusal_from(response.status_code, response.headers, lambda: _start_of(response))


def refusal_from(status: int, headers: Mapping[str, str], body: Callable[[], bytes]) -> PeerRefusal | None:
    """The refusal in an answer; None for any answer but a problem document with a ``code``. ``headers`` ignores case,
    and ``body``, of which `MAX_PROBLEM` bytes are enough, is only called for a problem document."""
    if status < HTTPStatus.BAD_REQUEST or not is_problem(headers.get("Content-Type", "")):
        return None
    document = _document(body())
    code = _text(document, "code")
    if code is None:
        return None
    request_id = valid_request_id(headers.get(REQUEST_ID))
    return PeerRefusal(status, code, _text(document, "title"), _text(document, "detail"), request_id)


def _start_of(response: requests.Response) -> bytes:
    try:
        return bytes(_beginning(response).read(MAX_PROBLEM, decode_content=True))
    except HTTPError:  # in an unknown encoding
        return b""


def is_problem(content_type: str) -> bool:
    """Whether a Content-Type is that of problem documents."""
    return content_type.partition(";")[0].strip().lower() == MEDIA_TYPE


def code_in(body: bytes) -> str | None:
    """The ``code`` of the problem document; None if there is none."""
    return _text(_document(body), "code")


def _document(body: bytes) -> Mapping[str, Any]:
    try:
        return strict_json_object(body)
    except MalformedToken:  # too long, too
        return {}


def _text(document: Mapping[str, Any], name: str) -> str | None:
    value = document.get(name)
    return value if isinstance(value, str) else None


def _beginning(response: requests.Response) -> HTTPResponse:
    """A copy of the answer with the first MAX_PROBLEM bytes of its body; its ``raw`` begins with them again.

    Requests takes cookies from the ``original_response``, the response of http.client."""
    raw = response.raw
    raw.auto_close = False  # the end of the body closes it, while the buffer still holds bytes
    stream = io.BufferedReader(raw, MAX_PROBLEM)
    try:
        head = stream.peek(MAX_PROBLEM)
    except HTTPError as error:
        raise requests.ConnectionError(error) from error
    cookies: Any = SimpleNamespace(msg=raw.headers, close=stream.close, isclosed=lambda: stream.closed)
    copy = functools.partial(
        HTTPResponse,
        headers=raw.headers,
        status=raw.status,
        reason=raw.reason,
        version=raw.version,
        preload_content=False,
        decode_content=False,
        request_method=response.request.method,
    )
    response.raw = copy(body=stream, original_response=cookies)
    return copy(body=io.BytesIO(head))
