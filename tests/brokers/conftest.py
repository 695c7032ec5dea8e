"""Real brokers, which tests may stop, kill and freeze: the next test finds them running again."""

import pytest

from tests.messaging.conftest import ends, registry, world
from tests.support.apache_kafka import ApacheKafka
from tests.support.rabbitmq import RabbitMQ

__all__ = ["ends", "registry", "world"]

RealBroker = ApacheKafka | RabbitMQ


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of this folder need real brokers."""
    for item in items:
        if item.nodeid.startswith("tests/brokers/"):
            item.add_marker(pytest.mark.brokers)


@pytest.fixture(params=["apache_kafka", "rabbitmq"])
def broker(request: pytest.FixtureRequest) -> RealBroker:
    """Each of them, running."""
    broker: RealBroker = request.getfixturevalue(request.param)
    if not broker.running:
        broker.start()
    return broker
