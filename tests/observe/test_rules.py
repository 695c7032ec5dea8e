"""The alerts of deploy/prometheus: valid, each with a case that raises it and one that does not, and with a runbook."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs.test_metrics_page import documented

pytestmark = pytest.mark.observe

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "prometheus"
METRIC = re.compile(r"\b(?:registry|peerseal)_[a-z_]+\b")


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / "rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def known() -> set[str]:
    """The documented names, with those of a histogram's parts."""
    names = documented("registry_") | documented("peerseal_")
    return names.keys() | {f"{name}_bucket" for name, (kind, _) in names.items() if kind == "histogram"}


def test_prometheus_reads_the_rules_and_every_case_holds(promtool: str) -> None:
    for command in (["check", "rules", "rules.yml"], ["test", "rules", "rules_test.yml"]):
        ended = subprocess.run([promtool, *command], cwd=FOLDER, capture_output=True, text=True, timeout=120)
        assert ended.returncode == 0, ended.stdout + ended.stderr


def test_each_alert_has_a_case_that_raises_it_and_one_that_does_not() -> None:
    raised = set[tuple[str, bool]]()
    for case in yaml.safe_load((FOLDER / "rules_test.yml").read_text())["tests"]:
        for told in case["alert_rule_test"]:
            raised.add((told["alertname"], bool(told["exp_alerts"])))
    assert raised == {(alert["alert"], whether) for alert in alerts() for whether in (True, False)}


def test_each_alert_has_a_severity_and_a_runbook_that_exists() -> None:
    page = (ROOT / "docs" / "reference" / "alerts.md").read_text()
    headings = re.findall(r"^### (\w+)$", page, re.MULTILINE)
    assert headings == [alert["alert"] for alert in alerts()]
    for alert in alerts():
        assert alert["labels"]["severity"] in ("critical", "warning")
        assert alert["annotations"]["runbook"] == f"docs/reference/alerts.md#{alert['alert'].lower()}"


def test_alerts_use_documented_metrics() -> None:
    used = {name for alert in alerts() for name in METRIC.findall(alert["expr"])}
    assert used - known() == set()
