"""Peerseal: services sign their requests with keys of their own, and verify the requests of others.

A registry publishes the public keys. There is no token server and no shared secret. A service registers its first key
with a join token, and then signs each request; the callee verifies the signature with the key from the registry::

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
`Verifier` → `Peer`                        verifies a request; `AsyncVerifier` is in `peerseal.asynchronous`
`EventVerifier` → `Event`                  verifies an event of a broker
`UserVerifier` → `User`                    verifies the token of a user, of OpenID Connect or introspection
`Transaction` `carrying` `propagate`       a user's work over several services; see `current_transaction`
`ReplayGuard` and its implementations      accepts each token once
`TrustLimits` `CallLimits`                 time limits and sizes, each with its unit
`RotationSchedule`                         when keys are replaced
========================================== =============================================================================

The adapters are loaded on first use: `peerseal.flask`, `peerseal.asgi`, `peerseal.requests`, `peerseal.asynchronous`,
`peerseal.kafka`, `peerseal.rabbitmq`, `peerseal.outbox`, `peerseal.prometheus`. To read the code, begin with
`peerseal/protocol/` and then read `peerseal/verify/request.py`.
"""

from importlib import import_module
from typing import Any

from peerseal import errors
from peerseal.errors import PeersealError
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

_ADAPTERS = (
    "asgi",
    "asynchronous",
    "flask",
    "inbox",
    "kafka",
    "logs",
    "messaging",
    "outbox",
    "prometheus",
    "rabbitmq",
    "requests",
    "testing",
)


def __getattr__(name: str) -> Any:
    """Load an adapter on first use, so that ``import peerseal`` loads no framework."""
    if name in _ADAPTERS:
        return import_module(f"peerseal.{name}")
    raise AttributeError(f"module 'peerseal' has no attribute {name!r}")
