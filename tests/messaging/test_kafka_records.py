"""Records that no client of ours would write, from any that may write to the topic: each is put aside, and the next
good event goes through."""

import pytest

from tests.messaging.world import World
from tests.support.brokers import Broker, Ends
from tests.support.raw_kafka import Pairs, produce


@pytest.fixture(params=["built_in", pytest.param("apache_kafka", marks=pytest.mark.brokers)])
def broker(request: pytest.FixtureRequest) -> Broker:
    """Those that speak Kafka's protocol."""
    found: Broker = request.getfixturevalue(request.param)
    return found


RECORDS: dict[str, Pairs] = {
    "a header's name that is not text": [(b"\xff\xfe", b"x"), (b"authorization", b"Bearer x")],
    "half a surrogate": [(b"\xed\xa0\x80", b"x")],
    "a name with NUL": [(b"author\0ization", b"x")],
    "no name": [(b"", b"x")],
    "no value": [(b"authorization", None)],
    "ten thousand": [(b"h%d" % number, b"x") for number in range(10_000)],
}


@pytest.mark.parametrize("headers", RECORDS.values(), ids=RECORDS)
def test_headers_that_cannot_be_read_end_no_consumer(world: World, headers: Pairs) -> None:
    produce(world.ends.broker.url, world.topic, b"poison", headers)
    world.publish("e-2")
    running = world.running(lambda _: None)
    running.until_handled(1)
    running.until_refused(1)
    [(_, origin, letter)] = world.dead_letters(1)
    assert (origin, letter.payload) == (f"{world.topic}/0@0", b"poison")


def test_headers_that_cannot_be_read_are_none_however_many_could(broker: Broker, ends: Ends) -> None:
    """Python checks less in code that has run often: a consumer that worked for a while once died of such a record."""
    topic, unreadable = broker.new_topic(), 20
    for _ in range(200):
        produce(broker.url, topic, b"", [(b"a", b"b")])
    for _ in range(unreadable):
        produce(broker.url, topic, b"", [(b"a", b"b"), (b"\xff", b"b"), (b"c", b"d")])
    headers = [message.headers for message in ends.read(topic, 200 + unreadable)]
    assert headers == [(("a", b"b"),)] * 200 + [()] * unreadable


def test_a_record_without_a_value_is_an_empty_message(world: World) -> None:
    produce(world.ends.broker.url, world.topic, None, [])
    world.running(lambda _: None).until_refused(1)
    [(code, _, letter)] = world.dead_letters(1)
    assert (code, letter.payload) == ("missing_token", b"")
