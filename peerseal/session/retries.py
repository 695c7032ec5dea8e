"""Which calls of a session are tried again, and after which pause."""

import math
import re
from typing import Final

import requests
from urllib3 import BaseHTTPResponse, HTTPResponse, Retry
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
from peerseal.runtime.limits import CallLimits
from peerseal.session.circuit import Attempt, Circuit

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


_OVERLOADED = (502, 503, 504)


class Attempts:
    """The attempts of one request: what an outcome means for the circuit, and whether another attempt follows.

    The answers and errors are urllib3's, whose policy decides; adapters of other clients translate them.
    """

    def __init__(self, policy: Retry, circuit: Circuit, limits: CallLimits, method: str, url: str) -> None:
        self._policy = policy
        self._circuit = circuit
        self._limits = limits
        self._method = method
        self._url = url

    def after_error(self, cause: object) -> float | None:
        """The pause before the next attempt after one without an answer; None if there is no next one.

        A failed connect is safe to try again. After a broken connection the callee may have done its work, so the
        policy requires an idempotent method. Other errors, such as those of certificates, would occur again.
        """
        if isinstance(cause, ProxyError):
            cause = cause.original_error
        if not isinstance(cause, ConnectTimeoutError | NewConnectionError | ReadTimeoutError | ProtocolError):
            return None
        try:
            self._policy = self._policy.increment(self._method, self._url, error=cause)
        except HTTPError:
            return None
        return self._policy.get_backoff_time()

    def after_answer(self, attempt: Attempt, answer: BaseHTTPResponse) -> float | None:
        """The pause before the next attempt; None if this answer ends the call. An answer of an overloaded callee is a
        failure of the attempt."""
        if answer.status in _OVERLOADED:
            self._circuit.failed(attempt, f"HTTP {answer.status}", self._pause_asked_for(answer))
        if not self._policy.is_retry(self._method, answer.status):
            return None
        try:
            policy = self._policy.increment(self._method, self._url, response=answer)
            asked = retry_after(policy, answer) if policy.respect_retry_after_header else None
        except (MaxRetryError, InvalidHeader, OverflowError, ValueError):
            return None
        if asked is not None and asked > MAX_RETRY_AFTER:
            return None
        self._policy = policy
        return asked or policy.get_backoff_time()

    def after_refused(self, attempt: Attempt, status: int | None) -> float | None:
        """The same after an answer with that status which is not signed, as the session requires. Nothing else of it
        counts, such as a Retry-After. None for an answer that has a token and was refused: no other attempt mends that.
        """
        return None if status is None else self.after_answer(attempt, HTTPResponse(status=status))

    def may_go_on(self) -> bool:
        """Whether the circuit allows one more attempt."""
        return self._circuit.lets_through(self._limits)

    def _pause_asked_for(self, answer: BaseHTTPResponse) -> float:
        """The seconds for which an answer 503 asks all callers to wait; 0 if it does not, or in an unknown format."""
        if answer.status != 503 or not self._policy.respect_retry_after_header:
            return 0.0
        try:
            return retry_after(self._policy, answer) or 0.0
        except (InvalidHeader, OverflowError, ValueError):
            return 0.0


def is_repeatable(policy: Retry, method: str) -> bool:
    """Whether the method is idempotent, by the standard and by the application's policy."""
    allowed = policy.allowed_methods
    return method in Retry.DEFAULT_ALLOWED_METHODS and (not allowed or method in allowed)


def retry_after(policy: Retry, answer: BaseHTTPResponse) -> float | None:
    """The seconds in ``Retry-After`` (RFC 9110 section 10.2.3); None without the header. Raises ValueError,
    OverflowError or InvalidHeader for a value that is neither a number of seconds nor a date."""
    text = answer.headers.get("Retry-After", "").strip(BLANKS)
    if not text:
        return None
    if text.isdigit():
        seconds = natural(text.lstrip("0") or "0")
        return math.inf if seconds is None else seconds
    if _LONG_NUMBER.search(text):
        raise ValueError("Retry-After has a number that is no part of a date")
    return policy.get_retry_after(answer)


def cause_of(error: requests.RequestException) -> object:
    """The error of urllib3."""
    cause = error.args[0] if error.args else None
    return cause.reason if isinstance(cause, MaxRetryError) else cause


def is_silence(cause: object) -> bool:
    """Whether the error is a timeout of reading the answer or of sending the body."""
    aborted_by = cause.args[-1] if isinstance(cause, ProtocolError) else None
    return isinstance(cause, ReadTimeoutError) or isinstance(aborted_by, TimeoutError)
