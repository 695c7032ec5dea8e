"""The options of a session. They are checked at once: a wrong value would fail at each call, or wait for ever."""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self, TypedDict

from urllib3 import Retry, Timeout

from peerseal.errors import ConfigurationError
from peerseal.protocol.tokens.response import UNSIGNABLE_HEADERS
from peerseal.runtime.limits import LONGEST_TIMEOUT, CallLimits
from peerseal.runtime.options import (
    check_callable,
    check_flag,
    check_header_name,
    check_header_names,
    check_is,
    check_number,
    check_whole,
)
from peerseal.session.circuit import Circuits
from peerseal.session.retries import RETRIES

MAX_BUFFER: Final = 16 * 1024 * 1024
"""Bytes of the longest body that is read into memory: the limit of a callee by default."""

_UNBINDABLE_HEADERS = frozenset(
    ("authorization", "connection", "content-length", "host", "te", "trailer", "transfer-encoding")
)


class SigningOptions(TypedDict, total=False):
    """What `peerseal.httpx.Auth` shares with the sessions; `SessionOptions` describes them."""

    bind_headers: Collection[str]
    buffer: bool
    max_buffer: int
    header: str
    retries: int | Retry
    require_signed_response: bool
    signed_response_headers: Collection[str]


class CallOptions(SigningOptions, total=False):
    """What all sessions share; `peerseal.requests.PeerSession` describes them."""

    limits: CallLimits | None
    timeout: float | tuple[float | None, float | None] | None
    deadline: float | None
    ctx: Mapping[str, Any] | None
    circuits: Circuits | None


class PeerSessionOptions(CallOptions, total=False):
    """The options of a `peerseal.requests.PeerSession`."""

    sleep: Callable[[float], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOptions:
    """The checked options of one session, but ``ctx`` and ``circuits``."""

    limits: CallLimits = field(default_factory=CallLimits)
    """How long calls take, how many run at once, and when they fail fast."""
    timeout: float | tuple[float | None, float | None] | None = None
    """Seconds to connect and to wait for the next bytes, or a pair of both. None: those of ``limits``."""
    deadline: float | None = None
    """Seconds for one call with its redirects. None: that of ``limits``."""
    retries: int | Retry = RETRIES
    """Attempts after the first one, or a policy of urllib3."""
    bind_headers: Collection[str] = ()
    """Names of further request headers to sign."""
    buffer: bool = False
    """Whether a body that can be read only once is read into memory."""
    max_buffer: int = MAX_BUFFER
    """Bytes of the longest body that is read into memory."""
    header: str = "Authorization"
    """Name of the header that carries the token."""
    require_signed_response: bool = False
    """Whether an answer counts only if the callee has signed it."""
    signed_response_headers: Collection[str] = ()
    """Names of further headers of answers that count only if they are signed."""
    sleep: Callable[[float], None] = time.sleep

    @classmethod
    def of(cls, *, limits: CallLimits | None = None, **options: Any) -> Self:
        """These options; without ``limits`` the usual ones. Raises TypeError for an unknown option, and
        ConfigurationError."""
        return cls(limits=CallLimits() if limits is None else limits, **options)

    def __post_init__(self) -> None:
        """Raises ConfigurationError, which names the option."""
        check_is("limits", self.limits, CallLimits, "a peerseal.CallLimits")
        pair = self.timeout if isinstance(self.timeout, tuple) and len(self.timeout) == 2 else (self.timeout,)
        for seconds in pair:
            if seconds is not None and not isinstance(seconds, Timeout):
                check_number("timeout", seconds, at_least=0.001, at_most=LONGEST_TIMEOUT)
        if not isinstance(self.retries, Retry):
            check_whole("retries", self.retries)
        if self.deadline is not None:
            check_number("deadline", self.deadline, at_least=0.001)
        check_flag("buffer", self.buffer)
        check_whole("max_buffer", self.max_buffer)
        check_header_name("header", self.header)
        check_callable("sleep", self.sleep)
        check_flag("require_signed_response", self.require_signed_response)
        _check_signed(self.signed_response_headers)
        _check_bound(self.bind_headers)

    @property
    def retry_policy(self) -> Retry:
        """``retries`` as a policy of urllib3."""
        return self.retries if isinstance(self.retries, Retry) else RETRIES.new(total=self.retries)

    @property
    def seconds_per_call(self) -> float:
        """The deadline in force."""
        return self.limits.deadline if self.deadline is None else self.deadline

    @property
    def default_timeout(self) -> float | tuple[float | None, float | None]:
        """The timeout of calls that name none."""
        return (self.limits.connect_timeout, self.limits.read_timeout) if self.timeout is None else self.timeout


def _check_signed(names: Collection[str]) -> None:
    check_header_names("signed_response_headers", names)
    if wrong := UNSIGNABLE_HEADERS.intersection(name.lower() for name in names):
        raise ConfigurationError(f"signed_response_headers: these headers cannot be signed: {', '.join(sorted(wrong))}")


def _check_bound(names: Collection[str]) -> None:
    check_header_names("bind_headers", names)
    if wrong := _UNBINDABLE_HEADERS.intersection(name.lower() for name in names):
        raise ConfigurationError(f"headers that only the transport knows cannot be bound: {', '.join(sorted(wrong))}")
