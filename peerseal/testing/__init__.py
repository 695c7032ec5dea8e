"""A real registry in memory, and a clock that tests set: for tests of Peerseal and of services that use it.

::

    with MemoryRegistry() as registry:
        app = create_app(registry.identity("resource-service"))  # your service, protected as ever
        client = registry.identity("client-service")
        token = client.sign_request("resource-service", method="GET", target="/profiles/1")
        assert app.test_client().get("/profiles/1", headers={"Authorization": f"Bearer {token}"}).status_code == 200

Only the network is missing: keys, proofs, tokens and documents are made and checked by the code of production. The
registry lives in one process; a forked child works on a copy.
"""

from peerseal.testing.calls import Call
from peerseal.testing.ledger import MemoryLedger
from peerseal.testing.registry import Clock, MemoryRegistry
from peerseal.transport.fetch import Answer

__all__ = ["Answer", "Call", "Clock", "MemoryLedger", "MemoryRegistry"]
