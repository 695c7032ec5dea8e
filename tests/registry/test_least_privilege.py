"""The registry on PostgreSQL under the role of migrations/roles.sql: it lives, and cannot touch what was written."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect, make_url, text
from sqlalchemy.exc import ProgrammingError

from registry.domain.errors import SchemaRefused, StorageUnavailable
from registry.domain.rebuild import rebuild
from registry.storage.engine import create_engine as engine_of
from registry.storage.migrate import apply_roles
from registry.storage.queries.used_tokens import PURGE_EVERY
from registry.storage.tables import metadata
from tests.registry.driver import Clock, Driver, entries_of, tables_of
from tests.support.keys import key
from tests.support.newer_release import NEXT, THIS, NewerRelease
from tests.support.postgres import Postgres
from tests.support.waiters import waiters

ROLES = (Path(__file__).parents[2] / "migrations" / "roles.sql").read_text()
POLICY, DOMAIN = {"allow": {"*": ["read"]}}, {"minters": ["billing"], "issuers": []}
OWNER, APP = "peerseal_owner", "peerseal_app"


def as_role(url: str, role: str) -> str:
    return make_url(url).set(username=role).render_as_string(hide_password=False)


def run(url: str, script: str) -> None:
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        driver_connection = connection.connection.driver_connection
        assert driver_connection is not None
        driver_connection.execute(script)  # past SQLAlchemy, which gives a statement's % a meaning
    engine.dispose()


def apply_as(url: str, role: str) -> None:
    engine = engine_of(as_role(url, role))
    apply_roles(engine)
    engine.dispose()


@pytest.fixture(scope="module")
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="module")
def registry(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory, clock: Clock) -> Iterator[Driver]:
    """Made by the owner, and served as the application."""
    url, home = postgres.new_database(), tmp_path_factory.mktemp("home")
    run(url, ROLES)
    owner = Driver(as_role(url, OWNER), home, clock)
    apply_as(url, OWNER)
    driver = Driver(as_role(url, APP), home, clock, applicants=True)
    driver.operator = owner.operator
    owner.close()
    yield driver
    driver.close()


def test_the_registry_lives_its_whole_life_under_that_role(registry: Driver, clock: Clock) -> None:
    old, new, waiting = registry.joined(key(), "billing"), key(), key()
    assert registry.rotate(old, new, "billing").status_code == 201
    assert registry.end(old, "billing", "retired").status_code == 204
    clock.forward(PURGE_EVERY + 400)  # so that the next call purges the tokens that were used
    assert registry.rotate(new, child := key(), "billing").status_code == 201
    assert registry.operator_ends(new, "billing").status_code == 204
    assert {entry.kid.rpartition("/")[2] for entry in registry.key_set("billing").revoked} == {
        new.public.thumbprint,
        child.public.thumbprint,
    }
    made = registry.client.post("/v1/join-tokens", json={"service": "billing"}, headers=registry.operator)
    assert registry.client.delete(made.headers["Location"], headers=registry.operator).status_code == 204
    made = registry.client.post("/v1/operator-tokens", json={"role": "viewer", "ttl": 60}, headers=registry.operator)
    assert registry.client.delete(made.headers["Location"], headers=registry.operator).status_code == 204
    applied = registry.post_key("shipping", {"proof": registry.proof(waiting, "shipping")})
    assert applied.status_code == 202
    approve = f"/v1/services/shipping/keys/{waiting.public.thumbprint}/approve"
    assert registry.client.post(approve, headers=registry.operator).status_code == 201
    for path, settings in (("services/billing/policy", POLICY), ("services/billing/policy", None), ("domain", DOMAIN)):
        seen = {"If-Match": registry.client.get(f"/v1/{path}", headers=registry.operator).headers["ETag"]}
        body = settings or {"allow": None}
        assert registry.client.put(f"/v1/{path}", json=body, headers={**registry.operator, **seen}).status_code == 200
    assert rebuild(entries_of(registry.store)) == tables_of(registry.store)
    clock.forward(registry.settings.limits.spent_kept + 24 * 3600)
    assert registry.joined(key(), "billing")  # and with it goes what ended long ago
    assert len(tables_of(registry.store).join_tokens) == 1
    assert registry.client.get("/readyz").get_json()["ready"]


def test_who_waits_is_told_of_changes_under_that_role(registry: Driver) -> None:
    other = registry.node()
    admit = registry.join_token("billing")
    with waiters(registry, 2) as calls:
        other.join(key(), "billing", admit)
        assert [call.result(2).status_code for call in calls] == [200, 200]
        assert len(registry.registry.changes.waiting) == 0
    other.close()


def test_tiles_become_complete_under_that_role(registry: Driver) -> None:
    while len(entries_of(registry.store)) < 257:
        registry.join_token("billing")
    assert len(registry.client.get("/ledger/tile/0/000").data) == 256 * 32


def test_the_application_cannot_grant_itself_anything(registry: Driver) -> None:
    with pytest.raises(SchemaRefused, match="peerseal_app does not own the tables"):
        apply_as(registry.settings.database_url, APP)


@pytest.mark.parametrize("table", ["entries", "tiles", "audit"])
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE {table} SET {column} = {column}",
        "DELETE FROM {table}",
        "TRUNCATE {table}",
        "TRUNCATE {table} CASCADE",
        "ALTER TABLE {table} ADD COLUMN x integer",
        "ALTER TABLE {table} DISABLE TRIGGER ALL",
        "ALTER TABLE {table} RENAME TO other",
        "DROP TABLE {table}",
        "CREATE RULE other AS ON INSERT TO {table} DO INSTEAD NOTHING",
        "GRANT UPDATE ON {table} TO CURRENT_USER; UPDATE {table} SET {column} = {column}",
    ],
)
def test_what_was_appended_can_be_neither_changed_nor_removed(registry: Driver, table: str, statement: str) -> None:
    column = metadata.tables[table].columns.keys()[0]
    with (
        pytest.raises(ProgrammingError, match=r"permission denied|must be owner"),
        registry.store.engine.begin() as own,
    ):
        own.execute(text(statement.format(table=table, column=column)))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE keys SET spki = ''",
        "UPDATE keys SET service = 'other'",
        "DELETE FROM keys",
        "UPDATE operator_tokens SET role = 'admin'",
        "UPDATE operator_tokens SET expires_at = 9999999999",
        "UPDATE join_tokens SET uses = 10000",
        "DELETE FROM ledger_head",
        "INSERT INTO ledger_head VALUES (2, 0, '')",
        "DELETE FROM services",
        "INSERT INTO registry_documents VALUES (99, 'x')",
        "UPDATE alembic_version SET version_num = '0000'",
        "CREATE TABLE other (x integer)",
        "CREATE FUNCTION other() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
        "ALTER TABLE ledger_head DISABLE TRIGGER tell_of_ledger",
        "DROP FUNCTION peerseal_tell_of_ledger() CASCADE",
        "SET ROLE peerseal_owner",
    ],
)
def test_what_no_request_needs_is_refused_by_the_database(registry: Driver, statement: str) -> None:
    with pytest.raises(ProgrammingError, match=r"permission denied|must be"), registry.store.engine.begin() as own:
        own.execute(text(statement))


def test_every_table_is_named_in_the_grants(registry: Driver) -> None:
    with registry.store.engine.connect() as connection:
        tables = set(inspect(connection).get_table_names())
    assert tables == metadata.tables.keys() | {"alembic_version"}
    assert all(f"('{table}'," in ROLES for table in tables)


def test_the_application_alone_cannot_make_the_schema(postgres_url: str, tmp_path: Path) -> None:
    run(postgres_url, ROLES)
    with pytest.raises(StorageUnavailable, match=r"permission denied for schema public: run migrations/roles\.sql"):
        Driver(as_role(postgres_url, APP), tmp_path / "home")


def test_a_node_under_that_role_serves_on_when_the_next_release_has_migrated(
    postgres_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(postgres_url, ROLES)
    Driver(as_role(postgres_url, OWNER), tmp_path / "home").close()
    run(as_role(postgres_url, OWNER), ROLES)
    node = Driver(as_role(postgres_url, APP), tmp_path / "home")
    NewerRelease(tmp_path / "next", {NEXT: THIS}).migrate(as_role(postgres_url, OWNER))
    assert node.client.get("/readyz?for=write").get_json()["ready"]
    run(as_role(postgres_url, OWNER), f"REVOKE SELECT ON schema_revisions FROM {APP}")
    assert not node.client.get("/readyz").get_json()["schema"]
    assert "run migrations/roles.sql as the owner" in caplog.messages[-1]
    node.close()


@pytest.mark.parametrize(
    ("missing", "path"),
    [
        ("SELECT ON ledger_head", "/ledger/checkpoint"),
        ("SELECT ON services", "/v1/services/billing/jwks.jwt"),
        ("USAGE ON SCHEMA public", "/readyz"),
        ("USAGE ON SCHEMA public", "/v1/changes?since=1"),
    ],
)
def test_a_right_that_is_missing_is_an_outage_and_the_log_names_the_remedy(
    postgres_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, missing: str, path: str
) -> None:
    run(postgres_url, ROLES)
    owner = Driver(as_role(postgres_url, OWNER), tmp_path / "home")
    owner.joined(key(), "billing")
    run(as_role(postgres_url, OWNER), ROLES)
    node = Driver(as_role(postgres_url, APP), tmp_path / "home")
    run(postgres_url, f"REVOKE {missing} FROM {APP}")
    assert node.client.get(path).status_code == 503
    node.client.get("/readyz?for=write")
    assert "run migrations/roles.sql" in caplog.text
    assert "the database is empty" not in caplog.text
    run(postgres_url, ROLES)
    assert node.client.get(path).status_code == 200
    for driver in (owner, node):
        driver.close()
