"""One trace from the publisher to the consumer, on each broker."""

from collections.abc import Iterator

import pytest
from opentelemetry.trace import SpanKind

from peerseal.runtime.tracing import span
from tests.messaging.world import World
from tests.support.spans import Seen, id_of, parent_of, seeing


@pytest.fixture
def seen(world: World) -> Iterator[Seen]:
    """Spans are made from now on."""
    with seeing() as seen:
        yield seen


def test_an_event_is_processed_in_the_trace_that_created_it(seen: Seen, world: World) -> None:
    with span("the.request"):
        world.publish("e-1")
    running = world.running(lambda _: None)
    running.until_handled(1)
    running.stop()
    create, send, process = (seen.named(f"{did} {world.topic}") for did in ("create", "send", "process"))
    assert (create.kind, send.kind, process.kind) == (SpanKind.PRODUCER, SpanKind.CLIENT, SpanKind.CONSUMER)
    assert parent_of(create) == parent_of(send) == id_of(seen.named("the.request"))
    assert parent_of(process) == id_of(create)
    system = "rabbitmq" if world.ends.broker.url.startswith("amqp") else "kafka"
    assert [(each.attributes or {})["messaging.system"] for each in (send, process)] == [system] * 2


def test_an_event_with_a_broken_traceparent_begins_a_trace_of_its_own(seen: Seen, world: World) -> None:
    world.send(b"{}", {"authorization": world.signed("e-1"), "traceparent": b"00-\xff\x00zz"})
    running = world.running(lambda _: None)
    running.until_handled(1)
    running.stop()
    assert seen.named(f"process {world.topic}").parent is None


def test_an_event_that_is_refused_is_an_error_of_its_verification(seen: Seen, world: World) -> None:
    world.send(b"changed", {"authorization": world.signed("e-1")})
    running = world.running(lambda _: None)
    running.until_refused(1)
    running.stop()
    verify = seen.named("peerseal.verify")
    assert (verify.attributes or {})["error.type"] == "wrong_payload"
    assert parent_of(verify) == id_of(seen.named(f"process {world.topic}"))
