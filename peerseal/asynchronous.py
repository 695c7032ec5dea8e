"""Verification in an asyncio program: nothing waits on the event loop's thread.

What memory can answer is verified at once, in the loop: it takes some forty microseconds. Only where a key or a policy
has to be fetched, or a guard asks a file or a server, a thread does that part. So a registry that hangs, and strangers
who make it be asked, hold up nobody whose key is known.
"""

import asyncio
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType

from peerseal.errors import Replayed
from peerseal.runtime.forks import in_each_child, notice_fork
from peerseal.transport.deadline import WouldWait, not_waiting
from peerseal.verify.replay.guards import MemoryReplayGuard
from peerseal.verify.request import Peer, Verifier

_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class AsyncVerifier:
    """Verifies as ``verifier`` does, with all that it knows and remembers."""

    WAITING = 8
    """Verifications that wait for the registry at once; further ones queue behind them, and nobody else does."""

    def __init__(self, verifier: Verifier) -> None:
        self._guard = verifier.replay
        self._claims = _Claims() if not isinstance(self._guard, MemoryReplayGuard) else None
        self._verifier = verifier if self._claims is None else verifier.with_guard(self._claims)
        self._renew_threads()
        in_each_child(self._renew_threads)

    def _renew_threads(self) -> None:
        """In a forked child there are none of the parent's, and a pool would wait for them for ever."""
        self._waiting = ThreadPoolExecutor(self.WAITING, thread_name_prefix="peerseal-verify")

    async def verify(
        self,
        token: str,
        *,
        method: str,
        target: str,
        body: bytes | Callable[[], bytes] = b"",
        headers: Mapping[str, str] = _NO_HEADERS,
        scope: str | None = None,
    ) -> Peer:
        """See `Verifier.verify`; a function in the place of the body must not wait."""

        def check() -> tuple[Peer, "_Claim | None"]:
            peer = self._verifier.verify(token, method=method, target=target, body=body, headers=headers, scope=scope)
            return peer, self._claims.last if self._claims else None

        notice_fork()
        try:
            with not_waiting():
                peer, claim = check()
        except WouldWait:
            peer, claim = await asyncio.get_running_loop().run_in_executor(self._waiting, check)
        if claim is not None and not await asyncio.to_thread(self._guard.claim, *claim):
            raise Replayed("accepted before")
        return peer


_Claim = tuple[str, str, float]


class _Claims(threading.local):
    """A guard that leaves the claim to be made: what this thread's last verification would claim."""

    last: _Claim | None = None

    def claim(self, issuer: str, jti: str, until: float) -> bool:
        """See ReplayGuard."""
        self.last = issuer, jti, until
        return True
