"""Invoices, each with the event that caused it."""

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
    Row,
    String,
    Table,
    UniqueConstraint,
    create_engine,
    insert,
    make_url,
    select,
)
from sqlalchemy.exc import IntegrityError

from peerseal import Transaction
from peerseal.inbox import create_tables
from peerseal.runtime.database_url import sqlalchemy_url

LISTED = 100
"""The most invoices of one user that a list shows."""
LONGEST_ISSUER = 500
"""The longest name of an issuer in the domain document, in characters."""

metadata = MetaData()
INVOICES = Table(
    "invoices",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("invoice_id", String(36), nullable=False, unique=True),
    Column("publisher", String(355), nullable=False),  # an event's id is unique at its publisher only
    Column("event_id", String(200), nullable=False),
    Column("transaction_id", String(200), nullable=False),
    Column("issuer", String(LONGEST_ISSUER), nullable=False),  # a user's name is unique at its issuer only
    Column("user_id", String(512), nullable=False),
    Column("utc_time", String(20), nullable=False),
    Column("amount", BigInteger, nullable=False),
    UniqueConstraint("publisher", "event_id", name="one_invoice_an_event"),
)
Index("invoices_of_user", INVOICES.c.issuer, INVOICES.c.user_id, INVOICES.c.number)


@dataclass(frozen=True, slots=True)
class Invoice:
    """The invoice of one user for one transaction. ``amount`` is in cents."""

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


class EventInvoicedOtherwise(Exception):
    """The event has an invoice already, for another user, transaction or amount."""


def open_database(url: str, tables: MetaData = metadata) -> Engine:
    """The database, with missing tables created. Safe to use after a fork."""
    url = sqlalchemy_url(url)
    waits = {"timeout": 30} if make_url(url).get_backend_name() == "sqlite" else {}
    engine = create_engine(url, connect_args=waits)
    create_tables(engine, tables)
    return engine


class Invoices:
    """The invoices in ``database``. ``clock`` gives seconds since the epoch."""

    def __init__(self, database: Engine, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    def add(self, transaction: Transaction, event_id: str, amount: int) -> tuple[Invoice, bool]:
        """Invoice the event that began the transaction; → the invoice, and whether it is new. Raises
        EventInvoicedOtherwise."""
        owed = {
            "publisher": transaction.workload,
            "event_id": event_id,
            "transaction_id": transaction.id,
            "issuer": transaction.authentication.get("iss", ""),
            "user_id": transaction.user,
            "amount": amount,
        }
        now = f"{datetime.fromtimestamp(int(self._clock()), UTC):%Y-%m-%dT%H:%M:%SZ}"
        row = {**owed, "invoice_id": str(uuid.uuid4()), "utc_time": now}
        try:
            with self._database.begin() as connection:
                return _invoice(connection.execute(insert(INVOICES).values(row).returning(INVOICES)).one()), True
        except IntegrityError:
            return self._made_before(owed), False

    def of(self, issuer: str, user: str) -> list[Invoice]:
        """A user's invoices, the newest first."""
        theirs = select(INVOICES).where(INVOICES.c.issuer == issuer, INVOICES.c.user_id == user)
        with self._database.connect() as connection:
            rows = connection.execute(theirs.order_by(INVOICES.c.number.desc()).limit(LISTED)).all()
        return [_invoice(row) for row in rows]

    def _made_before(self, owed: dict[str, Any]) -> Invoice:
        column = INVOICES.c
        its = column.publisher == owed["publisher"], column.event_id == owed["event_id"]
        with self._database.connect() as connection:
            row = connection.execute(select(INVOICES).where(*its)).one()
        if owed != {name: row._mapping[name] for name in owed}:
            raise EventInvoicedOtherwise(f"event {owed['event_id']} has an invoice that says something else")
        return _invoice(row)


def _invoice(row: Row[Any]) -> Invoice:
    return Invoice(row.invoice_id, row.transaction_id, row.user_id, row.utc_time, row.amount)
