"""What the tests of the trust store have in common: a registry in memory, and its clock."""

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


@pytest.fixture
def kid(registry: MemoryRegistry) -> str:
    """The registered key of the service ``client``, in entry 2; nothing that it cost is counted."""
    kid = registry.identity("client").credentials.key_id
    registry.calls.clear()
    registry.log.clear()
    return kid
