"""The demo's services as people trace them: each started by ``opentelemetry-instrument``, without a line for it, and
exporting to one collector. An order on its way through shop, outbox, Kafka, consumer and two more services is one
trace, joined with the registry's."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import requests

from demo.stack import Running
from tests.support.brokers import eventually
from tests.support.collector import Collector, Span, TracedStack, tree
from tests.support.stack import CASES, CLIENT, INVOICING, RESOURCE

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SPAN = "00f067aa0ba902b7"
USER, PASSWORD, SECRET = "grace", "everyone-in-the-demo", "only-the-operator-knows"
REGISTRY = "registry"


@dataclass(frozen=True)
class Traced:
    """Everything up, and what its processes exported."""

    stack: TracedStack
    running: Running
    collector: Collector

    def login(self) -> str:
        """An access token of the user."""
        body = {"user": USER, "password": PASSWORD}
        answer = requests.post(f"{self.running.client.url}/authenticate", json=body, timeout=60)
        return str(answer.json()["access_token"])

    def order(self, token: str, traceparent: str) -> dict[str, Any]:
        """The answer to an order."""
        headers = {"Authorization": f"Bearer {token}", "traceparent": traceparent}
        items: Any = {"items": [{"itemID": "telescope", "quantity": 1}]}
        answer = requests.post(f"{self.running.client.url}/orders", json=items, headers=headers, timeout=60)
        assert answer.status_code == 201, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def spans(self, trace_id: str, last: str) -> list[Span]:
        """The spans of a trace, once each span with a local parent has it, and one has that name."""

        def whole() -> bool:
            spans = self.collector.spans(trace_id)
            ids = {SPAN, ""} | {span.id for span in spans}
            return last in {span.name for span in spans} and all(span.parent in ids for span in spans)

        eventually(whole, f"the trace is whole, and has {last}", within=60)
        return self.collector.spans(trace_id)

    def lines(self, service: str, trace_id: str) -> list[dict[str, Any]]:
        """The log lines of a service that name that trace."""
        lines = self.stack.log(service).read_text().splitlines()
        return [found for line in lines if trace_id in line and (found := json.loads(line))]


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    with Collector() as collector, TracedStack(tmp_path_factory.mktemp("traced"), collector) as stack:
        yield Traced(stack, stack.start_all(PASSWORD, operator_secret=SECRET), collector)


class Trace:
    """The spans of one trace, and what is around each."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self.spans = spans
        self._by_id = {span.id: span for span in spans}

    def one(self, service: str, name: str) -> Span:
        """The span of that name, which the service made once."""
        found = [span for span in self.spans if (span.service, span.name) == (service, name)]
        assert len(found) == 1, f"{len(found)} of {service} {name}:\n" + "\n".join(tree(self.spans))
        return found[0]

    def way_to(self, span: Span) -> list[tuple[str, str, str]]:
        """The spans around it, from the first one on, and itself: service, name and kind."""
        before = self.way_to(self._by_id[span.parent]) if span.parent in self._by_id else []
        return [*before, (span.service, span.name, span.kind)]


def traceparent(trace_id: str, flags: str = "01") -> str:
    return f"00-{trace_id}-{SPAN}-{flags}"


def test_an_order_is_one_trace_from_the_shop_through_kafka_to_the_last_service(traced: Traced) -> None:
    trace_id, token = "a1" * 16, traced.login()
    order = traced.order(token, traceparent(trace_id))
    trace = Trace(traced.spans(trace_id, "POST /invoices"))
    ordered = trace.one(CLIENT, "POST /orders")
    assert ordered.parent == SPAN
    create = [(CLIENT, "POST /orders", "server"), (CLIENT, "create OrderCreated", "producer")]
    process = [*create, (INVOICING, "process OrderCreated", "consumer")]
    case = [*process, (INVOICING, "GET", "client"), (RESOURCE, "GET /cases/<id>", "server")]
    third = [*case, (RESOURCE, "PUT", "client"), (CASES, "PUT /cases/<id>", "server")]
    invoice = [*process, (INVOICING, "POST", "client"), (RESOURCE, "POST /invoices", "server")]
    assert trace.way_to(trace.one(CLIENT, "send OrderCreated")) == [*create, (CLIENT, "send OrderCreated", "client")]
    ways = [trace.way_to(span) for span in trace.spans]
    for way in (case, third, invoice, process):
        assert [*way, (way[-1][0], "peerseal.verify", "internal")] in ways, "\n".join(tree(trace.spans))
    for way in (case, third, invoice):
        assert [*way[:-1], (way[-2][0], "peerseal.sign", "internal")] in ways
    sent = trace.one(CLIENT, "send OrderCreated").attributes
    assert (sent["messaging.system"], sent["messaging.destination.name"]) == ("kafka", "OrderCreated")
    verified = [span for span in trace.spans if span.name == "peerseal.verify" and span.service == RESOURCE]
    assert {span.attributes["peerseal.caller"] for span in verified} == {"demo.internal/invoicing"}
    assert not any(span.failed for span in trace.spans)
    said = [line for service in (CLIENT, INVOICING) for line in traced.lines(service, trace_id)]
    assert {line.get("transaction_id") for line in said} == {order["transactionID"]}
    assert {line["span_id"] for line in said} <= {span.id for span in trace.spans}


def test_the_registry_s_spans_belong_to_the_calls_of_the_services(traced: Traced) -> None:
    trace_id = "b2" * 16
    headers = {"Operator-Secret": SECRET, "traceparent": traceparent(trace_id)}
    url = f"{traced.running.client.url}/refresh-my-credentials"
    assert requests.post(url, headers=headers, timeout=60).status_code == 200
    trace = Trace(traced.spans(trace_id, "registry.admit"))
    rotate = [(CLIENT, "POST /refresh-my-credentials", "server"), (CLIENT, "peerseal.rotate", "internal")]
    call = [*rotate, (CLIENT, "POST", "client"), (REGISTRY, "POST /v1/services/<service>/keys", "server")]
    admit = trace.one(REGISTRY, "registry.admit")
    assert trace.way_to(admit) == [*call, (REGISTRY, "registry.admit", "internal")]
    assert [*call, (REGISTRY, "peerseal.verify", "internal")] in map(trace.way_to, trace.spans)
    within = {span.name for span in trace.spans if span.parent == admit.id}
    assert "registry.write" in within
    registrations = [span for span in traced.collector.spans() if span.name == "peerseal.register"]
    assert {span.service for span in registrations} == {CLIENT, RESOURCE, CASES, INVOICING}
    for span in registrations:
        assert "registry.admit" in {other.name for other in traced.collector.spans(span.trace_id)}


def test_a_trace_that_is_not_sampled_goes_all_the_way_and_is_exported_nowhere(traced: Traced) -> None:
    hidden, shown, token = "c3" * 16, "d4" * 16, traced.login()
    traced.order(token, traceparent(hidden, "00"))
    eventually(lambda: traced.lines(INVOICING, hidden) != [], "the consumer knows the trace", within=60)
    traced.order(token, traceparent(shown))
    traced.spans(shown, "POST /invoices")  # each service has exported what it made before
    assert traced.collector.spans(hidden) == []


def test_a_broken_traceparent_is_ignored_and_a_new_trace_begins(traced: Traced) -> None:
    url, broken = f"{traced.running.client.url}/profiles/1", "00-zz-hunter2-01"
    assert requests.get(url, headers={"traceparent": broken}, timeout=60).status_code == 200

    def found() -> list[Span]:
        return [span for span in traced.collector.spans() if span.name == "GET /profiles/<id>"]

    eventually(lambda: len(found()) == 2, "both services have exported", within=60)
    outer, inner = found()
    assert (outer.service, outer.parent, inner.service) == (CLIENT, "", RESOURCE)
    assert inner.trace_id == outer.trace_id
    assert b"hunter2" not in traced.collector.raw


def test_a_refusal_is_a_span_and_a_log_line_of_the_same_trace(traced: Traced) -> None:
    trace_id = "e5" * 16
    headers = {"traceparent": traceparent(trace_id), "Authorization": "Bearer no.real.token"}
    url = f"{traced.running.resource.url}/invoices"
    assert requests.get(url, headers=headers, timeout=60).status_code == 401
    trace = Trace(traced.spans(trace_id, "GET /invoices"))
    served, verify = trace.one(RESOURCE, "GET /invoices"), trace.one(RESOURCE, "peerseal.verify")
    assert (served.failed, served.attributes["http.response.status_code"]) == (False, 401)
    assert (verify.failed, verify.attributes["error.type"], verify.parent) == (True, "malformed_token", served.id)
    (line,) = [line for line in traced.lines(RESOURCE, trace_id) if line.get("code") == "malformed_token"]
    assert line["span_id"] == served.id


def test_no_span_and_no_line_has_a_secret_or_a_token_and_no_span_a_person(traced: Traced) -> None:
    trace_id, token = "f6" * 16, traced.login()
    order = traced.order(token, traceparent(trace_id))
    traced.spans(trace_id, "POST /invoices")
    files = list(traced.stack.root.glob("*/host/join-token"))
    assert len(files) == 4
    secrets = [token, PASSWORD, SECRET, *(file.read_text() for file in files)]
    exported = traced.collector.raw
    lines = b"".join(traced.stack.log(name).read_bytes() for name in (CLIENT, RESOURCE, CASES, INVOICING, REGISTRY))
    assert b"peerseal.sign" in exported
    assert trace_id.encode() in lines
    assert [secret for secret in secrets if secret.encode() in exported + lines] == []
    assert re.findall(rb"eyJ[\w-]{8,}\.[\w-]+|psj1\.", exported + lines) == []
    assert [person for person in (USER, order["transactionID"]) if person.encode() in exported] == []
