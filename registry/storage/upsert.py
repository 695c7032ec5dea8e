"""``INSERT … ON CONFLICT``, which both databases spell alike and SQLAlchemy calls by two names."""

from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql, sqlite

from registry.storage.engine import POSTGRESQL


def upsert(connection: Connection, table: Table[Any]) -> postgresql.Insert | sqlite.Insert:
    """An INSERT into the table that takes ``on_conflict_do_update`` and ``on_conflict_do_nothing``."""
    return postgresql.insert(table) if connection.dialect.name == POSTGRESQL else sqlite.insert(table)
