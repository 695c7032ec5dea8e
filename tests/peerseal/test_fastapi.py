"""FastAPI under the ASGI adapter: routes that name their scope with a dependency."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import WebSocketRoute
from starlette.testclient import TestClient, WebSocketTestSession

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


# ---- WebSockets, whose path is public


@api.websocket("/live")
async def live(websocket: WebSocket, peer: Annotated[Peer, Depends(requires("read"))]) -> None:
    await websocket.accept()
    await websocket.send_text("reached")
    await websocket.close()


@api.websocket("/late")
async def late(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text(await websocket.receive_text())
    require_scope("read")
    await websocket.close()


def caught(websocket: WebSocket) -> None:
    with suppress(MissingToken):
        require_scope("read")


async def caught_before_it_accepts(websocket: WebSocket) -> None:
    caught(websocket)
    await websocket.accept()
    await websocket.receive_text()


async def caught_and_closed(websocket: WebSocket) -> None:
    await websocket.accept()
    caught(websocket)
    await websocket.close(1000)


async def caught_and_left_open(websocket: WebSocket) -> None:
    await websocket.accept()
    caught(websocket)


async def denied_by_itself(websocket: WebSocket) -> None:
    await websocket.send_denial_response(PlainTextResponse("not today", 503))
    require_scope("read")


starlette = Starlette(
    routes=[
        WebSocketRoute("/before", caught_before_it_accepts),
        WebSocketRoute("/closed", caught_and_closed),
        WebSocketRoute("/open", caught_and_left_open),
        WebSocketRoute("/denied", denied_by_itself),
    ]
)


def websocket_to(app: Any, path: str) -> WebSocketTestSession:
    return TestClient(app).websocket_connect(path)


@pytest.fixture
def public(callee: Identity) -> Callable[..., PeerAuth]:
    def public(app: Any, **options: Any) -> PeerAuth:
        return PeerAuth(app, callee, allow={}, needs={"/": PUBLIC}, **options)

    return public


@pytest.mark.parametrize(("app", "path"), [(api, "/live"), (starlette, "/before")], ids=["FastAPI", "Starlette"])
def test_a_websocket_whose_route_needs_a_scope_is_refused(public: Any, app: Any, path: str) -> None:
    auth = public(app)
    with pytest.raises(WebSocketDisconnect) as refused, websocket_to(auth, path):
        pytest.fail("accepted")
    assert refused.value.code == 1008
    assert auth.refusals == {"missing_token": 1}


@pytest.mark.parametrize("path", ["/closed", "/open"])
def test_a_websocket_that_was_accepted_is_closed_where_its_handler_refuses(public: Any, path: str) -> None:
    auth = public(starlette)
    with websocket_to(auth, path) as websocket, pytest.raises(WebSocketDisconnect) as refused:
        websocket.receive_text()
    assert refused.value.code == 1008
    assert auth.refusals == {"missing_token": 1}


def test_a_websocket_that_exchanged_messages_is_closed_where_its_handler_refuses(public: Any) -> None:
    auth = public(api)
    with websocket_to(auth, "/late") as websocket:
        websocket.send_text("echo")
        assert websocket.receive_text() == "echo"
        with pytest.raises(WebSocketDisconnect) as refused:
            websocket.receive_text()
    assert refused.value.code == 1008
    assert auth.refusals == {"missing_token": 1}


def test_a_denial_of_the_applications_own_stays_as_it_is(public: Any) -> None:
    auth = public(starlette)
    with pytest.raises(MissingToken), websocket_to(auth, "/denied"):
        pytest.fail("accepted")
    assert auth.refusals == {"missing_token": 1}


@pytest.mark.parametrize("path", ["/late", "/live"])
def test_report_only_serves_the_websocket_and_logs_what_it_would_refuse(public: Any, path: str) -> None:
    auth = public(api, report_only=True)
    with websocket_to(auth, path) as websocket:
        websocket.send_text("reached")
        assert websocket.receive_text() == "reached"
        with pytest.raises(WebSocketDisconnect) as ended:
            websocket.receive_text()
    assert ended.value.code == 1000
    assert auth.refusals == {"missing_token": 1}


def test_report_only_logs_what_a_route_on_a_public_path_would_refuse(client: Identity, callee: Identity) -> None:
    auth = PeerAuth(api, callee, allow={}, needs={"/": PUBLIC}, report_only=True)
    assert called(client, callee, "GET", "/reads", app=auth).json() is None
    assert auth.refusals == {"missing_token": 1}


# ---- without refusals


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
