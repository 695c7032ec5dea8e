"""The examples on a real Apache Kafka: as many orders as invoices, through kills, rotations and a revocation."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import create_engine, func, select
from sqlalchemy.exc import OperationalError

import peerseal
from demo.stack import CLIENT, DEAD_LETTERS, RESOURCE, TOPIC, Stack
from peerseal import RotationSchedule
from peerseal.messaging import CODE_HEADER, open_inlet, open_outlet
from resource_service.database import INVOICES
from tests.support.apache_kafka import ApacheKafka

ORDERS = int(os.environ.get("TEST_ORDERS", "10000"))
KILLED_AT = tuple(ORDERS * percent // 100 for percent in (15, 40, 70))
ROTATED_AT = tuple(ORDERS * percent // 100 for percent in (10, 25, 45, 65, 85))
PATIENCE = 240.0
SOON = RotationSchedule(every=3600.0, lead=0.5, overlap=600.0)

QUICKLY_MISSED = {
    "group.consumer.min.session.timeout.ms": "5000",
    "group.consumer.session.timeout.ms": "5000",
    "group.consumer.min.heartbeat.interval.ms": "1000",
    "group.consumer.heartbeat.interval.ms": "1000",
}
"""A member that was killed is missed in seconds, not in three quarters of a minute."""

pytestmark = [pytest.mark.brokers, pytest.mark.timeout(600)]


@dataclass(frozen=True, slots=True)
class Order:
    """The order with that number, and what its invoice must say."""

    number: int

    @property
    def payload(self) -> bytes:
        items = [{"itemID": str(item), "quantity": item, "price": 100 + self.number} for item in range(1, 4)]
        ids = {"eventID": f"e-{self.number}", "transactionID": f"t-{self.number}"}
        return json.dumps({**ids, "utcTime": "2026-01-01T00:00:00Z", "items": items}).encode()

    @property
    def amount(self) -> int:
        return (1 + 2 + 3) * (100 + self.number)

    def headers(self, publisher: peerseal.Identity) -> list[tuple[str, bytes]]:
        """As the publisher's key signs it now."""
        signed = publisher.sign_event(
            self.payload,
            topic=TOPIC,
            audience="jobs.example.com",
            scope="trigger_invoicing",
            event_id=f"e-{self.number}",
            transaction_id=f"t-{self.number}",
            subject=f"user-{self.number % 10}",
        )
        return [(name, value.encode()) for name, value in signed.items()]


class House:
    """The registry, resource-service, invoicing and a publisher, on one broker."""

    def __init__(self, stack: Stack, kafka: ApacheKafka) -> None:
        self.stack = stack
        self.url = kafka.url
        stack.start_registry()
        stack.let_users_in()
        stack.start_case_service()
        self._resource = stack.start_resource_service(preload=True)
        self._database = create_engine(f"sqlite:///{stack.root / RESOURCE / 'host' / 'invoices.sqlite3'}")
        self.invoicing = stack.start_invoicing(self._resource.url, self.url)
        settings = stack.service_settings(CLIENT)
        token = Path(settings["PEERSEAL_JOIN_TOKEN_FILE"]).read_text()
        self.publisher = peerseal.Identity(CLIENT, registry=stack.registry_url, join_token=token, rotation=SOON).start()
        self.outlet = open_outlet(self.url)

    def kill_the_consumer(self) -> None:
        """With -9, and another one started."""
        self.invoicing.kill()
        self.invoicing = self.stack.start_invoicing(self._resource.url, self.url)

    def rotate_the_publisher(self) -> str:
        """The kid that signs from now on."""
        new = self.publisher.rotate().key_id
        deadline = time.monotonic() + 30
        while self.publisher.credentials.key_id != new:
            assert time.monotonic() < deadline, "the new key does not sign"
            time.sleep(0.02)
        return new

    def invoiced(self) -> int:
        """How many invoices there are."""
        try:
            with self._database.connect() as connection:
                return connection.execute(select(func.count()).select_from(INVOICES)).scalar_one()
        except OperationalError:
            return 0

    def invoices(self) -> dict[str, tuple[str, int]]:
        """User and amount by transaction; each transaction once, or an AssertionError."""
        columns = INVOICES.c.transaction_id, INVOICES.c.user_id, INVOICES.c.amount
        with self._database.connect() as connection:
            rows = connection.execute(select(*columns)).all()
        found = {transaction: (user, amount) for transaction, user, amount in rows}
        assert len(found) == len(rows), "two invoices for one transaction"
        return found

    def until_invoiced(self, count: int) -> None:
        deadline, seen = time.monotonic() + PATIENCE, -1
        while (now := self.invoiced()) < count:
            if now != seen:
                seen, deadline = now, time.monotonic() + PATIENCE
            assert time.monotonic() < deadline, f"{now} of {count} invoiced:\n{self.invoicing.output()[-3000:]}"
            time.sleep(0.05)

    def dead_letters(self, count: int) -> list[str]:
        """The codes of the first ``count``."""
        inlet, codes = open_inlet(self.url, "reader", [DEAD_LETTERS]), []
        deadline = time.monotonic() + PATIENCE
        try:
            while len(codes) < count:
                assert time.monotonic() < deadline, f"{len(codes)} of {count} dead letters"
                message = inlet.receive(0.2)
                if message is not None:
                    codes.append(dict(message.headers)[CODE_HEADER].decode())
                    inlet.done(message)
        finally:
            inlet.close()
        return codes

    def close(self) -> None:
        self.outlet.close()
        self.publisher.stop()
        self._database.dispose()


@contextmanager
def house(folder: Path) -> Iterator[House]:
    with ApacheKafka(folder, **QUICKLY_MISSED) as kafka, Stack(folder) as stack:
        kafka.create_topic(TOPIC, 4)
        kafka.create_topic(DEAD_LETTERS, 1)
        running = House(stack, kafka)
        try:
            yield running
        finally:
            running.close()


def test_each_order_makes_one_invoice_through_three_kills_and_five_rotations(tmp_path: Path) -> None:
    with house(tmp_path) as running:
        kids, kills = {running.publisher.credentials.key_id}, list(KILLED_AT)
        for number in range(ORDERS):
            if number in ROTATED_AT:
                kids.add(running.rotate_the_publisher())
            order = Order(number)
            running.outlet.send(TOPIC, order.payload, order.headers(running.publisher), b"%d" % number)
            if number % 250 == 0 and kills and running.invoiced() >= kills[0]:
                running.kill_the_consumer()
                kills.pop(0)
        running.outlet.flush(60)
        for count in kills:
            running.until_invoiced(count)
            running.kill_the_consumer()
        running.until_invoiced(ORDERS)
        assert len(kids) == 6
        expected = {f"t-{n}": (f"user-{n % 10}", Order(n).amount) for n in range(ORDERS)}
        assert running.invoices() == expected


def test_after_a_revocation_nothing_of_that_key_is_invoiced_and_all_of_it_is_put_aside(tmp_path: Path) -> None:
    half = 500
    with house(tmp_path) as running:
        signed = [(Order(number), Order(number).headers(running.publisher)) for number in range(2 * half)]
        for order, headers in signed[:half]:
            running.outlet.send(TOPIC, order.payload, headers)
        running.until_invoiced(half)
        running.stack.operate("revoke", running.publisher.credentials.key_id)
        time.sleep(2)  # in which the consumer hears of it: the promise is a second
        for order, headers in signed[half:]:
            running.outlet.send(TOPIC, order.payload, headers)
        running.outlet.flush(60)
        assert running.dead_letters(half) == ["revoked_key"] * half
        assert set(running.invoices()) == {f"t-{number}" for number in range(half)}
