"""The rights by which a key registers under a service's name: an operator's join token, or a platform's OIDC token.

`JoinTokens` makes, checks and spends join tokens: with one an operator admits a service's first key.

`Platforms` verifies the tokens of trusted issuers, and maps their subjects to services. The rules are in a file of the
operator (``REGISTRY_OIDC_FILE``), which is read once, at the start::

    [{"issuer": "https://token.ci.example", "services": {"repo:acme/billing:ref:refs/heads/main": "billing"}}]

Each issuer may also have ``audience``, ``jwks_url`` or ``jwks_file``, and ``ca_file``. A subject is compared exactly:
no prefixes, no patterns, case-sensitive. Several subjects may be one service, but one subject is never two.
"""

import hashlib
import ssl
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeGuard

from cryptography.fernet import InvalidToken
from sqlalchemy import Connection

from peerseal.errors import (
    ConfigurationError,
    DocumentRefused,
    InvalidName,
    MalformedToken,
    PeersealError,
    TokenError,
)
from peerseal.protocol.documents.key_set import part_of
from peerseal.protocol.encoding import strict_json
from peerseal.protocol.join import JoinToken, join_mac_matches
from peerseal.protocol.ledger.entries import JOIN_TOKEN_CREATED, JOIN_TOKEN_WITHDRAWN
from peerseal.protocol.ledger.merkle import Frontier
from peerseal.protocol.tokens.oidc import BYTE_ORDER_MARK, MAX_SUBJECT, UnverifiedToken, read_key_set
from peerseal.runtime.limits import IssuerLimits
from peerseal.runtime.settings import read_bytes
from peerseal.verify.issuers import OidcIssuer, check_issuer_url
from registry.domain.admission import TOKEN_ID, Attested, Joined, check_registrable
from registry.domain.errors import BadRequest, JoinRefused, KeyTaken, NotFound, OidcRefused
from registry.domain.key_quality import check_quality
from registry.domain.key_room import KeyRoom
from registry.services.authority.authority import AuthoritySource
from registry.services.bounded_cache import BoundedCache
from registry.services.setup.keyfiles import Sealer
from registry.services.use_case import Json, Node, UseCase
from registry.storage.queries import audit, keys, ledger
from registry.storage.queries.ledger import Change
from registry.storage.queries.tokens import JOIN_TOKENS, JoinTokenRecord, lock, save_uses, spending

LARGEST_FILE = 1024 * 1024
"""Bytes of a file of rules or keys."""
_OPENED_KEPT = 1_000
"""Join tokens whose MAC keys a process keeps in memory. The key that seals them is in memory too."""

_OPTIONAL = frozenset(("audience", "jwks_url", "jwks_file", "ca_file"))
_MEMBERS = frozenset(("issuer", "services")) | _OPTIONAL


# ---- join tokens


@dataclass(frozen=True, slots=True)
class NewJoinToken:
    """A new join token: its record, and its text, which is stored nowhere."""

    record: JoinTokenRecord
    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Opened:
    """The parts of a join token that never change."""

    service: str
    mac_key: bytes = field(repr=False)


class WantedUse(NamedTuple):
    """A use of a join token, for the key with that thumbprint."""

    token_id: str
    service: str
    thumbprint: str


class JoinTokens(UseCase):
    """Makes, checks, spends and withdraws join tokens."""

    def __init__(self, node: Node, sealer: Sealer) -> None:
        super().__init__(node)
        self._sealer = sealer
        self._opened: BoundedCache[str, _Opened] = BoundedCache(_OPENED_KEPT)

    def create(self, service: str, ttl: int, uses: int, by: Mapping[str, str]) -> NewJoinToken:
        """A token that registers up to ``uses`` keys of one service during the next ``ttl`` seconds.

        Raises InvalidName or BadRequest.
        """
        check_registrable(service)
        if not 0 < ttl <= self._limits.join_ttl:
            raise BadRequest("invalid_parameter", f"ttl is {ttl}, it must be 1 to {self._limits.join_ttl} seconds")
        if not 0 < uses <= self._limits.join_uses:
            raise BadRequest("invalid_parameter", f"uses is {uses}, it must be 1 to {self._limits.join_uses}")
        token, now = _generate(self._authority.current().pin), self._now()
        sealed = self._sealer.seal(token.id, token.mac_key)
        record = JoinTokenRecord(token.id, service, sealed, now, now + ttl, uses)
        data = {"id": token.id, "expires_at": record.expires_at, "uses": uses}
        with self._store.write() as connection:
            JOIN_TOKENS.add(connection, record)
            audit.append_act(connection, now, Change(JOIN_TOKEN_CREATED, service, by=by, data=data), token.id)
        return NewJoinToken(record, token.encode())

    def check(self, service: str, right: Joined, proof: str) -> None:
        """Passes a MAC over that proof by the holder of a token for that service. It spends nothing, and leaves to
        `spend` whether the token is still valid. A fleet that starts sends one token a hundred times, and most of the
        work is to find the token and to unseal its key, which never change. Raises JoinRefused."""
        opened = self._opened.get(right.token_id) or self._open(right.token_id)
        if not join_mac_matches(opened.mac_key, proof, right.mac):
            raise JoinRefused(f"the MAC is not by the holder of join token {right.token_id}")
        if opened.service != service:
            raise JoinRefused(f"join token {right.token_id} is for {opened.service}, not for {service}")

    def spend(
        self, connection: Connection, wanted: Sequence[WantedUse], now: int
    ) -> tuple[Frontier | None, Sequence[PeersealError | None]]:
        """Takes one use for each of ``wanted`` where the token is valid and the service has room for the key. Returns
        for each the error where it did not, and the ledger's edge, which is locked once a use is taken."""
        edge = self._spend_together(connection, wanted, now)
        if edge is not None:
            return edge, [None] * len(wanted)
        refusals = self._spend_singly(connection, wanted, now)
        return ledger.lock_frontier(connection) if None in refusals else None, refusals

    def _spend_together(self, connection: Connection, wanted: Sequence[WantedUse], now: int) -> Frontier | None:
        """The usual case, and one message to the database: all use one token of a service that has room for any keys.
        None in each other case, and nothing is taken."""
        tokens, most = {(use.token_id, use.service) for use in wanted}, KeyRoom.ample(self._limits) - len(wanted)
        if len(tokens) > 1 or most < 0:
            return None
        times, retired_after = len(wanted), now - self._limits.retired_shown
        claim = spending(*tokens.pop(), times=times, most=most, now=now, retired_after=retired_after)
        return ledger.lock_by(connection, claim)

    def _spend_singly(
        self, connection: Connection, wanted: Sequence[WantedUse], now: int
    ) -> Sequence[PeersealError | None]:
        """Looks at each use in order, while the tokens are locked. Keys that other transactions admit at the same time
        with other rights are not counted; parts have room for those."""
        locked, spent = lock(connection, (use.token_id for use in wanted)), dict[str, JoinTokenRecord]()
        rooms = self._rooms(connection, [use for use in wanted if _admits(locked.get(use.token_id), use, now)], now)
        refusals = list[PeersealError | None]()
        for use in wanted:
            token = spent.get(use.token_id) or locked.get(use.token_id)
            if not _admits(token, use, now):
                refusals.append(JoinRefused(f"join token {use.token_id} is spent, expired or withdrawn"))
                continue
            try:
                rooms[use.service].take(use.thumbprint, vouched=False)
            except KeyTaken as error:
                refusals.append(error)
                continue
            spent[token.id] = replace(token, used=token.used + 1)
            refusals.append(None)
        save_uses(connection, spent.values())
        return refusals

    def _rooms(self, connection: Connection, uses: Iterable[WantedUse], now: int) -> Mapping[str, KeyRoom]:
        """The room of each service."""
        parts: dict[str, set[int]] = {}
        for use in uses:
            parts.setdefault(use.service, set()).add(part_of(use.thumbprint))
        after, limits = now - self._limits.retired_shown, self._limits
        return {
            service: KeyRoom(service, keys.counts(connection, service, of, after, now), limits)
            for service, of in parts.items()
        }

    def _open(self, token_id: str) -> "_Opened":
        with self._store.look() as connection:
            record = JOIN_TOKENS.find(connection, token_id) if TOKEN_ID.fullmatch(token_id) else None
        if record is None:
            raise JoinRefused("no such join token")
        try:
            opened = _Opened(record.service, self._sealer.open(record.id, record.sealed_key))
        except (InvalidToken, ValueError) as error:
            raise JoinRefused(f"join token {record.id} was sealed with another key, or altered") from error
        if record.good(self._clock()):
            self._opened.put(token_id, opened)
        return opened

    def withdraw(self, token_id: str, by: Mapping[str, str]) -> None:
        """Makes a token useless. Raises NotFound where there is none, or where it was withdrawn before."""
        with self._store.write() as connection:
            record = JOIN_TOKENS.find(connection, token_id)
            if record is None or not JOIN_TOKENS.end(connection, token_id):
                raise NotFound("join_token_not_found")
            change = Change(JOIN_TOKEN_WITHDRAWN, record.service, by=by, data={"id": token_id})
            audit.append_act(connection, self._now(), change, token_id)

    def page(self, after: str, limit: int | None = None) -> Json:
        """``{"join_tokens": […], "next"}``: all tokens by id, past ones too, after the id ``after``."""
        return self._page("join_tokens", limit, lambda found, size: JOIN_TOKENS.page(found, after, size))


def _admits(token: JoinTokenRecord | None, use: WantedUse, now: int) -> TypeGuard[JoinTokenRecord]:
    return token is not None and token.service == use.service and token.good(now)


def _generate(pin: str) -> JoinToken:
    """A token whose id does not look like a command-line option."""
    while (token := JoinToken.generate(pin)).id.startswith("-"):
        pass
    return token


# ---- platforms' tokens


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
