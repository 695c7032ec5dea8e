"""Admission by a platform's token: which issuers are trusted, and which of their subjects is which service.

The rules are in a file of the operator (``REGISTRY_OIDC_FILE``), which is read once, at the start::

    [{"issuer": "https://token.ci.example", "services": {"repo:acme/billing:ref:refs/heads/main": "billing"}}]

Each issuer may also have ``audience``, ``jwks_url`` or ``jwks_file``, and ``ca_file``. A subject is compared exactly:
no prefixes, no patterns, case-sensitive. Several subjects may be one service, but one subject is never two.
"""

import hashlib
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from peerseal.errors import ConfigurationError, DocumentRefused, InvalidName, MalformedToken, TokenError
from peerseal.protocol.encoding import strict_json
from peerseal.protocol.tokens.oidc import BYTE_ORDER_MARK, MAX_SUBJECT, UnverifiedToken, read_key_set
from peerseal.runtime.limits import IssuerLimits
from peerseal.runtime.settings import read_bytes
from peerseal.verify.issuers import OidcIssuer, check_issuer_url
from registry.domain.admission import Attested, check_registrable
from registry.domain.errors import OidcRefused
from registry.domain.key_quality import check_quality
from registry.services.authority.authority import AuthoritySource

_OPTIONAL = frozenset(("audience", "jwks_url", "jwks_file", "ca_file"))
_MEMBERS = frozenset(("issuer", "services")) | _OPTIONAL


@dataclass(frozen=True, slots=True)
class PlatformRule:
    """The rule for one issuer. ``services`` maps a token's exact ``sub`` to the service it is; without an
    ``audience`` tokens must be for ``<trust domain>/registry``. Files are absolute."""

    issuer: str
    services: Mapping[str, str] = field(repr=False)
    audience: str | None = None
    jwks_url: str | None = None
    jwks_file: Path | None = None
    ca_file: Path | None = None

    @classmethod
    def parse(cls, members: Any, folder: Path) -> Self:
        """Reads one element of the file, which is in ``folder``. Raises ConfigurationError that names the fault."""
        if type(members) is not dict or not members.keys() <= _MEMBERS:
            raise ConfigurationError(f"is not an object with only the members {', '.join(sorted(_MEMBERS))}")
        for name in ("issuer", *_OPTIONAL & members.keys()):
            if type(members.get(name)) is not str or not members[name]:
                raise ConfigurationError(f"{name} is missing, empty or not a text")
        if "jwks_url" in members and "jwks_file" in members:
            raise ConfigurationError("has both jwks_url and jwks_file: leave one out")
        for name in {"issuer", "jwks_url"} & members.keys():
            check_issuer_url(members[name], name)
        return cls(
            members["issuer"],
            _services(members.get("services")),
            members.get("audience"),
            members.get("jwks_url"),
            _checked_file(members, folder, "jwks_file", _readable_keys),
            _checked_file(members, folder, "ca_file", lambda path: ssl.create_default_context(cafile=path)),
        )

    def trusted(self, limits: IssuerLimits, clock: Callable[[], float]) -> OidcIssuer:
        """The issuer, ready to verify."""
        return OidcIssuer.configured(
            self.issuer,
            jwks_url=self.jwks_url,
            jwks_file=self.jwks_file,
            ca_file=self.ca_file,
            check_key=check_quality,
            limits=limits,
            clock=clock,
        )


class Platforms:
    """Verifies platforms' tokens, and maps their subjects to services."""

    def __init__(
        self,
        rules: Iterable[PlatformRule],
        authority: AuthoritySource,
        limits: IssuerLimits | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        limits = limits or IssuerLimits()
        self._authority = authority
        self._issuers = {rule.issuer: (rule, rule.trusted(limits, clock)) for rule in rules}

    def attest(self, service: str, unverified_text: str) -> Attested:
        """The right to register a key for the service by that token.

        Raises OidcRefused for every fault of the token, and TrustUnavailable where the issuer cannot be reached.
        """
        try:
            unverified = UnverifiedToken.parse(unverified_text)
        except TokenError as error:
            raise OidcRefused(f"{error.code}: {error}") from error
        if unverified.issuer not in self._issuers:
            raise OidcRefused(f"no rule for the issuer {unverified.issuer[:200]!r}")
        rule, issuer = self._issuers[unverified.issuer]
        try:
            claims = issuer.verify(unverified, audience=rule.audience or self._authority.current().id)
        except TokenError as error:
            raise OidcRefused(f"of {rule.issuer}: {error.code}: {error}") from error
        subject = subject_hash(claims.subject)
        if rule.services.get(claims.subject) != service:
            raise OidcRefused(f"of {rule.issuer}: no rule maps the subject {subject} to {service}")
        return Attested(rule.issuer, subject)


LARGEST_FILE = 1024 * 1024
"""Bytes of a file of rules or keys."""


def subject_hash(subject: str) -> str:
    """The name of a subject in entries and in the log: the hex SHA-256 of its UTF-8."""
    return hashlib.sha256(subject.encode("utf-8")).hexdigest()


def read_rules(file: Path | None) -> list[PlatformRule]:
    """The operator's rules; none where there is no file. Raises ConfigurationError."""
    if file is None:
        return []
    try:
        content = read_bytes(file, f"REGISTRY_OIDC_FILE={file}", LARGEST_FILE)
        elements = strict_json(content.removeprefix(BYTE_ORDER_MARK))
    except MalformedToken as error:
        raise ConfigurationError(f"REGISTRY_OIDC_FILE={file}: it is {error}") from error
    if type(elements) is not list:
        raise ConfigurationError(f"REGISTRY_OIDC_FILE={file}: it must hold a JSON list of rules")
    rules: dict[str, PlatformRule] = {}
    for number, members in enumerate(elements):
        try:
            rule = PlatformRule.parse(members, file.parent)
        except ConfigurationError as error:
            raise ConfigurationError(f"REGISTRY_OIDC_FILE={file}: element {number}: {error}") from error
        if rule.issuer in rules:
            raise ConfigurationError(f"REGISTRY_OIDC_FILE={file}: it names {rule.issuer} twice")
        rules[rule.issuer] = rule
    return list(rules.values())


def _services(members: Any) -> dict[str, str]:
    if type(members) is not dict or not members:
        raise ConfigurationError("services must be an object that maps subjects to service names")
    for subject, service in members.items():
        if not 0 < len(subject) <= MAX_SUBJECT:
            raise ConfigurationError(f"services has a subject that is empty or longer than {MAX_SUBJECT} characters")
        if type(service) is not str:
            raise ConfigurationError("services maps a subject to a value that is not a text")
        try:
            check_registrable(service)
        except InvalidName as error:
            raise ConfigurationError(f"services maps a subject to {service!r}: {error}") from error
    return members


def _readable_keys(path: Path) -> object:
    return read_key_set(read_bytes(path, f"jwks_file {path}", LARGEST_FILE), check_quality)


def _checked_file(members: Mapping[str, str], folder: Path, name: str, read: Callable[[Path], object]) -> Path | None:
    """The file that the member names, relative to the folder. It is read now, so a fault is reported at the start."""
    if name not in members:
        return None
    path = folder / members[name]
    try:
        if not read(path):
            raise ConfigurationError(f"{name} {path} holds no usable key")
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigurationError(f"{name} {str(path)!r} cannot be read: {why}") from error
    except DocumentRefused as error:
        raise ConfigurationError(f"{name} {path}: {error}") from error
    return path
