"""Fetchers of an application's own: one that knows `Fetcher.call` alone, and one that has an `ask` of its own."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import pytest

from peerseal import TrustLimits
from peerseal.errors import DocumentRefused, FetchError, PeersealError, TrustUnavailable
from peerseal.testing import Clock, MemoryRegistry
from peerseal.transport.fetch import Answer, Fetcher
from tests.peerseal.trust.test_mirrors import ROOT, SET, Mirror

T = TypeVar("T")
QUIET = TrustLimits(poll_interval=3600.0, wait=0.0)


class Foreign(Fetcher):
    """An application's own fetcher, written for `ask` alone: it asks the registries in turn."""

    def __init__(self, *registries: Mirror | MemoryRegistry) -> None:
        self._registries = registries
        self._reading = False
        self.paths: list[str] = []

    def target(self, path: str) -> str:
        return path

    def call(self, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        return self._registries[0].call(method, path, body=body, headers=dict(headers or {}))

    def ask(
        self,
        path: str,
        read: Callable[[Answer], T | None],
        *,
        headers: Mapping[str, str] | None = None,
        wait: float = 0.0,
    ) -> T | None:
        assert not self._reading, "a question within the check of another one's answer"
        failure: PeersealError | None = None
        for registry in self._registries:
            self.paths.append(path.partition("?")[0])
            answer = registry.call("GET", path, headers=dict(headers or {}))
            self._reading = True
            try:
                return read(answer)
            except (FetchError, DocumentRefused) as error:
                failure = error
            finally:
                self._reading = False
        assert failure is not None
        raise failure


def test_the_next_answer_is_asked_for_where_one_is_refused(registry: MemoryRegistry, kid: str) -> None:
    lying = Mirror(registry)
    lying.answers[SET] = Answer(200, b"a.b.c")
    fetcher = Foreign(lying, registry)
    assert registry.trust_store(fetcher=fetcher, limits=QUIET).key(kid).kid == kid
    registry.answers[SET] = Answer(500, b"")
    with pytest.raises(TrustUnavailable, match="500"):
        registry.trust_store(fetcher=fetcher, limits=QUIET).key(kid)


def test_the_root_and_proofs_are_not_fetched_within_the_check_of_an_answer(
    registry: MemoryRegistry, clock: Clock, kid: str
) -> None:
    fetcher = Foreign(registry)
    trust = registry.trust_store(fetcher=fetcher, limits=QUIET)
    assert trust.key(kid).kid == kid
    registry.roll_signing_key()
    clock.advance(QUIET.cooldown)
    other = registry.identity("other").credentials.key_id
    assert trust.key(other).kid == other
    asked = fetcher.paths[fetcher.paths.index("/v1/services/other/jwks.jwt") :]
    assert asked == ["/v1/services/other/jwks.jwt", ROOT, "/ledger/proof"]


def test_the_answer_of_one_that_has_no_ask_of_its_own_is_asked_for_once(registry: MemoryRegistry, kid: str) -> None:
    registry.answers[SET] = Answer(200, b"a.b.c")
    with pytest.raises(TrustUnavailable):
        registry.trust_store(limits=QUIET).key(kid)
    assert registry.calls[f"GET {SET}"] == 1
