"""Publishers and consumers of orders, on any broker."""

import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

from sqlalchemy import BigInteger, Column, MetaData, String, Table, create_engine, select

from peerseal import Event, EventVerifier, Identity
from peerseal.inbox import first_time, inbox_table
from peerseal.messaging import CODE_HEADER, ORIGIN_HEADER, EventConsumer, EventPublisher, Message, Outlet
from peerseal.protocol import jose
from peerseal.protocol.encoding import canonical_json, strict_json_object
from peerseal.protocol.tokens.event import EVENT_TYP
from peerseal.testing import MemoryRegistry
from tests.support.brokers import Ends, eventually
from tests.support.keys import signing_key

AUDIENCE, SCOPE = "jobs.example.com", "trigger_invoicing"
QUICK = (0.05,)
"""Pauses of consumers under test."""

metadata = MetaData()
INBOX = inbox_table(metadata)
INVOICES = Table("invoices", metadata, Column("event_id", String), Column("user", String), Column("at", BigInteger))

Handle = Callable[[Event], object]


class World:
    """A publisher ``client`` that may send SCOPE, a consumer ``invoicing``, one topic and one database."""

    def __init__(self, registry: MemoryRegistry, ends: Ends, folder: Path) -> None:
        self.registry = registry
        self.ends = ends
        self.topic = ends.broker.new_topic()
        self.key_dir = folder / "keys"
        self.client = registry.identity("client", key_dir=self.key_dir)
        self.stranger = registry.identity("stranger")
        self.invoicing = registry.identity("invoicing")
        self.group = f"{self.topic}-group"
        self.engine = create_engine(f"sqlite:///{folder / 'invoices.sqlite3'}", connect_args={"timeout": 30})
        metadata.create_all(self.engine)
        self._opened = ExitStack()
        self.outlet = ends.outlet()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()
        self.engine.dispose()

    # ---- what is sent

    def publish(self, event_id: str, payload: bytes = b"{}", *, by: Identity | None = None, **changes: Any) -> None:
        """An event, signed and confirmed by the broker."""
        publisher = EventPublisher(by or self.client, self.outlet)
        sent: dict[str, Any] = {"audience": AUDIENCE, "scope": SCOPE, "transaction_id": "t-1", "subject": "ada"}
        publisher.publish(self.topic, payload, event_id=event_id, **{**sent, **changes})
        publisher.flush()

    def signed(self, event_id: str, payload: bytes = b"{}", *, by: Identity | None = None, **changes: Any) -> str:
        """The value of an event's ``authorization`` header."""
        sent: dict[str, Any] = {"topic": self.topic, "audience": AUDIENCE, "scope": SCOPE, "transaction_id": "t-1"}
        return (by or self.client).sign_event(payload, event_id=event_id, **{**sent, **changes})["authorization"]

    def forged(self, event_id: str, **claims: Any) -> str:
        """As `signed`, by the publisher's own key, with claims that the SDK would not sign."""
        honest = jose.parse(self.signed(event_id).removeprefix("Bearer "))
        held = signing_key(self.key_dir, "client")
        header = jose.encode_header(jose.Header(held.pair.public.alg, held.kid, EVENT_TYP))
        payload = canonical_json({**strict_json_object(honest.payload), **claims})
        return f"Bearer {jose.compact(header, payload, held.pair.sign)}"

    def send(self, payload: bytes, headers: Mapping[str, str | bytes]) -> None:
        """Any message, confirmed by the broker."""
        raw = [(name, value.encode() if isinstance(value, str) else value) for name, value in headers.items()]
        self.outlet.send(self.topic, payload, raw)
        self.outlet.flush(10)

    # ---- who receives

    def consumer(self, *, dead_letters: Outlet | None = None, **options: Any) -> EventConsumer:
        """One more member of the group; the caller closes it, by `EventConsumer.run` or ``close``."""
        verifier = EventVerifier(
            self.invoicing.trust, audience=AUDIENCE, allow={"client": {SCOPE}}, max_age=timedelta(days=7)
        )
        inlet = self.ends.inlet(self.group, self.topic)
        outlet = dead_letters or self.ends.outlet()
        return EventConsumer(self.invoicing, verifier, inlet, outlet, **{"pauses": QUICK, **options})

    def running(self, handle: Handle, **options: Any) -> "Running":
        """A consumer at work in a thread until the end of the test, or until it is stopped."""
        return self._opened.enter_context(Running(self.consumer(**options), handle))

    def store(self, event: Event) -> None:
        """One invoice an event, with its row in the inbox, in one transaction."""
        with self.engine.begin() as connection:
            if first_time(connection, INBOX, event, now=0):
                connection.execute(INVOICES.insert().values(event_id=event.id, user=event.user, at=event.issued_at))

    def invoices(self) -> list[str]:
        """The ids of all events that have one."""
        with self.engine.connect() as connection:
            return sorted(connection.execute(select(INVOICES.c.event_id)).scalars())

    def dead_letters(self, count: int) -> list[tuple[str, str, Message]]:
        """Code, origin and message of the first ``count`` on the dead letters' topic, in order of arrival."""
        found = []
        for message in self.ends.read(f"{self.topic}.dlq", count):
            said = dict(message.headers)
            found.append((said[CODE_HEADER].decode(), said[ORIGIN_HEADER].decode(), message))
        return found


class Running:
    """A consumer's loop in a thread."""

    def __init__(self, consumer: EventConsumer, handle: Handle) -> None:
        self.consumer = consumer
        self._thread = threading.Thread(target=consumer.run, args=(handle,), kwargs={"wait": 0.05})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End it, with what was done told to the broker."""
        self.consumer.stop()
        self._thread.join()

    def until_handled(self, count: int) -> None:
        """Wait until so many events were handled."""
        eventually(lambda: self.consumer.counts.handled >= count, f"{count} events handled: {self.consumer.counts}")

    def until_refused(self, count: int) -> None:
        """Wait until so many messages were refused."""
        eventually(
            lambda: sum(self.consumer.counts.refused.values()) >= count, f"{count} refused: {self.consumer.counts}"
        )
