"""The code of a refusal, read from an answer that stays as readable as it was."""

import functools
import io
import json
from typing import Final

import requests
from urllib3 import HTTPResponse
from urllib3.exceptions import HTTPError

MAX_PROBLEM: Final = 4096
"""Bytes of an answer that are looked at: a problem document of a callee has a hundred, a hostile answer has no end."""


def problem_code(response: requests.Response) -> str | None:
    """The ``code`` in an answer whose body nobody has read yet; None where it is no problem document (RFC 9457).

    Whoever reads the body afterwards, or streams it, gets all of it. Raises requests.ConnectionError where none of it
    comes.
    """
    content_type = response.headers.get("Content-Type", "").partition(";")[0]
    if content_type.strip().lower() != "application/problem+json":
        return None
    try:
        document = json.loads(_beginning(response).read(MAX_PROBLEM, decode_content=True))
    except (HTTPError, ValueError, RecursionError):  # longer, or encoded in a way that we do not know, or no JSON
        return None
    code = document.get("code") if isinstance(document, dict) else None
    return code if isinstance(code, str) else None


def _beginning(response: requests.Response) -> HTTPResponse:
    """A copy of the answer with the first MAX_PROBLEM bytes of its body; its ``raw`` begins with them again."""
    raw = response.raw
    raw.auto_close = False  # at its end the buffer still has what was read
    stream = io.BufferedReader(raw, MAX_PROBLEM)
    try:
        head = stream.peek(MAX_PROBLEM)
    except HTTPError as error:
        raise requests.ConnectionError(error) from error
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
    response.raw = copy(body=stream, original_response=raw._original_response)  # which requests takes cookies from
    return copy(body=io.BytesIO(head))
