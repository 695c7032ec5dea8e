"""Operator tokens: who administers the registry, and what each may do."""

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any

from peerseal.errors import ConfigurationError, MalformedToken
from peerseal.protocol.encoding import b64url, b64url_decode
from peerseal.protocol.ledger.entries import OPERATOR_CREATED, OPERATOR_REVOKED
from registry.domain.errors import BadRequest, NotFound, OperatorRefused, RoleRefused
from registry.settings import Limits
from registry.storage.queries import audit, ledger, operator_tokens
from registry.storage.queries.ledger import Change, append
from registry.storage.queries.operator_tokens import OperatorTokenRecord
from registry.storage.unit import Store

PREFIX = "pso1"
LOCAL: Mapping[str, str] = {"local": "cli"}
"""What an entry says of a change that was made on the registry's own database."""

_SECRET_BYTES = 32
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
        """How the ledger names it: an id, which says nothing about a person."""
        return {"operator": self.id}


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
    """Whether a bearer token means to be an operator's."""
    return unverified_token.startswith(f"{PREFIX}.")


class Operators:
    """Makes, checks and revokes operator tokens."""

    def __init__(self, store: Store, limits: Limits, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._limits = limits
        self._clock = clock

    def create(
        self, role: Role, ttl: int, by: Mapping[str, str] = LOCAL, own: Role = Role.ADMIN
    ) -> tuple[OperatorTokenRecord, str]:
        """A new token, good for ``ttl`` seconds: its record, and its text ``pso1.<id>.<secret>``, which is kept
        nowhere. ``own`` is the maker's role: nobody makes a token of a higher one. Raises BadRequest or RoleRefused."""
        if role > own:
            raise RoleRefused(f"{own.label} makes no token for {role.label}")
        if not 0 < ttl <= self._limits.operator_ttl:
            raise BadRequest("invalid_parameter", f"ttl must be 1 to {self._limits.operator_ttl} seconds")
        token_id, secret, now = secrets.token_hex(8), secrets.token_bytes(_SECRET_BYTES), int(self._clock())
        record = OperatorTokenRecord(token_id, hashlib.sha256(secret).digest(), role.label, now, now + ttl)
        data = {"id": token_id, "role": role.label, "expires_at": record.expires_at}
        data["secret_hash"] = b64url(record.secret_hash)  # of 256 random bits: it tells nothing
        with self._store.write() as connection:
            operator_tokens.add(connection, record)
            seq = append(connection, now, Change(OPERATOR_CREATED, by=by, data=data)).entry.seq
            audit.record(connection, now, by, OPERATOR_CREATED, token_id, seq)
        return record, f"{PREFIX}.{token_id}.{b64url(secret)}"

    def authenticate(self, unverified_token: str, needs: Role) -> Operator:
        """The operator whose token this is. Raises OperatorRefused or RoleRefused."""
        token_id, secret = _parse(unverified_token)
        hashed = hashlib.sha256(secret).digest()
        with self._store.look() as connection:
            record = operator_tokens.find(connection, token_id)
        if record is None or not hmac.compare_digest(record.secret_hash, hashed):
            raise OperatorRefused("unknown operator token")
        if record.revoked or self._clock() >= record.expires_at:
            raise OperatorRefused(f"operator token {token_id} is revoked or expired")
        operator = Operator(token_id, Role.of(record.role))
        if operator.role < needs:
            raise RoleRefused(f"operator {token_id} is {operator.role.label}, not {needs.label}")
        return operator

    def revoke(self, token_id: str, by: Mapping[str, str] = LOCAL) -> None:
        """Makes a token useless. Raises NotFound where there is none that is good."""
        now = int(self._clock())
        with self._store.write() as connection:
            if not operator_tokens.revoke(connection, token_id):
                raise NotFound("operator_token_not_found")
            seq = append(connection, now, Change(OPERATOR_REVOKED, by=by, data={"id": token_id})).entry.seq
            audit.record(connection, now, by, OPERATOR_REVOKED, token_id, seq)

    def page(self, after: str = "", limit: int | None = None) -> dict[str, Any]:
        """``{"operator_tokens": […], "next"}``: a page of them by id behind ``after``, past ones too."""
        size = min(limit or self._limits.page, self._limits.page)
        with self._store.read() as connection:
            page = operator_tokens.page(connection, after, size)
        following = page[-1].id if len(page) == size else None
        return {"operator_tokens": [public_members(record) for record in page], "next": following}

    def were_any(self) -> bool:
        """Whether there ever was one: those long past are removed, and their entries stay."""
        with self._store.look() as connection:
            return ledger.has_any(connection, OPERATOR_CREATED)


def public_members(record: OperatorTokenRecord) -> dict[str, Any]:
    """What an operator may see of an operator token."""
    members = asdict(record)
    del members["secret_hash"]
    return members
