"""Spans and metrics of each operation, and no trace of OpenTelemetry where nothing asks for it."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from flask import Flask
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

import peerseal.otel
from peerseal import Identity, Verifier
from peerseal.asynchronous import AsyncVerifier
from peerseal.errors import InsufficientScope
from peerseal.flask import PeerAuth
from peerseal.logs import RequestIds
from peerseal.protocol.trace_context import parse_traceparent
from peerseal.runtime.tracing import span
from peerseal.testing import MemoryRegistry
from peerseal.verify.context import current_traceparent, serving

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GIVEN = f"00-{TRACE}-{SPAN}-01"


class Seen:
    """What OpenTelemetry's SDK got."""

    def __init__(self) -> None:
        self._exporter, self._reader = InMemorySpanExporter(), InMemoryMetricReader()
        tracers = TracerProvider()
        tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        peerseal.otel.start(tracer_provider=tracers, meter_provider=MeterProvider([self._reader]))

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        """The spans that have ended, in this order."""
        return self._exporter.get_finished_spans()

    def named(self, name: str) -> ReadableSpan:
        """The one span of that name."""
        (found,) = [span for span in self.spans if span.name == name]
        return found

    def durations(self) -> list[Mapping[str, Any]]:
        """The attributes of all durations."""
        data: Any = self._reader.get_metrics_data()
        (metric,) = data.resource_metrics[0].scope_metrics[0].metrics
        assert (metric.name, metric.unit) == ("peerseal.operation.duration", "s")
        return [dict(point.attributes) for point in metric.data.data_points]


@pytest.fixture
def seen() -> Iterator[Seen]:
    """Spans are made during the test."""
    try:
        yield Seen()
    finally:
        peerseal.otel.stop()


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
    assert dict(verify.attributes or {}) == {"peerseal.caller": peer.id, "peerseal.kid": peer.kid}


def test_an_error_is_its_code_in_span_and_metric_and_its_text_is_nowhere(
    seen: Seen, caller: Identity, verifier: Verifier
) -> None:
    token = caller.sign_request("callee", method="GET", target="/")
    with pytest.raises(InsufficientScope):
        verifier.verify(token, method="GET", target="/", scope="hunter2secret")
    refused = seen.named("peerseal.verify")
    assert dict(refused.attributes or {}) == {"error.type": "insufficient_scope"}
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

    body = RequestIds(application)({"HTTP_TRACEPARENT": GIVEN}, lambda *_: None)  # type: ignore[arg-type]
    list(body)
    served = seen.named("peerseal.serve")
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
    assert [each.name for each in seen.spans if each.name in ("peerseal.serve", "of.another")] == ["of.another"]


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
