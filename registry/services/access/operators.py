"""Operator tokens: who administers the registry, and what each operator may do."""

import hashlib
import hmac
import re
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import IntEnum

from sqlalchemy import Connection

from peerseal.errors import ConfigurationError, MalformedToken
from peerseal.protocol.encoding import b64url, b64url_decode, canonical_json
from peerseal.protocol.ledger.entries import OPERATOR_CREATED, OPERATOR_REVOKED
from registry.domain.errors import BadRequest, NotFound, OperatorRefused, RoleRefused
from registry.services.use_case import Json, UseCase
from registry.storage.queries import audit, ledger, people
from registry.storage.queries.ledger import Change
from registry.storage.queries.tokens import OPERATOR_TOKENS, OperatorTokenRecord
from registry.storage.unit import Store

PREFIX = "pso1"
LOCAL: Mapping[str, str] = {"local": "cli"}
"""``by`` in the entry of a change that was made on the registry's own database."""

CONSOLE: Mapping[str, str] = {"local": "console"}
"""``by`` in the entry of an operator whom the issuer proved (`Operators.of_person`)."""

_SECRET_BYTES = 32
_PERSON_TTL = 24 * 3600
"""Seconds that such a record lasts: a person who signs in several times a day adds one entry to the ledger."""
_TOKEN = re.compile(rf"{PREFIX}\.([0-9a-f]{{16}})\.([A-Za-z0-9_-]{{43}})")


class Role(IntEnum):
    """What an operator may do; each role may do what the ones before it may."""

    VIEWER = 1
    OPERATOR = 2
    ADMIN = 3

    @property
    def label(self) -> str:
        """The name in commands, answers and entries."""
        return self.name.lower()

    @classmethod
    def of(cls, label: str) -> "Role":
        """The role of that name. Raises ValueError."""
        for role in cls:
            if role.label == label:
                return role
        raise ValueError(f"no such role: {label}")


@dataclass(frozen=True, slots=True)
class Operator:
    """A proven operator."""

    id: str
    role: Role

    @property
    def by(self) -> dict[str, str]:
        """How the ledger names the operator: by an id that says nothing about a person."""
        return {"operator": self.id}


@dataclass(frozen=True, slots=True)
class Person:
    """A person whom the operators' issuer names. ``name`` is for people to read; the others are the identity."""

    issuer: str
    subject: str
    name: str

    @property
    def digest(self) -> bytes:
        """The identity as it is looked up (32 bytes)."""
        return hashlib.sha256(canonical_json([self.issuer, self.subject])).digest()

    def __str__(self) -> str:
        """As the audit trail has it."""
        return f"{self.name!r}, {self.subject!r} of {self.issuer}"


def check_operator_token(text: str) -> str:
    """The text itself if it has a token's form, ``pso1.<id>.<secret>``. Raises ConfigurationError, which never quotes
    it."""
    try:
        _parse(text)
    except OperatorRefused:
        raise ConfigurationError(f"not an operator token ({PREFIX}.<id>.<secret>, as `init` made it)") from None
    return text


def _parse(unverified_token: object) -> tuple[str, bytes]:
    """Id and secret of a token in its one form: no other prefix, case, blank or part. Raises OperatorRefused."""
    match = _TOKEN.fullmatch(unverified_token) if isinstance(unverified_token, str) else None
    if match is None:
        raise OperatorRefused("not an operator token")
    try:
        return match[1], b64url_decode(match[2])
    except MalformedToken:
        raise OperatorRefused("not an operator token") from None


def is_operator_token(unverified_token: str) -> bool:
    """Whether a bearer token has the prefix of an operator token."""
    return unverified_token.startswith(f"{PREFIX}.")


def create_token(
    store: Store, role: Role, ttl: int, now: int, by: Mapping[str, str] = LOCAL
) -> tuple[OperatorTokenRecord, str]:
    """A new token as `Operators.create` makes it, not checked against limits."""
    with store.write() as connection:
        return _add_token(connection, role, ttl, now, by)


def _add_token(
    connection: Connection, role: Role, ttl: int, now: int, by: Mapping[str, str]
) -> tuple[OperatorTokenRecord, str]:
    token_id, secret = secrets.token_hex(8), secrets.token_bytes(_SECRET_BYTES)
    record = OperatorTokenRecord(token_id, hashlib.sha256(secret).digest(), role.label, now, now + ttl)
    data = {"id": token_id, "role": role.label, "expires_at": record.expires_at}
    data["secret_hash"] = b64url(record.secret_hash)  # of 256 random bits: it reveals nothing
    OPERATOR_TOKENS.add(connection, record)
    audit.append_act(connection, now, Change(OPERATOR_CREATED, by=by, data=data), token_id)
    return record, f"{PREFIX}.{token_id}.{b64url(secret)}"


def _revoke(connection: Connection, token_id: str, now: int, by: Mapping[str, str]) -> bool:
    """Revokes a token. False where there is none, or where it was revoked before."""
    if not OPERATOR_TOKENS.end(connection, token_id):
        return False
    audit.append_act(connection, now, Change(OPERATOR_REVOKED, by=by, data={"id": token_id}), token_id)
    return True


class Operators(UseCase):
    """Makes, checks and revokes operator tokens."""

    def create(
        self, role: Role, ttl: int, by: Mapping[str, str] = LOCAL, own: Role = Role.ADMIN
    ) -> tuple[OperatorTokenRecord, str]:
        """A new token, valid for ``ttl`` seconds: its record, and its text ``pso1.<id>.<secret>``, which is stored
        nowhere. ``own`` is the role of the operator who asks, and the highest one that the token may have. Raises
        BadRequest or RoleRefused."""
        if role > own:
            raise RoleRefused(f"role {own.label} may not make a token of role {role.label}")
        if not 0 < ttl <= self._limits.operator_ttl:
            raise BadRequest("invalid_parameter", f"ttl is {ttl}, it must be 1 to {self._limits.operator_ttl} seconds")
        return create_token(self._store, role, ttl, self._now(), by)

    def authenticate(self, unverified_token: str, needs: Role) -> Operator:
        """The operator with that token. Raises OperatorRefused or RoleRefused."""
        token_id, secret = _parse(unverified_token)
        hashed = hashlib.sha256(secret).digest()
        with self._store.look() as connection:
            record = OPERATOR_TOKENS.find(connection, token_id)
        if record is None or not hmac.compare_digest(record.secret_hash, hashed):
            raise OperatorRefused("unknown operator token")
        if record.revoked or self._clock() >= record.expires_at:
            raise OperatorRefused(f"operator token {token_id} is revoked or expired")
        operator = Operator(token_id, Role.of(record.role))
        if operator.role < needs:
            raise RoleRefused(f"operator {token_id} has role {operator.role.label}, this needs {needs.label}")
        return operator

    def revoke(self, token_id: str, by: Mapping[str, str] = LOCAL) -> None:
        """Makes a token useless. Raises NotFound where there is none, or where it was revoked before."""
        with self._store.write() as connection:
            if not _revoke(connection, token_id, self._now(), by):
                raise NotFound("operator_token_not_found")

    def of_person(self, connection: Connection, person: Person, role: Role, lasts: int) -> Operator:
        """The operator that a person is with that role, for ``lasts`` seconds at least: a record of before, or a new
        one, whose secret is forgotten at once. The ledger therefore knows who acts as it knows each operator, and
        nothing of the person. Records with another role are revoked, and their sessions end with them."""
        ledger.lock(connection)  # before reading, or a sign-in at another node would add a second record
        now, found = self._now(), None
        for record in people.records(connection, person.digest, now):
            if record.role != role.label:
                _revoke(connection, record.id, now, CONSOLE)
            elif record.expires_at >= now + lasts:
                found = record
        if found is None:
            found, _ = _add_token(connection, role, max(lasts, _PERSON_TTL), now, CONSOLE)
            people.name(connection, found.id, person.digest, person.name)
        return Operator(found.id, role)

    def revoke_person(self, connection: Connection, person: Person) -> None:
        """Revokes the records of a person who has no role any more."""
        now = self._now()
        for record in people.records(connection, person.digest, now):
            _revoke(connection, record.id, now, CONSOLE)

    def names(self, token_ids: Collection[str]) -> dict[str, str]:
        """The names of the people among these operators, by id."""
        with self._store.look() as connection:
            return people.names(connection, token_ids)

    def find(self, token_id: str) -> OperatorTokenRecord:
        """The record of a token. Raises NotFound."""
        with self._store.look() as connection:
            record = OPERATOR_TOKENS.find(connection, token_id)
        if record is None:
            raise NotFound("operator_token_not_found")
        return record

    def page(self, after: str = "", limit: int | None = None) -> Json:
        """``{"operator_tokens": […], "next"}``: all tokens by id, past ones too, after the id ``after``."""
        return self._page("operator_tokens", limit, lambda found, size: OPERATOR_TOKENS.page(found, after, size))
