"""The deadline of a session's call holds, however slowly what is asked answers: real sockets, a second at most."""

import socket
import ssl
import time
from pathlib import Path
from typing import Any

import pytest
import requests

from peerseal.requests import PeerSession
from peerseal.transport.deadline import no_longer_than
from tests.peerseal.served import Child
from tests.support.certificates import Authority
from tests.support.misbehaving import FAR_TOO_LONG, IN_TIME, Behaviour, misbehaving
from tests.support.wire import Service

DEADLINE = 0.25
pytestmark = pytest.mark.usefixtures("no_proxies")

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def trickles(head: bytes, piece: bytes = b"x") -> Behaviour:
    """Sends that at once, and then a piece now and then: no read has long to wait, and the answer has no end."""

    def behave(connection: socket.socket) -> None:
        connection.sendall(head)
        until = time.monotonic() + FAR_TOO_LONG
        while time.monotonic() < until:
            connection.sendall(piece)
            time.sleep(0.05)

    return behave


def session(caller: Service, url: str, **options: Any) -> PeerSession:
    return PeerSession(caller, "callee", url, **{"deadline": DEADLINE, "timeout": 0.2, **options})


HEAD = trickles(b"HTTP/1.1 200 OK\r\nX-Slow: ")
BODY = trickles(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n")
PROBLEM = b"HTTP/1.1 401 No\r\nContent-Type: application/problem+json\r\nContent-Length: 900\r\n\r\n"

ANSWERS = {
    "a head": (HEAD, False),
    "a head, of a stream": (HEAD, True),
    "interim answers": (trickles(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), False),
    "a body": (BODY, False),
    "a body in chunks": (trickles(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"), False),
    "a body to the end of the connection": (trickles(b"HTTP/1.1 200 OK\r\n\r\n"), False),
    "a refusal": (trickles(PROBLEM, b" "), False),
    "a refusal, of a stream": (trickles(PROBLEM, b" "), True),
    "a redirect's body, of a stream": (
        trickles(b"HTTP/1.1 302 Found\r\nLocation: /elsewhere\r\nContent-Length: 900\r\n\r\n"),
        True,
    ),
}


@pytest.mark.parametrize(("behave", "stream"), ANSWERS.values(), ids=ANSWERS)
def test_an_answer_that_trickles_ends_with_the_deadline_and_is_not_asked_for_again(
    caller: Service, behave: Behaviour, stream: bool
) -> None:
    with misbehaving(behave) as server:
        began = time.monotonic()
        with pytest.raises(requests.ReadTimeout) as raised:
            session(caller, server.url).get("/", stream=stream)
        assert time.monotonic() - began < IN_TIME
    assert server.asked == 1
    assert raised.value.request is not None
    assert "Authorization" not in raised.value.request.headers


def test_all_redirects_of_a_call_have_one_deadline(caller: Service) -> None:
    def on_and_on(connection: socket.socket) -> None:
        time.sleep(0.1)
        connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: /on\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    with misbehaving(on_and_on) as server, pytest.raises(requests.Timeout):
        session(caller, server.url).get("/")
    assert server.asked <= 3


def test_an_origin_that_is_called_unsigned_has_no_longer(caller: Service) -> None:
    with misbehaving(HEAD) as server, pytest.raises(requests.ReadTimeout):
        session(caller, "http://callee.test").get(server.url)


def tls(folder: Path) -> tuple[ssl.SSLContext, str]:
    """What a server on loopback speaks TLS with, and the file of the authority that vouches for it."""
    authority = Authority.make(folder, "authority")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("callee", server=True))
    return context, str(authority.file)


@pytest.mark.parametrize("secured", [False, True], ids=["plain", "TLS"])
def test_a_body_that_is_taken_by_drips_ends_with_the_deadline(caller: Service, tmp_path: Path, secured: bool) -> None:
    def drips(connection: socket.socket) -> None:
        until = time.monotonic() + FAR_TOO_LONG
        while time.monotonic() < until and connection.recv(1 << 14):
            time.sleep(0.02)

    context, authority = tls(tmp_path) if secured else (None, None)
    with misbehaving(drips, context) as server:
        began = time.monotonic()
        with pytest.raises(requests.ReadTimeout):
            session(caller, server.url).post("/", data=bytes(1 << 24), verify=authority)
        assert time.monotonic() - began < IN_TIME


def test_a_stream_is_the_callers_whose_reads_have_the_whole_timeout(caller: Service) -> None:
    def late_and_slow(connection: socket.socket) -> None:
        time.sleep(0.15)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n")
        for _ in range(3):
            time.sleep(0.2)
            connection.sendall(b"x")

    with misbehaving(late_and_slow) as server:
        response = session(caller, server.url, timeout=0.4).get("/", stream=True)
        assert response.content == b"xxx"


def test_a_stream_that_falls_silent_is_waited_for_as_long_as_the_timeout_says(caller: Service) -> None:
    def falls_silent(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nx")
        connection.recv(1)

    with misbehaving(falls_silent) as server:
        response = session(caller, server.url, timeout=(5, 1)).get("/", stream=True)
        with pytest.raises(requests.ConnectionError, match="timed out"):
            response.content  # noqa: B018


def test_a_kept_connection_is_used_again_with_the_deadline_of_each_call(caller: Service) -> None:
    def answers_three_times(connection: socket.socket) -> None:
        for pause in (0.0, 0.15):
            time.sleep(pause)
            connection.sendall(OK)
            connection.recv(65536)
        HEAD(connection)

    with misbehaving(answers_three_times) as server:
        asking = session(caller, server.url)
        assert asking.get("/").text == "ok"
        time.sleep(0.15)  # the first call's time would end within the second's
        assert asking.get("/").text == "ok"
        with pytest.raises(requests.ReadTimeout):
            asking.get("/", headers={"X-Third": "1"})
    assert server.asked == 1, "one connection for all"


def test_a_caller_with_a_shorter_deadline_waits_less(caller: Service) -> None:
    with misbehaving(HEAD) as server:
        began = time.monotonic()
        with pytest.raises(requests.ReadTimeout), no_longer_than(0.1):
            session(caller, server.url, deadline=FAR_TOO_LONG).get("/")
        assert time.monotonic() - began < IN_TIME


@pytest.mark.parametrize("url", ["http://callee.test", "https://callee.test"])
def test_a_proxy_has_no_longer(caller: Service, url: str) -> None:
    with misbehaving(HEAD) as proxy:
        asking = session(caller, url)
        asking.proxies = {"http": proxy.url, "https": proxy.url}
        with pytest.raises(requests.Timeout):
            asking.get("/")


@pytest.mark.usefixtures("quiet_collector")
def test_the_deadline_holds_in_a_forked_child(caller: Service) -> None:
    with misbehaving(HEAD) as server:
        asking = session(caller, server.url)

        def outcome() -> str:
            try:
                return str(asking.get("/").status_code)
            except requests.ReadTimeout:
                return "in time"

        assert Child(outcome).result() == "in time"


def test_the_deadline_holds_over_tls(caller: Service, tmp_path: Path) -> None:
    context, authority = tls(tmp_path)
    for behave in (HEAD, BODY):
        with misbehaving(behave, context) as server, pytest.raises(requests.ReadTimeout):
            session(caller, server.url).get("/", verify=authority)
        assert server.asked == 1
