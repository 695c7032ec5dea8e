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
from peerseal.trust.beliefs import deadline_of
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
        self._deadline = deadline_of(verifier.trust)
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
        notice_fork()
        unverified = self._verifier.read(token)
        source = self._verifier.recall(unverified, headers)
        check = partial(
            self._verifier.check,
            unverified,
            method=method,
            target=target,
            body=body,
            headers=headers,
            scope=scope,
            source=source,
        )
        return await self.claim(await self._in_thread(check) if source is None else check())

    async def check_head(
        self, token: str, *, method: str, target: str, headers: Mapping[str, str] = _NO_HEADERS
    ) -> CheckedHead:
        """See `Verifier.check_head`."""
        notice_fork()
        unverified = self._verifier.read(token)
        source = self._verifier.recall(unverified, headers)
        check = partial(
            self._verifier.check_head, unverified, method=method, target=target, headers=headers, source=source
        )
        return await self._in_thread(check) if source is None else check()

    async def check_body(self, head: CheckedHead, body: bytes, *, scope: str | None = None) -> CheckedRequest:
        """See `Verifier.check_body`."""
        check = partial(self._verifier.check_body, head, body, scope=scope)
        may_wait = "tth" in head.claims and head.source is self._verifier.trust
        return await self._in_thread(check) if may_wait else check()

    async def claim(self, checked: CheckedRequest) -> Peer:
        """See `Verifier.claim`."""
        if isinstance(self._verifier.replay, MemoryReplayGuard):
            return self._verifier.claim(checked)
        return await asyncio.to_thread(self._verifier.claim, checked)

    async def _in_thread(self, check: Callable[[], R]) -> R:
        def check_in_time() -> R:
            with self._deadline():
                return check()

        return await asyncio.get_running_loop().run_in_executor(self._waiting, check_in_time)
