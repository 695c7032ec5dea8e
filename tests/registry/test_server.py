"""The registry under gunicorn, on real sockets, as ``serve`` and as the plain target are run."""

import errno
import http.client
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from demo.stack import Stack
from registry.hung_up import ended
from tests.support.processes import LOOPBACK, Server, free_port, gunicorn, status_of
from tests.support.waiters import until

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
    serve = f"{PATIENCE}; from registry.cli import main; main('serve --dev --workers 1 --port {port}'.split())"
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


TELLING = """
from registry import gunicorn_conf
from registry.gunicorn_conf import *

def post_worker_init(worker):
    handle = worker.handle
    worker.handle = lambda connection: print("to a thread", flush=True) or handle(connection)
    gunicorn_conf.post_worker_init(worker)
    notify = worker.notify
    worker.notify = lambda: print(f"open: {worker.nr_conns}", flush=True) or notify()
"""
"""A worker that says when it gives a connection to a thread, and how many are open each time round its loop."""


@pytest.mark.e2e
@pytest.mark.thorough
def test_a_kept_connection_that_its_client_closes_needs_no_thread(tmp_path: Path) -> None:
    conf, stack = tmp_path / "conf.py", Stack(tmp_path)
    conf.write_text(TELLING)
    stack.operate("init", "--trust-domain", stack.domain)
    port, log, settings = stack.registry_port, stack.log("registry"), stack.registry_settings
    own = gunicorn("registry", "registry.wsgi:app", port=port, log=log, settings=settings, workers=1, config=str(conf))
    with own as server:
        server.wait_until_answers(f"{server.url}/healthz")
        until(lambda: "open: 0" in server.output().splitlines()[-1])
        before = server.output().count("to a thread")
        for calls in (1, 3):
            connection = http.client.HTTPConnection(LOOPBACK, port)
            for _ in range(calls):
                connection.request("GET", "/healthz")
                assert connection.getresponse().read()
            connection.close()
        until(lambda: "open: 0" in server.output().splitlines()[-1])
        assert server.output().count("to a thread") == before + 4


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


class Vanished(socket.socket):
    """One whose host is not there any more."""

    def recv(self, *_: int) -> bytes:
        raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")


def test_a_client_whose_host_vanished_does_not_end_the_workers_loop() -> None:
    with Vanished() as client:
        assert ended(client)


@pytest.mark.parametrize("file", ["Dockerfile", "docker-compose.yml", "demo/stack.py"])
def test_whoever_runs_the_plain_target_gives_gunicorn_this_configuration(file: str) -> None:
    text = (Path(__file__).parents[2] / file).read_text()
    assert "python:registry.gunicorn_conf" in text
