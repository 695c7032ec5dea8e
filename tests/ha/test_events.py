"""What happens to a registry's infrastructure, each time under load: `make ha`, which prints the table of costs.

The events are in the order of this file: the last ones leave a cluster that waits for no standby.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.ha.cluster import ASYNCHRONOUS, Member
from tests.ha.deployment import OWNER
from tests.ha.load import Attempt, longest
from tests.ha.peers import PEERS
from tests.ha.site import Costs, Event, Site
from tests.support.newer_release import NEXT, THIS, NewerRelease

pytestmark = [pytest.mark.ha, pytest.mark.timeout(180)]

REFUSED_WITHIN = 10.0
"""Seconds within which a write is refused, or a document in memory read: 5, and the wait for one of two busy cores."""
RECOVERED_WITHIN = 10.0
"""Seconds after a promotion in which registrations succeed again."""
HEALTH_WITHIN = 0.1
"""Seconds in which 95 of 100 calls of /healthz are answered; the others have to wait for a core."""
NOTICED_WITHIN = 2.0
"""Seconds after a promotion in which both nodes have noticed a fork."""
HELD_BACK = 1.5
"""Seconds of writes that no standby gets."""


def nothing_but_writes(costs: Costs) -> None:
    """The event cost writes for a while, and nothing else."""
    assert costs.reads.refused == []
    assert (costs.lost, costs.refusals, costs.verifying) == (0, [], PEERS)


def percentile(attempts: Sequence[Attempt], share: float) -> float:
    return sorted(attempt.seconds for attempt in attempts)[int(share * len(attempts))]


# ---- the nodes


def test_a_rolling_restart_costs_no_call(site: Site) -> None:
    with site.event("rolling restart of the nodes", probed=False) as event:
        site.deployment.roll()
        site.deployment.wait_until_serving()
    nothing_but_writes(event.costs)
    assert event.costs.writes.refused == []


def test_a_node_that_is_killed_costs_the_writes_that_it_had_begun(site: Site) -> None:
    with site.event("a node killed", probed=False) as event:
        site.deployment.nodes[0].kill()
        time.sleep(3)
        site.deployment.nodes[0].start()
        site.deployment.wait_until_serving()
    nothing_but_writes(event.costs)
    assert event.costs.writes.outage < 2


def test_a_migration_under_load_and_the_way_back_cost_no_call(site: Site, tmp_path: Path) -> None:
    """The nodes are of the release before: they serve on, and start, with the newer schema."""
    newer, database = NewerRelease(tmp_path, {NEXT: THIS}), site.deployment.database_url(OWNER)
    with site.event("migration by one revision, and back", probed=False) as event:
        assert newer.migrate(database) == NEXT
        site.deployment.grant()
        site.deployment.roll()
        assert newer.migrate_down(database) == THIS
        event.wait_for_writes()
    nothing_but_writes(event.costs)
    assert event.costs.writes.refused == []


# ---- the database


@dataclass(frozen=True)
class Failure:
    """What happens to the primary, and how it ends."""

    name: str
    happens: Callable[[Member], None]
    ends: Callable[[Member], None]
    cuts_off: bool = False


FAILURES = [
    Failure("primary killed", Member.kill, Member.start),
    Failure("primary frozen", Member.freeze, Member.thaw),
    Failure("primary's host unreachable", Member.cut_off, Member.connect, cuts_off=True),
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.name)
def test_a_primary_that_goes_away_and_comes_back_costs_writes_for_a_while(site: Site, failure: Failure) -> None:
    name = f"{failure.name}, synchronous"
    if failure.cuts_off and not site.can_cut_off:
        why = "network namespaces need root, ip, unshare and nsenter"
        site.table.leave_out(name, why)
        (pytest.fail if os.environ.get("CI") else pytest.skip)(why)
    primary = site.cluster.wait_until_whole()
    with site.event(name) as event:
        failure.happens(primary)
        try:
            site.cluster.promoted(primary)
            event.wait_for_writes(RECOVERED_WITHIN)
        finally:
            failure.ends(primary)
            site.cluster.rejoin(primary)
        event.wait_for_writes()
    costs = event.costs
    nothing_but_writes(costs)
    assert costs.slowest_refusal < REFUSED_WITHIN
    assert percentile(costs.health, 0.95) < HEALTH_WITHIN
    assert [attempt for attempt in costs.warm if attempt.refusal is not None] == []
    assert longest(costs.warm) < REFUSED_WITHIN


def test_a_primary_that_waits_for_no_standby_is_written_to_only_where_that_is_allowed(site: Site) -> None:
    with site.event("asynchronous, until allowed", probed=False) as event:
        site.cluster.replicate(ASYNCHRONOUS)
        site.deployment.roll()
        for node in site.deployment.nodes:
            assert node.ready()[0] == 200
            assert node.ready("write")[0] == 503
        site.deployment.roll(**ALLOWED)
        event.wait_for_writes()
    nothing_but_writes(event.costs)


ALLOWED = {"REGISTRY_ALLOW_ASYNC_REPLICATION": "1"}


@pytest.fixture
def asynchronous(site: Site) -> Site:
    """Commits wait for no standby, and the nodes may write all the same."""
    site.cluster.replicate(ASYNCHRONOUS)
    if any(node.settings | ALLOWED != node.settings for node in site.deployment.nodes):
        site.deployment.roll(**ALLOWED)
    return site


def lose_what_no_standby_has(site: Site, primary: Member, event: Event) -> None:
    """The primary ends with it; both nodes notice, and write nothing after it."""
    primary.kill_postgres()
    promoted = site.cluster.promoted(primary)
    noticed = site.deployment.seconds_until_forked()
    event.name += f", fork noticed after {noticed:.1f} s"
    size = site.ledger_size(promoted)
    event.lost_at_first = site.lost(event.registrations, promoted)
    event.go_on_writing()
    time.sleep(HELD_BACK)
    assert [node.ready("write")[0] for node in site.deployment.nodes] == [503, 503]
    assert site.ledger_size(promoted) == size, "nothing is written on the new branch"
    site.cluster.rejoin(primary)
    assert event.lost_at_first > 0
    assert noticed < NOTICED_WITHIN


def test_entries_that_a_fail_over_lost_come_back_from_a_copy_of_the_ledger(asynchronous: Site) -> None:
    site = asynchronous
    primary = site.cluster.wait_until_whole()
    with site.event("primary killed, asynchronous, restored", probed=False) as event:
        site.cluster.hold_replication_back(primary)
        time.sleep(HELD_BACK)
        event.stop_writing()
        copy = site.deployment.keep_ledger()
        lose_what_no_standby_has(site, primary, event)
        site.deployment.restore(copy)
        event.wait_for_writes()
    assert (event.costs.lost, event.costs.refusals, event.costs.verifying) == (0, [], PEERS)


def test_peers_go_on_after_a_fail_over_whose_losses_no_copy_has(asynchronous: Site) -> None:
    site = asynchronous
    primary = site.cluster.wait_until_whole()
    with site.event("primary killed, asynchronous, declared", probed=False) as event:
        site.cluster.hold_replication_back(primary)
        time.sleep(HELD_BACK)
        event.stop_writing()
        lose_what_no_standby_has(site, primary, event)
        site.deployment.declare_new_history()
        event.wait_for_writes()
    assert event.costs.lost == event.lost_at_first, "they are gone"
    assert (event.costs.refusals, event.costs.verifying) == ([], PEERS)
