"""Spans and metrics of each operation, and no trace of OpenTelemetry where nothing asks for it."""

import asyncio
import json
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import timedelta
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from flask import Flask
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind
from sqlalchemy import MetaData, create_engine
from starlette.testclient import TestClient
from werkzeug.test import Client

import peerseal.otel
from peerseal import EventVerifier, Identity, Verifier, asgi, wsgi
from peerseal.asynchronous import AsyncVerifier
from peerseal.errors import InsufficientScope
from peerseal.flask import PeerAuth
from peerseal.logs import RequestIds
from peerseal.messaging import EventConsumer, EventPublisher, Message
from peerseal.outbox import Outbox, OutboxLimits, create_tables, outbox_table
from peerseal.protocol.trace_context import parse_traceparent
from peerseal.runtime.tracing import span
from peerseal.testing import MemoryRegistry
from peerseal.verify.context import current_traceparent, serving
from tests.support.letterbox import Letterbox
from tests.support.spans import GIVEN, SPAN, TRACE, Seen, id_of, parent_of, seeing
from tests.support.waiting import until
from tests.support.wire import Answer, RawServer


class Queue:
    """A broker in memory, named as RabbitMQ: outlet and inlet in one."""

    messaging_system = "rabbitmq"

    def __init__(self) -> None:
        self._messages = deque[Message]()

    def send(self, topic: str, payload: bytes, headers: Iterable[tuple[str, bytes]], key: bytes | None = None) -> None:
        self._messages.append(Message(topic, payload, tuple(headers), key, f"{topic}/1"))

    def flush(self, timeout: float) -> None:
        """All that was sent is confirmed."""

    def receive(self, timeout: float) -> Message | None:
        return self._messages.popleft() if self._messages else None

    def done(self, message: Message) -> None:
        """A message that was received is gone."""

    def hold(self, message: Message, seconds: float) -> bool:
        return False

    def close(self) -> None:
        """Nothing is open."""


@pytest.fixture
def seen() -> Iterator[Seen]:
    """Spans are made during the test."""
    with seeing() as seen:
        yield seen


@pytest.fixture
def registry() -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as registry:
        yield registry


@pytest.fixture
def caller(registry: MemoryRegistry) -> Identity:
    return registry.identity("caller")


@pytest.fixture
def verifier(registry: MemoryRegistry) -> Verifier:
    return Verifier(registry.identity("callee").trust, audience="callee", allow={"caller": {"read"}})


def test_signing_and_verifying_are_spans_of_one_trace_and_name_the_proven_caller(
    seen: Seen, caller: Identity, verifier: Verifier
) -> None:
    with span("the.test"):
        token = caller.sign_request("callee", method="GET", target="/")
        peer = verifier.verify(token, method="GET", target="/")
    around, verify = seen.named("the.test"), seen.named("peerseal.verify")
    for inner in (seen.named("peerseal.sign"), verify):
        assert inner.parent is not None
        assert inner.parent.span_id == around.context.span_id
    proven = {"peerseal.operation": "verify", "peerseal.caller": peer.id, "peerseal.kid": peer.kid}
    assert dict(verify.attributes or {}) == proven


def test_an_error_is_its_code_in_span_and_metric_and_its_text_is_nowhere(
    seen: Seen, caller: Identity, verifier: Verifier
) -> None:
    token = caller.sign_request("callee", method="GET", target="/")
    with pytest.raises(InsufficientScope):
        verifier.verify(token, method="GET", target="/", scope="hunter2secret")
    refused = seen.named("peerseal.verify")
    assert dict(refused.attributes or {}) == {"peerseal.operation": "verify", "error.type": "insufficient_scope"}
    assert not refused.status.is_ok
    assert {"peerseal.operation": "verify", "error.type": "insufficient_scope"} in seen.durations()
    everything = "".join(each.to_json() for each in seen.spans)
    assert "hunter2secret" not in everything
    assert token not in everything


def test_an_asynchronous_verification_is_a_span(seen: Seen, caller: Identity, verifier: Verifier) -> None:
    token = caller.sign_request("callee", method="GET", target="/")
    peer = asyncio.run(AsyncVerifier(verifier).verify(token, method="GET", target="/"))
    assert (seen.named("peerseal.verify").attributes or {})["peerseal.caller"] == peer.id


def test_registering_and_rotating_are_spans(seen: Seen, registry: MemoryRegistry) -> None:
    registry.identity("newcomer").rotate()
    assert [each.name for each in seen.spans if each.name in ("peerseal.register", "peerseal.rotate")] == [
        "peerseal.register",
        "peerseal.rotate",
    ]


def test_a_request_continues_the_trace_that_it_came_with_also_while_its_body_is_streamed(seen: Seen) -> None:
    traceparents: list[str | None] = []

    def application(_environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])

        def pieces() -> Iterator[bytes]:
            traceparents.append(current_traceparent())
            yield b""

        traceparents.append(current_traceparent())
        return pieces()

    environ = {"REQUEST_METHOD": "GET", "HTTP_TRACEPARENT": GIVEN}
    list(RequestIds(application)(environ, lambda *_: None))  # type: ignore[arg-type]
    served = seen.named("GET")
    assert served.kind is SpanKind.SERVER
    assert served.parent is not None
    assert (f"{served.parent.trace_id:032x}", f"{served.parent.span_id:016x}") == (TRACE, SPAN)
    own = f"{served.context.span_id:016x}"
    assert [parse_traceparent(each) for each in traceparents] == [(TRACE, own)] * 2
    assert current_traceparent() is None


def test_another_instrumentation_s_span_is_the_request_s_and_no_second_one_begins(
    seen: Seen, registry: MemoryRegistry
) -> None:
    app = Flask("callee")
    PeerAuth(app, registry.identity("callee"), allow={})
    with span("of.another"):
        assert app.test_client().get("/").status_code == 401
    assert [each.name for each in seen.spans if each.kind is SpanKind.SERVER or each.name == "of.another"] == [
        "of.another"
    ]


def test_a_malformed_traceparent_begins_a_new_trace(seen: Seen) -> None:
    with serving(None, "00-zz"), span("peerseal.consume", "consumer"):
        pass
    assert seen.named("peerseal.consume").parent is None


def test_without_spans_a_call_and_an_event_carry_the_traceparent_on_unchanged(caller: Identity) -> None:
    with serving("r-1", GIVEN):
        headers = caller.sign_event(b"", topic="t", audience="a.b", scope="s", event_id="e", transaction_id="x")
        assert headers["traceparent"] == current_traceparent() == GIVEN
    with serving("r-1", "00-zz"):
        assert current_traceparent() is None


def test_without_spans_a_method_is_the_plain_function_with_nothing_around_it() -> None:
    plain = Verifier.verify
    assert not hasattr(plain, "__wrapped__")
    peerseal.otel.start()
    try:
        assert vars(Verifier)["verify"].__wrapped__ is plain
    finally:
        peerseal.otel.stop()
    assert Verifier.verify is plain


def test_opentelemetry_is_loaded_only_where_peerseal_otel_is() -> None:
    program = (
        "import json, sys, peerseal, peerseal.flask, peerseal.requests, peerseal.messaging, peerseal.logs\n"
        "print(json.dumps([name for name in sys.modules if name.startswith('opentelemetry')]))"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(ended.stdout) == []


# ---- names and attributes of OpenTelemetry's semantic conventions


def test_a_request_is_named_by_its_route_and_has_its_status_and_no_path(seen: Seen, registry: MemoryRegistry) -> None:
    app = Flask("callee")
    auth = PeerAuth(app, registry.identity("callee"), allow={"caller": {"read"}})

    @app.get("/people/<name>")
    @auth.public
    def person(name: str) -> tuple[str, int]:
        return "", 503

    app.test_client().get("/people/ada.lovelace?born=1815-12-10", headers={"traceparent": GIVEN})
    served = seen.named("GET /people/<name>")
    assert served.kind is SpanKind.SERVER
    assert parent_of(served) == SPAN
    assert dict(served.attributes or {}) == {
        "peerseal.operation": "serve",
        "http.request.method": "GET",
        "http.route": "/people/<name>",
        "http.response.status_code": 503,
        "error.type": "503",
    }
    assert not served.status.is_ok
    assert "ada.lovelace" not in served.to_json()  # so long that no id has it by chance


def test_a_refused_request_is_no_error_of_the_server(seen: Seen, registry: MemoryRegistry) -> None:
    app = wsgi.PeerAuth(lambda *_: [], registry.identity("callee"), allow={})
    Client(app).get("/")
    served = seen.named("GET")
    assert (served.attributes or {})["http.response.status_code"] == 401
    assert served.status.is_unset


def test_an_asynchronous_application_s_requests_have_route_and_status(seen: Seen, registry: MemoryRegistry) -> None:
    app = FastAPI()

    @app.get("/people/{name}")
    async def person(name: str) -> str:
        return name

    gate = asgi.PeerAuth(app, registry.identity("callee"), needs={"/people": asgi.PUBLIC})
    assert TestClient(gate).get("/people/ada").status_code == 200
    served = seen.named("GET /people/{name}")
    assert (served.kind, (served.attributes or {})["http.response.status_code"]) == (SpanKind.SERVER, 200)


def test_a_method_that_a_client_invented_is_no_name(seen: Seen) -> None:
    environ = {"REQUEST_METHOD": "SECRET"}
    list(RequestIds(lambda *_: [])(environ, lambda *_: None))  # type: ignore[arg-type]
    assert (seen.named("HTTP").attributes or {})["http.request.method"] == "_OTHER"


def test_a_call_names_method_server_and_status_and_no_path(seen: Seen, caller: Identity, server: RawServer) -> None:
    server.script.append(Answer(404))
    caller.session("callee", server.url, retries=0).get("/people/ada?born=1815")
    call = seen.named("GET")
    assert call.kind is SpanKind.CLIENT
    assert dict(call.attributes or {}) == {
        "peerseal.operation": "call",
        "http.request.method": "GET",
        "server.address": "127.0.0.1",
        "server.port": server.port,
        "http.response.status_code": 404,
        "error.type": "404",
    }
    assert parent_of(seen.named("peerseal.sign")) == id_of(call)


def test_an_event_is_created_sent_and_processed_in_one_trace_also_through_rabbitmq(
    seen: Seen, registry: MemoryRegistry, caller: Identity
) -> None:
    queue = Queue()
    publisher = EventPublisher(caller, queue)
    with span("the.request"):
        event: dict[str, Any] = {
            "audience": "jobs.example.com",
            "scope": "invoice",
            "event_id": "e-1",
            "transaction_id": "t-1",
        }
        publisher.publish("OrderCreated", b"{}", subject="ada", **event)
    trust = registry.identity("invoicing")
    verifier = EventVerifier(
        trust.trust, audience="jobs.example.com", allow={"caller": {"invoice"}}, max_age=timedelta(days=1)
    )
    EventConsumer(trust, verifier, queue, queue).run_once(lambda _: None)
    create, send, process = (seen.named(f"{did} OrderCreated") for did in ("create", "send", "process"))
    request = seen.named("the.request")
    assert (create.kind, send.kind, process.kind) == (SpanKind.PRODUCER, SpanKind.CLIENT, SpanKind.CONSUMER)
    assert parent_of(create) == parent_of(send) == id_of(request)
    assert parent_of(process) == id_of(create)
    assert parent_of(seen.named("peerseal.verify")) == id_of(process)
    assert dict(process.attributes or {}) == {
        "peerseal.operation": "consume",
        "messaging.system": "rabbitmq",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "OrderCreated",
    }
    assert not any("ada" in each.to_json() or "t-1" in each.to_json() for each in seen.spans)


def test_the_outbox_sends_one_event_in_its_trace_and_several_with_links_to_theirs(seen: Seen, tmp_path: Path) -> None:
    box, metadata = Letterbox(tmp_path / "letters"), MetaData()
    engine, table = create_engine(f"sqlite:///{tmp_path / 'outbox'}"), outbox_table(metadata)
    create_tables(engine, metadata)
    outbox = Outbox(engine, table, limits=OutboxLimits(poll=0.01))

    def sent(*traceparents: str) -> ReadableSpan:
        seen.forget()
        with engine.begin() as connection:
            for given in traceparents:
                outbox.add(connection, "OrderCreated", b"", {"authorization": "x", "traceparent": given})
        outbox.wake()
        until(lambda: bool(seen.spans))
        return seen.named("send OrderCreated")

    outbox.start(box.connect)
    try:
        one, two = sent(GIVEN), sent(GIVEN, GIVEN.replace(SPAN, SPAN[::-1]))
    finally:
        outbox.stop()
    assert (parent_of(one), len(one.links)) == (SPAN, 0)
    assert two.parent is None
    assert [f"{link.context.span_id:016x}" for link in two.links] == [SPAN, SPAN[::-1]]
    assert (two.attributes or {})["messaging.batch.message_count"] == 2


# ---- sampling, and how spans are turned on


def test_a_trace_that_is_not_sampled_makes_no_span_and_goes_on_as_not_sampled(seen: Seen, caller: Identity) -> None:
    with serving(None, f"00-{TRACE}-{SPAN}-00"):
        headers = caller.sign_event(b"", topic="t", audience="a.b", scope="s", event_id="e", transaction_id="x")
    assert headers["traceparent"].startswith(f"00-{TRACE}-")
    assert headers["traceparent"].endswith("-00")
    assert "create t" not in seen.names


def test_durations_of_calls_that_are_not_sampled_have_their_error_too(seen: Seen) -> None:
    with serving(None, f"00-{TRACE}-{SPAN}-00"), span("peerseal.call", "client") as add:
        add({"http.response.status_code": 500})
    assert {"peerseal.operation": "call", "error.type": "500"} in seen.durations()


def test_opentelemetry_instrument_finds_what_turns_spans_on() -> None:
    (found,) = entry_points(group="opentelemetry_instrumentor", name="peerseal")
    plain = Verifier.verify
    found.load()().instrument(skip_dep_check=True)
    try:
        assert Verifier.verify is not plain
    finally:
        peerseal.otel.stop()
    assert Verifier.verify is plain
