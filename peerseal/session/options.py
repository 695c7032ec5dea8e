"""What a session is made with, judged then: a mistake would fail at each call, or have one wait for ever."""

from collections.abc import Collection

from urllib3 import Retry, Timeout

from peerseal.errors import ConfigurationError
from peerseal.runtime.limits import LONGEST_TIMEOUT
from peerseal.runtime.options import (
    check_callable,
    check_flag,
    check_header_name,
    check_is,
    check_number,
    check_whole,
)

_UNSEEN = frozenset(("authorization", "connection", "content-length", "host", "te", "trailer", "transfer-encoding"))


def check_session(
    timeout: object,
    retries: object,
    *,
    deadline: object,
    buffer: object,
    max_buffer: object,
    header: object,
    sleep: object,
) -> None:
    """The options of `peerseal.requests.PeerSession`. Raises ConfigurationError."""
    for seconds in timeout if isinstance(timeout, tuple) and len(timeout) == 2 else (timeout,):
        if seconds is not None and not isinstance(seconds, Timeout):
            check_number("timeout", seconds, at_least=0.001, at_most=LONGEST_TIMEOUT)
    if not isinstance(retries, Retry):
        check_whole("retries", retries)
    check_number("deadline", deadline, at_least=0.001)
    check_flag("buffer", buffer)
    check_whole("max_buffer", max_buffer)
    check_header_name("header", header)
    check_callable("sleep", sleep)


def names_to_bind(names: Collection[str]) -> tuple[str, ...]:
    """The names of the headers that a session signs besides its own, in lower case. Raises ConfigurationError."""
    if isinstance(names, str):
        raise ConfigurationError("bind_headers is one string; give a tuple of names")
    check_is("bind_headers", names, Collection, "a tuple of names")
    for name in names:
        check_header_name("bind_headers", name)
    lower = tuple(name.lower() for name in names)
    if unseen := _UNSEEN.intersection(lower):
        raise ConfigurationError(f"headers that only the transport knows cannot be bound: {', '.join(sorted(unseen))}")
    return lower
