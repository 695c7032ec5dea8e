"""All settings of a registry, as one frozen value. Only `registry.wsgi` and the commands read the environment."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from peerseal.identity.environment import settings_of
from peerseal.identity.key_passphrase import KeyPassphrase
from peerseal.protocol.names import check_trust_domain
from peerseal.runtime.database_url import sqlalchemy_url
from peerseal.runtime.settings import SettingsReader, named, warn_of_unknown
from peerseal.transport.fetch import check_urls
from peerseal.verify.target import check_external_prefix
from registry.limits import LIMIT_SETTINGS, Limits
from registry.operator_issuer import OIDC_SETTINGS, OperatorIssuer
from registry.witness_addresses import SETTING as WITNESSES
from registry.witness_addresses import WitnessAddress, read_witnesses

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
    WITNESSES,
    "REGISTRY_APPLICANTS",
    "REGISTRY_CONSOLE",
    *OIDC_SETTINGS,
    "REGISTRY_OIDC_FILE",
    "REGISTRY_PROXIES",
    "REGISTRY_RATE_LIMIT_STORAGE",
    "REGISTRY_RATE_LIMIT_STORAGE_FILE",
    "REGISTRY_DRAIN_SECONDS",
    "REGISTRY_PRELOAD",
    "REGISTRY_ALLOW_ASYNC_REPLICATION",
    "REGISTRY_LISTEN_URL",
    "REGISTRY_LOG_FORMAT",
    "REGISTRY_LISTEN_URL_FILE",
    "REGISTRY_METRICS_ONLY_AT",
    *LIMIT_SETTINGS,
)
"""Every variable of the registry, except PEERSEAL_EXTERNAL_PREFIX, which it reads as well."""
NO_PASSPHRASE = KeyPassphrase("REGISTRY_KEY_PASSPHRASE")
"""The registry's keys are written without encryption."""
DATABASE_FILE = "registry.sqlite3"
DEFAULT_HOME = "registry-data"
DRAIN_SECONDS = 5
"""Enough for two or three health checks of a balancer, and as long as an idle connection is kept."""
LONGEST_DRAIN = 600


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
    witnesses: tuple[WitnessAddress, ...] = ()
    """They cosign the checkpoints of the ledger (`registry.services.witnesses.cosigning`)."""
    external_prefix: str = ""
    """The path that a proxy in front strips. It is part of the targets that callers sign."""
    dev: bool = False
    """The laptop mode: the first key of a service is admitted without a right. Only ``peerseal-registry serve --dev``
    turns it on, which also binds to loopback; there is no environment variable for it."""
    applicants: bool = False
    """Newcomers without any right wait for an operator."""
    console: bool = False
    """Operators may use the registry in a browser, at ``/console``."""
    operator_issuer: OperatorIssuer | None = None
    """Where operators may sign in to the console, besides with an operator token."""
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
            "console": read.flag("REGISTRY_CONSOLE", False),
            "operator_issuer": OperatorIssuer.from_settings(read),
            "oidc_file": oidc_file.absolute() if oidc_file else None,
            "rate_limit_storage": read.secret("REGISTRY_RATE_LIMIT_STORAGE") or "memory://",
            "proxies": read.count("REGISTRY_PROXIES", 0, at_most=99),
            "drain_seconds": drain_seconds(environ),
            "limits": Limits.from_settings(read),
            "allow_async_replication": read.flag("REGISTRY_ALLOW_ASYNC_REPLICATION", False),
            "listen_url": _database_url(read, "REGISTRY_LISTEN_URL"),
            "metrics_port": metrics_port(environ),
            "public_urls": _urls(read, "REGISTRY_PUBLIC_URLS"),
            "checkpoint_urls": _urls(read, "REGISTRY_CHECKPOINT_URLS"),
            "witnesses": read_witnesses(read),
        }
        return cls(**{**values, **changes})  # type: ignore[arg-type]


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


def metrics_port(environ: Mapping[str, str]) -> int | None:
    """REGISTRY_METRICS_ONLY_AT, which gunicorn's master reads without the other settings. Raises ConfigurationError."""
    return SettingsReader(environ).count("REGISTRY_METRICS_ONLY_AT", 0, at_most=65535) or None


def preloads(environ: Mapping[str, str]) -> bool:
    """REGISTRY_PRELOAD: whether gunicorn's master loads the application before it forks the workers, which then share
    its memory. Raises ConfigurationError."""
    return SettingsReader(environ).flag("REGISTRY_PRELOAD", True)
