"""Operator tokens: queries and changes."""

from dataclasses import asdict, dataclass, field

from sqlalchemy import Connection, delete, insert, select, update

from registry.storage.tables import operator_tokens


@dataclass(frozen=True, slots=True)
class OperatorTokenRecord:
    """An operator token as the registry keeps it. Times are seconds since the epoch."""

    id: str
    secret_hash: bytes = field(repr=False)
    role: str
    created_at: int
    expires_at: int
    revoked: bool = False


_COLUMNS = tuple(operator_tokens.c[name] for name in OperatorTokenRecord.__slots__)


def add(connection: Connection, record: OperatorTokenRecord) -> None:
    """Writes a new operator token."""
    connection.execute(insert(operator_tokens).values(**asdict(record)))


def find(connection: Connection, token_id: str) -> OperatorTokenRecord | None:
    """The operator token with that id."""
    row = connection.execute(select(*_COLUMNS).where(operator_tokens.c.id == token_id)).first()
    return None if row is None else OperatorTokenRecord(*row)


def revoke(connection: Connection, token_id: str) -> bool:
    """Makes a token useless. False where there is none, or it was revoked before."""
    found = (operator_tokens.c.id == token_id, ~operator_tokens.c.revoked)
    return connection.execute(update(operator_tokens).where(*found).values(revoked=True)).rowcount == 1


def page(connection: Connection, after: str, limit: int) -> list[OperatorTokenRecord]:
    """A page of all operator tokens, by id."""
    found = select(*_COLUMNS).where(operator_tokens.c.id > after).order_by(operator_tokens.c.id).limit(limit)
    return [OperatorTokenRecord(*row) for row in connection.execute(found)]


def remove_past(connection: Connection, before: int) -> int:
    """Removes tokens whose end lies at or before that time, and says how many they were. Their entries stay."""
    return connection.execute(delete(operator_tokens).where(operator_tokens.c.expires_at <= before)).rowcount
