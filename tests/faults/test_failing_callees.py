"""A callee that is frozen, drips, resets or asks for a pause takes nothing else of its caller down: real processes, 50
people at the edge."""

import http.client
import json
import os
import signal
import socket
import statistics
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import pytest
import requests

from client_service.resource import LIMITS
from peerseal import CircuitState, Identity
from peerseal.errors import CircuitOpen
from tests.support.misbehaving import FAR_TOO_LONG, Misbehaving, misbehaving
from tests.support.processes import Server
from tests.support.stack import CLIENT, Stack
from tests.support.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

CALLERS, WORKERS = 50, 2
PASSWORD = "everybody-in-the-demo"
PAUSE = 0.5
"""Seconds between two calls of one person."""
UNTIL_OPEN = LIMITS.deadline + 1.0
"""Seconds in which the circuit of a worker opens that is called much."""
PROBES = 3
"""Of one worker, at most, while a test lasts: each is followed by a second in which none is made."""
BACK = 2.0
"""Seconds in which a callee that answers again is called again."""
AGAIN = 1.0
"""Seconds in which all calls are answered, where all is as before."""
THREADS = 16 + 4
"""Of one worker: gunicorn's pool, and those of the server, the keys, the trust store and the outbox."""
POOLED = 10
"""Idle connections that a session keeps for its next calls, at most."""


@dataclass(frozen=True)
class Call:
    """One call at the edge: when it began, how long it took, and what came."""

    began: float
    seconds: float
    status: int
    code: str | None
    retry_after: str | None


def call(url: str, method: str = "GET", body: Any = None, token: str | None = None) -> Call:
    """On a connection of its own."""
    parts, began = urlsplit(url), time.monotonic()
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=FAR_TOO_LONG)
    try:
        connection.request(method, parts.path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        content = json.loads(answer.read())
    finally:
        connection.close()
    seconds = time.monotonic() - began
    return Call(began, seconds, answer.status, content.get("code"), answer.headers.get("Retry-After"))


@dataclass
class Edge:
    """client-service, one of whose users orders, while others read profiles."""

    server: Server
    token: str
    calls: list[Call] = field(default_factory=list)

    @classmethod
    def start(cls, stack: Stack, resource_url: str) -> Self:
        server = stack.start_client_service(resource_url, workers=WORKERS)
        login = {"user": "ada", "password": PASSWORD}
        return cls(server, requests.post(f"{server.url}/authenticate", json=login, timeout=30).json()["access_token"])

    @contextmanager
    def called(self) -> Iterator[None]:
        """Many people read profiles all the time."""
        over = threading.Event()

        def read() -> None:
            while not over.is_set():
                self.calls.append(call(f"{self.server.url}/profiles/1"))
                over.wait(PAUSE)

        self.calls.clear()
        with ThreadPoolExecutor(CALLERS) as pool:
            people = [pool.submit(read) for _ in range(CALLERS)]
            try:
                yield
            finally:
                over.set()
        for person in people:
            person.result()

    def orders(self, seconds: float) -> list[Call]:
        """One after another for so long."""
        until, body, placed = time.monotonic() + seconds, {"items": [{"itemID": "pen", "quantity": 2}]}, []
        while time.monotonic() < until:
            placed.append(call(f"{self.server.url}/orders", "POST", body, self.token))
            time.sleep(0.05)
        return placed

    def between(self, since: float, until: float = float("inf")) -> list[Call]:
        """The calls that began then."""
        return [call for call in self.calls if since <= call.began < until]

    def is_back(self) -> bool:
        """Whether all calls of the last second were answered, and those were many."""
        lately = self.between(time.monotonic() - AGAIN)
        return len(lately) >= CALLERS and {call.status for call in lately} == {200}

    def threads(self) -> int:
        return sum(len(os.listdir(f"/proc/{pid}/task")) for pid in self._workers())

    def _workers(self) -> list[int]:
        pid = self.server.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def connections(port: int) -> Counter[str]:
    """The connections of this machine to that port: those of the callee and those of its callers that are in use, and
    those of callers that the callee has closed."""
    states: Counter[str] = Counter()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        local, remote, state = (line.split()[column] for column in (1, 2, 3))
        if int(local.split(":")[1], 16) == port and state in ("01", "08"):
            states["callee"] += 1
        elif int(remote.split(":")[1], 16) == port and state in ("01", "08"):
            states["callers" if state == "01" else "closed"] += 1
    return states


def assert_nothing_is_left(edge: Edge, callee_url: str) -> None:
    """No thread beyond those of the pool, no call under way, no connection but the idle ones that sessions keep."""
    port = urlsplit(callee_url).port or 0
    until(lambda: connections(port)["callee"] == connections(port)["callers"] == 0)
    assert connections(port)["closed"] <= WORKERS * POOLED
    assert edge.threads() <= WORKERS * THREADS
    calls = [call(f"{edge.server.url}/profiles/1") for _ in range(4 * WORKERS)]
    assert {call.status for call in calls} == {200}


def assert_orders_go_on(placed: list[Call]) -> None:
    assert {order.status for order in placed} == {201}
    assert len(placed) >= 20
    assert sorted(order.seconds for order in placed)[int(0.99 * len(placed))] < 1.0


def assert_they_fail_fast(calls: list[Call], since: float) -> None:
    """But for those that found a place before the circuit of their worker opened, and its probes."""
    slow = [call for call in calls if call.seconds >= 1.0]
    assert len(slow) <= WORKERS * (LIMITS.max_running + PROBES)
    assert {call.status for call in calls} == {503}
    assert all(int(call.retry_after or 0) > 0 for call in calls)
    later = [call for call in calls if call.began >= since]
    assert len(later) >= CALLERS
    assert [call.code for call in later].count("circuit_open") > 0.8 * len(later)
    assert statistics.median(call.seconds for call in later) < 0.1


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("failing")) as stack:
        stack.start_identity_provider(PASSWORD)
        stack.start_registry()
        stack.let_users_in()
        yield stack


# ---- frozen


@pytest.fixture
def identity(stack: Stack) -> Iterator[Identity]:
    """client-service in this process."""
    identity = Identity.from_env(stack.service_settings(CLIENT, host="here")).start()
    yield identity
    identity.stop()


@contextmanager
def frozen(server: Server) -> Iterator[None]:
    """The server and all its workers stand still; their listening socket goes on taking connections."""
    os.killpg(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(server.pid, signal.SIGCONT)


def opened(session: requests.Session) -> float:
    """So many calls time out that the circuit opens. → the seconds that a call then takes, as a median."""
    with ThreadPoolExecutor(LIMITS.failures) as pool:
        for ended in [pool.submit(session.get, "/profiles/1") for _ in range(LIMITS.failures)]:
            assert isinstance(ended.exception(), requests.ReadTimeout)
    return statistics.median(seconds_of_a_refusal(session) for _ in range(100))


def seconds_of_a_refusal(session: requests.Session) -> float:
    began = time.perf_counter()
    with pytest.raises(CircuitOpen):
        session.get("/profiles/1")
    return time.perf_counter() - began


def is_answered(session: requests.Session) -> bool:
    try:
        return session.get("/profiles/1").status_code == 200
    except requests.RequestException:
        return False


def test_a_frozen_callee_takes_nothing_else_down_and_is_called_again_at_once_when_it_wakes(
    stack: Stack, identity: Identity
) -> None:
    resource = stack.start_resource_service()
    edge = Edge.start(stack, resource.url)
    session = identity.session("resource-service", resource.url, retries=0)
    assert session.get("/profiles/1").status_code == 200
    with edge.called():
        with frozen(resource):
            began = time.monotonic()
            with ThreadPoolExecutor(1) as other:
                opening = other.submit(opened, session)
                placed = edge.orders(UNTIL_OPEN + 4.0)
                assert opening.result() < 0.005
        awake = time.monotonic()
        until(lambda: is_answered(session), BACK)
        until(edge.is_back, what="that all calls are answered again")

    assert_orders_go_on(placed)
    assert_they_fail_fast(edge.between(began, awake - 1.0), began + UNTIL_OPEN)
    assert [(one.state, one.running, one.waiting) for one in identity.circuits()] == [(CircuitState.CLOSED, 0, 0)]
    assert_nothing_is_left(edge, resource.url)
    for state in ("open", "closed"):
        assert f"circuit to {resource.url} is {state}" in edge.server.output()


# ---- other ways to fail


Way = Callable[["Callee", socket.socket], None]


@dataclass
class Callee:
    """A server on one port that behaves as it is told."""

    server: Misbehaving
    behave: "Way"


def answers(callee: Callee, connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")


def drips(callee: Callee, connection: socket.socket) -> None:
    """Until it is mended."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 900000\r\n\r\n")
    while callee.behave is drips:
        connection.sendall(b" ")
        time.sleep(0.1)


def resets(callee: Callee, connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def asks_for_a_pause(callee: Callee, connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 503 No\r\nRetry-After: 1\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")


@pytest.fixture(scope="module")
def callee() -> Iterator[Callee]:
    def behave(connection: socket.socket) -> None:
        callee.behave(callee, connection)

    with misbehaving(behave) as server:
        callee = Callee(server, answers)
        yield callee


@pytest.fixture(scope="module")
def edge(stack: Stack, callee: Callee) -> Edge:
    return Edge.start(stack, callee.server.url)


@pytest.mark.parametrize("behave", [drips, resets, asks_for_a_pause])
def test_nor_does_one_that_fails_otherwise(edge: Edge, callee: Callee, behave: Way) -> None:
    callee.behave = behave
    try:
        with edge.called():
            began = time.monotonic()
            before = callee.server.asked
            placed = edge.orders(UNTIL_OPEN + 4.0)
            asked = callee.server.asked - before
            callee.behave, mended = answers, time.monotonic()
            until(edge.is_back, what="that all calls are answered again")
    finally:
        callee.behave = answers
    assert_orders_go_on(placed)
    assert_they_fail_fast(edge.between(began, mended - 1.0), began + UNTIL_OPEN)
    assert asked < len(edge.between(began, mended)) / 2, "most calls did not reach the callee"
    assert_nothing_is_left(edge, callee.server.url)
