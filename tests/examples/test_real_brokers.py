"""The examples on a real Apache Kafka and a real RabbitMQ, chosen by URL and nothing else."""

import uuid
from collections.abc import Iterator

import pytest

from resource_service.invoicing import TOPIC
from tests.examples.world import PEN, World, order_payload
from tests.support.apache_kafka import ApacheKafka, need_kafka
from tests.support.brokers import eventually
from tests.support.rabbitmq import RabbitMQ, need_rabbitmq

pytestmark = [pytest.mark.brokers, pytest.mark.slow]


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheKafka]:
    need_kafka()
    with ApacheKafka(tmp_path_factory.mktemp("kafka")) as broker:
        broker.create_topic(TOPIC, partitions=4)
        broker.create_topic(f"{TOPIC}.dlq")
        yield broker


@pytest.fixture(scope="module")
def rabbit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    need_rabbitmq()
    with RabbitMQ(tmp_path_factory.mktemp("rabbitmq")) as broker:
        yield broker


@pytest.fixture(params=["kafka", "rabbit"])
def broker(request: pytest.FixtureRequest) -> ApacheKafka | RabbitMQ:
    """Each of the real ones."""
    found: ApacheKafka | RabbitMQ = request.getfixturevalue(request.param)
    return found


def test_an_order_becomes_an_invoice_and_what_is_no_order_does_not(served: World) -> None:
    ada, event = served.person().log_in("ada"), str(uuid.uuid4())
    with served.consuming() as consumer:
        placed = ada.order(PEN)
        eventually(lambda: ada.get("/invoices").get_json()["invoices"] != [], "there is an invoice")
        served.publish(order_payload(eventID=event), event_id=event, signed=b"another payload")
        served.publish(order_payload(eventID=event), event_id=event)
        eventually(lambda: consumer.counts.handled == 2, "the good one behind it is handled")
        assert consumer.counts.refused == {"wrong_payload": 1}
    (invoice,) = ada.get("/invoices").get_json()["invoices"]
    assert (invoice["transactionID"], invoice["amount"]) == (placed["transactionID"], 500)


def test_an_order_is_taken_while_the_broker_is_down_and_invoiced_once_it_is_back(
    served: World, broker: ApacheKafka | RabbitMQ
) -> None:
    grace = served.person().log_in("grace")
    with served.consuming():
        grace.order(PEN)
        eventually(lambda: served.invoiced("grace") == [500], "it works while the broker is up")
        broker.stop()
        grace.order(PEN)
        grace.order(PEN)
        broker.start()
        eventually(lambda: served.invoiced("grace") == [500] * 3, "all are invoiced, once")
