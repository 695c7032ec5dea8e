"""Sessions of operators in the console.

A session begins with an operator token, or as a person whom the operators' issuer proved. It ends after
`Limits.console_session` seconds, with the record of the operator, or when the operator signs out. The database holds
the hash of its secret, so each node knows it, and each can end it.
"""

import hashlib
import secrets
from dataclasses import dataclass

from sqlalchemy import Connection

from peerseal.verify.replay.guards import ReplayGuard
from registry.domain.errors import RoleRefused
from registry.services.access.operators import Operator, Operators, Person, Role
from registry.services.use_case import Node, UseCase
from registry.storage.queries import audit, console_sessions, people
from registry.storage.queries.console_sessions import SessionRecord
from registry.storage.queries.tokens import OPERATOR_TOKENS

_LONGEST_SECRET = 100
SIGN_IN_LASTS = 600
"""Seconds that a sign-in at the operators' issuer may take."""
SESSIONS = 20
"""Sessions of one operator. One more ends the oldest."""


@dataclass(frozen=True, slots=True)
class Session:
    """Who is signed in, and until when (seconds since the epoch)."""

    operator: Operator
    expires_at: int
    name: str | None = None
    """Of a person whom the issuer named."""


class ConsoleSessions(UseCase):
    """Begins, finds and ends sessions."""

    def __init__(self, node: Node, operators: Operators, guard: ReplayGuard) -> None:
        super().__init__(node)
        self._operators = operators
        self._guard = guard

    def begin(self, unverified_token: str) -> str:
        """Begins a session of the operator with that token. Returns its secret, which the browser keeps, and which is
        stored nowhere else. Raises OperatorRefused."""
        operator = self._operators.authenticate(unverified_token, Role.VIEWER)
        with self._store.write() as connection:
            return self._begun(connection, operator, operator.id)

    def begin_as(self, person: Person, role: Role | None) -> str:
        """Begins a session of a person with that role, as `begin` does. Raises RoleRefused for a person without one,
        whose sessions of before end."""
        with self._store.write() as connection:
            if role is not None:
                operator = self._operators.of_person(connection, person, role, self._limits.console_session)
                return self._begun(connection, operator, f"{operator.id}: {person}")
            self._operators.revoke_person(connection, person)
        # only here, since an error within the transaction would undo the revocation
        raise RoleRefused(f"no group of {person} has a role here")

    def _begun(self, connection: Connection, operator: Operator, subject: str) -> str:
        secret, now = secrets.token_urlsafe(32), self._now()
        record = SessionRecord(_hash(secret), operator.id, now, now + self._limits.console_session)
        console_sessions.add(connection, record)
        console_sessions.end_oldest(connection, operator.id, SESSIONS)
        audit.record(connection, now, operator.by, audit.SIGNED_IN, subject)
        return secret

    def find(self, secret: str) -> Session | None:
        """The session with that secret, with the role that its operator has now; None where it has ended, or its
        operator token has."""
        if len(secret) > _LONGEST_SECRET:
            return None
        with self._store.look() as connection:
            record = console_sessions.find(connection, _hash(secret))
            token = None if record is None else OPERATOR_TOKENS.find(connection, record.operator)
            name = None if token is None else people.names(connection, [token.id]).get(token.id)
        if record is None or token is None or token.revoked:
            return None
        ends = min(record.expires_at, token.expires_at)
        return Session(Operator(token.id, Role.of(token.role)), ends, name) if self._clock() < ends else None

    def end(self, secret: str) -> None:
        """Ends a session."""
        with self._store.write() as connection:
            console_sessions.end(connection, _hash(secret))

    def claim_form(self, name: str) -> bool:
        """Whether this is the first form with that name. All nodes remember it for as long as a session, or a sign-in,
        lasts. Raises TrustUnavailable where the database takes no writes."""
        return self._guard.claim("console", name, self._clock() + max(self._limits.console_session, SIGN_IN_LASTS))

    def end_all(self, operator: Operator) -> int:
        """Ends all sessions of an operator, in each browser. Returns their number."""
        with self._store.write() as connection:
            audit.record(connection, self._now(), operator.by, audit.SIGNED_OUT_EVERYWHERE, operator.id)
            return sum(console_sessions.end_all(connection, each) for each in people.same(connection, operator.id))


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
