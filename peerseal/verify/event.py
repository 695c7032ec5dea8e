"""Verification of an event token: the one place where a publisher is believed.

The steps are those of a request (`peerseal.verify.request`), with these differences:

     1  size and strict syntax                                TokenReader.read
     2  header: typ, allowed alg, kid shape; claims' shape    TokenReader.read, check_event_claims
     3  the publisher may send to this audience; then the     EventVerifier._publisher, KeySource.recorded_key
        key by kid, present or past
     4  alg equals the key's; signature                       TokenReader.check_signature
     5  iss is the kid's owner                                check_parties
     6  aud                                                   check_parties
     7  times, lifetime cap, greatest age, the key's window   EventVerifier._check_times, check_times, check_window
     8  binding: topic, payload, event, transaction           EventVerifier._check_binding
    10  the scope is one of the publisher's; where it is      EventVerifier._check_scope, derivation_fault
        derived, the settings grant it

There is no step 11: brokers deliver again, and consumers count an event once by (``iss``, ``event_id``).
"""

import time
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from datetime import timedelta
from types import MappingProxyType
from typing import Any, NamedTuple

from peerseal.errors import (
    CallerNotAllowed,
    Expired,
    InsufficientScope,
    MalformedToken,
    MissingToken,
    TrustUnavailable,
    WrongEvent,
    WrongPayload,
    WrongTopic,
    WrongTransaction,
)
from peerseal.protocol.names import check_audience, registry_id, split_service_id
from peerseal.protocol.plain import kind_of, plain_bytes, plain_text, text_like
from peerseal.protocol.tokens.bearer import bearer_token
from peerseal.protocol.tokens.claims import LEEWAY, check_parties, check_times
from peerseal.protocol.tokens.event import (
    EVENT_LIFETIME_CAP,
    EVENT_TYP,
    check_event_claims,
    payload_hash,
    usual_event_claims,
)
from peerseal.runtime.options import check_callable, check_flag, check_is, check_number
from peerseal.runtime.tracing import Attributes, traced
from peerseal.trust.beliefs import KeySource, TrustedKey, check_window, deadline_of
from peerseal.verify.allow import AllowedCallers, read_allow
from peerseal.verify.audit_log import AuditLog
from peerseal.verify.border import event_scopes
from peerseal.verify.derivation import derivation_fault
from peerseal.verify.token_reader import ClaimedSigner, TokenReader

HEADER = "authorization"

MessageHeaders = Mapping[str, str | bytes] | Iterable[tuple[str, str | bytes | None]]
"""A message's headers, as a broker's library gives them."""


class Event(NamedTuple):
    """A proven event. Only verification makes one.

    ``issuer`` is the publisher's service id and ``publisher`` its short name, or the id too for a service of another
    trust domain; where the registry issued the token in
    exchange, these are of the service that asked for it. ``user`` is the user's name, or the publisher's id where the
    event is the publisher's own. Times are seconds since the epoch.
    """

    issuer: str
    publisher: str
    kid: str
    user: str
    scope: str
    id: str
    transaction_id: str
    topic: str
    issued_at: int
    expires_at: int
    authentication: Mapping[str, Any]
    payload: bytes
    claims: Mapping[str, Any]

    def __repr__(self) -> str:
        """Without payload, user and claims, which are not for logs."""
        return f"Event(issuer={self.issuer!r}, id={self.id!r}, transaction_id={self.transaction_id!r})"

    @property
    def key(self) -> tuple[str, str]:
        """(``iss``, ``event_id``): the same for each delivery of the event, so that it is counted once."""
        return self.issuer, self.id


def _of_publisher(event: Event) -> Attributes:
    return {"peerseal.caller": event.issuer, "peerseal.kid": event.kid, "peerseal.topic": event.topic}


class EventVerifier:
    """Verifies the events for one audience of consumers.

    ``allow`` maps each publisher (short name, id or ``"*"``) to the scopes it may send; a publisher that it does not
    name may send none. ``max_age`` is the greatest age of an event that is accepted here, by its ``iat``. ``leeway`` is
    in seconds. A token that the registry issued in exchange for a user's token counts only where ``allow`` gives its
    scope to ``registry`` as well as to the service that asked for it. Where it binds no payload, it counts only with
    ``unsafe_unbound_payload``: then anyone who can write to the topic chooses what the event says. ``audit`` turns the
    audit of accepted events on or off; None leaves it to ``PEERSEAL_AUDIT`` (docs/how-to/audit.md). Raises
    ConfigurationError, InvalidName or MalformedToken.
    """

    def __init__(
        self,
        trust: KeySource,
        *,
        audience: str,
        allow: Mapping[str, Iterable[str]],
        max_age: timedelta,
        leeway: int = LEEWAY,
        unsafe_unbound_payload: bool = False,
        audit: bool | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        check_is("max_age", max_age, timedelta, "a timedelta")
        check_number("max_age (seconds)", max_age.total_seconds(), at_least=1)
        check_number("leeway", leeway, at_most=3600)
        check_flag("unsafe_unbound_payload", unsafe_unbound_payload)
        check_callable("clock", clock)
        check_callable("trust.key", getattr(trust, "key", None))
        self._trust = trust
        self._deadline = deadline_of(trust)
        self._audience = check_audience(audience)
        self._allow = read_allow(allow)
        self._max_age = max_age.total_seconds()
        self._leeway = leeway
        self._unbound = unsafe_unbound_payload
        self._clock = clock
        self._resolved: tuple[AllowedCallers, str] | None = None
        self._reader = TokenReader(EVENT_TYP, check_event_claims, usual_event_claims)
        self._audit: AuditLog | None = AuditLog(audit, clock=clock)

    @traced("peerseal.verify", describe=_of_publisher)
    def verify(
        self,
        payload: bytes,
        headers: MessageHeaders,
        *,
        topic: str,
        event_id: str | None = None,
        transaction_id: str | None = None,
        scope: str | None = None,
    ) -> Event:
        """The proven event of this message, or the error of the step that fails.

        ``payload`` is the message's value as it came, ``topic`` where it came from. ``event_id`` and
        ``transaction_id`` are what the message says elsewhere about itself, if it does; ``scope`` is the one purpose
        that is served here, where not all in ``allow`` are. Raises TokenError, Forbidden or TrustUnavailable.
        """
        unverified = self._reader.read(message_token(headers))  # 1, 2
        signer, claims, *_ = unverified
        with self._deadline():
            publisher, scopes = self._publisher(signer, claims)  # 3
            key = self._trust.recorded_key(signer.kid)
            if key.federated is not None:
                scopes = event_scopes(scopes, key.federated)
            self._reader.check_signature(unverified, key.public)  # 4
            check_parties(claims["iss"], key.service_id, claims["aud"], self._audience)  # 5, 6
            self._check_times(claims, key)  # 7
            self._check_binding(claims, payload, topic, event_id, transaction_id)  # 8
            self._check_scope(claims, publisher, scopes, scope)  # 10
        event = _event(claims, signer, publisher, payload, topic, foreign=key.federated is not None)
        if self._audit is not None:
            self._audit.event(event)
        return event

    def without_audit(self) -> "EventVerifier":
        """A verifier with the same options and caches that audits nothing: for a consumer, which verifies an event
        again at each attempt and audits it once."""
        other = copy(self)
        other._audit = None
        return other

    def _publisher(self, signer: ClaimedSigner, claims: Mapping[str, Any]) -> tuple[str, frozenset[str]]:
        """The publisher's id and the scopes that it may send. A token with an actor is the registry's, in exchange for
        a user's token: its publisher is the actor, and ``allow`` must name the registry. Raises MalformedToken,
        CallerNotAllowed or TrustUnavailable."""
        allowed, registry = self._resolved or self._resolve_names()
        if ("act" in claims) != (signer.service_id == registry):
            raise MalformedToken(
                f"token is signed by {signer.service_id}; tokens with an actor are signed by {registry}"
            ).at_step(3)
        publisher: str = claims["act"]["sub"] if "act" in claims else signer.service_id
        scopes = allowed.scopes(publisher)
        if scopes is not None and signer.service_id == registry:
            by_exchange = allowed.callers.get(registry)
            scopes = None if by_exchange is None else scopes & by_exchange
        if scopes is None:
            raise CallerNotAllowed(f"{publisher} may not publish to {self._audience} by {signer.service_id}")
        return publisher, scopes

    def _check_times(self, claims: Mapping[str, Any], key: TrustedKey) -> None:
        issued_at, now, leeway = claims["iat"], self._clock(), self._leeway
        check_times(issued_at, issued_at, claims["exp"], now=now, leeway=leeway, cap=EVENT_LIFETIME_CAP)
        age = now - issued_at
        if age >= self._max_age + leeway:
            raise Expired(f"published {age:.0f} s ago, at most {self._max_age:.0f} s are accepted here")
        check_window(issued_at, key, leeway)

    def _check_binding(
        self,
        claims: Mapping[str, Any],
        payload: bytes,
        topic: str,
        event_id: str | None,
        transaction_id: str | None,
    ) -> None:
        """Only a token of the registry may bind no topic or no payload (`check_event_claims`)."""
        if "topic" in claims and claims["topic"] != plain_text(topic):
            raise WrongTopic(f"token is for topic {claims['topic']}, the event came on {text_like(topic)}")
        hashed = claims.get("event_payload_hash")
        if hashed != _hash(payload) and not (hashed is None and self._unbound):
            raise WrongPayload("token is for no payload" if hashed is None else "token is for another payload")
        if event_id is not None and plain_text(event_id) != claims["event_id"]:
            raise WrongEvent(f"token is for event {claims['event_id']}, the message says {text_like(event_id)}")
        if transaction_id is not None and plain_text(transaction_id) != claims["transaction_id"]:
            raise WrongTransaction(
                f"token is for transaction {claims['transaction_id']}, the message says {text_like(transaction_id)}"
            )

    def _check_scope(
        self, claims: Mapping[str, Any], publisher: str, scopes: frozenset[str], needed: str | None
    ) -> None:
        scope: str = claims["scope"]
        if scope not in scopes or (needed is not None and plain_text(needed) != scope):
            raise InsufficientScope(f"{publisher} may not send {scope} to {self._audience}")
        try:
            fault = derivation_fault(self._trust, publisher, frozenset((scope,)), claims["rctx"])
        except TrustUnavailable as error:
            error.at_step(10)
            raise
        if fault is not None:
            raise InsufficientScope(fault)

    def _resolve_names(self) -> tuple[AllowedCallers, str]:
        """The allowed publishers and the registry's id, which need the trust domain. Raises TrustUnavailable."""
        domain = self._trust.domain
        self._resolved = AllowedCallers.of(self._allow, domain), registry_id(domain)
        return self._resolved


def message_token(headers: MessageHeaders) -> str:
    """The one token in a message's headers (RFC 6750 section 2.1). Raises MissingToken or MalformedToken."""
    try:
        given: Any = headers.items() if isinstance(headers, Mapping) else headers
        pairs = [(name, value) for name, value in (() if given is None else given)]
    except Exception as error:  # also what a mapping of another library raises
        raise MalformedToken(f"headers are of type {kind_of(headers)}, expected a mapping or pairs") from error
    values = [value for name, value in pairs if _text(name).lower() == HEADER]
    if not values or values[0] is None:
        raise MissingToken("no token")
    if len(values) > 1:
        raise MalformedToken("two tokens")
    text = _text(values[0])
    if not text.isascii():
        raise MalformedToken("a token that is not ASCII")
    return bearer_token(text)


def _hash(payload: object) -> str:
    content = plain_bytes(payload)
    if content is None:
        raise WrongPayload(f"the payload is of type {kind_of(payload)}, expected bytes")
    return payload_hash(content)


def _text(value: object) -> str:
    """A header's name or value, which clients of brokers give as text or as bytes. Raises MalformedToken."""
    text, octets = plain_text(value), plain_bytes(value)
    if text is None and octets is None:
        raise MalformedToken(f"a header is of type {kind_of(value)}, expected text or bytes")
    return (octets or b"").decode("latin-1") if text is None else text


def _event(
    claims: dict[str, Any], signer: ClaimedSigner, publisher: str, payload: bytes, topic: str, *, foreign: bool
) -> Event:
    name = signer.service if publisher == signer.service_id else split_service_id(publisher)[1]
    return Event(
        publisher,
        publisher if foreign else name,
        signer.kid,
        claims["sub"],
        claims["scope"],
        claims["event_id"],
        claims["transaction_id"],
        topic,
        claims["iat"],
        claims["exp"],
        MappingProxyType(claims["rctx"]),
        payload,
        MappingProxyType(claims),
    )
