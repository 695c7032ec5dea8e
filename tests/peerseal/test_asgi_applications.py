"""Applications behind the ASGI gate: their errors, their threads, and those of Starlette's."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from peerseal import Identity, User
from peerseal.asgi import current_peer, require_scope
from peerseal.errors import TrustUnavailable
from peerseal.testing import MemoryRegistry
from tests.support.asgi import Callee, signed, user


@pytest.fixture
def registry() -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as registry:
        registry.set_domain(minters=["client"])
        yield registry


@pytest.fixture
def client(registry: MemoryRegistry) -> Identity:
    return registry.identity("client")


def token_for_ada(client: Identity) -> str:
    proven = User("ada", "https://login.example.com", frozenset(("read",)), "u", 2**40, {})
    return client.mint_transaction(proven, scope=["read"]).carry()


async def fails(*_: Any) -> None:
    raise ZeroDivisionError(user())


async def asks_and_fails(*_: Any) -> None:
    raise TrustUnavailable("a call that could not be signed")


def test_an_applications_error_is_its_own_and_leaves_nobody(registry: MemoryRegistry, client: Identity) -> None:
    token = token_for_ada(client)
    callee = Callee(registry, fails)

    async def called() -> str | None:
        headers = [(name.encode(), value.encode()) for name, value in signed(client, txn_token=token).items()]
        scope = {"type": "http", "method": "GET", "path": "/x", "raw_path": b"/x", "headers": headers}
        with pytest.raises(ZeroDivisionError, match="ada"):
            await callee.auth(scope, only_a_request, nothing)
        return user()

    assert asyncio.run(called()) is None
    assert callee.auth.refusals == {}


async def only_a_request() -> Any:
    return {"type": "http.request", "body": b"", "more_body": False}


async def nothing(_: Any) -> None:
    return


def test_an_outgoing_call_that_cannot_be_signed_is_answered_as_flask_does(
    registry: MemoryRegistry, client: Identity
) -> None:
    answer = Callee(registry, asks_and_fails).call(headers=signed(client))
    assert (answer.status, answer.json["code"]) == (503, "trust_unavailable")


def in_a_thread(_: Request) -> JSONResponse:
    return JSONResponse({"caller": current_peer().service, "user": user()})


async def in_the_loop(_: Request) -> JSONResponse:
    return JSONResponse({"user": user(), "from a thread": await asyncio.to_thread(user)})


def late_in_a_thread(_: Request) -> JSONResponse:
    require_scope("admin")
    return JSONResponse({})


async def late_in_the_loop(_: Request) -> JSONResponse:
    require_scope("read", transaction=True)
    return JSONResponse({})


ROUTES = [
    Route("/thread", in_a_thread),
    Route("/loop", in_the_loop),
    Route("/admin", in_a_thread),
    Route("/late-in-a-thread", late_in_a_thread),
    Route("/late-in-the-loop", late_in_the_loop),
]


def test_starlettes_handlers_know_caller_and_user_wherever_they_run(registry: MemoryRegistry, client: Identity) -> None:
    callee = Callee(registry, Starlette(routes=ROUTES))
    token = token_for_ada(client)
    assert callee.call(target="/thread", headers=signed(client, target="/thread", txn_token=token)).json == {
        "caller": "client",
        "user": "ada",
    }
    assert callee.call(target="/loop", headers=signed(client, target="/loop", txn_token=token)).json == {
        "user": "ada",
        "from a thread": "ada",
    }
    assert callee.call(target="/thread", headers=signed(client, target="/thread")).json["user"] is None


def test_what_starlettes_handlers_refuse_is_no_500(registry: MemoryRegistry, client: Identity) -> None:
    callee = Callee(registry, Starlette(routes=ROUTES))
    for path, status, code in (
        ("/late-in-a-thread", 403, "insufficient_scope"),
        ("/late-in-the-loop", 401, "bad_transaction_token"),
    ):
        answer = callee.call(target=path, headers=signed(client, target=path))
        assert (answer.status, answer.json["code"]) == (status, code)


def test_a_mounted_gate_tells_needs_below_its_mount(registry: MemoryRegistry, client: Identity) -> None:
    gate = Callee(registry, Starlette(routes=ROUTES))
    gate.auth, inner = Starlette(routes=[Mount("/v1", gate.auth)]), gate.auth  # type: ignore[assignment]
    for path, status in (("/v1/thread", 200), ("/v1/admin", 403), ("/v1/admin%0A", 403)):
        assert gate.call(target=path, headers=signed(client, target=path)).status == status
    assert inner.refusals == {"insufficient_scope": 2}
