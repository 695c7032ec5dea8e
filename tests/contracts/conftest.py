"""A registry on each database, with a clock that stands."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from peerseal import TrustLimits, TrustStore
from tests.registry.driver import Clock, Driver
from tests.registry.in_process import InProcess
from tests.registry.legacy import Client
from tests.support.issuer import Issuer, running_issuer

QUIET = TrustLimits(poll_interval=3600.0, wait=0.0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sqlite", "postgres", "pgbouncer"])
def registry_database(request: pytest.FixtureRequest) -> str:
    """As everywhere, and through a pooler too."""
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def registry(registry_database: str, tmp_path: Path, clock: Clock) -> Iterator[Driver]:
    driver = Driver(registry_database, tmp_path / "home", clock)
    yield driver
    driver.close()


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    """An issuer of users' tokens."""
    with running_issuer() as issuer:
        yield issuer


@pytest.fixture
def client(registry: Driver, issuer: Issuer, clock: Clock) -> Client:
    """A program that may exchange the issuer's tokens."""
    return Client(registry, issuer, clock)


@pytest.fixture
def trust(registry: Driver, clock: Clock) -> Iterator[TrustStore]:
    """What a consumer knows of this registry."""
    fetcher = InProcess(registry)
    store = TrustStore("http://registry.test", pin=registry.pin, limits=QUIET, clock=clock, fetcher=fetcher)
    yield store
    store.stop()
