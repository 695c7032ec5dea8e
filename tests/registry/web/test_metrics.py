"""What /metrics says: counts of all workers, under names that no caller chooses."""

import re
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from demo.processes import BIN
from peerseal.protocol.keys import KeyPair
from registry.domain.errors import StorageUnavailable
from registry.storage.unit import Store
from registry.web.metrics import BUCKETS, RequestSeconds
from tests.registry.driver import Driver
from tests.support.processes import LOOPBACK, Process, Server, free_port, gunicorn
from tests.support.stack import Stack

ENDPOINTS = {
    "applicants": "approve waiting",
    "asap": "active_key",
    "described": "docs openapi",
    "documents": "changes current key_set_part key_statement plain_key_set recent_changes signed_key_set",
    "error_codes": "show",
    "exchange": "token",
    "front": "front",
    "health": "healthz readyz",
    "histories": "history",
    "keys": "end listed read register",
    "ledger": "checkpoint cosigned_checkpoint entries proof tile",
    "metrics": "metrics",
    "operator_tokens": "create listed revoke",
    "operators": "audit create_join_token join_tokens services withdraw_join_token",
    "policies": "domain domain_document federation federation_document policy policy_document"
    " set_domain set_federation set_policy",
    "wellknown": "jwks registry_keys",
}
"""The values of the label ``endpoint``, and of the log's field."""

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples_of(text: str) -> Samples:
    found = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return {(sample.name, frozenset(sample.labels.items())): sample.value for sample in found}


def told(registry: Driver) -> Samples:
    answer = registry.client.get("/metrics")
    assert answer.status_code == 200
    assert answer.content_type.startswith("text/plain")
    return samples_of(answer.text)


def grown(before: Samples, after: Samples, name: str, **labels: str) -> float:
    key = name, frozenset(labels.items())
    return after.get(key, 0) - before.get(key, 0)


def test_requests_refusals_admissions_and_the_ledger_are_counted(registry: Driver) -> None:
    before = told(registry)
    mine = registry.joined(KeyPair.generate("ES256"), "billing")
    registry.rotate(mine, KeyPair.generate("ES256"), "billing")
    etag = registry.client.get("/v1/services/billing/jwks.jwt").headers["ETag"]
    registry.client.get("/v1/services/billing/jwks.jwt", headers={"If-None-Match": etag})
    registry.client.get("/v1/services/nobody/jwks.jwt")
    registry.client.get("/v1/services")
    after = told(registry)
    signed = {"endpoint": "documents.signed_key_set"}
    assert grown(before, after, "registry_requests_total", status="2xx", **signed) == 1
    assert grown(before, after, "registry_requests_total", status="3xx", **signed) == 1
    assert grown(before, after, "registry_requests_total", status="4xx", **signed) == 1
    assert grown(before, after, "registry_request_seconds_count", **signed) == 3
    assert grown(before, after, "registry_request_seconds_bucket", le="+Inf", **signed) == 3
    assert 0 < grown(before, after, "registry_request_seconds_sum", **signed) < 3
    assert grown(before, after, "registry_requests_total", status="2xx", endpoint="keys.register") == 2
    assert grown(before, after, "registry_refusals_total", code="service_not_found") == 1
    assert grown(before, after, "registry_refusals_total", code="missing_token") == 1
    assert grown(before, after, "registry_admissions_total", way="join_token") == 1
    assert grown(before, after, "registry_admissions_total", way="voucher") == 1
    assert after["registry_ledger_size", frozenset()] == registry.key_set("billing").head


def test_dashboards_find_each_endpoint_under_its_name(registry: Driver) -> None:
    names = {f"{group}.{name}" for group, names in ENDPOINTS.items() for name in names.split()}
    assert {rule.endpoint for rule in registry.app.url_map.iter_rules()} == names


def test_no_name_comes_from_a_caller_and_no_secret_is_told(registry: Driver) -> None:
    registry.joined(KeyPair.generate("ES256"), "billing")
    names = set(told(registry))
    marks = [secrets.token_hex(8) for _ in range(50)]
    for mark in marks:
        registry.client.get(f"/{mark}")
        registry.client.get(f"/v1/services/{mark}/keys")
        registry.client.get(f"/v1/services?after={mark}", headers={"Authorization": f"Bearer {mark}"})
        registry.client.open("/v1/services", method=mark.upper())
        registry.post_key(mark, {"proof": mark, "join": {"id": mark, "mac": mark}})
    text = registry.client.get("/metrics").text
    assert not any(mark in text for mark in marks)
    assert registry.operator["Authorization"].rpartition(".")[2] not in text
    assert len(set(samples_of(text)) - names) < 40
    assert all(re.fullmatch(r"[\w.+]*", value) for _, labels in samples_of(text) for _, value in labels)


def test_each_check_of_readiness_is_told(registry: Driver) -> None:
    """An alert says so where a node refuses all writes and still answers reads."""
    troubles: list[str] = []
    registry.registry.checks.for_writing("standby", lambda: troubles[-1] if troubles else None)
    checks = {"database", "schema", "keys", "durable", "ledger", "standby"}
    assert readiness(registry) == dict.fromkeys(checks, 1)
    troubles.append("the standby is gone: start it")
    assert readiness(registry) == dict.fromkeys(checks, 1) | {"standby": 0}


def readiness(registry: Driver) -> dict[str, float]:
    return {
        dict(labels)["check"]: number for (name, labels), number in told(registry).items() if name == "registry_ready"
    }


def test_the_counts_are_told_while_the_database_is_down(registry: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(_: Store) -> None:
        raise StorageUnavailable("down")

    assert ("registry_ledger_size", frozenset()) in told(registry)
    monkeypatch.setattr(Store, "look", down)
    found = told(registry)
    assert ("registry_ledger_size", frozenset()) not in found
    assert any(name == "registry_requests_total" for name, _ in found)


@pytest.fixture(
    params=[
        "serve --dev",
        pytest.param("registry.wsgi:app", marks=pytest.mark.thorough),
        pytest.param("preloaded", marks=pytest.mark.thorough),
    ]
)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """Three workers, in a folder that was empty; what it makes for its counts is below it as well."""
    folders = [tmp_path / "tmp", tmp_path / "before"]
    for folder in folders:
        folder.mkdir()
    dev = request.param == "serve --dev"
    port, log, settings = free_port(), tmp_path / "log", {"REGISTRY_HOME": str(tmp_path / "home")}
    serve = f"from registry.__main__ import main; main('serve --dev --workers 3 --port {port}'.split())"
    command, url = [sys.executable, "-c", serve], f"http://{LOOPBACK}:{port}"
    own_folder = {"TMPDIR": str(folders[0 if dev else 1])}
    with Server("registry", command, url=url, log=log, settings=settings | own_folder) as laptop:
        laptop.wait_until_answers(f"{url}/readyz")
        if dev:
            yield laptop
            return
    settings["TMPDIR"] = str(folders[0])
    settings["REGISTRY_PRELOAD"] = str(int(request.param == "preloaded"))
    config = "python:registry.gunicorn_conf"
    with gunicorn(
        "registry", "registry.wsgi:app", port=port, log=log, settings=settings, config=config, workers=3
    ) as own:
        yield own.wait_until_answers(f"{url}/readyz")


@pytest.mark.e2e
@pytest.mark.thorough
def test_several_workers_add_up_and_leave_nothing_behind(server: Server, tmp_path: Path) -> None:
    for _ in range(120):
        assert requests.get(f"{server.url}/v1/changes", timeout=5).status_code == 200  # a new connection each time
        requests.get(f"{server.url}/v1/services", timeout=5)
    expected = {
        ("registry_requests_total", frozenset({("endpoint", "documents.changes"), ("status", "2xx")})): 120,
        ("registry_refusals_total", frozenset({("code", "missing_token")})): 120,
    }
    for _ in range(100):  # what the other workers noted down a moment ago they count soon
        found = samples_of(requests.get(f"{server.url}/metrics", timeout=5).text)
        counted = {sample: found.get(sample) for sample in expected}
        if counted == expected:
            break
        time.sleep(0.1)
    assert counted == expected
    folders = list((tmp_path / "home/counts").iterdir())
    assert len(folders) == 1
    assert len(list(folders[0].glob("*.json"))) > 1, "several processes"
    server.stop()
    assert not folders[0].exists()
    assert list((tmp_path / "tmp").glob("*registry*")) == []


def test_a_port_of_its_own_keeps_metrics_from_the_other_ones(registry: Driver) -> None:
    """The port is the socket's: a caller's Host header does not change it."""
    apart = registry.node(metrics_port=9090)
    claiming = apart.client.get("/metrics", headers={"Host": "localhost:9090"})
    assert (claiming.status_code, claiming.get_json()["code"]) == (404, "not_found")
    there = {"SERVER_PORT": "9090", "REMOTE_PORT": "50000"}
    assert apart.client.get("/metrics", environ_overrides=there).status_code == 200
    apart.close()


@pytest.mark.e2e
def test_a_host_header_opens_no_metrics_at_a_unix_socket(stack: Stack, tmp_path: Path) -> None:
    stack.operate("init", "--trust-domain", stack.domain)
    path, settings = tmp_path / "sock:9090", stack.registry_settings | {"REGISTRY_METRICS_ONLY_AT": "9090"}
    command = [BIN / "gunicorn", "registry.wsgi:app", "-c", "python:registry.gunicorn_conf", "--bind", f"unix:{path}"]
    with Process("node", [str(part) for part in command], log=tmp_path / "log", settings=settings) as process:
        process.wait_until_prints("Booting worker")
        for host in ("localhost", "localhost:9090"):
            with socket.socket(socket.AF_UNIX) as caller:
                caller.connect(str(path))
                caller.sendall(f"GET /metrics HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
                assert caller.makefile("rb").readline() == b"HTTP/1.1 404 NOT FOUND\r\n", host


def test_many_observations_at_once_are_the_same_as_one_after_the_other() -> None:
    """Compared with a histogram of prometheus_client."""
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    seconds, expected = RequestSeconds(), Histogram("registry_request_seconds", "", ["endpoint"], buckets=BUCKETS)
    ours.register(seconds)
    theirs.register(expected)
    for batch in ([0.0005, 0.001, 3.0], [0.1, 0.02, 0.0011], [0.5, 2.5, 2.6, 0.005]):
        seconds.observe_all("a", batch)
        for value in batch:
            expected.labels("a").observe(value)
    found, wanted = (samples_of(generate_latest(each).decode()) for each in (ours, theirs))
    wanted = {sample: value for sample, value in wanted.items() if not sample[0].endswith("_created")}
    assert found == pytest.approx(wanted)
    assert len(found) == len(BUCKETS) + 3
