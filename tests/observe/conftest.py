"""Real Prometheus and promtool, where they are installed."""

import os
import shutil

import pytest


@pytest.fixture(scope="session")
def promtool() -> str:
    return program("promtool")


@pytest.fixture(scope="session")
def prometheus() -> str:
    return program("prometheus")


def program(name: str) -> str:
    """The program's path. Skips a test where it is missing; in CI, where it is installed, fails the test."""
    found = shutil.which(name)
    if found is not None:
        return found
    reason = f"the program {name} is not installed (Debian: apt-get install prometheus)"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
