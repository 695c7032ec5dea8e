"""A real Prometheus scrapes a real registry and a real service: each query of the dashboard and each alert works."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

import peerseal
from tests.observe.test_rules import FOLDER, METRIC, ROOT, known
from tests.support.processes import LOOPBACK, Server, free_port
from tests.support.stack import CLIENT, RESOURCE, Stack
from tests.support.waiting import until

pytestmark = pytest.mark.observe

DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "peerseal.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = {f"{panel['title']} {each['refId']}": each["expr"] for panel in PANELS for each in panel["targets"]}

RARE = {
    "registry_refusals_total",
    *(f"peerseal_events_{what}_total" for what in ("accepted", "handled", "refused", "retried")),
    *("peerseal_calls_accepted_total", "peerseal_transactions_minted_total", "peerseal_audit_failures_total"),
    *("peerseal_trust_documents_refused_total", "peerseal_trust_fetch_failures_total"),
    *("peerseal_circuit_state", "peerseal_circuit_refused"),
}
"""Metrics of events that do not happen here."""


class Observed:
    """Prometheus, which scrapes both once a second."""

    def __init__(self, stack: Stack, program: str, folder: Path) -> None:
        registry = stack.start_registry(workers=1)
        service = stack.start_service(RESOURCE, "resource_service.app:create_app()", workers=1)
        config, port = folder / "prometheus.yml", free_port()
        config.write_text(yaml.safe_dump(self._config({"peerseal-registry": registry, RESOURCE: service})))
        command = [program, f"--config.file={config}", f"--web.listen-address={LOOPBACK}:{port}"]
        command += [f"--storage.tsdb.path={folder / 'data'}"]
        self._url = f"http://{LOOPBACK}:{port}"
        own = Server("prometheus", command, url=self._url, log=folder / "prometheus.log", settings={})
        stack.keep(own).wait_until_answers(f"{self._url}/-/ready")
        self._call(stack, service.url)
        until(lambda: self._scraped(2), patience=120)

    def _config(self, jobs: dict[str, Server]) -> dict[str, Any]:
        scraped = [
            {"job_name": job, "static_configs": [{"targets": [server.url.removeprefix("http://")]}]}
            for job, server in jobs.items()
        ]
        every = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        return {"global": every, "rule_files": [str(FOLDER / "rules.yml")], "scrape_configs": scraped}

    @staticmethod
    def _call(stack: Stack, url: str) -> None:
        """A call that is accepted and one that is refused, so that there is something to count."""
        identity = peerseal.Identity(CLIENT, registry=stack.registry_url, join_token=stack.join_token(CLIENT))
        with identity.start().session(RESOURCE, url) as session:
            assert session.get("/profiles/1", timeout=60).status_code == 200
        identity.stop()
        assert requests.get(f"{url}/profiles/1", timeout=60).status_code == 401

    def _scraped(self, times: int) -> bool:
        """Whether all targets were scraped so often."""
        found = self.query(f"min(count_over_time(up[10m])) >= {times} and min(up) == 1")
        return bool(found) and bool(self.query("peerseal_calls_refused_total offset 2s"))

    def get(self, path: str, **params: str) -> Any:
        """The data of an answer of Prometheus' API. Raises AssertionError for a query that it refuses."""
        answer = requests.get(f"{self._url}/api/v1/{path}", params=params, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def query(self, expression: str) -> list[Any]:
        """The series of an instant query."""
        found: list[Any] = self.get("query", query=expression)["result"]
        return found


@pytest.fixture(scope="module")
def observed(prometheus: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    folder = tmp_path_factory.mktemp("observed")
    with Stack(folder) as stack:
        yield Observed(stack, prometheus, folder)


@pytest.mark.parametrize("name", QUERIES)
def test_a_query_of_the_dashboard_finds_its_metrics(observed: Observed, name: str) -> None:
    expression = QUERIES[name]
    used = set(METRIC.findall(expression))
    assert used
    assert used - known() == set()
    found, reported = observed.query(expression), set(observed.get("label/__name__/values"))
    if used <= reported:
        assert found, "the metrics are there, and the query finds nothing"


def test_most_metrics_are_reported_by_a_quiet_registry_and_service(observed: Observed) -> None:
    used = {name for expression in QUERIES.values() for name in METRIC.findall(expression)}
    assert used - set(observed.get("label/__name__/values")) - RARE == set()


def test_the_rules_work_and_nothing_is_raised(observed: Observed) -> None:
    until(lambda: all(rule["health"] == "ok" for group in observed.get("rules")["groups"] for rule in group["rules"]))
    assert [alert["labels"]["alertname"] for alert in observed.get("alerts")["alerts"]] == []


def test_panels_have_a_place_of_their_own() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in PANELS]
    assert len(set(places)) == len(places)
