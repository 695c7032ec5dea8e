"""Messages of which any part is bent: each is put aside with its code, and the next one goes on."""

from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

import amqp
import pytest
from amqp.serialization import dumps
from hypothesis import given
from hypothesis import strategies as st

from peerseal import EventVerifier
from peerseal.amqp import OutgoingMessage, headers_and_key
from peerseal.errors import BrokerUnavailable, MessageNotTaken, MessageRefused, MessageTooLarge
from peerseal.messaging import CODE_HEADER, ORIGIN_HEADER, SIZE_HEADER, EventConsumer, Headers, Message
from peerseal.testing import MemoryRegistry

TOPIC = "orders"
FRAME = 1 << 17
"""Bytes of RabbitMQ's longest, by default."""


class Inlet:
    """Messages in a list; what is held is told."""

    def __init__(self, *messages: Message) -> None:
        self.waiting = list(messages)
        self.done_with: list[Message] = []
        self.held = 0

    def receive(self, timeout: float) -> Message | None:
        return self.waiting.pop(0) if self.waiting else None

    def done(self, message: Message) -> None:
        self.done_with.append(message)

    def hold(self, message: Message, seconds: float) -> bool:
        self.held += 1
        return False

    def close(self) -> None:
        pass


class Outlet:
    """Dead letters in a list. ``refuse`` raises for those that a broker or its client does not take."""

    def __init__(self, refuse: Callable[[Headers, bytes], None] = lambda _, __: None) -> None:
        self.letters: list[tuple[bytes, dict[str, bytes]]] = []
        self._refuse = refuse

    def send(self, topic: str, payload: bytes, headers: Iterable[tuple[str, bytes]], key: bytes | None = None) -> None:
        pairs = tuple(headers)
        self._refuse(pairs, payload)
        self.letters.append((payload, dict(pairs)))

    def flush(self, timeout: float) -> None:
        pass

    def close(self) -> None:
        pass


def consumed(outlet: Outlet, *messages: Message, inlet: Inlet | None = None) -> Inlet:
    inlet = inlet or Inlet(*messages)
    with MemoryRegistry() as registry:
        identity = registry.identity("consumer")
        verifier = EventVerifier(identity.trust, audience="jobs", allow={}, max_age=timedelta(days=1))
        consumer = EventConsumer(identity, verifier, inlet, outlet, pauses=(0.0,))
        while consumer.run_once(lambda _: None, 0) is not None:
            pass
    return inlet


def message(headers: Any = (), payload: bytes = b"{}", origin: str = "orders/0@1", key: bytes | None = None) -> Message:
    return Message(TOPIC, payload, headers, key, origin, None)


BENT: dict[str, Message] = {
    "half a surrogate in a header's name": message((("a\ud800", b"b"),)),
    "half a surrogate in the token's name": message((("authorization\udc00", b"Bearer a.b.c"),)),
    "a token of any bytes": message((("authorization", bytes(range(256))),)),
    "two tokens": message((("authorization", b"Bearer a.b.c"), ("Authorization", b"Bearer a.b.c"))),
    "an empty name": message((("", b"x"),)),
    "a name of 10,000 characters": message((("a" * 10_000, b"x"),)),
    "no payload": message(payload=b""),
    "an origin that is no text": message(origin="orders/\udcff@1"),
    "an origin that is none": message(origin=None),  # type: ignore[arg-type]
    "an origin of bytes": message(origin=b"orders"),  # type: ignore[arg-type]
    "a payload that is none": message((("a", None),), payload=None),  # type: ignore[arg-type]
    "a value that is no bytes": message((("a", None),)),
    "headers that are no pairs": message(("a",)),
    "headers that are none": message(None),
}


@pytest.mark.parametrize("bent", BENT.values(), ids=BENT)
def test_it_is_put_aside_and_the_next_one_goes_on(bent: Message) -> None:
    outlet = Outlet()
    inlet = consumed(outlet, bent, message())
    assert inlet.held == 0
    assert len(inlet.done_with) == 2
    assert [set(headers) >= {CODE_HEADER, ORIGIN_HEADER} for _, headers in outlet.letters] == [True, True]


@pytest.mark.parametrize(
    "error",
    [
        UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogate"),
        TypeError("header"),
        MessageTooLarge("too large"),
        amqp.exceptions.AMQPError("frame"),
    ],
)
def test_what_cannot_be_built_or_sent_falls_back_to_code_origin_and_size(error: Exception) -> None:
    def refuse(headers: Headers, payload: bytes) -> None:
        if "x-odd" in dict(headers):
            raise error

    outlet = Outlet(refuse)
    inlet = consumed(outlet, message((("x-odd", b"1"),), payload=b"12345"), message())
    assert len(inlet.done_with) == 2
    payload, headers = outlet.letters[0]
    assert (payload, headers[SIZE_HEADER], headers[CODE_HEADER]) == (b"", b"5", b"missing_token")


def test_no_header_of_a_publisher_passes_for_one_of_ours() -> None:
    outlet = Outlet()
    forged = tuple((name.upper(), b"forged") for name in (CODE_HEADER, ORIGIN_HEADER, SIZE_HEADER))
    consumed(outlet, message(forged))
    [(_, headers)] = outlet.letters
    assert headers == {CODE_HEADER: b"missing_token", ORIGIN_HEADER: b"orders/0@1"}


class PatientInlet(Inlet):
    """Whose messages stay ours while they are held."""

    def hold(self, message: Message, seconds: float) -> bool:
        super().hold(message, seconds)
        return True


def not_taken(headers: Headers, payload: bytes) -> None:
    raise MessageNotTaken("no queue is there")


def test_a_dead_letter_that_no_broker_takes_is_tried_a_few_times_and_the_next_one_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    inlet = PatientInlet(message(payload=b"12345"), message())
    consumed(Outlet(not_taken), inlet=inlet)
    assert inlet.held == 2 * (EventConsumer.DEAD_LETTER_ATTEMPTS - 1)
    assert len(inlet.done_with) == 2
    assert "orders/0@1 (missing_token, 5 bytes)" in caplog.text


def test_a_dead_letter_that_is_taken_in_the_end_is_whole() -> None:
    """The queue was made meanwhile."""
    attempts: list[bytes] = []

    def refuse(headers: Headers, payload: bytes) -> None:
        attempts.append(payload)
        if len(attempts) <= 4:
            raise MessageNotTaken("no queue is there")

    outlet, inlet = Outlet(refuse), PatientInlet(message(payload=b"12345"))
    consumed(outlet, inlet=inlet)
    assert attempts == [b"12345", b"", b"12345", b"", b"12345"]
    assert [payload for payload, _ in outlet.letters] == [b"12345"]


def handled(handle: Callable[[object], None], outlet: Outlet) -> EventConsumer:
    """A consumer that an honest event came to."""
    with MemoryRegistry() as registry:
        registry.set_domain(minters=["consumer"])
        client, identity = registry.identity("client"), registry.identity("consumer")
        signed = client.sign_event(
            b"{}", topic=TOPIC, audience="jobs", scope="run", event_id="e-1", transaction_id="t-1", subject="ada"
        )
        headers = tuple((name, value.encode()) for name, value in signed.items())
        verifier = EventVerifier(identity.trust, audience="jobs", allow={"client": {"run"}}, max_age=timedelta(days=1))
        consumer = EventConsumer(identity, verifier, PatientInlet(message(headers)), outlet, pauses=(0.0,))
        consumer.run_once(handle, 0)
    return consumer


def test_a_message_that_the_application_cannot_send_is_its_own_failure() -> None:
    """It is tried again for as long as it takes, and is no refusal of the event."""
    failures = iter([MessageNotTaken("full")] * (EventConsumer.DEAD_LETTER_ATTEMPTS + 3))

    def handle(_: object) -> None:
        for failure in failures:
            raise failure

    consumer = handled(handle, Outlet(not_taken))
    assert (consumer.counts.handled, consumer.counts.refused) == (1, {})
    assert consumer.counts.retried == {"message_not_taken": EventConsumer.DEAD_LETTER_ATTEMPTS + 3}


@pytest.mark.parametrize("code", ["\ud800", "c" * 100_000, "", "\0\r\n"])
def test_whatever_code_an_application_gives_its_refusal_the_dead_letter_has_room_for_it(code: str) -> None:
    def handle(_: object) -> None:
        raise MessageRefused(code, "never")

    outlet = Outlet()
    handled(handle, outlet)
    [(payload, headers)] = outlet.letters
    assert payload == b"{}"
    assert len(headers[CODE_HEADER]) < 1000


def test_a_broker_that_is_away_loses_nothing() -> None:
    def refuse(headers: Headers, payload: bytes) -> None:
        raise BrokerUnavailable("away")

    outlet = Outlet(refuse)
    inlet = consumed(outlet, message())
    assert (inlet.done_with, inlet.held, outlet.letters) == ([], 1, [])


# ---- what AMQP brings in, and what goes out

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.binary(max_size=20) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.text(max_size=300) | st.binary(max_size=300) | st.sampled_from(["CC", "BCC", "a\ud800", "peerseal-key", ""])


@given(st.dictionaries(NAMES, VALUES, max_size=6))
def test_any_table_of_headers_comes_out_as_one_that_can_be_sent(table: dict[Any, Any]) -> None:
    headers, key = headers_and_key(table)
    letter = OutgoingMessage.of("orders.dlq", b"payload", headers, key)
    sent = letter.message(1, FRAME)
    parts = [(kind, sent.properties[name]) for name, kind in sent.PROPERTIES if name in sent.properties]
    assert dumps(b"".join(kind.encode() for kind, _ in parts), [value for _, value in parts])
    assert not {"CC", "BCC"} & sent.properties["application_headers"].keys()


@pytest.mark.parametrize("name", ["CC", "BCC"])
@pytest.mark.parametrize("routes", [[b"elsewhere"], [b"a", b"b"], b"elsewhere"])
def test_a_dead_letter_goes_where_it_belongs_and_to_no_queue_that_a_publisher_names(name: str, routes: Any) -> None:
    headers, _ = headers_and_key({name: routes})
    table = OutgoingMessage.of("orders.dlq", b"", headers, None).message(1, FRAME).properties["application_headers"]
    assert list(table) == [f"original-{name}"]
