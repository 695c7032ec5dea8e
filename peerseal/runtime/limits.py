"""The limits of dealings with the registry, with issuers and with other services, in one place, each with its unit and
its reason."""

import math
import threading
from dataclasses import dataclass, field, fields
from typing import Any, Final

from peerseal.errors import ConfigurationError
from peerseal.runtime.options import check_number, check_whole

LONGEST_TIMEOUT: Final = 2_147_483.0
"""Seconds that a socket can be waited for, some 24 days: poll(2) counts milliseconds in 32 bits."""
_LEAST: Final = {"look_interval": 0.001}
_MOST: Final = {
    **dict.fromkeys(("connect_timeout", "read_timeout", "wait"), LONGEST_TIMEOUT),
    # what threads wait for, and answers tell in whole seconds
    **dict.fromkeys(("poll_interval", "longest_poll_pause", "look_interval", "longest_pause"), threading.TIMEOUT_MAX),
    **dict.fromkeys(("cooldown", "introspection_ttl", "introspection_rest"), threading.TIMEOUT_MAX),
    **dict.fromkeys(("open_time", "jitter", "longest_open"), threading.TIMEOUT_MAX),
}


def _check_numbers(limits: Any) -> None:
    """Every value but nested limits is a number within its bounds, 0 or more. Raises ConfigurationError, which names
    it."""
    for each in fields(limits):
        if each.name != "fetch":
            least, most = _LEAST.get(each.name, 0.0), _MOST.get(each.name, math.inf)
            check_number(
                f"{type(limits).__name__}.{each.name}", getattr(limits, each.name), at_least=least, at_most=most
            )


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """Of one call to the registry."""

    connect_timeout: float = 2.0
    """Seconds to a connection: a registry further away than that is down."""
    read_timeout: float = 5.0
    """Seconds between two bytes."""
    total_timeout: float = 10.0
    """Seconds for the whole answer: slow bytes must not hold a worker."""
    max_bytes: int = 8 * 1024 * 1024
    """Bytes of an answer: an endless one must not fill the memory."""
    slow: float = 0.5
    """Seconds after which a failed call counts as hanging: then the URL rests, so that not every caller is held up."""
    shortest_rest: float = 1.0
    """Seconds for which a URL rests after the first failure of that sort; twice as long after each further one."""
    longest_rest: float = 10.0
    """Seconds for which it rests at most: it is found out that soon that it works again."""

    def __post_init__(self) -> None:
        """Raises ConfigurationError for what is no number, or a negative one."""
        _check_numbers(self)


@dataclass(frozen=True, slots=True)
class TrustLimits:
    """Of the trust store."""

    offline_limit: float = 3600.0
    """Seconds after its last signed confirmation in which a document is still believed. It bounds how long a mirror,
    or a cut line, can hide a revocation."""
    patience: float = 3.0
    """Seconds for which one verification may be held up by a registry that is slow or down, in all. It waits for a
    kid, or for the callee's own policy, that is not in memory or was read before a start or a pause. This is the worst
    that a registry can add to a request."""
    wait: float = 15.0
    """Seconds for which the registry is asked to keep the question what changed, if nothing did. 0: it is asked every
    ``poll_interval`` instead."""
    poll_interval: float = 1.0
    """Seconds between two looks at the registry's changes where it keeps no question: a revocation is in force about
    that soon. A process that was held up for longer (half a second at least) asks before it believes what it knew."""
    longest_poll_pause: float = 5.0
    """Seconds between two such looks, at most, while the registry does not answer."""
    look_interval: float = 0.1
    """Seconds between two looks at what another process of the host, which asks the registry for all, has heard."""
    refresh_interval: float = 300.0
    """Seconds after which a document is fetched again, changed or not."""
    jitter: float = 0.1
    """The part of ``refresh_interval`` by which a renewal may come sooner, so that a fleet does not ask in step."""
    cooldown: float = 5.0
    """Seconds after a fetch for an unknown key in which no other such fetch is made for the same service."""
    doubtful_fetches: int = 2
    """Fetches at once, at most, for unknown kids of known services. The list of changes announces their new keys, so an
    unknown kid is mostly made up. Such kids must not take all of a server's threads and time."""
    negative_ttl: float = 30.0
    """Seconds for which the answer "no such key is registered" is remembered."""
    stranger_fetches: float = 100.0
    """Fetches for services that are not known, at once at most: a fleet's start, or a caller that makes names up."""
    stranger_rate: float = 20.0
    """Such fetches a second after that."""
    longest_pause: float = 60.0
    """Seconds between two renewals of a service whose document cannot be had, at most."""
    max_services: int = 10_000
    """Services remembered at most."""
    max_negative: int = 1_000
    """Unknown kids remembered for each service at most."""
    max_statements: int = 10_000
    """Statements about single keys remembered at most: events' keys, past ones too."""

    def __post_init__(self) -> None:
        """Raises ConfigurationError for what is no number, or a negative one."""
        _check_numbers(self)


@dataclass(frozen=True, slots=True)
class IssuerLimits:
    """Of asking a foreign issuer for its keys, and about its opaque tokens."""

    refresh_interval: float = 300.0
    """Seconds after which a set of keys is fetched again: a key that the issuer withdrew is refused about that soon."""
    offline_limit: float = 3600.0
    """Seconds for which a set of keys is believed while newer ones cannot be had."""
    cooldown: float = 10.0
    """Seconds after a fetch began in which no other one does, whatever it brought."""
    negative_ttl: float = 30.0
    """Seconds for which a kid that was looked for and not found is refused without looking again."""
    max_negative: int = 1_000
    """Such kids, and tokens that are not active, remembered at most."""
    introspection_ttl: float = 60.0
    """Seconds for which "this token is active" is believed, and never beyond the token's ``exp``: a token that the
    issuer revokes is refused that soon."""
    introspection_negative_ttl: float = 5.0
    """Seconds for which a token that was refused is refused without asking again."""
    introspection_patience: float = 3.0
    """Seconds that one verification may take: its turn, the issuer's answer and the keys of a signed one, together."""
    introspection_rest: float = 1.0
    """Seconds in which an issuer is left alone after it gave no answer in time, or refused our credentials."""
    introspections: int = 8
    """Calls at once, at most: a slow issuer must not hold every thread of a worker."""
    introspection_burst: float = 100.0
    """Tokens never seen active that are asked about at once, at most: people who log in, or made-up tokens."""
    introspection_rate: float = 20.0
    """Such tokens a second after that. Tokens that were active before are not counted."""
    max_introspected: int = 10_000
    """Active tokens remembered, at most."""
    fetch: FetchLimits = field(default_factory=lambda: FetchLimits(1.0, 2.0, 2.0, 512 * 1024))
    """Of one call. Discovery and keys together take less than a newcomer waits for its answer (5 s); a set of 100
    large keys has 300 KiB."""

    def __post_init__(self) -> None:
        """Raises ConfigurationError for what is no number, or a negative one."""
        _check_numbers(self)
        check_whole("IssuerLimits.introspections", self.introspections, at_least=1)


@dataclass(frozen=True, slots=True)
class RotationSchedule:
    """When a service's keys are replaced, in seconds."""

    every: float = 24 * 3600.0
    """A key is replaced that long after it was registered."""
    lead: float = 30.0
    """A new key signs that long after it was registered: watching peers have fetched it by then."""
    overlap: float = 120.0
    """An old key is retired that long after its successor began to sign: what it signed has expired by then."""

    def __post_init__(self) -> None:
        """Raises ConfigurationError for what is no length of time."""
        _check_numbers(self)
        if not (0 < self.every < math.inf and 0 <= self.lead < math.inf and 0 <= self.overlap < math.inf):
            raise ConfigurationError("a rotation schedule is in seconds: every > 0, lead and overlap >= 0")


@dataclass(frozen=True, slots=True)
class CallLimits:
    """Of calls to another service by a session. The defaults suit an edge, where a person waits for the answer."""

    connect_timeout: float = 2.0
    """Seconds to a connection: a lost first packet is sent again after one."""
    read_timeout: float = 4.0
    """Seconds between two bytes of an answer."""
    deadline: float = 6.0
    """Seconds for one call: all its attempts, the pauses between them, and its redirects."""
    slow: float = 3.0
    """Seconds after which an attempt counts as a failure, although its answer came."""
    failures: int = 5
    """Failures, one after another, that open the circuit of an origin. More than the attempts of one call, so that one
    bad request does not open it. 0: these calls neither open the circuit nor heed it."""
    window: float = 30.0
    """Seconds within which these failures happen; earlier ones are forgotten."""
    open_time: float = 1.0
    """Seconds for which an open circuit lets no call through; then one tries whether the service is back."""
    jitter: float = 0.2
    """The part of the open time by which it may be longer, so that a fleet does not come back in step."""
    longest_open: float = 30.0
    """Seconds for which a ``Retry-After`` of an answer 503 opens the circuit, at most."""
    max_running: int = 32
    """Calls to one origin that run at once, at most. Together with ``max_waiting`` less than the server's threads: what
    is left serves requests that do not need that origin."""
    max_waiting: int = 32
    """Calls that wait for one of these to end, at most."""
    longest_wait: float = 0.5
    """Seconds for which they wait."""

    def __post_init__(self) -> None:
        """Raises ConfigurationError for what is no number, a negative one, or no room for any call."""
        _check_numbers(self)
        check_whole("CallLimits.failures", self.failures)
        check_whole("CallLimits.max_running", self.max_running, at_least=1)
        check_whole("CallLimits.max_waiting", self.max_waiting)
