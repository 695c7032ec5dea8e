"""What the tests of the adapters and of the sessions may ask for."""

import pytest

from peerseal import Identity
from peerseal.testing import MemoryRegistry


@pytest.fixture
def client(registry: MemoryRegistry) -> Identity:
    """The service ``client``, which may mint transactions."""
    registry.set_domain(minters=["client"])
    return registry.identity("client")


@pytest.fixture
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment names no proxy."""
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
