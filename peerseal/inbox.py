"""Each event once, however often it is delivered, through the application's own database (SQLAlchemy; extra ``kafka``).

The row that says that an event was handled is written in the transaction that stores the work: both are there, or
neither is, wherever a consumer was killed::

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
    """The table, as one of the application's own: its migrations or `create_tables` create it."""
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
    """Whether this transaction is the one that handles the event. ``now`` is in seconds since the epoch.

    Of two at once one waits for the other. Raises ConfigurationError on a database that is neither PostgreSQL nor
    SQLite, or what SQLAlchemy raises.
    """
    check_dialect(connection.dialect.name)
    insert: sqlite.Insert | postgresql.Insert
    insert = postgresql.insert(inbox) if connection.dialect.name == "postgresql" else sqlite.insert(inbox)
    row = {"issuer": event.issuer, "event_id": event.id, "topic": event.topic, "handled_at": int(now)}
    written = insert.values(row).on_conflict_do_nothing().returning(inbox.c.event_id)
    return connection.execute(written).first() is not None
