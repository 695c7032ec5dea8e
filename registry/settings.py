"""All settings of a registry, as one frozen value. Only `registry.wsgi` and the commands read the environment."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from peerseal.errors import ConfigurationError
from peerseal.identity.environment import settings_of
from peerseal.identity.key_passphrase import KeyPassphrase
from peerseal.protocol.names import check_trust_domain
from peerseal.protocol.tokens.event import EVENT_LIFETIME, EVENT_LIFETIME_CAP
from peerseal.runtime.database_url import sqlalchemy_url
from peerseal.runtime.settings import SettingsReader, named, warn_of_unknown
from peerseal.transport.fetch import check_urls
from peerseal.verify.target import check_external_prefix

KNOWN = (
    "REGISTRY_HOME",
    "REGISTRY_DATABASE_URL",
    "REGISTRY_DATABASE_URL_FILE",
    "REGISTRY_TRUST_DOMAIN",
    "REGISTRY_ROOT_KEY_FILE",
    "REGISTRY_SIGNING_KEY_FILE",
    "REGISTRY_LEDGER_KEY_FILE",
    "REGISTRY_SEALING_KEY_FILE",
    "REGISTRY_KEY_PASSPHRASE",
    "REGISTRY_KEY_PASSPHRASE_FILE",
    "REGISTRY_PUBLIC_URLS",
    "REGISTRY_CHECKPOINT_URLS",
    "REGISTRY_APPLICANTS",
    "REGISTRY_OIDC_FILE",
    "REGISTRY_PROXIES",
    "REGISTRY_RATE_LIMIT_STORAGE",
    "REGISTRY_RATE_LIMIT_STORAGE_FILE",
    "REGISTRY_EXCHANGED_TOKEN_LIFETIME",
    "REGISTRY_DRAIN_SECONDS",
    "REGISTRY_WAITING_CALLS",
    "REGISTRY_ALLOW_ASYNC_REPLICATION",
    "REGISTRY_LISTEN_URL",
    "REGISTRY_LOG_FORMAT",
    "REGISTRY_LISTEN_URL_FILE",
    "REGISTRY_METRICS_ONLY_AT",
)
"""Every variable of the registry, except PEERSEAL_EXTERNAL_PREFIX, which it reads as well."""
NO_PASSPHRASE = KeyPassphrase("REGISTRY_KEY_PASSPHRASE")
"""The registry's keys are written without encryption."""
DATABASE_FILE = "registry.sqlite3"
DEFAULT_HOME = "registry-data"
DRAIN_SECONDS = 5
"""Enough for two or three health checks of a balancer, and as long as an idle connection is kept."""
LONGEST_DRAIN = 600


@dataclass(frozen=True, slots=True)
class Limits:
    """The registry's limits, each with its unit and its reason."""

    key_lifetime: int = 7 * 24 * 3600
    """Seconds a key lives: a host that slept over a weekend can still vouch for its next key (docs/protocol.md)."""
    retired_shown: int = 960
    """Seconds for which a retired key stays in the signed set: the longest lifetime of a token that is checked against
    it (a transaction token, 900 s), leeway, and a margin."""
    vouched_keys: int = 1000
    """Keys of one service that another key vouched for and that are or may yet be listed: active, retired or revoked.
    Without this limit a thief of one key could make the signed set too large for clients (8 MiB), and so hide the
    revocation. RSA-8192 keys with the longest names, 5 KB each, still fit together with the joined keys. With a
    rotation a day this is 142 hosts; the instances of a larger service should share keys by host."""
    joined_keys: int = 500
    """Active keys of one service that join tokens admitted. They have a limit of their own, so that a thief who used up
    `vouched_keys` cannot keep the owner from joining again."""
    resign_after: int = 60
    """Seconds after which an unchanged answer that covers the newest entry, or that is not signed, is made again."""
    signing_period: int = 12 * 3600
    """Seconds after which an unchanged signed document is signed again: half of its lifetime, so that a client always
    holds one that is valid for hours. All nodes use the same value, or their documents differ."""
    changes_resign_after: int = 5
    """Seconds for which one signed list of changes answers all callers while nothing changes."""
    current_resign_after: int = 30
    """Seconds for which one signed list of current services answers all callers, and for which caches may keep it."""
    recent_listed: int = 300
    """Services in the list of recent changes, which each host of a fleet may fetch each second: about 15 KB. A fleet of
    100,000 hosts changes as many in two minutes."""
    changes_listed: int = 1000
    """Services in one list of changes; where more changed, the client fetches all that it knows again."""
    wait: int = 20
    """Seconds that a call for changes may ask to wait (docs/protocol.md)."""
    waiting_calls: int | None = None
    """Calls that wait for a change at once in one process. One more call is answered at once, and its peer polls.
    None: as many as the server has room for. Only `registry.serving.worker` has any."""
    waiting_calls_of_address: int = 5_000
    """Of these, calls from one address or one IPv6 /64, such as a host of many services, or a NAT gateway through which
    a fleet calls. Other addresses keep half of the places. If strangers take all places, from many addresses, peers
    poll instead."""
    documents_cached: int = 10_000
    """Signed documents that a process keeps in memory; first in, first out."""
    max_age: int = 30
    """Seconds for which a cache on the way may answer (``max-age``). Clients ask for a change with ``?seq=``."""
    stale_if_error: int = 3600
    """Seconds for which a cache may answer while the registry is down: the clients' offline limit."""
    registry_keys_cached: int = 5
    """Seconds after which a process checks whether the root signed a newer document."""
    body: int = 64 * 1024
    """Bytes of a request's body: a proof with the largest key is 4 KiB."""
    page: int = 1000
    """Rows of one page of an answer."""
    join_ttl: int = 7 * 24 * 3600
    """Seconds that a join token may live: it is a secret that is stored somewhere until its use."""
    join_uses: int = 10_000
    """Keys that one join token may register."""
    operator_ttl: int = 400 * 24 * 3600
    """Seconds that an operator token may live."""
    spent_kept: int = 30 * 24 * 3600
    """Seconds for which a join token or operator token is kept after its end, so that operators can look it up."""
    applicants_kept: int = 1_000
    """Applicants that wait at once, of all services: any caller can invent some."""
    applicants_of_service: int = 20
    """Applicants that wait at once for one service."""
    applicant_ttl: int = 24 * 3600
    """Seconds for which an applicant waits."""
    refusals_per_minute: int = 60
    """Writing calls of one address that may be refused, or left pending, in a minute. Calls that succeed are not
    counted, because they proved their right."""
    exchanged_token_lifetime: int = EVENT_LIFETIME
    """Seconds that an event token of the exchange lives, EVENT_LIFETIME_CAP at most. The root must name the signing key
    for at least as long."""
    policy_body: int = 32 * 1024
    """Bytes of a policy or of the domain's settings, which go into an entry."""

    def __post_init__(self) -> None:
        """Raises ConfigurationError for a lifetime that no consumer accepts."""
        if not 0 < self.exchanged_token_lifetime <= EVENT_LIFETIME_CAP:
            raise ConfigurationError(f"REGISTRY_EXCHANGED_TOKEN_LIFETIME must be 1 to {EVENT_LIFETIME_CAP} seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Where a registry keeps its data and how it behaves."""

    home: Path
    database_url: str = field(repr=False)
    """An SQLAlchemy URL of SQLite or PostgreSQL. It may hold a password, so it is never shown."""
    root_key_file: Path
    signing_key_file: Path
    ledger_key_file: Path
    sealing_key_file: Path
    key_passphrase: KeyPassphrase = NO_PASSPHRASE
    """New root, signing and ledger keys are encrypted under it where it has a value."""
    trust_domain: str | None = None
    public_urls: tuple[str, ...] = ()
    """They stand in the registry keys document."""
    checkpoint_urls: tuple[str, ...] = ()
    """Other nodes, mirrors and stored copies, whose checkpoint says which ledger was seen
    (`registry.services.authority.ledger_watch`)."""
    external_prefix: str = ""
    """The path that a proxy in front strips. It is part of the targets that callers sign."""
    dev: bool = False
    """The laptop mode: the first key of a service is admitted without a right. Only ``peerseal-registry serve --dev``
    turns it on, which also binds to loopback; there is no environment variable for it."""
    applicants: bool = False
    """Newcomers without any right wait for an operator."""
    oidc_file: Path | None = None
    """Names the issuers of platform tokens and their rules."""
    rate_limit_storage: str = field(default="memory://", repr=False)
    """A storage URL of the library ``limits``: ``redis://…`` where there are several nodes. It may hold a password."""
    proxies: int = 0
    """The number of proxies in front that add the caller's address."""
    drain_seconds: float = DRAIN_SECONDS
    """Seconds for which a node that was told to stop serves on, not ready any more."""
    allow_async_replication: bool = False
    """Writes to a database server that could lose acknowledged commits."""
    listen_url: str | None = field(default=None, repr=False)
    """Leads to the same PostgreSQL without a pooler, for LISTEN."""
    metrics_port: int | None = None
    """The only port of the server at which ``/metrics`` is answered; None: at each."""
    limits: Limits = field(default_factory=Limits)

    @classmethod
    def at(cls, home: Path, **changes: object) -> Self:
        """Settings with everything in one folder."""
        return cls.from_environ({"REGISTRY_HOME": str(home)}, **changes)

    @classmethod
    def from_environ(cls, environ: Mapping[str, str], **changes: object) -> Self:
        """From the variables in `KNOWN`, as docs/reference/settings.md has them. Raises ConfigurationError."""
        warn_of_unknown(environ, "REGISTRY_", KNOWN)
        read = settings_of(environ)
        home = (read.path("REGISTRY_HOME") or Path(DEFAULT_HOME)).absolute()

        def file(what: str, default: str) -> Path:
            return (read.path(f"REGISTRY_{what}_FILE") or home / default).absolute()

        oidc_file = read.path("REGISTRY_OIDC_FILE")
        values: dict[str, object] = {
            "home": home,
            "database_url": _database_url(read, "REGISTRY_DATABASE_URL") or f"sqlite:///{home / DATABASE_FILE}",
            "root_key_file": file("ROOT_KEY", "root-key.pem"),
            "signing_key_file": file("SIGNING_KEY", "signing-key.pem"),
            "ledger_key_file": file("LEDGER_KEY", "ledger-key.pem"),
            "sealing_key_file": file("SEALING_KEY", "sealing.key"),
            "key_passphrase": replace(NO_PASSPHRASE, value=read.secret(NO_PASSPHRASE.setting)),
            "trust_domain": read.checked("REGISTRY_TRUST_DOMAIN", check_trust_domain),
            "external_prefix": read.checked("PEERSEAL_EXTERNAL_PREFIX", check_external_prefix) or "",
            "applicants": read.flag("REGISTRY_APPLICANTS", False),
            "oidc_file": oidc_file.absolute() if oidc_file else None,
            "rate_limit_storage": read.secret("REGISTRY_RATE_LIMIT_STORAGE") or "memory://",
            "proxies": read.count("REGISTRY_PROXIES", 0, at_most=99),
            "drain_seconds": drain_seconds(environ),
            "limits": _limits(read),
            "allow_async_replication": read.flag("REGISTRY_ALLOW_ASYNC_REPLICATION", False),
            "listen_url": _database_url(read, "REGISTRY_LISTEN_URL"),
            "metrics_port": read.count("REGISTRY_METRICS_ONLY_AT", 0, at_most=65535) or None,
            "public_urls": _urls(read, "REGISTRY_PUBLIC_URLS"),
            "checkpoint_urls": _urls(read, "REGISTRY_CHECKPOINT_URLS"),
        }
        return cls(**{**values, **changes})  # type: ignore[arg-type]


def _limits(read: SettingsReader) -> Limits:
    lifetime = read.whole_seconds(
        "REGISTRY_EXCHANGED_TOKEN_LIFETIME", EVENT_LIFETIME, at_least=1, at_most=EVENT_LIFETIME_CAP
    )
    waiting_calls = None
    if read.text("REGISTRY_WAITING_CALLS") is not None:
        waiting_calls = read.count("REGISTRY_WAITING_CALLS", 0, at_most=100_000)
    return Limits(exchanged_token_lifetime=lifetime, waiting_calls=waiting_calls)


def _database_url(read: SettingsReader, name: str) -> str | None:
    url = read.secret(name)
    if url is not None:
        named(name, sqlalchemy_url, url)
    return url


def _urls(read: SettingsReader, name: str) -> tuple[str, ...]:
    return tuple(named(name, check_urls, url) for url in read.several(name))


def drain_seconds(environ: Mapping[str, str]) -> float:
    """REGISTRY_DRAIN_SECONDS, which gunicorn's master reads without the other settings. Raises ConfigurationError."""
    return SettingsReader(environ).seconds("REGISTRY_DRAIN_SECONDS", DRAIN_SECONDS, at_most=LONGEST_DRAIN)
