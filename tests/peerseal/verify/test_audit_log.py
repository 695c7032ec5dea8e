"""What is audited of accepted calls, events and minted transactions, and how log lines are joined across hops."""

import asyncio
import io
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from flask import Flask, Response
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from werkzeug.test import TestResponse

from peerseal import (
    Accepted,
    EventVerifier,
    Identity,
    Transaction,
    User,
    carrying,
    current_request_id,
    propagate,
)
from peerseal.asgi import Need
from peerseal.errors import ConfigurationError, InsufficientScope
from peerseal.flask import PeerAuth
from peerseal.logs import FORMAT, RequestContextFilter, RequestIds, serving
from peerseal.messaging import EventConsumer, Headers, Message
from peerseal.testing import Clock, MemoryRegistry
from tests.support.asgi import Callee, signed
from tests.support.wire import RawServer, raw_server

ISSUER = "https://login.example.com"
AUDIENCE, PURPOSE, TOPIC = "jobs.example.com", "trigger_invoicing", "OrderCreated"


@pytest.fixture
def clock() -> Clock:
    return Clock(1_800_000_000.25)


@pytest.fixture
def registry(clock: Clock) -> Iterator[MemoryRegistry]:
    with MemoryRegistry(clock=clock) as registry:
        registry.set_domain(minters=["client"])
        yield registry


@pytest.fixture
def client(registry: MemoryRegistry) -> Identity:
    return registry.identity("client")


@pytest.fixture
def audit(caplog: pytest.LogCaptureFixture) -> Callable[[], list[dict[str, Any]]]:
    """The lines of the audit so far, parsed."""
    caplog.set_level(logging.INFO, "peerseal.audit")
    return lambda: [json.loads(record.getMessage()) for record in caplog.records if record.name == "peerseal.audit"]


Lines = Callable[[], list[dict[str, Any]]]


def user(name: str = "ada") -> User:
    return User(name, ISSUER, frozenset(("read", PURPOSE)), "u-1", 2**40, {})


class Served:
    """A Flask service ``callee`` with one route of each kind, and a client that signs."""

    def __init__(self, registry: MemoryRegistry, client: Identity, **options: Any) -> None:
        self.identity = registry.identity("callee")
        self.client = client
        self.app = Flask(__name__)
        self.auth = PeerAuth(self.app, self.identity, allow={"client": {"read"}}, **options)
        self.seen: list[Any] = []
        self.look: Callable[[], Any] = current_request_id

        @self.app.route("/profiles/<id>", methods=["GET", "POST"])
        @self.auth.require(scope="read")
        def profile(id: str) -> str:
            self.seen.append(self.look())
            return id

        @self.app.get("/open")
        @self.auth.public
        def opened() -> str:
            self.seen.append(self.look())
            return "open"

        @self.app.get("/stream")
        def stream() -> Response:
            def pieces() -> Iterator[str]:
                for _ in range(2):
                    yield str(self.look())

            return Response(pieces())

    def call(
        self,
        target: str = "/profiles/42",
        method: str = "GET",
        *,
        transaction: Transaction | None = None,
        body: bytes = b"",
        **headers: str,
    ) -> TestResponse:
        """A signed call."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        bound = {"txn-token": transaction.carry()} if transaction else {}
        token = self.client.sign_request("callee", method=method, target=target, body=body, headers=bound)
        return self.app.test_client().open(
            target, method=method, data=body, headers={"Authorization": f"Bearer {token}", **bound, **sent}
        )


@pytest.fixture
def served(registry: MemoryRegistry, client: Identity) -> Served:
    return Served(registry, client)


# ---- what a line says


def test_an_accepted_call_is_one_line_of_ids(served: Served, client: Identity, audit: Lines) -> None:
    transaction = client.mint_transaction(user(), scope=["read"], transaction_id="t-1")
    body, target = b"a body of secrets", "/profiles/4711?password=hush"
    answer = served.call(target, "POST", transaction=transaction, body=body, X_Request_Id="r-1")
    assert answer.status_code == 200
    line = audit()[-1]
    assert len(line.pop("jti")) >= 22
    assert line == {
        "kind": "call",
        "time": "2027-01-15T08:00:00.250Z",
        "caller": "test.internal/client",
        "kid": client.credentials.key_id,
        "audience": "test.internal/callee",
        "scope": "read",
        "user": "ada",
        "user_issuer": ISSUER,
        "transaction": "t-1",
        "method": "POST",
        "route": "/profiles/<id>",
        "request_id": "r-1",
    }


def test_a_line_holds_no_token_no_body_no_query_and_no_raw_path(
    served: Served, client: Identity, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    transaction = client.mint_transaction(user(), scope=["read"])
    served.call("/profiles/4711?password=hush", "POST", transaction=transaction, body=b"a body of secrets")
    written = "\n".join(caplog.messages)
    assert '"kind":"call"' in written
    for secret in ("4711", "hush", "secrets", *transaction.carry().split("."), "eyJ"):
        assert secret not in written


def test_a_call_without_a_user_says_nothing_of_one(served: Served, audit: Lines) -> None:
    served.call()
    (line,) = audit()
    assert not {"user", "user_issuer", "transaction", "topic", "event_id"} & line.keys()


def test_an_allowed_call_that_no_route_takes_has_no_route_in_its_line(served: Served, audit: Lines) -> None:
    assert served.call("/nothing/of/the/kind").status_code == 404
    (line,) = audit()
    assert "route" not in line
    assert "nothing" not in json.dumps(line)


def test_what_is_refused_or_public_is_not_audited(served: Served, audit: Lines) -> None:
    assert served.app.test_client().get("/profiles/1").status_code == 401
    assert served.app.test_client().get("/open").status_code == 200
    assert audit() == []


def test_what_is_only_reported_is_not_audited(registry: MemoryRegistry, client: Identity, audit: Lines) -> None:
    served = Served(registry, client, report_only=True)
    assert served.app.test_client().get("/open").status_code == 200
    served.app.test_client().get("/stream")
    assert audit() == []
    assert served.call().status_code == 200
    assert len(audit()) == 1


def test_a_user_s_name_cannot_forge_a_line(
    served: Served, client: Identity, caplog: pytest.LogCaptureFixture, audit: Lines
) -> None:
    name = 'eve","user":"ada ünïcödé {"kind":"call"} \\n'
    served.call(transaction=client.mint_transaction(user(name), scope=["read"]))
    assert audit()[-1]["user"] == name
    lines = [record.getMessage() for record in caplog.records if record.name == "peerseal.audit"]
    assert all(line.isascii() and len(line.splitlines()) == 1 for line in lines)


def test_a_minted_transaction_is_one_line(client: Identity, audit: Lines) -> None:
    with serving("r-7"):
        client.mint_transaction(user(), scope=[PURPOSE, "read"], transaction_id="t-2")
    assert audit() == [
        {
            "kind": "transaction",
            "time": "2027-01-15T08:00:00.250Z",
            "caller": "test.internal/client",
            "kid": client.credentials.key_id,
            "jti": "t-2",
            "audience": "test.internal",
            "scope": f"read {PURPOSE}",
            "user": "ada",
            "user_issuer": ISSUER,
            "transaction": "t-2",
            "request_id": "r-7",
        }
    ]


def test_a_transaction_that_is_not_minted_is_not_audited(client: Identity, audit: Lines) -> None:
    with pytest.raises(InsufficientScope):
        client.mint_transaction(user(), scope=["write"])
    assert audit() == []


# ---- ASGI


async def _answer(_: Any) -> PlainTextResponse:
    return PlainTextResponse("")


async def _file(scope: Any, receive: Any, send: Any) -> None:
    await PlainTextResponse("")(scope, receive, send)


def starlette() -> Starlette:
    inner = Starlette(routes=[Route("/items/{id:int}", _answer)])
    return Starlette(
        routes=[Route("/profiles/{id}", _answer), Mount("/shop", inner), Mount("/files", _file)],
    )


def fastapi() -> FastAPI:
    app, router = FastAPI(), APIRouter(prefix="/v1")
    router.add_api_route("/things/{name}", lambda name: name)
    app.include_router(router, prefix="/api")
    return app


@pytest.mark.parametrize(
    ("app", "target", "route"),
    [
        (starlette(), "/profiles/42", "/profiles/{id}"),
        (starlette(), "/shop/items/7", "/shop/items/{id:int}"),
        (starlette(), "/files/a/b", "/files/*"),
        (fastapi(), "/api/v1/things/x", "/api/v1/things/{name}"),
    ],
)
def test_the_framework_s_pattern_stands_in_the_line_of_an_asgi_call(
    registry: MemoryRegistry, client: Identity, audit: Lines, app: Any, target: str, route: str
) -> None:
    callee = Callee(registry, app, needs={"/": Need("read")})
    assert callee.call(target=target, headers=signed(client, target=target)).status == 200
    (line,) = audit()
    assert (line["route"], line["scope"], line["method"]) == (route, "read", "GET")


@pytest.mark.parametrize(("target", "route"), [("/orders", "/orders"), ("/orders/7", "/orders/*"), ("/x/7", "/*")])
def test_of_an_application_without_routes_the_line_has_the_path_that_needs_names(
    registry: MemoryRegistry, client: Identity, audit: Lines, target: str, route: str
) -> None:
    callee = Callee(registry)
    assert callee.call(target=target, headers=signed(client, target=target)).status == 200
    assert audit()[0]["route"] == route


def test_where_needs_is_a_function_and_nothing_names_the_route_the_line_has_none(
    registry: MemoryRegistry, client: Identity, audit: Lines
) -> None:
    callee = Callee(registry, needs=lambda method, path: Need("read"))
    assert callee.call(target="/secret/7", headers=signed(client, target="/secret/7")).status == 200
    assert "route" not in audit()[0]


def test_an_application_that_fails_when_it_is_asked_for_its_routes_is_served_all_the_same(
    registry: MemoryRegistry, client: Identity, audit: Lines
) -> None:
    class Odd:
        def __init__(self) -> None:
            self.routes = [object()]

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await _file(scope, receive, send)

    callee = Callee(registry, Odd(), needs=lambda method, path: Need("read"))
    assert callee.call(headers=signed(client)).status == 200
    assert "route" not in audit()[0]


def test_requests_of_one_asgi_connection_have_each_their_own_id(registry: MemoryRegistry, client: Identity) -> None:
    seen: list[str | None] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(current_request_id())
        await _file(scope, receive, send)
        seen.append(await asyncio.to_thread(current_request_id))

    callee = Callee(registry, app)
    callee.call(headers={**signed(client), "x-request-id": "r-1"})
    callee.call(target="/healthz")
    assert seen[:2] == ["r-1", "r-1"]
    assert seen[2] == seen[3] not in ("r-1", None)
    assert current_request_id() is None


# ---- events


class Messages:
    """The ends of a broker in this process: what is put in comes out, and dead letters are kept."""

    def __init__(self) -> None:
        self.waiting: list[Message] = []
        self.sent: list[tuple[str, Headers]] = []

    def put(self, payload: bytes, headers: dict[str, str]) -> None:
        pairs = tuple((name, value.encode()) for name, value in headers.items())
        self.waiting.append(Message(TOPIC, payload, pairs, None, f"{TOPIC}/0@{len(self.waiting)}"))

    def receive(self, timeout: float) -> Message | None:
        return self.waiting.pop(0) if self.waiting else None

    def done(self, message: Message) -> None:
        return

    def hold(self, message: Message, seconds: float) -> bool:
        return True

    def send(self, topic: str, payload: bytes, headers: Any, key: bytes | None = None) -> None:
        self.sent.append((topic, tuple(headers)))

    def flush(self, timeout: float) -> None:
        return

    def close(self) -> None:
        return


def verifier_of(identity: Identity, **options: Any) -> EventVerifier:
    return EventVerifier(
        identity.trust,
        audience=AUDIENCE,
        allow={"client": {PURPOSE}},
        max_age=timedelta(days=1),
        clock=identity.clock,
        **options,
    )


def event_headers(client: Identity, event_id: str = "e-1") -> dict[str, str]:
    transaction = client.mint_transaction(user(), scope=[PURPOSE], transaction_id="t-9")
    with carrying(transaction):
        return client.sign_event(b"{}", topic=TOPIC, audience=AUDIENCE, scope=PURPOSE, event_id=event_id)


def test_an_accepted_event_is_one_line(registry: MemoryRegistry, client: Identity, audit: Lines) -> None:
    headers = event_headers(client)
    verifier_of(registry.identity("invoicing")).verify(b"{}", headers, topic=TOPIC)
    line = audit()[-1]
    assert len(line.pop("jti")) >= 22
    assert line == {
        "kind": "event",
        "time": "2027-01-15T08:00:00.250Z",
        "caller": "test.internal/client",
        "kid": client.credentials.key_id,
        "audience": AUDIENCE,
        "scope": PURPOSE,
        "user": "ada",
        "user_issuer": ISSUER,
        "transaction": "t-9",
        "topic": TOPIC,
        "event_id": "e-1",
    }


def test_a_consumer_audits_an_event_once_however_many_attempts_it_takes(
    registry: MemoryRegistry, client: Identity, audit: Lines
) -> None:
    messages, seen = Messages(), []
    with serving("r-3"):
        messages.put(b"{}", event_headers(client))
    accepted: list[Accepted] = []

    def handle(_: Any) -> None:
        seen.append(current_request_id())
        if len(seen) < 3:
            raise OSError("the database is away")

    identity = registry.identity("invoicing")
    consumer = EventConsumer(
        identity, verifier_of(identity), messages, messages, pauses=[0.0], on_verified=accepted.append
    )
    consumer.run_once(handle)
    assert seen == ["r-3"] * 3
    (line,) = [line for line in audit() if line["kind"] == "event"]
    assert (line["event_id"], line["request_id"], line["user"]) == ("e-1", "r-3", "ada")
    assert [record.event_id for record in accepted] == ["e-1"]
    assert current_request_id() is None


def test_an_event_that_is_delivered_again_is_audited_again(
    registry: MemoryRegistry, client: Identity, audit: Lines
) -> None:
    messages, headers = Messages(), event_headers(client)
    identity = registry.identity("invoicing")
    consumer = EventConsumer(identity, verifier_of(identity), messages, messages)
    for _ in range(2):
        messages.put(b"{}", headers)
        consumer.run_once(lambda event: None)
    lines = [line for line in audit() if line["kind"] == "event"]
    assert len(lines) == 2
    assert lines[0]["jti"] == lines[1]["jti"]
    assert lines[0]["request_id"] != lines[1]["request_id"]


@pytest.mark.parametrize("bent", [b"\xff", b"a\nb", b"", None])
def test_a_message_with_a_bent_request_id_gets_another_one(
    registry: MemoryRegistry, client: Identity, bent: bytes | None
) -> None:
    messages, seen = Messages(), []
    messages.put(b"{}", event_headers(client))
    (message,) = messages.waiting
    odd: Any = (*message.headers, ("x-request-id", bent))
    messages.waiting = [Message(TOPIC, b"{}", odd, None, message.origin)]
    identity = registry.identity("invoicing")
    consumer = EventConsumer(identity, verifier_of(identity), messages, messages)
    consumer.run_once(lambda event: seen.append(current_request_id()))
    (request_id,) = seen
    assert request_id is not None
    assert int(request_id, 16) >= 0


def test_a_refused_event_is_not_audited(registry: MemoryRegistry, client: Identity, audit: Lines) -> None:
    messages, headers = Messages(), event_headers(client)
    messages.put(b"another payload", headers)
    identity = registry.identity("invoicing")
    EventConsumer(identity, verifier_of(identity), messages, messages).run_once(lambda event: None)
    assert [line["kind"] for line in audit()] == ["transaction"]
    assert messages.sent[0][0] == f"{TOPIC}.dlq"


# ---- on and off


def from_env(registry: MemoryRegistry, **environ: str) -> Identity:
    given = {
        "PEERSEAL_SERVICE": "callee",
        "PEERSEAL_REGISTRY_URL": "http://127.0.0.1:1",
        "PEERSEAL_JOIN_TOKEN": registry.join_token("callee"),
    }
    return Identity.from_env(given | environ)


@pytest.mark.parametrize(("value", "on"), [("0", False), ("off", False), ("1", True), ("", True)])
def test_one_setting_turns_it_off(registry: MemoryRegistry, value: str, on: bool) -> None:
    assert from_env(registry, PEERSEAL_AUDIT=value).audit is on


def test_a_setting_that_cannot_be_read_ends_the_start(registry: MemoryRegistry) -> None:
    with pytest.raises(ConfigurationError, match="PEERSEAL_AUDIT='perhaps'"):
        from_env(registry, PEERSEAL_AUDIT="perhaps")


def test_a_text_in_the_place_of_a_switch_is_an_error_at_the_start(registry: MemoryRegistry, client: Identity) -> None:
    text: Any = "0"  # which is true for Python
    for make in (lambda: Served(registry, client, audit=text), lambda: verifier_of(client, audit=text)):
        with pytest.raises(ConfigurationError, match="audit='0'"):
            make()


def test_turned_off_nothing_is_written(registry: MemoryRegistry, monkeypatch: pytest.MonkeyPatch, audit: Lines) -> None:
    monkeypatch.setenv("PEERSEAL_AUDIT", "0")
    client = registry.identity("client")
    served = Served(registry, client)
    assert served.call().status_code == 200
    verifier_of(registry.identity("invoicing")).verify(b"{}", event_headers(client), topic=TOPIC)
    assert audit() == []


def test_an_adapter_may_say_otherwise_than_the_setting(
    registry: MemoryRegistry, client: Identity, monkeypatch: pytest.MonkeyPatch, audit: Lines
) -> None:
    assert Served(registry, client, audit=False).call().status_code == 200
    assert audit() == []
    monkeypatch.setenv("PEERSEAL_AUDIT", "0")
    assert Served(registry, client, audit=True).call().status_code == 200
    assert len(audit()) == 1


def test_the_hook_is_called_without_the_lines(registry: MemoryRegistry, client: Identity, audit: Lines) -> None:
    accepted: list[Accepted] = []
    Served(registry, client, audit=False, on_verified=accepted.append).call()
    assert [record.caller for record in accepted] == ["test.internal/client"]
    assert audit() == []


# ---- the hook, and failures


def test_the_hook_gets_a_record_that_cannot_be_changed(registry: MemoryRegistry, client: Identity) -> None:
    accepted: list[Accepted] = []
    Served(registry, client, on_verified=accepted.append).call()
    (record,) = accepted
    with pytest.raises(FrozenInstanceError):
        record.user = "grace"  # type: ignore[misc]


def test_an_asgi_application_has_the_same_hook_within_its_transaction(
    registry: MemoryRegistry, client: Identity
) -> None:
    seen: list[Any] = []
    callee = Callee(registry, on_verified=lambda record: seen.append((record.user, current_request_id())))
    transaction = client.mint_transaction(user(), scope=["read"])
    headers = signed(client, target="/mine", txn_token=transaction.carry()) | {"x-request-id": "r-1"}
    assert callee.call(target="/mine", headers=headers).status == 200
    assert seen == [("ada", "r-1")]


@pytest.mark.parametrize("failure", [ValueError("a bug"), InsufficientScope("not even a refusal")])
def test_a_hook_that_fails_decides_nothing_and_is_logged_and_counted(
    registry: MemoryRegistry, client: Identity, caplog: pytest.LogCaptureFixture, audit: Lines, failure: Exception
) -> None:
    def fail(_: Accepted) -> None:
        raise failure

    served = Served(registry, client, on_verified=fail)
    assert [served.call().status_code for _ in range(2)] == [200, 200]
    callee = Callee(registry, on_verified=fail)
    assert callee.call(headers=signed(client)).status == 200
    assert len(audit()) == 3
    assert sum("the audit failed (hook)" in message for message in caplog.messages) == 3
    assert 'peerseal_audit_failures_total{part="hook"} 2\n' in served.identity.metrics()
    assert served.auth.refusals == {}


def test_a_log_that_fails_decides_nothing_and_the_hook_is_called_all_the_same(
    registry: MemoryRegistry, client: Identity, audit: Lines
) -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError("no space left on device")

    handler, accepted = Broken(), list[Accepted]()
    served = Served(registry, client, on_verified=accepted.append)
    logging.getLogger("peerseal.audit").addHandler(handler)
    try:
        assert served.call().status_code == 200
    finally:
        logging.getLogger("peerseal.audit").removeHandler(handler)
    assert len(accepted) == 1
    assert 'peerseal_audit_failures_total{part="log"} 1\n' in served.identity.metrics()


def test_a_hook_that_would_have_to_be_awaited_is_an_error_at_the_start(
    registry: MemoryRegistry, client: Identity
) -> None:
    async def hook(_: Accepted) -> None: ...

    for wrong, said in ((hook, "coroutine"), ("print", "on_verified")):
        with pytest.raises(ConfigurationError, match=said):
            Served(registry, client, on_verified=wrong)


# ---- request ids


@pytest.mark.parametrize("given", ["r-1", "0af7651916cd43dd8448eb211c80319c", "a" * 128, "Root=1-67891233:abc/d.e_f+g"])
def test_a_request_id_that_came_is_the_request_s(served: Served, given: str) -> None:
    served.call(X_Request_Id=given)
    served.app.test_client().get("/open", headers={"X-Request-Id": given})
    assert served.seen == [given, given]


@pytest.mark.parametrize("given", ["", "a b", "a" * 129, "r-1,r-2", 'a"b', "é", "<b>", "{}", "a;b", "a\tb"])
def test_another_one_is_replaced_by_64_random_bits(served: Served, given: str) -> None:
    for _ in range(2):
        served.app.test_client().get("/open", headers={"X-Request-Id": given})
    first, second = served.seen
    assert first != second
    assert all(len(made) == 16 and int(made, 16) >= 0 for made in served.seen)


def test_no_request_leaves_its_id_to_the_next_one_on_its_thread(served: Served) -> None:
    served.call(X_Request_Id="r-1")
    assert current_request_id() is None
    served.call()
    assert served.seen[1] not in ("r-1", None)


def test_what_a_view_streams_is_made_within_its_request(served: Served) -> None:
    answer = served.call("/stream", X_Request_Id="r-5")
    assert answer.text == "r-5r-5"
    assert current_request_id() is None


def test_threads_of_a_pool_work_within_the_request_of_whoever_gave_the_work(served: Served) -> None:
    with ThreadPoolExecutor(1) as pool:
        served.look = lambda: propagate(pool).submit(current_request_id).result()
        served.call(X_Request_Id="r-6")
        assert served.seen == ["r-6"]
        assert pool.submit(current_request_id).result() is None


def test_a_session_passes_the_request_id_on_and_only_to_its_own_service(client: Identity) -> None:
    with raw_server() as callee, raw_server() as stranger:
        with client.session("callee", callee.url, retries=0) as session:
            session.get("/a")
            with serving("r-8"):
                session.get("/b")
                session.get("/c", headers={"X-Request-Id": "mine"})
                session.get(stranger.url)
        assert [ids(callee, number) for number in range(3)] == [None, ["r-8"], ["mine"]]
        assert ids(stranger, 0) is None
    assert current_request_id() is None


def ids(server: RawServer, number: int) -> list[str] | None:
    found = server.seen[number].headers.get("x-request-id")
    return None if found is None else list(found)


# ---- log lines


def lines_of(work: Callable[[], object]) -> list[str]:
    """What a logger writes through the filter while ``work`` runs."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.addFilter(RequestContextFilter())
    handler.setFormatter(logging.Formatter("%(request_id)s %(transaction_id)s %(message)s"))
    log = logging.getLogger("an.application")
    log.addHandler(handler)
    log.propagate = False
    try:
        work()
    finally:
        log.removeHandler(handler)
    return stream.getvalue().splitlines()


def say() -> None:
    logging.getLogger("an.application").warning("said")


def test_every_line_of_a_request_names_it_and_its_transaction(served: Served, client: Identity) -> None:
    served.look = say
    transaction = client.mint_transaction(user(), scope=["read"], transaction_id="t-4")
    assert lines_of(lambda: served.call(transaction=transaction, X_Request_Id="r-4")) == ["r-4 t-4 said"]
    assert lines_of(lambda: served.call(X_Request_Id="r-4")) == ["r-4 - said"]
    assert lines_of(say) == ["- - said"]


def test_at_the_edge_the_lines_after_a_transaction_was_minted_name_it(client: Identity) -> None:
    def order(environ: Any, start_response: Any) -> Sequence[bytes]:
        say()
        with carrying(client.mint_transaction(user(), scope=["read"], transaction_id="t-5")):
            threading.Thread(target=say).run()
        say()
        start_response("200 OK", [])
        return [b""]

    started: list[Any] = []
    app = RequestIds(order)
    environ = {"HTTP_X_REQUEST_ID": "r-5"}
    assert lines_of(lambda: app(environ, lambda *given: started.append(given))) == [
        "r-5 - said",
        "r-5 t-5 said",
        "r-5 t-5 said",
    ]
    assert started == [("200 OK", [("X-Request-Id", "r-5")])]


def test_a_refusal_s_line_has_the_request_id_of_all_others(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    served.app.test_client().get("/profiles/1", headers={"X-Request-Id": "r-9"})
    assert "missing_token" in caplog.text
    assert "request r-9;" in caplog.text


# ---- at the start, in a program that configures nothing, or what logs.configure does

PROGRAM = """
import logging, sys
import peerseal, peerseal.logs
from peerseal.testing import MemoryRegistry
if sys.argv[1] == "configured":
    peerseal.logs.configure()
    peerseal.logs.configure()
with MemoryRegistry() as registry:
    registry.set_domain(minters=["client"])
    token = registry.join_token("client")
    given = {"registry": "http://127.0.0.1:1", "fetcher": registry, "key_dir": sys.argv[2]}
    client = peerseal.Identity("client", join_token=token, **given).start()
    client.stop()
    client = peerseal.Identity("client", **given).start()
    user = peerseal.User('eve","user":"ada', "https://login.example.com", frozenset(("read",)), "u", 2**40, {})
    with peerseal.logs.serving("r-1"):
        transaction = client.mint_transaction(user, scope=["read"], transaction_id="t-1")
        logging.getLogger("an.application").info("one\\n2027 forged %s", "\\x1b[2J")
    client.stop()
print(token)
"""


def run(tmp_path: Path, mode: str) -> tuple[list[str], str]:
    """The lines on standard error, and the join token."""
    command = [sys.executable, "-c", PROGRAM, mode, str(tmp_path / "keys")]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return ended.stderr.splitlines(), ended.stdout.strip()


@pytest.mark.parametrize("mode", ["configured", "plain"])
def test_a_service_says_at_the_start_who_it_is_whether_logging_is_configured_or_not(tmp_path: Path, mode: str) -> None:
    lines, token = run(tmp_path, mode)
    _, token_id, secret, pin = token.split(".")
    first, second = [line for line in lines if "signs with" in line]
    for line in (first, second):
        assert "test.internal/client signs with test.internal/client/" in line
        assert "registry http://127.0.0.1:1," in line
        assert f"root key {pin}" in line
    assert f"registered by join token {token_id}" in first
    assert f"taken up from the key folder {tmp_path / 'keys' / 'client'}" in second
    assert secret not in "\n".join(lines)


def test_configured_lines_name_their_request_and_audit_lines_are_bare_json_once_each(tmp_path: Path) -> None:
    lines, _ = run(tmp_path, "configured")
    (audited,) = [line for line in lines if line.startswith("{")]
    assert json.loads(audited)["user"] == 'eve","user":"ada'
    (said,) = [line for line in lines if "an.application" in line]
    assert "INFO an.application [r-1 t-1] one\\n2027 forged \\x1b[2J" in said
    assert not any(line.startswith("2027 forged") for line in lines)
    assert all(name in FORMAT for name in ("%(request_id)s", "%(transaction_id)s"))
