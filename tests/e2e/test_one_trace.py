"""One call through three processes and a broker is one trace, with the right parents; the logs name it as well."""

import json
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.brokers import eventually
from tests.support.processes import Process, Server
from tests.support.stack import CLIENT, INVOICING, RESOURCE, Stack
from tests.support.traced import BROKER_URL, RESOURCE_URL, SPANS_FILE

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@dataclass(frozen=True)
class Span:
    """One span of one process."""

    service: str
    name: str
    trace_id: str
    id: str
    parent: str | None
    attributes: Mapping[str, Any]

    @classmethod
    def read(cls, line: str) -> "Span":
        """A span as the SDK's exporter writes it."""
        span = json.loads(line)
        ids, parent = span["context"], span["parent_id"]
        service = span["resource"]["attributes"]["service.name"]
        parent = parent and parent.removeprefix("0x")
        identity = ids["trace_id"].removeprefix("0x"), ids["span_id"].removeprefix("0x")
        return cls(service, span["name"].removeprefix("peerseal."), *identity, parent, span["attributes"])


class Traced:
    """A registry and the three services."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        stack.start_registry(workers=1)
        broker = stack.start_broker()
        self.resource = self._start(RESOURCE, {BROKER_URL: broker})
        self.client = self._start(CLIENT, {RESOURCE_URL: self.resource.url})
        settings = stack.service_settings(INVOICING) | self._settings(INVOICING) | {BROKER_URL: broker}
        command = [sys.executable, "-m", "tests.support.traced"]
        stack.keep(Process(INVOICING, command, log=stack.log(INVOICING), settings=settings))

    def _settings(self, name: str) -> dict[str, str]:
        return {SPANS_FILE: str(self._file(name)), "PEERSEAL_LOG_FORMAT": "json"}

    def _start(self, name: str, settings: Mapping[str, str]) -> Server:
        target = f"tests.support.traced:{name.replace('-', '_')}()"
        return self.stack.start_service(name, target, workers=1, settings={**self._settings(name), **settings})

    def _file(self, name: str) -> Path:
        return self.stack.root / f"{name}.spans"

    def spans(self, trace_id: str) -> list[Span]:
        """The spans of that trace, of all processes."""
        files = [self._file(name) for name in (CLIENT, RESOURCE, INVOICING)]
        lines = [line for file in files if file.exists() for line in file.read_text().splitlines(True)]
        spans = [Span.read(line) for line in lines if line.endswith("\n")]
        return [span for span in spans if span.trace_id == trace_id]


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    with Stack(tmp_path_factory.mktemp("traced")) as stack:
        yield Traced(stack)


def test_a_call_and_its_event_are_one_trace_with_the_right_parents(traced: Traced) -> None:
    headers = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
    answer = requests.get(f"{traced.client.url}/orders/7", headers=headers, timeout=60)
    assert (answer.status_code, answer.text) == (200, "7")
    eventually(lambda: any(span.name == "consume" for span in traced.spans(TRACE)), "invoicing has consumed")
    spans = traced.spans(TRACE)
    by_id = {span.id: span for span in spans}

    def one(service: str, name: str) -> Span:
        (found,) = [span for span in spans if (span.service, span.name) == (service, name)]
        return found

    def parent(span: Span) -> tuple[str, str]:
        found = by_id[str(span.parent)]
        return found.service, found.name

    assert one(CLIENT, "serve").parent == SPAN
    assert parent(one(CLIENT, "call")) == (CLIENT, "serve")
    assert parent(one(CLIENT, "sign")) == (CLIENT, "call")
    assert parent(one(RESOURCE, "serve")) == (CLIENT, "call")
    assert parent(one(RESOURCE, "verify")) == (RESOURCE, "serve")
    assert parent(one(RESOURCE, "publish")) == (RESOURCE, "serve")
    assert parent(one(INVOICING, "consume")) == (RESOURCE, "publish")
    assert parent(one(INVOICING, "verify")) == (INVOICING, "consume")
    assert one(RESOURCE, "verify").attributes["peerseal.caller"].endswith("/client-service")
    assert one(INVOICING, "verify").attributes["peerseal.topic"] == "OrderCreated"


def test_a_refusal_is_a_span_and_a_log_line_of_the_same_trace(traced: Traced) -> None:
    other = TRACE[::-1]
    headers = {"traceparent": f"00-{other}-{SPAN}-01", "Authorization": "Bearer no.real.token"}
    assert requests.get(f"{traced.resource.url}/orders/8", headers=headers, timeout=60).status_code == 401
    eventually(lambda: len(traced.spans(other)) == 2, "both spans are written")
    serve, verify = sorted(traced.spans(other), key=lambda span: span.name)
    assert (serve.name, serve.parent) == ("serve", SPAN)
    assert (verify.name, verify.parent) == ("verify", serve.id)
    assert verify.attributes["error.type"] == "malformed_token"
    lines = [json.loads(line) for line in traced.stack.log(RESOURCE).read_text().splitlines() if line[0] == "{"]
    (line,) = [line for line in lines if line.get("code") == "malformed_token"]
    assert (line["trace_id"], line["span_id"]) == (other, serve.id)


def test_no_span_and_no_line_has_a_token(traced: Traced) -> None:
    requests.get(f"{traced.client.url}/orders/9", timeout=60)
    files = [*traced.stack.root.glob("*.spans"), *map(traced.stack.log, (CLIENT, RESOURCE, INVOICING))]
    text = "".join(file.read_text() for file in files)
    assert '"peerseal.sign"' in text
    assert not re.search(r"eyJ[\w-]{8,}\.[\w-]+|psj1\.", text)
