"""FastAPI under the ASGI adapter: routes that name their scope with a dependency."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI
from fastapi.responses import StreamingResponse

import peerseal
from peerseal import Identity, Peer, User, carrying
from peerseal.asgi import ANY_ALLOWED, PUBLIC, PeerAuth, current_peer, require_scope, requires
from peerseal.errors import ConfigurationError, MissingToken
from peerseal.testing import MemoryRegistry


@pytest.fixture
def registry() -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as registry:
        registry.set_domain(minters=["client-service"])
        yield registry


@pytest.fixture
def client(registry: MemoryRegistry) -> Identity:
    return registry.identity("client-service")


reached: list[str] = []
api = FastAPI()


@api.get("/reads")
async def reads(peer: Annotated[Peer, Depends(requires("read"))]) -> str | None:
    return peer.service if peer else None


@api.get("/threads")
def in_a_thread(peer: Annotated[Peer, Depends(current_peer)]) -> str:
    return peer.service


@api.post("/writes", dependencies=[Depends(requires("write"))])
async def writes(items: list[str]) -> list[str]:
    reached.append("writes")
    return items


@api.get("/for-users", dependencies=[Depends(requires("read", transaction=True))])
async def for_users() -> str:
    return "for a user"


@api.get("/late-stream")
async def late_stream() -> StreamingResponse:
    async def pieces() -> AsyncIterator[str]:
        yield ""
        require_scope("write")
        yield "not reached"

    return StreamingResponse(pieces())


@api.get("/stream")
async def stream() -> StreamingResponse:
    return StreamingResponse((f"{row}\n" for row in range(3)), 201, {"x-rows": "3"})


@api.get("/no-content", status_code=204)
async def no_content() -> None:
    return


def called(
    client: Identity, callee: Identity, method: str, path: str, app: Any = None, **request: Any
) -> httpx.Response:
    """The answer to a signed call."""
    transport = request.pop("options", {"needs": {"/": ANY_ALLOWED}})
    app = app or PeerAuth(api, callee, allow={"client-service": {"read"}}, **transport)

    async def call() -> httpx.Response:
        options = {"transport": httpx.ASGITransport(app, raise_app_exceptions=False)}
        async with client.async_session(callee.service, "http://callee.test", **options) as session:
            return await session.request(method, path, **request)

    return asyncio.run(call())


@pytest.fixture
def callee(registry: MemoryRegistry) -> Identity:
    reached.clear()
    return registry.identity("callee")


@pytest.mark.parametrize("path", ["/reads", "/threads"])
def test_a_route_is_given_its_caller(client: Identity, callee: Identity, path: str) -> None:
    assert called(client, callee, "GET", path).json() == "client-service"


@pytest.mark.parametrize("body", [["a"], "of another shape"])
def test_a_route_that_needs_more_than_the_caller_may_is_never_run(
    client: Identity, callee: Identity, body: Any
) -> None:
    answer = called(client, callee, "POST", "/writes", json=body)
    assert (answer.status_code, answer.json()["code"]) == (403, "insufficient_scope")
    assert answer.headers["content-type"] == "application/problem+json"
    assert reached == []


def test_a_stream_may_refuse_before_its_first_byte(client: Identity, callee: Identity) -> None:
    answer = called(client, callee, "GET", "/late-stream")
    assert (answer.status_code, answer.json()["code"]) == (403, "insufficient_scope")


def test_a_stream_is_sent_with_the_head_of_the_application(client: Identity, callee: Identity) -> None:
    answer = called(client, callee, "GET", "/stream")
    assert (answer.status_code, answer.headers["x-rows"], answer.text) == (201, "3", "0\n1\n2\n")
    assert called(client, callee, "GET", "/no-content").status_code == 204


def test_a_route_for_users_needs_one(client: Identity, callee: Identity) -> None:
    answer = called(client, callee, "GET", "/for-users")
    assert (answer.status_code, answer.json()["code"]) == (401, "bad_transaction_token")
    user = User("ada", "https://login.example.com", frozenset(("read",)), "u", 2**40, {})
    with carrying(client.mint_transaction(user, scope=["read"])):
        assert called(client, callee, "GET", "/for-users").json() == "for a user"


def test_a_route_on_a_public_path_still_needs_its_scope(client: Identity, callee: Identity) -> None:
    answer = called(client, callee, "GET", "/reads", options={"needs": {"/": PUBLIC}})
    assert (answer.status_code, answer.json()["code"]) == (401, "missing_token")


def test_report_only_runs_the_route_without_a_caller(client: Identity, callee: Identity) -> None:
    auth = PeerAuth(api, callee, allow={"client-service": {"read"}}, report_only=True)
    transport = httpx.ASGITransport(auth)

    async def unsigned() -> httpx.Response:
        async with httpx.AsyncClient(transport=transport, base_url="http://callee.test") as stranger:
            return await stranger.get("/reads")

    assert asyncio.run(unsigned()).json() is None
    assert auth.refusals == {"missing_token": 1}


def test_without_the_check_around_the_application_a_route_with_a_need_is_closed(
    client: Identity, callee: Identity
) -> None:
    assert called(client, callee, "GET", "/reads", app=api).status_code == 500
    with pytest.raises(MissingToken):
        asyncio.run(requires("read")())  # type: ignore[arg-type]


@pytest.mark.parametrize("scope", ["", "two words", None, 5])
def test_a_scope_that_no_caller_can_have_is_refused_at_once(scope: Any) -> None:
    with pytest.raises(ConfigurationError):
        requires(scope)


def test_the_page_runs(registry: MemoryRegistry, client: Identity, callee: Identity) -> None:
    page = (Path(peerseal.__file__).parents[1] / "docs/how-to/asgi.md").read_text()
    block = re.findall(r"## FastAPI\n.*?```python\n(.*?)```", page, re.DOTALL)[0]
    names: dict[str, Any] = {"identity": callee}
    exec(block, names)
    app = names["app"]
    assert called(client, callee, "GET", "/healthz", app=app).json() == "ok"
    assert called(client, callee, "GET", "/orders/7", app=app).json() == {"number": 7, "caller": "client-service"}
    assert called(client, callee, "POST", "/orders", app=app, json=["a"]).status_code == 401
    assert called(client, callee, "DELETE", "/orders", app=app).status_code == 403
    user = User("ada", "https://login.example.com", frozenset(("orders:write",)), "u", 2**40, {})
    with carrying(client.mint_transaction(user, scope=["orders:write"])):
        answer = called(client, callee, "POST", "/orders", app=app, json=["a"])
    assert answer.json() == {"items": ["a"], "caller": "client-service"}
