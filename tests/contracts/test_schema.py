"""Nodes and the schema of their database: which releases run together, and the error where they cannot."""

import json
import logging
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from click.testing import CliRunner, Result
from sqlalchemy import text

from demo.processes import environment
from registry.__main__ import main
from registry.app import create_app
from registry.domain.errors import SchemaRefused
from registry.storage.engine import WRITES, create_engine
from registry.storage.migrate import migrate, migrate_down, scripts
from registry.storage.schema import RELEASED_REVISION, SCHEMA_REVISION, read_schema
from tests.registry.driver import Driver, settings_at
from tests.support.keys import key
from tests.support.newer_release import AFTER_NEXT, NEXT, THIS, NewerRelease
from tests.support.postgres import Postgres
from tests.support.released import migrated
from tests.support.waiting import until


@pytest.fixture
def node(registry_database: str, tmp_path: Path) -> Driver:
    return Driver(registry_database, tmp_path / "home")


def readiness(node: Driver, query: str = "") -> tuple[int, bool, bool]:
    answer = node.client.get(f"/readyz{query}")
    members = answer.get_json()
    return answer.status_code, members["can_read"], members["schema"]


def execute(url: str, *statements: str) -> None:
    engine = create_engine(url)
    with engine.execution_options(**{WRITES: True}).begin() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


def test_a_node_serves_on_when_the_next_release_has_migrated_and_says_so_once(
    node: Driver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    release = NewerRelease(tmp_path / "next", {NEXT: THIS})
    assert release.migrate(node.url) == NEXT
    for query in ("", "?for=write", "", "?for=write"):
        assert readiness(node, query) == (200, True, True)
    assert sum("a newer version's" in record.message for record in caplog.records) == 1
    restarted = node.node()  # its `init` leaves the schema as it is
    assert readiness(restarted) == (200, True, True)
    restarted.join_token("billing")
    assert release.migrate_down(node.url) == THIS
    assert readiness(node) == (200, True, True)
    for each in (node, restarted):
        each.close()


def test_several_revisions_of_one_release_may_say_that_nodes_of_the_one_before_go_on(
    node: Driver, tmp_path: Path
) -> None:
    NewerRelease(tmp_path / "next", {NEXT: THIS, AFTER_NEXT: THIS}).migrate(node.url)
    assert readiness(node) == (200, True, True)
    node.close()


@pytest.mark.parametrize(
    "oldest",
    [
        pytest.param({NEXT: NEXT}, id="not compatible"),
        pytest.param({NEXT: THIS, AFTER_NEXT: NEXT}, id="two releases ahead"),
    ],
)
def test_a_node_is_not_ready_where_it_cannot_go_on_with_the_newer_schema(
    node: Driver, tmp_path: Path, caplog: pytest.LogCaptureFixture, oldest: dict[str, str]
) -> None:
    newest = NewerRelease(tmp_path / "next", oldest).migrate(node.url)
    for _ in range(3):
        assert readiness(node) == (503, False, False)
    told = [record.message for record in caplog.records if "not ready" in record.message]
    assert len(told) == 1
    assert newest in told[0]
    assert "peerseal-registry migrate --down" in told[0]
    with pytest.raises(SchemaRefused, match="start the newer version"):
        migrate(node.store.engine)
    node.close()


def test_a_node_is_not_ready_before_the_migration_and_names_the_command(
    registry_database: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "registry")
    node = Driver(registry_database, tmp_path / "home")
    migrate_down(node.store.engine)
    assert readiness(node) == (503, False, False)
    assert "run peerseal-registry migrate" in caplog.messages[-1]
    migrate(node.store.engine)
    assert readiness(node) == (200, True, True)
    assert caplog.messages[-1] == "ready again"
    node.close()


def test_a_change_of_the_schema_that_waits_for_a_long_reader_holds_up_no_call(
    postgres_url: str, tmp_path: Path
) -> None:
    node = Driver(postgres_url, tmp_path / "home")
    of_reader, of_command = (create_engine(postgres_url) for _ in range(2))
    token, statuses = node.join_token("billing", uses=1000), list[int]()
    with of_reader.connect() as reader, ThreadPoolExecutor(1) as other:
        reader.execute(text("SELECT count(*) FROM entries"))
        migration = other.submit(migrate_down, of_command)
        end = time.monotonic() + 6
        while time.monotonic() < end:
            statuses.append(node.join(key(), "billing", token).status_code)
        assert not migration.done()
        reader.rollback()
        assert migration.result() == RELEASED_REVISION
    assert set(statuses) == {201}
    of_reader.dispose()
    of_command.dispose()
    node.close()


@pytest.fixture(params=["sqlite", "postgres"])
def empty_database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/empty.sqlite3"
    server: Postgres = request.getfixturevalue("postgres")
    return server.new_database()


def test_a_node_on_an_empty_database_refuses_calls_for_now_and_names_the_command(
    empty_database: str, sqlite_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = Driver(sqlite_url, tmp_path / "home")
    client = create_app(settings_at(empty_database, keys.home)).test_client()
    for path in ("/.well-known/peerseal-registry", "/v1/changes?since=0", "/v1/services/billing/jwks.jwt"):
        assert client.get(path).status_code == 503
    members = client.get("/readyz").get_json()
    assert (members["can_read"], members["database"], members["schema"]) == (False, True, False)
    assert "the database is empty: run peerseal-registry init" in caplog.messages[-1]
    keys.close()


def run(url: str, home: Path, *arguments: str) -> Result:
    environ = {"REGISTRY_DATABASE_URL": url, "REGISTRY_HOME": str(home), "COLUMNS": "200"}
    return CliRunner().invoke(main, arguments, env=environ)


COMMANDS = [["services"], ["verify"], ["tidy"], ["status"], ["remember"], ["join-token", "create", "billing"]]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_commands_name_the_command_that_is_missing(node: Driver, tmp_path: Path, command: list[str]) -> None:
    empty = run(f"sqlite:///{tmp_path}/empty.sqlite3", node.home, *command)
    said = "Error: schema_refused: the database is empty: run peerseal-registry init\n"
    assert (empty.exit_code, empty.output) == (1, said)
    migrate_down(node.store.engine)
    behind = run(node.url, node.home, *command)
    assert behind.exit_code == 1
    assert len(behind.output.splitlines()) == 1
    assert behind.output.endswith("run peerseal-registry migrate\n")
    assert run(node.url, node.home, "migrate").output == f"schema revision: {SCHEMA_REVISION}\n"
    assert run(node.url, node.home, *command).exit_code == 0
    node.close()


def test_a_command_says_that_the_schema_is_a_newer_release_s(node: Driver, tmp_path: Path) -> None:
    release = NewerRelease(tmp_path / "next", {NEXT: NEXT})
    release.migrate(node.url)
    for command in (["services"], ["migrate"], ["migrate", "--down"], ["init"]):
        refused = run(node.url, node.home, *command)
        assert refused.exit_code == 1
        assert len(refused.output.splitlines()) == 1
        assert NEXT in refused.output
        assert "migrate --down" in refused.output
    release.migrate_down(node.url)
    assert run(node.url, node.home, "services").exit_code == 0
    node.close()


def test_a_database_that_was_migrated_half_way_names_the_command_which_goes_on(
    registry_database: str, tmp_path: Path
) -> None:
    migrated(registry_database, "0002")
    refused = run(registry_database, tmp_path, "tidy")
    assert (refused.exit_code, refused.output.rpartition(": ")[2]) == (1, "run peerseal-registry migrate\n")
    assert run(registry_database, tmp_path, "migrate").output == f"schema revision: {SCHEMA_REVISION}\n"
    assert run(registry_database, tmp_path, "tidy").exit_code == 0


def test_a_migration_that_is_killed_leaves_a_whole_revision_and_can_be_repeated(
    postgres_url: str, tmp_path: Path
) -> None:
    migrated(postgres_url, "0002")
    engine = create_engine(postgres_url)
    migrating = [sys.executable, "-m", "registry", "migrate"]
    env = environment({"REGISTRY_DATABASE_URL": postgres_url, "REGISTRY_HOME": str(tmp_path)})
    waits = text("SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'ledger_head'::regclass")
    with engine.begin() as other:
        other.execute(text("LOCK TABLE ledger_head IN SHARE MODE"))  # the trigger of 0003 waits for its end
        with subprocess.Popen(migrating, env=env) as process:
            until(lambda: other.execute(waits).scalar_one() > 0)
            process.kill()
    engine.dispose()
    refused = run(postgres_url, tmp_path, "tidy")
    assert refused.output.endswith("run peerseal-registry migrate\n")
    assert run(postgres_url, tmp_path, "migrate").output == f"schema revision: {SCHEMA_REVISION}\n"
    assert run(postgres_url, tmp_path, "tidy").exit_code == 0


def test_the_way_back_ends_at_the_last_release_and_may_be_repeated(registry_database: str, tmp_path: Path) -> None:
    node = Driver(registry_database, tmp_path / "home")
    for _ in range(2):
        down = run(node.url, node.home, "migrate", "--down", "--json")
        assert (down.exit_code, json.loads(down.output)) == (0, {"revision": RELEASED_REVISION})
    assert migrate(node.store.engine) == SCHEMA_REVISION
    assert node.registry.readiness().can_write
    node.close()


def test_the_way_back_is_refused_where_data_would_be_lost_which_it_names(node: Driver, tmp_path: Path) -> None:
    release = NewerRelease(tmp_path / "next", {NEXT: THIS, AFTER_NEXT: THIS})
    release.migrate(node.url)
    execute(node.url, f"INSERT INTO things_{NEXT} VALUES (1), (2)")
    with pytest.raises(SchemaRefused, match=f"nothing is changed.* 2 rows of things_{NEXT}$"):
        release.migrate_down(node.url)
    execute(node.url, f"DELETE FROM things_{NEXT}", f"INSERT INTO things_{AFTER_NEXT} VALUES (1)")
    with pytest.raises(SchemaRefused, match=f" 1 rows of things_{AFTER_NEXT}$"):
        release.migrate_down(node.url)
    with node.store.look() as connection:
        assert read_schema(connection).revision == AFTER_NEXT
    node.close()


def test_every_migration_since_the_last_release_says_who_can_go_on_and_leads_back() -> None:
    config = Config()
    config.set_main_option("script_location", str(scripts()))
    migrations = list(ScriptDirectory.from_config(config).iterate_revisions("head", RELEASED_REVISION))
    assert migrations[0].revision == SCHEMA_REVISION
    for migration in migrations:
        assert RELEASED_REVISION <= migration.module.oldest_node_revision <= migration.revision
        assert callable(migration.module.lost_by_downgrade)
        assert callable(migration.module.downgrade)
