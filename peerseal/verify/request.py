"""Verification of a request token: the one place where a caller is believed.

The steps, in this order (docs/protocol.md), and the function that does each:

     1  size and strict syntax                                   jose.split, b64url_decode, strict_json_object
     2  header: typ, allowed alg, kid shape; claims' shape       GoodHeaders.read, check_request_claims
     3  key by kid, asked only for callers that may call here    Verifier._scopes, KeySource.key
     4  alg equals the key's; signature                          PublicKey.verify
     5  iss and sub equal the kid's owner                        _check_parties
     6  aud                                                      _check_parties
     7  times, lifetime cap, the key's window                    check_times, check_window
     8  binding: method, target, content, headers                _check_binding
     9  transaction token, if any                                bound_transaction
    10  policy: may this caller use this scope here              Verifier._scopes, Verifier.verify
    11  replay: one atomic insert of (iss, jti)                  Verifier.verify

Each function raises the error of its step or returns. Nothing is recorded before step 11, nothing is fetched for a
caller that may not call, and the body is not even read before step 8. What may be called is what the service's code and
the registry's policy both allow (`AllowPolicy.within`); whoever the code does not name is refused without asking.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from copy import copy
from types import MappingProxyType
from typing import Any, NamedTuple

from peerseal.errors import (
    BadSignature,
    CallerNotAllowed,
    InsufficientScope,
    Replayed,
    WrongAudience,
    WrongBinding,
    WrongIssuer,
)
from peerseal.protocol import jose
from peerseal.protocol.encoding import DIGEST_OF_NOTHING, b64url_decode, digest_header, strict_json_object
from peerseal.protocol.names import check_peer_name, qualify
from peerseal.protocol.plain import kind_of, plain_text
from peerseal.protocol.policies import CallPolicy
from peerseal.protocol.tokens.claims import LEEWAY, check_times
from peerseal.protocol.tokens.request import ALWAYS_BOUND, REQUEST_LIFETIME_CAP, REQUEST_TYP, check_request_claims
from peerseal.runtime.options import check_callable, check_number
from peerseal.trust.beliefs import KeySource, TrustedKey, check_window
from peerseal.verify.allow import AllowPolicy, read_allow
from peerseal.verify.context import Transaction
from peerseal.verify.received import RequestHeaders, by_lower_name, content_of, text_of, value_of
from peerseal.verify.replay.guards import MemoryReplayGuard, ReplayGuard
from peerseal.verify.token_headers import GoodHeaders
from peerseal.verify.transaction import TRANSACTION_HEADER, bound_transaction

__all__ = ["Peer", "RequestHeaders", "Verifier"]

_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class Peer(NamedTuple):
    """The proven caller of a request. Only verification makes one.

    ``service`` is its short name, ``id`` its service id, ``kid`` the key that signed, ``scopes`` what it may do here,
    in this ``transaction`` where there is one; ``claims`` are the token's verified claims.
    """

    service: str
    id: str
    kid: str
    scopes: frozenset[str]
    claims: Mapping[str, Any]
    transaction: Transaction | None = None

    @property
    def ctx(self) -> Mapping[str, Any]:
        """What the caller's application said with this request, as signed; empty where it said nothing."""
        return MappingProxyType(self.claims.get("ctx", {}))

    def __repr__(self) -> str:
        """Without the claims: they are long, and the application's ``ctx`` is not for logs."""
        return f"Peer(id={self.id!r}, kid={self.kid!r}, scopes={set(self.scopes)!r})"


class Verifier:
    """Verifies the callers of one service, the audience.

    ``audience`` and the names in ``allow`` are short names or service ids; ``allow`` maps each caller, or ``"*"``, to
    its scopes, and whoever is not in it may not call. Raises ConfigurationError or InvalidName for an ``allow`` that
    says neither. Where the registry holds a policy for the audience (`KeySource.policy`), only what both allow is
    allowed. ``leeway`` and ``max_lifetime`` are in seconds; verifiers that share a guard have the same leeway where it
    is longer than 30. Without ``replay`` the guard is this process's memory, which other workers do not share.
    """

    def __init__(
        self,
        trust: KeySource,
        *,
        audience: str,
        allow: Mapping[str, Iterable[str]],
        replay: ReplayGuard | None = None,
        leeway: int = LEEWAY,
        max_lifetime: int = REQUEST_LIFETIME_CAP,
        clock: Callable[[], float] = time.time,
    ) -> None:
        check_number("leeway", leeway, at_most=3600)
        check_number("max_lifetime", max_lifetime, at_least=1)
        check_callable("clock", clock)
        check_callable("trust.key", getattr(trust, "key", None))
        self._trust = trust
        self._audience = check_peer_name(audience)
        self._allow = read_allow(allow)
        self._replay = MemoryReplayGuard(clock=clock) if replay is None else replay
        check_callable("replay.claim", getattr(self._replay, "claim", None))
        self._leeway = leeway
        self._max_lifetime = min(max_lifetime, REQUEST_LIFETIME_CAP)
        self._clock = clock
        self._place: tuple[str, AllowPolicy] | None = None
        self._within: tuple[CallPolicy, AllowPolicy] | None = None
        self._good_headers = GoodHeaders(REQUEST_TYP)

    def verify(
        self,
        token: str,
        *,
        method: str,
        target: str,
        body: bytes | Callable[[], bytes] = b"",
        headers: Mapping[str, str] = _NO_HEADERS,
        scope: str | None = None,
    ) -> Peer:
        """The proven caller of this request, or the error of the step that fails.

        ``target`` is the origin-form request-target as the server received it (RFC 9112 section 3.2.1), ``body`` the
        bytes as received or a function that reads them, called once and only after the signature was checked.
        ``headers`` is looked up by lower-case names. ``scope`` is what the route needs; None needs no more than an
        allowed caller. Raises TokenError, Forbidden or TrustUnavailable.
        """
        audience, policy = self._place or self._find_place()
        header_segment, payload_segment, signature_segment, signing_input = jose.split(token)  # 1
        claims = strict_json_object(b64url_decode(payload_segment))
        signature = b64url_decode(signature_segment)
        remembered = self._good_headers.get(header_segment)
        signer = remembered or self._good_headers.read(header_segment)  # 2
        caller = signer.caller
        check_request_claims(claims)
        scopes = self._scopes(caller, audience, policy)  # 3, 10
        key = self._trust.key(signer.kid)
        if signer.alg != key.public.alg:  # 4
            raise BadSignature(f"the key is for {key.public.alg}")
        if not key.public.verify(signing_input, signature):
            raise BadSignature("the signature does not verify")
        if remembered is None:
            self._good_headers.remember(header_segment, signer)
        _check_parties(claims, key, audience)  # 5, 6
        now = self._clock()
        issued_at, ends, leeway = claims["iat"], claims["exp"], self._leeway
        check_times(issued_at, claims["nbf"], ends, now=now, leeway=leeway, cap=self._max_lifetime)  # 7
        check_window(issued_at, key, leeway)
        headers = by_lower_name(headers, claims["headers"])
        _check_binding(claims, method, target, body, headers)  # 8
        transaction = None
        if "tth" in claims or value_of(headers, TRANSACTION_HEADER) is not None:
            transaction = bound_transaction(self._trust, claims, headers, now=now, leeway=leeway)  # 9
            scopes &= transaction.scopes
        if scope is not None and not _holds(scopes, scope):  # 10
            raise InsufficientScope(
                f"{caller} may not use {_shown(scope)} at {audience}{' in this transaction' * bool(transaction)}"
            )
        if not self._replay.claim(caller, claims["jti"], ends + max(leeway, LEEWAY)):  # 11
            raise Replayed("accepted before")
        return Peer(signer.service, caller, key.kid, scopes, MappingProxyType(claims), transaction)

    @property
    def replay(self) -> ReplayGuard:
        """The guard that is asked in step 11."""
        return self._replay

    def with_guard(self, replay: ReplayGuard) -> "Verifier":
        """One that does the same with another guard, and remembers what this one does."""
        other = copy(self)
        other._replay = replay
        return other

    def _scopes(self, caller: str, audience: str, code: AllowPolicy) -> frozenset[str]:
        """Steps 3 and 10, first half: what the caller may do here, by code and registry; both are put together once
        for each policy. Raises CallerNotAllowed or TrustUnavailable."""
        scopes = code.scopes(caller)
        if scopes is not None:
            laid_down = self._trust.policy(audience)
            if laid_down is not None:
                within = self._within
                if within is None or within[0] is not laid_down:
                    within = self._within = laid_down, code.within(laid_down)
                scopes = within[1].scopes(caller)
        if scopes is None:
            raise CallerNotAllowed(f"{caller} may not call {audience}")
        return scopes

    def _find_place(self) -> tuple[str, AllowPolicy]:
        """The audience's id and the policy, once the trust domain is known."""
        domain = self._trust.domain
        self._place = qualify(self._audience, domain), AllowPolicy.of(self._allow, domain)
        return self._place


def _check_parties(claims: Mapping[str, Any], key: TrustedKey, audience: str) -> None:
    """Steps 5 and 6. The key is the owner's, so the owner it is who speaks; and it speaks to us."""
    if claims["iss"] != key.service_id or claims["sub"] != key.service_id:
        raise WrongIssuer("iss or sub is not the owner of the key")
    if claims["aud"] != audience:
        raise WrongAudience("the token is for another service")


def _check_binding(
    claims: Mapping[str, Any],
    method: str,
    target: str,
    body: bytes | Callable[[], bytes],
    headers: Mapping[str, str],
) -> None:
    """Step 8. The cheap comparisons first; the body is read last."""
    if not (type(method) is type(target) is str):
        method, target = text_of(method, "the method"), text_of(target, "the target")
    if claims["method"] != method:
        raise WrongBinding("another method was signed")
    if not target.isascii() or claims["target_digest"] != digest_header(target.encode("ascii")):
        raise WrongBinding("another target was signed")
    _check_bound_headers(claims["headers"], headers)
    content = body if type(body) is bytes else content_of(body)
    if claims["content_digest"] != (digest_header(content) if content else DIGEST_OF_NOTHING):
        raise WrongBinding("another body was signed")


def _holds(scopes: frozenset[str], scope: object) -> bool:
    return plain_text(scope) in scopes


def _shown(scope: object) -> str:
    """For the log: a scope, or what stands in its place. Adapters ask for the empty one where nothing is served."""
    text = plain_text(scope)
    return f"a scope of type {kind_of(scope)}" if text is None else text or "a path that nothing names in needs"


def _check_bound_headers(bound: Mapping[str, str], headers: Mapping[str, str]) -> None:
    if headers is bound:
        return
    for name in ALWAYS_BOUND:
        if value_of(headers, name) != value_of(bound, name):
            raise WrongBinding(f"another {name} was signed")
    for name in bound:
        if value_of(headers, name) != value_of(bound, name):
            raise WrongBinding("another value of a bound header was signed")
