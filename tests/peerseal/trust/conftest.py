"""What the tests of the trust store have in common: a registry in memory, and its clock."""

import pytest

from peerseal.testing import MemoryRegistry


@pytest.fixture
def kid(registry: MemoryRegistry) -> str:
    """The registered key of the service ``client``, in entry 2; nothing that it cost is counted."""
    kid = registry.identity("client").credentials.key_id
    registry.calls.clear()
    registry.log.clear()
    return kid
