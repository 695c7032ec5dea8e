"""Orders above a limit wait for an administrator, and are honoured days later in the name of who placed them."""

import json
from collections.abc import Iterator
from datetime import timedelta

import pytest

from peerseal.testing import Clock, MemoryRegistry
from tests.examples.world import ISSUER_URL, PEN, Person, World
from tests.support.brokers import eventually

pytestmark = pytest.mark.slow

TELESCOPES = {"itemID": "telescope", "quantity": 4}
AMOUNT = 4 * 129_900
DAY = timedelta(days=1).total_seconds()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(clock: Clock) -> Iterator[MemoryRegistry]:
    """With keys that live for a month: that they are replaced meanwhile is tested elsewhere."""
    with MemoryRegistry(clock=clock, key_lifetime=int(30 * DAY)) as registry:
        yield registry


def administrator(world: World) -> Person:
    return world.person().log_in("katherine")


def state_of(person: Person) -> str:
    (order,) = person.get("/orders").get_json()["orders"]
    return str(order["state"])


def test_an_order_approved_after_six_days_makes_one_invoice_of_the_user_who_placed_it(
    served: World, clock: Clock
) -> None:
    transaction = served.person().log_in("ada").order(TELESCOPES)["transactionID"]
    with served.consuming() as consumer:
        clock.advance(6 * DAY)
        katherine = administrator(served)
        (waiting,) = katherine.get("/approvals").get_json()["orders"]
        assert (waiting["user"], waiting["transactionID"], waiting["amount"]) == ("ada", transaction, AMOUNT)
        assert consumer.counts.handled == 0
        assert katherine.post(f"/approvals/{transaction}", None).status_code == 200
        eventually(lambda: served.invoiced("ada") == [AMOUNT], "it is invoiced")
    assert served.invoiced("katherine") == []
    ada = served.person().log_in("ada")
    (invoice,) = ada.get("/invoices").get_json()["invoices"]
    assert (invoice["transactionID"], state_of(ada)) == (transaction, "accepted")


def test_an_order_is_approved_once(served: World) -> None:
    transaction = served.person().log_in("ada").order(TELESCOPES)["transactionID"]
    katherine = administrator(served)
    with served.consuming() as consumer:
        answers = [katherine.post(f"/approvals/{transaction}", None).status_code for _ in range(3)]
        assert answers == [200, 404, 404]
        served.person().log_in("ada").order(PEN)
        eventually(lambda: consumer.counts.handled == 2, "what comes later is handled")
    assert sorted(served.invoiced("ada")) == [500, AMOUNT]


def test_an_order_that_waited_for_too_long_is_refused_and_seen_to_be(world: World, clock: Clock) -> None:
    transaction = world.person().log_in("ada").order(TELESCOPES)["transactionID"]
    clock.advance(7 * DAY)
    katherine = administrator(world)
    for _ in range(2):
        answer = katherine.post(f"/approvals/{transaction}", None)
        assert (answer.status_code, answer.get_json()["code"]) == (410, "approved_too_late")
    assert state_of(world.person().log_in("ada")) == "expired"


def test_an_event_that_ends_on_its_way_is_put_aside_as_expired(served: World, clock: Clock) -> None:
    transaction = served.person().log_in("ada").order(TELESCOPES)["transactionID"]
    clock.advance(7 * DAY - 60)
    assert administrator(served).post(f"/approvals/{transaction}", None).status_code == 200
    served.messages(1)
    clock.advance(120)
    with served.consuming():
        assert served.refusals(1) == ["expired"]
    assert served.invoiced("ada") == []


def test_a_small_order_waits_for_nobody(world: World) -> None:
    assert world.person().log_in("ada").order({"itemID": "telescope", "quantity": 3})["state"] == "accepted"
    assert administrator(world).get("/approvals").get_json()["orders"] == []


@pytest.mark.parametrize("user", ["ada", "grace"])
def test_only_an_administrator_approves(world: World, user: str) -> None:
    placed = world.person().log_in("ada").order(TELESCOPES)
    assert placed["state"] == "awaiting_approval"
    person = world.person().log_in(user)
    answers = person.get("/approvals"), person.post(f"/approvals/{placed['transactionID']}", None)
    assert [answer.get_json()["code"] for answer in answers] == ["insufficient_scope"] * 2
    assert state_of(world.person().log_in("ada")) == "awaiting_approval"


def test_each_step_from_the_order_to_the_invoice_logs_one_readable_line(
    served: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    transaction = served.person().log_in("ada").order(TELESCOPES)["transactionID"]
    with served.consuming():
        administrator(served).post(f"/approvals/{transaction}", None)
        eventually(lambda: served.invoiced("ada") == [AMOUNT], "it is invoiced")
    (invoice,) = served.invoices.of(ISSUER_URL, "ada")
    event = event_of(served)
    assert [line for line in caplog.messages if line.startswith(f"transaction {transaction}: ")] == [
        f"transaction {transaction}: ada ordered, event {event}, awaiting_approval",
        f"transaction {transaction}: approved by katherine, event {event}",
        f"transaction {transaction}: case of ada opened",
        f"transaction {transaction}: event {event} of {served.client.id}: ada owes {AMOUNT} cents",
        f"transaction {transaction}: event {event} of client-service is invoice {invoice.id}",
    ]


def event_of(world: World) -> str:
    """The id of the one event on the topic."""
    (message,) = world.messages(1)
    return str(json.loads(message.payload)["eventID"])


def test_what_is_approved_too_late_is_said_in_the_log(
    world: World, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    transaction = world.person().log_in("ada").order(TELESCOPES)["transactionID"]
    clock.advance(7 * DAY)
    administrator(world).post(f"/approvals/{transaction}", None)
    (line,) = [line for line in caplog.messages if line.startswith(f"transaction {transaction}: approved too late")]
    assert line.endswith("has expired")
