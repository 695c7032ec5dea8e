"""Services for the test that users do not mix: an edge on threads, one on an event loop, and a callee that says whom it
was called for. ``gunicorn tests.support.mixing:edge()``, ``…:callee()``; ``uvicorn --factory …:relay``.
"""

import asyncio
import json
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import requests
from flask import Flask, request

import peerseal
import peerseal.asgi
import peerseal.flask

SCOPE = "read"


def callee() -> Flask:
    """Answers with the user it was called for, and who called."""
    identity = peerseal.Identity.from_env().start()
    app = Flask(__name__)
    auth = peerseal.flask.PeerAuth(app, identity, allow={"edge": {SCOPE}, "relay": {SCOPE}})

    @app.get("/my-public-credentials")
    @auth.public
    def credentials() -> dict[str, str]:
        return identity.credentials.to_json()

    @app.get("/user/<call>")
    @auth.require(scope=SCOPE)
    def user(call: str) -> dict[str, Any]:
        transaction = peerseal.current_transaction()
        caller = peerseal.flask.current_peer.service
        return {"user": transaction and transaction.user, "caller": caller, "call": call}

    return app


def edge() -> Flask:
    """For the user in ``X-User``, or for none: two calls over a pool that all requests share, one of them to the relay;
    → whom each was made for."""
    identity = peerseal.Identity.from_env().start()
    app = Flask(__name__)
    pool = peerseal.propagate(ThreadPoolExecutor(8))
    sessions = [_session(identity, name) for name in ("callee", "relay")]

    @app.get("/my-public-credentials")
    def credentials() -> dict[str, str]:
        return identity.credentials.to_json()

    @app.get("/fan-out")
    def fan_out() -> dict[str, Any]:
        name = request.headers.get("X-User")
        transaction = None
        if name:
            proven = peerseal.User(name, "https://login.example.com", frozenset((SCOPE,)), "u", 2**40, {})
            transaction = identity.mint_transaction(proven, scope=[SCOPE])
        with peerseal.carrying(transaction):
            users = list(pool.map(lambda session: session.get("/user/1").json(), sessions))
        return {"users": [one["user"] for one in users], "own": _user()}

    return app


def relay() -> peerseal.asgi.PeerAuth:
    """Calls on, twice at once, on an event loop; → whom both were made for, if it was the same."""
    identity = peerseal.Identity.from_env().start()
    session = _session(identity, "callee")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body: dict[str, Any] = identity.credentials.to_json()
        if scope["path"].startswith("/user/"):
            calls = (asyncio.to_thread(session.get, f"/user/{number}") for number in range(2))
            users = {answer.json()["user"] for answer in await asyncio.gather(*calls)}
            body = {"user": users.pop() if users == {_user()} else "mixed"}
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": json.dumps(body).encode()})

    needs = {"/user": peerseal.asgi.Need(SCOPE), "/my-public-credentials": peerseal.asgi.PUBLIC}
    return peerseal.asgi.PeerAuth(app, identity, allow={"edge": {SCOPE}}, needs=needs)


def _user() -> str | None:
    transaction = peerseal.current_transaction()
    return None if transaction is None else transaction.user


def _session(identity: peerseal.Identity, name: str) -> requests.Session:
    """To the service at ``CALLEE_URL`` or ``RELAY_URL``."""
    return identity.session(name, os.environ[f"{name.upper()}_URL"])
