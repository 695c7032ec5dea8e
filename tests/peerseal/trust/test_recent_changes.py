"""The list of recent changes, which is the same for all clients: asked for where the registry keeps no question."""

from dataclasses import replace

import pytest

from peerseal import TrustLimits, TrustStore
from peerseal.testing import Answer, Clock, MemoryRegistry
from tests.support.revoked import is_revoked
from tests.support.waiting import until

RECENT, CHANGES = "GET /v1/changes/recent.jwt", "GET /v1/changes"
POLLING = TrustLimits(wait=0.0, poll_interval=0.01, refresh_interval=24 * 3600.0)


@pytest.fixture
def trust(registry: MemoryRegistry, kid: str) -> TrustStore:
    """A store that knows the key, and whose background thread polls."""
    trust = registry.trust_store(limits=POLLING)
    trust.key(kid)
    return trust


def test_a_client_that_does_not_wait_asks_for_the_list_of_all_clients(
    registry: MemoryRegistry, trust: TrustStore, kid: str
) -> None:
    until(lambda: registry.calls[RECENT] > 3, 20, what="three questions")
    assert registry.calls[CHANGES] == 0
    registry.revoke(kid)
    until(lambda: is_revoked(trust, kid), 20, what="the refusal")
    assert registry.calls[CHANGES] == 0


def test_a_client_that_the_registry_does_not_let_wait_asks_for_it_too(registry: MemoryRegistry, kid: str) -> None:
    trust = registry.trust_store(limits=TrustLimits(poll_interval=0.01, refresh_interval=24 * 3600.0))
    trust.key(kid)
    until(lambda: registry.calls[RECENT] > 3, 20, what="three questions")
    assert registry.calls[CHANGES] == 1


def test_a_client_that_is_further_back_asks_for_the_changes_since_then(
    registry: MemoryRegistry, trust: TrustStore, kid: str
) -> None:
    registry.answers["/v1/changes/recent.jwt"] = Answer(200, registry.sign(registry.changes(3)).encode("ascii"))
    registry.revoke(kid)
    until(lambda: is_revoked(trust, kid), 20, what="the refusal")
    assert registry.calls[CHANGES] > 0


def test_a_cached_list_that_is_older_than_what_is_known_is_no_error(
    registry: MemoryRegistry, kid: str, caplog: pytest.LogCaptureFixture
) -> None:
    registry.answers["/v1/changes/recent.jwt"] = registry.call("GET", "/v1/changes/recent.jwt")
    other = registry.identity("other").credentials.key_id
    trust = registry.trust_store(limits=POLLING)
    trust.key(other)
    until(lambda: registry.calls[CHANGES] > 0, 20, what="a question for what came after")
    assert trust.key(other).kid == other
    assert "cannot follow" not in caplog.text


def test_a_registry_without_that_list_is_asked_for_the_changes(
    registry: MemoryRegistry, trust: TrustStore, kid: str
) -> None:
    registry.answers["/v1/changes/recent.jwt"] = Answer(404, b"")
    registry.revoke(kid)
    until(lambda: is_revoked(trust, kid), 20, what="the refusal")


HOUR = 3600


def test_a_client_of_a_mirror_that_missed_the_changes_goes_by_the_lists(
    registry: MemoryRegistry, kid: str, clock: Clock
) -> None:
    """A mirror has no changes since an entry, and its recent changes begin later."""
    registry.lasting = True
    trust = registry.trust_store(limits=replace(POLLING, poll_interval=3600.0))
    trust.key(kid)
    for number in range(3):
        registry.identity(f"other-{number}")
    only_the_last(registry)
    clock.advance(HOUR - 60)
    trust.refresh()
    clock.advance(HOUR - 60)
    assert trust.key(kid).kid == kid


def test_a_client_of_a_mirror_that_missed_a_revocation_goes_by_the_lists(
    registry: MemoryRegistry, kid: str, clock: Clock
) -> None:
    registry.lasting = True
    other = registry.identity("client").credentials.key_id
    trust = registry.trust_store(limits=replace(POLLING, poll_interval=3600.0))
    trust.key(kid)
    registry.revoke(kid)
    registry.identity("other")
    only_the_last(registry)
    clock.advance(60)
    for _ in range(2):
        trust.refresh()
        clock.advance(60)
    assert is_revoked(trust, kid)
    assert trust.key(other).kid == other


def only_the_last(registry: MemoryRegistry) -> None:
    """The registry is a mirror from now on, and its list of recent changes has the last entry alone."""
    registry.answers["/v1/changes"] = Answer(404, b"")
    recent = registry.changes(len(registry.ledger.entries) - 1)
    registry.answers["/v1/changes/recent.jwt"] = Answer(200, registry.sign(recent).encode("ascii"))
