"""Two processes of one host with a cache folder in common, and kids that neither has seen: what one has asked the
registry for, the other need not; and a renewal is no reason to turn a new key away.
"""

from pathlib import Path

import pytest

from peerseal import Identity, TrustLimits, TrustStore
from peerseal.errors import TrustUnavailable, UnknownKey
from peerseal.testing import Clock, MemoryRegistry

QUIET = TrustLimits(poll_interval=3600.0, wait=0.0)
"""The background threads sleep through the test."""
KEY_SET = "GET /v1/services/client/jwks.jwt"


def made_up(letter: str) -> str:
    """A kid of the service that is not registered."""
    return "test.internal/client/" + letter * 42 + "A"


@pytest.fixture
def client(registry: MemoryRegistry) -> Identity:
    return registry.identity("client")


@pytest.fixture
def processes(
    registry: MemoryRegistry, client: Identity, clock: Clock, tmp_path: Path
) -> tuple[TrustStore, TrustStore]:
    """Both know the service; the second has just renewed what it knew, and put it on disk."""
    one, other = (registry.trust_store(limits=QUIET, cache_dir=tmp_path / "cache") for _ in range(2))
    for trust in (one, other):
        assert trust.key(client.credentials.key_id).service_id.endswith("/client")
    clock.advance(QUIET.refresh_interval)
    other.refresh()
    registry.calls.clear()
    return one, other


def test_a_key_registered_right_after_a_renewal_is_found_at_once_by_every_process(
    registry: MemoryRegistry, clock: Clock, processes: tuple[TrustStore, TrustStore]
) -> None:
    clock.advance(1)
    newcomer = registry.identity("client")
    for trust in processes:
        assert trust.key(newcomer.credentials.key_id).kid == newcomer.credentials.key_id
    assert registry.calls[KEY_SET] == 1, "and one of them has asked for both"


def test_a_made_up_kid_costs_the_host_one_fetch_and_cooldown(
    registry: MemoryRegistry, clock: Clock, processes: tuple[TrustStore, TrustStore]
) -> None:
    one, other = processes
    for fetches, letter in enumerate("abc", start=1):
        with pytest.raises(UnknownKey):
            one.key(made_up(letter))
        with pytest.raises(TrustUnavailable) as caught:
            other.key(made_up(letter.upper()))
        assert 0 < caught.value.retry_after <= QUIET.cooldown + 1
        assert registry.calls[KEY_SET] == fetches
        clock.advance(QUIET.cooldown + 1)


def test_a_clock_that_was_set_back_is_no_endless_cooldown_for_the_others(
    registry: MemoryRegistry, clock: Clock, processes: tuple[TrustStore, TrustStore]
) -> None:
    one, other = processes
    clock.advance(100)
    with pytest.raises(UnknownKey):
        one.key(made_up("a"))
    clock.advance(-100)
    newcomer = registry.identity("client")
    assert other.key(newcomer.credentials.key_id).kid == newcomer.credentials.key_id


def test_a_failed_fetch_for_a_kid_is_the_whole_hosts_cooldown(
    registry: MemoryRegistry, clock: Clock, processes: tuple[TrustStore, TrustStore]
) -> None:
    one, other = processes
    newcomer = registry.identity("client")
    registry.down = True
    with pytest.raises(TrustUnavailable):
        one.key(newcomer.credentials.key_id)
    registry.down = False
    with pytest.raises(TrustUnavailable):
        other.key(newcomer.credentials.key_id)
    assert registry.calls[KEY_SET] <= 1
    clock.advance(QUIET.cooldown)
    assert other.key(newcomer.credentials.key_id).kid == newcomer.credentials.key_id
