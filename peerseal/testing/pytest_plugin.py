"""A pytest plugin: ``peerseal_registry`` and ``signed_client``. pytest finds it where both are installed.

It imports nothing of Peerseal before a test uses a fixture, so that other tests start as fast as without it.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from peerseal import Identity
    from peerseal.testing import MemoryRegistry
    from peerseal.testing.clients import C, SignedClient


@pytest.fixture
def peerseal_registry() -> "Iterator[MemoryRegistry]":
    """A registry in memory of the trust domain ``test.internal``, with the time of the system's clock."""
    from peerseal.testing import MemoryRegistry

    with MemoryRegistry() as registry:
        yield registry


@pytest.fixture
def signed_client(peerseal_registry: "MemoryRegistry") -> "SignedClient":
    """`peerseal.testing.sign_calls`. ``caller`` may be the name of a service, which gets an identity of the registry:
    ``signed_client(app.test_client(), "client-service", "resource-service")``."""
    from peerseal.testing import sign_calls

    def sign(client: "C", caller: "str | Identity", audience: str) -> "C":
        identity = peerseal_registry.identity(caller) if isinstance(caller, str) else caller
        return sign_calls(client, identity, audience)

    return sign
