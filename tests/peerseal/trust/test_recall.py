"""What memory alone can answer for one verification, which an event loop may ask for."""

from dataclasses import FrozenInstanceError, replace

import pytest

from peerseal import Identity, TrustLimits, TrustStore, Verifier
from peerseal.errors import CallerNotAllowed, TrustUnavailable
from peerseal.protocol.documents.frame import sign_document
from peerseal.testing import Answer, Clock, MemoryRegistry
from peerseal.trust.beliefs import KeySource, Recalled, deadline_of

CALLEE = "test.internal/callee"
LIMITS = TrustLimits(poll_interval=3600.0, refresh_interval=10 * 24 * 3600.0)
"""The background thread sleeps through the test, which calls ``refresh`` itself; time alone makes nothing due."""


@pytest.fixture
def client(registry: MemoryRegistry) -> Identity:
    return registry.identity("client", limits=LIMITS)


@pytest.fixture
def kid(client: Identity) -> str:
    return client.credentials.key_id


@pytest.fixture
def minter(registry: MemoryRegistry) -> str:
    """The key of a service that mints transaction tokens."""
    return registry.identity("minter", limits=LIMITS).credentials.key_id


@pytest.fixture
def trust(registry: MemoryRegistry, kid: str) -> TrustStore:
    """A store that has answered one request's questions."""
    trust = registry.trust_store(limits=LIMITS)
    trust.key(kid)
    trust.policy(CALLEE)
    registry.calls.clear()
    return trust


def recalled(trust: TrustStore, kid: str, recorded_kid: str | None = None) -> Recalled:
    found = trust.recall(kid, CALLEE, recorded_kid=recorded_kid)
    assert found is not None
    return found


def test_what_memory_holds_is_recalled_as_the_store_answers_it(
    registry: MemoryRegistry, trust: TrustStore, kid: str
) -> None:
    found: KeySource = recalled(trust, kid)
    assert found.domain == trust.domain
    assert found.key(kid) is found.recorded_key(kid) is trust.key(kid)
    assert found.policy(CALLEE) is trust.policy(CALLEE) is None
    assert registry.calls.total() == 0


def test_the_policy_is_the_same_object_as_the_stores(registry: MemoryRegistry, kid: str) -> None:
    registry.set_policy("callee", {"client": ["read"]})
    trust = registry.trust_store(limits=LIMITS)
    trust.key(kid)
    policy = trust.policy(CALLEE)
    assert policy is not None
    assert recalled(trust, kid).policy(CALLEE) is policy


def test_what_memory_lacks_is_not_recalled_and_not_fetched(registry: MemoryRegistry, kid: str) -> None:
    trust = registry.trust_store(limits=LIMITS)
    for ask in (lambda: trust.domain, lambda: trust.key(kid), lambda: trust.policy(CALLEE)):
        registry.calls.clear()
        assert trust.recall(kid, CALLEE) is None
        assert registry.calls.total() == 0
        ask()
    assert trust.recall(kid, CALLEE) is not None


def test_for_a_transaction_token_its_signers_key_and_the_settings_are_needed(
    registry: MemoryRegistry, trust: TrustStore, kid: str, minter: str
) -> None:
    for ask in (lambda: trust.key(minter), trust.settings):
        registry.calls.clear()
        assert trust.recall(kid, CALLEE, recorded_kid=minter) is None
        assert registry.calls.total() == 0
        ask()
    found = recalled(trust, kid, minter)
    assert found.key(minter) is found.recorded_key(minter) is trust.key(minter)
    assert found.settings() is trust.settings()


def test_a_policy_of_another_domain_is_none_as_the_store_says_too(trust: TrustStore, kid: str) -> None:
    audience = "other.internal/callee"
    assert trust.policy(audience) is None
    found = trust.recall(kid, audience)
    assert found is not None
    assert found.policy(audience) is None


def test_a_question_about_another_subject_is_refused(trust: TrustStore, kid: str, minter: str) -> None:
    trust.key(minter)
    found = recalled(trust, kid)
    for ask in (
        lambda: found.key(minter),
        lambda: found.recorded_key(minter),
        lambda: found.policy("test.internal/other"),
        found.settings,
    ):
        with pytest.raises(TrustUnavailable, match="not recalled"):
            ask()


def test_a_revoked_key_is_not_recalled(registry: MemoryRegistry, trust: TrustStore, kid: str) -> None:
    registry.revoke(kid)
    trust.refresh()
    assert trust.recall(kid, CALLEE) is None


@pytest.mark.parametrize("renewed", ["key", "policy"])
def test_nothing_is_recalled_after_the_offline_limit(
    trust: TrustStore, registry: MemoryRegistry, clock: Clock, kid: str, renewed: str
) -> None:
    """Neither where the key alone is too old, nor where the policy alone is."""
    clock.advance(LIMITS.offline_limit - 1)
    assert trust.recall(kid, CALLEE) is not None
    clock.advance(1)
    assert trust.recall(kid, CALLEE) is None
    trust.key(kid) if renewed == "key" else trust.policy(CALLEE)
    assert trust.recall(kid, CALLEE) is None
    trust.policy(CALLEE) if renewed == "key" else trust.key(kid)
    assert trust.recall(kid, CALLEE) is not None


def test_nothing_is_recalled_once_the_registrys_keys_have_expired(
    registry: MemoryRegistry, clock: Clock, kid: str
) -> None:
    ends_soon = replace(registry.registry_keys(), expires_at=int(clock()) + 10)
    signed = sign_document(ends_soon, registry.root)
    registry.answers["/.well-known/peerseal-registry"] = Answer(200, signed.encode())
    trust = registry.trust_store(limits=LIMITS)
    trust.key(kid)
    trust.policy(CALLEE)
    assert trust.recall(kid, CALLEE) is not None
    clock.advance(10)
    assert trust.recall(kid, CALLEE) is None


def test_nothing_is_recalled_after_a_pause_before_the_registry_confirms_it(registry: MemoryRegistry, kid: str) -> None:
    uptime = [1000.0]
    trust = registry.trust_store(limits=LIMITS, uptime=lambda: uptime[0])
    trust.key(kid)
    trust.policy(CALLEE)
    assert trust.recall(kid, CALLEE) is not None
    uptime[0] += 7200
    assert trust.recall(kid, CALLEE) is None
    trust.key(kid)
    trust.policy(CALLEE)
    assert trust.recall(kid, CALLEE) is not None


def test_it_is_frozen_and_does_not_follow_what_the_store_learns_later(
    registry: MemoryRegistry, trust: TrustStore, kid: str
) -> None:
    found = recalled(trust, kid)
    registry.revoke(kid)
    trust.refresh()
    assert found.key(kid).kid == kid
    with pytest.raises(FrozenInstanceError):
        found.domain = "other.internal"  # type: ignore[misc]


def test_what_was_recalled_counts_as_found_in_memory(trust: TrustStore, kid: str, minter: str) -> None:
    before = trust.status()
    trust.recall(kid, CALLEE)
    trust.recall(minter, CALLEE)
    after = trust.status()
    assert (after.hits, after.misses) == (before.hits + 1, before.misses)


def test_a_verifier_decides_by_it_as_by_the_store(
    registry: MemoryRegistry, client: Identity, clock: Clock, kid: str
) -> None:
    trust = registry.trust_store(limits=LIMITS)
    token = client.sign_request("callee", method="GET", target="/")
    trust.key(kid)
    trust.policy(CALLEE)
    verifier = Verifier(recalled(trust, kid), audience="callee", allow={"client": ()}, clock=clock)
    assert verifier.verify(token, method="GET", target="/").service == "client"
    registry.set_policy("callee", {})
    trust.refresh()
    verifier = Verifier(recalled(trust, kid), audience="callee", allow={"client": ()}, clock=clock)
    with pytest.raises(CallerNotAllowed):
        verifier.verify(token, method="GET", target="/")


def test_a_source_without_a_deadline_needs_none(trust: TrustStore, kid: str) -> None:
    for keys in (trust, recalled(trust, kid)):
        with deadline_of(keys)():
            assert keys.key(kid).kid == kid
