"""A node that is told to stop: not ready at once, serving on for a while, then gone."""

import http.client
import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests.support.load import get
from tests.support.processes import LOOPBACK, Server, free_port, gunicorn, status_of
from tests.support.stack import Stack
from tests.support.traffic import Watcher
from tests.support.waiting import until

pytestmark = pytest.mark.e2e

TARGET = "registry.wsgi:app"
CONFIG = "python:registry.gunicorn_conf"
WORKERS = 2
"""Of each node."""
LONG = 300
"""Seconds of draining that no test waits for."""


class Nodes:
    """Starts nodes of one registry, each with two workers, from one target."""

    def __init__(self, stack: Stack, target: str) -> None:
        self._stack, self._target = stack, target
        stack.operate("init", "--trust-domain", stack.domain)

    def start(self, drain: float, config: str = CONFIG) -> Server:
        port, log = free_port(), self._stack.log("node")
        settings = self._stack.registry_settings | {"REGISTRY_DRAIN_SECONDS": str(drain)}
        if self._target == "serve":
            serve = f"from registry.__main__ import main; main('serve --port {port}'.split())"
            url = f"http://{LOOPBACK}:{port}"
            node = Server("node", [sys.executable, "-c", serve], url=url, log=log, settings=settings)
        else:
            node = gunicorn("node", self._target, port=port, log=log, settings=settings, config=config)
        self._stack.keep(node).wait_until_answers(f"{node.url}/readyz")
        until(lambda: booted(node) == WORKERS)  # one that still boots would be taken for one of a later generation
        return node


@pytest.fixture
def nodes(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Nodes]:
    with Stack(tmp_path) as stack:
        yield Nodes(stack, getattr(request, "param", TARGET))


def ends(server: Server) -> None:
    until(lambda: not server.running, 60)


def booted(server: Server) -> int:
    """How many workers the node has started so far, those that ended too."""
    return server.output().count("Booting worker")


def begin_to_drain(server: Server) -> None:
    os.kill(server.pid, signal.SIGTERM)
    until(lambda: status_of(f"{server.url}/readyz") == 503)


@pytest.mark.parametrize("nodes", ["serve", TARGET], indirect=True)
def test_a_draining_node_is_not_ready_serves_on_and_keeps_no_connection(nodes: Nodes) -> None:
    server = nodes.start(LONG)
    host, port = LOOPBACK, int(server.url.rpartition(":")[2])
    kept = http.client.HTTPConnection(host, port, timeout=10)
    kept.request("GET", "/healthz")
    assert kept.getresponse().read()
    assert kept.sock is not None  # the node keeps it
    begin_to_drain(server)
    kept.request("GET", "/.well-known/peerseal-registry")
    answer = kept.getresponse()
    assert (answer.status, answer.getheader("Connection")) == (200, "close")
    assert answer.read()
    members = requests.get(f"{server.url}/readyz", timeout=10).json()
    assert (members["ready"], members["serving"], members["can_read"], members["can_write"]) == (False,) * 4
    assert (members["database"], members["schema"], members["keys"]) == (True,) * 3
    assert {get(f"{server.url}/.well-known/peerseal-registry")[0] for _ in range(10)} == {200}
    os.kill(server.pid, signal.SIGTERM)
    ends(server)
    assert server.exit_code == 0


def test_a_call_that_waits_is_answered_at_the_end_of_the_drain(nodes: Nodes) -> None:
    server = nodes.start(1)
    watcher = Watcher(server.url, wait=20)
    with requests.Session() as session, ThreadPoolExecutor(1) as pool:
        watcher.ask(session)
        waiting = pool.submit(watcher.ask, session)
        until(lambda: b"registry_waiting_calls 1.0" in get(f"{server.url}/metrics")[1])
        began = time.monotonic()
        os.kill(server.pid, signal.SIGTERM)
        assert waiting.result().status_code == 200
        assert 1 <= time.monotonic() - began < 18  # it would have waited for 20
    ends(server)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_second_signal_ends_the_drain(nodes: Nodes, second: signal.Signals) -> None:
    server = nodes.start(LONG)
    begin_to_drain(server)
    os.kill(server.pid, second)
    ends(server)


def test_a_worker_that_is_told_to_stop_while_it_starts_leaves_the_node_ready(nodes: Nodes, tmp_path: Path) -> None:
    """A second reload can stop a worker that still has the handlers of the master."""
    config = tmp_path / "conf.py"
    stop = "def post_fork(server, worker):\n    os.kill(worker.pid, signal.SIGTERM)\n"
    config.write_text(f"import os\nimport signal\nfrom registry.gunicorn_conf import *\n{stop}")
    server = nodes.start(LONG, str(config))
    assert {status_of(f"{server.url}/readyz") for _ in range(10)} == {200}
    os.kill(server.pid, signal.SIGQUIT)
    ends(server)


@pytest.mark.thorough
def test_an_interrupted_node_does_not_drain(nodes: Nodes) -> None:
    server = nodes.start(LONG)
    os.kill(server.pid, signal.SIGINT)
    ends(server)


@pytest.mark.thorough
def test_zero_seconds_stop_a_node_as_soon_as_its_calls_end(nodes: Nodes) -> None:
    server = nodes.start(0)
    os.kill(server.pid, signal.SIGTERM)
    ends(server)


@pytest.mark.thorough
def test_a_reload_leaves_the_node_ready(nodes: Nodes) -> None:
    server = nodes.start(LONG)
    os.kill(server.pid, signal.SIGHUP)
    until(lambda: booted(server) == 2 * WORKERS)
    for _ in range(20):
        assert status_of(f"{server.url}/readyz") == 200
        time.sleep(0.05)
    os.kill(server.pid, signal.SIGQUIT)
    ends(server)


@pytest.mark.thorough
def test_a_worker_that_is_replaced_while_the_node_drains_is_not_ready_either(nodes: Nodes) -> None:
    server = nodes.start(LONG)
    begin_to_drain(server)
    for worker in workers_of(server):
        os.kill(worker, signal.SIGKILL)
    until(lambda: booted(server) == 2 * WORKERS)
    assert {status_of(f"{server.url}/readyz") for _ in range(10)} == {503}
    assert status_of(f"{server.url}/healthz") == 200
    os.kill(server.pid, signal.SIGQUIT)
    ends(server)


@pytest.mark.thorough
def test_a_new_master_that_is_stopped_again_leaves_the_node_ready(nodes: Nodes) -> None:
    server = nodes.start(LONG)
    os.kill(server.pid, signal.SIGUSR2)
    until(lambda: booted(server) == 2 * WORKERS, 60)
    [newer] = {pid for pid in workers_of(server) if Path(f"/proc/{pid}/task/{pid}/children").read_text()}
    os.kill(newer, signal.SIGTERM)
    while newer in workers_of(server):
        assert status_of(f"{server.url}/readyz") == 200
    os.kill(server.pid, signal.SIGQUIT)
    ends(server)


def workers_of(server: Server) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()]
