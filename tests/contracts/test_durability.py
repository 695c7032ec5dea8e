"""Acknowledged writes stay: a PostgreSQL that could lose it, or takes no writes, is not written to."""

import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import text

from registry.storage.durability import Durability, DurabilityGuard
from registry.storage.engine import create_engine
from registry.storage.unit import Store
from tests.registry.driver import Driver
from tests.support.keys import key
from tests.support.postgres import Postgres, running_postgres
from tests.support.waiting import until

DURABLE = Durability(
    in_recovery=False, read_only=False, fsync=True, full_page_writes=True, synchronous_standby_names="", standbys=0
)


@pytest.fixture
def own() -> Iterator[Postgres]:
    """A server of the test's own, whose settings it may change."""
    with running_postgres(uuid.uuid4().hex) as server:
        yield server


@contextmanager
def setting(server: Postgres, name: str, value: str) -> Iterator[None]:
    server.execute(f"ALTER SYSTEM SET {name} = {value}")
    server.execute("SELECT pg_reload_conf()")
    yield
    server.execute(f"ALTER SYSTEM RESET {name}")
    server.execute("SELECT pg_reload_conf()")


def registers(registry: Driver) -> tuple[int, str]:
    """A new service, which the laptop mode admits without further right: the status, and the code of a refusal."""
    service = f"s{uuid.uuid4().hex[:12]}"
    answer = registry.post_key(service, {"proof": registry.proof(key(), service)})
    return answer.status_code, answer.get_json().get("code", "") if answer.is_json else ""


def first_refusal(registry: Driver) -> tuple[int, str]:
    """Of many registrations; the server reads its new settings a moment after it was told to."""
    for _ in range(50):
        if (found := registers(registry))[0] != 201:
            break
    return found


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("name", ["fsync", "full_page_writes"])
def test_a_server_that_a_crash_harms_is_not_written_to(own: Postgres, tmp_path: Path, name: str) -> None:
    registry = Driver(own.new_database(), tmp_path / "home", dev=True)
    allowing = registry.node(dev=True, allow_async_replication=True)
    with setting(own, name, "off"):
        until(lambda: registers(registry) == (503, "storage_not_durable"))
        answer = registry.client.get("/readyz").get_json()
        assert (answer["can_read"], answer["can_write"], answer["durable"]) == (True, False, False)
        assert registers(allowing)[0] == 201
        assert allowing.client.get("/readyz").get_json()["can_write"]
    until(lambda: registers(registry)[0] == 201)
    allowing.close()
    registry.close()


@pytest.mark.slow
def test_a_read_only_server_is_refused_and_its_connections_are_dropped(own: Postgres, tmp_path: Path) -> None:
    registry = Driver(own.new_database(), tmp_path / "home", dev=True)
    registry.joined(key(), "billing")
    assert registry.client.get("/v1/services/billing/jwks.jwt").status_code == 200
    with setting(own, "default_transaction_read_only", "on"):
        until(lambda: registers(registry) == (503, "storage_read_only"))
        assert not registry.client.get("/readyz").get_json()["can_write"]
        assert registry.client.get("/v1/services/billing/jwks.jwt").status_code == 200
    until(lambda: registers(registry)[0] == 201)
    registry.close()


@pytest.mark.slow
def test_synchronous_commit_is_never_less_than_on(own: Postgres) -> None:
    store = Store(create_engine(own.new_database()))
    for given, expected in (("off", "on"), ("local", "on"), ("on", "on"), ("remote_apply", "remote_apply")):
        with setting(own, "synchronous_commit", given):
            store.engine.dispose()
            with store.write() as connection:
                assert connection.execute(text("SHOW synchronous_commit")).scalar_one() == expected
    store.engine.dispose()


@pytest.mark.slow
def test_a_commit_that_no_standby_confirmed_is_not_acknowledged(own: Postgres, tmp_path: Path) -> None:
    """An operator who cancels the wait makes PostgreSQL report success, with a warning."""
    registry = Driver(own.new_database(), tmp_path / "home", dev=True)
    registry.joined(key(), "billing")
    with setting(own, "synchronous_standby_names", "nowhere"), ThreadPoolExecutor(1) as pool:
        until(lambda: registry.registry.store.durability().synchronous_standby_names == "nowhere")  # type: ignore[union-attr]
        call = pool.submit(registers, registry)
        cancelled = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        while not call.done():
            own.execute(cancelled)
        assert call.result() == (503, "storage_unavailable")
    until(lambda: registers(registry)[0] == 201)
    registry.close()


@pytest.mark.thorough
@pytest.mark.slow
def test_a_commit_that_no_standby_confirms_is_refused_in_time(own: Postgres, tmp_path: Path) -> None:
    registry = Driver(own.new_database(), tmp_path / "home", dev=True)
    registry.joined(key(), "billing")
    with setting(own, "synchronous_standby_names", "nowhere"):
        assert first_refusal(registry) == (503, "storage_unavailable")
        began = time.monotonic()
        assert registers(registry) == (503, "storage_unavailable")
        assert time.monotonic() - began < 5
    until(lambda: registers(registry)[0] == 201)
    registry.close()


@pytest.mark.parametrize(
    ("names", "standbys", "loses"), [("", 0, False), ("", 1, True), (" ", 2, True), ("*", 2, False)]
)
def test_a_standby_must_be_waited_for(names: str, standbys: int, loses: bool) -> None:
    values = {name: getattr(DURABLE, name) for name in Durability.__dataclass_fields__}
    found = Durability(**{**values, "synchronous_standby_names": names, "standbys": standbys})
    trouble = DurabilityGuard().trouble(found)
    assert (trouble is not None) == loses
    assert trouble is None or "REGISTRY_ALLOW_ASYNC_REPLICATION=1" in trouble
    assert DurabilityGuard(allowed=True).trouble(found) is None
