"""Sessions of operators in the console.

A session begins with an operator token, and ends after `Limits.console_session` seconds, with the token, or when the
operator signs out. The database holds the hash of its secret, so each node knows it, and each can end it.
"""

import hashlib
import secrets
from dataclasses import dataclass, field

from peerseal.verify.replay.guards import ReplayGuard
from registry.services.access.operators import Operator, Operators, Role
from registry.services.use_case import Node, UseCase
from registry.storage.queries import audit, console_sessions
from registry.storage.queries.console_sessions import SessionRecord
from registry.storage.queries.tokens import OPERATOR_TOKENS

_LONGEST_SECRET = 100
SESSIONS = 20
"""Sessions of one operator. One more ends the oldest."""


@dataclass(frozen=True, slots=True)
class Session:
    """Who is signed in, and until when (seconds since the epoch)."""

    operator: Operator
    expires_at: int


@dataclass(frozen=True, slots=True)
class NewSession(Session):
    """A new session, with the secret that the browser keeps. It is stored nowhere else."""

    secret: str = field(repr=False)


class ConsoleSessions(UseCase):
    """Begins, finds and ends sessions."""

    def __init__(self, node: Node, operators: Operators, guard: ReplayGuard) -> None:
        super().__init__(node)
        self._operators = operators
        self._guard = guard

    def begin(self, unverified_token: str) -> NewSession:
        """A session of the operator with that token. Raises OperatorRefused."""
        operator, now = self._operators.authenticate(unverified_token, Role.VIEWER), self._now()
        secret = secrets.token_urlsafe(32)
        with self._store.write() as connection:
            token = OPERATOR_TOKENS.find(connection, operator.id)
            ends = now + self._limits.console_session
            record = SessionRecord(_hash(secret), operator.id, now, min(ends, token.expires_at) if token else now)
            console_sessions.add(connection, record)
            console_sessions.end_oldest(connection, operator.id, SESSIONS)
            audit.record(connection, now, operator.by, audit.SIGNED_IN, operator.id)
        return NewSession(operator, record.expires_at, secret)

    def find(self, secret: str) -> Session | None:
        """The session with that secret, with the role that its operator has now; None where it has ended, or its
        operator token has."""
        if len(secret) > _LONGEST_SECRET:
            return None
        with self._store.look() as connection:
            record = console_sessions.find(connection, _hash(secret))
            token = None if record is None else OPERATOR_TOKENS.find(connection, record.operator)
        if record is None or token is None or token.revoked:
            return None
        if self._clock() >= min(record.expires_at, token.expires_at):
            return None
        return Session(Operator(token.id, Role.of(token.role)), record.expires_at)

    def end(self, secret: str) -> None:
        """Ends a session."""
        with self._store.write() as connection:
            console_sessions.end(connection, _hash(secret))

    def claim_form(self, name: str) -> bool:
        """Whether no form with that name was sent before, to any node, while a session of then may last. Raises
        TrustUnavailable where the database takes no writes."""
        return self._guard.claim("console", name, self._clock() + self._limits.console_session)

    def end_all(self, operator: Operator) -> int:
        """Ends all sessions of an operator, in each browser. Returns their number."""
        with self._store.write() as connection:
            audit.record(connection, self._now(), operator.by, audit.SIGNED_OUT_EVERYWHERE, operator.id)
            return console_sessions.end_all(connection, operator.id)


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
