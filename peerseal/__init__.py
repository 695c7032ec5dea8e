"""Peerseal: services that trust each other's keys through a registry, without a token server or a shared secret.

`Identity` signs, `TrustStore` finds others' keys, `Verifier` believes or refuses a caller, `EventVerifier` a publisher.
A user's `current_transaction` goes along with every call. `peerseal.flask`, `peerseal.asgi`, `peerseal.requests`,
`peerseal.asynchronous` and `peerseal.kafka` are adapters, loaded where they are used. Start reading in `protocol/`,
then `verify/request.py`.
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
from peerseal.verify.replay.guards import FileReplayGuard, MemoryReplayGuard, ReplayGuard
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
    """Adapters on first use: ``peerseal.flask`` works after ``import peerseal``, which itself loads no framework."""
    if name in _ADAPTERS:
        return import_module(f"peerseal.{name}")
    raise AttributeError(f"module 'peerseal' has no attribute {name!r}")
