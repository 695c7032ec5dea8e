"""Messages that no honest publisher sends, and dead letters that RabbitMQ does not take: the next event is handled."""

import struct
from collections.abc import Callable
from contextlib import closing, suppress
from datetime import timedelta
from typing import Any

import amqp
import pytest

from demo.processes import LOOPBACK
from peerseal import Event, EventVerifier
from peerseal.messaging import SIZE_HEADER, EventConsumer, open_inlet, open_outlet
from peerseal.rabbitmq import declare
from tests.messaging.world import AUDIENCE, QUICK, SCOPE, World
from tests.support.rabbitmq import RabbitMQ


@pytest.fixture
def broker(rabbitmq: RabbitMQ) -> RabbitMQ:
    """Running."""
    if not rabbitmq.running:
        rabbitmq.start()
    return rabbitmq


class Crafted(amqp.Message):  # type: ignore[misc]
    """A message whose properties are these bytes."""

    raw = b""

    def _serialize_properties(self) -> bytes:
        return self.raw


def table(fields: bytes) -> bytes:
    """Properties that are nothing but headers."""
    return b"\x20\x00" + struct.pack(">I", len(fields)) + fields


def text(name: bytes, value: bytes) -> bytes:
    """A header of type S."""
    return bytes([len(name)]) + name + b"S" + struct.pack(">I", len(value)) + value


def array(name: bytes, *values: bytes) -> bytes:
    """A header of type A."""
    items = b"".join(b"S" + struct.pack(">I", len(value)) + value for value in values)
    return bytes([len(name)]) + name + b"A" + struct.pack(">I", len(items)) + items


def short(flags: int, value: bytes) -> bytes:
    """One property that is a short text."""
    return struct.pack(">H", flags) + bytes([len(value)]) + value


BENT: dict[str, bytes] = {
    "half a surrogate in a name": table(text(b"a\xed\xa0\x80", b"x")),
    "half a surrogate in the token's name": table(text(b"authorization\xed\xb0\x80", b"Bearer x")),
    "half a surrogate in a value": table(text(b"authorization", b"\xed\xa0\x80")),
    "a name of 255 bytes": table(text(b"n" * 255, b"x")),
    "an empty name": table(text(b"", b"x")),
    "one route": table(array(b"CC", b"elsewhere")),
    "several routes": table(array(b"CC", b"a", b"b") + array(b"BCC", b"c")),
    "the same name three times": table(text(b"a", b"1") + text(b"a", b"2") + text(b"a", b"3")),
    "our own names": table(b"".join(text(b"peerseal-" + name, b"x") for name in (b"code", b"origin", b"size", b"key"))),
    "a key of 100,000 bytes": table(text(b"peerseal-key", b"k" * 100_000)),
    "headers that fill a frame": table(text(b"authorization", b"Bearer x") + text(b"h", b"x" * 130_000)),
    "ten thousand headers": table(b"".join(text(b"%d" % number, b"") for number in range(10_000))),
    "every type of value": table(
        b"\x01abA\x00\x00\x00\x00" + b"\x01bb\xff" + b"\x01cB\xff" + b"\x01ds\xff\xff" + b"\x01eu\xff\xff"
        + b"\x01fI\xff\xff\xff\xff" + b"\x01gi\xff\xff\xff\xff" + b"\x01hl" + b"\xff" * 8 + b"\x01jf\x7f\xc0\x00\x00"
        + b"\x01kd\x7f\xf8" + b"\x00" * 6 + b"\x01lD\xff\xff\xff\xff\xff" + b"\x01mT" + b"\x00" * 8
        + b"\x01nF\x00\x00\x00\x00" + b"\x01oV" + b"\x01pt\x02" + b"\x01qx\x00\x00\x00\x01\xff"
    ),
    "a content type that is not text": short(0x8000, b"\xff\xfe"),
    "an encoding that is none": short(0x4000, b"utf-7\xff"),
    "a delivery mode of seven": b"\x10\x00\x07",
    "a priority of 255": b"\x08\x00\xff",
    "a correlation that is not text": short(0x0400, b"\xff" * 255),
    "an answer to nowhere": short(0x0200, b"\xff" * 255),
    "an end in 100 days": short(0x0100, b"8640000000"),
    "a message id that is not text": short(0x0080, b"\xff\x00"),
    "a time beyond all calendars": b"\x00\x40" + b"\xff" * 8,
    "the user that it is": short(0x0010, b"guest"),
    "an application that is not text": short(0x0008, b"\xff"),
}  # fmt: skip

NEVER_TAKEN = {"headers that fill a frame", "ten thousand headers", "every type of value", "a delivery mode of seven"}
"""Those that some releases of RabbitMQ do not take themselves."""


def test_each_is_put_aside_with_its_payload_and_the_next_event_goes_through(world: World, broker: RabbitMQ) -> None:
    sent = [name for name, raw in BENT.items() if taken(broker, world.topic, name.encode(), raw)]
    assert set(BENT) - set(sent) <= NEVER_TAKEN
    world.publish("e-last")
    running = world.running(world.store)
    running.until_refused(len(sent))
    running.until_handled(1)
    assert running.consumer.counts.retried == {}
    assert [letter.payload.decode() for _, _, letter in world.dead_letters(len(sent))] == sent


def taken(broker: RabbitMQ, topic: str, payload: bytes, properties: bytes) -> bool:
    """Whether the broker takes such a message: of some it breaks the publisher's own connection."""
    message = Crafted(payload)
    message.raw = properties
    with suppress(amqp.AMQPError, OSError):
        with amqp.Connection(f"{LOOPBACK}:{broker.port}", confirm_publish=True) as connection:
            connection.channel().basic_publish(message, topic, "", mandatory=True, timeout=10)
        return True
    return False


def consumer_of(world: World, broker: RabbitMQ) -> EventConsumer:
    """One that makes no exchange and no queue."""
    settings = {"declare": False}
    verifier = EventVerifier(
        world.invoicing.trust, audience=AUDIENCE, allow={"client": {SCOPE}}, max_age=timedelta(days=1)
    )
    inlet = open_inlet(broker.url, world.group, [world.topic], settings=settings)
    return EventConsumer(world.invoicing, verifier, inlet, open_outlet(broker.url, settings=settings), pauses=QUICK)


def no_queue(channel: Any, dead: str) -> None:
    channel.queue_delete(dead)


def no_exchange(channel: Any, dead: str) -> None:
    channel.exchange_delete(dead)


def no_room(channel: Any, dead: str) -> None:
    channel.queue_delete(dead)
    arguments = {"x-max-length": 0, "x-overflow": "reject-publish"}
    channel.queue_declare(dead, durable=True, auto_delete=False, arguments=arguments)
    channel.queue_bind(dead, dead)


@pytest.mark.parametrize("spoil", [no_queue, no_exchange, no_room])
def test_a_dead_letter_that_is_never_taken_is_tried_a_few_times_and_the_next_event_goes_through(
    world: World, broker: RabbitMQ, spoil: Callable[[Any, str], None], caplog: pytest.LogCaptureFixture
) -> None:
    with amqp.Connection(f"{LOOPBACK}:{broker.port}") as connection:
        spoil(connection.channel(), f"{world.topic}.dlq")
    world.send(b"12345", {})
    world.publish("e-2")
    consumer, seen = consumer_of(world, broker), list[str]()

    def handle(event: Event) -> None:
        seen.append(event.id)
        consumer.stop()

    consumer.run(handle, wait=0.1)
    assert seen == ["e-2"]
    assert consumer.counts.retried == {"message_not_taken": EventConsumer.DEAD_LETTER_ATTEMPTS - 1}
    assert consumer.counts.refused == {"missing_token": 1}
    assert "missing_token, 5 bytes" in caplog.text, "what it was, and where, is in the log"


def test_a_dead_letter_that_was_not_taken_keeps_no_later_one_back(world: World, broker: RabbitMQ) -> None:
    dead = f"{world.topic}.dlq"
    with closing(open_outlet(broker.url, settings={"declare": False})) as outlet:
        with amqp.Connection(f"{LOOPBACK}:{broker.port}") as connection:
            no_queue(connection.channel(), dead)
        for _ in range(2):
            outlet.send(dead, b"first", [])
            with pytest.raises(Exception, match="no queue takes"):
                outlet.flush(5)
        declare(broker.url, world.group, [world.topic])
        outlet.send(dead, b"second", [])
        outlet.flush(5)
    [letter] = world.ends.read(dead, 1)
    assert (letter.payload, dict(letter.headers).get(SIZE_HEADER)) == (b"second", None)
