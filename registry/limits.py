"""The limits of a registry, each with its setting, its default, its bounds and its reason (docs/reference/limits.md).

`Limits` are those of the application, `ServerLimits` those of gunicorn and of the worker. The bounds hold for settings:
outside of them clients would refuse what the registry signs, or a node could not serve.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Final, NamedTuple, Self

from peerseal.errors import ConfigurationError
from peerseal.protocol.documents.key_set import LONGEST_LIFE
from peerseal.protocol.tokens.event import EVENT_LIFETIME, EVENT_LIFETIME_CAP
from peerseal.runtime.settings import SettingsReader

KIB: Final = 1024
MIB: Final = 1024 * KIB
MINUTE: Final = 60
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR
TILES_CACHED: Final = 16 * MIB
DATABASE_CONNECTIONS: Final = 4
_SETTING: Final = "setting"


class Setting(NamedTuple):
    """The environment variable of a limit: how it is read, its default, and the least and the greatest value."""

    name: str
    read: Callable[..., int]
    default: int | None
    at_least: int
    at_most: int


def _limit(name: str, read: Callable[..., int], default: int | None, at_least: int, at_most: int) -> Any:
    setting = Setting(name, read, default, at_least, at_most)
    return field(default=default, metadata={_SETTING: setting})


def _count(name: str, default: int | None, at_least: int, at_most: int) -> Any:
    return _limit(name, SettingsReader.count, default, at_least, at_most)


def _seconds(name: str, default: int, at_least: int, at_most: int) -> Any:
    return _limit(name, SettingsReader.whole_seconds, default, at_least, at_most)


def _size(name: str, default: int, at_least: int, at_most: int) -> Any:
    return _limit(name, SettingsReader.size, default, at_least, at_most)


class _FromSettings:
    """The base of both: the values that settings give."""

    __slots__ = ()
    WITHIN: ClassVar[tuple[tuple[str, str], ...]] = ()
    """Pairs of limits. The first limit of a pair is never greater than the second."""

    @classmethod
    def settings(cls) -> Iterator[tuple[str, Setting]]:
        """The name of each limit, and its setting."""
        for each in fields(cls):  # type: ignore[arg-type]  # each subclass is a dataclass
            yield each.name, each.metadata[_SETTING]

    @classmethod
    def from_settings(cls, read: SettingsReader) -> Self:
        """The limits with the values that are set. Raises ConfigurationError."""
        given = {limit: _value(read, setting) for limit, setting in cls.settings() if read.text(setting.name)}
        return cls(**{**given, **dict(_adapted(given, dict(cls.settings()), cls.WITHIN))})


def _adapted(
    given: Mapping[str, int], settings: Mapping[str, Setting], within: Iterable[tuple[str, str]]
) -> Iterator[tuple[str, int]]:
    """Limits whose default contradicts a given limit, set to the value of that limit. ``within`` has the pairs.
    Raises ConfigurationError if two that are given contradict each other."""
    for part, whole in within:
        least, most = (given.get(limit, settings[limit].default) for limit in (part, whole))
        if least is None or most is None or least <= most:
            continue
        if part in given and whole in given:
            name, other = settings[part].name, settings[whole].name
            raise ConfigurationError(f"{name}={least}: expected {most} at most, which is {other}; change one of them")
        yield (whole, least) if part in given else (part, most)


def _value(read: SettingsReader, setting: Setting) -> int:
    return setting.read(read, setting.name, 0, at_least=setting.at_least, at_most=setting.at_most)


@dataclass(frozen=True, slots=True)
class Limits(_FromSettings):
    """The limits of the application."""

    WITHIN: ClassVar = (("waiting_calls_of_address", "waiting_calls"), ("applicants_of_service", "applicants_kept"))

    key_lifetime: int = _seconds("REGISTRY_KEY_LIFETIME", 7 * DAY, 2 * DAY, LONGEST_LIFE)
    """Seconds a key lives: a host that slept over a weekend can still vouch for its next key (docs/protocol.md). Hosts
    rotate daily, so a shorter life than two days would end keys of hosts that are well."""
    retired_shown: int = _seconds("REGISTRY_RETIRED_SHOWN", 960, 960, 7 * DAY)
    """Seconds for which a retired key stays in the signed set: the longest lifetime of a token that is checked against
    it (a transaction token, 900 s), leeway, and a margin."""
    keys_in_set: int = _count("REGISTRY_KEYS_IN_SET", 500, 1, 500)
    """Keys that a signed set lists itself: half a megabyte. A larger set names 64 parts, and a client fetches those
    that it needs. All nodes use the same value, or their documents differ."""
    vouched_keys: int = _count("REGISTRY_VOUCHED_KEYS", 80_000, 1, 100_000)
    """Keys of one service that another key vouched for and that are or may yet be listed: active, retired or revoked.
    A host that rotates daily has seven such keys, so these are the keys of 10,000 hosts, and a seventh more. The limit
    bounds what the thief of one key can add, and so the work of its revocation."""
    keys_in_part: int = _count("REGISTRY_KEYS_IN_PART", 2_500, 64, 2_500)
    """Keys of one service that are in one part of a large set, or may yet be: twice as many as chance puts there. The
    thief of a key or of a join token chooses keys of one part. Without this limit that part could become too large for
    clients (8 MiB), which would hide a revocation in it. A quarter of them may be active or lately retired at once:
    RSA-8192 keys with the longest names have 5 KB each. The others are listed by kid alone, with 650 bytes. Keys by
    vouchers use three quarters of both: a thief of a key who fills all parts cannot keep the owner from joining."""
    joined_keys: int = _count("REGISTRY_JOINED_KEYS", 12_000, 1, 20_000)
    """Active keys of one service that join tokens admitted: one for each of 10,000 hosts, and a fifth more, since the
    key of a host that is gone stays active for a week. They have a limit of their own, so that a thief who used up
    `vouched_keys` cannot keep the owner from joining again."""
    resign_after: int = _seconds("REGISTRY_RESIGN_AFTER", 60, 1, 30 * MINUTE)
    """Seconds after which an unchanged answer that covers the newest entry, or that is not signed, is made again."""
    signing_period: int = _seconds("REGISTRY_SIGNING_PERIOD", 12 * HOUR, HOUR, 12 * HOUR)
    """Seconds after which an unchanged signed document is signed again: half of its lifetime, so that a client always
    holds one that is valid for hours. All nodes use the same value, or their documents differ."""
    changes_resign_after: int = _seconds("REGISTRY_CHANGES_RESIGN_AFTER", 5, 1, 30)
    """Seconds for which one signed list of changes answers all callers while nothing changes. Clients accept a list for
    a minute."""
    current_resign_after: int = _seconds("REGISTRY_CURRENT_RESIGN_AFTER", 30, 1, 10 * MINUTE)
    """Seconds for which one signed list of current services answers all callers, and for which caches may keep it."""
    recent_listed: int = _count("REGISTRY_RECENT_LISTED", 300, 1, 1000)
    """Services in the list of recent changes, which each host of a fleet may fetch each second: about 15 KB. A fleet of
    100,000 hosts changes as many in two minutes."""
    changes_listed: int = _count("REGISTRY_CHANGES_LISTED", 1000, 1, 1000)
    """Services in one list of changes; where more changed, the client fetches all that it knows again. Clients accept
    a list of 1 MiB."""
    console_session: int = _seconds("REGISTRY_CONSOLE_SESSION", HOUR, MINUTE, 12 * HOUR)
    """Seconds for which an operator stays signed in at the console: people leave browsers open."""
    wait: int = _seconds("REGISTRY_WAIT", 20, 15, 50)
    """Seconds that a call for changes may ask to wait (docs/protocol.md). Clients ask for 15, and proxies commonly end
    a call after 60."""
    waiting_calls: int | None = _count("REGISTRY_WAITING_CALLS", None, 0, 100_000)
    """Calls that wait for a change at once in one process. One more call is answered at once, and its peer polls.
    None: as many as the server has room for. Only `registry.serving.worker` has any."""
    waiting_calls_of_address: int = _count("REGISTRY_WAITING_CALLS_OF_ADDRESS", 5_000, 1, 100_000)
    """Of these, calls from one address or one IPv6 /64, such as a host of many services, or a NAT gateway through which
    a fleet calls. Other addresses keep half of the places. If strangers take all places, from many addresses, peers
    poll instead."""
    documents_cached: int = _size("REGISTRY_DOCUMENTS_CACHED", 64 * MIB, MIB, 1024 * 1024 * MIB)
    """Bytes of signed documents that a process keeps in memory; the oldest is dropped first. That is the documents of
    some 20,000 services with one key, or 100 key sets of 500 keys. Policies have as much again."""
    changes_cached: int = _size("REGISTRY_CHANGES_CACHED", 8 * MIB, MIB, 1024 * MIB)
    """Bytes of lists of changes in memory. Clients that are up to date all ask for the same one, of some kilobytes; the
    largest has some 200 KiB."""
    tiles_cached: int = _size("REGISTRY_TILES_CACHED", TILES_CACHED, MIB, 1024 * MIB)
    """Bytes of tiles of the ledger's tree in memory, for proofs, and as much again for the check of forks. A tile takes
    37 KiB, and 256 entries of the ledger fill one."""
    database_connections: int = _count("REGISTRY_DATABASE_CONNECTIONS", DATABASE_CONNECTIONS, 4, 100)
    """Connections to PostgreSQL of one process, at most: one that listens for changes, one for the look-ups before
    answers from memory, and the others for transactions, of which one stays free for reads. Requests share
    transactions, so more connections hardly raise the throughput; they cost the server some 10 MB each."""
    max_age: int = _seconds("REGISTRY_MAX_AGE", 30, 0, HOUR)
    """Seconds for which a cache on the way may answer (``max-age``). Clients ask for a change with ``?seq=``."""
    stale_if_error: int = _seconds("REGISTRY_STALE_IF_ERROR", HOUR, 0, DAY)
    """Seconds for which a cache may answer while the registry is down: the clients' offline limit."""
    registry_keys_cached: int = _seconds("REGISTRY_KEYS_DOCUMENT_CACHED", 5, 0, 5)
    """Seconds after which a process checks whether the root signed a newer document. A node signs with a new key ten
    seconds after the root named it."""
    body: int = _size("REGISTRY_BODY", 64 * KIB, 48 * KIB, 64 * KIB)
    """Bytes of a request's body: a proof with the largest key is 4 KiB, a policy 32 KiB. The worker reads no more than
    64 KiB."""
    page: int = _count("REGISTRY_PAGE", 1000, 1, 10_000)
    """Rows of one page of an answer."""
    join_ttl: int = _seconds("REGISTRY_JOIN_TTL", 7 * DAY, MINUTE, 400 * DAY)
    """Seconds that a join token may live: it is a secret that is stored somewhere until its use."""
    join_uses: int = _count("REGISTRY_JOIN_USES", 10_000, 1, 1_000_000)
    """Keys that one join token may register."""
    operator_ttl: int = _seconds("REGISTRY_OPERATOR_TTL", 400 * DAY, MINUTE, 3660 * DAY)
    """Seconds that an operator token may live."""
    spent_kept: int = _seconds("REGISTRY_SPENT_KEPT", 30 * DAY, HOUR, 3660 * DAY)
    """Seconds for which a join token or operator token is kept after its end, so that operators can look it up."""
    applicants_kept: int = _count("REGISTRY_APPLICANTS_KEPT", 1_000, 1, 100_000)
    """Applicants that wait at once, of all services: any caller can invent some."""
    applicants_of_service: int = _count("REGISTRY_APPLICANTS_OF_SERVICE", 20, 1, 1_000)
    """Applicants that wait at once for one service."""
    applicant_ttl: int = _seconds("REGISTRY_APPLICANT_TTL", DAY, MINUTE, 30 * DAY)
    """Seconds for which an applicant waits."""
    refusals_per_minute: int = _count("REGISTRY_REFUSALS_PER_MINUTE", 60, 1, 1_000_000)
    """Writing calls of one address that may be refused, or left pending, in a minute. Calls that succeed are not
    counted, because they proved their right."""
    exchanged_token_lifetime: int = _seconds("REGISTRY_EXCHANGED_TOKEN_LIFETIME", EVENT_LIFETIME, 1, EVENT_LIFETIME_CAP)
    """Seconds that an event token of the exchange lives: as long as an event may wait to be consumed. The root must
    name the signing key for at least as long."""
    policy_body: int = _size("REGISTRY_POLICY_BODY", 32 * KIB, KIB, 32 * KIB)
    """Bytes of a policy or of the domain's settings, which go into an entry."""

    def __post_init__(self) -> None:
        """Raises ConfigurationError for a lifetime that no consumer accepts."""
        if not 0 < self.exchanged_token_lifetime <= EVENT_LIFETIME_CAP:
            raise ConfigurationError(f"REGISTRY_EXCHANGED_TOKEN_LIFETIME must be 1 to {EVENT_LIFETIME_CAP} seconds")


@dataclass(frozen=True, slots=True)
class ServerLimits(_FromSettings):
    """The limits of gunicorn and of `registry.serving.worker`."""

    WITHIN: ClassVar = (("socket_timeout", "request_deadline"),)

    threads: int = _count("REGISTRY_THREADS", 8, 1, 64)
    """Calls that a worker serves at once; most of them wait for the database. Further calls, fully received, wait for a
    thread."""
    worker_connections: int = _count("REGISTRY_WORKER_CONNECTIONS", 1000, 1, 100_000)
    """Connections of one worker, without calls that wait for a change; more wait in the kernel's queue."""
    backlog: int = _count("REGISTRY_BACKLOG", 512, 1, 65_535)
    """Connections that wait in the kernel's queue to be accepted: half a second of new ones on a busy node."""
    keepalive: int = _seconds("REGISTRY_KEEPALIVE", 5, 0, 75)
    """Seconds for which an idle connection stays open: a proxy in front reuses connections."""
    timeout: int = _seconds("REGISTRY_WORKER_TIMEOUT", 30, 5, HOUR)
    """Seconds without a sign of life from a worker, after which the master replaces it."""
    graceful_timeout: int = _seconds("REGISTRY_GRACEFUL_TIMEOUT", 20, 1, 10 * MINUTE)
    """Seconds for which running calls may end after the drain. Calls that wait for a change are answered at once."""
    request_line: int = _size("REGISTRY_REQUEST_LINE", 4094, 1024, 8190)
    """Bytes of the request line: the longest valid target, of a call for changes that names services, has less than
    1 KiB."""
    request_headers: int = _count("REGISTRY_REQUEST_HEADERS", 50, 20, 200)
    """Headers of a request: a client sends ten, proxies add as many. All together have 64 KiB at most."""
    request_header: int = _size("REGISTRY_REQUEST_HEADER", 8190, 6500, 8190)
    """Bytes of one header: a request token has 6 KiB at most."""
    socket_timeout: int = _seconds("REGISTRY_SOCKET_TIMEOUT", 10, 1, 5 * MINUTE)
    """Seconds to wait for the first or next bytes of a request: longer than a lost packet is repeated on a bad line."""
    request_deadline: int = _seconds("REGISTRY_REQUEST_DEADLINE", 45, 1, 10 * MINUTE)
    """Seconds from the first byte of a request until all of it has arrived: 64 KiB of head and of body. The same for
    its answer, 4 MiB at most, until the client has read it."""


def server_limits(environ: Mapping[str, str]) -> ServerLimits:
    """As the environment sets them, which gunicorn's configuration reads alone. Raises ConfigurationError."""
    return ServerLimits.from_settings(SettingsReader(environ))


LIMIT_SETTINGS: Final = tuple(setting.name for limits in (Limits, ServerLimits) for _, setting in limits.settings())
"""The variables of all limits."""
