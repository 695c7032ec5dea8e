"""A registry on SQLite, and keys to register."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from peerseal.protocol.keys import KeyPair
from tests.registry.driver import Clock, Driver

COUNTS = "PROMETHEUS_MULTIPROC_DIR"


@pytest.fixture(autouse=True)
def no_folder_of_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What gunicorn's settings put into the environment of their process is nothing to the next test."""
    monkeypatch.setenv(COUNTS, "")
    monkeypatch.delenv(COUNTS)


@pytest.fixture(scope="session")
def rsa_key() -> KeyPair:
    """An RSA key of the usual size, made once."""
    return KeyPair.generate("RS256")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(sqlite_url: str, tmp_path: Path, clock: Clock) -> Iterator[Driver]:
    """A registry on SQLite, with a clock that stands."""
    driver = Driver(sqlite_url, tmp_path / "home", clock)
    yield driver
    driver.close()
