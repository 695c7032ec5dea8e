"""Verification in an asyncio program: what memory knows is verified in the loop, what must be fetched elsewhere."""

import asyncio
import gc
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar
from weakref import WeakSet

import pytest

from peerseal import FileReplayGuard, Identity, Peer, TrustLimits, User, Verifier
from peerseal.asynchronous import AsyncVerifier, ClaimTurns
from peerseal.errors import Replayed, TrustUnavailable, WrongBinding
from peerseal.testing import MemoryRegistry
from peerseal.trust.beliefs import TrustedKey
from peerseal.verify.replay.guards import MemoryReplayGuard, ReplayGuard
from tests.attacks.forge import BODY, CALLER, HEADERS, METHOD, NOW, TARGET, Keys, honest_token, rsa_key
from tests.peerseal.served import Child
from tests.support.waiting import until

QUIET = TrustLimits(poll_interval=3600)
THREAD = threading.get_ident
IN_MEMORY = Path("/dev/shm")
"""A tmpfs, on Linux."""


class Noting(ReplayGuard):
    """A guard that notes on which thread it was asked."""

    def __init__(self, guard: ReplayGuard) -> None:
        self.guard, self.threads = guard, list[int]()

    def claim(self, issuer: str, jti: str, until: float) -> bool:
        self.threads.append(THREAD())
        return self.guard.claim(issuer, jti, until)


@pytest.fixture
def registry() -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as registry:
        yield registry


@pytest.fixture
def client(registry: MemoryRegistry) -> Identity:
    return registry.identity("client")


Make = Callable[..., AsyncVerifier]


@pytest.fixture
def callee(registry: MemoryRegistry) -> Make:
    def make(**options: Any) -> AsyncVerifier:
        trust = registry.trust_store(limits=QUIET)
        return AsyncVerifier(Verifier(trust, audience="callee", allow={"*": {"read"}}, **options))

    return make


async def called(callee: AsyncVerifier, token: str, target: str = "/a") -> Peer:
    return await callee.verify(token, method="GET", target=target, scope="read")


def test_a_call_is_verified_and_its_token_accepted_once(callee: Make, client: Identity) -> None:
    async def program() -> None:
        verifier = callee()
        token = client.sign_request("callee", method="GET", target="/a")
        assert (await called(verifier, token)).service == "client"
        with pytest.raises(Replayed):
            await called(verifier, token)
        with pytest.raises(WrongBinding):
            await called(verifier, client.sign_request("callee", method="GET", target="/b"))

    asyncio.run(program())


def test_the_first_call_is_fetched_for_on_another_thread_and_the_second_is_not(
    registry: MemoryRegistry, client: Identity
) -> None:
    guard = Noting(MemoryReplayGuard())
    asked: list[int] = []
    answered = registry.call
    registry.call = lambda *a, **k: (asked.append(THREAD()), answered(*a, **k))[1]  # type: ignore[method-assign]

    async def program() -> None:
        verifier = AsyncVerifier(
            Verifier(registry.trust_store(limits=QUIET), audience="callee", allow={"*": {"read"}}, replay=guard)
        )
        for expected in (True, False):
            asked.clear()
            await called(verifier, client.sign_request("callee", method="GET", target="/a"))
            assert bool(asked) is expected
            assert THREAD() not in asked

    asyncio.run(program())


def test_a_registry_that_hangs_holds_up_nobody_whose_key_is_known(
    registry: MemoryRegistry, client: Identity, tmp_path: Path
) -> None:
    strangers = [registry.identity(f"stranger{number}") for number in range(AsyncVerifier.WAITING)]
    hanging = threading.Event()
    answered = registry.call

    def call(method: str, path: str, **options: Any) -> Any:
        if "stranger" in path:
            assert hanging.wait(10)
        return answered(method, path, **options)

    async def program() -> None:
        guard, trust = FileReplayGuard(tmp_path / "replay"), registry.trust_store(limits=QUIET)
        verifier = AsyncVerifier(Verifier(trust, audience="callee", allow={"*": {"read"}}, replay=guard))
        await called(verifier, client.sign_request("callee", method="GET", target="/a"))
        registry.call = call  # type: ignore[method-assign]
        waiting = [
            asyncio.create_task(called(verifier, one.sign_request("callee", method="GET", target="/a")))
            for one in strangers
        ]
        for _ in range(20):
            await called(verifier, client.sign_request("callee", method="GET", target="/a"))
            await asyncio.sleep(0)
        assert not any(one.done() for one in waiting)
        hanging.set()
        assert {peer.service for peer in await asyncio.gather(*waiting)} == {one.service for one in strangers}

    asyncio.run(program())


def test_a_guard_that_asks_a_file_is_asked_on_another_thread(callee: Make, client: Identity, tmp_path: Any) -> None:
    guard = Noting(FileReplayGuard(tmp_path / "replay"))

    async def program() -> None:
        verifier = callee(replay=guard)
        token = client.sign_request("callee", method="GET", target="/a")
        answers = await asyncio.gather(*(called(verifier, token) for _ in range(20)), return_exceptions=True)
        assert [type(answer) for answer in answers].count(Peer) == 1
        assert [type(answer) for answer in answers].count(Replayed) == 19
        assert THREAD() not in guard.threads

    asyncio.run(program())


class Threads(FileReplayGuard):
    """A guard in a file that notes its threads."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.threads: list[int] = []

    def claim(self, issuer: str, jti: str, until: float) -> bool:
        self.threads.append(THREAD())
        return super().claim(issuer, jti, until)


class Held(Threads):
    """Such a guard on a disk, wherever its folder is. Its next claim hangs after `hang`, until ``goes_on``."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.goes_on, self.hangs = threading.Event(), False

    def hang(self) -> None:
        self.goes_on.clear()
        self.threads, self.hangs = [], True

    async def hanging(self) -> None:
        async with asyncio.timeout(8):
            while self.hangs:
                await asyncio.sleep(0)

    def claim(self, issuer: str, jti: str, until: float) -> bool:
        if self.hangs:
            self.hangs = False
            assert self.goes_on.wait(10)
        won = super().claim(issuer, jti, until)
        self.in_memory = False
        return won


def test_claims_that_wait_together_are_made_by_two_threads_at_most(
    callee: Make, client: Identity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = Held(tmp_path / "replay")
    verifier = callee(replay=guard)
    monkeypatch.setattr(ClaimTurns, "LONGEST_WAIT", 60)

    async def program() -> None:
        await called(verifier, client.sign_request("callee", method="GET", target="/a"))
        tokens = [client.sign_request("callee", method="GET", target="/a") for _ in range(50)]
        guard.hang()
        calls = [asyncio.create_task(called(verifier, one)) for one in tokens * 2]
        await guard.hanging()  # the first claim is being made, and all others wait
        guard.goes_on.set()
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert Counter(map(type, answers)) == {Peer: 50, Replayed: 50}
        assert len(set(guard.threads)) <= 2, "a turn that is about to end may make some"
        assert THREAD() not in guard.threads

    for _ in range(2):  # each time in another loop
        asyncio.run(program())


def test_a_process_that_may_have_no_more_threads_refuses_claims_and_recovers(
    callee: Make, client: Identity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verifier = callee(replay=FileReplayGuard(tmp_path / "replay"))
    # In a loop of its own: a turn of this loop's that has not ended yet would make the claims below.
    asyncio.run(called(verifier, client.sign_request("callee", method="GET", target="/a")))

    async def program() -> None:
        with monkeypatch.context() as limited:

            def refuse(*_: object) -> None:
                raise RuntimeError("can't start new thread")

            limited.setattr(ThreadPoolExecutor, "submit", refuse)
            for _ in range(3):
                token = client.sign_request("callee", method="GET", target="/a")
                with pytest.raises(RuntimeError):
                    await asyncio.wait_for(called(verifier, token), 8)
        assert (await called(verifier, token)).service == "client", "it was never claimed"

    asyncio.run(program())


@pytest.mark.skipif(not os.access(IN_MEMORY, os.W_OK), reason="there is no tmpfs")
def test_a_guard_in_a_tmpfs_is_asked_in_the_loop(callee: Make, client: Identity) -> None:
    with TemporaryDirectory(dir=IN_MEMORY) as folder:
        guard = Threads(Path(folder) / "replay")

        async def program() -> None:
            verifier, other = callee(replay=guard), callee(replay=FileReplayGuard(Path(folder) / "replay"))
            for _ in range(3):
                token = client.sign_request("callee", method="GET", target="/a")
                assert (await called(verifier, token)).service == "client"
                with pytest.raises(Replayed):
                    await called(other, token)

        asyncio.run(program())
        first, *others = guard.threads
        assert first != THREAD(), "it is not known yet where the folder is"
        assert set(others) == {THREAD()}


def test_an_ended_loop_is_forgotten(callee: Make, client: Identity, tmp_path: Path) -> None:
    verifier = callee(replay=FileReplayGuard(tmp_path / "replay"))
    loops = WeakSet[asyncio.AbstractEventLoop]()

    async def program() -> None:
        loops.add(asyncio.get_running_loop())
        await called(verifier, client.sign_request("callee", method="GET", target="/a"))

    for _ in range(3):
        asyncio.run(program())

    def forgotten() -> bool:
        gc.collect()
        return not loops

    until(forgotten, what="the end of the last turn, which refers to its loop,")


def test_a_claim_that_hangs_holds_up_neither_the_loop_nor_those_behind_it_for_long(
    callee: Make, client: Identity, tmp_path: Path
) -> None:
    guard = Held(tmp_path / "replay")

    async def program() -> None:
        verifier = callee(replay=guard)
        await called(verifier, client.sign_request("callee", method="GET", target="/a"))
        guard.hang()
        hanging = asyncio.create_task(called(verifier, client.sign_request("callee", method="GET", target="/a")))
        await guard.hanging()
        tokens = [client.sign_request("callee", method="GET", target="/a") for _ in range(20)]
        answers = await asyncio.wait_for(asyncio.gather(*(called(verifier, one) for one in tokens)), 8)
        assert len(answers) == 20
        assert not hanging.done()
        guard.goes_on.set()
        assert (await hanging).service == "client"

    asyncio.run(program())


def test_a_caller_who_no_longer_waits_for_a_claim_disturbs_no_other(
    callee: Make, client: Identity, tmp_path: Path
) -> None:
    guard = Held(tmp_path / "replay")

    async def program() -> None:
        verifier = callee(replay=guard)
        await called(verifier, client.sign_request("callee", method="GET", target="/a"))
        guard.hang()
        token = client.sign_request("callee", method="GET", target="/a")
        gone = asyncio.create_task(called(verifier, token))
        await guard.hanging()
        gone.cancel()
        with suppress(asyncio.CancelledError):
            await gone
        guard.goes_on.set()
        assert (await called(verifier, client.sign_request("callee", method="GET", target="/a"))).service == "client"
        with pytest.raises(Replayed):  # it was accepted, though the caller did not learn of it
            await called(verifier, token)

    asyncio.run(program())


def test_a_source_that_cannot_say_what_it_remembers_is_asked_on_another_thread() -> None:
    class Asked(Keys):
        threads: ClassVar[list[int]] = []

        def key(self, kid: str) -> TrustedKey:
            self.threads.append(THREAD())
            return super().key(kid)

    keys = Asked()
    keys.add(CALLER, rsa_key("caller"))

    async def program() -> None:
        verifier = AsyncVerifier(
            Verifier(keys, audience="resource-service", allow={"client-service": ()}, clock=lambda: NOW)
        )
        request: Any = {"method": METHOD, "target": TARGET, "body": BODY, "headers": HEADERS}
        assert (await verifier.verify(honest_token(rsa_key("caller")), **request)).id == CALLER
        assert len(keys.threads) == 1
        assert THREAD() not in keys.threads

    asyncio.run(program())


def test_a_transaction_of_a_known_minter_asks_nothing_more(registry: MemoryRegistry, callee: Make) -> None:
    client = registry.identity("client")
    registry.set_domain(minters={"client"})
    client.trust.refresh()
    user = User("ada", "https://issuer.test", frozenset({"read"}), None, 2**32, {})
    asked: list[int] = []
    answered = registry.call
    registry.call = lambda *a, **k: (asked.append(THREAD()), answered(*a, **k))[1]  # type: ignore[method-assign]

    async def program() -> None:
        verifier = callee()
        for expected in (True, False):
            transaction = client.mint_transaction(user, scope={"read"})
            asked.clear()
            headers = {"txn-token": transaction.carry()}
            token = client.sign_request("callee", method="GET", target="/a", headers=headers)
            peer = await verifier.verify(token, method="GET", target="/a", headers={"Txn-Token": headers["txn-token"]})
            assert peer.transaction == transaction
            assert bool(asked) is expected
            assert THREAD() not in asked

    asyncio.run(program())


def test_with_no_registry_the_answer_is_the_same_as_without_a_loop(
    registry: MemoryRegistry, callee: Make, client: Identity
) -> None:
    async def program() -> None:
        token = client.sign_request("callee", method="GET", target="/a")
        registry.down = True
        with pytest.raises(TrustUnavailable):
            await called(callee(), token)

    asyncio.run(program())


@pytest.mark.usefixtures("quiet_collector")
def test_a_forked_child_verifies_by_known_keys_and_by_those_that_must_be_fetched(
    registry: MemoryRegistry, callee: Make, client: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The threads that fetch for its parent are not in the child, be there as many as there may."""
    monkeypatch.setattr(AsyncVerifier, "WAITING", 1)
    verifier, stranger = callee(), registry.identity("stranger")

    def caller(identity: Identity) -> str:
        token = identity.sign_request("callee", method="GET", target="/a")
        return asyncio.run(asyncio.wait_for(called(verifier, token), 5)).service

    assert caller(client) == "client"
    assert Child(lambda: [caller(client), caller(stranger)]).result() == ["client", "stranger"]
    assert caller(stranger) == "stranger"
