"""Orders, and the outbox of the events about them: one database, one transaction for both."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    Column,
    Connection,
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
)

from client_service.catalogue import Line
from peerseal.outbox import create_tables, outbox_table
from peerseal.runtime.database_url import sqlalchemy_url

LISTED = 100
"""Orders of one user that are shown, at most."""

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
OUTBOX = outbox_table(metadata)


@dataclass(frozen=True, slots=True)
class Order:
    """What one user ordered, as one transaction."""

    transaction_id: str
    issuer: str
    user: str
    utc_time: str
    lines: list[Line]

    def public_json(self) -> dict[str, Any]:
        """What others learn: nothing of the user."""
        items = [line.to_json() for line in self.lines]
        return {"transactionID": self.transaction_id, "utcTime": self.utc_time, "items": items}

    def to_json(self) -> dict[str, Any]:
        """What the user sees, with the sum in cents."""
        return {**self.public_json(), "amount": sum(line.quantity * line.price for line in self.lines)}


def open_database(url: str, state: Path) -> Engine:
    """The database, with what is missing of its tables made. Safe to use after a fork."""
    url = sqlalchemy_url(url)
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
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


def orders_of(engine: Engine, issuer: str, user: str) -> list[Order]:
    """A user's orders, the newest first."""
    theirs = select(ORDERS).where(ORDERS.c.issuer == issuer, ORDERS.c.user_name == user)
    with engine.connect() as connection:
        rows = connection.execute(theirs.order_by(ORDERS.c.number.desc()).limit(LISTED)).all()
    return [Order(row.transaction_id, row.issuer, row.user_name, row.utc_time, _lines(row.items)) for row in rows]


def _lines(items: list[dict[str, Any]]) -> list[Line]:
    return [Line(item["itemID"], item["quantity"], item["price"]) for item in items]
