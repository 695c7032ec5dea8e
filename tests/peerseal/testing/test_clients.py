"""`peerseal.testing.sign_calls`: test clients that call as a service would."""

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask import Flask, redirect, request, session
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from werkzeug.test import Client

from peerseal import Identity, User, asgi, carrying
from peerseal.errors import ConfigurationError
from peerseal.flask import PeerAuth, current_peer
from peerseal.testing import MemoryRegistry, sign_calls

CALLEE = "billing"


@pytest.fixture
def caller(peerseal_registry: MemoryRegistry) -> Identity:
    return peerseal_registry.identity("shop")


@pytest.fixture
def app(peerseal_registry: MemoryRegistry) -> Flask:
    """A callee that says who called, and with what."""
    app = Flask(__name__)
    app.secret_key = "for sessions"
    auth = PeerAuth(app, peerseal_registry.identity(CALLEE), allow={"shop": {"read"}})

    @app.route("/echo", methods=["GET", "POST"])
    @auth.require(scope="read")
    def echo() -> dict[str, Any]:
        session["seen"] = True
        user = current_peer.transaction.user if current_peer.transaction else None
        return {"by": current_peer.service, "body": request.get_data(as_text=True), "user": user}

    @app.get("/items/<path:name>")
    def item(name: str) -> dict[str, Any]:
        return {"name": name, "q": request.args.get("q")}

    @app.get("/moved")
    def moved() -> Any:
        return redirect("/echo?again=1")

    return app


@pytest.fixture
def starlette(peerseal_registry: MemoryRegistry) -> asgi.PeerAuth:
    """The same for ASGI."""

    async def echo(request: Request) -> JSONResponse:
        return JSONResponse({"by": asgi.current_peer().service, "body": (await request.body()).decode(), "user": None})

    async def moved(_: Request) -> RedirectResponse:
        return RedirectResponse("/echo?again=1")

    routes = [Route("/echo", echo, methods=["GET", "POST"]), Route("/moved", moved)]
    needs = {"/": asgi.ANY_ALLOWED}

    async def away(_: Request) -> RedirectResponse:
        return RedirectResponse("http://other.example/echo")

    async def item(request: Request) -> JSONResponse:
        return JSONResponse({"name": request.path_params["name"], "q": request.query_params.get("q")})

    routes += [Route("/away", away), Route("/items/{name:path}", item)]
    return asgi.PeerAuth(Starlette(routes=routes), peerseal_registry.identity(CALLEE), allow={"shop": ()}, needs=needs)


TARGETS = ["/echo", "/echo?a=1&b=%2F", "/echo?q=caf%C3%A9"]


@pytest.mark.parametrize("target", TARGETS)
def test_flasks_client_signs_target_body_and_type(app: Flask, caller: Identity, target: str) -> None:
    client = sign_calls(app.test_client(), caller, CALLEE)
    assert client.get(target).json == {"by": "shop", "body": "", "user": None}
    assert client.post(target, json=[1]).json == {"by": "shop", "body": "[1]", "user": None}


def test_a_werkzeug_client_signs_too(app: Flask, caller: Identity) -> None:
    assert sign_calls(Client(app), caller, CALLEE).get("/echo").status_code == 200


@pytest.mark.parametrize("target", TARGETS)
def test_starlettes_client_signs_target_body_and_type(starlette: asgi.PeerAuth, caller: Identity, target: str) -> None:
    client = sign_calls(TestClient(starlette), caller, CALLEE)
    assert client.get(target).json() == {"by": "shop", "body": "", "user": None}
    assert client.post(target, json=[1]).json() == {"by": "shop", "body": "[1]", "user": None}
    assert client.post(target, content=iter([b"in ", b"pieces"])).json()["body"] == "in pieces"


WRITTEN: dict[str, dict[str, str | None]] = {
    "/items/Köln": {"name": "Köln", "q": None},
    "items/7": {"name": "7", "q": None},
    "/items/a b": {"name": "a b", "q": None},
    "/items/7?q=ü": {"name": "7", "q": "ü"},
    "/items/7?q=a b": {"name": "7", "q": "a b"},
    "/items/7?q=[1]?": {"name": "7", "q": "[1]?"},
    "/items/100%": {"name": "100%", "q": None},
    '/items/a|b"': {"name": 'a|b"', "q": None},
    "/items/K%C3%B6ln%20b": {"name": "Köln b", "q": None},
    "http://localhost/items/ü": {"name": "ü", "q": None},
}
"""Targets as tests write them, and what the application reads."""


@pytest.mark.parametrize("target", WRITTEN)
def test_flasks_client_signs_a_target_as_tests_write_it(app: Flask, caller: Identity, target: str) -> None:
    assert sign_calls(app.test_client(), caller, CALLEE).get(target).json == WRITTEN[target]


@pytest.mark.parametrize("target", WRITTEN)
def test_starlettes_client_signs_a_target_as_tests_write_it(
    starlette: asgi.PeerAuth, caller: Identity, target: str
) -> None:
    client = sign_calls(TestClient(starlette, base_url="http://localhost"), caller, CALLEE)
    assert client.get(target).json() == WRITTEN[target]


def test_flasks_client_signs_a_query_and_a_prefix_that_are_options(app: Flask, caller: Identity) -> None:
    client = sign_calls(app.test_client(), caller, CALLEE)
    assert client.get("/items/7", query_string={"q": "ü /"}).json == {"name": "7", "q": "ü /"}
    assert client.get("/items/a%2Fb", base_url="http://localhost/pre fix/").json == {"name": "a/b", "q": None}


def test_an_asynchronous_client_signs_too(starlette: asgi.PeerAuth, caller: Identity) -> None:
    async def calls() -> list[Any]:
        transport = httpx.ASGITransport(starlette)
        async with httpx.AsyncClient(transport=transport, base_url="http://billing", follow_redirects=True) as client:
            sign_calls(client, caller, CALLEE)
            return [(await client.post("/echo", json=[1])).json(), (await client.get("/moved")).json()["by"]]

    assert asyncio.run(calls()) == [{"by": "shop", "body": "[1]", "user": None}, "shop"]


def test_a_redirect_is_signed_anew(app: Flask, starlette: asgi.PeerAuth, caller: Identity) -> None:
    flask_client = sign_calls(app.test_client(), caller, CALLEE)
    assert flask_client.get("/moved", follow_redirects=True).json["by"] == "shop"
    assert sign_calls(TestClient(starlette), caller, CALLEE).get("/moved").json()["by"] == "shop"


def test_a_redirect_to_another_host_is_followed(starlette: asgi.PeerAuth, caller: Identity) -> None:
    """All hosts are the same application here. httpx takes the token away."""
    assert sign_calls(TestClient(starlette), caller, CALLEE).get("/away").json()["by"] == "shop"


def test_a_call_with_a_token_of_its_own_is_sent_as_it_is(
    app: Flask, starlette: asgi.PeerAuth, caller: Identity
) -> None:
    own = {"Authorization": "Bearer a.b.c"}
    assert sign_calls(app.test_client(), caller, CALLEE).get("/echo", headers=own).json["code"] == "malformed_token"
    answer = sign_calls(TestClient(starlette), caller, CALLEE).get("/echo", headers=own)
    assert answer.json()["code"] == "malformed_token"


def test_a_call_carries_the_current_transaction(
    app: Flask, peerseal_registry: MemoryRegistry, caller: Identity
) -> None:
    peerseal_registry.set_domain(minters=["shop"])
    ada = User("ada", "https://login.example.com", frozenset(("read",)), "jti", 2**40, {})
    client = sign_calls(app.test_client(), caller, CALLEE)
    with carrying(caller.mint_transaction(ada, scope=["read"])):
        assert client.get("/echo").json["user"] == "ada"
    assert client.get("/echo").json["user"] is None


def test_flasks_client_keeps_sessions_and_contexts(app: Flask, caller: Identity) -> None:
    with sign_calls(app.test_client(), caller, CALLEE) as client:
        client.get("/echo")
        assert request.path == "/echo"
        with client.session_transaction() as kept:
            assert kept["seen"] is True


@pytest.mark.parametrize("make", [object, lambda: None, lambda: Flask("app")], ids=["object", "None", "Flask"])
def test_what_is_no_test_client_is_refused(caller: Identity, make: Callable[[], object]) -> None:
    with pytest.raises(ConfigurationError, match="expected one of Flask, Starlette"):
        sign_calls(make(), caller, CALLEE)


DJANGO = Path(__file__).with_name("django_project.py")


def test_djangos_client_calls_views_whose_verifier_accepts_it() -> None:
    """In a process of its own: Django has one configuration in each."""
    command = [sys.executable, "-W", "error", DJANGO]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.stdout.splitlines() == [
        "200 shop",
        "200 shop [1]",
        "200 shop",
        "200 shop",
        "200 Köln",
        "200 7",
        "200 a b",
        "200 7 ü [1]?",
        "401 missing_token",
        "AsyncClient cannot be signed; use Django's Client, which calls async views too",
    ], ended.stderr
