"""What the registry goes on doing while its database fails over, is down, or says nothing."""

import socket
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest
from sqlalchemy import make_url

from registry.domain.errors import LedgerForked, StorageUnavailable
from registry.storage.engine import DatabaseTimeouts, create_engine
from registry.storage.migrate import migrate
from registry.storage.revisions import revisions
from registry.storage.unit import Store
from tests.registry.driver import Clock, Driver, entries_of
from tests.support.keys import key
from tests.support.postgres import Postgres, running_postgres


def test_after_a_fail_over_the_next_call_succeeds(postgres: Postgres, tmp_path: Path, clock: Clock) -> None:
    registry = Driver(url := postgres.new_database(), tmp_path / "home", clock)

    def fail_over() -> None:  # of this database alone, and over when this returns
        ended = f"pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = '{make_url(url).database}'"
        postgres.execute(f"SELECT {ended}")

    old = registry.joined(key(), "billing")
    for _ in range(3):
        before = registry.key_set("billing")
        fail_over()
        assert registry.key_set("billing") == before
        fail_over()
        registry.joined(key(), "billing")
        fail_over()
        assert registry.rotate(old, key(), "billing").status_code == 201
        assert len(registry.key_set("billing").keys) == len(before.keys) + 2
    registry.close()


@dataclass
class Outage:
    """A database of a test's own, and how to take it away and bring it back."""

    url: str
    begin: Callable[[], None]
    end: Callable[[], None]


@pytest.fixture(params=["sqlite", "postgres"])
def outage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Outage]:
    if request.param == "postgres":
        with running_postgres(uuid.uuid4().hex) as own:
            yield Outage(own.new_database(), own.stop, own.start)
            own.start()
    else:
        folder, gone = tmp_path / "database", tmp_path / "gone"
        folder.mkdir()
        yield Outage(f"sqlite:///{folder}/x.db", lambda: move(folder, gone), lambda: move(gone, folder))


def move(folder: Path, to: Path) -> None:
    folder.rename(to)


@pytest.mark.slow
def test_signed_answers_go_on_from_memory_while_the_database_is_really_down(
    outage: Outage, tmp_path: Path, clock: Clock
) -> None:
    registry = Driver(outage.url, tmp_path / "home", clock)
    registry.joined(key(), "billing")
    memory = ["/v1/services/billing/jwks.jwt", "/.well-known/peerseal-registry"]
    paths = [*memory, "/v1/services/billing/keys", "/v1/changes?since=0", "/readyz"]

    def statuses() -> list[int]:  # in a thread of its own, which has no connection yet
        with ThreadPoolExecutor(1) as pool:
            return list(pool.map(lambda path: registry.client.get(path).status_code, paths * 2))

    assert statuses() == [200] * 10
    outage.begin()
    if "sqlite" in outage.url:
        registry.registry.store.engine.dispose()  # open connections go on with a file that was moved
    clock.forward(100)
    assert statuses() == [200, 200, 503, 503, 503] * 2
    if "postgres" in outage.url:  # this thread's connection broke meanwhile
        assert registry.client.get(memory[0]).status_code == 200
    outage.end()
    assert statuses() == [200] * 10
    assert registry.client.get(memory[0]).status_code == 200
    registry.joined(key(), "billing")
    assert len(registry.key_set("billing").keys) == 2
    registry.close()


def test_a_connection_that_failed_is_not_asked_again(sqlite_url: str, tmp_path: Path) -> None:
    """SQLite makes an empty file where the database is gone, and who opened that would never see the one put back."""
    engine, file, gone = create_engine(sqlite_url), Path(make_url(sqlite_url).database or ""), tmp_path / "gone"
    migrate(engine)
    engine.dispose()
    file.rename(gone)
    asked = revisions(engine)
    with pytest.raises(StorageUnavailable):
        asked.head()
    gone.replace(file)
    assert asked.head() == 0
    engine.dispose()


def test_a_database_that_falls_silent_is_waited_for_once(
    registry: Driver, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections are accepted, and nothing is ever said: each further attempt would wait until its time is up."""
    before = registry.client.get("/.well-known/peerseal-registry").data
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        engine = create_engine(f"postgresql://x@127.0.0.1:{port}/x", DatabaseTimeouts(connect=1000))
        monkeypatch.setattr(registry.registry.store, "look", Store(engine).look)
        clock.forward(1000)
        for _ in range(3):
            assert registry.client.get("/.well-known/peerseal-registry").data == before
            clock.forward(1000)
            with pytest.raises(StorageUnavailable):
                revisions(engine).service("billing")
        silent.settimeout(0)
        silent.accept()
        with pytest.raises(BlockingIOError):
            silent.accept()


def test_a_known_authority_is_not_asked_for_at_every_call_while_the_database_is_down(
    registry: Driver, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[None] = []

    def down(_: Store) -> NoReturn:
        looked.append(None)
        raise StorageUnavailable("down")

    registry.registry.authority.current()
    monkeypatch.setattr(Store, "look", down)
    for expected in (1, 2):
        clock.forward(registry.settings.limits.registry_keys_cached)
        for _ in range(3):
            registry.registry.authority.current()
        assert len(looked) == expected


def test_a_database_that_is_not_there_is_told(tmp_path: Path) -> None:
    for url in (f"sqlite:///{tmp_path}/no/such/folder/x.db", f"postgresql:///x?host={tmp_path}"):
        store = Store(create_engine(url))
        with pytest.raises(StorageUnavailable), store.read():
            pass


def test_a_file_that_takes_the_place_of_the_database_is_noticed_by_a_running_node(
    sqlite_url: str, tmp_path: Path, clock: Clock
) -> None:
    """As when an operator copies a backup back, or restores the newest file, without stopping the node."""
    registry = Driver(sqlite_url, tmp_path / "home", clock)
    file, older, newer = Path(make_url(sqlite_url).database or ""), tmp_path / "older", tmp_path / "newer"
    registry.joined(key(), "billing")
    copy_database(file, older)
    registry.joined(key(), "late")
    warm = registry.got("/v1/services/billing/jwks.jwt")
    registry.registry.watch.look()
    copy_database(file, newer)
    put_in_place(older, file)
    with pytest.raises(LedgerForked):
        registry.registry.watch.look()
    assert registry.client.get("/readyz").get_json()["ledger"] is False
    assert registry.client.get("/v1/services/late/jwks.jwt").status_code == 503
    put_in_place(newer, file)
    registry.registry.watch.look()
    assert registry.got("/v1/services/billing/jwks.jwt") == warm
    registry.joined(key(), "newest")
    assert registry.changes(0).seq == len(entries_of(Store(create_engine(sqlite_url)))), "it is in the file"
    registry.close()


def copy_database(file: Path, to: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("VACUUM INTO ?", (str(to),))


def put_in_place(copy: Path, file: Path) -> None:
    for suffix in ("-wal", "-shm"):
        file.with_name(file.name + suffix).unlink(missing_ok=True)
    copy.replace(file)
