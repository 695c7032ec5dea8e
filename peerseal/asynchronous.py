"""Verification in an asyncio program: nothing waits on the event loop's thread.

What memory can answer is verified in the loop, which takes some forty microseconds. Where a key or a policy must be
fetched, or the replay guard asks a file or a server, a thread does that part. So a registry that hangs delays no caller
whose key is known.
"""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import MappingProxyType
from typing import TypeVar

from peerseal.runtime.forks import in_each_child, notice_fork
from peerseal.transport.deadline import WouldWait, not_waiting
from peerseal.verify.replay.guards import MemoryReplayGuard
from peerseal.verify.request import CheckedHead, CheckedRequest, Peer, Verifier

R = TypeVar("R")

_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class AsyncVerifier:
    """Verifies as ``verifier`` does, with its caches."""

    WAITING = 8
    """Threads for verifications that wait for the registry; further ones queue."""

    def __init__(self, verifier: Verifier) -> None:
        self._verifier = verifier
        self._renew_threads()
        in_each_child(self._renew_threads)

    def _renew_threads(self) -> None:
        """A forked child has none of its parent's threads, and a pool would wait for them for ever."""
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
        """See `Verifier.verify`; a function ``body`` must not wait."""
        head = await self.check_head(token, method=method, target=target, headers=headers)
        return await self.claim(await self.check_body(head, body, scope=scope))

    async def check_head(
        self, token: str, *, method: str, target: str, headers: Mapping[str, str] = _NO_HEADERS
    ) -> CheckedHead:
        """See `Verifier.check_head`."""
        unverified = self._verifier.read(token)
        return await self._checked(
            partial(self._verifier.check_head, unverified, method=method, target=target, headers=headers)
        )

    async def check_body(
        self, head: CheckedHead, body: bytes | Callable[[], bytes], *, scope: str | None = None
    ) -> CheckedRequest:
        """See `Verifier.check_body`."""
        return await self._checked(partial(self._verifier.check_body, head, body, scope=scope))

    async def claim(self, checked: CheckedRequest) -> Peer:
        """See `Verifier.claim`."""
        if isinstance(self._verifier.replay, MemoryReplayGuard):
            return self._verifier.claim(checked)
        return await asyncio.to_thread(self._verifier.claim, checked)

    async def _checked(self, check: Callable[[], R]) -> R:
        """What ``check`` gives: in the loop where memory has the answer, else in a thread."""
        notice_fork()
        try:
            with not_waiting():
                return check()
        except WouldWait:
            return await asyncio.get_running_loop().run_in_executor(self._waiting, check)
