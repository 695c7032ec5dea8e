"""Fragments of how-to pages, each in the surroundings that its page assumes."""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest
import responses
from flask import Flask, Response, request
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

import peerseal
from peerseal import Identity, Transaction, User
from peerseal.flask import PeerAuth
from peerseal.testing import MemoryRegistry, sign_calls
from tests.docs.pages import block_with

TRANSACTIONS = "docs/how-to/transactions-and-events.md"
SCOPES = frozenset({"orders:write", "trigger_invoicing"})
ADA = User("ada", "https://login.example.com", SCOPES, "jti", 2**40, {})


@pytest.fixture
def registry() -> Iterator[MemoryRegistry]:
    with MemoryRegistry("acme.internal") as registry:
        registry.set_domain(minters=["client-service"])
        yield registry


@pytest.fixture
def caller(registry: MemoryRegistry) -> Identity:
    return registry.identity("client-service")


@pytest.fixture
def callee(registry: MemoryRegistry) -> Identity:
    return registry.identity("billing")


@pytest.fixture
def app(callee: Identity) -> SimpleNamespace:
    """A Flask application, its PeerAuth, and a test client of client-service."""
    flask = Flask("billing")
    auth = PeerAuth(flask, callee, allow={"client-service": SCOPES})
    return SimpleNamespace(
        flask=flask, auth=auth, names={"app": flask, "auth": auth, "identity": callee, "peerseal": peerseal}
    )


def test_a_foreign_service_calls_until_the_federation_ends() -> None:
    names: dict[str, Any] = {"peerseal": peerseal}
    exec(block_with("docs/how-to/federation-services.md", "end_federation"), names)
    assert names["peer"].id == "partner.example/billing"
    assert names["peer"].scopes == {"orders:read"}


@pytest.fixture
def transaction(caller: Identity) -> Transaction:
    return caller.mint_transaction(ADA, scope=SCOPES)


def test_an_asgi_application_needs_what_its_paths_need(caller: Identity, callee: Identity) -> None:
    async def answer(_: Any) -> PlainTextResponse:
        return PlainTextResponse("ok")

    routes = [Route(path, answer) for path in ("/healthz", "/profiles", "/orders", "/else")]
    names: dict[str, Any] = {"identity": callee, "Starlette": lambda **_: Starlette(routes=routes)}
    exec(block_with("docs/how-to/asgi.md", "Starlette(routes"), names)
    assert TestClient(names["app"]).get("/healthz").status_code == 200
    client = sign_calls(TestClient(names["app"]), caller, "billing")
    assert [client.get(path).status_code for path in ("/profiles", "/else", "/orders")] == [200, 200, 401]


@responses.activate
def test_an_edge_mints_for_a_user_and_the_call_carries_it(app: SimpleNamespace, caller: Identity) -> None:
    stock = responses.post("http://stock/reservations", json={})
    mine = {"stock": caller.session("stock", "http://stock"), "bearer_token_of": lambda _: "token"}
    names = {**app.names, **mine, "identity": caller, "request": request, "payload": b"{}", "event_id": "1"}
    exec(block_with(TRANSACTIONS, "UserVerifier").replace("json=...", "json={}"), names)
    names["users"] = SimpleNamespace(verify=lambda _: ADA)
    with app.flask.test_request_context("/orders", method="POST"):
        names["order"]()
    assert "Txn-Token" in stock.calls[0].request.headers


def test_a_view_reads_its_user_and_is_closed_to_calls_without_one(
    app: SimpleNamespace, caller: Identity, transaction: Transaction
) -> None:
    exec(block_with(TRANSACTIONS, "transaction=True"), {**app.names, "cases_of": lambda user: {"of": user}})
    client = sign_calls(app.flask.test_client(), caller, "billing")
    with peerseal.carrying(transaction):
        assert client.get("/cases/7").json == {"of": "ada"}
    assert client.get("/cases/7").json["code"] == "bad_transaction_token"


def test_a_pool_works_for_the_user_of_the_code_that_submits(transaction: Transaction) -> None:
    seen: SimpleQueue[Any] = SimpleQueue()
    stock = SimpleNamespace(get=lambda path: seen.put((path, peerseal.current_transaction().user)))
    names = {"peerseal": peerseal, "ThreadPoolExecutor": ThreadPoolExecutor, "stock": stock, "ids": [1]}
    with peerseal.carrying(transaction):
        exec(block_with(TRANSACTIONS, "propagate"), names)
    assert seen.get(timeout=20) == ("/items/1", "ada")


def test_an_event_is_verified_with_the_user_of_its_transaction(
    caller: Identity, callee: Identity, transaction: Transaction
) -> None:
    about = {"topic": "OrderCreated", "audience": "jobs.example.com", "scope": "trigger_invoicing", "event_id": "1"}
    with peerseal.carrying(transaction):
        headers = caller.sign_event(b"{}", **about)
    names: dict[str, Any] = {"identity": callee, "peerseal": peerseal, "payload": b"{}", "headers": headers}
    exec(block_with(TRANSACTIONS, "EventVerifier"), {**names, "timedelta": timedelta}, names)
    assert (names["event"].user, names["event"].transaction_id) == ("ada", transaction.id)


@responses.activate
def test_a_session_takes_limits_of_its_own(caller: Identity) -> None:
    responses.get("http://resource-service/profiles/1", json={})
    names = {"identity": caller, "peerseal": peerseal}
    exec(block_with("docs/how-to/failing-fast.md", "CallLimits"), names)
    assert names["session"].get("/profiles/1").status_code == 200


def test_accepted_calls_are_handed_to_the_application(callee: Identity, caller: Identity) -> None:
    queue: SimpleQueue[Any] = SimpleQueue()
    flask, allow = Flask("billing"), {"client-service": ()}
    flask.get("/")(lambda: "ok")
    names = {"peerseal": peerseal, "app": flask, "identity": callee, "ALLOW": allow, "queue": queue}
    exec(block_with("docs/how-to/audit.md", "on_verified"), names)
    assert sign_calls(flask.test_client(), caller, "billing").get("/").text == "ok"
    assert queue.get_nowait().caller == "acme.internal/client-service"


def test_a_log_handler_shows_the_ids_of_request_and_transaction(capsys: pytest.CaptureFixture[str]) -> None:
    log, handler = logging.Logger("app"), logging.StreamHandler()
    exec(
        block_with("docs/how-to/audit.md", "RequestContextFilter"),
        {"peerseal": peerseal, "logging": logging, "handler": handler},
    )
    log.addHandler(handler)
    log.warning("done")
    assert capsys.readouterr().err == "WARNING [- -] done\n"


def test_the_status_of_a_trust_store_can_be_read(caller: Identity, callee: Identity) -> None:
    caller.trust.key(callee.credentials.key_id)
    names: dict[str, Any] = {"identity": caller}
    exec(block_with("docs/explanation/trust-store.md", "trust.status()"), names)
    assert names["status"].ready


def test_readiness_and_metrics_are_open(app: SimpleNamespace) -> None:
    exec(block_with("docs/explanation/trust-store.md", "is_ready"), app.names)
    exec(block_with("docs/how-to/operations.md", "identity.metrics()"), {**app.names, "Response": Response})
    client = app.flask.test_client()
    assert client.get("/readyz").json == {"ready": True}
    assert "\npeerseal_" in client.get("/metrics").text
