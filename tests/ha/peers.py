"""Ten services that call each other all the time, each with keys and a cache of its own, as library users have them."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from peerseal import Identity, Verifier
from peerseal.errors import PeersealError

PEERS: Final = 10
PAUSE: Final = 0.5
"""Seconds between two calls that a peer gets."""
PATIENCE: Final = 30.0
"""Seconds in which a peer finds out by itself that a registry is to be believed again."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A good call that a peer refused, and the code."""

    peer: str
    code: str
    at: float


class Peers:
    """All of them, in threads of this process. As a context manager they are started, and stopped at the end."""

    def __init__(self, registry: str, join_token: Callable[[str], str], folder: Path) -> None:
        self.refusals: list[Refusal] = []
        self._registry, self._join_token, self._folder = registry, join_token, folder
        self._names = [f"peer-{number}" for number in range(PEERS)]
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._identities: dict[str, Identity] = {}
        self._verifiers: dict[str, Verifier] = {}

    def __enter__(self) -> Self:
        with ThreadPoolExecutor(PEERS) as pool:
            self._identities = dict(zip(self._names, pool.map(self.join, self._names), strict=True))
        for name, identity in self._identities.items():
            self._verifiers[name] = Verifier(
                identity.trust, audience=name, allow={"*": ()}, replay=identity.replay_guard()
            )
        for number, name in enumerate(self._names):
            caller = self._identities[self._names[number - 1]]
            self._threads.append(threading.Thread(target=self._be_called, args=(name, caller)))
            self._threads[-1].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        for identity in self._identities.values():
            identity.stop()

    def join(self, service: str) -> Identity:
        """A service that has registered its key."""
        folder = self._folder / service
        return Identity(
            service,
            registry=self._registry,
            join_token=self._join_token(service),
            key_dir=folder / "keys",
            cache_dir=folder / "cache",
            alg="ES256",
        ).start()

    def refusals_since(self, moment: float) -> list[Refusal]:
        """The good calls of others that peers refused after that moment."""
        return [refusal for refusal in self.refusals if refusal.at > moment]

    def that_verify(self, caller: Identity) -> set[str]:
        """The peers that verify a call of that newcomer, soon enough, without being restarted or told."""
        with ThreadPoolExecutor(PEERS) as pool:
            verified = pool.map(lambda name: self._comes_to_verify(name, caller), self._names)
            return {name for name, true in zip(self._names, verified, strict=True) if true}

    def _comes_to_verify(self, name: str, caller: Identity) -> bool:
        deadline = time.monotonic() + PATIENCE
        while self._refusal(name, caller) is not None:
            if time.monotonic() > deadline:
                return False
            time.sleep(PAUSE)
        return True

    def _be_called(self, name: str, caller: Identity) -> None:
        while not self._stopping.wait(PAUSE):
            code = self._refusal(name, caller)
            if code is not None:
                self.refusals.append(Refusal(name, code, time.monotonic()))

    def _refusal(self, name: str, caller: Identity) -> str | None:
        token = caller.sign_request(name, method="GET", target="/")
        try:
            self._verifiers[name].verify(token, method="GET", target="/")
        except PeersealError as error:
            return error.code
        return None
