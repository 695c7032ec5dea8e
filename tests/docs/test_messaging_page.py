"""The programs of docs/how-to/messaging.md, with a broker in memory and a database in a file."""

import signal
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from queue import Empty, Queue
from types import SimpleNamespace
from typing import Any

import pytest
import responses
from sqlalchemy import Column, Engine, MetaData, String, Table, create_engine, select

from peerseal import EventVerifier, Identity, User, carrying, inbox
from peerseal.messaging import EventConsumer, EventPublisher, Message
from peerseal.outbox import Outbox, create_tables, outbox_table
from peerseal.testing import MemoryRegistry
from tests.docs.pages import block_with
from tests.support.waiting import until

PAGE = "docs/how-to/messaging.md"
METADATA = MetaData()
INBOX = inbox.inbox_table(METADATA)
INVOICES, ORDERS = (Table(name, METADATA, Column("user", String)) for name in ("invoices", "orders"))


class Broker:
    """Both ends of a broker in memory."""

    def __init__(self) -> None:
        self.messages: Queue[Message] = Queue()

    def send(self, topic: str, payload: bytes, headers: Iterable[tuple[str, bytes]], key: bytes | None = None) -> None:
        self.messages.put(Message(topic, payload, tuple(headers), key, origin="1"))

    def receive(self, timeout: float) -> Message | None:
        try:
            return self.messages.get(timeout=timeout)
        except Empty:
            return None

    def flush(self, timeout: float) -> None:
        """Everything is there."""

    def done(self, message: Message) -> None:
        """Nothing comes again."""

    def hold(self, message: Message, seconds: float) -> bool:
        return True

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = create_engine(f"sqlite:///{tmp_path / 'database.sqlite3'}", connect_args={"timeout": 30})
    METADATA.create_all(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def names(peerseal_registry: MemoryRegistry, engine: Engine) -> dict[str, Any]:
    """What the page's programs use: the modules that they import, and the application's own things."""
    broker, identity = Broker(), peerseal_registry.identity("client-service")
    own = {"broker": broker, "identity": identity, "engine": engine, "payload": b"{}", "event_id": "1", "url": "any"}
    ends = {"open_outlet": lambda _: broker, "open_inlet": lambda *_: broker}
    classes = (EventPublisher, EventConsumer, EventVerifier, Outbox, timedelta)
    return own | ends | {one.__name__: one for one in classes}


@pytest.fixture(autouse=True)
def transaction(names: dict[str, Any], peerseal_registry: MemoryRegistry) -> Iterator[None]:
    """The page publishes while there is a transaction of a user."""
    peerseal_registry.set_domain(minters=["client-service"])
    ada = User("ada", "https://login.example.com", frozenset({"trigger_invoicing"}), "jti", 2**40, {})
    with carrying(names["identity"].mint_transaction(ada, scope=["trigger_invoicing"])):
        yield


@responses.activate
def test_an_event_is_published_and_handled_once(names: dict[str, Any], peerseal_registry: MemoryRegistry) -> None:
    consuming: Identity = peerseal_registry.identity("invoicing")
    cases = consuming.session("cases", "http://cases")
    handling: dict[str, Any] = {**names, "cases": cases, "inbox": inbox, "INBOX": INBOX, "time": time}
    exec(block_with(PAGE, "def handle").replace("..., ", ""), handling | {"invoices": INVOICES}, handling)
    exec(block_with(PAGE, "EventPublisher("), names)
    about = {"audience": "jobs.example.com", "scope": "trigger_invoicing", "event_id": "1"}
    names["publisher"].publish("OrderCreated", b"{}", **about)  # once more
    left = [1, 2]

    def handle(event: Any) -> None:
        responses.get(f"http://cases/cases/{event.transaction_id}", json={})
        handling["handle"](event)
        left.pop()
        if not left:
            consumer_names["consumer"].stop()

    quiet = SimpleNamespace(signal=lambda *_: None, SIGTERM=signal.SIGTERM)
    consumer_names = names | {"identity": consuming, "handle": handle, "signal": quiet}
    exec(block_with(PAGE, "EventConsumer("), consumer_names)
    with names["engine"].connect() as connection:
        assert connection.execute(select(INVOICES.c.user)).scalars().all() == ["ada"]


def test_an_event_leaves_the_outbox_after_the_commit(names: dict[str, Any]) -> None:
    tables = {"metadata": MetaData(), "outbox_table": outbox_table, "create_tables": create_tables}
    names |= tables | {"orders": ORDERS, "order_id": "7"}
    exec(block_with(PAGE, "Outbox(engine").replace("values(...)", "values(user='ada')"), names)
    until(lambda: not names["broker"].messages.empty())
    sent = names["broker"].messages.get()
    assert (sent.topic, sent.payload, sent.key) == ("OrderCreated", b"{}", b"7")
    assert names["outbox"].stop()
