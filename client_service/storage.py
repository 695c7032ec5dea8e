"""Orders, and the events about them that the broker has not confirmed yet: one database, one transaction for both."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    Column,
    Engine,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    create_engine,
    delete,
    insert,
    make_url,
    select,
    text,
)
from sqlalchemy.schema import CreateIndex, CreateTable

from client_service.catalogue import Line
from peerseal.errors import ConfigurationError
from peerseal.runtime.database_url import sqlalchemy_url

LISTED = 100
"""Orders of one user that are shown, at most."""
BATCH = 100
"""Events that are sent at once, at most."""

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
OF_USER = Index("orders_of_user", ORDERS.c.issuer, ORDERS.c.user_name, ORDERS.c.number)
OUTBOX = Table(
    "outbox",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("topic", String(249), nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("headers", JSON, nullable=False),
)


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


@dataclass(frozen=True, slots=True)
class Unsent:
    """A signed event that waits for the broker. ``number`` is its place, once it is stored."""

    topic: str
    payload: bytes = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    number: int = 0


def open_database(url: str, state: Path) -> Engine:
    """The database, with what is missing of its tables made. Safe to use after a fork. Raises ConfigurationError."""
    url = sqlalchemy_url(url)
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"{state}: {error.strerror}; set PEERSEAL_KEY_DIR or CLIENT_DATABASE_URL") from error
    waits = {"timeout": 30} if make_url(url).get_backend_name() == "sqlite" else {}
    engine = create_engine(url, connect_args=waits)
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":  # of several processes that begin at once, one makes the tables
            connection.execute(text("SELECT pg_advisory_xact_lock(7091)"))
        for table in metadata.sorted_tables:
            connection.execute(CreateTable(table, if_not_exists=True))
        connection.execute(CreateIndex(OF_USER, if_not_exists=True))
    engine.dispose()  # a connection belongs to one process
    return engine


def add(engine: Engine, order: Order, event: Unsent) -> None:
    """Store both, or neither."""
    with engine.begin() as connection:
        connection.execute(
            insert(ORDERS).values(
                transaction_id=order.transaction_id,
                issuer=order.issuer,
                user_name=order.user,
                utc_time=order.utc_time,
                items=[line.to_json() for line in order.lines],
            )
        )
        connection.execute(insert(OUTBOX).values(topic=event.topic, payload=event.payload, headers=dict(event.headers)))


def orders_of(engine: Engine, issuer: str, user: str) -> list[Order]:
    """A user's orders, the newest first."""
    theirs = select(ORDERS).where(ORDERS.c.issuer == issuer, ORDERS.c.user_name == user)
    with engine.connect() as connection:
        rows = connection.execute(theirs.order_by(ORDERS.c.number.desc()).limit(LISTED)).all()
    return [Order(row.transaction_id, row.issuer, row.user_name, row.utc_time, _lines(row.items)) for row in rows]


def unsent(engine: Engine) -> list[Unsent]:
    """The oldest events that wait."""
    with engine.connect() as connection:
        rows = connection.execute(select(OUTBOX).order_by(OUTBOX.c.number).limit(BATCH)).all()
    return [Unsent(row.topic, row.payload, row.headers, row.number) for row in rows]


def forget(engine: Engine, events: Iterable[Unsent]) -> None:
    """The broker has them."""
    with engine.begin() as connection:
        connection.execute(delete(OUTBOX).where(OUTBOX.c.number.in_([event.number for event in events])))


def _lines(items: list[dict[str, Any]]) -> list[Line]:
    return [Line(item["itemID"], item["quantity"], item["price"]) for item in items]
