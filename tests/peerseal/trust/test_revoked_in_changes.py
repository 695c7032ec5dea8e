"""The list of changes names revoked keys: they are refused before their key sets are fetched."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from peerseal import TrustLimits, TrustStore
from peerseal.errors import InvalidName, MalformedToken, RevokedKey
from peerseal.protocol.documents.changes import Changes
from peerseal.testing import Answer, Clock, MemoryRegistry
from tests.support.between import Between, Gate
from tests.support.patient import PatientRegistry, served
from tests.support.waiting import until

JWK_SET = "GET /v1/services/client/jwks.jwt"
JWK_SET_PATH = "/v1/services/client/jwks.jwt"
QUIET = TrustLimits(poll_interval=3600.0, refresh_interval=10 * 24 * 3600.0)


@pytest.fixture
def trust(registry: MemoryRegistry) -> TrustStore:
    return registry.trust_store(limits=QUIET)


def test_a_revoked_key_is_refused_while_its_key_set_cannot_be_fetched(
    registry: MemoryRegistry, trust: TrustStore, kid: str
) -> None:
    trust.key(kid)
    registry.revoke(kid)
    registry.answers[JWK_SET_PATH] = Answer(503, b"")
    trust.refresh()
    with pytest.raises(RevokedKey):
        trust.key(kid)


def test_the_other_keys_of_the_service_stay_good(registry: MemoryRegistry, trust: TrustStore) -> None:
    one, other = registry.identity("client"), registry.identity("client")
    for each in (one, other):
        trust.key(each.credentials.key_id)
    registry.revoke(one.credentials.key_id)
    registry.answers[JWK_SET_PATH] = Answer(503, b"")
    trust.refresh()
    assert trust.key(other.credentials.key_id).kid == other.credentials.key_id
    with pytest.raises(RevokedKey):
        trust.key(one.credentials.key_id)


def test_a_mirror_with_an_old_key_set_does_not_bring_the_key_back(
    registry: MemoryRegistry, trust: TrustStore, clock: Clock, kid: str
) -> None:
    trust.key(kid)
    old = registry.call("GET", JWK_SET_PATH)
    registry.revoke(kid)
    registry.answers[JWK_SET_PATH] = old
    for _ in range(3):
        trust.refresh()
        clock.advance(10)
        with pytest.raises(RevokedKey):
            trust.key(kid)


def test_a_second_revocation_is_in_force_while_the_first_still_waits_for_its_key_set(
    registry: MemoryRegistry, trust: TrustStore
) -> None:
    one, other = registry.identity("client").credentials.key_id, registry.identity("client").credentials.key_id
    registry.identity("other")
    for each in (one, other):
        trust.key(each)
    trust.watch([f"{registry.domain}/other"])
    registry.answers[JWK_SET_PATH] = Answer(503, b"")
    for kid in (one, other):
        registry.revoke(kid)
        trust.refresh()
        with pytest.raises(RevokedKey):
            trust.key(kid)


def test_a_revocation_is_in_force_while_a_fetch_of_the_key_set_hangs(registry: MemoryRegistry) -> None:
    gate, hung = Gate(JWK_SET_PATH), threading.Event()
    fetcher = Between(registry, lambda path: gate.hold(path.partition("?")[0]) if hung.is_set() else None)
    trust = registry.trust_store(limits=QUIET, fetcher=fetcher)
    kids = [registry.identity("client").credentials.key_id for _ in range(2)]
    callee = f"{registry.domain}/callee"
    registry.set_policy("callee", {"client": ["read"]})
    trust.policy(callee)
    for kid in kids:
        trust.key(kid)
    hung.set()
    with ThreadPoolExecutor(2) as pool:
        registry.revoke(kids[0])
        first = pool.submit(trust.refresh)  # applies the changes, and then hangs
        gate.wait_until_reached()
        registry.revoke(kids[1])
        second = pool.submit(trust.refresh)
        until = time.monotonic() + 10
        while trust.recall(kids[1], callee) is not None:
            assert time.monotonic() < until, "the second revocation is not in force"
            time.sleep(0.01)
        gate.open()
        first.result()
        second.result()
    for kid in kids:
        with pytest.raises(RevokedKey):
            trust.key(kid)


def test_a_list_that_is_older_than_the_key_set_revokes_nothing(
    registry: MemoryRegistry, trust: TrustStore, kid: str
) -> None:
    """Such a list contradicts the registry's own key set. Only a list that is newer takes trust away."""
    list_before = registry.changes(1)
    registry.identity("other")
    trust.key(kid)
    forged = replace(list_before, revoked=(kid,))
    registry.answers["/v1/changes"] = Answer(200, registry.sign(forged).encode())
    trust.refresh()
    assert trust.key(kid).kid == kid


def test_a_registry_of_the_release_before_lists_no_revoked_keys_and_is_followed(
    registry: MemoryRegistry, trust: TrustStore, kid: str
) -> None:
    trust.key(kid)
    registry.revoke(kid)
    claims = registry.changes(2).claims()
    assert claims.pop("revoked") == [kid]
    assert Changes.from_claims(claims).revoked == ()


@pytest.mark.parametrize("revoked", [None, "kid", {}, [7], ["no kid"], [None]])
def test_a_list_with_revoked_keys_of_another_shape_is_refused(registry: MemoryRegistry, revoked: object) -> None:
    claims = registry.changes(1).claims() | {"revoked": revoked}
    with pytest.raises((MalformedToken, InvalidName)):
        Changes.from_claims(claims)


def test_while_a_key_set_waits_for_its_fetch_further_changes_are_waited_for_as_long_as_ever() -> None:
    """A shorter wait would end at all peers at the same time, and all would fetch together."""
    with PatientRegistry() as registry, served(registry) as url:
        one, other = (registry.identity("client").credentials.key_id for _ in range(2))
        trust = TrustStore(url, pin=registry.pin, limits=TrustLimits(poll_interval=0.01))
        try:
            trust.key(one)
            until(lambda: registry.asking == 1)
            asked, fetched = len(registry.log), registry.calls[JWK_SET]
            registry.revoke(one)
            until(lambda: registry.calls[JWK_SET] > fetched)
            registry.revoke(other)
            until(lambda: trust.recall(other, f"{registry.domain}/callee") is None)
            until(lambda: registry.calls[JWK_SET] > fetched + 1)
        finally:
            trust.stop()
        questions = [call.path for call in registry.log[asked:] if call.path.startswith("/v1/changes")]
    assert ["&wait=15" in path for path in questions[:2]] == [True, True]
