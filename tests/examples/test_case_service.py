"""The third service of the chain: data of its own, and an answer for resource-service only, in a user's name."""

import base64
import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import inspect
from werkzeug.test import TestResponse

from peerseal import Identity, Transaction, User
from peerseal.testing import MemoryRegistry
from tests.examples.test_users import token_of_another_sort
from tests.examples.world import ISSUER_URL, Person, World, ask, served_at
from tests.support.brokers import eventually

PURPOSE, READ = "trigger_invoicing", "cases:read"
ADA = User("ada", ISSUER_URL, frozenset((PURPOSE, READ)), "j-1", 2**40, {})
GRACE = replace(ADA, name="grace")
NAMESAKE = replace(ADA, issuer="https://login.example")


def in_name_of(user: User, minter: Identity, scope: Iterable[str] = (PURPOSE,)) -> Transaction:
    return minter.mint_transaction(user, scope=scope, transaction_id="t-1")


def opened(world: World, caller: Identity, transaction: Transaction | None, path: str = "/cases/t-1") -> TestResponse:
    """What case-service itself answers to a call that opens a case."""
    return ask(world.cases_app, caller, path, transaction, method="PUT", audience="case-service")


def listed(world: World, caller: Identity, transaction: Transaction | None) -> TestResponse:
    return ask(world.cases_app, caller, "/cases", transaction, audience="case-service")


def code_of(answer: TestResponse) -> tuple[int, str]:
    return answer.status_code, answer.get_json()["code"]


def stored(world: World) -> list[str]:
    """All cases that are kept."""
    with world.cases_database.connect() as connection:
        return [row[0] for row in connection.exec_driver_sql("SELECT case_id FROM cases")]


# ---- the chain


def test_the_answer_at_the_edge_shows_who_called_whom_for_which_user(served: World, ada: Person) -> None:
    in_transaction = in_name_of(ADA, served.invoicing)
    assert ask(served.resource_app, served.invoicing, "/cases/t-1", in_transaction).status_code == 200
    told = ada.get("/cases").get_json()
    assert [(case["caseID"], case["userID"]) for case in told["cases"]] == [("t-1", "ada")]
    assert told["chain"] == [
        {"service": "resource-service", "caller": "client-service", "user": "ada"},
        {"service": "case-service", "caller": "resource-service", "user": "ada"},
    ]


def test_the_consumers_question_is_passed_on_in_the_same_transaction(served: World) -> None:
    answer = ask(served.resource_app, served.invoicing, "/cases/t-1", in_name_of(ADA, served.invoicing))
    assert answer.get_json()["chain"] == [
        {"service": "resource-service", "caller": "invoicing", "user": "ada"},
        {"service": "case-service", "caller": "resource-service", "user": "ada"},
    ]
    assert stored(served) == ["t-1"]


def test_an_order_leaves_one_case_at_the_third_service(served: World, ada: Person) -> None:
    with served.consuming():
        placed = ada.order({"itemID": "pen", "quantity": 1})
        eventually(lambda: served.invoiced("ada") == [250], "it is invoiced")
    assert stored(served) == [placed["transactionID"]]


def test_a_case_is_opened_once_and_says_when(world: World) -> None:
    answers = [opened(world, world.resource, in_name_of(ADA, world.client)).get_json() for _ in range(3)]
    assert len({answer["openedAt"] for answer in answers}) == 1
    assert stored(world) == ["t-1"]


def test_no_case_is_kept_at_resource_service(world: World) -> None:
    assert inspect(world.database).get_table_names() == ["invoices"]
    assert inspect(world.cases_database).get_table_names() == ["cases"]


# ---- what is refused


@pytest.mark.parametrize("name", ["client-service", "invoicing", "stranger", "case-service"])
def test_the_third_service_answers_resource_service_only(world: World, name: str) -> None:
    caller = world.registry.identity(name)
    for answer in (
        opened(world, caller, in_name_of(ADA, world.client)),
        listed(world, caller, in_name_of(ADA, world.client, [READ])),
    ):
        assert code_of(answer) == (403, "caller_not_allowed")
    assert stored(world) == []


def test_an_unsigned_call_of_the_third_service_is_refused(world: World) -> None:
    token = in_name_of(ADA, world.client).carry()
    answer = world.cases_app.test_client().get("/cases", headers={"Txn-Token": token})
    assert code_of(answer) == (401, "missing_token")


def test_resource_service_without_a_transaction_learns_nothing(world: World) -> None:
    assert code_of(opened(world, world.resource, None)) == (401, "bad_transaction_token")
    assert code_of(listed(world, world.resource, None)) == (401, "bad_transaction_token")
    assert stored(world) == []


def changed(transaction: Transaction, **claims: Any) -> str:
    """Its token with other claims, under the old signature."""
    header, payload, signature = transaction.carry().split(".")
    read = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    written = json.dumps(read | claims, separators=(",", ":")).encode()
    return f"{header}.{base64.urlsafe_b64encode(written).rstrip(b'=').decode()}.{signature}"


def asked_with(world: World, transaction_token: str) -> TestResponse:
    """resource-service's call with that transaction token, which it binds."""
    headers = {"txn-token": transaction_token}
    request = {"method": "PUT", "target": "/cases/t-1"}
    token = world.resource.sign_request("case-service", headers=headers, **request)
    sent = {"Authorization": f"Bearer {token}", "Txn-Token": transaction_token}
    return world.cases_app.test_client().put("/cases/t-1", headers=sent)


def test_a_transaction_token_that_was_altered_is_refused(world: World) -> None:
    altered = changed(in_name_of(ADA, world.client), sub="grace")
    assert asked_with(world, altered).status_code == 401
    assert stored(world) == []


def test_a_transaction_token_of_another_domain_is_refused(world: World) -> None:
    with MemoryRegistry("elsewhere.internal", clock=world.registry.clock) as elsewhere:
        elsewhere.set_domain(minters=["client-service"])
        foreign = in_name_of(ADA, elsewhere.identity("client-service")).carry()
    answer = asked_with(world, foreign)
    assert code_of(answer) == (401, "bad_transaction_token")
    assert stored(world) == []


def test_a_transaction_of_a_service_that_may_not_speak_for_users_is_refused(world: World) -> None:
    world.registry.set_domain(minters=["client-service", "shop"], issuers=[world.issuer])
    transaction = in_name_of(ADA, world.registry.identity("shop"))
    world.registry.set_domain(minters=["client-service", "invoicing"], issuers=[world.issuer])
    world.third.trust.refresh()
    assert code_of(opened(world, world.resource, transaction)) == (401, "bad_transaction_token")


def test_the_case_of_another_transaction_is_not_opened(world: World) -> None:
    answer = opened(world, world.resource, in_name_of(ADA, world.client), "/cases/t-2")
    assert code_of(answer) == (404, "case_not_found")
    assert stored(world) == []


@pytest.mark.parametrize("other", [GRACE, NAMESAKE], ids=["another user", "a namesake at another issuer"])
def test_the_case_of_another_user_is_as_good_as_none(world: World, other: User) -> None:
    assert opened(world, world.resource, in_name_of(ADA, world.client)).status_code == 200
    assert code_of(opened(world, world.resource, in_name_of(other, world.client))) == (404, "case_not_found")
    assert listed(world, world.resource, in_name_of(other, world.client, [READ])).get_json()["cases"] == []


def test_each_route_of_the_third_service_needs_its_own_scope(world: World) -> None:
    reading, opening = (in_name_of(ADA, world.client, [scope]) for scope in (READ, PURPOSE))
    assert code_of(opened(world, world.resource, reading)) == (403, "insufficient_scope")
    assert code_of(listed(world, world.resource, opening)) == (403, "insufficient_scope")


def test_at_the_edge_cases_need_a_user_whose_token_allows_them(served: World, ada: Person) -> None:
    ada.headers = {"Authorization": f"Bearer {token_of_another_sort(served, ada, scope='orders:read')}"}
    assert code_of(ada.get("/cases")) == (403, "insufficient_scope")
    assert code_of(served.person().get("/cases")) == (401, "missing_token")


# ---- while the third service is not there


def test_while_the_third_service_is_away_its_caller_says_so_and_the_rest_goes_on(world: World) -> None:
    reading = in_name_of(ADA, world.client, [READ])
    answers = [ask(world.resource_app, world.client, "/cases", reading) for _ in range(4)]
    assert {answer.status_code for answer in answers} == {503}
    assert all(int(answer.headers["Retry-After"]) > 0 for answer in answers)
    codes = [answer.get_json()["code"] for answer in answers]
    assert (codes[0], codes[-1]) == ("case_service_unreachable", "circuit_open")
    assert ask(world.resource_app, world.client, "/profiles/1").status_code == 200


def test_a_refusal_by_the_third_service_is_no_answer(world: World) -> None:
    refusing = Flask("refusing")
    refusing.add_url_rule("/cases", "refuse", lambda: ({"code": "caller_not_allowed"}, 403))
    with served_at(world.cases_port, refusing):
        answer = ask(world.resource_app, world.client, "/cases", in_name_of(ADA, world.client, [READ]))
    assert code_of(answer) == (502, "case_service_refused")
    assert "caller_not_allowed" in answer.get_json()["detail"]
