"""An asynchronous session: paths below its base URL, retries, the deadline, the circuit and the bulkhead."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from peerseal import CallLimits, CircuitState
from peerseal.errors import CircuitOpen, ConfigurationError, TooManyCalls, UnsignableRequest
from peerseal.httpx import AsyncPeerSession
from peerseal.requests import PeerSession
from peerseal.session.circuit import Circuits
from peerseal.testing import Clock, MemoryRegistry
from tests.support.certificates import Authority
from tests.support.misbehaving import hangs, misbehaving, refused
from tests.support.wire import RESET, Answer, RawServer, Service, raw_server

pytestmark = pytest.mark.usefixtures("no_proxies")

PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
LIMITS = CallLimits(failures=3, open_time=2.0, jitter=0.0)

Work = Callable[[AsyncPeerSession], Awaitable[Any]]
Run = Callable[..., Any]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def circuits(clock: Clock) -> Circuits:
    return Circuits(clock=clock)


@pytest.fixture
def pauses() -> list[float]:
    """The pauses of sessions, which never really sleep."""
    return []


@pytest.fixture
def run(caller: Service, circuits: Circuits, pauses: list[float]) -> Run:
    """Runs a coroutine function with a session to that URL."""

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    def run(url: str, work: Work, **options: Any) -> Any:
        async def main() -> Any:
            given: dict[str, Any] = {"circuits": circuits, "sleep": sleep, "verify": PLAIN}
            async with AsyncPeerSession(caller, "callee", url, **given | options) as session:
                return await work(session)

        return asyncio.run(main())

    return run


async def get(session: AsyncPeerSession) -> httpx.Response:
    return await session.get("/")


async def post(session: AsyncPeerSession) -> httpx.Response:
    return await session.post("/", content=b"x")


# ---- where a request goes


@pytest.mark.parametrize(
    ("base", "url", "target"),
    [
        ("", "profiles/42", "/profiles/42"),
        ("", "", "/"),
        ("/api", "/profiles/42", "/api/profiles/42"),
        ("/api/", "profiles/42", "/api/profiles/42"),
        ("/api", "?q=1", "/api/?q=1"),
        ("/api", "//other.host/x", "/api//other.host/x"),
        ("", "//other.host/x", "//other.host/x"),
        ("", "a:b", "/a:b"),
        ("", "/a?x=http://other.host/", "/a?x=http://other.host/"),
        ("", " http://other.host/", "/%20http://other.host/"),
    ],
)
def test_a_path_is_taken_below_the_base_url_and_never_leads_away(
    run: Run, server: RawServer, base: str, url: str, target: str
) -> None:
    run(server.url + base, lambda session: session.get(url))
    (seen,) = server.seen
    assert seen.target == target
    assert seen.authorization is not None


@pytest.mark.parametrize("url", ["/../admin", "../admin", "/a/../../admin", "/%2e%2e/admin", "/.%2E/admin", "/.."])
def test_a_path_that_leads_out_of_the_base_url_is_refused(run: Run, server: RawServer, url: str) -> None:
    with pytest.raises(UnsignableRequest, match="leads out"):
        run(f"{server.url}/api", lambda session: session.get(url))
    assert server.seen == []


def test_another_origin_is_called_without_a_signature_and_with_credentials_of_its_own(
    run: Run, server: RawServer
) -> None:
    with raw_server() as other:
        run(server.url, lambda session: session.get(other.url, auth=("user", "password")))
        assert other.seen[0].authorization == "Basic dXNlcjpwYXNzd29yZA=="


def test_credentials_of_another_scheme_are_not_mixed_with_the_signature(run: Run, server: RawServer) -> None:
    with pytest.raises(UnsignableRequest, match="signs the request itself"):
        run(server.url, lambda session: session.get("/", auth=("user", "password")))
    with pytest.raises(ConfigurationError, match="signs its requests itself"):
        run(server.url, get, auth=("user", "password"))
    assert server.seen == []


def test_a_host_on_loopback_is_called_without_a_proxy(
    run: Run, server: RawServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", refused())
    assert run(server.url, get).status_code == 200


# ---- retries


@pytest.mark.parametrize("failure", [RESET, Answer(502), Answer(503), Answer(504)])
def test_an_idempotent_request_is_signed_and_sent_again(
    run: Run, server: RawServer, pauses: list[float], failure: object
) -> None:
    server.script[:] = [failure, failure]
    assert run(server.url, get).status_code == 200
    assert len({seen.claims["jti"] for seen in server.seen}) == 3
    assert len(pauses) == 2


def test_a_request_that_is_not_idempotent_is_sent_once(run: Run, server: RawServer) -> None:
    server.script[:] = [Answer(503), RESET]
    assert run(server.url, post).status_code == 503
    with pytest.raises(httpx.ReadError):
        run(server.url, post)
    assert len(server.seen) == 2


def test_a_failed_connect_is_tried_again_for_every_method(run: Run, pauses: list[float]) -> None:
    with pytest.raises(httpx.ConnectError):
        run(refused(), post)
    assert len(pauses) == 3


def test_an_untrusted_certificate_is_not_tried_again(run: Run, pauses: list[float], tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*Authority.make(tmp_path, "unknown").issue("callee", server=True))
    limits = CallLimits(connect_timeout=20, deadline=20)
    with misbehaving(hangs, tls=context) as server, pytest.raises(httpx.ConnectError, match="CERTIFICATE"):
        run(server.url, get, limits=limits)
    assert pauses == []


def test_a_pause_that_the_callee_asks_for_is_kept(run: Run, server: RawServer, pauses: list[float]) -> None:
    server.script[:] = [Answer(503, {"Retry-After": "4"}), Answer(503, {"Retry-After": "31"})]
    with_no_circuit = CallLimits(failures=0)
    assert run(server.url, get, limits=with_no_circuit).status_code == 503
    assert pauses == [4.0]


def test_the_number_of_retries_is_an_option(run: Run, server: RawServer) -> None:
    server.script[:] = [Answer(503)] * 5
    assert run(server.url, get, retries=1).status_code == 503
    assert len(server.seen) == 2


# ---- the deadline


def drips(connection: socket.socket) -> None:
    """An answer whose body comes byte by byte, for ever."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
    while True:
        connection.sendall(b"x")
        connection.settimeout(0.05)
        try:
            if not connection.recv(1):
                return
        except TimeoutError:
            continue


@pytest.mark.parametrize("behave", [hangs, drips])
def test_a_call_ends_in_time_and_counts_as_a_failure(
    run: Run, circuits: Circuits, behave: Callable[[socket.socket], None]
) -> None:
    with misbehaving(behave) as server, pytest.raises(httpx.ReadTimeout, match=r"deadline of 0\.5 s"):
        run(server.url, get, deadline=0.5, timeout=15)
    assert circuits.status()[0].failures == 1


def test_a_callee_that_falls_silent_ends_the_call_after_the_timeout(run: Run, circuits: Circuits) -> None:
    with misbehaving(hangs) as server, pytest.raises(httpx.ReadTimeout):
        run(server.url, get, deadline=20, timeout=(15, 0.2), retries=0)
    assert circuits.status()[0].failures == 1


def test_a_stream_may_take_longer_than_the_deadline(run: Run, circuits: Circuits) -> None:
    async def stream(session: AsyncPeerSession) -> int:
        async with session.stream("GET", "/") as response:
            await asyncio.sleep(0.6)
            async for piece in response.aiter_raw():
                return len(piece)
        return 0

    with misbehaving(drips) as server:
        assert run(server.url, stream, deadline=0.5, timeout=15) > 0
    assert circuits.status()[0].running == 0


# ---- the circuit


def test_a_circuit_opens_and_closes_again(run: Run, server: RawServer, circuits: Circuits, clock: Clock) -> None:
    async def work(session: AsyncPeerSession) -> None:
        server.script[:] = [Answer(500), Answer(503), RESET, Answer(504)]
        for _ in range(2):
            await session.get("/")
        with pytest.raises(httpx.ReadError):
            await session.get("/")
        await session.get("/")
        with pytest.raises(CircuitOpen) as caught:
            await session.get("/")
        assert isinstance(caught.value, httpx.ConnectError)
        assert caught.value.request.url.path == "/"
        clock.advance(3)
        assert (await session.get("/")).status_code == 200

    run(server.url, work, limits=LIMITS, retries=0)
    assert len(server.seen) == 5
    assert circuits.status()[0].state == CircuitState.CLOSED


def test_the_sessions_of_an_identity_share_their_circuits(server: RawServer) -> None:
    async def call(session: AsyncPeerSession) -> None:
        async with session:
            await session.get("/")

    server.script[:] = [Answer(503, {"Retry-After": "5"})]
    with MemoryRegistry() as registry:
        identity = registry.identity("client-service")
        asyncio.run(call(identity.async_session("resource-service", server.url, retries=0, verify=PLAIN)))
        session: PeerSession = identity.session("resource-service", server.url)
        with pytest.raises(CircuitOpen):
            session.get("/")
        assert [status.state for status in identity.circuits()] == [CircuitState.OPEN]


# ---- the bulkhead


@asynccontextmanager
async def one_that_runs(session: AsyncPeerSession, circuits: Circuits) -> AsyncIterator["asyncio.Task[Any]"]:
    task = asyncio.create_task(session.get("/"))
    while not (circuits.status() and circuits.status()[0].running):
        await asyncio.sleep(0.01)
    yield task
    task.cancel()
    await asyncio.wait([task])


def test_calls_beyond_the_limit_are_refused(run: Run, circuits: Circuits) -> None:
    async def work(session: AsyncPeerSession) -> None:
        async with one_that_runs(session, circuits):
            with pytest.raises(TooManyCalls) as caught:
                await session.get("/")
            assert isinstance(caught.value, httpx.ConnectError)

    with misbehaving(hangs) as server:
        run(server.url, work, limits=CallLimits(deadline=20, read_timeout=20, max_running=1, max_waiting=0))


def test_a_call_waits_for_a_place_and_not_for_ever(run: Run, circuits: Circuits) -> None:
    async def work(session: AsyncPeerSession) -> None:
        async with one_that_runs(session, circuits):
            with pytest.raises(TooManyCalls, match=r"no place in 0\.1 s"):
                await session.get("/")

    with misbehaving(hangs) as server:
        run(server.url, work, limits=CallLimits(deadline=20, read_timeout=20, max_running=1, longest_wait=0.1))


def test_a_cancelled_call_gives_its_place_to_one_that_waits(run: Run, circuits: Circuits) -> None:
    async def work(session: AsyncPeerSession) -> None:
        async with one_that_runs(session, circuits) as running:
            waits = asyncio.create_task(session.get("/"))
            gives_up = asyncio.create_task(session.get("/"))
            while circuits.status()[0].waiting < 2:
                await asyncio.sleep(0.01)
            gives_up.cancel()
            running.cancel()
            await asyncio.wait([running, gives_up])
            while circuits.status()[0].waiting:
                await asyncio.sleep(0.01)
            assert circuits.status()[0].running == 1
            waits.cancel()
            await asyncio.wait([waits])

    limits = CallLimits(deadline=20, read_timeout=20, longest_wait=20, max_running=1)
    with misbehaving(hangs) as server:
        run(server.url, work, limits=limits)
    assert (circuits.status()[0].running, circuits.status()[0].failures) == (0, 0)


def test_many_calls_at_once_all_end(run: Run, circuits: Circuits) -> None:
    async def work(session: AsyncPeerSession) -> list[int]:
        answers = await asyncio.gather(*(session.get(f"/{number}") for number in range(40)))
        return [answer.status_code for answer in answers]

    with raw_server() as server:
        limits = CallLimits(deadline=60, longest_wait=60, slow=60, max_running=4, max_waiting=40)
        assert run(server.url, work, limits=limits, timeout=60) == [200] * 40
    assert (circuits.status()[0].running, circuits.status()[0].waiting) == (0, 0)


@pytest.mark.parametrize(
    "options", [{"timeout": "1"}, {"deadline": 0}, {"retries": -1}, {"limits": 5}, {"sleep": 1}, {"header": "a b"}]
)
def test_a_wrong_option_is_refused_at_once(caller: Service, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        AsyncPeerSession(caller, "callee", "http://callee.test", verify=PLAIN, **options)
