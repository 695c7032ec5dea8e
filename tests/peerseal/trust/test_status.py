"""What a trust store says of itself."""

import json
import time

import pytest

from peerseal import Identity, TrustLimits
from peerseal.testing import Clock, MemoryRegistry
from peerseal.trust.store import ServiceStatus, TrustStatus
from tests.support.two_domains import BILLING, two_domains

QUIET = TrustLimits(poll_interval=3600)


@pytest.fixture
def client(registry: MemoryRegistry) -> Identity:
    return registry.identity("client")


def test_a_store_that_was_never_asked_is_not_ready_and_makes_no_call(registry: MemoryRegistry) -> None:
    registry.calls.clear()
    status = registry.trust_store(limits=QUIET).status()
    assert (status.ready, status.misses, status.services) == (False, 0, {})
    assert not registry.calls


def test_asking_for_the_status_makes_a_store_ready(registry: MemoryRegistry) -> None:
    trust = registry.trust_store(limits=TrustLimits(poll_interval=0.001))
    for _ in range(2_000):
        if trust.status().ready:
            return
        time.sleep(0.005)
    raise AssertionError("it never came to be ready")


def test_ages_misses_and_fetches(registry: MemoryRegistry, client: Identity, clock: Clock) -> None:
    trust = registry.trust_store(limits=QUIET)
    for _ in range(3):
        trust.key(client.credentials.key_id)
    clock.advance(10)
    status = trust.status()
    assert status.ready
    assert status.leads
    assert (status.hits, status.misses) == (2, 1)
    assert status.fetches == {"registry_keys": 1, "key_set": 1}
    service = status.services["test.internal/client"]
    assert (service.keys, service.age, service.good_for, service.failures) == (1, 10, 3590, 0)
    trust.refresh()
    assert trust.status().services["test.internal/client"].age == 0
    assert trust.status().fetches["changes"] == 1


def test_renewals_that_failed_are_counted(registry: MemoryRegistry, client: Identity, clock: Clock) -> None:
    trust = registry.trust_store(limits=QUIET)
    trust.key(client.credentials.key_id)
    registry.down = True
    clock.advance(400)
    trust.refresh()
    assert trust.status().services["test.internal/client"].failures == 1


def test_a_registry_whose_keys_have_expired_leaves_it_not_ready(
    registry: MemoryRegistry, client: Identity, clock: Clock
) -> None:
    trust = registry.trust_store(limits=QUIET)
    trust.key(client.credentials.key_id)
    clock.advance(10 * 365 * 24 * 3600)
    assert not trust.status().ready


def test_it_can_be_written_as_json_and_as_metrics(registry: MemoryRegistry, client: Identity) -> None:
    trust = registry.trust_store(limits=QUIET)
    trust.key(client.credentials.key_id)
    status = trust.status()
    assert json.loads(json.dumps(status.to_json()))["services"]["test.internal/client"]["keys"] == 1
    lines = status.metrics().splitlines()
    assert "peerseal_trust_ready 1" in lines
    assert 'peerseal_trust_fetches_total{document="key_set"} 1' in lines
    assert 'peerseal_trust_keys{service="test.internal/client"} 1' in lines


def test_services_after_the_first_hundred_count_together_with_their_worst_values() -> None:
    """The alert before keys are no longer believed has to see all of them."""
    services = {f"a/{number:03}": ServiceStatus(keys=1, age=1, good_for=3599, failures=0) for number in range(101)}
    services["a/101"] = ServiceStatus(keys=2, age=3000, good_for=600, failures=4)
    lines = TrustStatus(True, True, 0, 0, {}, services).metrics().splitlines()
    assert sum(line.startswith("peerseal_trust_good_for_seconds{") for line in lines) == 101
    for metric, value in {"keys": 3, "age_seconds": 3000, "good_for_seconds": 600, "renewal_failures": 4}.items():
        assert f'peerseal_trust_{metric}{{service="other"}} {value}' in lines


def test_foreign_domains_have_a_status_of_their_own(clock: Clock) -> None:
    with two_domains(clock) as domains:
        assert domains.trust.status().foreign == {}
        assert "foreign" not in domains.trust.status().to_json()
        domains.federate()
        domains.trust.key(domains.billing.credentials.key_id)
        status = domains.trust.status()
        assert status.services == {}
        assert status.foreign["partner.example"].services[BILLING].keys == 1
        assert json.loads(json.dumps(status.to_json()))["foreign"]["partner.example"]["ready"] is True
        lines = status.metrics().splitlines()
        assert 'peerseal_trust_foreign_ready{domain="partner.example"} 1' in lines
        assert 'peerseal_trust_foreign_fetch_failures_total{domain="partner.example"} 0' in lines
        assert f'peerseal_trust_keys{{service="{BILLING}"}} 1' in lines
