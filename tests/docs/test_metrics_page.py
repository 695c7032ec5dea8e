"""docs/reference/metrics.md names exactly what a registry and a service report, with types and labels."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from flask import Flask
from prometheus_client.parser import text_string_to_metric_families

from peerseal import Identity, Metric, metrics
from peerseal.audit.mirror_metrics import MirrorMetrics
from peerseal.audit.witness import Witness
from peerseal.audit.witness_server import witnessing
from peerseal.errors import MessageRefused, ResponseRefused
from peerseal.flask import PeerAuth
from peerseal.messaging import EventConsumer
from peerseal.protocol.ledger.cosignature import WITNESS_KEY, NoteKey
from peerseal.testing import MemoryRegistry
from peerseal.trust.store import ServiceStatus, TrustStatus
from registry.witness_addresses import WitnessAddress
from tests.peerseal.verify.test_audit_log import Messages, event_headers, user, verifier_of
from tests.registry.driver import Driver
from tests.support.foreign_log import ForeignLog
from tests.support.keys import key
from tests.support.root_witnesses import name_witnesses
from tests.support.wire import raw_server

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"
ROW = re.compile(r"\| `([a-z_]+)(?:\{([a-z,]+)\})?` \| (counter|gauge|histogram) \| .+ \|")

Described = dict[str, tuple[str, frozenset[str]]]
"""Type and labels by name."""


def documented(prefix: str) -> Described:
    rows = map(ROW.fullmatch, PAGE.read_text().splitlines())
    found = {row[1]: (row[3], frozenset(filter(None, (row[2] or "").split(",")))) for row in rows if row}
    return {name: told for name, told in found.items() if name.startswith(prefix)}


def reported(*texts: str) -> Described:
    return dict(_reported(texts))


def _reported(texts: Iterable[str]) -> Iterator[tuple[str, tuple[str, frozenset[str]]]]:
    for family in (family for text in texts for family in text_string_to_metric_families(text)):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        yield name, (family.type, frozenset(labels))


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Driver]:
    witness = WitnessAddress(NoteKey("w.example", WITNESS_KEY, bytes(32)), "http://127.0.0.1:1")
    driver = Driver(f"sqlite:///{tmp_path / 'registry.sqlite3'}", tmp_path / "home", witnesses=(witness,))
    name_witnesses(driver, "w.example", needed=1)
    yield driver
    driver.close()


def test_the_registry_reports_what_the_page_lists(registry: Driver) -> None:
    registry.join(key(), "billing", registry.join_token("billing"))
    registry.client.get("/v1/services")
    registry.client.get("/metrics")
    assert reported(registry.client.get("/metrics").text) == documented("registry_")


def test_a_service_reports_what_the_page_lists(tmp_path: Path) -> None:
    with MemoryRegistry() as registry:
        registry.set_domain(minters=["client"])
        client = registry.identity("client")
        texts = [metrics_of_a_callee(registry, client, tmp_path), metrics_of_a_caller(client), metrics(whole_status)]
    others = documented("peerseal_mirror_") | documented("peerseal_witness_")
    assert reported(*texts) | others == documented("peerseal_")


def test_a_mirror_reports_what_the_page_lists(tmp_path: Path) -> None:
    file = tmp_path / "mirror.prom"
    MirrorMetrics(file).failed()
    assert reported(file.read_text()) == documented("peerseal_mirror_")


def metrics_of_a_callee(registry: MemoryRegistry, client: Identity, folder: Path) -> str:
    """Of a service that accepts and refuses calls and events, hears of a checkpoint, and whose audit fails."""
    identity, messages = registry.identity("callee", key_dir=folder), Messages()
    app = Flask(__name__)
    PeerAuth(app, identity, allow={"client": {"read"}}, on_verified=lambda _: 1 / 0, sign_responses=True)
    token = client.sign_request("callee", method="GET", target="/")
    for _ in range(2):
        app.test_client().get("/", headers={"Authorization": f"Bearer {token}"})
    consumer = EventConsumer(identity, verifier_of(identity), messages, messages, pauses=[0.0])
    failures = [OSError("away"), None, MessageRefused("malformed_order", "no order")]

    def handle(_: object) -> None:
        if (failure := failures.pop(0)) is not None:
            raise failure

    for event_id in ("e-1", "e-2"):
        messages.put(b"{}", event_headers(client, event_id))
        consumer.run_once(handle)
    identity.trust.heard("A" * 1000, client.id)  # too long to be looked at
    identity.add_metrics(lambda: 1 / 0)  # type: ignore[arg-type, return-value] # a source that fails
    identity.metrics()
    return identity.metrics()


def metrics_of_a_caller(client: Identity) -> str:
    """Of a service that mints a transaction, calls, and refuses an answer."""
    client.mint_transaction(user(), scope=["read"])
    with raw_server() as server:
        client.session("callee", server.url).get("/")
        with pytest.raises(ResponseRefused):
            client.session("callee", server.url, require_signed_response=True).get("/")
    return client.metrics()


def whole_status() -> list[Metric]:
    """A trust store that knows everything."""
    service = {"a/b": ServiceStatus(keys=1, age=1.0, good_for=1.0, failures=0)}
    one = {"x": 1}
    known: dict[str, Any] = {"refused": one, "root_good_for": 1.0, "clock_offset": 0.5}
    known |= {"cosigned_entries": 1, "uncosigned_for": 1.0}
    foreign = {"partner.example": TrustStatus(True, True, 1, 1, one)}
    status = TrustStatus(True, True, 1, 1, one, service, one, foreign=foreign, **known)
    return status.collect()


def test_a_witness_reports_what_the_page_lists(tmp_path: Path) -> None:
    log = ForeignLog()
    with witnessing(Witness(tmp_path, "witness.example", [log.key]), "127.0.0.1:0") as port:
        url = f"http://127.0.0.1:{port}"
        requests.post(f"{url}/add-checkpoint", data=log.submission(0, 5), timeout=60)
        assert reported(requests.get(f"{url}/metrics", timeout=60).text) == documented("peerseal_witness_")
