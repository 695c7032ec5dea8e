"""A user's call and order through real services: the audit of all hops names the same user, transaction and request,
and no log holds a secret."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.brokers import eventually
from tests.support.httpie import http
from tests.support.processes import Process, Server
from tests.support.stack import CASES, CLIENT, DOMAIN, INVOICING, RESOURCE, Stack

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PASSWORD, SECRET, ISSUER = "everybody-in-the-demo", "only-the-operator-knows", "https://login.demo.internal"


@dataclass(frozen=True)
class Running:
    """Everything up: two workers each."""

    stack: Stack
    resource: Server
    client: Server
    invoicing: Process
    token: str

    def http(self, path: str, request_id: str, *arguments: str) -> Any:
        """A user's call at the edge."""
        method = "POST" if arguments else "GET"
        bearer = f"Authorization:Bearer {self.token}"
        return http(method, f"{self.client.url}{path}", bearer, f"X-Request-Id:{request_id}", *arguments)

    def log(self, name: str) -> str:
        """What a process has written."""
        return self.stack.log(name).read_text()

    def audit(self, name: str, request_id: str) -> list[dict[str, Any]]:
        """Its audit of that request."""
        lines = [json.loads(line) for line in self.log(name).splitlines() if line.startswith('{"kind"')]
        return [line for line in lines if line.get("request_id") == request_id]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder: Path = tmp_path_factory.mktemp("audit")
    with Stack(folder) as stack:
        started = stack.start_all(PASSWORD, operator_secret=SECRET)
        login = http("POST", f"{started.client.url}/authenticate", "user=ada", f"password={PASSWORD}")
        yield Running(stack, started.resource, started.client, started.invoicing, login.json["access_token"])


def test_both_hops_of_a_call_name_the_same_user_transaction_and_request(running: Running) -> None:
    assert running.http("/profiles/1", "call-1").json["user"] == "ada"
    (minted,), (called,) = running.audit(CLIENT, "call-1"), running.audit(RESOURCE, "call-1")
    assert (minted["kind"], called["kind"]) == ("transaction", "call")
    for name in ("user", "user_issuer", "transaction", "request_id"):
        assert minted[name] == called[name]
    assert (called["user"], called["user_issuer"]) == ("ada", ISSUER)
    assert called["caller"] == minted["caller"] == f"{DOMAIN}/{CLIENT}"
    assert (called["method"], called["route"], called["scope"]) == ("GET", "/profiles/<id>", "profiles:read")


def test_an_order_is_followed_through_the_broker_to_the_fourth_hop(running: Running) -> None:
    placed = running.http("/orders", "order-1", 'items:=[{"itemID": "pen", "quantity": 1}]')
    assert placed.status == 201
    assert placed.headers["x-request-id"] == "order-1"
    eventually(lambda: len(running.audit(RESOURCE, "order-1")) == 2, "the consumer has called twice")
    hops = {name: running.audit(name, "order-1") for name in (CLIENT, INVOICING, RESOURCE, CASES)}
    lines = [line for audited in hops.values() for line in audited]
    assert {line["transaction"] for line in lines} == {placed.json["transactionID"]}
    assert {(line["user"], line["user_issuer"]) for line in lines} == {("ada", ISSUER)}
    assert [line["kind"] for line in hops[CLIENT]] == ["transaction"]
    (event,) = [line for line in hops[INVOICING] if line["kind"] == "event"]
    assert (event["topic"], event["scope"]) == ("OrderCreated", "trigger_invoicing")
    by_consumer, by_resource = f"{DOMAIN}/{INVOICING}", f"{DOMAIN}/{RESOURCE}"
    assert [(line["caller"], line["method"], line["route"]) for line in (*hops[RESOURCE], *hops[CASES])] == [
        (by_consumer, "GET", "/cases/<id>"),
        (by_consumer, "POST", "/invoices"),
        (by_resource, "PUT", "/cases/<id>"),
    ]
    in_brackets = f"[order-1 {placed.json['transactionID']}]"
    eventually(lambda: in_brackets in running.log(INVOICING), "the consumer's own line names both")


def test_a_refusal_of_the_next_hop_is_found_by_the_request_id_of_the_edge(running: Running) -> None:
    answer = http(f"{running.resource.url}/profiles/1", "X-Request-Id:stranger-1")
    assert answer.status == 401
    (line,) = [line for line in running.log(RESOURCE).splitlines() if "stranger-1" in line]
    assert "missing_token" in line


@pytest.mark.parametrize("name", [CLIENT, RESOURCE, INVOICING, CASES])
def test_a_service_says_at_the_start_who_it_is_and_by_what_it_got_in(running: Running, name: str) -> None:
    (line, *_) = [line for line in running.log(name).splitlines() if "signs with" in line]
    assert f"{DOMAIN}/{name} signs with {DOMAIN}/{name}/" in line
    token = (running.stack.root / name / "host" / "join-token").read_text().strip()
    assert f"registered by join token {token.split('.')[1]}" in running.log(name)
    assert f"registry {running.stack.registry_url}, root key {token.split('.')[3]}" in line


def test_no_log_holds_a_secret(running: Running) -> None:
    running.http("/profiles/1", "secret-1")
    http("POST", f"{running.client.url}/authenticate", "user=ada", "password=a-wrong-guess")
    http("POST", f"{running.client.url}/refresh-my-credentials", f"Operator-Secret:{SECRET}")
    written = {path.name: path.read_text() for path in (running.stack.root / "logs").iterdir()}
    assert {f"{name}.log" for name in (CLIENT, RESOURCE, INVOICING, CASES, "login")} <= written.keys()
    secrets = {PASSWORD, SECRET, "a-wrong-guess", *running.token.split(".")[1:]}
    for name in (CLIENT, RESOURCE, INVOICING, CASES):
        _, _, secret, _ = (running.stack.root / name / "host" / "join-token").read_text().strip().split(".")
        secrets.add(secret)
    for name, text in written.items():
        assert {secret for secret in secrets if secret in text} == set(), name
        assert re.search(r"eyJ[A-Za-z0-9_-]{10,}\.|PRIVATE KEY|psj1\.", text) is None, name


def counted(url: str, name: str, **labels: str) -> float:
    """A counter in what ``GET /metrics`` says."""
    families = list(text_string_to_metric_families(http(f"{url}/metrics").text))
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


def test_both_services_are_ready_and_count_what_all_their_workers_did(running: Running) -> None:
    for server in (running.client, running.resource):
        assert http(f"{server.url}/readyz").json == {"ready": True}
    before = counted(running.resource.url, "peerseal_calls_accepted_total", scope="profiles:read")
    for number in range(20):
        assert running.http("/profiles/1", f"metrics-{number}").status == 200

    def all_counted() -> bool:
        seen = [counted(running.resource.url, "peerseal_calls_accepted_total", scope="profiles:read") for _ in range(6)]
        return min(seen) >= before + 20

    eventually(all_counted, "whichever worker is asked tells of all calls")
    assert counted(running.client.url, "peerseal_transactions_minted_total") >= 20
    assert counted(running.client.url, "peerseal_key_age_seconds") >= 0
    assert counted(running.client.url, "client_outbox_waiting") == 0
