"""Peerseal: services sign requests with their own keys, and verify requests of other services.

A registry publishes the public keys. A service registers its first key with a join token, a secret that an operator
creates for this service. A join token admits one key, or as many as the operator chooses. Then the service signs each
request; the callee verifies the signature with the key from the registry::

    from peerseal import Identity
    from peerseal.flask import PeerAuth, current_peer

    identity = Identity.from_env().start()             # PEERSEAL_SERVICE=shop, PEERSEAL_REGISTRY_URL=https://…

    # the caller: each request carries a new signed token
    identity.session("billing", "https://billing:8443").post("/invoices", json={"order": 7})

    # the callee, in another process with its own identity: current_peer.service is "shop"
    auth = PeerAuth(app, identity, allow={"shop": {"invoices:write"}})

========================================== =============================================================================
`Identity`                                 a service: its keys, and all that it signs
`TrustStore`                               the keys, policies and settings of the domain, fetched from the registry
`Verifier`                                 verifies a request, returns a `Peer`; see `peerseal.asynchronous`, too
`EventVerifier`                            verifies an event of a broker, returns an `Event`
`UserVerifier`                             verifies a user's token, returns a `User`: OpenID Connect or introspection
`Transaction` `carrying` `propagate`       a user's work over several services; see `current_transaction`
`ReplayGuard` and its implementations      accepts each token once
`TrustLimits` `CallLimits`                 time limits and sizes, each with its unit
`RotationSchedule`                         when keys are replaced
========================================== =============================================================================

`peerseal.errors` is loaded at once, every other name and module on first use. Adapters: `peerseal.flask`,
`peerseal.wsgi`, `peerseal.asgi`, `peerseal.requests`, `peerseal.httpx`, `peerseal.asynchronous`, `peerseal.kafka`,
`peerseal.rabbitmq`, `peerseal.messaging`, `peerseal.prometheus`. Database tables and tools: `peerseal.outbox`,
`peerseal.inbox`, `peerseal.logs`, `peerseal.testing`. To read the code, begin with `peerseal/protocol/`, then read
`peerseal/trust/beliefs.py`, then `peerseal/verify/request.py`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from peerseal import errors
from peerseal.errors import PeersealError

if TYPE_CHECKING:  # the same as `_MODULE_OF`, for type checkers
    from peerseal.identity.access_tokens import AccessToken
    from peerseal.identity.identity import Identity
    from peerseal.runtime.limits import CallLimits, RotationSchedule, TrustLimits
    from peerseal.runtime.metrics import Metric, metrics
    from peerseal.session.circuit import CircuitState, CircuitStatus
    from peerseal.trust.store import TrustStore
    from peerseal.verify.audit_log import Accepted
    from peerseal.verify.context import Transaction, carrying, current_request_id, current_transaction, propagate
    from peerseal.verify.event import Event, EventVerifier
    from peerseal.verify.introspection import IntrospectionClient
    from peerseal.verify.replay.file import FileReplayGuard
    from peerseal.verify.replay.guards import MemoryReplayGuard, ReplayGuard
    from peerseal.verify.replay.redis import RedisReplayGuard
    from peerseal.verify.request import Peer, Verifier
    from peerseal.verify.users import User, UserVerifier

__all__ = [
    "Accepted",
    "AccessToken",
    "CallLimits",
    "CircuitState",
    "CircuitStatus",
    "Event",
    "EventVerifier",
    "FileReplayGuard",
    "Identity",
    "IntrospectionClient",
    "MemoryReplayGuard",
    "Metric",
    "Peer",
    "PeersealError",
    "RedisReplayGuard",
    "ReplayGuard",
    "RotationSchedule",
    "Transaction",
    "TrustLimits",
    "TrustStore",
    "User",
    "UserVerifier",
    "Verifier",
    "carrying",
    "current_request_id",
    "current_transaction",
    "errors",
    "metrics",
    "propagate",
]

_MODULE_OF = {
    "AccessToken": "peerseal.identity.access_tokens",
    "Identity": "peerseal.identity.identity",
    "CallLimits": "peerseal.runtime.limits",
    "RotationSchedule": "peerseal.runtime.limits",
    "TrustLimits": "peerseal.runtime.limits",
    "Metric": "peerseal.runtime.metrics",
    "metrics": "peerseal.runtime.metrics",
    "CircuitState": "peerseal.session.circuit",
    "CircuitStatus": "peerseal.session.circuit",
    "TrustStore": "peerseal.trust.store",
    "Accepted": "peerseal.verify.audit_log",
    "Transaction": "peerseal.verify.context",
    "carrying": "peerseal.verify.context",
    "current_request_id": "peerseal.verify.context",
    "current_transaction": "peerseal.verify.context",
    "propagate": "peerseal.verify.context",
    "Event": "peerseal.verify.event",
    "EventVerifier": "peerseal.verify.event",
    "IntrospectionClient": "peerseal.verify.introspection",
    "FileReplayGuard": "peerseal.verify.replay.file",
    "MemoryReplayGuard": "peerseal.verify.replay.guards",
    "ReplayGuard": "peerseal.verify.replay.guards",
    "RedisReplayGuard": "peerseal.verify.replay.redis",
    "Peer": "peerseal.verify.request",
    "Verifier": "peerseal.verify.request",
    "User": "peerseal.verify.users",
    "UserVerifier": "peerseal.verify.users",
}
"""The module of each public name. `__getattr__` (PEP 562) imports it when the name is first used."""

_OPTIONAL_MODULES = (
    "asgi",
    "asynchronous",
    "flask",
    "httpx",
    "inbox",
    "kafka",
    "logs",
    "messaging",
    "otel",
    "outbox",
    "prometheus",
    "rabbitmq",
    "requests",
    "testing",
    "wsgi",
)

_PACKAGES = ("identity", "protocol", "runtime", "session", "transport", "trust", "verify")


def __getattr__(name: str) -> Any:
    """Load a public name or a module of this package on its first use.

    So ``import peerseal`` alone loads neither a web framework nor `cryptography`.
    """
    if name in _MODULE_OF:
        found = globals()[name] = getattr(import_module(_MODULE_OF[name]), name)
        return found
    if name in _OPTIONAL_MODULES:
        return import_module(f"peerseal.{name}")
    if name in _PACKAGES:  # load all public names too, so that `peerseal.trust.store` works without its own import
        for module in set(_MODULE_OF.values()):
            import_module(module)
        return import_module(f"peerseal.{name}")
    raise AttributeError(f"module 'peerseal' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF})
