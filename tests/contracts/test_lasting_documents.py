"""Signed documents that all nodes sign alike: once for each change, and once in each signing period."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import pytest

from peerseal import TrustLimits, TrustStore
from peerseal.protocol.documents.changes import Changes
from peerseal.protocol.documents.current import CurrentServices
from peerseal.protocol.names import make_kid, service_id
from peerseal.transport.fetch import Answer
from tests.registry.driver import DOMAIN, Clock, Driver
from tests.registry.in_process import InProcess
from tests.support.keys import key

PATHS = ("/v1/services/billing/jwks.jwt", "/v1/services/billing/policy.jwt", "/v1/domain.jwt", "/v1/federation.jwt")
DAY = 24 * 3600


def bodies(node: Driver, *more: str) -> dict[str, tuple[bytes, str]]:
    """The documents and their ETags, by path."""
    return {
        path: (answer.data, answer.headers["ETag"]) for path in (*PATHS, *more) if (answer := node.client.get(path))
    }


def test_all_nodes_answer_with_the_same_bytes(registry: Driver, clock: Clock) -> None:
    billing = registry.joined(key(), "billing")
    registry.joined(key(), "shipping")
    statement = f"/v1/services/billing/keys/{billing.public.thumbprint}.jwt"
    clock.forward(1000)
    first = bodies(registry, statement)
    clock.forward(1000)
    registry.joined(key(), "another")
    other = registry.node()
    try:
        assert bodies(other, statement) == first
    finally:
        other.close()


def test_an_unchanged_document_is_signed_again_in_the_next_period(registry: Driver, clock: Clock) -> None:
    registry.joined(key(), "billing")
    before = bodies(registry)
    clock.forward(registry.settings.limits.signing_period)
    after = bodies(registry)
    assert all(before[path] != after[path] for path in PATHS)
    issued_at = registry.key_set("billing").issued_at
    assert 0 <= clock() - issued_at < registry.settings.limits.signing_period
    assert bodies(registry) == after


def test_a_document_covers_the_entry_that_last_changed_its_service(registry: Driver) -> None:
    registry.joined(key(), "billing")
    covered = registry.key_set("billing")
    registry.joined(key(), "shipping")
    again = registry.key_set("billing")
    assert (again.seq, again.head) == (covered.seq, covered.seq)


def test_a_document_covers_as_many_entries_as_a_client_asks_for(registry: Driver) -> None:
    registry.joined(key(), "billing")
    registry.joined(key(), "shipping")
    head = registry.key_set("shipping").seq
    document = registry.key_set("billing", f"?seq={head}")
    assert document.head == head > document.seq


def test_a_change_is_in_the_next_answer_of_each_node(registry: Driver) -> None:
    registry.joined(key(), "billing")
    other = registry.node()
    try:
        before = bodies(other)
        added = registry.joined(key(), "billing")
        assert added.public.thumbprint in {one.public.thumbprint for one in other.key_set("billing").keys}
        assert bodies(other)[PATHS[0]] != before[PATHS[0]]
    finally:
        other.close()


def test_changes_name_the_entry_that_changed_each_service(registry: Driver) -> None:
    registry.joined(key(), "billing")
    since = registry.key_set("billing").seq
    registry.joined(key(), "shipping")
    registry.joined(key(), "billing")
    changes = registry.changes(since)
    found = {name.partition("/")[2]: entry for name, entry in changes.last_changes.items()}
    assert {name: found[name] for name in ("billing", "shipping")} == {
        "billing": registry.key_set("billing").seq,
        "shipping": registry.key_set("shipping").seq,
    }


def test_the_list_of_a_block_has_the_services_that_it_changed_last(registry: Driver, clock: Clock) -> None:
    registry.joined(key(), "billing")
    first = registry.key_set("billing").seq
    registry.joined(key(), "billing")
    clock.forward(registry.settings.limits.current_resign_after)
    found = registry.read(CurrentServices, registry.got("/v1/current/0.jwt"))
    entry = found.services[registry.key_set("billing").subject]
    assert entry == registry.key_set("billing").seq > first
    assert found.seq >= entry


@pytest.mark.parametrize("name", ["1", "99999999999", "-1", "00", "x", "1000000000000"])
def test_there_is_no_list_of_a_block_after_the_newest_entry(registry: Driver, name: str) -> None:
    registry.joined(key(), "billing")
    answer = registry.client.get(f"/v1/current/{name}.jwt")
    assert (answer.status_code, answer.get_json()["code"]) == (404, "block_not_found")


def test_one_list_of_recent_changes_answers_all_callers_for_a_second(registry: Driver, clock: Clock) -> None:
    registry.joined(key(), "billing")
    first = registry.client.get("/v1/changes/recent.jwt")
    assert first.headers["Cache-Control"] == "public, max-age=1, no-transform"
    registry.joined(key(), "shipping")
    assert registry.client.get("/v1/changes/recent.jwt").data == first.data
    clock.forward(1)
    changes = registry.read(Changes, registry.got("/v1/changes/recent.jwt"))
    assert changes.since == 0
    assert changes.last_changes[registry.key_set("shipping").subject] == registry.key_set("shipping").seq


def test_a_list_of_recent_changes_is_the_same_while_nothing_changes(registry: Driver, clock: Clock) -> None:
    registry.joined(key(), "billing")
    etag = registry.client.get("/v1/changes/recent.jwt").headers["ETag"]
    clock.forward(2)
    again = registry.client.get("/v1/changes/recent.jwt", headers={"If-None-Match": etag})
    assert again.status_code == 304
    clock.forward(registry.settings.limits.changes_resign_after)
    assert registry.client.get("/v1/changes/recent.jwt").headers["ETag"] != etag


def test_a_list_of_recent_changes_names_revoked_keys(registry: Driver, clock: Clock) -> None:
    revoked = registry.joined(key(), "billing")
    registry.operator_ends(revoked, "billing")
    changes = registry.read(Changes, registry.got("/v1/changes/recent.jwt"))
    assert [kid.rpartition("/")[2] for kid in changes.revoked] == [revoked.public.thumbprint]


def test_a_list_of_recent_changes_begins_where_more_services_changed_than_it_lists(registry: Driver) -> None:
    most = 2
    node = registry.node(limits=replace(registry.settings.limits, recent_listed=most))
    try:
        for service in ("billing", "shipping", "another"):
            registry.joined(key(), service)
        changes = node.read(Changes, node.got("/v1/changes/recent.jwt"))
    finally:
        node.close()
    assert [name.partition("/")[2] for name in changes.services] == ["shipping", "another"]
    assert changes.since == registry.key_set("billing").seq


def test_that_a_document_does_not_exist_may_be_cached_for_a_second(registry: Driver) -> None:
    registry.joined(key(), "billing")
    absent = "A" * 43
    for path in (
        "/v1/services/shipping/jwks.jwt",
        f"/v1/services/billing/keys/{absent}.jwt",
        "/v1/current/9.jwt",
        "/ledger/tile/0/999",
    ):
        answer = registry.client.get(path)
        assert (answer.status_code, answer.headers["Cache-Control"]) == (404, "public, max-age=1, no-transform"), path
        private = registry.client.get(path, headers={"Authorization": "Bearer a.b.c"})
        assert "public" not in private.headers["Cache-Control"], path
    assert registry.client.delete(f"/v1/services/billing/keys/{absent}").headers["Cache-Control"] == "no-store"


class Statuses(InProcess):
    """Counts the statuses of the registry's answers about services."""

    def __init__(self, registry: Driver) -> None:
        super().__init__(registry)
        self.statuses: Counter[int] = Counter()

    def call(self, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        answer = super().call(method, path, body=body, headers=headers)
        self.statuses[answer.status] += path.startswith("/v1/services/")
        return answer


def test_more_than_99_of_100_refreshes_of_a_day_are_answered_304(registry: Driver, clock: Clock) -> None:
    """Documents are signed again twice a day, and changes of other services cost nothing."""
    names = [f"service-{number}" for number in range(2)]
    kids = [make_kid(service_id(DOMAIN, name), registry.joined(key(), name).public.thumbprint) for name in names]
    fetcher, limits = Statuses(registry), TrustLimits(poll_interval=3600.0, wait=0.0)
    trust = TrustStore("http://registry", pin=registry.pin, limits=limits, clock=clock, fetcher=fetcher)
    for kid in kids:
        trust.key(kid)
    fetcher.statuses.clear()
    for number in range(int(DAY / limits.refresh_interval)):
        clock.forward(limits.refresh_interval)
        if number % 12 == 0:
            registry.joined(key(), "another")
        trust.refresh()
    refreshes = fetcher.statuses.total()
    assert refreshes >= len(kids) * DAY / limits.refresh_interval
    assert fetcher.statuses[304] > 0.99 * refreshes, fetcher.statuses
