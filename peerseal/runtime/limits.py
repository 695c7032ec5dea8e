"""The limits of calls to the registry, to issuers and to other services, each with its unit and its reason."""

import math
import threading
from dataclasses import dataclass, field, fields
from typing import Any, Final, cast

from peerseal.errors import ConfigurationError
from peerseal.runtime.options import check_flag, check_number, check_whole

LONGEST_TIMEOUT: Final = 2_147_483.0
"""Seconds that a socket can be waited for, some 24 days: poll(2) counts milliseconds in 32 bits."""
LONGEST_WITNESS_DELAY: Final = 7 * 24 * 3600.0
"""Seconds for which new entries may be used without cosignatures, at most: for ever would be without witnesses."""
_LEAST: Final = {"look_interval": 0.001}
_MOST: Final = {
    **dict.fromkeys(("connect_timeout", "read_timeout", "wait"), LONGEST_TIMEOUT),
    # what threads wait for, and answers tell in whole seconds
    **dict.fromkeys(("poll_interval", "longest_poll_pause", "look_interval", "longest_pause"), threading.TIMEOUT_MAX),
    **dict.fromkeys(("cooldown", "introspection_ttl", "introspection_rest"), threading.TIMEOUT_MAX),
    "witness_delay": LONGEST_WITNESS_DELAY,
    **dict.fromkeys(("open_time", "jitter", "longest_open"), threading.TIMEOUT_MAX),
}
_SWITCHES: Final = frozenset(("refuse_split_view",))
_WHOLE: Final = {"introspections": 1, "foreign_waits": 1, "failures": 0, "max_running": 1, "max_waiting": 0}
"""The least value of each limit that must be a whole number."""


class _Limits:
    """The base of all limits: every value but switches and nested limits is a number within its bounds, 0 or more."""

    __slots__ = ()

    def __post_init__(self) -> None:
        """Raises ConfigurationError, which names the value."""
        limits = cast(Any, self)
        for each in fields(limits):
            name, value = f"{type(self).__name__}.{each.name}", getattr(limits, each.name)
            if each.name in _SWITCHES:
                check_flag(name, value)
            elif each.name != "fetch":
                least, most = _LEAST.get(each.name, 0.0), _MOST.get(each.name, math.inf)
                check_number(name, value, at_least=least, at_most=most)
                if each.name in _WHOLE:
                    check_whole(name, value, at_least=_WHOLE[each.name])


@dataclass(frozen=True, slots=True)
class FetchLimits(_Limits):
    """Limits of one call to the registry."""

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
    """Seconds for which a URL rests after the first such failure; twice as long after each further one."""
    longest_rest: float = 10.0
    """Seconds for which it rests, at most: a recovered URL is used again that soon."""


@dataclass(frozen=True, slots=True)
class TrustLimits(_Limits):
    """Limits of the trust store."""

    offline_limit: float = 3600.0
    """Seconds for which a document is believed after its last signed confirmation. It bounds how long a mirror, or a
    lost connection, can hide a revocation."""
    patience: float = 3.0
    """Seconds that a slow registry can add to one verification, in total. A verification waits only if a kid, or the
    callee's own policy, is not in memory, or is known only from before a start or a pause."""
    wait: float = 15.0
    """Seconds for which the registry may hold a request for changes while there are none. 0: it is asked every
    ``poll_interval`` instead."""
    poll_interval: float = 1.0
    """Seconds between two requests for changes where the registry does not hold them: a revocation takes effect about
    that soon. A process that was suspended for longer (half a second at least) asks before it believes what it knew."""
    longest_poll_pause: float = 5.0
    """Seconds between two such requests, at most, while the registry does not answer."""
    look_interval: float = 0.1
    """Seconds between two reads of the changes that another process of the host has fetched for all."""
    witness_delay: float = 300.0
    """Seconds for which new entries of the ledger may be used before its witnesses have cosigned them, where a quorum
    is asked for. Longer than a witness needs to start again, and shorter than ``offline_limit``."""
    refresh_interval: float = 300.0
    """Seconds after which a document is fetched again, changed or not."""
    jitter: float = 0.1
    """The part of ``refresh_interval`` by which a renewal may come sooner, so that a fleet does not ask in step."""
    cooldown: float = 5.0
    """Seconds in which a service's unknown kids cause no second fetch."""
    doubtful_fetches: int = 2
    """Fetches at once, at most, for unknown kids of services that are known: the list of changes names
    their new keys, so most unknown kids are invented, and must not occupy a server's threads."""
    negative_ttl: float = 30.0
    """Seconds for which the answer that a key is not registered is remembered."""
    stranger_fetches: float = 100.0
    """Fetches for unknown services at once, at most: enough for a fleet's start, not for floods of names."""
    stranger_rate: float = 20.0
    """Such fetches a second after that."""
    foreign_waits: int = 4
    """Threads that may wait for one foreign registry at once (docs/how-to/federation-services.md): the next is refused
    at once, since a foreign registry that hangs must not hold all threads of a server."""
    longest_pause: float = 60.0
    """Seconds between two renewals of a service whose document cannot be fetched, at most."""
    unused_part: float = 6 * 3600.0
    """Seconds after which a part of a large key set is no longer renewed if no key of it was asked for: with 10,000
    hosts a part costs 80 MB a day. Longer than ``offline_limit``, so that an outage finds the keys of most callers. A
    part is dropped at the first change after one to two times this long."""
    max_services: int = 10_000
    """Services remembered at most."""
    max_negative: int = 1_000
    """Unknown kids remembered for each service at most."""
    max_statements: int = 10_000
    """Statements about single keys remembered at most: events' keys, past ones too."""
    refuse_split_view: bool = False
    """Whether requests and events are refused, as ``split_view``, once a peer's checkpoint has proven that the ledger
    has two histories. Else a split view is only reported: a registry that lies must not be able to stop the domain."""


@dataclass(frozen=True, slots=True)
class IssuerLimits(_Limits):
    """Limits of calls to a foreign issuer, for its keys and about its opaque tokens."""

    refresh_interval: float = 300.0
    """Seconds after which a set of keys is fetched again: a key that the issuer withdrew is refused about that soon."""
    offline_limit: float = 3600.0
    """Seconds for which a set of keys is believed while no newer one can be fetched."""
    cooldown: float = 10.0
    """Seconds from the beginning of a fetch to the next one, whatever its result."""
    negative_ttl: float = 30.0
    """Seconds for which a kid that was looked for and not found is refused without looking again."""
    max_negative: int = 1_000
    """Such kids, and inactive tokens, remembered at most."""
    introspection_ttl: float = 60.0
    """Seconds for which "this token is active" is believed, and never beyond the token's ``exp``: a token that the
    issuer revokes is refused that soon."""
    introspection_negative_ttl: float = 5.0
    """Seconds for which a token that was refused is refused without asking again."""
    introspection_patience: float = 3.0
    """Seconds that one verification may take: the wait for its turn, the issuer's answer and the keys of a signed
    answer."""
    introspection_rest: float = 1.0
    """Seconds without calls to an issuer that gave no answer in time, or refused our credentials."""
    introspections: int = 8
    """Calls at once, at most: a slow issuer must not hold every thread of a worker."""
    introspection_burst: float = 100.0
    """Calls at once about tokens never seen active, at most: people who log in, or invented tokens."""
    introspection_rate: float = 20.0
    """Such tokens a second after that. Tokens that were active before are not counted."""
    max_introspected: int = 10_000
    """Active tokens remembered, at most."""
    fetch: FetchLimits = field(default_factory=lambda: FetchLimits(1.0, 2.0, 2.0, 512 * 1024))
    """Of one call. Discovery and keys together take less than a newcomer waits for its answer (5 s); a set of 100
    large keys has 300 KiB."""


@dataclass(frozen=True, slots=True)
class RotationSchedule(_Limits):
    """When a service's keys are replaced, in seconds."""

    every: float = 24 * 3600.0
    """A key is replaced that long after it was registered."""
    lead: float = 30.0
    """A new key signs that long after it was registered: peers that follow the changes have fetched it by then."""
    overlap: float = 120.0
    """An old key is retired that long after its successor began to sign: what it signed has expired by then."""

    def __post_init__(self) -> None:
        """Raises ConfigurationError for anything but a length of time."""
        _Limits.__post_init__(self)
        if not (0 < self.every < math.inf and 0 <= self.lead < math.inf and 0 <= self.overlap < math.inf):
            raise ConfigurationError("a rotation schedule is in seconds: every > 0, lead and overlap >= 0")


@dataclass(frozen=True, slots=True)
class CallLimits(_Limits):
    """Limits of a session's calls to another service. The defaults suit an edge, where a person waits for the
    answer."""

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
    bad request does not open it. 0: these calls do not open the circuit, and are made even if it is open."""
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
