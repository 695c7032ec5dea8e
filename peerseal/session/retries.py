"""Which calls of a session are tried again, and after which pause."""

import math
import re
from typing import Final

import requests
from urllib3 import Retry
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    InvalidHeader,
    MaxRetryError,
    NewConnectionError,
    ProtocolError,
    ProxyError,
    ReadTimeoutError,
)

from peerseal.protocol.encoding import natural
from peerseal.protocol.tokens.bearer import BLANKS

MAX_RETRY_AFTER: Final = 30.0
"""Seconds of the longest ``Retry-After`` that a session waits for. A longer one ends the call with that answer."""

RETRIES: Final = Retry(
    total=3,
    status_forcelist=(502, 503, 504),
    allowed_methods=Retry.DEFAULT_ALLOWED_METHODS,  # the idempotent ones, RFC 9110 section 9.2.2
    backoff_factor=0.1,
    backoff_max=2,
    backoff_jitter=0.1,
)
"""A failed connect is tried again for every method. A broken connection and the answers 502, 503 and 504 are tried
again for idempotent methods."""

_LONG_NUMBER = re.compile(r"[0-9]{5}")


def after_error(policy: Retry, request: requests.PreparedRequest, error: requests.RequestException) -> Retry:
    """The policy for the next attempt after an attempt without an answer; raises the error if there is no next one.

    A failed connect is safe to try again. After a broken connection the callee may have done its work, so the policy
    requires an idempotent method. Other errors, such as those of certificates, would occur again.
    """
    cause = cause_of(error)
    if isinstance(cause, ProxyError):
        cause = cause.original_error
    if not isinstance(cause, ConnectTimeoutError | NewConnectionError | ReadTimeoutError | ProtocolError):
        raise error
    try:
        return policy.increment(request.method, request.url, error=cause)
    except HTTPError:
        raise error from cause


def after_answer(
    policy: Retry, request: requests.PreparedRequest, response: requests.Response
) -> tuple[Retry, float] | None:
    """The policy for the next attempt and the seconds to wait before it; None if this answer ends the call."""
    if not policy.is_retry(str(request.method), response.status_code):
        return None
    try:
        policy = policy.increment(request.method, request.url, response=response.raw)
        asked = retry_after(policy, response) if policy.respect_retry_after_header else None
    except (MaxRetryError, InvalidHeader, OverflowError, ValueError):
        return None
    if asked is not None and asked > MAX_RETRY_AFTER:
        return None
    return policy, asked or policy.get_backoff_time()


def pause_asked_for(policy: Retry, response: requests.Response) -> float:
    """The seconds for which an answer 503 asks all callers to wait; 0 if it does not, or in an unknown format."""
    if response.status_code != 503 or not policy.respect_retry_after_header:
        return 0.0
    try:
        return retry_after(policy, response) or 0.0
    except (InvalidHeader, OverflowError, ValueError):
        return 0.0


def retry_after(policy: Retry, response: requests.Response) -> float | None:
    """The seconds in ``Retry-After`` (RFC 9110 section 10.2.3); None without the header. Raises ValueError,
    OverflowError or InvalidHeader for a value that is neither a number of seconds nor a date."""
    text = response.headers.get("Retry-After", "").strip(BLANKS)
    if not text:
        return None
    if text.isdigit():
        seconds = natural(text.lstrip("0") or "0")
        return math.inf if seconds is None else seconds
    if _LONG_NUMBER.search(text):
        raise ValueError("Retry-After has a number that is no part of a date")
    return policy.get_retry_after(response.raw)


def cause_of(error: requests.RequestException) -> object:
    """The error of urllib3."""
    cause = error.args[0] if error.args else None
    return cause.reason if isinstance(cause, MaxRetryError) else cause


def is_silence(cause: object) -> bool:
    """Whether the error is a timeout of reading the answer or of sending the body."""
    aborted_by = cause.args[-1] if isinstance(cause, ProtocolError) else None
    return isinstance(cause, ReadTimeoutError) or isinstance(aborted_by, TimeoutError)
