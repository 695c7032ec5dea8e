"""A PostgreSQL that hangs, or whose host is gone, after the registry connected: every wait has an end."""

import re
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from click.testing import CliRunner
from sqlalchemy import make_url, text

from registry.__main__ import main
from registry.domain.errors import StorageUnavailable
from registry.storage.engine import DatabaseTimeouts, connection_counts, create_engine
from registry.storage.migrate import migrate
from registry.storage.revisions import Waker, commit_listener, revisions
from registry.storage.unit import Store
from tests.registry.driver import Driver
from tests.support.forwarding import forwarded
from tests.support.keys import key
from tests.support.postgres import Postgres, running_postgres
from tests.support.processes import LOOPBACK, free_port, gunicorn
from tests.support.waiters import waiters
from tests.support.waiting import until

WRITE_ENDS = 5.0
"""Seconds within which a write is answered while the database hangs."""
KEY_SET = "/v1/services/billing/jwks.jwt"
SHORT = DatabaseTimeouts(connect=1000, connect_total=300, look=300, answer=300)


@dataclass(frozen=True)
class Hang:
    """A database of a test's own, and a block in which it does not answer."""

    url: str
    hangs: Callable[[], AbstractContextManager[object]]


@pytest.fixture(params=["processes stopped", pytest.param("host gone", marks=pytest.mark.thorough)])
def database(request: pytest.FixtureRequest) -> Iterator[Hang]:
    with running_postgres(uuid.uuid4().hex) as own:
        url = own.new_database()
        if request.param == "processes stopped":
            yield Hang(url, own.frozen)
            return
        silent = threading.Event()

        @contextmanager
        def gone() -> Iterator[None]:
            silent.set()
            yield
            silent.clear()

        with forwarded(own.socket_file, silent=silent) as port:
            yield Hang(f"postgresql://postgres@127.0.0.1:{port}/{make_url(url).database}", gone)


def timed(call: Callable[[], int]) -> tuple[int, float]:
    began = time.monotonic()
    return call(), time.monotonic() - began


@pytest.mark.slow
def test_writes_are_refused_and_reads_go_on_from_memory_until_it_answers_again(database: Hang, tmp_path: Path) -> None:
    registry = Driver(database.url, tmp_path / "home")
    registry.joined(key(), "billing")
    before, token = registry.client.get(KEY_SET).data, registry.join_token("billing", uses=100)

    def read(_: int) -> tuple[int, float]:
        return timed(lambda: registry.app.test_client().get(KEY_SET).status_code)

    def write(_: int) -> tuple[int, float]:
        return timed(lambda: registry.join(key(), "billing", token).status_code)

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(read, range(12)))  # each thread has its connection
        with database.hangs():
            for _ in range(3):
                calls = pool.map(write, range(6)), pool.map(read, range(6))
                writes, reads = map(list, calls)
                assert {status for status, _ in writes} == {503}
                assert {status for status, _ in reads} == {200}
                assert max(seconds for _, seconds in [*writes, *reads]) < WRITE_ENDS
        until(lambda: write(0)[0] == 201)
        assert {status for status, _ in pool.map(read, range(12))} == {200}
    assert registry.client.get(KEY_SET).data != before
    registry.close()


@pytest.mark.slow
@pytest.mark.parametrize("last", ["SELECT", "COMMIT", "ROLLBACK"])
def test_every_statement_has_an_end(database: Hang, last: str) -> None:
    store = Store(create_engine(database.url, SHORT))
    began = 0.0

    def transaction(hanging: ExitStack) -> None:
        nonlocal began
        with store.write() as connection:
            connection.execute(text("SELECT 1"))
            hanging.enter_context(database.hangs())
            began = time.monotonic()
            if last == "SELECT":
                connection.execute(text("SELECT 1"))
            if last == "ROLLBACK":
                raise KeyError

    with ExitStack() as hanging:
        with pytest.raises(StorageUnavailable):
            transaction(hanging)
        assert time.monotonic() - began < 2
    store.engine.dispose()


@pytest.mark.slow
def test_a_look_up_waits_no_longer_where_its_connection_was_used_for_a_transaction(database: Hang) -> None:
    engine = create_engine(database.url, DatabaseTimeouts(look=300, answer=4000))
    with Store(engine).write() as connection:
        connection.execute(text("SELECT 1"))
    asked = revisions(engine)
    migrate(engine)
    asked.head()
    began = time.monotonic()
    with database.hangs(), pytest.raises(StorageUnavailable):
        asked.head()
    assert time.monotonic() - began < 2
    engine.dispose()


@pytest.mark.thorough
@pytest.mark.slow
def test_while_it_is_silent_every_call_is_refused_at_once_until_one_connects(database: Hang) -> None:
    engine = create_engine(database.url, SHORT)
    migrate(engine)
    asked = revisions(engine)

    def ask(_: int) -> tuple[int, float]:
        def call() -> int:
            with pytest.raises(StorageUnavailable):
                asked.service("billing")
            return 0

        return timed(call)

    with Store(engine).look() as connection:
        connection.execute(text("SELECT 1"))
    with database.hangs(), ThreadPoolExecutor(8) as pool:
        ask(0)
        for _ in range(20):
            assert max(seconds for _, seconds in pool.map(ask, range(8))) < 0.5
            time.sleep(0.2)  # attempts to connect go on meanwhile
    until(lambda: succeeds(lambda: asked.service("billing")))
    engine.dispose()


@pytest.mark.slow
def test_a_look_up_of_the_databases_name_that_hangs_holds_up_one_caller_and_is_not_repeated_meanwhile(
    postgres: Postgres, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_up, answers, asked = socket.getaddrinfo, threading.Event(), []

    def hanging(host: str, *arguments: Any, **options: Any) -> Any:
        asked.append(host)
        answers.wait(30)
        return look_up(host, *arguments, **options)

    with forwarded(postgres.socket_file) as port:
        engine = create_engine(f"postgresql://postgres@localhost:{port}/{make_url(postgres_url).database}", SHORT)
        monkeypatch.setattr(socket, "getaddrinfo", hanging)

        def look() -> tuple[int, float]:
            def call() -> int:
                with Store(engine).look() as connection:
                    return int(connection.execute(text("SELECT 1")).scalar_one())

            return timed(call)

        for bound in (1.0, 0.2, 0.2):
            began = time.monotonic()
            with pytest.raises(StorageUnavailable):
                look()
            assert time.monotonic() - began < bound
        assert asked == ["localhost"]
        answers.set()
        until(lambda: succeeds(look))
        assert look()[0] == 1
        assert asked == ["localhost"], "what became of the first look-up was used"
        engine.dispose()


@pytest.fixture
def last_of_three(postgres: Postgres, postgres_url: str) -> Iterator[str]:
    """The URL of a database whose first two hosts are gone."""
    with ExitStack() as stack:
        gone = [stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(2)]
        ports = [*gone, stack.enter_context(forwarded(postgres.socket_file))]
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
        yield f"postgresql://postgres@{hosts}/{make_url(postgres_url).database}"


@pytest.mark.slow
def test_a_server_has_the_last_of_several_hosts_after_a_few_refusals(last_of_three: str) -> None:
    engine = create_engine(last_of_three, SHORT)

    def look() -> int:
        with Store(engine).look() as connection:
            return int(connection.execute(text("SELECT 1")).scalar_one())

    began = time.monotonic()
    with pytest.raises(StorageUnavailable):
        look()
    assert time.monotonic() - began < 1
    until(lambda: succeeds(look))
    assert timed(look)[1] < 1
    engine.dispose()


@pytest.mark.slow
def test_a_command_has_it_at_once(last_of_three: str, tmp_path: Path) -> None:
    settings = {"REGISTRY_HOME": str(tmp_path), "REGISTRY_DATABASE_URL": f"{last_of_three}?connect_timeout=1"}
    arguments = ("init", "--trust-domain", "test.internal"), ("join-token", "create", "billing")
    for done in [CliRunner().invoke(main, [*each], env=settings) for each in arguments]:
        assert done.exit_code == 0, done.output


def test_waits_for_a_connection_of_the_pool_end_and_are_counted(postgres_url: str) -> None:
    engine = create_engine(postgres_url, DatabaseTimeouts(pool=50), connections=5)
    store = Store(engine)
    with ExitStack() as held:
        for _ in range(3):
            held.enter_context(store.look()).execute(text("SELECT 1"))
        assert connection_counts(engine).used == 3
        with pytest.raises(StorageUnavailable), store.look():
            pass
        with pytest.raises(StorageUnavailable):
            revisions(engine).head()
    assert connection_counts(engine).timeouts == {"pool": 2}
    engine.dispose()


def test_waits_for_a_lock_and_slow_statements_are_counted(postgres_url: str) -> None:
    engine = create_engine(postgres_url, DatabaseTimeouts(lock=50, statement=200))
    store = Store(engine)
    with engine.begin() as other:
        other.execute(text("SELECT pg_advisory_xact_lock(7)"))
        with pytest.raises(StorageUnavailable, match="LockNotAvailable"), store.write() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(7)"))
    with pytest.raises(StorageUnavailable, match="QueryCanceled"), store.read() as connection:
        connection.execute(text("SELECT pg_sleep(20)"))
    assert connection_counts(engine).timeouts == {"lock": 1, "statement": 1}
    engine.dispose()


def succeeds(call: Callable[[], object]) -> bool:
    with suppress(StorageUnavailable):
        call()
        return True
    return False


@pytest.mark.thorough
@pytest.mark.slow
def test_calls_that_wait_are_told_of_changes_again_afterwards(database: Hang, tmp_path: Path) -> None:
    registry = Driver(database.url, tmp_path / "home")
    registry.joined(key(), "billing")
    token = registry.join_token("billing")
    with waiters(registry, 2) as calls:
        with database.hangs():
            time.sleep(3)  # the thread that follows the ledger has waited in vain meanwhile
        until(lambda: registry.join(key(), "billing", token).status_code == 201)
        assert [call.result(20).status_code for call in calls] == [200, 200]
    registry.close()


@pytest.mark.thorough
@pytest.mark.slow
def test_listening_begins_again_where_the_connection_was_lost(database: Hang) -> None:
    engine = create_engine(database.url, SHORT)
    listener, waker = commit_listener(engine), Waker()
    with database.hangs():
        began = time.monotonic()
        listener.listen()
        assert not listener.listening
        assert time.monotonic() - began < 3

    def hears() -> bool:
        listener.listen()
        waker.wake()
        listener.sleep(waker)
        return listener.listening

    until(hears)
    listener.close()
    engine.dispose()


@pytest.mark.e2e
@pytest.mark.thorough
def test_a_server_answers_healthz_at_once_and_counts_its_waits(database: Hang, tmp_path: Path) -> None:
    registry = Driver(database.url, home := tmp_path / "home")
    registry.joined(key(), "billing")
    settings = {"REGISTRY_HOME": str(home), "REGISTRY_DATABASE_URL": database.url}
    port, log = free_port(), tmp_path / "log"
    with gunicorn(
        "registry",
        "registry.wsgi:app",
        port=port,
        log=log,
        settings=settings,
        config="python:registry.gunicorn_conf",
        workers=1,
    ) as own:
        url = f"http://{LOOPBACK}:{port}"
        own.wait_until_answers(f"{url}/readyz")

        def status(path: str) -> tuple[int, float]:
            return timed(lambda: requests.get(url + path, timeout=30).status_code)

        assert status(KEY_SET)[0] == 200
        with database.hangs(), ThreadPoolExecutor(4) as pool:
            calls = [pool.submit(status, path) for path in (KEY_SET, KEY_SET, "/readyz", "/v1/services/billing/keys")]
            health = [status("/healthz") for _ in range(100)]
            assert [call.result()[0] for call in calls] == [200, 200, 503, 503]
            assert max(call.result()[1] for call in calls) < WRITE_ENDS
            assert {status for status, _ in health} == {200}
            assert sorted(seconds for _, seconds in health)[97] < 0.05
            told = requests.get(f"{url}/metrics", timeout=5).text
            assert 'registry_database_connections{state="own"}' in told
            assert re.search(r'registry_database_timeouts_total\{wait="answer"\} [1-9]', told)
        began = time.monotonic()
        until(lambda: status("/readyz")[0] == 200)
        recovered, warm, refused = time.monotonic() - began, calls[:2], calls[2:]
        told_of = max(seconds for _, seconds in health), worst(warm), worst(refused), recovered
        print("/healthz {:.3f} s, warm read {:.1f} s, 503 after {:.1f} s, ready again after {:.1f} s".format(*told_of))
    registry.close()


def worst(calls: Sequence[Future[tuple[int, float]]]) -> float:
    return max(call.result()[1] for call in calls)
