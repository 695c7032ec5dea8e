"""The registry's own worker with gunicorn's further settings: TLS, the access log, and what it cannot serve with."""

import base64
import socket
import ssl
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from demo.processes import BIN
from tests.registry.serving.test_worker import ALIVE, address, plain
from tests.support.certificates import Authority
from tests.support.processes import LOOPBACK, Server, free_port
from tests.support.waiting import until
from tests.support.wire import raw_exchange

pytestmark = pytest.mark.e2e

CLOSE = b"GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
"""One request, after which the connection ends."""
LONG = b"/openapi.json"
"""A path whose answer is longer than what is sent at once."""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("authority"), "authority")


@pytest.fixture(scope="module")
def under_tls(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    certificate, key = authority.issue("registry", server=True)
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    settings = {
        "REGISTRY_HOME": str(folder / "home"),
        "GUNICORN_CMD_ARGS": f"--certfile {certificate} --keyfile {key} --bind {LOOPBACK}:{port}",
    }
    init = [sys.executable, "-m", "registry", "init", "--trust-domain", "test.internal"]
    with Server("init", init, url="", log=folder / "init", settings=settings) as made:
        until(lambda: not made.running, patience=120)
    command = [str(BIN / "gunicorn"), "--config", "python:registry.gunicorn_conf", "registry.wsgi:app"]
    url = f"https://{LOOPBACK}:{port}"
    with Server("registry", command, url=url, log=folder / "log", settings=settings) as server:
        server.wait_until_prints("Listening at: https://")
        yield server


@contextmanager
def connected(server: Server, authority: Authority, receive: int | None = None) -> Iterator[ssl.SSLSocket]:
    """A connection under TLS, of which the kernel keeps ``receive`` bytes that were not read."""
    context = ssl.create_default_context(cafile=str(authority.file))
    with socket.socket() as plain:
        if receive is not None:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
        plain.settimeout(30)
        plain.connect(address(server))
        with context.wrap_socket(plain, server_hostname=LOOPBACK) as connection:
            yield connection


def read_to_the_end(connection: ssl.SSLSocket, pause: float = 0.0) -> bytes:
    received = b""
    while piece := connection.recv(16_384):
        received += piece
        time.sleep(pause)
    return received


@pytest.mark.parametrize("path", [b"/healthz", LONG], ids=["short", "long"])
def test_an_answer_under_tls_comes_whole_and_the_connection_ends_after_it(
    under_tls: Server, authority: Authority, path: bytes
) -> None:
    began = time.monotonic()
    with connected(under_tls, authority) as connection:
        connection.sendall(CLOSE % path)
        head, _, body = read_to_the_end(connection).partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert time.monotonic() - began < 10


@pytest.mark.thorough
def test_a_client_under_tls_that_reads_slowly_gets_all_of_it(under_tls: Server, authority: Authority) -> None:
    with connected(under_tls, authority, receive=4096) as connection:
        connection.sendall(CLOSE % LONG)
        time.sleep(3)  # longer than the end of a connection is waited for
        head, _, body = read_to_the_end(connection, pause=0.02).partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head


def test_requests_follow_each_other_over_a_connection_under_tls(under_tls: Server, authority: Authority) -> None:
    with connected(under_tls, authority) as connection:
        for _ in range(3):
            connection.sendall(ALIVE)
            assert connection.recv(4096).startswith(b"HTTP/1.1 200 OK\r\n")
        connection.sendall(ALIVE + CLOSE % b"/healthz")
        assert read_to_the_end(connection).count(b"HTTP/1.1 200 OK\r\n") == 2


@pytest.mark.thorough
def test_no_header_begins_a_line_of_the_access_log(tmp_path: Path) -> None:
    forged = base64.b64encode(b'a\n10.0.0.1 - - "GET /forged HTTP/1.1" 200 5').decode()
    with plain(tmp_path, "accesslog = '-'") as server:
        headers = f"Authorization: Basic {forged}\r\nConnection: close\r\n"
        assert raw_exchange(address(server), ALIVE[:-2] + headers.encode() + b"\r\n").status == 200
        line = server.wait_until_prints('"GET /healthz HTTP/1.1" 200 ')
        assert line.startswith("127.0.0.1 - - [")
        assert "forged" not in server.output()


@pytest.mark.thorough
def test_a_call_that_fails_stands_in_the_access_log_once_with_its_answer(tmp_path: Path) -> None:
    with plain(tmp_path, config=str(_breaks(tmp_path))) as server:
        assert raw_exchange(address(server), CLOSE % b"/v1/broken").status == 500
        server.wait_until_prints("GET /v1/broken HTTP/1.1")
        raw_exchange(address(server), CLOSE % b"/v1/last")
        server.wait_until_prints("GET /v1/last HTTP/1.1")
        [line] = [line for line in server.output().splitlines() if '"GET /v1/broken HTTP/1.1"' in line]
        assert line.split()[8] == "500"


def _breaks(folder: Path) -> Path:
    """A configuration under which the application raises an error once it is asked for a path that says so."""
    file = folder / "breaks.py"
    file.write_text(
        "from registry.gunicorn_conf import *\n"
        "accesslog = '-'\n"
        "def pre_request(worker, request):\n"
        "    if request.path.endswith('broken'):\n"
        "        worker.wsgi.wsgi_app = lambda environ, start_response: 1 // 0\n"
    )
    return file


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--worker-connections", "0"], "worker_connections=0: expected 1 at least"),
        (["--threads", "0"], "threads=0: expected 1 at least"),
        (["--proxy-protocol"], "proxy_protocol="),
        (["--protocol", "uwsgi"], "protocol='uwsgi'"),
        (["--http-protocols", "h2,h1"], "http_protocols=['h2', 'h1']"),
        (["--certfile", __file__], f"certfile={__file__}, keyfile=None, ca_certs=None: no TLS with these"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_settings_that_it_cannot_serve_with_end_the_start(tmp_path: Path, options: list[str], says: str) -> None:
    command = [str(BIN / "gunicorn"), "--config", "python:registry.gunicorn_conf", "registry.wsgi:app", *options]
    settings = {"REGISTRY_HOME": str(tmp_path), "GUNICORN_CMD_ARGS": f"--bind {LOOPBACK}:{free_port()}"}
    settings["REGISTRY_PRELOAD"] = "off"  # there is no registry to load
    with Server("registry", command, url="", log=tmp_path / "log", settings=settings) as server:
        until(lambda: not server.running, patience=60)
        assert server.exit_code == 1
        assert says in server.output()
        assert "Traceback" not in server.output()


@pytest.mark.thorough
def test_few_descriptors_are_enough_for_a_few_connections(tmp_path: Path) -> None:
    few = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))"
    with plain(tmp_path, few) as server:
        assert raw_exchange(address(server), CLOSE % b"/healthz").status == 200
