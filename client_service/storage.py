"""Orders, the events that wait for an approval, and the outbox: one database, one transaction for all."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Engine,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Row,
    String,
    Table,
    create_engine,
    delete,
    insert,
    make_url,
    select,
)

from client_service.catalogue import Line
from peerseal.errors import ConfigurationError
from peerseal.outbox import create_tables, outbox_table
from peerseal.runtime.database_url import sqlalchemy_url

LISTED = 100
"""The most orders that a list shows."""

metadata = MetaData()
ORDERS = Table(
    "orders",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("transaction_id", String(200), nullable=False, unique=True),
    Column("issuer", String(500), nullable=False),  # a user's name is unique at its issuer only
    Column("user_name", String(512), nullable=False),
    Column("utc_time", String(20), nullable=False),
    Column("items", JSON, nullable=False),
)
Index("orders_of_user", ORDERS.c.issuer, ORDERS.c.user_name, ORDERS.c.number)
HELD = Table(
    "held_events",
    metadata,
    Column("transaction_id", String(200), primary_key=True),
    Column("payload", LargeBinary, nullable=False),
    Column("headers", JSON, nullable=False),
    Column("good_until", BigInteger, nullable=False),
)
OUTBOX = outbox_table(metadata)

ACCEPTED, AWAITING_APPROVAL, EXPIRED = "accepted", "awaiting_approval", "expired"
"""States of an order: an expired one was not approved as long as its event was good."""


@dataclass(frozen=True, slots=True)
class SignedEvent:
    """The event of an order, signed in the user's transaction when the order was placed. ``good_until`` is in seconds
    since the epoch."""

    id: str
    payload: bytes = field(repr=False)
    headers: dict[str, str] = field(repr=False)
    good_until: int


@dataclass(frozen=True, slots=True)
class Order:
    """One user's order; it is one transaction."""

    transaction_id: str
    issuer: str
    user: str
    utc_time: str
    lines: list[Line]
    state: str = ACCEPTED

    @property
    def amount(self) -> int:
        """The sum in cents."""
        return sum(line.quantity * line.price for line in self.lines)

    def public_json(self) -> dict[str, Any]:
        """The published members; none names the user."""
        items = [line.to_json() for line in self.lines]
        return {"transactionID": self.transaction_id, "utcTime": self.utc_time, "items": items}

    def to_json(self) -> dict[str, Any]:
        """The members for the user, with the sum in cents and the state."""
        return {**self.public_json(), "amount": self.amount, "state": self.state}


def open_database(url: str, state: Path) -> Engine:
    """The database, with missing tables created. Safe to use after a fork. Raises ConfigurationError."""
    url = sqlalchemy_url(url)
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{state}: {error.strerror}; set PEERSEAL_KEY_DIR or CLIENT_DATABASE_URL") from error
    waits = {"timeout": 30} if make_url(url).get_backend_name() == "sqlite" else {}
    engine = create_engine(url, connect_args=waits)
    create_tables(engine, metadata)
    return engine


def add(connection: Connection, order: Order) -> None:
    """Store an order."""
    row = {
        "transaction_id": order.transaction_id,
        "issuer": order.issuer,
        "user_name": order.user,
        "utc_time": order.utc_time,
        "items": [line.to_json() for line in order.lines],
    }
    connection.execute(insert(ORDERS).values(row))


def hold(connection: Connection, order: Order, event: SignedEvent) -> None:
    """Keep the event of an order until the order is approved."""
    row = {"transaction_id": order.transaction_id, "payload": event.payload, "headers": event.headers}
    connection.execute(insert(HELD).values(good_until=event.good_until, **row))


def release(connection: Connection, transaction_id: str) -> SignedEvent | None:
    """Removes the kept event and returns it; None if there is none."""
    kept = delete(HELD).where(HELD.c.transaction_id == transaction_id).returning(HELD)
    row = connection.execute(kept).first()
    if row is None:
        return None
    return SignedEvent(json.loads(row.payload)["eventID"], row.payload, row.headers, row.good_until)


def orders_of(engine: Engine, issuer: str, user: str, now: float) -> list[Order]:
    """A user's orders, the newest first."""
    return _orders(engine, now, ORDERS.c.issuer == issuer, ORDERS.c.user_name == user)


def held_orders(engine: Engine, now: float) -> list[Order]:
    """All users' orders that wait for an approval or waited too long, the newest first."""
    return _orders(engine, now, HELD.c.good_until.is_not(None))


def _orders(engine: Engine, now: float, *which: ColumnElement[bool]) -> list[Order]:
    both = ORDERS.outerjoin(HELD, ORDERS.c.transaction_id == HELD.c.transaction_id)
    query = select(ORDERS, HELD.c.good_until).select_from(both).where(*which)
    with engine.connect() as connection:
        rows = connection.execute(query.order_by(ORDERS.c.number.desc()).limit(LISTED)).all()
    return [
        Order(row.transaction_id, row.issuer, row.user_name, row.utc_time, _lines(row.items), _state(row, now))
        for row in rows
    ]


def _state(row: Row[Any], now: float) -> str:
    if row.good_until is None:
        return ACCEPTED
    return AWAITING_APPROVAL if now < row.good_until else EXPIRED


def _lines(items: list[dict[str, Any]]) -> list[Line]:
    return [Line(item["itemID"], item["quantity"], item["price"]) for item in items]
