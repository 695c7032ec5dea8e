"""Wrong settings end the start of a server with one line that says what is wrong; doubtful ones are warned of."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from demo.processes import BIN, ROOT, environment
from registry.services.setup.initialise import make_keys
from registry.settings import Settings
from tests.support.processes import LOOPBACK, Server, free_port

pytestmark = pytest.mark.e2e

GUNICORN = [str(BIN / "gunicorn"), "--config", "python:registry.gunicorn_conf", "registry.wsgi:app"]
SERVE = [sys.executable, "-m", "registry", "serve"]


def started(command: list[str], home: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """A server whose start fails."""
    arguments = {"REGISTRY_HOME": str(home), "GUNICORN_CMD_ARGS": f"--bind {LOOPBACK}:{free_port()}", **settings}
    return subprocess.run(
        command, env=environment(arguments), cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("REGISTRY_WAIT", "2m", "REGISTRY_WAIT='2m': expected 15 to 50 seconds"),
        ("REGISTRY_LOG_FORMAT", "jsn", "REGISTRY_LOG_FORMAT="),
        ("REGISTRY_DRAIN_SECONDS", "900", "REGISTRY_DRAIN_SECONDS='900': expected 0 to 600 seconds"),
        ("REGISTRY_METRICS_ONLY_AT", "abc", "REGISTRY_METRICS_ONLY_AT='abc': expected a whole number"),
        ("REGISTRY_DATABASE_URL", "mysql://db/registry", "the database must be PostgreSQL, or SQLite"),
        ("REGISTRY_SIGNING_KEY_FILE", "/nothing/key.pem", "signing key: /nothing/key.pem: No such file"),
    ],
)
def test_a_wrong_setting_ends_gunicorn_with_one_line(tmp_path: Path, name: str, value: str, says: str) -> None:
    make_keys(Settings.at(tmp_path))
    ended = started(GUNICORN, tmp_path, **{name: value})
    [line] = [line for line in ended.stderr.splitlines() if line.startswith("Error: ")]
    assert ended.returncode != 0
    assert says in line
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("command", [GUNICORN, SERVE], ids=["gunicorn", "serve"])
def test_without_preloading_it_is_the_same(tmp_path: Path, command: list[str]) -> None:
    ended = started(command, tmp_path, REGISTRY_PRELOAD="off")
    assert ended.returncode != 0
    assert "Error: " in ended.stderr
    assert "Traceback" not in ended.stderr


def test_serve_refuses_a_port_of_metrics_at_which_it_does_not_listen(tmp_path: Path) -> None:
    ended = started(SERVE, tmp_path, REGISTRY_METRICS_ONLY_AT="9090")
    assert ended.returncode == 1
    assert ended.stderr.startswith(
        "Error: configuration: REGISTRY_METRICS_ONLY_AT=9090: serve listens at port 8080 only"
    )


def test_gunicorn_warns_of_a_port_of_metrics_at_which_it_does_not_listen(tmp_path: Path) -> None:
    make_keys(Settings.at(tmp_path))
    settings = {"REGISTRY_HOME": str(tmp_path), "REGISTRY_METRICS_ONLY_AT": "9"}
    command = [*GUNICORN, "--bind", f"{LOOPBACK}:{free_port()}"]
    with Server("registry", command, url="", log=tmp_path / "log", settings=settings) as server:
        server.wait_until_prints("REGISTRY_METRICS_ONLY_AT=9: gunicorn does not listen at that port")


@pytest.mark.parametrize("command", [GUNICORN, SERVE], ids=["gunicorn", "serve"])
def test_a_warning_of_an_unknown_setting_is_json_where_the_log_is(tmp_path: Path, command: list[str]) -> None:
    ended = started(command, tmp_path, REGISTRY_LOG_FORMAT="json", REGISTRY_TYPO="1")
    [warning] = [line for line in ended.stderr.splitlines() if "REGISTRY_TYPO" in line]
    assert json.loads(warning)["message"].startswith("REGISTRY_TYPO is no setting")
