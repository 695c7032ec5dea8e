"""A node that is connected to a standby, which has yet to receive what the node knows: that is no fork."""

import logging
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.domain.errors import Lagging, LedgerForked
from registry.services.authority.ledger_memory import FILE
from tests.contracts.test_fork import forked_metric, outcome, ready, shown
from tests.contracts.test_fork_recovery import run
from tests.contracts.test_fork_witnesses import look, restarted
from tests.registry.driver import Clock, Driver
from tests.support.keys import key
from tests.support.postgres import Postgres, running_postgres
from tests.support.waiting import until

pytestmark = pytest.mark.slow


@pytest.fixture
def primary() -> Iterator[Postgres]:
    with running_postgres(uuid.uuid4().hex) as server:
        yield server


def caught_up(node: Driver) -> bool:
    """Whether the ledger passes, on a standby that receives what it lacks meanwhile."""
    try:
        return look(node)
    except Lagging:
        return False


def reader_on(standby: Postgres, registry: Driver) -> Driver:
    """A node of the registry, which is connected to the standby from now on, once that has caught up."""
    registry.url = standby.has(registry.url)
    reader = restarted(registry)
    until(lambda: caught_up(reader))
    return reader


def test_a_lagging_standby_is_behind_and_a_diverged_one_has_forked(
    primary: Postgres, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registry = Driver(primary.new_database(), tmp_path / "home", allow_async_replication=True)
    registry.joined(key(), "billing")
    assert look(registry)
    with primary.standby() as standby:
        reader_on(standby, registry)
        standby.execute("SELECT pg_wal_replay_pause()")
        registry.joined(key(), "late")
        assert look(registry)
        note = registry.got("/ledger/checkpoint")
        with caplog.at_level(logging.ERROR), shown(lambda: note) as url:
            for node in (restarted(registry), restarted(registry, checkpoint_urls=(url,))):
                node.registry.watch.ask()
                assert outcome(node.client.get("/v1/changes?since=1")) == (503, "behind")
                assert ready(node) == (503, False)
                assert forked_metric(node) == 0
            memory = (registry.home / FILE).read_bytes()
            (registry.home / FILE).unlink()
            fresh = restarted(registry, checkpoint_urls=(url,))
            fresh.registry.watch.ask()
            assert outcome(fresh.client.get("/v1/changes?since=1")) == (503, "behind")
            (registry.home / FILE).write_bytes(memory)
            told = run(registry, "status")
            assert (told.exit_code, "ledger: behind" in told.output) == (1, True)
        assert "FORKED" not in caplog.text
        standby.execute("SELECT pg_wal_replay_resume()")
        until(lambda: caught_up(fresh))
        assert fresh.client.get("/v1/changes?since=1").status_code == 200

        standby.execute("SELECT pg_promote()")
        assert look(fresh), "with all that was seen"
        registry.joined(key(), "lost")
        assert look(registry)
        with pytest.raises(LedgerForked):
            restarted(registry).registry.watch.look()
    registry.close()


def test_what_a_node_on_a_standby_that_lags_has_in_memory_is_served(primary: Postgres, tmp_path: Path) -> None:
    clock = Clock(time.time())
    registry = Driver(primary.new_database(), tmp_path / "home", clock, allow_async_replication=True)
    registry.joined(key(), "billing")
    assert look(registry)
    with primary.standby() as standby:
        reader = reader_on(standby, registry)
        warm = reader.got("/v1/services/billing/jwks.jwt")
        standby.execute("SELECT pg_wal_replay_pause()")
        registry.joined(key(), "late")
        assert look(registry)
        assert look(reader), "and what the other node of this host remembers is known from now on"
        with pytest.raises(Lagging):
            look(reader)
        clock.forward(reader.settings.limits.resign_after + 1)
        assert reader.got("/v1/services/billing/jwks.jwt") == warm
        assert outcome(reader.client.get("/v1/domain.jwt")) == (503, "behind")
    registry.close()


def test_a_standby_without_an_earlier_head_has_another_ledger_however_short(primary: Postgres, tmp_path: Path) -> None:
    registry = Driver(primary.new_database(), tmp_path / "home", allow_async_replication=True)
    other = Driver(primary.new_database(), tmp_path / "other", allow_async_replication=True)
    other.joined(key(), "billing")
    for _ in range(4):
        assert look(registry)
        registry.joined(key(), "billing")
    assert look(registry)
    with primary.standby() as standby:
        registry.url = standby.has(other.url)
        with pytest.raises(LedgerForked):
            restarted(registry).registry.watch.check()
    registry.close()
    other.close()
