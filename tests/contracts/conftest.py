"""A registry on each database, with a clock that stands."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.registry.driver import Clock, Driver


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(registry_database: str, tmp_path: Path, clock: Clock) -> Iterator[Driver]:
    driver = Driver(registry_database, tmp_path / "home", clock)
    yield driver
    driver.close()
