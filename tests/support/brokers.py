"""Brokers under the suite of tests/messaging: one interface, so that the same tests run on each."""

import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import MappingProxyType
from typing import Any, Protocol, Self

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from peerseal.messaging import DEAD_LETTERS, Inlet, Message, Outlet, open_inlet, open_outlet

PATIENCE = 30.0


class Broker(Protocol):
    """A running broker. ``url`` and the inlet's ``settings`` are what an application is configured with."""

    url: str
    settings: Mapping[str, Any]

    def new_topic(self) -> str:
        """The name of a topic that is there, or will be with its first message, and its dead letters'; with two
        partitions at least where the broker has them."""


class BuiltInBroker:
    """librdkafka's own broker, in this process: the real protocol, and nothing to install. As a context manager it ends
    with its block. With the newer group protocol a member has its partitions in a tenth of a second, with the older one
    in three."""

    settings: Mapping[str, Any] = MappingProxyType({"group.protocol": "consumer"})

    def __init__(self) -> None:
        self._producer = Producer({"bootstrap.servers": "nowhere:1", "test.mock.num.brokers": 1})
        brokers = self._producer.list_topics(timeout=10).brokers
        address = next(iter(brokers.values()))
        self.url = f"kafka://{address.host}:{address.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._producer.flush(1)

    def new_topic(self) -> str:
        """See Broker. Topics come with their first message, with four partitions."""
        topic = f"topic-{uuid.uuid4().hex[:12]}"
        admin = AdminClient({"bootstrap.servers": self.url.removeprefix("kafka://")})
        for name in (topic, topic + DEAD_LETTERS):
            admin.list_topics(name, timeout=10)
        return topic


class Ends:
    """The ends of a broker that one test opens, all closed with it."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self._opened = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def outlet(self) -> Outlet:
        """Where messages go out."""
        outlet = open_outlet(self.broker.url)
        self._opened.callback(outlet.close)
        return outlet

    def inlet(self, group: str, *topics: str) -> Inlet:
        """A member of the group; the caller closes it."""
        return open_inlet(self.broker.url, group, topics, settings=self.broker.settings)

    def read(self, topic: str, count: int, *, group: str | None = None) -> list[Message]:
        """The first ``count`` messages of the topic. Raises AssertionError where they do not come in time."""
        inlet = self.inlet(group or f"reader-{uuid.uuid4().hex[:8]}", topic)
        found: list[Message] = []
        try:
            deadline = time.monotonic() + PATIENCE
            while len(found) < count:
                assert time.monotonic() < deadline, f"{len(found)} of {count} messages on {topic}"
                message = inlet.receive(0.2)
                if message is not None:
                    found.append(message)
                    inlet.done(message)
        finally:
            inlet.close()
        return found


def eventually(done: Callable[[], bool], what: str, *, within: float = PATIENCE, every: float = 0.02) -> None:
    """Wait until it is so, looking ``every`` so many seconds. Raises AssertionError after ``within`` seconds."""
    deadline = time.monotonic() + within
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(every)
