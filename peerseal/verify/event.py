"""Verification of an event token: the one place where a publisher is believed.

The steps are those of a request's (`peerseal.verify.request`), where not said otherwise:

     1  size and strict syntax                                jose.split, b64url_decode, strict_json_object
     2  header: typ, allowed alg, kid shape; claims' shape    GoodHeaders.read, check_event_claims
     3  key by kid, present or past, asked only for           AllowPolicy.scopes, KeySource.recorded_key
        publishers that may send to this audience
     4  alg equals the key's; signature                       PublicKey.verify
     5  iss is the kid's owner                                EventVerifier.verify
     6  aud                                                   EventVerifier.verify
     7  times, lifetime cap, greatest age, the key's window   check_times, EventVerifier._check_age, check_window
     8  binding: topic, payload, event, transaction           EventVerifier._check_binding
    10  policy: may this publisher use this scope here, and   EventVerifier.verify, derivation_fault
        derive it, if it says so

There is no step 11: brokers deliver again, and consumers count an event once by (``iss``, ``event_id``).
"""

import time
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from datetime import timedelta
from types import MappingProxyType
from typing import Any, NamedTuple

from peerseal.errors import (
    BadSignature,
    CallerNotAllowed,
    Expired,
    InsufficientScope,
    MalformedToken,
    MissingToken,
    WrongAudience,
    WrongEvent,
    WrongIssuer,
    WrongPayload,
    WrongTopic,
    WrongTransaction,
)
from peerseal.protocol import jose
from peerseal.protocol.encoding import b64url_decode, strict_json_object
from peerseal.protocol.names import registry_id, split_service_id
from peerseal.protocol.plain import kind_of, plain_bytes, plain_text
from peerseal.protocol.policies import check_audience
from peerseal.protocol.tokens.event import EVENT_LIFETIME_CAP, EVENT_TYP, check_event_claims, payload_hash
from peerseal.protocol.tokens.request import BLANKS, LEEWAY, check_times
from peerseal.runtime.options import check_callable, check_flag, check_is, check_number
from peerseal.trust.beliefs import KeySource, check_window
from peerseal.verify.allow import AllowPolicy, read_allow
from peerseal.verify.audit_log import AuditLog
from peerseal.verify.derivation import derivation_fault
from peerseal.verify.token_headers import GoodHeaders, Signer

HEADER = "authorization"

MessageHeaders = Mapping[str, str | bytes] | Iterable[tuple[str, str | bytes | None]]
"""A message's headers, as a broker's library gives them."""


class Event(NamedTuple):
    """A proven event. Only verification makes one.

    ``issuer`` is the publisher's service id and ``publisher`` its short name; where the registry issued the token in
    exchange, these are of the service that asked for it. ``user`` is the user's name, or the publisher's id where no
    user stands behind it. Times are seconds since the epoch.
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
        """Without payload, user and claims: they are not for logs."""
        return f"Event(issuer={self.issuer!r}, id={self.id!r}, transaction_id={self.transaction_id!r})"

    @property
    def key(self) -> tuple[str, str]:
        """What an event is counted once by, however often it is delivered: (``iss``, ``event_id``)."""
        return self.issuer, self.id


class EventVerifier:
    """Verifies the events for one audience of consumers.

    ``allow`` maps each publisher (short name, id or ``"*"``) to the scopes it may send: nobody, by default. ``max_age``
    is the greatest age of an event that is accepted here, by its ``iat``. ``leeway`` is in seconds. A token that the
    registry issued in exchange for a user's counts only where ``allow`` gives its scope to ``registry`` as well as to
    the service that asked for it, and, where it binds no payload, only with ``unsafe_unbound_payload``: then whoever
    can write to the topic chooses what the event says. ``audit`` turns the audit of accepted events on or off; None
    leaves it to ``PEERSEAL_AUDIT`` (docs/how-to/audit.md). Raises ConfigurationError, InvalidName or MalformedToken.
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
        self._audience = check_audience(audience)
        self._allow = read_allow(allow)
        self._max_age = max_age.total_seconds()
        self._leeway = leeway
        self._unbound = unsafe_unbound_payload
        self._clock = clock
        self._place: tuple[AllowPolicy, str] | None = None
        self._good_headers = GoodHeaders(EVENT_TYP)
        self._audit: AuditLog | None = AuditLog(audit, clock=clock)

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
        token = _bearer(headers)
        policy, registry = self._place or self._find_place()
        header_segment, payload_segment, signature_segment, signing_input = jose.split(token)  # 1
        claims = strict_json_object(b64url_decode(payload_segment))
        signature = b64url_decode(signature_segment)
        remembered = self._good_headers.get(header_segment)
        signer = remembered or self._good_headers.read(header_segment)  # 2
        check_event_claims(claims)
        if "act" in claims or signer.caller == registry:  # 3
            publisher, scopes = self._exchanged(signer, claims, policy, registry)
        else:
            publisher, scopes = signer.caller, policy.scopes(signer.caller)
        if scopes is None:
            raise CallerNotAllowed(f"{publisher} may not publish to {self._audience} by {signer.caller}")
        key = self._trust.recorded_key(signer.kid)
        if signer.alg != key.public.alg or not key.public.verify(signing_input, signature):  # 4
            raise BadSignature("the key is for another algorithm, or the signature does not verify")
        if remembered is None:
            self._good_headers.remember(header_segment, signer)
        if claims["iss"] != key.service_id:  # 5
            raise WrongIssuer("iss is not the owner of the key")
        if claims["aud"] != self._audience:  # 6
            raise WrongAudience("the event is for other consumers")
        issued_at, now, leeway = claims["iat"], self._clock(), self._leeway
        check_times(issued_at, issued_at, claims["exp"], now=now, leeway=leeway, cap=EVENT_LIFETIME_CAP)  # 7
        self._check_age(issued_at, now)
        check_window(issued_at, key, leeway)
        self._check_binding(claims, payload, topic, event_id, transaction_id)  # 8
        if claims["scope"] not in scopes or (scope is not None and plain_text(scope) != claims["scope"]):  # 10
            raise InsufficientScope(f"{publisher} may not send {claims['scope']} here")
        fault = derivation_fault(self._trust, publisher, frozenset((claims["scope"],)), claims["rctx"])
        if fault is not None:
            raise InsufficientScope(fault)
        event = _event(claims, signer, publisher, payload, topic)
        if self._audit is not None:
            self._audit.event(event)
        return event

    def without_audit(self) -> "EventVerifier":
        """One that does the same, and remembers what this one does: for a consumer, which verifies an event once more
        at each attempt and audits it once."""
        other = copy(self)
        other._audit = None
        return other

    def _exchanged(
        self, signer: Signer, claims: Mapping[str, Any], policy: AllowPolicy, registry: str
    ) -> tuple[str, frozenset[str] | None]:
        """Whom the registry made an exchange for, which only the registry can say; and what that service may send,
        where both are allowed, the registry by name. Raises MalformedToken."""
        if signer.caller != registry or "act" not in claims:
            raise MalformedToken("the registry, and nobody else, issues tokens for an actor")
        actor: str = claims["act"]["sub"]
        scopes, exchanged = policy.scopes(actor), policy.callers.get(registry)
        return actor, None if scopes is None or exchanged is None else scopes & exchanged

    def _check_age(self, issued_at: int, now: float) -> None:
        if now - issued_at >= self._max_age + self._leeway:
            raise Expired(f"published {now - issued_at:.0f} s ago, which is longer than is accepted here")

    def _check_binding(
        self,
        claims: Mapping[str, Any],
        payload: bytes,
        topic: str,
        event_id: str | None,
        transaction_id: str | None,
    ) -> None:
        """Step 8. Only the registry's tokens may leave the topic to their scope and audience."""
        if "topic" in claims and claims["topic"] != plain_text(topic):
            raise WrongTopic("the event was published on another topic")
        hashed = claims.get("event_payload_hash")
        if hashed != _hash(payload) and not (hashed is None and self._unbound):
            raise WrongPayload("another payload was signed, or none")
        if event_id is not None and plain_text(event_id) != claims["event_id"]:
            raise WrongEvent("the token is for another event")
        if transaction_id is not None and plain_text(transaction_id) != claims["transaction_id"]:
            raise WrongTransaction("the token is for another transaction")

    def _find_place(self) -> tuple[AllowPolicy, str]:
        """The policy and the registry's id, once the trust domain is known."""
        domain = self._trust.domain
        self._place = AllowPolicy.of(self._allow, domain), registry_id(domain)
        return self._place


def _bearer(headers: MessageHeaders) -> str:
    """The one token in a message's headers (RFC 6750 section 2.1). Raises MissingToken or MalformedToken."""
    try:
        given: Any = headers.items() if isinstance(headers, Mapping) else headers
        given = () if given is None else given
        pairs = [(name, value) for name, value in given]  # pairs, or an error at once
    except Exception as error:  # another mapping's own, or that they are none
        raise MalformedToken(f"headers are a mapping or pairs, not {kind_of(headers)}") from error
    values = [value for name, value in pairs if _text(name).lower() == HEADER]
    if not values or values[0] is None:
        raise MissingToken("no token")
    if len(values) > 1:
        raise MalformedToken("two tokens")
    text = _text(values[0]).strip(BLANKS)
    if not text.isascii():
        raise MalformedToken("a token that is not ASCII")
    scheme, _, token = text.partition(" ")
    if scheme.lower() != "bearer":
        raise MissingToken("another scheme than Bearer")
    return token.lstrip(" ")


def _hash(payload: object) -> str:
    content = plain_bytes(payload)
    if content is None:
        raise WrongPayload(f"a payload is bytes, not {kind_of(payload)}")
    return payload_hash(content)


def _text(value: object) -> str:
    """A header's name or value, which clients of brokers give as text or as bytes. Raises MalformedToken."""
    text, octets = plain_text(value), plain_bytes(value)
    if text is None and octets is None:
        raise MalformedToken(f"a header is text or bytes, not {kind_of(value)}")
    return (octets or b"").decode("latin-1") if text is None else text


def _event(claims: dict[str, Any], signer: Signer, publisher: str, payload: bytes, topic: str) -> Event:
    return Event(
        publisher,
        signer.service if publisher == signer.caller else split_service_id(publisher)[1],
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
