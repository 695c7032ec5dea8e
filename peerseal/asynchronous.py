"""Verification in an asyncio program: nothing waits on the event loop's thread.

What memory can answer is verified in the loop, which takes some forty microseconds. Where a key or a policy must be
fetched, or the replay guard asks a file or a server, a thread does that part. So a registry that hangs delays no caller
whose key is known.
"""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Required, TypedDict, Unpack

from peerseal.runtime.forks import in_each_child, notice_fork
from peerseal.verify.replay.guards import MemoryReplayGuard
from peerseal.verify.request import BodyLater, CheckedRequest, Peer, Verifier


class Request(TypedDict, total=False):
    """The arguments of `Verifier.check` that describe the request."""

    method: Required[str]
    target: Required[str]
    body: bytes | Callable[[], bytes] | BodyLater
    headers: Mapping[str, str]
    scope: str | None


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

    async def verify(self, token: str, **request: Unpack[Request]) -> Peer:
        """See `Verifier.verify`; a function ``body`` must not wait."""
        return await self.claim(await self.check(token, **request))

    async def check(self, token: str, **request: Unpack[Request]) -> CheckedRequest:
        """See `Verifier.read` and `Verifier.check`."""
        notice_fork()
        unverified = self._verifier.read(token)
        source = self._verifier.recall(unverified, request.get("headers", {}))
        check = partial(self._verifier.check, unverified, source=source, **request)
        if source is not None:
            return check()
        return await asyncio.get_running_loop().run_in_executor(self._waiting, check)

    async def claim(self, checked: CheckedRequest) -> Peer:
        """See `Verifier.claim`."""
        if isinstance(self._verifier.replay, MemoryReplayGuard):
            return self._verifier.claim(checked)
        return await asyncio.to_thread(self._verifier.claim, checked)
