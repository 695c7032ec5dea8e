"""From the order to the invoice over a broker, and all that makes no invoice."""

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from peerseal import User, carrying
from peerseal.messaging import Message
from peerseal.testing import Clock, MemoryRegistry
from resource_service.invoicing import TOPIC
from tests.examples.world import ISSUER_URL, PEN, PURPOSE, Person, World, ask, order_payload
from tests.support.brokers import Broker, eventually
from tests.support.processes import free_port

pytestmark = pytest.mark.slow

GRACE = User("grace", ISSUER_URL, frozenset((PURPOSE,)), "j-1", 2**40, {})
NOTEBOOK = {"itemID": "notebook", "quantity": 1}


def headers_of(message: Message) -> dict[str, str]:
    return {name: value.decode() for name, value in message.headers}


def test_an_order_becomes_one_invoice_of_the_user(served: World, ada: Person) -> None:
    with served.consuming():
        placed = ada.order(PEN, NOTEBOOK)
        eventually(lambda: ada.get("/invoices").get_json()["invoices"] != [], "there is an invoice")
    (invoice,) = ada.get("/invoices").get_json()["invoices"]
    assert invoice["transactionID"] == placed["transactionID"]
    assert (invoice["userID"], invoice["amount"]) == ("ada", 2 * 250 + 895)
    assert served.person().log_in("grace").get("/invoices").get_json()["invoices"] == []


def test_a_message_says_nothing_of_the_user_but_in_its_token(world: World, ada: Person) -> None:
    placed = ada.order(PEN)
    (message,) = world.messages(1)
    assert b'"ada"' not in message.payload
    payload = json.loads(message.payload)
    assert payload.keys() == {"eventID", "transactionID", "utcTime", "items"}
    assert payload["items"] == placed["items"]
    assert [name for name, _ in message.headers] == ["authorization", "x-request-id"]


def test_two_deliveries_make_one_invoice(served: World, ada: Person) -> None:
    ada.order(PEN)
    (message,) = served.messages(1)
    with served.consuming() as consumer:
        for _ in range(3):
            served.send(message.payload, headers_of(message))
        eventually(lambda: consumer.counts.handled == 4, "every copy is handled")
    assert served.invoiced("ada") == [500]


def reordered(payload: bytes) -> bytes:
    order = json.loads(payload)
    return json.dumps(order | {"items": order["items"][::-1]}).encode()


def changed(payload: bytes, **changes: Any) -> bytes:
    return json.dumps(json.loads(payload) | changes).encode()


@pytest.mark.parametrize(
    ("sent", "changes", "code"),
    [
        (order_payload().replace(b"250", b"1"), {"signed": order_payload()}, "wrong_payload"),
        (reordered(order_payload()), {"signed": order_payload()}, "wrong_payload"),
        (changed(order_payload(), userID="grace"), {"signed": order_payload()}, "wrong_payload"),
        (order_payload() + b"\n", {"signed": order_payload()}, "wrong_payload"),
        (b"", {"signed": order_payload()}, "wrong_payload"),
        (changed(order_payload(), userID="grace"), {}, "malformed_order"),
        (b"not json", {}, "malformed_order"),
        (order_payload(), {"event_id": "e-2"}, "wrong_event"),
        (order_payload(), {"transaction_id": "t-2"}, "wrong_transaction"),
        (order_payload(), {"topic": "OrderCancelled"}, "wrong_topic"),
        (order_payload(), {"audience": "jobs.example.org"}, "wrong_audience"),
        (order_payload(), {"scope": "orders:write"}, "insufficient_scope"),
    ],
)
def test_what_is_no_order_of_the_publisher_is_put_aside_with_its_code(
    served: World, sent: bytes, changes: dict[str, Any], code: str
) -> None:
    with served.consuming() as consumer:
        served.publish(sent, **changes)
        served.publish(order_payload(eventID="e-9"), event_id="e-9")
        eventually(lambda: consumer.counts.handled == 1, "the good one behind it is handled")
    assert served.refusals(1) == [code]
    assert served.invoiced("ada", issuer="") == [1395]


DEAR = [{"itemID": "pen", "quantity": 10_000, "price": 100_000_000}] * 2
"""An order of more than may be invoiced."""


@pytest.mark.parametrize(
    ("order", "code"),
    [
        ({"items": DEAR}, "bad_invoice"),
        ({"transactionID": "t-of-grace"}, "case_not_found"),
        ({"eventID": "e-of-grace"}, "invoiced_otherwise"),
        ({"transactionID": "t/1"}, "malformed_order"),
        ({"transactionID": "t%2F1"}, "malformed_order"),
        ({"transactionID": ".."}, "malformed_order"),
        ({"transactionID": "."}, "malformed_order"),
    ],
)
def test_an_order_that_can_never_be_invoiced_holds_up_none_behind_it(
    served: World, order: dict[str, Any], code: str
) -> None:
    of_grace = served.invoicing.mint_transaction(GRACE, scope=[PURPOSE], transaction_id="t-of-grace")
    assert ask(served.resource_app, served.invoicing, "/cases/t-of-grace", of_grace).status_code == 200
    served.invoices.add(replace(of_grace, workload=served.client.id), "e-of-grace", 1)
    ids = {"event_id": order.get("eventID", "e-1"), "transaction_id": order.get("transactionID", "t-1")}
    with served.consuming() as consumer:
        served.publish(order_payload(**order), **ids)
        served.publish(order_payload(eventID="e-9"), event_id="e-9")
        eventually(lambda: consumer.counts.handled == 1, "the good one behind it is handled")
    assert served.refusals(1) == [code]
    assert served.invoiced("ada", issuer="") == [1395]


@pytest.mark.parametrize(
    ("user", "authentication", "code"),
    [
        ("test.internal/client-service", {}, "no_user"),
        ("test.internal/client-service", {"jti": "j-1"}, "no_user"),
        ("ada", {"iss": {}}, "malformed_user"),
        ("ada", {"iss": 5}, "malformed_user"),
        ("ada", {"iss": "https://login.example\x00"}, "malformed_user"),
        ("ada", {"iss": "https://" + "a" * 500}, "malformed_user"),
    ],
    ids=str,
)
def test_an_order_of_no_user_holds_up_none_behind_it(
    served: World, user: str, authentication: dict[str, Any], code: str
) -> None:
    of_grace = served.client.mint_transaction(GRACE, scope=[PURPOSE], transaction_id="t-1")
    with served.consuming() as consumer:
        with carrying(replace(of_grace, user=user, authentication=authentication)):
            served.publish(order_payload(), subject=user)
        served.publish(order_payload(eventID="e-9", transactionID="t-9"), event_id="e-9", transaction_id="t-9")
        eventually(lambda: consumer.counts.handled == 1, "the good one behind it is handled")
    assert served.refusals(1) == [code]
    assert served.invoiced("ada", issuer="") == [1395]


def test_messages_of_others_are_put_aside(served: World) -> None:
    stranger = served.registry.identity("stranger")
    request = served.client.sign_request("resource-service", method="POST", target="/orders", body=order_payload())
    with served.consuming() as consumer:
        served.publish(order_payload(), by=stranger)
        served.publish(order_payload(), by=served.resource)
        served.send(order_payload(), {"authorization": f"Bearer {request}"})
        served.send(order_payload(), {})
        eventually(lambda: sum(consumer.counts.refused.values()) == 4, "all are refused")
        assert consumer.counts.handled == 0
    assert served.refusals(4) == ["caller_not_allowed", "caller_not_allowed", "wrong_type", "missing_token"]


def test_the_consumer_believes_the_publishers_in_its_settings_and_no_others(served: World) -> None:
    shop = served.registry.identity("legacy-shop")
    with served.consuming(events_publishers=("legacy-shop", "registry")) as consumer:
        served.publish(order_payload())
        served.publish(order_payload(eventID="e-9"), event_id="e-9", by=shop)
        eventually(lambda: consumer.counts.handled == 1, "the shop's is handled")
    assert served.refusals(1) == ["caller_not_allowed"]


def test_an_event_that_is_older_than_the_setting_allows_is_put_aside(broker: Broker, tmp_path: Path) -> None:
    clock = Clock()
    with MemoryRegistry(clock=clock) as registry, World(registry, tmp_path, broker) as world, world.resource_served():
        world.publish(order_payload())
        clock.advance(2 * 3600)
        with world.consuming(events_max_age=timedelta(hours=1)) as consumer:
            world.publish(order_payload(eventID="e-9"), event_id="e-9")
            eventually(lambda: consumer.counts.handled == 1, "the new one behind it is handled")
        assert world.refusals(1) == ["expired"]


def test_the_token_of_an_event_opens_no_http_endpoint(world: World) -> None:
    headers = world.client.sign_event(
        b"", topic=TOPIC, audience="jobs.example.com", scope="profiles:read", event_id="e-1", transaction_id="t-1"
    )
    answer = world.resource_app.test_client().get("/profiles/1", headers={"Authorization": headers["authorization"]})
    assert (answer.status_code, answer.get_json()["code"]) == (401, "wrong_type")


def test_an_event_of_a_publisher_whose_key_was_revoked_is_put_aside(served: World) -> None:
    served.publish(order_payload())
    served.registry.revoke(served.client.credentials.key_id)
    with served.consuming():
        assert served.refusals(1) == ["revoked_key"]
    assert served.invoiced("ada", issuer="") == []


def test_a_call_that_fails_is_seen_and_made_again_and_nothing_is_stored_meanwhile(world: World, ada: Person) -> None:
    with world.consuming() as consumer:
        ada.order(PEN)  # while resource-service is down
        eventually(lambda: consumer.counts.retried.get("ConnectionError", 0) >= 2, "it is tried again")
        assert (consumer.counts.handled, consumer.counts.refused) == (0, {})
        assert world.invoiced("ada") == []
        with world.resource_served():
            eventually(lambda: world.invoiced("ada") == [500], "it is invoiced once the service is back")
    assert consumer.counts.handled == 1


def test_a_call_that_is_refused_is_no_success_either(served: World, ada: Person) -> None:
    issuers = served.registry.settings().issuers
    served.registry.set_domain(minters=["client-service"], issuers=issuers)  # the consumer may not speak for users
    with served.consuming() as consumer:
        ada.order(PEN)
        eventually(lambda: consumer.counts.retried.get("HTTPError", 0) >= 2, "it is tried again")
        assert served.invoiced("ada") == []
        served.registry.set_domain(minters=["client-service", "invoicing"], issuers=issuers)
        eventually(lambda: served.invoiced("ada") == [500], "it is invoiced once the operator has put that right")


def test_an_order_is_taken_while_the_broker_is_down_and_told_of_later(served: World) -> None:
    before = served.client_app(broker_url=f"kafka://127.0.0.1:{free_port()}")
    ada = Person(before.test_client()).log_in("ada")
    ada.order(PEN)
    ada.order(NOTEBOOK)
    before.extensions["outbox"].stop()
    with served.consuming():
        served.person().get("/")  # another start of the service, with the broker up: no new order is needed
        eventually(lambda: sorted(served.invoiced("ada")) == [500, 895], "both are invoiced")


def test_without_a_broker_orders_are_taken_and_their_events_wait(served: World) -> None:
    served.person(broker_url=None).log_in("ada").order(PEN)
    with served.consuming():
        served.person().get("/")
        eventually(lambda: served.invoiced("ada") == [500], "it is invoiced once there is a broker")


def test_of_many_workers_one_sends_at_a_time(world: World) -> None:
    people = [world.person().log_in("ada") for _ in range(4)]
    for number in range(20):
        people[number % 4].order(PEN)
    found = {json.loads(message.payload)["eventID"] for message in world.messages(20)}
    assert len(found) == 20  # no event came twice among the first twenty
