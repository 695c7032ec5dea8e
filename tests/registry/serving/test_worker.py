"""The registry's own worker, over real sockets: what comes in slowly, by halves or too long, and others meanwhile."""

import json
import os
import re
import resource
import socket
import sqlite3
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import requests

from demo.processes import ServerOptions
from peerseal.protocol.tokens.proof import sign_proof
from tests.support.keys import key
from tests.support.load import get
from tests.support.processes import LOOPBACK, Server, free_port, gunicorn, status_of
from tests.support.waiting import until
from tests.support.wire import RawAnswer, raw_exchange

pytestmark = pytest.mark.e2e

KEYS = "/v1/services/b/keys"
POST = f"POST {KEYS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n".encode()
HALF_BODY = POST + b"Content-Length: 500\r\n\r\n{"
HALF_HEAD = b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Slow: "
ALIVE = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
IMPATIENT = "from registry import gunicorn_conf as g; g.SOCKET_TIMEOUT = 1; g.REQUEST_DEADLINE = 3"
CALLS = 100
ROUNDS = 3
"""One of so many rounds of calls has to be quick: others use the machine too."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One worker of the laptop mode, with the time-outs of use."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    settings = {"REGISTRY_HOME": str(folder / "home")}
    command = [sys.executable, "-m", "registry", "serve", "--dev", "--workers", "1", "--port", str(port)]
    url = f"http://{LOOPBACK}:{port}"
    with Server("registry", command, url=url, log=folder / "log", settings=settings) as laptop:
        laptop.home = folder / "home"  # type: ignore[attr-defined]
        yield laptop.wait_until_answers(f"{url}/readyz")


@contextmanager
def plain(tmp_path: Path, conf: str = "", **options: object) -> Iterator[Server]:
    """The plain target with our configuration, and lines of its own."""
    file, port = tmp_path / "conf.py", free_port()
    file.write_text(f"{conf}\nfrom registry.gunicorn_conf import *\n")
    settings = {"REGISTRY_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "registry", "init", "--trust-domain", "test.internal"]
    with Server("init", command, url="", log=tmp_path / "init", settings=settings) as init:
        until(lambda: not init.running, patience=120)
    chosen: ServerOptions = {"workers": 1, "config": str(file), **options}  # type: ignore[typeddict-item]
    log = tmp_path / "log"
    with gunicorn("registry", "registry.wsgi:app", port=port, log=log, settings=settings, **chosen) as own:
        yield own.wait_until_answers(f"{own.url}/readyz")


def address(server: Server) -> tuple[str, int]:
    return LOOPBACK, int(server.url.rpartition(":")[2])


def connected(server: Server, stack: ExitStack, *sent: bytes) -> socket.socket:
    connection = stack.enter_context(socket.create_connection(address(server), timeout=10))
    connection.sendall(b"".join(sent))
    return connection


def p99(call: Callable[[], object]) -> float:
    """Seconds within which 99 of 100 calls are answered."""
    took = []
    for _ in range(CALLS):
        began = time.perf_counter()
        call()
        took.append(time.perf_counter() - began)
    return sorted(took)[int(0.99 * CALLS) - 1]


def quick(call: Callable[[], object], within: float) -> bool:
    """Whether 99 of 100 calls are answered within so many seconds."""
    return any(p99(call) < within for _ in range(ROUNDS))


def read_alive(server: Server) -> None:
    assert get(f"{server.url}/healthz")[0] == 200


def read_warm(server: Server) -> None:
    assert get(f"{server.url}/v1/domain.jwt")[0] == 200


@pytest.mark.slow
@pytest.mark.parametrize("call", [read_alive, read_warm])
def test_64_half_sent_bodies_and_slow_senders_hold_up_nobody(server: Server, call: Callable[[Server], None]) -> None:
    over = threading.Event()
    with ExitStack() as stack:
        for half in (HALF_BODY, HALF_HEAD) * 64:
            connected(server, stack, half)
        drips = [connected(server, stack, half) for half in (HALF_BODY, HALF_HEAD) * 4]

        def drip() -> None:
            while not over.wait(0.2):
                for connection in drips:
                    connection.sendall(b"a")

        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            assert quick(lambda: call(server), within=0.1)
        finally:
            over.set()
            dripping.join()


@pytest.mark.slow
def test_it_says_that_it_lives_while_every_thread_waits_for_the_database(server: Server) -> None:
    database = sqlite3.connect(server.home / "registry.sqlite3", isolation_level=None)  # type: ignore[attr-defined]
    body = b'{"proof": "a.b.c"}'
    with ExitStack() as stack:
        database.execute("BEGIN EXCLUSIVE")
        stack.callback(database.close)
        for _ in range(20):
            connected(server, stack, POST, b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        assert quick(lambda: read_alive(server), within=0.1)


@pytest.mark.slow
def test_the_metrics_tell_how_many_calls_run_and_how_many_are_queued(server: Server) -> None:
    database = sqlite3.connect(server.home / "registry.sqlite3", isolation_level=None)  # type: ignore[attr-defined]
    with ExitStack() as stack:
        database.execute("BEGIN IMMEDIATE")
        stack.callback(database.close)
        signed = sign_proof(key(), issuer="dev.internal/b", audience="dev.internal/registry", now=time.time())
        body = json.dumps({"proof": signed}).encode()
        for _ in range(20):
            connected(server, stack, POST, b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        until(lambda: gauge_of(server, "registry_queued_calls") == 14)  # two of eight threads do not write
        assert gauge_of(server, "registry_running_calls") == 6 + 1
        assert gauge_of(server, "registry_call_threads") == 8
        assert 20 < gauge_of(server, "registry_connections") < gauge_of(server, "registry_connections_limit")


def gauge_of(server: Server, name: str) -> float:
    """A value of the server's metrics."""
    found = re.search(rf"^{name} ([0-9.e+]+)$", requests.get(f"{server.url}/metrics", timeout=60).text, re.MULTILINE)
    assert found
    return float(found[1])


def test_a_request_that_comes_byte_by_byte_is_served(server: Server) -> None:
    with ExitStack() as stack:
        connection = connected(server, stack)
        for byte in b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n":
            connection.sendall(bytes([byte]))
        assert b'{"status":"ok"}' in b"".join(iter(lambda: connection.recv(4096), b""))


def test_requests_that_are_sent_together_are_answered_in_their_order(server: Server) -> None:
    two = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nHEAD /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with ExitStack() as stack:
        connection = connected(server, stack, two, last)
        answers = b"".join(iter(lambda: connection.recv(4096), b"")).split(b"HTTP/1.1 ")[1:]
    assert [int(answer[:3]) for answer in answers] == [200, 200, 404]
    assert [answer.endswith(b"\r\n\r\n") for answer in answers] == [False, True, False]


def sent_in_chunks(server: Server, *pieces: bytes, end: bytes = b"0\r\n\r\n") -> RawAnswer:
    """The answer to a body of these chunks."""
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return raw_exchange(address(server), POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + end)


@pytest.mark.parametrize("end", [b"0\r\n\r\n", b"000;a=b\r\nX-Trailer: 1\r\n\r\n"])
def test_a_chunked_body_is_read_to_its_end(server: Server, end: bytes) -> None:
    answer = sent_in_chunks(server, b'{"proof"', b": ", b'"a.b.c"}', end=end)
    assert (answer.status, answer.headers["connection"]) == (401, "close")
    assert answer.code == "malformed_token"


@pytest.mark.parametrize("size", [b"zz", b"-1", b"", b"0x5", b"f" * 20_000])
def test_chunks_that_are_none_are_refused(server: Server, size: bytes) -> None:
    assert 400 <= sent_in_chunks(server, b"{}", end=size + b"\r\n\r\n").status < 500


@pytest.mark.thorough
@pytest.mark.parametrize("length", [64 * 1024 + 1, 300_000])
def test_a_body_that_is_too_long_is_refused_and_the_answer_arrives(server: Server, length: int) -> None:
    long = b" " * length
    assert raw_exchange(address(server), POST + b"Content-Length: %d\r\n\r\n%s" % (length, long)).status == 413
    assert sent_in_chunks(server, long).status == 413
    assert 400 <= sent_in_chunks(server, *(b" " for _ in range(length))).status < 500
    read_alive(server)


def test_a_head_that_does_not_end_is_refused(server: Server) -> None:
    assert raw_exchange(address(server), b"GET / HTTP/1.1\r\n" + b"X-Y: z\r\n" * 9_000).status == 431


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /healthz HTTP/1.1\nHost: x\n\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n2\n{}\n0\n\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\n0\n\n",
        b"GET /healthz HTTP/1.1\r\n\r\n",
    ],
    ids=["head", "its last line", "chunk size", "chunk", "no host"],
)
def test_what_is_no_request_is_refused_without_waiting_for_more_of_it(server: Server, sent: bytes) -> None:
    began = time.monotonic()
    assert raw_exchange(address(server), sent).status == 400
    assert time.monotonic() - began < 5


def test_a_line_may_come_in_two_pieces(server: Server) -> None:
    with ExitStack() as stack:
        connection = connected(server, stack, b"GET /healthz HTTP/1.1\r")
        time.sleep(0.1)
        connection.sendall(b"\nHost: x\r\nConnection: close\r\n\r\n")
        assert b'{"status":"ok"}' in b"".join(iter(lambda: connection.recv(4096), b""))


@pytest.mark.parametrize("headers", [b"Connection: x, Close", b"Connection: keep-alive\r\nConnection: close"])
def test_a_connection_is_closed_where_the_client_says_so_among_other_things(server: Server, headers: bytes) -> None:
    answer = raw_exchange(address(server), b"GET /healthz HTTP/1.1\r\nHost: x\r\n%s\r\n\r\n" % headers)
    assert (answer.status, answer.headers["connection"]) == (200, "close")


def test_a_client_that_asks_first_is_told_to_go_on(server: Server) -> None:
    body = b'{"proof": "a.b.c"}'
    with ExitStack() as stack:
        connection = connected(server, stack, POST, b"Expect: 100-continue\r\n")
        connection.sendall(b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body))
        assert connection.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert b"".join(iter(lambda: connection.recv(4096), b"")).startswith(b"HTTP/1.1 401 ")


@pytest.mark.thorough
def test_connections_that_nothing_comes_over_are_cut_off(tmp_path: Path) -> None:
    with plain(tmp_path, IMPATIENT) as server, ExitStack() as stack:
        began = time.monotonic()
        for sent in (b"", HALF_HEAD, HALF_BODY):
            assert connected(server, stack, sent).recv(4096) == b""
        assert time.monotonic() - began < 8


@pytest.mark.thorough
def test_a_body_that_comes_too_slowly_is_cut_off(tmp_path: Path) -> None:
    with plain(tmp_path, IMPATIENT) as server, ExitStack() as stack:
        connection, began = connected(server, stack, HALF_BODY), time.monotonic()
        with pytest.raises(OSError):  # noqa: PT011, PT012 - a pipe that broke, or a reset
            while time.monotonic() < began + 20:
                connection.sendall(b"a")
                time.sleep(0.2)
        assert time.monotonic() - began < 15


@pytest.mark.thorough
def test_a_connection_beyond_the_limit_is_served_when_another_ends(tmp_path: Path) -> None:
    with plain(tmp_path, "", **{"config": _limited(tmp_path)}) as server, ExitStack() as stack:
        held = [connected(server, stack, HALF_HEAD) for _ in range(5)]
        assert status_of(f"{server.url}/healthz", timeout=1) is None
        held[0].close()
        assert status_of(f"{server.url}/healthz", timeout=5) == 200


def test_clients_that_reset_their_connection_leave_no_error_in_the_log(server: Server) -> None:
    with ExitStack() as stack:
        for _ in range(50):
            connection = connected(server, stack)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.sendall(POST + b"Content-Length: 2\r\n\r\n{}")
            connection.close()
    read_alive(server)
    assert "Traceback" not in server.output()


@pytest.mark.thorough
def test_connections_for_which_there_is_no_descriptor_wait_and_cost_nothing(server: Server) -> None:
    [worker] = map(int, Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split())
    before = resource.prlimit(worker, resource.RLIMIT_NOFILE)
    used = max(int(name) for name in os.listdir(f"/proc/{worker}/fd"))
    with ExitStack() as stack:
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (used + 1, before[1]))
        stack.callback(resource.prlimit, worker, resource.RLIMIT_NOFILE, before)
        waiting = [connected(server, stack, ALIVE) for _ in range(100)]
        time.sleep(0.5)  # the first ones take what is left
        began = processor_seconds(worker)
        time.sleep(2)
        assert processor_seconds(worker) - began < 0.5
        resource.prlimit(worker, resource.RLIMIT_NOFILE, before)
        assert {connection.recv(4096)[:15] for connection in waiting} == {b"HTTP/1.1 200 OK"}


def processor_seconds(pid: int) -> float:
    spent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, spent)) / os.sysconf("SC_CLK_TCK")


def _limited(folder: Path) -> str:
    file = folder / "limited.py"
    file.write_text("from registry.gunicorn_conf import *\nworker_connections = 5\n")
    return str(file)


@pytest.mark.thorough
def test_a_worker_is_replaced_after_so_many_requests_and_no_call_fails(tmp_path: Path) -> None:
    with plain(tmp_path, max_requests=5) as server:
        assert [status_of(f"{server.url}/healthz", timeout=60) for _ in range(18)] == [200] * 18
        assert server.output().count("Autorestarting worker") >= 3


def test_another_class_of_workers_is_warned_of_and_lets_no_call_wait(tmp_path: Path) -> None:
    conf = tmp_path / "other.py"
    conf.write_text("from registry.gunicorn_conf import *\nworker_class = 'gthread'\n")
    with plain(tmp_path, config=str(conf)) as server:
        server.wait_until_prints(
            "worker class gthread, not registry.serving.worker.Worker: calls for changes are answered at once"
        )
        began = time.monotonic()
        answer = raw_exchange(address(server), b"GET /v1/changes?since=1&wait=20 HTTP/1.0\r\nHost: x\r\n\r\n")
        assert answer.status == 200
        assert time.monotonic() - began < 10
