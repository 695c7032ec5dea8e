"""What every test may ask for. Services are started by the tests that need them, never at import."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.postgres import Postgres, running_postgres
from tests.support.stack import Stack


def pytest_itemcollected(item: pytest.Item) -> None:
    """Tests with real processes share one worker: two at once would only take each other's cores."""
    if item.get_closest_marker("e2e"):
        item.add_marker(pytest.mark.xdist_group("e2e"))


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """The PostgreSQL server of this test run."""
    with running_postgres() as server:
        yield server


@pytest.fixture
def postgres_url(postgres: Postgres) -> str:
    """The URL of a fresh, empty database on real PostgreSQL."""
    return postgres.new_database()


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
