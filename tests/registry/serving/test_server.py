"""The registry under gunicorn, on real sockets, as ``serve`` and as the plain target are run."""

import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.processes import LOOPBACK, Server, free_port, gunicorn, status_of
from tests.support.stack import Stack

PATIENCE = "from registry import gunicorn_conf; gunicorn_conf.SOCKET_TIMEOUT = 1"
"""What makes the sockets give up sooner than they do in use, so that the test need not wait as long."""
HALVES = (
    b"GET /healthz HTT",
    b"POST /v1/services/b/keys HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{",
)


@pytest.fixture(params=["serve --dev", "registry.wsgi:app"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """One worker of eight threads, in a folder that was empty."""
    port, log, settings = free_port(), tmp_path / "log", {"REGISTRY_HOME": str(tmp_path / "home")}
    serve = f"{PATIENCE}; from registry.__main__ import main; main('serve --dev --workers 1 --port {port}'.split())"
    command, url = [sys.executable, "-c", serve], f"http://{LOOPBACK}:{port}"
    with Server("registry", command, url=url, log=log, settings=settings) as laptop:
        laptop.wait_until_answers(f"{url}/readyz")
        if request.param == "serve --dev":
            yield laptop
            return
    conf = tmp_path / "conf.py"
    conf.write_text(f"{PATIENCE}\nfrom registry.gunicorn_conf import *\n")
    with gunicorn("registry", request.param, port=port, log=log, settings=settings, workers=1, config=str(conf)) as own:
        yield own.wait_until_answers(f"{url}/readyz")


@pytest.mark.e2e
@pytest.mark.thorough
def test_half_sent_requests_do_not_stop_a_worker(server: Server) -> None:
    port = int(server.url.rpartition(":")[2])
    with ExitStack() as stalled:
        for half in HALVES * 8:
            connection = stalled.enter_context(socket.create_connection((LOOPBACK, port)))
            connection.sendall(half)
        assert status_of(f"{server.url}/healthz", timeout=15) == 200


@pytest.mark.thorough
@pytest.mark.e2e
def test_a_node_says_at_its_start_which_command_is_missing(tmp_path: Path) -> None:
    stack = Stack(tmp_path)
    stack.operate("init", "--trust-domain", stack.domain)
    stack.operate("migrate", "--down")
    port, log, settings = stack.registry_port, stack.log("registry"), stack.registry_settings
    config = "python:registry.gunicorn_conf"
    with gunicorn("registry", "registry.wsgi:app", port=port, log=log, settings=settings, config=config) as server:
        assert "run peerseal-registry migrate" in server.wait_until_prints("not ready: schema: ")
        assert server.output().count("peerseal-registry migrate") == 1  # of two workers
        assert status_of(f"{server.url}/healthz") == 200
        assert status_of(f"{server.url}/readyz") == 503
        stack.operate("migrate")
        server.wait_until_answers(f"{server.url}/readyz")


@pytest.mark.parametrize("file", ["Dockerfile", "demo/stack.py"])
def test_whoever_runs_the_plain_target_gives_gunicorn_this_configuration(file: str) -> None:
    text = (Path(__file__).parents[3] / file).read_text()
    assert "python:registry.gunicorn_conf" in text
