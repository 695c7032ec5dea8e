"""What is RabbitMQ's own: queues and groups, confirms, hostile messages, TLS, connections that are lost."""

import struct
import threading
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import amqp
import pytest

from demo.processes import LOOPBACK, free_port
from peerseal.errors import BrokerUnavailable, ConfigurationError, MessageTooLarge
from peerseal.messaging import Message, Outlet, open_inlet, open_outlet
from peerseal.rabbitmq import declare
from tests.messaging.world import World
from tests.support.brokers import Ends, eventually
from tests.support.certificates import Authority
from tests.support.rabbitmq import RabbitMQ, need_rabbitmq

ODD = "127.0.0.2"
"""An address of loopback that no certificate is for."""


@pytest.fixture
def broker(rabbitmq: RabbitMQ) -> RabbitMQ:
    """Running."""
    if not rabbitmq.running:
        rabbitmq.start()
    return rabbitmq


def topic_for(*groups: str, url: str, **settings: Any) -> str:
    """A fresh topic with their queues."""
    topic = f"topic-{uuid.uuid4().hex[:12]}"
    for group in groups:
        declare(url, group, [topic], settings)
    return topic


def send(outlet: Outlet, topic: str, *payloads: bytes, headers: Any = (), key: bytes | None = None) -> None:
    """All of them, confirmed."""
    for payload in payloads:
        outlet.send(topic, payload, headers, key)
    outlet.flush(10)


# ---- groups and queues


def test_each_group_gets_each_message_and_its_members_share_them(broker: RabbitMQ, ends: Ends) -> None:
    topic = topic_for("invoicing", "reports", url=broker.url)
    sent = [b"%d" % number for number in range(30)]
    send(ends.outlet(), topic, *sent)
    assert sorted(message.payload for message in ends.read(topic, 30, group="reports")) == sorted(sent)
    with closing(ends.inlet("invoicing", topic)) as one, closing(ends.inlet("invoicing", topic)) as other:
        found: list[Message] = []
        while len(found) < 30:
            for inlet in (one, other):
                message = inlet.receive(0.2)
                if message is not None:
                    inlet.done(message)
                    found.append(message)
    assert sorted(message.payload for message in found) == sorted(sent)


def test_what_no_queue_takes_is_not_confirmed_and_goes_out_once_there_is_one(broker: RabbitMQ, ends: Ends) -> None:
    topic, outlet = topic_for(url=broker.url), ends.outlet()
    outlet.send(topic, b"first", [])
    with pytest.raises(BrokerUnavailable, match="no queue"):
        outlet.flush(5)
    declare(broker.url, "invoicing", [topic])
    send(outlet, topic, b"second")
    assert sorted(message.payload for message in ends.read(topic, 2, group="invoicing")) == [b"first", b"second"]


def test_a_dead_letter_waits_for_whoever_reads_it_and_is_read_once(broker: RabbitMQ, ends: Ends) -> None:
    topic = topic_for(url=broker.url)
    send(ends.outlet(), f"{topic}.dlq", b"refused")
    assert [message.payload for message in ends.read(f"{topic}.dlq", 1)] == [b"refused"]
    with closing(ends.inlet("another", f"{topic}.dlq")) as inlet:
        assert inlet.receive(0.3) is None


def test_key_and_headers_arrive_as_they_were_sent(broker: RabbitMQ, ends: Ends) -> None:
    topic = topic_for("invoicing", url=broker.url)
    headers = [("authorization", b"Bearer a"), ("authorization", b"Bearer b"), ("raw", bytes(range(256))), ("no", b"")]
    for key in (None, b"", b"\xff\x00customer"):
        send(ends.outlet(), topic, b"", headers=headers, key=key)
    for key, message in zip((None, b"", b"\xff\x00customer"), ends.read(topic, 3, group="invoicing"), strict=True):
        assert (message.key, message.headers, message.payload) == (key, tuple(headers), b"")


def test_a_queue_of_another_kind_ends_a_consumer_instead_of_being_used(broker: RabbitMQ) -> None:
    topic = topic_for("invoicing", url=broker.url)
    quorum = {"queue_arguments": {"x-queue-type": "quorum"}}
    inlet = open_inlet(broker.url, "invoicing", [topic], settings=quorum)
    with closing(inlet), pytest.raises(BrokerUnavailable, match="PreconditionFailed"):
        inlet.receive(5)


def test_messages_pass_through_quorum_queues(broker: RabbitMQ) -> None:
    settings = {"queue_arguments": {"x-queue-type": "quorum"}}
    topic = topic_for("invoicing", url=broker.url, **settings)
    with closing(open_outlet(broker.url, settings=settings)) as outlet:
        send(outlet, topic, b"one")
    with closing(open_inlet(broker.url, "invoicing", [topic], settings=settings)) as inlet:
        message = inlet.receive(10)
        assert message is not None
        inlet.done(message)


def test_who_may_not_make_queues_uses_those_that_are_there(broker: RabbitMQ) -> None:
    topic = topic_for("invoicing", url=broker.url)
    settings = {"declare": False}
    with closing(open_outlet(broker.url, settings=settings)) as outlet:
        send(outlet, topic, b"one")
        outlet.send("topic-that-is-not-there", b"two", [])
        with pytest.raises(BrokerUnavailable):
            outlet.flush(1)
    with closing(open_inlet(broker.url, "invoicing", [topic], settings=settings)) as inlet:
        message = inlet.receive(10)
        assert message is not None
        assert message.payload == b"one"


def test_threads_share_an_outlet(broker: RabbitMQ, ends: Ends) -> None:
    topic, outlet = topic_for("invoicing", url=broker.url), ends.outlet()
    threads = [
        threading.Thread(target=send, args=(outlet, topic, *(b"%d-%d" % (t, n) for n in range(50)))) for t in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({message.payload for message in ends.read(topic, 400, group="invoicing")}) == 400


# ---- connections


def test_a_message_that_is_held_past_many_heartbeats_is_still_ours(broker: RabbitMQ, ends: Ends) -> None:
    topic = topic_for("invoicing", url=broker.url)
    send(ends.outlet(), topic, b"one")
    with closing(open_inlet(broker.url, "invoicing", [topic], settings={"heartbeat": 1})) as inlet:
        message = inlet.receive(10)
        assert message is not None
        assert inlet.hold(message, 5)
        inlet.done(message)
        assert inlet.receive(0.2) is None
    with closing(ends.inlet("invoicing", topic)) as inlet:
        assert inlet.receive(0.3) is None, "it was done, and does not come again"


def test_a_message_held_while_the_connection_is_lost_comes_again(broker: RabbitMQ, ends: Ends) -> None:
    topic = topic_for("invoicing", url=broker.url)
    send(ends.outlet(), topic, b"one")
    with closing(ends.inlet("invoicing", topic)) as inlet:
        message = inlet.receive(10)
        assert message is not None
        broker.kill()
        assert not inlet.hold(message, 30)
        inlet.done(message)  # too late, and no error
        broker.start()
        again = inlet.receive(30)
        assert again is not None
        assert again.payload == b"one"


def test_a_consumer_whose_queue_is_deleted_makes_it_anew(broker: RabbitMQ, ends: Ends) -> None:
    topic = topic_for("invoicing", url=broker.url)
    with closing(ends.inlet("invoicing", topic)) as inlet:
        assert inlet.receive(0.2) is None
        with amqp.Connection(f"{LOOPBACK}:{broker.port}") as connection:
            connection.channel().queue_delete(f"{topic}/invoicing")
        assert inlet.receive(0.2) is None
        assert inlet.receive(0.2) is None
        send(ends.outlet(), topic, b"one")
        message = inlet.receive(10)
        assert message is not None


def test_the_second_broker_of_a_list_is_found(broker: RabbitMQ) -> None:
    topic = topic_for("invoicing", url=broker.url)
    url = f"amqp://guest:guest@{LOOPBACK}:{free_port()}//;{broker.url}"
    with closing(open_outlet(url)) as outlet:
        send(outlet, topic, b"one")
    with closing(open_inlet(url, "invoicing", [topic])) as inlet:
        assert inlet.receive(10) is not None


def test_a_wrong_password_is_said_at_once_and_is_in_no_error(broker: RabbitMQ) -> None:
    url = broker.url.replace("guest:guest", "guest:not-the-secret")
    with closing(open_outlet(url)) as outlet:
        outlet.send("topic", b"", [])
        with pytest.raises(BrokerUnavailable, match="AccessRefused") as out:
            outlet.flush(30)
    inlet = open_inlet(url, "invoicing", ["topic"])
    with closing(inlet), pytest.raises(BrokerUnavailable, match="AccessRefused") as into:
        inlet.receive(30)
    assert "not-the-secret" not in f"{out.value}{into.value}"


@pytest.mark.parametrize("url", ["amqp://", "amqps://host/?ssl_cert_reqs=none", "amqp://host;http://other"])
def test_a_url_says_where_the_broker_is_and_nothing_more(url: str) -> None:
    with pytest.raises(ConfigurationError):
        open_outlet(url)


# ---- hostile messages


class Crafted(amqp.Message):  # type: ignore[misc]
    """A message whose properties are these bytes."""

    raw = b""

    def _serialize_properties(self) -> bytes:
        return self.raw


def with_headers(table: bytes) -> bytes:
    """Properties of AMQP 0-9-1 that are nothing but a table of headers."""
    return b"\x20\x00" + struct.pack(">I", len(table)) + table


def nested(depth: int) -> bytes:
    """A table in a table in a table."""
    table = b""
    for _ in range(depth):
        table = b"\x01nF" + struct.pack(">I", len(table)) + table
    return table


HOSTILE: dict[str, tuple[bytes, str]] = {
    "a time beyond all calendars": (with_headers(b"\x01tT" + b"\x7f" + b"\xff" * 7), ""),
    "a property of such a time": (b"\x00\x40" + b"\x7f" + b"\xff" * 7, ""),
    "tables in tables": (with_headers(nested(4000)), ""),
    "a name that is not text": (with_headers(b"\x02\xff\xfeS" + struct.pack(">I", 1) + b"x"), ""),
    "values that are no strings": (
        with_headers(b"\x01aI\xff\xff\xff\xff\x01bt\x01\x01cV\x01dd" + struct.pack(">d", 1.5)),
        "",
    ),
    "a charset for its payload": (b"\x40\x00" + b"\x06utf-16", ""),
    "a routing key that is not text": (b"\x00\x00", "\udcff\udcfe"),
    "somebody's user and type": (b"\x00\x20" + b"\x02\xff\xfe", ""),
}


@pytest.mark.parametrize(("properties", "routing_key"), HOSTILE.values(), ids=HOSTILE)
def test_a_message_that_no_client_can_read_is_put_aside_and_the_next_good_event_goes_through(
    world: World, broker: RabbitMQ, properties: bytes, routing_key: str
) -> None:
    with amqp.Connection(f"{LOOPBACK}:{broker.port}", confirm_publish=True) as connection:
        message = Crafted(b"\xfe\xff\x00x")
        message.raw = properties
        connection.channel().basic_publish(message, world.topic, _Bytes(routing_key), mandatory=True, timeout=10)
    world.publish("e-2")
    running = world.running(world.store)
    running.until_refused(1)
    running.until_handled(1)
    [(code, _, letter)] = world.dead_letters(1)
    assert (code, letter.payload) == ("missing_token", b"\xfe\xff\x00x")
    assert world.invoices() == ["e-2"]


class _Bytes(str):
    """A string that goes out as the bytes that it escapes."""

    def encode(self, *_: str) -> bytes:
        return super().encode("utf-8", "surrogateescape")


def test_headers_that_leave_no_room_for_the_verdict_are_left_out_of_the_dead_letter(
    world: World, broker: RabbitMQ
) -> None:
    with amqp.Connection(f"{LOOPBACK}:{broker.port}", confirm_publish=True) as connection:
        table = {"authorization": "Bearer x", **{f"h{number}": "x" * 1000 for number in range(127)}}
        message = amqp.Message(b"{}", application_headers=table)
        connection.channel().basic_publish(message, world.topic, "", mandatory=True, timeout=10)
    world.running(world.store).until_refused(1)
    [(code, _, letter)] = world.dead_letters(1)
    assert code == "malformed_token"
    assert letter.payload == b"{}"
    with pytest.raises(BrokerUnavailable, match="headers"):
        world.outlet.send(world.topic, b"", [("h", b"x" * 200_000)])


# ---- TLS, and a broker's own limits


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("certificates"), "authority")


class Strict(NamedTuple):
    """A broker that takes no more than 64 KiB a message, in frames of 8 KiB, and speaks TLS on another port, at
    two addresses, with clients that show certificates."""

    broker: RabbitMQ
    tls_port: int

    def url(self, host: str = LOOPBACK) -> str:
        """Over TLS."""
        return f"amqps://guest:guest@{host}:{self.tls_port}//"


@pytest.fixture(scope="module")
def strict(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Strict]:
    need_rabbitmq()
    certificate, key = authority.issue("broker", server=True)
    port = free_port()
    configuration = {
        "listeners.ssl.1": f"{LOOPBACK}:{port}",
        "listeners.ssl.2": f"{ODD}:{port}",
        "ssl_options.cacertfile": str(authority.file),
        "ssl_options.certfile": str(certificate),
        "ssl_options.keyfile": str(key),
        "ssl_options.verify": "verify_peer",
        "ssl_options.fail_if_no_peer_cert": "true",
        "max_message_size": "65536",
        "frame_max": "8192",
    }
    with RabbitMQ(tmp_path_factory.mktemp("strict"), configuration) as broker:
        yield Strict(broker, port)


def test_messages_pass_over_tls_in_both_directions(strict: Strict, authority: Authority) -> None:
    certificate, key = authority.issue("client", server=False)
    settings = {"ssl": {"ca_certs": str(authority.file), "certfile": str(certificate), "keyfile": str(key)}}
    url = strict.url()
    topic = topic_for("invoicing", url=url, **settings)
    with closing(open_outlet(url, settings=settings)) as outlet:
        send(outlet, topic, b"one")
    with closing(open_inlet(url, "invoicing", [topic], settings=settings)) as inlet:
        message = inlet.receive(10)
        assert message is not None
        assert inlet.hold(message, 0.7)
        inlet.done(message)


def test_a_broker_whose_certificate_is_not_trusted_or_for_another_host_gets_nothing(
    strict: Strict, authority: Authority, tmp_path: Path
) -> None:
    certificate, key = authority.issue("client", server=False)
    ours = {"certfile": str(certificate), "keyfile": str(key)}
    stranger = Authority.make(tmp_path, "stranger")
    for host, tls in (
        (LOOPBACK, {**ours, "ca_certs": str(stranger.file)}),
        (LOOPBACK, ours),
        (ODD, {**ours, "ca_certs": str(authority.file)}),
    ):
        with closing(open_outlet(strict.url(host), settings={"ssl": tls})) as outlet:
            outlet.send("topic", b"", [])
            with pytest.raises(BrokerUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
                outlet.flush(1)


def test_a_message_too_large_for_the_broker_is_refused_and_holds_up_no_other(strict: Strict) -> None:
    topic = topic_for("invoicing", url=strict.broker.url)
    with closing(open_outlet(strict.broker.url)) as outlet:
        for payload in (b"before", b"x" * 70_000, b"after"):
            outlet.send(topic, payload, [])
        with pytest.raises(BrokerUnavailable, match="PreconditionFailed"):
            outlet.flush(10)
        outlet.flush(10)
    with closing(open_inlet(strict.broker.url, "invoicing", [topic])) as inlet:
        found: set[bytes] = set()

        def both() -> bool:
            message = inlet.receive(0.2)
            if message is not None:
                found.add(message.payload)
                inlet.done(message)
            return found >= {b"before", b"after"}

        eventually(both, f"{found}")
    assert found == {b"before", b"after"}


def test_headers_that_leave_no_room_in_the_brokers_frames_are_left_out_of_the_dead_letter(strict: Strict) -> None:
    """The broker would end the connection over a longer frame, and so over each attempt."""
    topic = topic_for("invoicing", url=strict.broker.url)
    dead, code, large = f"{topic}.dlq", ("peerseal-code", b"missing_token"), ("h", b"x" * 8000)
    with closing(open_outlet(strict.broker.url)) as outlet:
        send(outlet, dead, b"payload", headers=[large, code], key=b"k" * 8000)
        with pytest.raises(MessageTooLarge, match="headers"):
            send(outlet, topic, b"lost", headers=[large])
        send(outlet, topic, b"next")
    with closing(open_inlet(strict.broker.url, "readers", [dead])) as inlet:
        letter = inlet.receive(10)
        assert letter is not None
        assert (letter.payload, letter.headers, letter.key) == (b"payload", (code,), None)
    with closing(open_inlet(strict.broker.url, "invoicing", [topic])) as inlet:
        message = inlet.receive(10)
        assert message is not None
        assert message.payload == b"next"
