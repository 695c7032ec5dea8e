"""Sessions of operators in the console: queries and changes. Times are seconds since the epoch."""

from dataclasses import asdict, dataclass, field

from sqlalchemy import Connection, delete, insert, select

from registry.storage.tables import console_sessions


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A session: ``id`` is the SHA-256 of its secret, ``operator`` the id of the operator token that began it."""

    id: bytes = field(repr=False)
    operator: str
    created_at: int
    expires_at: int


def add(connection: Connection, record: SessionRecord) -> None:
    """Writes a new session."""
    connection.execute(insert(console_sessions).values(**asdict(record)))


def find(connection: Connection, session_id: bytes) -> SessionRecord | None:
    """The session with that id."""
    columns = (console_sessions.c[name] for name in SessionRecord.__slots__)
    row = connection.execute(select(*columns).where(console_sessions.c.id == session_id)).first()
    return None if row is None else SessionRecord(*row)


def end(connection: Connection, session_id: bytes) -> None:
    """Removes the session."""
    connection.execute(delete(console_sessions).where(console_sessions.c.id == session_id))


def end_oldest(connection: Connection, operator: str, kept: int) -> None:
    """Removes all sessions of an operator but the newest ones."""
    of_operator = select(console_sessions.c.id).where(console_sessions.c.operator == operator)
    newest_first = of_operator.order_by(console_sessions.c.created_at.desc(), console_sessions.c.id)
    past = connection.execute(newest_first.offset(kept)).scalars().all()
    if past:
        connection.execute(delete(console_sessions).where(console_sessions.c.id.in_(past)))


def end_all(connection: Connection, operator: str) -> int:
    """Removes all sessions of an operator, and returns their number."""
    return connection.execute(delete(console_sessions).where(console_sessions.c.operator == operator)).rowcount


def remove_past(connection: Connection, now: int) -> int:
    """Removes expired sessions, and returns their number."""
    return connection.execute(delete(console_sessions).where(console_sessions.c.expires_at <= now)).rowcount


def remove_all(connection: Connection) -> None:
    """Removes the sessions of all operators."""
    connection.execute(delete(console_sessions))
