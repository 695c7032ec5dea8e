"""Creates the tables of an application that has an inbox or an outbox (SQLAlchemy; extras ``kafka``, ``rabbitmq``)."""

from peerseal.errors import ConfigurationError
from peerseal.runtime.extras import missing

try:
    from sqlalchemy import Engine, MetaData, func, select
    from sqlalchemy.schema import CreateIndex, CreateTable
except ModuleNotFoundError as error:
    raise missing(error, "kafka") from error

_LOCK = 0x7065_6572_7365_616C
"""Number of the advisory lock of PostgreSQL that a process holds while it creates tables."""
_DIALECTS = ("postgresql", "sqlite")


def create_tables(engine: Engine, metadata: MetaData) -> None:
    """Create the missing tables and indexes of ``metadata``; existing tables are not changed. Safe to call from several
    processes at once, and before a fork.

    Raises ConfigurationError for a database that is neither PostgreSQL nor SQLite, or an error of SQLAlchemy.
    """
    check_dialect(engine.dialect.name)
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":  # two processes at once would both find a table missing
            connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
        for table in metadata.sorted_tables:
            connection.execute(CreateTable(table, if_not_exists=True))
            for index in sorted(table.indexes, key=lambda one: str(one.name)):
                connection.execute(CreateIndex(index, if_not_exists=True))
    engine.dispose()  # a connection belongs to one process


def check_dialect(name: str) -> None:
    """Raises ConfigurationError if the database is neither PostgreSQL nor SQLite."""
    if name not in _DIALECTS:
        raise ConfigurationError(f"the database is {name}: an inbox or outbox needs PostgreSQL or SQLite")
