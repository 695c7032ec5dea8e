"""Event tokens (SPEC section 3): who published an event, for which user and transaction, and what it said.

An event token lives long and is good for one purpose: its one ``scope``, one ``audience`` of consumers, one topic, one
payload. `check_event_claims` checks the shape of claims and nothing else; what they must say here and now is checked in
`peerseal.peers.events`.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from peerseal.errors import InvalidName, MalformedToken
from peerseal.protocol.claims import claim, exactly, time_claim
from peerseal.protocol.names import split_service_id
from peerseal.protocol.policies import check_audience, check_scope
from peerseal.protocol.tokens import check_jti
from peerseal.protocol.transactions import MAX_USER, facts_claim, id_claim, text_claim

EVENT_TYP: Final = "peerseal-event+jwt"
EVENT_LIFETIME: Final = 7 * 24 * 3600
EVENT_LIFETIME_CAP: Final = 365 * 24 * 3600
MAX_TOPIC: Final = 249
"""Characters of a topic: Kafka takes no longer ones."""

_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
_HASH = re.compile(r"[0-9a-f]{64}")
_ALWAYS = frozenset(("iss", "sub", "aud", "scope", "event_id", "transaction_id", "rctx", "iat", "exp", "jti"))
_BINDING = frozenset(("topic", "event_payload_hash"))
_ACTOR = frozenset(("act",))
_BINDING_KINDS = (("topic", _TOPIC), ("event_payload_hash", _HASH))


@dataclass(frozen=True, slots=True)
class EventToken:
    """The claims of an event token. ``issuer`` is the publisher's service id, ``user`` the user's name, or the
    publisher's id where no user stands behind it; ``payload_hash`` the lower-case hex SHA-256 of the payload's bytes;
    ``authentication`` (``rctx``) how the user was authenticated.

    Where the registry issued it in exchange for a user's token, ``actor`` is the id of the service that asked, and
    ``topic`` and ``payload_hash`` may be None: then the token binds neither. Times are seconds since the epoch.
    """

    issuer: str
    user: str
    audience: str
    scope: str
    event_id: str
    transaction_id: str
    topic: str | None
    payload_hash: str | None
    issued_at: int
    expires_at: int
    jti: str
    authentication: Mapping[str, Any] = field(default_factory=dict)
    actor: str | None = None

    def claims(self) -> dict[str, Any]:
        """The payload. Raises MalformedToken for what no verifier would read."""
        claims: dict[str, Any] = {
            "iss": self.issuer,
            "sub": self.user,
            "aud": self.audience,
            "scope": self.scope,
            "event_id": self.event_id,
            "transaction_id": self.transaction_id,
            "rctx": dict(self.authentication),
            "iat": self.issued_at,
            "exp": self.expires_at,
            "jti": self.jti,
        }
        optional = {"topic": self.topic, "event_payload_hash": self.payload_hash}
        claims |= {name: value for name, value in optional.items() if value is not None}
        if self.actor is not None:
            claims["act"] = {"sub": self.actor}
        check_event_claims(claims)
        return claims


def check_event_claims(claims: dict[str, Any]) -> None:
    """Step 1 for an event token's payload: every claim there, none unknown, each of its type. Only a token with an
    actor (RFC 8693 section 4.1) may lack the topic or the payload's hash. Raises MalformedToken.

    It checks in place and builds nothing: it runs on every event.
    """
    if "act" in claims:
        exactly(claims, _ALWAYS | _ACTOR, _BINDING)
        actor = claim(claims, "act", dict)
        exactly(actor, frozenset(("sub",)))
        try:
            split_service_id(claim(actor, "sub", str))
        except InvalidName as error:
            raise MalformedToken("the actor is no service") from error
    else:
        exactly(claims, _ALWAYS | _BINDING)
    for name, kind in _BINDING_KINDS:
        if name in claims and not kind.fullmatch(claim(claims, name, str)):
            raise MalformedToken(f"claim {name} is none")
    claim(claims, "iss", str)
    text_claim(claims, "sub", MAX_USER)
    check_audience(claims["aud"])
    check_scope(claims["scope"])
    id_claim(claims, "event_id")
    id_claim(claims, "transaction_id")
    facts_claim(claims, "rctx")
    time_claim(claims, "iat")
    time_claim(claims, "exp")
    check_jti(claim(claims, "jti", str))


def payload_hash(payload: bytes) -> str:
    """The lower-case hex SHA-256 of the payload as published."""
    return hashlib.sha256(payload).hexdigest()
