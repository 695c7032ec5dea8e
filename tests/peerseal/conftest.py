"""A registry in memory and its clock, for the tests of the SDK."""

from collections.abc import Iterator

import pytest

from peerseal.testing import Clock, MemoryRegistry


@pytest.fixture
def clock() -> Clock:
    return Clock(1_800_000_000.0)


@pytest.fixture
def registry(clock: Clock) -> Iterator[MemoryRegistry]:
    with MemoryRegistry(clock=clock) as registry:
        yield registry
