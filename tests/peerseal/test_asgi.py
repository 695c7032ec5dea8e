"""The ASGI adapter, driven as servers do: what gets through, what is refused, and what the application sees."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from peerseal import Identity, User, carrying, current_transaction
from peerseal.asgi import PUBLIC, Need, PeerAuth, current_peer
from peerseal.errors import ConfigurationError
from peerseal.testing import MemoryRegistry
from peerseal.verify.context import current_request_id
from tests.support.asgi import Answer, Callee, signed

BIG = b"x" * 200_000


@pytest.fixture
def callee(registry: MemoryRegistry) -> Callee:
    return Callee(registry)


def test_a_good_call_reaches_the_application_with_its_caller(callee: Callee, client: Identity) -> None:
    assert callee.call(headers=signed(client)).status == 200
    assert callee.seen == [{"peer": "client", "user": None, "body": b""}]
    with pytest.raises(RuntimeError):
        current_peer()


@pytest.mark.parametrize("pieces", [1, 3, 50])
@pytest.mark.parametrize("body", [b"", b"{}", BIG], ids=["none", "small", "big"])
def test_the_application_reads_the_body_that_was_checked(
    callee: Callee, client: Identity, body: bytes, pieces: int
) -> None:
    headers = signed(client, "POST", "/orders", body)
    assert callee.call("POST", "/orders", headers=headers, body=body, pieces=pieces).status == 200
    assert callee.seen[0]["body"] == body


def test_a_user_goes_along_and_is_gone_after_it(callee: Callee, client: Identity) -> None:
    user = User("ada", "https://login.example.com", frozenset(("read",)), "u", 2**40, {})
    transaction = client.mint_transaction(user, scope=["read"])
    with carrying(transaction):
        headers = signed(client, target="/mine", txn_token=transaction.carry())
    assert callee.call(target="/mine", headers=headers).status == 200
    assert callee.seen == [{"peer": "client", "user": "ada", "body": b""}]
    assert current_transaction() is None
    refused = callee.call(target="/mine", headers=signed(client, target="/mine"))
    assert (refused.status, refused.json["code"]) == (401, "bad_transaction_token")
    beyond = callee.call("POST", "/orders", headers=signed(client, "POST", "/orders", txn_token=transaction.carry()))
    assert (beyond.status, beyond.json["code"]) == (403, "insufficient_scope")


Call = Callable[[Callee, Identity], Answer]

REFUSED: Mapping[str, tuple[Call, int, str]] = {
    "no token": (lambda c, i: c.call(), 401, "missing_token"),
    "another scheme": (lambda c, i: c.call(headers={"authorization": "Basic YTpi"}), 401, "missing_token"),
    "two Authorization headers": (
        lambda c, i: c.call(headers=[*signed(i).items(), *signed(i).items()]),
        401,
        "malformed_token",
    ),
    "another path": (lambda c, i: c.call(target="/y", headers=signed(i)), 401, "wrong_binding"),
    "another query": (lambda c, i: c.call(target="/x?a=2", headers=signed(i, target="/x?a=1")), 401, "wrong_binding"),
    "a query added": (lambda c, i: c.call(target="/x?a=1", headers=signed(i)), 401, "wrong_binding"),
    "another method": (lambda c, i: c.call("DELETE", headers=signed(i)), 401, "wrong_binding"),
    "an escape spelt otherwise": (
        lambda c, i: c.call(target="/x/%7e", headers=signed(i, target="/x/~")),
        401,
        "wrong_binding",
    ),
    "a path that was rewritten": (lambda c, i: c.call(headers=signed(i), path="/admin/x"), 401, "wrong_binding"),
    "a path that was rewritten to a weaker one": (
        lambda c, i: c.call(target="/orders", headers=signed(i, target="/orders"), path="/x"),
        401,
        "wrong_binding",
    ),
    "absolute-form": (
        lambda c, i: c.call(target="http://callee/x", headers=signed(i), path="/x"),
        401,
        "wrong_binding",
    ),
    "no raw path": (lambda c, i: c.call(headers=signed(i), raw_path=None), 401, "wrong_binding"),
    "a path that is not UTF-8": (
        lambda c, i: c.call(target="/x/%ff", headers=signed(i, target="/x/%ff")),
        401,
        "wrong_binding",
    ),
    "a small body changed": (
        lambda c, i: c.call("POST", "/orders", headers=signed(i, "POST", "/orders", b"{}"), body=b"[]"),
        401,
        "wrong_binding",
    ),
    "a big body changed": (
        lambda c, i: c.call(
            "POST", "/orders", headers=signed(i, "POST", "/orders", BIG), body=BIG[:-1] + b"y", pieces=9
        ),
        401,
        "wrong_binding",
    ),
    "a body added to a GET": (lambda c, i: c.call(headers=signed(i), body=b"x"), 401, "wrong_binding"),
    "another content type": (
        lambda c, i: c.call(headers={**signed(i, content_type="text/plain"), "content-type": "text/html"}),
        401,
        "wrong_binding",
    ),
    "two content types": (
        lambda c, i: c.call(headers=[*signed(i, content_type="a/b").items(), ("content-type", "a/b")]),
        401,
        "wrong_binding",
    ),
    "too long by its own word": (
        lambda c, i: c.call("POST", headers={**signed(i), "content-length": "99999999"}),
        413,
        "content_too_large",
    ),
    "a length that is no number anybody counts to": (
        lambda c, i: c.call("POST", headers={**signed(i), "content-length": "9" * 5000}),
        413,
        "content_too_large",
    ),
    "a length that is none": (
        lambda c, i: c.call("POST", headers={**signed(i), "content-length": "-1"}),
        413,
        "content_too_large",
    ),
    "a scope that the caller has not": (
        lambda c, i: c.call(target="/admin", headers=signed(i, target="/admin")),
        403,
        "insufficient_scope",
    ),
    "below such a path": (
        lambda c, i: c.call(target="/admin/users", headers=signed(i, target="/admin/users")),
        403,
        "insufficient_scope",
    ),
    "out of a public path by dots": (
        lambda c, i: c.call(target="/healthz/../admin", headers=signed(i, target="/healthz/../admin")),
        403,
        "insufficient_scope",
    ),
    "out of a public path by dots that servlet containers know": (
        lambda c, i: c.call(target="/healthz/..;/admin", headers=signed(i, target="/healthz/..;/admin")),
        403,
        "insufficient_scope",
    ),
    "two slashes": (lambda c, i: c.call(target="//x", headers=signed(i, target="//x")), 403, "insufficient_scope"),
    "a newline after a path": (
        lambda c, i: c.call(target="/admin%0A", headers=signed(i, target="/admin%0A")),
        403,
        "insufficient_scope",
    ),
    "a backslash": (
        lambda c, i: c.call(target="/a%5cb", headers=signed(i, target="/a%5cb")),
        403,
        "insufficient_scope",
    ),
    "a late scope at a public path": (lambda c, i: c.call(target="/healthz/late"), 401, "missing_token"),
    "two transaction tokens": (
        lambda c, i: c.call(headers=[*signed(i, txn_token="x.y.z").items(), ("txn-token", "x.y.z")]),
        401,
        "bad_transaction_token",
    ),
    "a scope that shows late": (
        lambda c, i: c.call(target="/late", headers=signed(i, target="/late")),
        403,
        "insufficient_scope",
    ),
}


@pytest.mark.parametrize(("call", "status", "code"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_never_reaches_the_application(
    callee: Callee, client: Identity, call: Call, status: int, code: str
) -> None:
    answer = call(callee, client)
    assert (answer.status, answer.json["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    assert ("www-authenticate" in answer.headers) is (status in (401, 403))
    assert callee.seen == []
    assert callee.auth.refusals == {code: 1}


def test_a_token_is_good_once(callee: Callee, client: Identity) -> None:
    headers = signed(client)
    assert [callee.call(headers=headers).status for _ in range(2)] == [200, 401]


def test_a_service_that_may_not_call_is_refused(registry: MemoryRegistry, callee: Callee) -> None:
    refused = callee.call(headers=signed(registry.identity("stranger")))
    assert (refused.status, refused.json["code"]) == (403, "caller_not_allowed")


def test_a_registry_that_is_away_is_no_verdict(registry: MemoryRegistry, callee: Callee, client: Identity) -> None:
    headers = signed(client)
    registry.down = True
    answer = callee.call(headers=headers)
    assert (answer.status, answer.json["code"]) == (503, "trust_unavailable")
    assert int(answer.headers["retry-after"]) > 0


def test_a_long_body_of_a_stranger_is_not_read(callee: Callee) -> None:
    read = 0

    async def receive() -> Any:
        nonlocal read
        read += 1
        return {"type": "http.request", "body": b"x" * 10_000, "more_body": True}

    async def send(_: Any) -> None:
        return

    headers = [(b"authorization", b"Bearer x.y.z"), (b"content-length", b"9000000")]
    scope = {"type": "http", "method": "POST", "path": "/x", "raw_path": b"/x", "query_string": b"", "headers": headers}
    asyncio.run(callee.auth(scope, receive, send))
    assert read < 10
    assert callee.seen == []


def test_a_body_that_breaks_off_is_refused(callee: Callee, client: Identity) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.disconnect"}

    async def send(event: Any) -> None:
        sent.append(event)

    headers = [(name.encode(), value.encode()) for name, value in signed(client).items()]
    scope = {"type": "http", "method": "GET", "path": "/x", "raw_path": b"/x", "query_string": b"", "headers": headers}
    asyncio.run(callee.auth(scope, receive, send))
    assert sent[0]["status"] == 400


def test_public_paths_need_nothing_and_know_nobody(callee: Callee, client: Identity) -> None:
    assert callee.call(target="/healthz").status == 200
    assert callee.call(target="/healthz/live", headers=signed(client)).status == 200
    assert [seen["peer"] for seen in callee.seen] == [None, None]
    assert callee.call(target="/healthzz").status == 401


def test_a_path_that_nobody_named_is_nobodys(registry: MemoryRegistry, client: Identity) -> None:
    callee = Callee(registry, needs={"/orders": Need("write")})
    assert callee.call(headers=signed(client)).status == 403
    open_to_callers = Callee(registry, needs=None)
    assert open_to_callers.call(headers=signed(client)).status == 200
    by_method = Callee(registry, needs=lambda method, path: PUBLIC if method == "OPTIONS" else Need("admin"))
    assert by_method.call("OPTIONS").status == 200
    assert by_method.call(headers=signed(client)).status == 403


def test_report_only_lets_through_and_says_what_it_would_have_done(registry: MemoryRegistry) -> None:
    callee = Callee(registry, report_only=True)
    assert callee.call("POST", "/orders", body=BIG, pieces=4).status == 200
    assert callee.seen == [{"peer": None, "user": None, "body": BIG}]
    assert callee.auth.refusals == {"missing_token": 1}


def test_report_only_reports_what_handlers_refuse(registry: MemoryRegistry, client: Identity) -> None:
    callee = Callee(registry, report_only=True)
    assert callee.call(target="/late", headers=signed(client, target="/late")).status == 200
    assert callee.auth.refusals == {"insufficient_scope": 1}
    assert callee.call(target="/late").status == 200
    assert callee.auth.refusals == {"insufficient_scope": 1, "missing_token": 1}


def test_needs_are_told_below_the_root_path(registry: MemoryRegistry, client: Identity) -> None:
    callee = Callee(registry)
    for path, status in (("/api/x", 200), ("/api/admin", 403), ("/api", 200), ("/apiadmin", 200)):
        assert callee.call(target=path, headers=signed(client, target=path), root_path="/api").status == status
    assert callee.call(target="/api/healthz", root_path="/api").status == 200
    below = Callee(registry, external_prefix="/v1")
    assert below.call(target="/x", headers=signed(client, target="/v1/x")).status == 200
    assert below.call(target="/x", headers=signed(client, target="/x")).status == 401


def test_the_token_may_have_a_header_of_its_own(registry: MemoryRegistry, client: Identity) -> None:
    callee = Callee(registry, header="X-Peerseal")
    headers = signed(client)
    assert callee.call(headers=headers).status == 401
    assert callee.call(headers={"X-Peerseal": headers["authorization"], "authorization": "Basic YTpi"}).status == 200


def test_every_refusal_is_logged_and_no_token(
    callee: Callee, client: Identity, caplog: pytest.LogCaptureFixture
) -> None:
    headers = signed(client, target="/y") | {"x-request-id": "r-1"}
    callee.call(headers=headers)
    (line,) = caplog.messages
    for part in ("refused: wrong_binding", "client", "request r-1"):
        assert part in line
    assert headers["authorization"].split(".")[-1] not in line


# ---- WebSockets


def open_websocket(callee: Callee, path: str) -> list[Any]:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(event: Any) -> None:
        sent.append(event)

    asyncio.run(callee.auth({"type": "websocket", "path": path, "headers": []}, receive, send))
    return sent


def test_websockets_are_refused_unless_public(registry: MemoryRegistry, callee: Callee) -> None:
    assert open_websocket(callee, "/x") == [{"type": "websocket.close", "code": 1008}]
    assert (callee.seen, callee.auth.refusals) == ([], {"insufficient_scope": 1})
    assert open_websocket(callee, "/healthz") == []
    assert callee.seen == [{"type": "websocket"}]
    reporting = Callee(registry, report_only=True)
    open_websocket(reporting, "/x")
    assert (reporting.seen, reporting.auth.refusals) == ([{"type": "websocket"}], {"insufficient_scope": 1})


@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize("path", ["/mine", "/healthz"])
def test_the_server_runs_in_no_request_while_it_takes_or_gives_a_message(
    registry: MemoryRegistry, kind: str, path: str
) -> None:
    """It may start the next request of the connection there, as uvicorn does."""
    of_server, of_application = list[str | None](), list[str | None]()

    async def application(_scope: Any, receive: Any, send: Any) -> None:
        of_application.append(current_request_id())
        await receive()
        await send({"type": f"{kind}.response.start", "status": 200, "headers": []})
        await send({"type": f"{kind}.response.body", "body": b"{}"})

    async def receive() -> dict[str, Any]:
        of_server.append(current_request_id())
        return {"type": "http.request"}

    async def send(_: Any) -> None:
        of_server.append(current_request_id())

    headers = [(b"x-request-id", b"of-this-request")]
    scope = {"type": kind, "method": "GET", "path": path, "raw_path": path.encode(), "headers": headers}
    asyncio.run(Callee(registry, application).auth(scope, receive, send))
    assert set(of_server) == {None}
    assert of_application == (["of-this-request"] if path == "/healthz" else [])


def test_the_applications_life_goes_on(callee: Callee) -> None:
    asyncio.run(callee.auth({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert callee.seen == [{"type": "lifespan"}]


@pytest.mark.parametrize("kind", ["webtransport", "HTTP", ""])
def test_a_kind_of_connection_that_nobody_knows_does_not_reach_the_application(callee: Callee, kind: str) -> None:
    with pytest.raises(RuntimeError, match="expected http, websocket or lifespan"):
        asyncio.run(callee.auth({"type": kind, "path": "/healthz", "headers": []}, nothing, nothing))
    assert callee.seen == []


async def nothing(*_: Any) -> None:
    return


def test_a_gate_without_anybody_to_ask_is_refused() -> None:
    with pytest.raises(ConfigurationError):
        PeerAuth(nothing)
    with pytest.raises(ConfigurationError):
        PeerAuth(nothing, needs={"healthz": PUBLIC})


@pytest.mark.parametrize(
    "path", ["/orders/{id}", "/orders/{id:int}/refund", "/orders/<id>", "/static/*", "/orders?dry=1", "/caf%C3%A9"]
)
def test_a_path_in_needs_that_would_stand_for_others_is_a_mistake(registry: MemoryRegistry, path: str) -> None:
    with pytest.raises(ConfigurationError, match="patterns"):
        Callee(registry, needs={"/": Need("read"), path: Need("admin")})


@pytest.mark.parametrize("scopes", [[""], ["read", "write orders"], ["read\n"], [None]])
def test_what_is_no_scope_is_told_at_the_start(registry: MemoryRegistry, scopes: Any) -> None:
    with pytest.raises(ConfigurationError, match="no scope"):
        Callee(registry, allow={"client": scopes})
