"""A real registry in memory, and a clock that tests set: for tests of Peerseal and of services that use it.

::

    with MemoryRegistry() as registry:
        app = create_app(registry.identity("resource-service"))  # your service, protected as ever
        client = sign_calls(app.test_client(), registry.identity("client-service"), "resource-service")
        assert client.get("/profiles/1").status_code == 200

Only the network is missing: keys, proofs, tokens and documents are made and checked by the code of production. The
registry lives in one process; a forked child works on a copy. `peerseal.testing.pytest_plugin` has fixtures for pytest
(docs/how-to/test-your-service.md).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same as `_MODULE_OF`, for type checkers
    from peerseal.testing.calls import Call
    from peerseal.testing.clients import SignedClient, sign_calls
    from peerseal.testing.ledger import MemoryLedger
    from peerseal.testing.registry import Clock, MemoryRegistry
    from peerseal.transport.fetch import Answer

__all__ = ["Answer", "Call", "Clock", "MemoryLedger", "MemoryRegistry", "SignedClient", "sign_calls"]

_MODULE_OF = {
    "Answer": "peerseal.transport.fetch",
    "Call": "peerseal.testing.calls",
    "Clock": "peerseal.testing.registry",
    "MemoryLedger": "peerseal.testing.ledger",
    "MemoryRegistry": "peerseal.testing.registry",
    "SignedClient": "peerseal.testing.clients",
    "sign_calls": "peerseal.testing.clients",
}
"""Where each name is: pytest loads this package at its start, and most tests do not use it."""


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'peerseal.testing' has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_MODULE_OF[name]), name)
    return found
