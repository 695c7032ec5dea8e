"""resource-service as services see it: what is a user's own is told only while they work for that user."""

from collections.abc import Iterable

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from client_service.settings import ISSUER_URL
from peerseal import Identity, Transaction, User, carrying
from tests.examples.world import NO_JSON, World

ADA = User("ada", ISSUER_URL, frozenset(("trigger_invoicing", "invoices:read", "profiles:read")), "j-1", 2**40, {})


@pytest.fixture
def resource(world: World) -> FlaskClient:
    return world.resource_app.test_client()


def ask(resource: FlaskClient, caller: Identity, path: str, transaction: Transaction | None = None) -> TestResponse:
    """GET, signed by the caller, in that transaction."""
    headers = {} if transaction is None else {"Txn-Token": transaction.carry()}
    with carrying(transaction):
        bound = {name.lower(): value for name, value in headers.items()}
        token = caller.sign_request("resource-service", method="GET", target=path, headers=bound)
    return resource.get(path, headers={"Authorization": f"Bearer {token}", **headers})


def minted(minter: Identity, scope: Iterable[str], user: User = ADA) -> Transaction:
    return minter.mint_transaction(user, scope=scope, transaction_id="t-1")


def test_a_case_is_told_within_its_transaction(world: World, resource: FlaskClient) -> None:
    answer = ask(resource, world.invoicing, "/cases/t-1", minted(world.invoicing, ["trigger_invoicing"]))
    assert answer.status_code == 200
    assert answer.get_json() == {"caseID": "t-1", "userID": "ada", "state": "open", "caller": "invoicing"}


def test_the_case_of_another_transaction_is_not(world: World, resource: FlaskClient) -> None:
    answer = ask(resource, world.invoicing, "/cases/t-2", minted(world.invoicing, ["trigger_invoicing"]))
    assert (answer.status_code, answer.get_json()["code"]) == (404, "case_not_found")


@pytest.mark.parametrize("path", ["/cases/t-1", "/invoices"])
def test_what_is_a_users_own_is_not_told_where_no_user_stands_behind_the_call(
    world: World, resource: FlaskClient, path: str
) -> None:
    caller = world.invoicing if path.startswith("/cases") else world.client
    answer = ask(resource, caller, path)
    assert (answer.status_code, answer.get_json()["code"]) == (401, "bad_transaction_token")


def test_a_case_is_told_to_the_consumer_only(world: World, resource: FlaskClient) -> None:
    answer = ask(resource, world.client, "/cases/t-1", minted(world.client, ["trigger_invoicing"]))
    assert (answer.status_code, answer.get_json()["code"]) == (403, "insufficient_scope")


@pytest.mark.parametrize("path", ["/cases/t-1", "/invoices"])
def test_the_transaction_must_allow_it_too(world: World, resource: FlaskClient, path: str) -> None:
    caller = world.invoicing if path.startswith("/cases") else world.client
    answer = ask(resource, caller, path, minted(world.client, ["profiles:read"]))
    assert (answer.status_code, answer.get_json()["code"]) == (403, "insufficient_scope")


def test_invoices_are_those_of_the_user_at_that_issuer(world: World, resource: FlaskClient) -> None:
    event = world.proven_event("e-1", user=ADA)
    assert world.invoices.add(event, 895)
    namesake = User("ada", "https://login.example", ADA.scopes, "j-2", 2**40, {})
    grace = User("grace", ISSUER_URL, ADA.scopes, "j-3", 2**40, {})
    found = [
        ask(resource, world.client, "/invoices", minted(world.client, ["invoices:read"], user)).get_json()["invoices"]
        for user in (ADA, namesake, grace)
    ]
    assert [[invoice["amount"] for invoice in invoices] for invoices in found] == [[895], [], []]


@pytest.mark.parametrize("body", NO_JSON)
def test_a_search_that_is_no_json_is_refused(world: World, resource: FlaskClient, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    token = world.client.sign_request(
        "resource-service",
        method="POST",
        target="/profiles/search",
        body=body,
        headers={"content-type": headers["Content-Type"]},
    )
    answer = resource.post("/profiles/search", data=body, headers={"Authorization": f"Bearer {token}", **headers})
    assert (answer.status_code, answer.get_json()["code"]) == (400, "bad_search")


@pytest.mark.parametrize("path", ["/profiles/1", "/cases/t-1", "/invoices"])
def test_nothing_is_told_to_a_service_that_is_not_on_the_list(world: World, resource: FlaskClient, path: str) -> None:
    answer = ask(resource, world.registry.identity("stranger"), path)
    assert (answer.status_code, answer.get_json()["code"]) == (403, "caller_not_allowed")


def test_an_event_is_invoiced_once_however_often_it_is_asked(world: World) -> None:
    event = world.proven_event("e-1", user=ADA)
    assert [world.invoices.add(event, 895) for _ in range(3)] == [True, False, False]
    assert world.invoiced("ada") == [895]
