"""``INSERT … ON CONFLICT``, which is the same in both databases and has two names in SQLAlchemy."""

from typing import Any

from sqlalchemy import Table
from sqlalchemy.dialects import postgresql, sqlite

from registry.storage.engine import POSTGRESQL, SQLITE


def inserts(table: Table[Any]) -> dict[str, postgresql.Insert | sqlite.Insert]:
    """An INSERT into the table that takes ``on_conflict_…``, by the dialect's name."""
    return {POSTGRESQL: postgresql.insert(table), SQLITE: sqlite.insert(table)}
