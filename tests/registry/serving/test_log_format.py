"""A registry whose log is JSON: gunicorn's lines, access lines, and its own."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.processes import LOOPBACK, free_port, gunicorn
from tests.support.processes import Server as Process
from tests.support.waiting import until

pytestmark = pytest.mark.e2e

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def test_each_line_is_json_and_a_refusal_names_code_and_trace(tmp_path: Path) -> None:
    port = free_port()
    settings = {
        "REGISTRY_HOME": str(tmp_path / "home"),
        "REGISTRY_LOG_FORMAT": "json",
        "GUNICORN_CMD_ARGS": "--access-logfile -",
    }
    init = ["-m", "registry", "init", "--trust-domain", "test.internal"]
    with Process("init", [sys.executable, *init], url="", log=tmp_path / "init", settings=settings) as first:
        until(lambda: not first.running, patience=120)
    with gunicorn(
        "registry",
        "registry.wsgi:app",
        port=port,
        log=tmp_path / "log",
        settings=settings,
        workers=1,
        config="python:registry.gunicorn_conf",
    ) as server:
        url = f"http://{LOOPBACK}:{port}"
        server.wait_until_answers(f"{url}/readyz")
        headers = {"traceparent": f"00-{TRACE}-{SPAN}-01", "Authorization": "Bearer hunter2secret"}
        refused = requests.get(f"{url}/v1/services?after=hunter2secret", headers=headers, timeout=60)
        assert refused.status_code == 401
        until(lambda: any(line.get("status") == 401 and "path" in line for line in lines_of(server)))
        refusal = next(line for line in lines_of(server) if "code" in line)
        access = next(line for line in lines_of(server) if line.get("path") == "/v1/services")
        headers["X-Request-Id"] = "of-the-caller"
        assert (
            requests.get(f"{url}/v1/services", headers=headers, timeout=60).headers["X-Request-Id"] == "of-the-caller"
        )
        until(lambda: sum(line.get("request_id") == "of-the-caller" for line in lines_of(server)) == 2)
    assert {line["service"] for line in lines_of(server)} == {"registry"}
    assert refusal["code"] == refused.json()["code"]
    assert refusal["request_id"] == access["request_id"] == refused.headers["X-Request-Id"]
    for line in (refusal, access):
        assert (line["trace_id"], line["span_id"]) == (TRACE, SPAN)
    assert "hunter2secret" not in server.output()


def lines_of(server: Process) -> list[dict[str, Any]]:
    """The lines of the log; each line is a JSON object."""
    whole = server.output().rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]
