"""Operator tokens: who administers the registry, and what each may do."""

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum

from peerseal.errors import MalformedToken
from peerseal.protocol.encoding import b64url, b64url_decode
from peerseal.protocol.ledger import OPERATOR_CREATED, OPERATOR_REVOKED
from registry.domain.errors import BadRequest, NotFound, OperatorRefused, RoleRefused
from registry.settings import Limits
from registry.storage import operator_tokens
from registry.storage.ledger import Change, append
from registry.storage.operator_tokens import OperatorTokenRecord
from registry.storage.unit import Store

PREFIX = "pso1"
LOCAL: Mapping[str, str] = {"local": "cli"}
"""What an entry says of a change that was made on the registry's own database."""

_SECRET_BYTES = 32


class Role(IntEnum):
    """What an operator may do; each role may do what the ones before it may."""

    VIEWER = 1
    OPERATOR = 2
    ADMIN = 3

    @property
    def label(self) -> str:
        """The name in commands, answers and entries."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Operator:
    """A proven operator."""

    id: str
    role: Role

    @property
    def by(self) -> dict[str, str]:
        """How the ledger names it: an id, which says nothing about a person."""
        return {"operator": self.id}


def is_operator_token(unverified_token: str) -> bool:
    """Whether a bearer token means to be an operator's."""
    return unverified_token.startswith(f"{PREFIX}.")


class Operators:
    """Makes, checks and revokes operator tokens."""

    def __init__(self, store: Store, limits: Limits, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._limits = limits
        self._clock = clock

    def create(self, role: Role, ttl: int, by: Mapping[str, str] = LOCAL) -> tuple[OperatorTokenRecord, str]:
        """A new token, good for ``ttl`` seconds: its record, and its text ``pso1.<id>.<secret>``, which is kept
        nowhere. Raises BadRequest."""
        if not 0 < ttl <= self._limits.operator_ttl:
            raise BadRequest("invalid_parameter", f"ttl must be 1 to {self._limits.operator_ttl} seconds")
        token_id, secret, now = secrets.token_hex(8), secrets.token_bytes(_SECRET_BYTES), int(self._clock())
        record = OperatorTokenRecord(token_id, hashlib.sha256(secret).digest(), role.label, now, now + ttl)
        data = {"id": token_id, "role": role.label, "expires_at": record.expires_at}
        with self._store.write() as connection:
            operator_tokens.add(connection, record)
            append(connection, now, Change(OPERATOR_CREATED, by=by, data=data))
        return record, f"{PREFIX}.{token_id}.{b64url(secret)}"

    def authenticate(self, unverified_token: str, needs: Role) -> Operator:
        """The operator whose token this is. Raises OperatorRefused or RoleRefused."""
        try:
            _, token_id, secret = unverified_token.split(".")
            hashed = hashlib.sha256(b64url_decode(secret)).digest()
        except (ValueError, MalformedToken):
            raise OperatorRefused("not an operator token") from None
        if len(token_id) != 16 or not token_id.isalnum():
            raise OperatorRefused("not an operator token")
        with self._store.look() as connection:
            record = operator_tokens.find(connection, token_id)
        if record is None or not hmac.compare_digest(record.secret_hash, hashed):
            raise OperatorRefused("unknown operator token")
        if record.revoked or self._clock() >= record.expires_at:
            raise OperatorRefused(f"operator token {token_id} is revoked or expired")
        operator = Operator(token_id, Role[record.role.upper()])
        if operator.role < needs:
            raise RoleRefused(f"operator {token_id} is {operator.role.label}, not {needs.label}")
        return operator

    def revoke(self, token_id: str, by: Mapping[str, str] = LOCAL) -> None:
        """Makes a token useless. Raises NotFound where there is none that is good."""
        with self._store.write() as connection:
            if not operator_tokens.revoke(connection, token_id):
                raise NotFound("operator_token_not_found")
            append(connection, int(self._clock()), Change(OPERATOR_REVOKED, by=by, data={"id": token_id}))

    def listed(self) -> list[OperatorTokenRecord]:
        """All of them, past ones too."""
        with self._store.look() as connection:
            return operator_tokens.listed(connection)
