"""A session whose callee fails, hangs or is overloaded: calls fail at once, and the rest of the program goes on."""

import socket
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests

from peerseal import CallLimits, CircuitState
from peerseal.errors import CallNotMade, CircuitOpen, ConfigurationError, TooManyCalls, TrustUnavailable
from peerseal.requests import PeerSession
from peerseal.session.circuit import Circuits, CircuitStatus
from peerseal.session.origin import Origin
from peerseal.testing import Clock, MemoryRegistry
from tests.support.misbehaving import Behaviour, hangs, misbehaving, refused
from tests.support.waiting import until
from tests.support.wire import RESET, Answer, RawServer, Service, raw_server

pytestmark = pytest.mark.usefixtures("no_proxies")

SessionFor = Callable[..., PeerSession]
LIMITS = CallLimits(failures=3, open_time=2.0, jitter=0.0)
BUSY = Answer(503, {"Retry-After": "5"})


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def circuits(clock: Clock) -> Circuits:
    return Circuits(clock=clock)


@pytest.fixture
def session_for(caller: Service, circuits: Circuits) -> Iterator[SessionFor]:
    """Sessions that share their circuits, try once, and never really sleep."""
    made = []

    def session_for(url: str, **options: Any) -> PeerSession:
        given: dict[str, Any] = {"limits": LIMITS, "retries": 0, "circuits": circuits, "sleep": lambda _: None}
        made.append(PeerSession(caller, "callee", url, **given | options))
        return made[-1]

    yield session_for
    for session in made:
        session.close()


@pytest.fixture
def session(session_for: SessionFor, server: RawServer) -> PeerSession:
    return session_for(server.url)


def status(circuits: Circuits) -> CircuitStatus:
    """Of the only origin."""
    (only,) = circuits.status()
    return only


def tries(session: PeerSession, times: int = 1, path: str = "/a") -> None:
    """Calls of which nothing is expected."""
    for _ in range(times):
        try:
            session.get(path)
        except CallNotMade:
            pytest.fail("the circuit opened too early")
        except requests.RequestException:
            pass


def drips(connection: socket.socket) -> None:
    """An answer whose head comes at once, and whose body comes byte by byte."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n")
    for _ in range(900):
        connection.sendall(b"x")
        time.sleep(0.02)


def breaks_off(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel")


# ---- what opens it


@pytest.mark.parametrize("failure", [RESET, Answer(502), Answer(503), Answer(504)], ids=str)
def test_a_callee_that_fails_again_and_again_is_not_called(
    session: PeerSession, server: RawServer, failure: Any
) -> None:
    server.script[:] = [failure] * 9
    tries(session, 3)
    for _ in range(5):
        with pytest.raises(CircuitOpen):
            session.get("/a")
    assert len(server.seen) == 3


@pytest.mark.parametrize("behave", [hangs, drips, breaks_off])
def test_nor_is_one_whose_answers_do_not_come_or_do_not_end(session_for: SessionFor, behave: Behaviour) -> None:
    with misbehaving(behave) as server:
        session = session_for(server.url, timeout=0.05, deadline=0.1)
        tries(session, 3)
        with pytest.raises(CircuitOpen):
            session.get("/a")
    assert server.asked == 3


def test_nor_is_one_that_is_not_there(session_for: SessionFor) -> None:
    session = session_for(refused())
    tries(session, 3)
    with pytest.raises(CircuitOpen, match="ConnectionError"):
        session.get("/a")


def test_nor_is_one_whose_answers_take_too_long(session_for: SessionFor, server: RawServer, clock: Clock) -> None:
    def slowly(_: object) -> Answer:
        clock.advance(LIMITS.slow)
        return Answer()

    session = session_for(server.url)
    server.script[:] = [slowly] * 3
    for _ in range(3):
        assert session.get("/a").status_code == 200
    with pytest.raises(CircuitOpen):
        session.get("/a")


@pytest.mark.parametrize("code", [200, 204, 304, 400, 401, 403, 404, 409, 413, 429, 500, 501])
def test_other_answers_open_nothing(session: PeerSession, server: RawServer, circuits: Circuits, code: int) -> None:
    server.script[:] = [Answer(code, {"Retry-After": "9"})] * 20
    tries(session, 20)
    assert len(server.seen) == 20
    assert (status(circuits).state, status(circuits).failures) == (CircuitState.CLOSED, 0)


def test_requests_that_cannot_be_made_open_nothing(
    session: PeerSession, circuits: Circuits, caller: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_a_key(*_: object, **__: object) -> str:
        raise TrustUnavailable("no key yet")

    monkeypatch.setattr(caller, "sign_request", without_a_key)
    for _ in range(9):
        with pytest.raises(TrustUnavailable):
            session.get("/a")
    assert (status(circuits).state, status(circuits).running) == (CircuitState.CLOSED, 0)


# ---- how it fails


def test_the_error_is_ours_and_requests_own(session: PeerSession, server: RawServer) -> None:
    server.script[:] = [RESET] * 3
    tries(session, 3)
    for kind in (CircuitOpen, CallNotMade, requests.ConnectionError, requests.RequestException, OSError):
        with pytest.raises(kind) as raised:
            session.get("/a")
        error: Any = raised.value
        assert (error.code, error.status, error.retry_after) == ("circuit_open", 503, 2)
        assert error.request.url == f"{server.url}/a"
        assert "Authorization" not in error.request.headers


def test_a_call_that_is_not_made_takes_less_than_5_ms(session: PeerSession, server: RawServer) -> None:
    def seconds() -> float:
        began = time.perf_counter()
        with pytest.raises(CircuitOpen):
            session.get("/a")
        return time.perf_counter() - began

    server.script[:] = [RESET] * 3
    tries(session, 3)
    assert statistics.median(seconds() for _ in range(200)) < 0.005


@pytest.mark.parametrize("failure", [RESET, Answer(503)], ids=str)
def test_a_circuit_that_opens_ends_the_attempts_of_a_call(
    session_for: SessionFor, server: RawServer, failure: Any
) -> None:
    server.script[:] = [failure] * 20
    session = session_for(server.url, retries=9)
    tries(session)  # the last answer or error stays what it was
    assert len(server.seen) == 3


def test_one_bad_request_alone_opens_nothing_by_default(session_for: SessionFor, server: RawServer) -> None:
    server.script[:] = [RESET] * 4
    session = session_for(server.url, limits=CallLimits(), retries=3)
    tries(session)
    assert session.get("/b").status_code == 200


# ---- a callee that asks for a pause


def test_a_callee_that_asks_for_a_pause_has_it_at_once(
    session_for: SessionFor, server: RawServer, clock: Clock
) -> None:
    session = session_for(server.url, retries=3)
    server.script[:] = [BUSY]
    assert session.get("/a").status_code == 503
    clock.advance(4.9)
    with pytest.raises(CircuitOpen):
        session.get("/b")
    assert len(server.seen) == 1
    clock.advance(0.2)
    assert session.get("/b").status_code == 200


@pytest.mark.parametrize("value", ["3600", "9" * 40, "Fri, 31 Dec 2100 23:59:59 GMT"])
def test_a_pause_has_an_end(session: PeerSession, server: RawServer, clock: Clock, value: str) -> None:
    server.script[:] = [Answer(503, {"Retry-After": value})]
    tries(session)
    clock.advance(LIMITS.longest_open - 0.1)
    with pytest.raises(CircuitOpen):
        session.get("/a")
    clock.advance(0.2)
    assert session.get("/a").status_code == 200


@pytest.mark.parametrize("value", ["soon", "0", "-1", ""])
def test_one_that_means_nothing_counts_as_a_failure_and_no_more(
    session: PeerSession, server: RawServer, value: str
) -> None:
    server.script[:] = [Answer(503, {"Retry-After": value})] * 2
    tries(session, 2)
    assert session.get("/a").status_code == 200


# ---- how it comes back


def test_one_call_finds_out_that_the_callee_is_back(
    session: PeerSession, server: RawServer, circuits: Circuits, clock: Clock
) -> None:
    server.script[:] = [RESET] * 4
    tries(session, 3)
    clock.advance(2.0)
    tries(session)
    with pytest.raises(CircuitOpen):
        session.get("/a")
    clock.advance(2.0)
    assert session.get("/a").status_code == 200
    assert (status(circuits).state, status(circuits).opened) == (CircuitState.CLOSED, 2)


def test_a_call_that_cannot_be_signed_does_not_stay_the_probe(
    session: PeerSession, server: RawServer, clock: Clock, caller: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_a_key(*_: object, **__: object) -> str:
        raise TrustUnavailable("no key now")

    server.script[:] = [RESET] * 3
    tries(session, 3)
    clock.advance(2.0)
    with monkeypatch.context() as patched:
        patched.setattr(caller, "sign_request", without_a_key)
        with pytest.raises(TrustUnavailable):
            session.get("/a")
    assert session.get("/a").status_code == 200


# ---- whose it is


def test_all_sessions_of_an_identity_share_it_and_the_identity_shows_it(server: RawServer) -> None:
    with MemoryRegistry() as registry:
        identity = registry.identity("caller")
        first, second = (identity.session("callee", server.url, limits=LIMITS, retries=0) for _ in range(2))
        server.script[:] = [BUSY]
        tries(first)
        with pytest.raises(CircuitOpen):
            second.get("/elsewhere")
        shown = CircuitStatus(server.url, CircuitState.OPEN, failures=1, opened=1, refused=1, waiting=0, running=0)
        assert identity.circuits() == (shown,)
        assert registry.identity("other").circuits() == ()


def test_another_origin_is_called_as_ever(session: PeerSession, server: RawServer) -> None:
    server.script[:] = [BUSY]
    tries(session)
    with raw_server(*[RESET] * 9) as elsewhere:
        tries(session, 9, elsewhere.url)
        assert session.get(elsewhere.url).status_code == 200


@pytest.mark.parametrize(
    "url", ["http://callee", "http://callee/", "http://callee:80/base", "HTTP://CALLEE:80", "http://Callee/a/b"]
)
def test_each_spelling_of_an_origin_is_that_origin(url: str) -> None:
    assert Origin(url).name == "http://callee"


def test_of_two_ports_or_schemes_there_are_two() -> None:
    names = {Origin(url).name for url in ("http://a", "https://a", "http://a:443", "https://a:80", "http://[::1]:1")}
    assert names == {"http://a", "https://a", "http://a:443", "https://a:80", "http://[::1]:1"}


# ---- how many at once


def test_no_more_calls_run_at_once_than_may(session_for: SessionFor, circuits: Circuits) -> None:
    limits = CallLimits(max_running=2, max_waiting=1, longest_wait=20.0)
    with misbehaving(hangs) as server, ThreadPoolExecutor(3) as pool:
        session = session_for(server.url, limits=limits, timeout=1.0)
        calls = [pool.submit(session.get, "/a") for _ in range(3)]
        until(lambda: server.asked == 2 and status(circuits).waiting == 1)
        with pytest.raises(TooManyCalls) as raised:
            session.get("/a")
        assert isinstance(raised.value, requests.ConnectionError)
        assert (raised.value.code, raised.value.status, raised.value.retry_after) == ("too_many_calls", 503, 1)
        assert server.asked == 2
        for call in calls:
            assert isinstance(call.exception(), requests.ReadTimeout)
    assert server.asked == 3
    assert (status(circuits).waiting, status(circuits).running) == (0, 0)


def test_redirects_and_attempts_need_no_second_place(session_for: SessionFor, server: RawServer) -> None:
    limits = CallLimits(max_running=1, max_waiting=0)
    server.script[:] = [Answer(307, {"Location": "/b"}), RESET, Answer(307, {"Location": "/c"})]
    session = session_for(server.url, limits=limits, retries=1)
    assert session.get("/a").status_code == 200
    assert [seen.target for seen in server.seen] == ["/a", "/b", "/b", "/c"]


def test_a_streamed_body_holds_no_place(session_for: SessionFor, circuits: Circuits) -> None:
    with misbehaving(drips) as server:
        session = session_for(server.url, limits=CallLimits(max_running=1, max_waiting=0))
        with session.get("/a", stream=True), session.get("/b", stream=True) as answer:
            assert answer.raw.read(2) == b"xx"
            assert status(circuits).running == 0


# ---- settings


def test_limits_give_the_times_and_old_arguments_stand_in_for_them(session_for: SessionFor) -> None:
    limits = CallLimits(connect_timeout=0.1, read_timeout=0.05, deadline=20.0)
    with misbehaving(hangs) as server:
        with pytest.raises(requests.ReadTimeout, match=r"read timeout=0\.05"):
            session_for(server.url, limits=limits).get("/a")
        with pytest.raises(requests.ReadTimeout, match=r"read timeout=0\.06"):
            session_for(server.url, limits=limits, timeout=0.06).get("/a")
        began = time.monotonic()
        with pytest.raises(requests.ReadTimeout):
            session_for(server.url, limits=limits, timeout=15.0, deadline=0.1).get("/a")
        assert time.monotonic() - began < 10


def test_limits_that_are_none_are_refused(caller: Service) -> None:
    with pytest.raises(ConfigurationError, match=r"limits=.* expected a peerseal\.CallLimits"):
        PeerSession(caller, "callee", "http://callee", limits=5)  # type: ignore[arg-type]
