"""What is Kafka's own: settings, membership, and what the broker is told."""

import gc
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from peerseal import EventVerifier
from peerseal.errors import BrokerUnavailable, ConfigurationError, MessageTooLarge
from peerseal.kafka import KafkaInlet, KafkaOutlet
from peerseal.messaging import EventConsumer, login_settings, open_inlet, open_outlet
from peerseal.testing import MemoryRegistry
from tests.support.brokers import Broker, BuiltInBroker, Ends, eventually


@pytest.mark.parametrize(
    "settings",
    [{"enable.auto.commit": True}, {"enable.auto.offset.store": "true"}, {"group.id": ""}],
    ids=str,
)
def test_a_consumer_setting_that_loses_events_is_refused(built_in: Broker, settings: dict[str, Any]) -> None:
    servers = {"bootstrap.servers": built_in.url.removeprefix("kafka://"), "group.id": "g"}
    with pytest.raises(ConfigurationError):
        KafkaInlet({**servers, **settings}, ["t"])


@pytest.mark.parametrize("settings", [{"acks": 1}, {"enable.idempotence": "false"}], ids=str)
def test_a_producer_setting_that_loses_events_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        KafkaOutlet({"bootstrap.servers": "127.0.0.1:1", **settings})


@pytest.mark.parametrize(
    "url", ["redis://127.0.0.1", "kafka://", "kafka://host:1/path", "kafka://user:secret@host:1", "host:9092"]
)
def test_a_url_of_no_broker_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError):
        open_outlet(url)
    with pytest.raises(ConfigurationError):
        open_inlet(url, "group", ["t"])


def test_a_login_by_the_services_key_is_for_kafka_only() -> None:
    with MemoryRegistry() as registry:
        identity = registry.identity("client-service")
        assert login_settings(identity, "amqp://127.0.0.1", None) == {}
        login = login_settings(identity, "kafka://127.0.0.1:1", "kafka")
        assert (login["security.protocol"], login["sasl.mechanisms"]) == ("SASL_SSL", "OAUTHBEARER")
        with pytest.raises(ConfigurationError, match="kafka://"):
            login_settings(identity, "amqp://127.0.0.1", "rabbit")


def test_what_a_broker_that_is_away_did_not_take_is_said_in_time() -> None:
    outlet = open_outlet("kafka://127.0.0.1:1", settings={"message.timeout.ms": 300, "log_level": 0})
    began = time.monotonic()
    outlet.send("t", b"x", [])
    with pytest.raises(BrokerUnavailable):
        outlet.flush(5)
    assert time.monotonic() - began < 5
    outlet.close()


def test_a_message_that_is_held_keeps_its_member_in_the_group_and_others_wait(built_in: BuiltInBroker) -> None:
    with Ends(built_in) as ends:
        topic, outlet = built_in.new_topic(), ends.outlet()
        for number in range(8):
            outlet.send(topic, b"%d" % number, [], key=b"%d" % number)
        outlet.flush(10)
        inlet = ends.inlet(f"{topic}-g", topic)
        first = None
        while first is None:
            first = inlet.receive(1.0)
        assert inlet.hold(first, 0.3)
        inlet.done(first)
        rest: list[bytes] = []
        while len(rest) < 7:
            message = inlet.receive(1.0)
            if message is not None:
                rest.append(message.payload)
                inlet.done(message)
        assert sorted([first.payload, *rest]) == [b"%d" % number for number in range(8)], "none lost, none twice"
        inlet.close()
        assert ends.inlet(f"{topic}-g", topic).receive(1.0) is None, "all of it was told"


def test_a_partition_that_went_to_another_member_is_worked_on_no_more(built_in: BuiltInBroker) -> None:
    with Ends(built_in) as ends:
        topic, outlet = built_in.new_topic(), ends.outlet()
        outlet.send(topic, b"x", [])
        outlet.flush(10)
        inlet = ends.inlet(f"{topic}-g", topic)
        message = None
        while message is None:
            message = inlet.receive(1.0)
        inlet._gone(inlet._consumer, [message.receipt])  # type: ignore[attr-defined]
        assert not inlet.hold(message, 5.0)
        inlet.done(message)
        inlet.close()
        again = ends.inlet(f"{topic}-g", topic)
        eventually(lambda: again.receive(0.2) is not None, "whoever owns it now gets it")
        again.close()


def test_a_thread_hears_of_its_own_messages_and_not_of_anothers() -> None:
    outlet = open_outlet("kafka://127.0.0.1:1", settings={"message.timeout.ms": 300, "log_level": 0})
    outlet.send("t", b"x", [])
    with ThreadPoolExecutor(1) as pool:
        pool.submit(outlet.flush, 5).result()
    with pytest.raises(BrokerUnavailable):
        outlet.flush(5)
    outlet.close()


def test_a_publisher_that_never_flushes_keeps_only_what_is_under_way(built_in: BuiltInBroker) -> None:
    outlet = KafkaOutlet({"bootstrap.servers": built_in.url.removeprefix("kafka://")})
    before = deliveries()
    for _ in range(1000):
        outlet.send("t", b"x", [])
    flush_elsewhere(outlet)
    outlet.send("t", b"x", [])
    assert deliveries() - before == 1
    outlet.close()


def deliveries() -> int:
    """How many messages whose outcome is kept there are in this process."""
    gc.collect()
    return sum(type(one).__name__ == "_Delivery" for one in gc.get_objects())


def flush_elsewhere(outlet: KafkaOutlet) -> None:
    """Wait for the messages of all threads; the flush of another thread reports none of this one."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(outlet.flush, 10).result()


def test_what_was_not_taken_long_ago_is_said_at_the_next_flush() -> None:
    outlet = KafkaOutlet({"bootstrap.servers": "127.0.0.1:1", "message.timeout.ms": 300, "log_level": 0})
    outlet.send("t", b"x", [])
    flush_elsewhere(outlet)
    outlet.send("t", b"y", [])
    with pytest.raises(BrokerUnavailable):
        outlet.flush(5)
    outlet.flush(5)
    outlet.close()


def test_a_message_that_no_broker_takes_is_said_to_be_too_large(built_in: BuiltInBroker) -> None:
    outlet = open_outlet(built_in.url)
    with pytest.raises(MessageTooLarge):
        outlet.send("t", b"x" * 1_100_000, [])
    outlet.close()


def test_a_poison_message_too_large_for_the_dead_letters_is_named_there(built_in: BuiltInBroker) -> None:
    with Ends(built_in) as ends, MemoryRegistry() as registry:
        topic = built_in.new_topic()
        large = open_outlet(built_in.url, settings={"message.max.bytes": 2_000_000})
        large.send(topic, b"x" * 1_048_400, [])
        large.flush(10)
        identity = registry.identity("invoicing")
        verifier = EventVerifier(identity.trust, audience="a", allow={}, max_age=timedelta(days=1))
        consumer = EventConsumer(identity, verifier, ends.inlet(f"{topic}-g", topic), ends.outlet(), pauses=[0.05])
        eventually(lambda: consumer.run_once(lambda _: None, 0.2) is not None, "put aside")
        consumer.close()
        [letter] = ends.read(f"{topic}.dlq", 1)
        assert dict(letter.headers)["peerseal-code"] == b"missing_token"
        assert dict(letter.headers)["peerseal-size"] == b"1048400"
        assert letter.payload == b""
        large.close()
