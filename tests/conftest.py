"""What every test may ask for. Services are started by the tests that need them, never at import."""

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from peerseal.testing import Clock, MemoryRegistry
from tests.support.apache_kafka import ApacheKafka, need_kafka
from tests.support.compiled_once import sharing_what_is_compiled
from tests.support.pgbouncer import PgBouncer
from tests.support.postgres import POSTGRES_SIZE, Postgres, in_memory, running_postgres
from tests.support.rabbitmq import RabbitMQ, need_rabbitmq
from tests.support.stack import Stack
from tests.support.wire import NOW, Keys, RawServer, Service, raw_server

WITH_PROCESSES = ("tests/e2e/", "tests/examples/", "tests/faults/")
ON_ONE_DATABASE = tuple(
    f"tests/{name}.py"
    for name in (
        "attacks/test_registry_registration",
        "contracts/test_access_tokens",
        "contracts/test_access_tokens_of_services",
        "contracts/test_admission_by_platform",
        "contracts/test_applicants",
        "contracts/test_client_assertions",
        "contracts/test_exchange",
        "contracts/test_housekeeping",
        "contracts/test_operators",
        "contracts/test_past_keys",
        "contracts/test_policies",
        "contracts/test_restore",
        "contracts/test_roll_over",
        "contracts/test_verify",
        "contracts/test_waiting",
        "peerseal/test_outbox",
    )
)
THOROUGH = tuple(
    f"tests/{name}.py"
    for name in (
        "attacks/test_mutations",
        "attacks/test_other_users_of_the_host",
        "attacks/test_terminal",
        "contracts/test_database_hangs",
        "contracts/test_durability",
        "contracts/test_fork",
        "contracts/test_fork_recovery",
        "contracts/test_fork_witnesses",
        "contracts/test_lagging_standby",
        "contracts/test_lasting_documents",
        "contracts/test_mirror_push",
        "contracts/test_schema",
        "contracts/test_upgrade",
        "e2e/test_access_tokens",
        "e2e/test_applicants",
        "e2e/test_audit_across_hops",
        "e2e/test_celery",
        "e2e/test_concurrent_registrations",
        "e2e/test_fork",
        "e2e/test_lying_mirror",
        "e2e/test_many_workers",
        "e2e/test_monitor",
        "e2e/test_one_trace",
        "e2e/test_platform_tokens",
        "e2e/test_policies",
        "e2e/test_registry_gone",
        "e2e/test_registry_tls",
        "e2e/test_released_client",
        "e2e/test_replay_on_two_hosts",
        "e2e/test_restore",
        "e2e/test_rolling_restart",
        "e2e/test_split_view",
        "e2e/test_token_exchange",
        "e2e/test_two_domains",
        "e2e/test_up",
        "e2e/test_upgrade_under_load",
        "e2e/test_users_do_not_mix",
        "examples/test_invoicing",
        "examples/test_minimal",
        "examples/test_readme",
        "examples/test_tutorial",
        "faults/test_failing_callees",
        "faults/test_forks_and_workers",
        "faults/test_mirror_upstreams",
        "faults/test_one_host",
        "faults/test_recycled_workers",
        "faults/test_registry_killed",
        "judges/test_documented_snippets",
        "judges/test_npm",
        "judges/test_python_libraries",
        "messaging/test_consumer",
        "messaging/test_kafka_records",
        "peerseal/runtime/test_forks",
        "registry/domain/test_lifecycle",
        "registry/services/test_parallel_checks",
        "registry/serving/test_bounded_node",
        "registry/serving/test_draining",
        "registry/serving/test_log_format",
        "registry/serving/test_push_server",
        "registry/serving/test_worker",
        "registry/serving/test_worker_settings",
        "registry/serving/test_wrong_settings",
        "registry/web/test_metrics",
    )
)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Each worker takes whole files. Files of one folder with real processes all go to one of them, since many such
    tests at once would only take each other's cores."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            of_folder = next((folder for folder in WITH_PROCESSES if nodeid.startswith(folder)), None)
            return of_folder or nodeid.partition("::")[0]

    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What runs in real processes, and what is long and stands on storage that is tested on both databases anyway,
    runs on SQLite in `make test` and on PostgreSQL in `make thorough`. Some files that take long run only there."""
    for item in items:
        once = item.nodeid.startswith((*WITH_PROCESSES, *ON_ONE_DATABASE)) and "postgres" in item.name
        if once or item.nodeid.startswith(THOROUGH):
            item.add_marker(pytest.mark.thorough)
        if "pgbouncer" in item.name or "pgbouncer" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.pooler)


def pytest_collection_finish() -> None:
    """Exempts the collected tests from garbage collection: they live until the end, and each full collection took
    seconds to look at them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def compiled_once() -> Iterator[None]:
    """Routes, templates and SQL statements are compiled once in each worker of pytest."""
    with sharing_what_is_compiled():
        yield


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still until a test moves it on."""
    return Clock(1_800_000_000.0)


@pytest.fixture
def registry(clock: Clock) -> Iterator[MemoryRegistry]:
    """A registry in memory, by that clock."""
    with MemoryRegistry(clock=clock) as registry:
        yield registry


@pytest.fixture(scope="module")
def caller() -> Service:
    """A service that signs requests."""
    return Service("caller", Keys(), now=NOW)


@pytest.fixture
def server() -> Iterator[RawServer]:
    """A server that shows the bytes that it receives."""
    with raw_server() as server:
        yield server


@pytest.fixture
def quiet_collector() -> Iterator[None]:
    """For tests that fork: the garbage of earlier tests is not collected by some thread in the middle of a fork. An
    SQLite connection that ends there leaves the child with a library whose locks no thread will release."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """The PostgreSQL server of this test run."""
    with running_postgres(folder=in_memory(POSTGRES_SIZE)) as server:
        yield server


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """The URL of a fresh, empty database on real PostgreSQL."""
    url = postgres.new_database()
    yield url
    postgres.drop(url)


@pytest.fixture(scope="session")
def pgbouncer(postgres: Postgres) -> Iterator[PgBouncer]:
    """The PgBouncer of this test run, in transaction mode."""
    with PgBouncer(postgres) as pooler:
        yield pooler


@pytest.fixture
def pgbouncer_url(pgbouncer: PgBouncer, postgres_url: str) -> str:
    """The URL of a fresh, empty database on real PostgreSQL, through PgBouncer."""
    return pgbouncer.in_front_of(postgres_url)


@pytest.fixture(scope="session")
def apache_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheKafka]:
    """The real Apache Kafka of this test run."""
    need_kafka()
    with ApacheKafka(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker


@pytest.fixture(scope="session")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    """The real RabbitMQ of this test run."""
    need_rabbitmq()
    with RabbitMQ(tmp_path_factory.mktemp("rabbitmq")) as broker:
        yield broker


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """The URL of an SQLite file that is not there yet."""
    return f"sqlite:///{tmp_path / 'registry.sqlite3'}"


@pytest.fixture(params=["sqlite", "postgres"])
def registry_database(request: pytest.FixtureRequest) -> str:
    """The URL of a fresh, empty database, on SQLite and on PostgreSQL in turn."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def stack(tmp_path: Path, registry_database: str) -> Iterator[Stack]:
    """A trust domain of real processes on either database; nothing runs before ``start_registry``."""
    with Stack(tmp_path, database_url=registry_database) as stack:
        yield stack
