"""What becomes of events while a broker is killed, stopped or frozen, and while members of a group come and go."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import pytest

from peerseal.errors import BrokerUnavailable
from peerseal.messaging import EventPublisher
from tests.brokers.conftest import RealBroker
from tests.messaging.world import AUDIENCE, SCOPE, World
from tests.support.brokers import eventually

EVENTS = tuple(f"e-{number:04d}" for number in range(600))


@contextmanager
def publishing(world: World, events: Sequence[str]) -> Iterator[None]:
    """A thread publishes them, each until the broker has confirmed it; it has, at the end of the block."""

    def publish() -> None:
        for event_id in events:
            confirmed = False
            while not confirmed:
                with suppress(BrokerUnavailable):
                    world.publish(event_id)
                    confirmed = True

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield
    finally:
        thread.join()


@contextmanager
def load(world: World) -> Iterator[list[str]]:
    """The ids of events that are published, some hundred a second, as long as the block runs."""
    events: list[str] = []
    enough = threading.Event()

    def publish() -> None:
        while not enough.wait(0.005):
            events.append(f"e-{len(events):05d}")
            world.publish(events[-1])

    thread = threading.Thread(target=publish)
    thread.start()
    try:
        yield events
    finally:
        enough.set()
        thread.join()


def until_invoiced(world: World, events: Sequence[str]) -> None:
    eventually(lambda: world.invoices() == sorted(events), "every event has its one invoice")


def test_a_broker_killed_under_load_loses_nothing_and_nothing_counts_twice(world: World, broker: RealBroker) -> None:
    running = world.running(world.store)
    with publishing(world, EVENTS):
        for handled in (100, 300):
            running.until_handled(handled)
            broker.kill()
            broker.start()
    until_invoiced(world, EVENTS)
    running.stop()
    assert running.consumer.counts.refused == {}


AWAY: dict[str, tuple[Callable[[RealBroker], None], Callable[[RealBroker], None]]] = {
    "stopped": (lambda broker: broker.stop(), lambda broker: broker.start()),
    "killed": (lambda broker: broker.kill(), lambda broker: broker.start()),
    "frozen": (lambda broker: broker.freeze(), lambda broker: broker.thaw()),
}


@pytest.mark.parametrize(("leave", "return_"), AWAY.values(), ids=AWAY)
def test_while_the_broker_is_away_a_publisher_learns_it_in_time_and_goes_on_later(
    world: World, broker: RealBroker, leave: Callable[[RealBroker], None], return_: Callable[[RealBroker], None]
) -> None:
    publisher = EventPublisher(world.client, world.outlet)
    world.publish("e-0")
    leave(broker)
    try:
        began = time.monotonic()
        publisher.publish(world.topic, b"{}", audience=AUDIENCE, scope=SCOPE, event_id="e-1", transaction_id="t-1")
        with pytest.raises(BrokerUnavailable):
            publisher.flush(2.0)
        assert time.monotonic() - began < 8
    finally:
        return_(broker)
    world.publish("e-2")
    world.running(world.store)
    eventually(lambda: {"e-0", "e-2"} <= set(world.invoices()), f"invoiced: {world.invoices()}")


def test_a_consumer_that_starts_before_its_broker_waits_for_it(world: World, broker: RealBroker) -> None:
    world.publish("e-1")
    broker.stop()
    running = world.running(world.store)
    world.outlet.send(world.topic, b"", [])
    with pytest.raises(BrokerUnavailable):
        world.outlet.flush(0.5)
    assert running.consumer.counts.handled == 0
    broker.start()
    running.until_handled(1)
    assert world.invoices() == ["e-1"]


def test_members_come_and_go_under_load(world: World, broker: RealBroker) -> None:
    first = world.running(world.store)
    with load(world) as events:
        first.until_handled(20)
        second = world.running(world.store)
        second.until_handled(20)
        first.stop()
        third = world.running(world.store)
        third.until_handled(20)
    until_invoiced(world, events)
    second.stop()
    third.stop()


def test_a_frozen_broker_ends_no_consumer_that_waits(world: World, broker: RealBroker) -> None:
    world.publish("e-1")
    world.registry.down = True
    running = world.running(world.store, pauses=(0.2,))
    eventually(lambda: running.consumer.counts.retried.get("trust_unavailable", 0) >= 1, "held")
    broker.freeze()
    try:
        so_far = running.consumer.counts.retried["trust_unavailable"]
        eventually(lambda: running.consumer.counts.retried["trust_unavailable"] >= so_far + 3, "tried again meanwhile")
    finally:
        broker.thaw()
    world.registry.down = False
    until_invoiced(world, ["e-1"])
