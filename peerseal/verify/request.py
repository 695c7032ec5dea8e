"""Verification of a request token: the one place where a caller is believed.

The steps, in this order (docs/protocol.md), and the functions that do them:

     1  size and strict syntax                               TokenReader.read
     2  header: typ, allowed alg, kid shape; claims' shape   TokenReader.read, check_request_claims
     3  key by kid, asked only for callers that may call     Verifier._admit, KeySource.key
     4  alg equals the key's; signature                      TokenReader.check_signature
     5  iss and sub equal the kid's owner                    check_parties
     6  aud                                                  check_parties
     7  times, lifetime cap, the key's window                check_times, check_window
     8  binding: method, target, headers; content            check_binding, check_content
     9  transaction token, if any                            bound_transaction
    10  policy: may this caller use this scope here          Verifier._admit, Verifier.check
    11  replay: one atomic insert of (iss, jti)              Verifier.claim

`Verifier.verify` does them all. Its parts are public: `Verifier.read` is steps 1 and 2, `Verifier.check` is steps 3 to
10 without a side effect, `Verifier.claim` is step 11. Each part raises the error of the step that fails. Nothing is
recorded before step 11, no key is fetched for a caller that may not call, and the body is not read before step 8. A
caller must be allowed by the service's code and by the registry's policy for the service, if there is one. The registry
is not asked about callers that the code does not allow.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Self

from peerseal.errors import (
    CallerNotAllowed,
    Expired,
    InsufficientScope,
    Replayed,
    WrongBinding,
)
from peerseal.protocol.encoding import DIGEST_OF_NOTHING, digest_header
from peerseal.protocol.names import check_name_or_id, qualify
from peerseal.protocol.plain import kind_of, plain_text
from peerseal.protocol.policies import CallPolicy
from peerseal.protocol.tokens.claims import LEEWAY, check_parties, check_times
from peerseal.protocol.tokens.request import ALWAYS_BOUND, REQUEST_LIFETIME_CAP, REQUEST_TYP, check_request_claims
from peerseal.runtime.options import check_callable, check_number
from peerseal.trust.beliefs import KeySource, check_window, deadline_of
from peerseal.verify.allow import AllowedCallers, read_allow
from peerseal.verify.context import Transaction
from peerseal.verify.received import RequestHeaders, by_lower_name, content_of, text_of, value_of
from peerseal.verify.replay.guards import MemoryReplayGuard, ReplayGuard
from peerseal.verify.token_reader import TokenReader, UnverifiedPeerToken
from peerseal.verify.transaction import TRANSACTION_HEADER, bound_transaction, transaction_kid

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


def read_later() -> bytes:
    """As the ``body`` of `Verifier.check` it leaves the content to `CheckedRequest.with_content`: for an adapter that
    reads a long body only once all else is checked."""
    raise RuntimeError("the body was to be read later: it is not read in a check")


class CheckedRequest(NamedTuple):
    """A request that passed steps 1 to 10, and what step 11 claims: (``peer.id``, ``jti``), until ``until`` (seconds
    since the epoch). It is not accepted yet: the same request may have been accepted before.

    ``has_content`` is False while the content is not checked (`read_later`).
    """

    peer: Peer
    jti: str
    until: float
    has_content: bool

    def with_content(self, content: bytes) -> Self:
        """The same with its content checked. Raises WrongBinding."""
        check_content(self.peer.claims["content_digest"], content)
        return self._replace(has_content=True)


class Verifier:
    """Verifies the callers of one service, the audience.

    ``audience`` and the names in ``allow`` are short names or service ids; ``allow`` maps each caller, or ``"*"``, to
    its scopes; a caller that it does not name may not call. Raises ConfigurationError or InvalidName for an invalid
    ``allow``. Where the registry holds a policy for the audience (`KeySource.policy`), only what both allow is allowed.
    ``leeway`` and ``max_lifetime`` are in seconds; verifiers that share a guard have the same leeway where it is longer
    than 30. Without ``replay`` the guard is this process's memory, which other workers do not share.
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
        self._deadline = deadline_of(trust)
        self._recall: Callable[..., KeySource | None] | None = getattr(trust, "recall", None)
        self._audience_name = check_name_or_id(audience)
        self._allow = read_allow(allow)
        self._replay = MemoryReplayGuard(clock=clock) if replay is None else replay
        check_callable("replay.claim", getattr(self._replay, "claim", None))
        self._leeway = leeway
        self._claim_leeway = max(leeway, LEEWAY)
        self._max_lifetime = min(max_lifetime, REQUEST_LIFETIME_CAP)
        self._clock = clock
        self._in_domain: tuple[str, AllowedCallers] | None = None
        self._by_policy: tuple[CallPolicy, AllowedCallers] | None = None
        self._reader = TokenReader(REQUEST_TYP, check_request_claims)

    @property
    def trust(self) -> KeySource:
        """What is asked for keys and policies."""
        return self._trust

    @property
    def replay(self) -> ReplayGuard:
        """The guard that is asked in step 11."""
        return self._replay

    @property
    def cached_headers(self) -> int:
        """How many token headers are cached, of tokens with a good signature only."""
        return len(self._reader)

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
        unverified = self._reader.read(token)
        checked = self.check(unverified, method=method, target=target, body=body, headers=headers, scope=scope)
        return self.claim(checked)

    def read(self, token: str) -> UnverifiedPeerToken:
        """Steps 1 and 2: what the token says, with nothing proven. Raises MissingToken, MalformedToken or WrongType."""
        return self._reader.read(token)

    def recall(self, unverified: UnverifiedPeerToken, headers: Mapping[str, str]) -> KeySource | None:
        """A source for `check` that never waits, for an event loop; None where the check may have to wait."""
        if self._recall is None or self._in_domain is None:
            return None
        (audience, allowed), signer = self._in_domain, unverified.signer
        if allowed.scopes(signer.caller) is None:
            return self._trust  # it is not asked: the check refuses this caller before
        minter_kid = transaction_kid(headers) if "tth" in unverified.claims else None
        return self._recall(signer.kid, audience, recorded_kid=minter_kid)

    def check(
        self,
        unverified: UnverifiedPeerToken,
        *,
        method: str,
        target: str,
        body: bytes | Callable[[], bytes] = b"",
        headers: Mapping[str, str] = _NO_HEADERS,
        scope: str | None = None,
        source: KeySource | None = None,
    ) -> CheckedRequest:
        """Steps 3 to 10, without a side effect; see `verify`. The keys and policies are those of ``source``, where that
        is given. With `read_later` as ``body`` the content is left to `CheckedRequest.with_content`."""
        source = self._trust if source is None else source
        signer, claims = unverified.signer, unverified.claims
        with self._deadline():
            audience, scopes = self._admit(signer.caller, source)  # 3, 10
            key = source.key(signer.kid)
            self._reader.check_signature(unverified, key.public)  # 4
            check_parties(claims["iss"], key.service_id, claims["aud"], audience, subject=claims["sub"])  # 5, 6
            now, issued_at, leeway = self._clock(), claims["iat"], self._leeway
            check_times(issued_at, claims["nbf"], claims["exp"], now=now, leeway=leeway, cap=self._max_lifetime)  # 7
            check_window(issued_at, key, leeway)
            headers = by_lower_name(headers, claims["headers"])
            check_binding(claims, method, target, headers)  # 8
            if body is not read_later:
                check_content(claims["content_digest"], body)
            transaction = None
            if "tth" in claims or value_of(headers, TRANSACTION_HEADER) is not None:
                transaction = bound_transaction(source, claims, headers, now=now, leeway=leeway)  # 9
                scopes &= transaction.scopes
        if scope is not None and plain_text(scope) not in scopes:  # 10
            raise InsufficientScope(_refusal(signer.caller, scope, audience, transaction))
        peer = Peer(signer.service, signer.caller, key.kid, scopes, MappingProxyType(claims), transaction)
        return CheckedRequest(peer, claims["jti"], claims["exp"] + self._claim_leeway, body is not read_later)

    def claim(self, checked: CheckedRequest) -> Peer:
        """Step 11: accept the request, which is possible once. Raises Replayed, Expired for a request that was checked
        so long ago that the guard may have forgotten it, or TrustUnavailable where the guard cannot be asked."""
        peer, jti, until, has_content = checked
        if not has_content:
            raise ValueError("the content of the request was not checked: call with_content before")
        if self._clock() >= until:
            raise Expired("the token expired between its check and its claim")
        if not self._replay.claim(peer.id, jti, until):
            raise Replayed(f"{peer.id} sent the token with jti {jti} before")
        return peer

    def _admit(self, caller: str, source: KeySource) -> tuple[str, frozenset[str]]:
        """The audience's service id, and the scopes that the caller has here by the service's code and the registry's
        policy. Raises CallerNotAllowed or TrustUnavailable."""
        audience, allowed = self._in_domain or self._enter_domain(source)
        scopes = allowed.scopes(caller)
        policy = None if scopes is None else source.policy(audience)
        if policy is not None:
            by_policy = self._by_policy
            if by_policy is None or by_policy[0] is not policy:
                by_policy = self._by_policy = policy, allowed.restricted_by(policy)
            scopes = by_policy[1].scopes(caller)
        if scopes is None:
            raise CallerNotAllowed(f"{caller} may not call {audience}")
        return audience, scopes

    def _enter_domain(self, source: KeySource) -> tuple[str, AllowedCallers]:
        """The audience's service id and the allowed callers, which need the trust domain. Raises TrustUnavailable."""
        domain = source.domain
        self._in_domain = qualify(self._audience_name, domain), AllowedCallers.of(self._allow, domain)
        return self._in_domain


def check_binding(claims: Mapping[str, Any], method: str, target: str, headers: Mapping[str, str]) -> None:
    """Step 8 without the content. Raises WrongBinding."""
    if not (type(method) is type(target) is str):
        method, target = text_of(method, "the method"), text_of(target, "the target")
    if claims["method"] != method:
        raise WrongBinding(f"token is signed for method {claims['method']}, this request is {method}")
    if not target.isascii() or claims["target_digest"] != digest_header(target.encode("ascii")):
        raise WrongBinding("token is signed for another target")
    bound: Mapping[str, str] = claims["headers"]
    if headers is bound:
        return
    for name in {*ALWAYS_BOUND, *bound}:
        if value_of(headers, name) != value_of(bound, name):
            raise WrongBinding(f"token is signed for another value of the header {name}")


def check_content(digest: str, body: bytes | Callable[[], bytes]) -> None:
    """Step 8, the content. Raises WrongBinding, and what a function ``body`` raises."""
    content = body if type(body) is bytes else content_of(body)
    if digest != (digest_header(content) if content else DIGEST_OF_NOTHING):
        raise WrongBinding(f"token is signed for another body, this one has {len(content)} bytes")


def _refusal(caller: str, scope: object, audience: str, transaction: Transaction | None) -> str:
    """For the log. Adapters ask for the empty scope where no route is served."""
    text = plain_text(scope)
    shown = f"a scope of type {kind_of(scope)}" if text is None else text or "a path that nothing names in needs"
    return f"{caller} may not use {shown} at {audience}{' in this transaction' if transaction else ''}"
