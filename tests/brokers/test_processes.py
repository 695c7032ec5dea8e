"""A consumer in a process of its own, with a real registry and a real database, killed in the middle."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from sqlalchemy import create_engine, select
from sqlalchemy.exc import OperationalError

import peerseal
from demo.processes import Process
from peerseal.messaging import EventPublisher, open_outlet
from tests.brokers.conftest import RealBroker
from tests.brokers.invoicer import PUBLISHER
from tests.messaging.world import AUDIENCE, INVOICES, SCOPE
from tests.support.brokers import eventually
from tests.support.stack import Stack

EVENTS = tuple(f"e-{number:04d}" for number in range(1500))
KILLED_AT = (200, 600, 1000)


class Invoicing:
    """The service ``invoicing`` of a stack, one process after another."""

    def __init__(self, stack: Stack, broker: RealBroker, topic: str, database: Path) -> None:
        self._stack = stack
        self._engine = create_engine(f"sqlite:///{database}")
        self._settings = stack.service_settings("invoicing") | {
            "DATABASE_URL": f"sqlite:///{database}",
            "BROKER_URL": broker.url,
            "GROUP": f"{topic}-group",
            "TOPIC": topic,
            "INLET": json.dumps(dict(broker.settings)),
        }

    def start(self) -> Process:
        """Starting up."""
        command = [sys.executable, "-m", "tests.brokers.invoicer"]
        log = self._stack.log("invoicing")
        return self._stack.keep(Process("invoicing", command, log=log, settings=self._settings))

    def invoices(self) -> Sequence[str]:
        """The ids of all events that have one; none while there is no table."""
        try:
            with self._engine.connect() as connection:
                return sorted(connection.execute(select(INVOICES.c.event_id)).scalars())
        except OperationalError:
            return []


def publish_all(stack: Stack, broker: RealBroker, topic: str) -> None:
    """Every event, confirmed by the broker."""
    identity = peerseal.Identity.from_env(stack.service_settings(PUBLISHER) | {"PEERSEAL_RETIRE_AT_EXIT": "0"}).start()
    sent = {"audience": AUDIENCE, "scope": SCOPE, "transaction_id": "t-1"}
    try:
        with EventPublisher(identity, open_outlet(broker.url)) as publisher:
            for event_id in EVENTS:
                publisher.publish(topic, b"{}", event_id=event_id, **sent)
    finally:
        identity.stop()


def test_a_consumer_killed_three_times_makes_one_invoice_for_each_event(broker: RealBroker, tmp_path: Path) -> None:
    topic = broker.new_topic()
    with Stack(tmp_path) as stack:
        stack.start_registry()
        invoicing = Invoicing(stack, broker, topic, tmp_path / "invoices.sqlite3")
        process = invoicing.start()
        publish_all(stack, broker, topic)
        for count in KILLED_AT:
            until(lambda least=count: len(invoicing.invoices()) >= least, process)
            process.kill()
            assert len(invoicing.invoices()) < len(EVENTS), "killed in the middle"
            process = invoicing.start()
        until(lambda: len(invoicing.invoices()) >= len(EVENTS), process)
        process.stop()
        assert invoicing.invoices() == sorted(EVENTS)


def until(done: Callable[[], bool], process: Process) -> None:
    """Wait until it is so; what the process printed says why it is not."""
    try:
        eventually(done, "every invoice in time")
    except AssertionError as error:
        raise AssertionError(process.output()[-4000:]) from error
