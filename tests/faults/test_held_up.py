"""How long a registry that hangs can hold up a call: as long as `TrustLimits.patience` says, once for all callers.

Real sockets and the real clock, with limits that are small enough to wait for.
"""

import socket
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from itertools import islice
from typing import Protocol

import pytest

from peerseal import Identity, TrustLimits, TrustStore, Verifier
from peerseal.errors import FetchError, TrustUnavailable
from peerseal.runtime.limits import FetchLimits
from peerseal.testing import Answer, MemoryRegistry
from peerseal.transport.fetch import HttpFetcher
from tests.peerseal.served import served
from tests.registry.driver import Clock
from tests.support.misbehaving import FAR_TOO_LONG, IN_TIME, hangs, misbehaving, refused, unreachable

PATIENCE = 1.0
LIMITS = TrustLimits(poll_interval=3600.0, patience=PATIENCE, cooldown=0.05)
ENDLESS = FetchLimits(FAR_TOO_LONG, FAR_TOO_LONG, FAR_TOO_LONG, shortest_rest=FAR_TOO_LONG, longest_rest=FAR_TOO_LONG)
"""Of one call, which only patience cuts short."""
IMPATIENT = FetchLimits(read_timeout=0.3, slow=0.2, shortest_rest=60.0, longest_rest=60.0)
THREADS = 20


class Delayed(MemoryRegistry):
    """Answers each call that many seconds later, or, where that would be for ever, once it is let go."""

    delay = 0.0

    def __init__(self) -> None:
        self.let_go = threading.Event()
        super().__init__()

    def call(self, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        if self.delay:
            self.let_go.wait(self.delay)
        return super().call(method, path, body=body, headers=headers)


@pytest.fixture
def registry() -> Iterator[Delayed]:
    with Delayed() as registry:
        yield registry
        registry.let_go.set()


@pytest.fixture
def url(registry: Delayed) -> Iterator[str]:
    with served(registry) as url:
        yield url
        registry.let_go.set()


@pytest.fixture
def client(registry: Delayed) -> Identity:
    return registry.identity("client")


class Callee:
    """A callee that asks that registry, and what calls it."""

    def __init__(self, urls: str, pin: str, client: Identity, patience: float) -> None:
        fetcher = HttpFetcher(urls.split(","), ENDLESS)
        self.trust = TrustStore(urls, pin=pin, limits=replace(LIMITS, patience=patience), fetcher=fetcher)
        self._client = client
        self._verifier = Verifier(self.trust, audience="callee", allow={"client": ()})

    def __call__(self) -> tuple[bool, float]:
        """Whether a good call was accepted, and how many seconds it was held up."""
        token = self._client.sign_request("callee", method="GET", target="/")
        began = time.monotonic()
        try:
            self._verifier.verify(token, method="GET", target="/")
            accepted = True
        except TrustUnavailable:
            accepted = False
        return accepted, time.monotonic() - began


class Make(Protocol):
    def __call__(self, urls: str, patience: float = PATIENCE) -> Callee: ...


@pytest.fixture
def callee(registry: Delayed, client: Identity) -> Iterator[Make]:
    """Makes a callee that asks the registry at those URLs."""
    made: list[Callee] = []

    def make(urls: str, patience: float = PATIENCE) -> Callee:
        made.append(Callee(urls, registry.pin, client, patience))
        return made[-1]

    yield make
    for callee in made:
        callee.trust.stop()


@pytest.fixture
def trust(registry: Delayed, url: str) -> Iterator[TrustStore]:
    """Of a callee that knows the registry's keys, and nothing else."""
    trust = TrustStore(url, pin=registry.pin, limits=LIMITS, fetcher=HttpFetcher([url], ENDLESS))
    assert trust.domain == registry.domain
    yield trust
    trust.stop()


class TestOneCall:
    def test_by_a_registry_that_hangs_for_a_kid(self, registry: Delayed, trust: TrustStore) -> None:
        kid = registry.identity("other").credentials.key_id
        registry.delay = FAR_TOO_LONG
        began = time.monotonic()
        with pytest.raises(TrustUnavailable):
            trust.key(kid)
        assert time.monotonic() - began < IN_TIME

    def test_by_one_whose_policy_hangs(self, registry: Delayed, trust: TrustStore) -> None:
        registry.delay = FAR_TOO_LONG
        began = time.monotonic()
        with pytest.raises(TrustUnavailable):
            trust.policy(f"{registry.domain}/callee")
        assert time.monotonic() - began < IN_TIME

    def test_one_that_is_slow_but_answers_in_time_is_waited_for(
        self, registry: Delayed, url: str, callee: Make
    ) -> None:
        registry.delay = PATIENCE / 25
        accepted, seconds = callee(url, patience=FAR_TOO_LONG)()
        assert accepted
        assert seconds > 2 * registry.delay


class TestManyCalls:
    def test_of_many_threads_at_once_each_is_held_up_no_longer(self, registry: Delayed, trust: TrustStore) -> None:
        kids = [registry.identity(f"other-{number}").credentials.key_id for number in range(5)]
        registry.delay = FAR_TOO_LONG

        def ask(number: int) -> float:
            began = time.monotonic()
            with pytest.raises(TrustUnavailable):
                trust.key(kids[number % len(kids)])
            return time.monotonic() - began

        with ThreadPoolExecutor(THREADS) as pool:
            assert max(pool.map(ask, range(THREADS))) < IN_TIME

    def test_of_many_in_a_row_the_first_one_waits(self, registry: Delayed, client: Identity) -> None:
        """The others find that the registry rests, for any service."""
        with misbehaving(hangs) as hanging:
            fetcher = HttpFetcher([hanging.url], ENDLESS)
            trust = TrustStore(hanging.url, pin=registry.pin, limits=LIMITS, fetcher=fetcher)
            for _ in range(20):
                with pytest.raises(TrustUnavailable):
                    trust.key(client.credentials.key_id)
            assert hanging.asked == 1
            trust.stop()

    def test_who_is_in_memory_is_not_held_up_at_all(
        self, registry: Delayed, url: str, callee: Make, client: Identity
    ) -> None:
        call = callee(url, patience=FAR_TOO_LONG)
        assert call()[0]
        stranger = registry.identity("stranger").credentials.key_id
        registry.delay = FAR_TOO_LONG
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(call.trust.key, stranger)
            outcomes = [call() for _ in range(20)]
            assert [accepted for accepted, _ in outcomes] == [True] * 20
            assert not waiting.done(), "all of them were answered while the stranger's call still waited"
            registry.let_go.set()
            assert waiting.result(FAR_TOO_LONG).kid == stranger


class TestMirrorsThatHang:
    def test_one_is_asked_last_from_then_on(self, registry: Delayed, url: str) -> None:
        with misbehaving(hangs) as hanging:
            fetcher = HttpFetcher([hanging.url, url], IMPATIENT)
            for _ in range(10):
                assert fetcher.call("GET", "/.well-known/peerseal-registry").status == 200
            assert hanging.asked == 1
            assert registry.calls["GET /.well-known/peerseal-registry"] == 10

    def test_one_that_refuses_is_asked_last_too(self, registry: Delayed, url: str) -> None:
        dead = refused()
        fetcher = HttpFetcher([dead, url], IMPATIENT)
        assert fetcher.call("GET", "/v1/changes?since=0").status == 200
        with socket.create_server(("127.0.0.1", int(dead.rpartition(":")[2]))) as revived:
            revived.setblocking(False)
            assert fetcher.call("GET", "/v1/changes?since=0").status == 200
            with pytest.raises(BlockingIOError):
                revived.accept()

    def test_a_callee_is_held_up_by_it_once(self, registry: Delayed, url: str, client: Identity) -> None:
        with misbehaving(hangs) as hanging:
            kids = [registry.identity(f"other-{number}").credentials.key_id for number in range(5)]
            fetcher = HttpFetcher([hanging.url, url], IMPATIENT)
            limits = replace(LIMITS, patience=FAR_TOO_LONG)
            trust = TrustStore(url, pin=registry.pin, limits=limits, fetcher=fetcher)
            for kid in kids:
                assert trust.key(kid).kid == kid
            assert hanging.asked == 1
            trust.stop()

    def test_while_all_rest_nobody_waits_and_after_it_one_finds_out(self) -> None:
        asked, let_go, clock = threading.Semaphore(0), threading.Semaphore(0), Clock()

        def hangs_until_it_is_let_go(_: socket.socket) -> None:
            asked.release()
            let_go.acquire(timeout=FAR_TOO_LONG)

        with misbehaving(hangs_until_it_is_let_go) as hanging, ThreadPoolExecutor(THREADS) as pool:
            fetcher = HttpFetcher([hanging.url], replace(ENDLESS, slow=0.0), clock=clock)

            def call(_: int = 0) -> None:
                with pytest.raises(FetchError):
                    fetcher.call("GET", "/")

            first = pool.submit(call)
            assert asked.acquire(timeout=FAR_TOO_LONG)
            let_go.release()
            first.result(FAR_TOO_LONG)
            for _ in range(50):
                call()
            assert hanging.asked == 1
            clock.forward(ENDLESS.shortest_rest)
            calls = [pool.submit(call) for _ in range(THREADS)]
            assert asked.acquire(timeout=FAR_TOO_LONG)
            assert len(list(islice(as_completed(calls, FAR_TOO_LONG), THREADS - 1))) == THREADS - 1
            assert hanging.asked == 2
            assert [call.done() for call in calls].count(False) == 1, "the others did not wait for it"
            let_go.release()


class TestOneCallFromTheStart:
    def test_by_one_that_hangs_from_the_start(self, callee: Make) -> None:
        with misbehaving(hangs) as registry:
            accepted, seconds = callee(registry.url)()
        assert not accepted
        assert seconds < IN_TIME

    def test_by_three_mirrors_that_all_hang(self, callee: Make) -> None:
        with misbehaving(hangs) as first, misbehaving(hangs) as second, unreachable() as third:
            accepted, seconds = callee(f"{first.url},{second.url},{third}")()
        assert not accepted
        assert seconds < IN_TIME

    def test_by_a_registry_that_takes_its_time_for_every_answer(
        self, registry: Delayed, url: str, callee: Make
    ) -> None:
        """Root, policy and keys together, and not each of them."""
        registry.delay = PATIENCE * 0.7
        accepted, seconds = callee(url)()
        assert not accepted
        assert seconds < IN_TIME


def keeps_the_question_and_is_cut(connection: socket.socket) -> None:
    time.sleep(0.8)


class TestKeptQuestions:
    def test_a_kept_question_that_is_cut_off_is_no_sign_of_hanging(self) -> None:
        """A registry that restarts cuts all questions that it keeps, however long it has kept them."""
        with misbehaving(keeps_the_question_and_is_cut) as server:
            fetcher = HttpFetcher([server.url])
            with pytest.raises(FetchError):
                fetcher.ask("/v1/changes?since=0&wait=15", lambda answer: answer, wait=15.0)
            with pytest.raises(FetchError):
                fetcher.call("GET", "/v1/services/client/jwks.jwt")
            assert server.asked == 2, "the second call was made, and did not find that the registry rests"
