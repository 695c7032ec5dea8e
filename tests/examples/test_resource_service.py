"""resource-service as services see it: what is a user's own is told only while they work for that user."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from flask import Flask

from peerseal import Identity, Transaction, User
from resource_service.database import EventInvoicedOtherwise
from tests.examples.world import ISSUER_URL, NO_JSON, World, ask

ADA = User("ada", ISSUER_URL, frozenset(("trigger_invoicing", "invoices:read", "profiles:read")), "j-1", 2**40, {})


@pytest.fixture
def resource(world: World) -> Flask:
    return world.resource_app


def minted(minter: Identity, scope: Iterable[str], user: User = ADA) -> Transaction:
    return minter.mint_transaction(user, scope=scope, transaction_id="t-1")


def test_a_case_is_told_within_its_transaction(served: World, resource: Flask) -> None:
    answer = ask(resource, served.invoicing, "/cases/t-1", minted(served.invoicing, ["trigger_invoicing"]))
    assert answer.status_code == 200
    told = answer.get_json()
    assert (told["caseID"], told["userID"], told["state"]) == ("t-1", "ada", "open")
    assert told["chain"][0] == {"service": "resource-service", "caller": "invoicing", "user": "ada"}


def test_the_case_of_another_transaction_is_not(world: World, resource: Flask) -> None:
    answer = ask(resource, world.invoicing, "/cases/t-2", minted(world.invoicing, ["trigger_invoicing"]))
    assert (answer.status_code, answer.get_json()["code"]) == (404, "case_not_found")


@pytest.mark.parametrize("path", ["/cases/t-1", "/cases", "/invoices"])
def test_what_is_a_users_own_is_not_told_where_no_user_stands_behind_the_call(
    world: World, resource: Flask, path: str
) -> None:
    caller = world.invoicing if path == "/cases/t-1" else world.client
    answer = ask(resource, caller, path)
    assert (answer.status_code, answer.get_json()["code"]) == (401, "bad_transaction_token")


def test_a_case_is_told_to_the_consumer_only(world: World, resource: Flask) -> None:
    answer = ask(resource, world.client, "/cases/t-1", minted(world.client, ["trigger_invoicing"]))
    assert (answer.status_code, answer.get_json()["code"]) == (403, "insufficient_scope")


@pytest.mark.parametrize("path", ["/cases/t-1", "/cases", "/invoices"])
def test_the_transaction_must_allow_it_too(world: World, resource: Flask, path: str) -> None:
    caller = world.invoicing if path == "/cases/t-1" else world.client
    answer = ask(resource, caller, path, minted(world.client, ["profiles:read"]))
    assert (answer.status_code, answer.get_json()["code"]) == (403, "insufficient_scope")


def test_invoices_are_those_of_the_user_at_that_issuer(world: World, resource: Flask) -> None:
    world.invoices.add(world.transaction_of_event("e-1", user=ADA), "e-1", 895)
    namesake = User("ada", "https://login.example", ADA.scopes, "j-2", 2**40, {})
    grace = User("grace", ISSUER_URL, ADA.scopes, "j-3", 2**40, {})
    found = [
        ask(resource, world.client, "/invoices", minted(world.client, ["invoices:read"], user)).get_json()["invoices"]
        for user in (ADA, namesake, grace)
    ]
    assert [[invoice["amount"] for invoice in invoices] for invoices in found] == [[895], [], []]


@pytest.mark.parametrize("body", NO_JSON)
def test_a_search_that_is_no_json_is_refused(world: World, resource: Flask, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    token = world.client.sign_request(
        "resource-service",
        method="POST",
        target="/profiles/search",
        body=body,
        headers={"content-type": headers["Content-Type"]},
    )
    answer = resource.test_client().post(
        "/profiles/search", data=body, headers={"Authorization": f"Bearer {token}", **headers}
    )
    assert (answer.status_code, answer.get_json()["code"]) == (400, "bad_search")


@pytest.mark.parametrize("path", ["/profiles/1", "/cases/t-1", "/cases", "/invoices"])
def test_nothing_is_told_to_a_service_that_is_not_on_the_list(world: World, resource: Flask, path: str) -> None:
    answer = ask(resource, world.registry.identity("stranger"), path)
    assert (answer.status_code, answer.get_json()["code"]) == (403, "caller_not_allowed")


def test_an_event_is_invoiced_once_however_often_it_is_asked(world: World, resource: Flask) -> None:
    transaction = world.transaction_of_event("e-1", user=ADA)
    answers = [ask(resource, world.invoicing, "/invoices", transaction, {"amount": 895}) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [201, 200, 200]
    assert len({answer.get_json()["invoiceID"] for answer in answers}) == 1
    assert answers[0].get_json()["userID"] == "ada"
    assert world.invoiced("ada") == [895]


def test_events_of_the_same_id_are_invoiced_each_where_their_publishers_differ(world: World) -> None:
    transaction = world.transaction_of_event("e-1", user=ADA)
    another = replace(transaction, workload=f"{world.registry.domain}/shop")
    assert [world.invoices.add(one, "e-1", 895)[1] for one in (transaction, another)] == [True, True]


@pytest.mark.parametrize(
    ("changes", "amount"), [({}, 1), ({"user": "grace"}, 895), ({"id": "t-2"}, 895), ({"authentication": {}}, 895)]
)
def test_an_event_that_was_invoiced_is_not_invoiced_otherwise(
    world: World, changes: dict[str, Any], amount: int
) -> None:
    transaction = world.transaction_of_event("e-1", user=ADA)
    world.invoices.add(transaction, "e-1", 895)
    with pytest.raises(EventInvoicedOtherwise):
        world.invoices.add(replace(transaction, **changes), "e-1", amount)
    assert world.invoiced("ada") == [895]
    assert world.invoiced("grace") == []


def test_an_invoice_that_says_something_else_is_a_conflict(world: World, resource: Flask) -> None:
    transaction = world.transaction_of_event("e-1", user=ADA)
    ask(resource, world.invoicing, "/invoices", transaction, {"amount": 895})
    answer = ask(resource, world.invoicing, "/invoices", transaction, {"amount": 1})
    assert (answer.status_code, answer.get_json()["code"]) == (409, "invoiced_otherwise")


@pytest.mark.parametrize(
    "body",
    [[], {}, {"amount": "895"}, {"amount": True}, {"amount": -1}, {"amount": 10**13}, {"amount": 1, "user": "x"}],
)
def test_an_invoice_with_anything_else_in_it_is_refused(world: World, resource: Flask, body: Any) -> None:
    answer = ask(resource, world.invoicing, "/invoices", world.transaction_of_event("e-1", user=ADA), body)
    assert (answer.status_code, answer.get_json()["code"]) == (400, "bad_invoice")
    assert world.invoiced("ada") == []


def test_an_invoice_is_made_for_an_event_only(world: World, resource: Flask) -> None:
    begun_by_a_call = minted(world.invoicing, ["trigger_invoicing"])
    answer = ask(resource, world.invoicing, "/invoices", begun_by_a_call, {"amount": 895})
    assert (answer.status_code, answer.get_json()["code"]) == (400, "no_event")


def test_an_invoice_is_made_by_the_consumer_only_and_for_a_user_only(world: World, resource: Flask) -> None:
    body = {"amount": 895}
    by_client = ask(resource, world.client, "/invoices", minted(world.client, ["trigger_invoicing"]), body)
    of_another_purpose = ask(resource, world.invoicing, "/invoices", minted(world.invoicing, ["invoices:read"]), body)
    for_nobody = ask(resource, world.invoicing, "/invoices", None, body)
    assert [answer.get_json()["code"] for answer in (by_client, of_another_purpose, for_nobody)] == [
        "insufficient_scope",
        "insufficient_scope",
        "bad_transaction_token",
    ]
    assert world.invoiced("ada") == []
