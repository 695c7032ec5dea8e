"""Verification in an asyncio program: nothing waits on the event loop's thread.

What memory can answer is verified in the loop, which takes some forty microseconds. Where a key or a policy must be
fetched, or the replay guard asks a disk or a server, a thread does that part. So a registry that hangs delays no caller
whose key is known.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Required, TypedDict, Unpack
from weakref import WeakKeyDictionary

from peerseal.runtime.forks import in_each_child, notice_fork
from peerseal.runtime.tracing import traced
from peerseal.verify.replay.guards import FileReplayGuard, MemoryReplayGuard
from peerseal.verify.request import BodyLater, CheckedRequest, Peer, Verifier, of_caller


class Request(TypedDict, total=False):
    """The arguments of `Verifier.check` that describe the request."""

    method: Required[str]
    target: Required[str]
    body: bytes | Callable[[], bytes] | BodyLater
    headers: Mapping[str, str]
    scope: str | None


class _Claim:
    """A request that is about to be accepted, and the future of its outcome."""

    __slots__ = ("checked", "future", "outcome")

    def __init__(self, checked: CheckedRequest, future: "asyncio.Future[Peer]") -> None:
        self.checked = checked
        self.future = future
        self.outcome: Peer | BaseException | None = None

    def make(self, claim: Callable[[CheckedRequest], Peer]) -> None:
        """Asks the guard, in a thread."""
        try:
            self.outcome = claim(self.checked)
        except StopIteration as error:  # a future takes none
            self.outcome = RuntimeError(f"the claim ended early: {error!r}")
        except BaseException as error:
            self.outcome = error

    def tell(self) -> None:
        """Sets the future's outcome, in the loop."""
        if self.future.done():  # the caller was cancelled
            return
        if isinstance(self.outcome, Peer):
            self.future.set_result(self.outcome)
        else:
            self.future.set_exception(self.outcome or RuntimeError("the claim has no outcome"))


class ClaimTurns:
    """Makes the claims of one event loop at a guard that answers within microseconds. One turn of a thread makes all
    waiting claims, because a turn for each takes several times as long as a claim. A claim that hangs, as on a disk
    that does not answer, delays the claims that wait by `LONGEST_WAIT` seconds.

    It refers to no loop, so that it ends with its loop (`AsyncVerifier`).
    """

    LONGEST_WAIT = 0.2
    """Seconds for which a claim waits for others; then a thread of the pool makes it by itself."""

    def __init__(self, claim: Callable[[CheckedRequest], Peer], pool: ThreadPoolExecutor) -> None:
        self._claim = claim
        self._pool = pool
        self._waiting = deque[_Claim]()
        self._made = deque[_Claim]()
        self._turn_runs = self._loop_is_told = False

    async def claim(self, checked: CheckedRequest) -> Peer:
        """See `Verifier.claim`."""
        loop = asyncio.get_running_loop()
        one = _Claim(checked, loop.create_future())
        self._waiting.append(one)
        if not self._turn_runs:
            self._begin_turn(one)
        alone = loop.call_later(self.LONGEST_WAIT, self._make_alone, one)
        try:
            return await one.future
        finally:
            alone.cancel()

    def _begin_turn(self, one: _Claim) -> None:
        self._turn_runs = True
        try:
            self._pool.submit(self._turn)
        except BaseException:  # the process may have no more threads, or it ends
            self._turn_runs = False
            with suppress(ValueError):
                self._waiting.remove(one)
            raise

    def _turn(self) -> None:
        """In a thread: make all claims that wait."""
        self._make_waiting()
        self._turn_runs = False
        self._make_waiting()  # those that came before that line, when this turn still ran

    def _make_waiting(self) -> None:
        with suppress(IndexError):
            while True:
                self._make(self._waiting.popleft())

    def _make(self, one: _Claim) -> None:
        one.make(self._claim)
        self._made.append(one)
        if not self._loop_is_told:
            self._loop_is_told = True
            with suppress(RuntimeError):  # the loop has ended
                one.future.get_loop().call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        """In the loop: give out what was made."""
        self._loop_is_told = False
        while self._made:
            self._made.popleft().tell()

    def _make_alone(self, one: _Claim) -> None:
        """In the loop: the claim has waited for too long."""
        try:
            self._waiting.remove(one)
        except ValueError:
            return  # it is being made
        try:
            self._pool.submit(self._make, one)
        except RuntimeError as error:
            one.outcome = error
            one.tell()


class AsyncVerifier:
    """Verifies as ``verifier`` does, with its caches."""

    WAITING = 8
    """Threads for verifications that wait for the registry; further ones queue."""
    CLAIMING = 8
    """Threads for claims at a guard in a file. One is enough, unless claims hang."""

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier
        self._renew_threads()
        in_each_child(self._renew_threads)

    def _renew_threads(self) -> None:
        """A forked child has none of its parent's threads, and a pool would wait for them for ever."""
        self._waiting = ThreadPoolExecutor(self.WAITING, thread_name_prefix="peerseal-verify")
        self._claiming = ThreadPoolExecutor(self.CLAIMING, thread_name_prefix="peerseal-claim")
        self._claims: WeakKeyDictionary[asyncio.AbstractEventLoop, ClaimTurns] = WeakKeyDictionary()

    async def verify(self, token: str, **request: Unpack[Request]) -> Peer:
        """See `Verifier.verify`; a function ``body`` must not wait."""
        return await self.claim(await self.check(token, **request))

    @traced("peerseal.verify", describe=lambda checked: of_caller(checked.peer))
    async def check(self, token: str, **request: Unpack[Request]) -> CheckedRequest:
        """See `Verifier.read` and `Verifier.check`."""
        notice_fork()
        unverified = self._verifier.read(token)
        source = self._verifier.recall(unverified, request.get("headers", {}))
        if source is not None:
            return self._verifier.check(unverified, source=source, **request)
        check = partial(self._verifier.check, unverified, **request)
        return await asyncio.get_running_loop().run_in_executor(self._waiting, check)

    async def claim(self, checked: CheckedRequest) -> Peer:
        """See `Verifier.claim`."""
        guard = self._verifier.replay
        if isinstance(guard, MemoryReplayGuard) or (isinstance(guard, FileReplayGuard) and guard.in_memory):
            return self._verifier.claim(checked)
        if isinstance(guard, FileReplayGuard):
            return await self._claims_of(asyncio.get_running_loop()).claim(checked)
        return await asyncio.to_thread(self._verifier.claim, checked)

    def _claims_of(self, loop: asyncio.AbstractEventLoop) -> ClaimTurns:
        claims = self._claims.get(loop)
        if claims is None:
            claims = self._claims[loop] = ClaimTurns(self._verifier.claim, self._claiming)
        return claims
