"""Both example services, a registry in memory, and librdkafka's own broker."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from peerseal.testing import MemoryRegistry
from tests.examples.world import Person, World
from tests.support.brokers import BuiltInBroker


@pytest.fixture
def registry() -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as registry:
        yield registry


@pytest.fixture
def world(registry: MemoryRegistry, tmp_path: Path) -> Iterator[World]:
    with BuiltInBroker() as broker, World(registry, tmp_path, broker) as world:
        yield world


@pytest.fixture
def served(world: World) -> Iterator[World]:
    """The world, with resource-service behind a real socket."""
    with world.resource_served():
        yield world


@pytest.fixture
def ada(world: World) -> Person:
    return world.person().log_in("ada")
