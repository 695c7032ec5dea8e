"""A registry in memory, a publisher, consumers, and a broker: the built-in one, or, in CI, real ones."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from peerseal.testing import MemoryRegistry
from tests.messaging.world import World
from tests.support.brokers import Broker, BuiltInBroker, Ends


@pytest.fixture(scope="session")
def built_in() -> Iterator[Broker]:
    with BuiltInBroker() as broker:
        yield broker


REAL = (pytest.param(name, marks=pytest.mark.brokers) for name in ("apache_kafka", "rabbitmq"))


@pytest.fixture(params=["built_in", *REAL])
def broker(request: pytest.FixtureRequest) -> Broker:
    """Each broker that there is."""
    found: Broker = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def ends(broker: Broker) -> Iterator[Ends]:
    with Ends(broker) as ends:
        yield ends


@pytest.fixture
def registry() -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as registry:
        registry.set_domain(minters=["invoicing"])
        yield registry


@pytest.fixture
def world(registry: MemoryRegistry, ends: Ends, tmp_path: Path) -> Iterator[World]:
    with World(registry, ends, tmp_path) as world:
        yield world
