"""Mistakes in what code says: an error when it is said, and never a 500 at each request."""

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from peerseal import EventVerifier, Verifier
from peerseal.asgi import Need
from peerseal.asgi import PeerAuth as AsgiPeerAuth
from peerseal.errors import ConfigurationError, InvalidName
from peerseal.flask import PeerAuth
from registry.domain.errors import OperatorRefused
from registry.services.operators import Role
from tests.registry.driver import Driver
from tests.support.wire import NOW, Keys, Service

ALLOW: list[Any] = [
    "client",
    ["client"],
    7,
    {None: {"a"}},
    {7: {"a"}},
    {b"client": {"a"}},
    {"client": None},
    {"client": 7},
    {"client": "orders:read"},
    {"client": b"ab"},
    {"client": {"a": True}},
    {"client": [None]},
    {"client": [""]},
    {"client": ["a b"]},
    {"client": [["a"]]},
    {"Client": {"a"}},
    {"client ": {"a"}},
    {"": {"a"}},
    {"a/b/c": {"a"}},
]


@pytest.fixture(scope="module")
def keys() -> Keys:
    return Keys()


def verifier(keys: Keys, allow: Any = None) -> Verifier:
    return Verifier(keys, audience="callee", allow={"caller": {"a"}} if allow is None else allow, clock=lambda: NOW)


@pytest.mark.parametrize("allow", ALLOW, ids=repr)
def test_a_mistake_in_allow_is_an_error_at_the_start(keys: Keys, allow: Any) -> None:
    from datetime import timedelta

    with pytest.raises((ConfigurationError, InvalidName)):
        verifier(keys, allow)
    with pytest.raises((ConfigurationError, InvalidName)):
        EventVerifier(keys, audience="jobs", allow=allow, max_age=timedelta(1))


async def application(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


NEEDS: list[Any] = [
    {"/": "x"},
    {"/": None},
    {"/": {"scope": "x"}},
    {"/": Need("")},
    {"/": Need("two words")},
    {"/": Need(7)},  # type: ignore[arg-type]
    {"/": Need("a", public=True)},
    {"/": [Need("a")]},
    {"": Need("a")},
    {"x": Need("a")},
    {None: Need("a")},
    {b"/": Need("a")},
    {"/<id>": Need("a")},
    [("/", Need("a"))],
    "/",
    7,
]


@pytest.mark.parametrize("needs", NEEDS, ids=repr)
def test_a_mistake_in_needs_is_an_error_at_the_start(keys: Keys, needs: Any) -> None:
    with pytest.raises(ConfigurationError):
        AsgiPeerAuth(application, needs=needs, verifier=verifier(keys))


@pytest.mark.parametrize(
    "options",
    [{"header": ""}, {"header": "a b"}, {"header": None}, {"max_body": -1}, {"max_body": "1"}, {"max_body": True}],
)
def test_a_mistake_in_an_option_is_an_error_at_the_start(keys: Keys, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        PeerAuth(Flask("a"), verifier=verifier(keys), **options)
    with pytest.raises(ConfigurationError):
        AsgiPeerAuth(application, verifier=verifier(keys), **options)


@pytest.mark.parametrize("scope", ["", " ", "a b", None, 7, ["a"], {"a"}, b"a", "é", "a\n"])
def test_a_mistake_in_a_mark_is_an_error_at_the_start(keys: Keys, scope: Any) -> None:
    with pytest.raises(ConfigurationError):
        PeerAuth(Flask("a"), verifier=verifier(keys)).require(scope=scope)


def status(app: Any, path: str, token: str | None) -> int:
    sent: list[dict[str, Any]] = []
    headers = [] if token is None else [(b"authorization", f"Bearer {token}".encode())]
    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": headers,
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(event: dict[str, Any]) -> None:
        sent.append(event)

    asyncio.run(app(scope, receive, send))
    return int(sent[0]["status"])


def a_call(keys: Keys, path: str) -> str:
    return Service("caller", keys, now=NOW).sign_request("callee", method="GET", target=path)


@pytest.mark.parametrize("given", [None, "a", {"scope": "a"}, True])
def test_a_needs_function_that_gives_no_need_lets_nobody_in(
    keys: Keys, given: Any, caplog: pytest.LogCaptureFixture
) -> None:
    token = a_call(keys, "/x")
    app = AsgiPeerAuth(application, needs=lambda *_: given, verifier=verifier(keys))
    assert status(app, "/x", token) == 403
    assert "and no Need" in caplog.text


def test_the_log_names_a_path_that_is_not_in_needs(keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    token = a_call(keys, "/elsewhere")
    app = AsgiPeerAuth(application, needs={"/orders": Need("a")}, verifier=verifier(keys))
    assert status(app, "/elsewhere", token) == 403
    assert "may not use a path that nothing names in needs" in caplog.text


def test_an_operator_token_is_read_strictly(sqlite_url: str, tmp_path: Path) -> None:
    registry = Driver(sqlite_url, tmp_path)
    operators = registry.registry.operators
    _, token = operators.create(Role.VIEWER, 600)
    prefix, token_id, secret = token.split(".")
    assert operators.authenticate(token, Role.VIEWER).id == token_id
    for other in (
        f"zzz.{token_id}.{secret}",
        f"psj1.{token_id}.{secret}",
        f"{prefix.upper()}.{token_id}.{secret}",
        f".{token_id}.{secret}",
        f"{token_id}.{secret}",
        f"{token}.",
        f"{prefix}.{token}",
        f" {token}",
        f"{prefix}.{token_id.swapcase()}.{secret}",
        f"{prefix}.{token_id}.{secret}=",
        f"{prefix}.{'é' * 16}.{secret}",
        "",
    ):
        with pytest.raises(OperatorRefused):
            operators.authenticate(other, Role.VIEWER)
    registry.close()
