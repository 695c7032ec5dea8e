"""Several writes that do not look at each other's outcome, in one message to PostgreSQL.

There they become one statement with data-modifying CTEs, which is a third of the work: of a registration, most is
sending statements one by one. The same statement for several rows of parameters goes out in one message, too. SQLite
has no such statement, and no wire to save; it runs them in their order.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import Connection, Delete, Insert, Update

from registry.storage.engine import POSTGRESQL

Dml = Insert | Update | Delete


class Write(NamedTuple):
    """One statement, built once and with bind names of its own, and its parameters."""

    statement: Any
    parameters: Mapping[str, Any]


def write_batch(connection: Connection, groups: Sequence[Sequence[Write]]) -> None:
    """Runs one group of writes after the other. All groups have the same statements. Raises what any of them raises."""
    if connection.dialect.name == POSTGRESQL:
        rows = [{name: value for write in writes for name, value in write.parameters.items()} for writes in groups]
        connection.execute(_combined(tuple(write.statement for write in groups[0])), rows)
        return
    for writes in groups:
        for write in writes:
            connection.execute(write.statement, write.parameters)


@lru_cache(64)
def _combined(statements: tuple[Dml, ...]) -> Dml:
    """The last statement, with those before it as CTEs."""
    *first, last = statements
    return last.add_cte(*(statement.cte(f"write_{number}") for number, statement in enumerate(first)))
