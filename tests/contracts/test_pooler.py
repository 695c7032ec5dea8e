"""PostgreSQL with a PgBouncer in transaction mode, where each transaction may run on another connection."""

import logging
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from sqlalchemy import text

from peerseal.protocol.join import join_mac
from registry.app import create_app
from registry.storage.connections import PREPARE_AFTER
from registry.storage.engine import create_engine
from registry.storage.migrate import SCHEMA_REVISION, current_revision, migrate
from registry.storage.revisions import commit_listener
from registry.storage.unit import Store
from tests.registry.driver import Driver, settings_at
from tests.support.keys import key
from tests.support.pgbouncer import CONNECTIONS, PgBouncer
from tests.support.postgres import Postgres
from tests.support.processes import LOOPBACK, free_port, gunicorn
from tests.support.waiters import waiters
from tests.support.waiting import until

CALLERS = 8
REGISTRATIONS = int(os.environ.get("TEST_REGISTRATIONS", "2000")) // CALLERS * CALLERS
READS = 5 * REGISTRATIONS


@pytest.fixture
def store(pgbouncer_url: str) -> Iterator[Store]:
    engine = create_engine(pgbouncer_url)
    yield Store(engine)
    engine.dispose()


def test_transactions_of_one_connection_run_in_several_sessions(store: Store) -> None:
    with store.look() as connection:
        sessions = [connection.execute(text("SELECT pg_backend_pid()")).scalar_one() for _ in range(3 * CONNECTIONS)]
        assert len(set(sessions)) == 1, "one session serves while nothing else runs"
        with store.read() as other:
            other.execute(text("SELECT 1"))
            sessions += [connection.execute(text("SELECT pg_backend_pid()")).scalar_one() for _ in range(CONNECTIONS)]
    assert len(set(sessions)) > 1


def test_a_transaction_leaves_no_time_limits_in_its_session(store: Store) -> None:
    names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
    with store.write() as connection:
        assert [connection.execute(text(f"SHOW {name}")).scalar_one() for name in names] == ["3500ms", "3s", "15s"]
    with store.look() as connection:
        for _ in range(CONNECTIONS):
            assert [connection.execute(text(f"SHOW {name}")).scalar_one() for name in names] == ["0", "0", "0"]


def test_no_statement_stays_prepared(pgbouncer_url: str, postgres_url: str, tmp_path: Path) -> None:
    registry = Driver(pgbouncer_url, tmp_path / "home")
    for _ in range(8):
        registry.joined(key(), "billing")
        registry.key_set("billing")
    with registry.store.look() as connection:
        assert connection.execute(text("SELECT count(*) FROM pg_prepared_statements")).scalar_one() == 0
    registry.close()


def test_statements_are_prepared_where_no_pooler_is(postgres_url: str, tmp_path: Path) -> None:
    registry = Driver(postgres_url, tmp_path / "home")
    with registry.store.look() as connection:
        for _ in range(2 * PREPARE_AFTER):
            connection.execute(text("SELECT size FROM ledger_head"))
        assert connection.execute(text("SELECT count(*) FROM pg_prepared_statements")).scalar_one() == 1
    registry.close()


def test_nodes_that_migrate_at_once_take_turns(pgbouncer_url: str) -> None:
    def run(_: int) -> str:
        engine = create_engine(pgbouncer_url)
        try:
            return migrate(engine)
        finally:
            engine.dispose()

    with ThreadPoolExecutor(3) as pool:
        assert set(pool.map(run, range(3))) == {SCHEMA_REVISION}
    engine = create_engine(pgbouncer_url)
    with engine.begin() as connection:
        assert current_revision(connection) == SCHEMA_REVISION
        locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database"
        assert connection.execute(text(f"{locks} WHERE datname = current_database())")).scalar_one() == 0
    engine.dispose()


def test_a_pooler_breaks_listening_and_changes_are_reported_all_the_same(
    pgbouncer_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registry = Driver(pgbouncer_url, tmp_path / "home")
    writer = registry.node()
    with caplog.at_level(logging.INFO), waiters(registry, 2) as calls:
        writer.joined(key(), "billing")
        assert [call.result(20).status_code for call in calls] == [200, 200]
    told = [message for message in caplog.messages if "REGISTRY_LISTEN_URL" in message]
    assert len(told) == 1
    writer.close()
    registry.close()


def test_the_listen_url_leads_past_it(pgbouncer_url: str, postgres: Postgres, tmp_path: Path) -> None:
    direct = pgbouncer_url.partition("@")[2].partition("/")[2]
    past = f"postgresql://postgres@/{direct}?host={postgres.socket_file.parent}"
    registry = Driver(pgbouncer_url, tmp_path / "home", listen_url=past)
    through, beside = commit_listener(registry.store.engine), commit_listener(registry.registry.store.listen_engine)
    for listener in (through, beside):
        listener.listen()
    assert (through.listening, beside.listening) == (False, True)
    with waiters(registry, 2) as calls:
        writer = registry.node()
        writer.joined(key(), "billing")
        assert [call.result(20).status_code for call in calls] == [200, 200]
        writer.close()
    for listener in (through, beside):
        listener.close()
    registry.close()


def test_a_server_in_sql_ascii_gives_texts(postgres: Postgres, pgbouncer: PgBouncer, tmp_path: Path) -> None:
    name = f"test_ascii_{os.getpid()}"
    encoding = "ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    postgres.execute(f"CREATE DATABASE {name} {encoding}")
    url = f"postgres://postgres@/{name}?host={postgres.socket_file.parent}"
    for number, each in enumerate((url, pgbouncer.in_front_of(url.replace("postgres://", "postgresql+psycopg://")))):
        registry = Driver(each, tmp_path / "home")
        registry.joined(key(), "billing")
        assert len(registry.key_set("billing").keys) == number + 1
        registry.close()


def test_a_node_behind_a_pooler_in_statement_mode_is_not_ready_and_says_why(
    postgres: Postgres, postgres_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Driver(postgres_url, tmp_path / "home").close()
    pooler = PgBouncer(postgres, "statement")
    pooler.start()
    node = create_app(settings_at(pooler.in_front_of(postgres_url), tmp_path / "home")).test_client()
    answer = node.get("/readyz")
    assert (answer.status_code, answer.get_json()["database"]) == (503, False)
    assert "statement pooling mode" in caplog.text
    pooler.close()


def test_the_pooler_is_restarted_and_calls_go_on(postgres: Postgres, postgres_url: str, tmp_path: Path) -> None:
    with PgBouncer(postgres) as own:
        registry = Driver(own.in_front_of(postgres_url), tmp_path / "home")
        registry.joined(key(), "billing")
        own.kill()
        assert registry.post_key("billing", {"proof": registry.proof(key(), "billing")}).status_code == 503
        own.start()
        token = registry.join_token("billing")
        until(lambda: registry.join(key(), "billing", token).status_code == 201)
        registry.close()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_thousands_of_registrations_and_reads_meet_no_server_error(pgbouncer_url: str, tmp_path: Path) -> None:
    driver = Driver(pgbouncer_url, home := tmp_path / "home")
    driver.joined(key(), "billing")
    services = [f"service-{number}" for number in range(CALLERS)]
    tokens = [driver.join_token(service, uses=REGISTRATIONS) for service in services]
    settings = {"REGISTRY_HOME": str(home), "REGISTRY_DATABASE_URL": pgbouncer_url}
    port = free_port()
    url = f"http://{LOOPBACK}:{port}"

    def call(number: int) -> Counter[int]:
        """One caller's share: after each registration five reads, of a service that others change meanwhile."""
        statuses: Counter[int] = Counter()
        service, token = services[number], tokens[number]
        read = f"{url}/v1/services/{services[number - 1]}/jwks.jwt"
        with requests.Session() as session:
            for _ in range(REGISTRATIONS // CALLERS):
                proof = driver.proof(key(), service)
                join = {"id": token.id, "mac": join_mac(token.mac_key, proof)}
                body = {"proof": proof, "join": join}
                statuses[session.post(f"{url}/v1/services/{service}/keys", json=body, timeout=30).status_code] += 1
                for _ in range(READS // REGISTRATIONS):
                    statuses[session.get(read, timeout=30).status_code] += 1
        return statuses

    with gunicorn(
        "registry",
        "registry.wsgi:app",
        port=port,
        log=tmp_path / "log",
        settings=settings,
        config="python:registry.gunicorn_conf",
        workers=2,
    ) as server:
        server.wait_until_answers(f"{url}/readyz")
        with ThreadPoolExecutor(CALLERS) as pool:
            statuses = sum(pool.map(call, range(CALLERS)), Counter[int]())
    print(dict(statuses))
    assert not [status for status in statuses if status >= 500], statuses
    assert statuses[201] == REGISTRATIONS
    driver.close()
