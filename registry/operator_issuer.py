"""The OIDC issuer at which operators may sign in to the console: the settings ``REGISTRY_CONSOLE_OIDC_…``."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from peerseal.errors import ConfigurationError
from peerseal.runtime.settings import SettingsReader, named
from peerseal.verify.issuers import check_issuer_url

_PREFIX = "REGISTRY_CONSOLE_OIDC_"
_ISSUER = f"{_PREFIX}ISSUER"
OIDC_SETTINGS = (
    _ISSUER,
    *(
        _PREFIX + name
        for name in ("CLIENT_ID", "CLIENT_SECRET", "CLIENT_SECRET_FILE", "GROUPS", "GROUPS_CLAIM", "CA_FILE")
    ),
    "REGISTRY_CONSOLE_URL",
)
ROLES = ("viewer", "operator", "admin")
"""The names of the roles, the lowest first (`registry.services.access.operators.Role`)."""
CALLBACK = "/sign-in/oidc/callback"
"""Where the issuer sends the browser back, below the URL of the console."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorIssuer:
    """The issuer, the console as its client, and the role that each group of the issuer has."""

    issuer: str
    client_id: str
    client_secret: str | None = field(default=None, repr=False)
    """None for a public client, which PKCE alone protects."""
    console_url: str
    """The console as browsers reach it. No header of a request says it, since any caller may forge one."""
    groups: Mapping[str, str]
    groups_claim: str = "groups"
    ca_file: Path | None = None

    @property
    def redirect_uri(self) -> str:
        """The address that the issuer has to know of this client."""
        return self.console_url + CALLBACK

    @classmethod
    def from_settings(cls, read: SettingsReader) -> Self | None:
        """None where no issuer is set. Raises ConfigurationError, also for one of the other settings without it."""
        issuer = read.checked(_ISSUER, lambda url: check_issuer_url(url, "the issuer"))
        if issuer is None:
            if others := [name for name in OIDC_SETTINGS if read.text(name)]:
                raise ConfigurationError(f"{others[0]} is set without {_ISSUER}: set both, or neither")
            return None
        secret = read.secret(f"{_PREFIX}CLIENT_SECRET")
        ca_file = read.path(f"{_PREFIX}CA_FILE")
        return cls(
            issuer=issuer,
            client_id=named(f"{_PREFIX}CLIENT_ID", _ascii, read.required(f"{_PREFIX}CLIENT_ID")),
            client_secret=None if secret is None else named(f"{_PREFIX}CLIENT_SECRET", _ascii, secret),
            console_url=named("REGISTRY_CONSOLE_URL", _console_url, read.required("REGISTRY_CONSOLE_URL")),
            groups=named(f"{_PREFIX}GROUPS", _groups, read.required(f"{_PREFIX}GROUPS")),
            groups_claim=read.text(f"{_PREFIX}GROUPS_CLAIM") or "groups",
            ca_file=None if ca_file is None else ca_file.absolute(),
        )


def _ascii(text: str) -> str:
    if not (text.isascii() and text.isprintable()):
        raise ConfigurationError("holds a character that is not printable ASCII, which HTTP authentication cannot send")
    return text


def _console_url(url: str) -> str:
    check_issuer_url(url, "the console's URL")
    if "?" in url or not url.rstrip("/").endswith("/console"):
        raise ConfigurationError(f"{url:.100} does not end with /console, as in https://registry.acme.internal/console")
    return url.rstrip("/")


def _groups(text: str) -> Mapping[str, str]:
    """Pairs as ``platform-admins=admin,sre=operator``. A group's name may hold ``=``; its role follows the last one."""
    found: dict[str, str] = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        group, _, role = (part.strip() for part in pair.rpartition("="))
        if not group or role not in ROLES:
            raise ConfigurationError(f"{pair!r:.100}: expected GROUP=ROLE, where ROLE is one of {', '.join(ROLES)}")
        if found.setdefault(group, role) != role:
            raise ConfigurationError(f"the group {group!r:.100} has two roles, expected one")
    if not found:
        raise ConfigurationError("names no group, expected GROUP=ROLE pairs separated by commas")
    return found
