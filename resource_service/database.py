"""Invoices, and which events they were made of: one database, one transaction for both."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Engine,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    insert,
    make_url,
    select,
    text,
)
from sqlalchemy.schema import CreateIndex, CreateTable

from peerseal import Event
from peerseal.inbox import first_time, inbox_table
from peerseal.runtime.database_url import sqlalchemy_url

LISTED = 100
"""Invoices of one user that are shown, at most."""

metadata = MetaData()
INBOX = inbox_table(metadata)
INVOICES = Table(
    "invoices",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("invoice_id", String(36), nullable=False, unique=True),
    Column("transaction_id", String(200), nullable=False),
    Column("issuer", String(500), nullable=False),  # a user's name is unique at its issuer only
    Column("user_id", String(512), nullable=False),
    Column("utc_time", String(20), nullable=False),
    Column("amount", BigInteger, nullable=False),
)

OF_USER = Index("invoices_of_user", INVOICES.c.issuer, INVOICES.c.user_id, INVOICES.c.number)


@dataclass(frozen=True, slots=True)
class Invoice:
    """What one user owes for one transaction. ``amount`` is in cents."""

    id: str
    transaction_id: str
    user: str
    utc_time: str
    amount: int

    def to_json(self) -> dict[str, Any]:
        """``{"invoiceID", "transactionID", "userID", "utcTime", "amount"}``."""
        return {
            "invoiceID": self.id,
            "transactionID": self.transaction_id,
            "userID": self.user,
            "utcTime": self.utc_time,
            "amount": self.amount,
        }


def open_database(url: str) -> Engine:
    """The database, with what is missing of its tables made. Safe to use after a fork."""
    url = sqlalchemy_url(url)
    waits = {"timeout": 30} if make_url(url).get_backend_name() == "sqlite" else {}
    engine = create_engine(url, connect_args=waits)
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":  # of several processes that begin at once, one makes the tables
            connection.execute(text("SELECT pg_advisory_xact_lock(7092)"))
        for table in metadata.sorted_tables:
            connection.execute(CreateTable(table, if_not_exists=True))
        connection.execute(CreateIndex(OF_USER, if_not_exists=True))
    engine.dispose()  # a connection belongs to one process
    return engine


class Invoices:
    """The invoices in ``database``. ``clock`` gives seconds since the epoch."""

    def __init__(self, database: Engine, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    def add(self, event: Event, amount: int) -> bool:
        """Invoice a proven event; False where that was done before. Who owes, and for which transaction, stands in the
        event's token and nowhere else."""
        now = self._clock()
        with self._database.begin() as connection:
            if not first_time(connection, INBOX, event, now=now):
                return False
            connection.execute(
                insert(INVOICES).values(
                    invoice_id=str(uuid.uuid4()),
                    transaction_id=event.transaction_id,
                    issuer=event.authentication.get("iss", ""),
                    user_id=event.user,
                    utc_time=f"{datetime.fromtimestamp(int(now), UTC):%Y-%m-%dT%H:%M:%SZ}",
                    amount=amount,
                )
            )
        return True

    def of(self, issuer: str, user: str) -> list[Invoice]:
        """A user's invoices, the newest first."""
        theirs = select(INVOICES).where(INVOICES.c.issuer == issuer, INVOICES.c.user_id == user)
        with self._database.connect() as connection:
            rows = connection.execute(theirs.order_by(INVOICES.c.number.desc()).limit(LISTED)).all()
        return [Invoice(row.invoice_id, row.transaction_id, row.user_id, row.utc_time, row.amount) for row in rows]
