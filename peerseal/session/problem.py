"""The code of a refusal, read without using up the body of the answer."""

import functools
import io
import json
from types import SimpleNamespace
from typing import Any, Final

import requests
from urllib3 import HTTPResponse
from urllib3.exceptions import HTTPError

from peerseal.protocol.problem_document import MEDIA_TYPE

MAX_PROBLEM: Final = 4096
"""Bytes of an answer that are read: a problem document of a callee has about a hundred."""


def problem_code(response: requests.Response) -> str | None:
    """The ``code`` of a problem document (RFC 9457) whose body is still to be read; None for any other answer.

    The body can be read or streamed afterwards from its beginning. Raises requests.ConnectionError if no body comes.
    """
    if not is_problem(response.headers.get("Content-Type", "")):
        return None
    try:
        return code_in(_beginning(response).read(MAX_PROBLEM, decode_content=True))
    except HTTPError:  # in an unknown encoding
        return None


def is_problem(content_type: str) -> bool:
    """Whether a Content-Type is that of problem documents."""
    return content_type.partition(";")[0].strip().lower() == MEDIA_TYPE


def code_in(body: bytes) -> str | None:
    """The ``code`` of the problem document; None if there is none."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):  # too long, or no JSON
        return None
    code = document.get("code") if isinstance(document, dict) else None
    return code if isinstance(code, str) else None


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
