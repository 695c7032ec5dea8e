"""Both example services, a registry in memory, and librdkafka's own broker."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from peerseal.testing import MemoryRegistry
from resource_service.invoicing import TOPIC
from tests.examples.world import Person, World
from tests.support.brokers import Broker, BuiltInBroker


@pytest.fixture
def registry() -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as registry:
        yield registry


@pytest.fixture
def broker() -> Iterator[Broker]:
    """A broker for this test alone, since the examples have one topic and one group. It has the topics that are asked
    for."""
    with BuiltInBroker() as broker:
        for topic in (TOPIC, f"{TOPIC}.dlq"):
            AdminClient({"bootstrap.servers": broker.url.removeprefix("kafka://")}).list_topics(topic, timeout=10)
        yield broker


@pytest.fixture
def world(registry: MemoryRegistry, broker: Broker, tmp_path: Path) -> Iterator[World]:
    with World(registry, tmp_path, broker) as world:
        yield world


@pytest.fixture
def served(world: World) -> Iterator[World]:
    """The world, with resource-service at a real socket."""
    with world.resource_served():
        yield world


@pytest.fixture
def ada(world: World) -> Person:
    return world.person().log_in("ada")
