"""Handles each event once, even if it is delivered again (SQLAlchemy; extra ``kafka``).

A row in the application's database notes that an event was handled. It is written in the transaction that stores the
work: if a consumer is killed, both are stored or neither is::

    with engine.begin() as connection:
        if peerseal.inbox.first_time(connection, INBOX, event, now=time.time()):
            connection.execute(invoices.insert().values(…))
"""

from peerseal.runtime.extras import missing
from peerseal.tables import check_dialect, create_tables
from peerseal.verify.event import Event

try:
    from sqlalchemy import BigInteger, Column, Connection, MetaData, PrimaryKeyConstraint, String, Table
    from sqlalchemy.dialects import postgresql, sqlite
except ModuleNotFoundError as error:
    raise missing(error, "kafka") from error

__all__ = ["create_tables", "first_time", "inbox_table"]


def inbox_table(metadata: MetaData, name: str = "peerseal_inbox") -> Table:
    """The table, in the application's metadata: its migrations or `create_tables` create it."""
    return Table(
        name,
        metadata,
        Column("issuer", String(355), nullable=False),
        Column("event_id", String(200), nullable=False),
        Column("topic", String(249), nullable=False),
        Column("handled_at", BigInteger, nullable=False),
        PrimaryKeyConstraint("issuer", "event_id", name=f"pk_{name}"),
    )


def first_time(connection: Connection, inbox: Table, event: Event, *, now: float) -> bool:
    """Whether this transaction is the first one with the event. ``now`` is in seconds since the epoch.

    The second of two concurrent transactions waits for the first. Raises ConfigurationError for a database that is
    neither PostgreSQL nor SQLite, or an error of SQLAlchemy.
    """
    check_dialect(connection.dialect.name)
    insert: sqlite.Insert | postgresql.Insert
    insert = postgresql.insert(inbox) if connection.dialect.name == "postgresql" else sqlite.insert(inbox)
    row = {"issuer": event.issuer, "event_id": event.id, "topic": event.topic, "handled_at": int(now)}
    written = insert.values(row).on_conflict_do_nothing().returning(inbox.c.event_id)
    return connection.execute(written).first() is not None
