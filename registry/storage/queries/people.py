"""Operators who are people that an OIDC issuer named: queries and changes. Times are seconds since the epoch."""

from collections.abc import Collection

from sqlalchemy import Connection, select, update

from registry.storage.queries.tokens import OPERATOR_TOKENS, OperatorTokenRecord
from registry.storage.tables import operator_tokens


def name(connection: Connection, token_id: str, person: bytes, shown: str) -> None:
    """Notes which person an operator is."""
    noting = update(operator_tokens).where(operator_tokens.c.id == token_id)
    connection.execute(noting.values(person=person, name=shown))


def records(connection: Connection, person: bytes, now: int) -> list[OperatorTokenRecord]:
    """The records of a person that are in force, the oldest first."""
    in_force = operator_tokens.c.expires_at > now, ~operator_tokens.c.revoked
    wanted = select(operator_tokens.c.id).where(operator_tokens.c.person == person, *in_force)
    ids = connection.execute(wanted.order_by(operator_tokens.c.created_at)).scalars().all()
    return [record for each in ids if (record := OPERATOR_TOKENS.find(connection, each)) is not None]


def same(connection: Connection, token_id: str) -> list[str]:
    """The operator, and the other ones that are the same person."""
    found = select(operator_tokens.c.person).where(operator_tokens.c.id == token_id).scalar_subquery()
    others = select(operator_tokens.c.id).where(operator_tokens.c.person == found, operator_tokens.c.id != token_id)
    return [token_id, *connection.execute(others).scalars()]


def names(connection: Connection, token_ids: Collection[str]) -> dict[str, str]:
    """The names of the people among these operators, by id."""
    known = operator_tokens.c.id.in_(sorted(token_ids)), operator_tokens.c.name.is_not(None)
    rows = connection.execute(select(operator_tokens.c.id, operator_tokens.c.name).where(*known))
    return {row.id: row.name for row in rows}
