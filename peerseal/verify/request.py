"""Verification of a request token: the one place where a caller is believed.

The steps, in this order (docs/protocol.md), and the functions that do them:

     1  size and strict syntax                                  TokenReader.read
     2  header: typ, allowed alg, kid shape; claims' shape      TokenReader.read, check_request_claims
     3  the caller is allowed to call; its key is found by kid  Verifier._allowed_scopes, KeySource.key
     4  alg equals the key's; signature                         TokenReader.check_signature
     5  iss and sub equal the kid's owner                       check_parties
     6  aud                                                     check_parties
     7  times, lifetime cap, the key's window                   check_times, check_window
     8  binding: method, target, headers; content               check_binding, check_content
     9  transaction token, if any                               bound_transaction
    10  scope is the caller's, and the transaction's if any     Verifier.check
    11  replay: one atomic insert of (iss, jti)                 Verifier.claim

`Verifier.verify` does them all. Its parts are public: `Verifier.read` is steps 1 and 2, `Verifier.check` is steps 3 to
10 without a side effect, `Verifier.claim` is step 11. Each part raises the error of the step that fails, which names
the step (`PeersealError.step`). Step 3 checks the caller first and then fetches its key; step 8 reads the body; only
step 11 records anything.

A caller must be allowed by the service's code and by the registry's policy for the service, if there is one. Step 3
reads both. Step 10 uses the scopes that are in both. The registry is not asked about callers that the code does not
allow. Keys and policies come from a `KeySource` (`peerseal.trust.beliefs`).
"""

import time
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Self

from peerseal.errors import (
    CallerNotAllowed,
    Expired,
    InsufficientScope,
    Replayed,
    TrustUnavailable,
    WrongBinding,
)
from peerseal.protocol.encoding import DIGEST_OF_NOTHING, digest_header, target_digest
from peerseal.protocol.names import check_name_or_id, qualify
from peerseal.protocol.plain import kind_of, plain_text
from peerseal.protocol.policies import CallPolicy
from peerseal.protocol.tokens.claims import LEEWAY, check_parties, check_times
from peerseal.protocol.tokens.request import (
    ALWAYS_BOUND,
    REQUEST_LIFETIME_CAP,
    REQUEST_TYP,
    check_request_claims,
    usual_request_claims,
)
from peerseal.runtime.options import check_callable, check_number
from peerseal.runtime.tracing import Attributes, traced
from peerseal.trust.beliefs import KeySource, check_window, deadline_of
from peerseal.verify.allow import AllowedCallers, read_allow
from peerseal.verify.border import scopes_of_foreigner
from peerseal.verify.context import Transaction
from peerseal.verify.received import RequestHeaders, by_lower_name, content_of, text_of, value_of
from peerseal.verify.replay.guards import MemoryReplayGuard, ReplayGuard
from peerseal.verify.token_reader import TokenReader, UnverifiedServiceToken
from peerseal.verify.transaction import TRANSACTION_HEADER, bound_transaction, transaction_kid

__all__ = ["Peer", "RequestHeaders", "Verifier"]

_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class Peer(NamedTuple):
    """The proven caller of a request. The class itself proves nothing: use only a peer that a `Verifier` returned.

    ``service`` is its short name, or its id where it is of another trust domain; ``id`` is its service id, ``kid`` the
    key that signed, ``scopes`` what it may do here, in this ``transaction`` where there is one; ``claims`` are the
    token's verified claims.
    """

    service: str
    id: str
    kid: str
    scopes: frozenset[str]
    claims: Mapping[str, Any]
    transaction: Transaction | None = None

    @property
    def ctx(self) -> Mapping[str, Any]:
        """The signed data of the caller's application (``ctx``); empty if there is none."""
        return MappingProxyType(self.claims.get("ctx", {}))

    def __repr__(self) -> str:
        """Without the claims: they are long, and the application's ``ctx`` is not for logs."""
        return f"Peer(id={self.id!r}, kid={self.kid!r}, scopes={set(self.scopes)!r})"


class BodyLater(Enum):
    """The type of `BODY_LATER`."""

    MARKER = "body later"


BODY_LATER: Final = BodyLater.MARKER
"""Pass this as ``body`` of `Verifier.check` to check the content later, with `CheckedRequest.with_content`: for an
adapter that reads a long body only after all other checks."""


class CheckedRequest(NamedTuple):
    """A request that passed steps 1 to 10, but is not accepted yet: its token may have been used before. Step 11 finds
    that out, and stores (``peer.id``, ``jti``) until the time ``until`` (seconds since the epoch).

    After a check with `BODY_LATER` the content is not checked yet, and ``content_checked`` is False.
    """

    peer: Peer
    jti: str
    until: float
    content_checked: bool

    def with_content(self, content: bytes) -> Self:
        """A copy with ``content_checked``, after a check of the content. Raises WrongBinding."""
        check_content(self.peer.claims["content_digest"], content)
        return self._replace(content_checked=True)

    def with_digest(self, digest: str) -> Self:
        """As `with_content`, for content of which this program computed the SHA-256 itself, as ``sha-256=:…:``. Raises
        WrongBinding."""
        if digest != self.peer.claims["content_digest"]:
            raise WrongBinding("token is signed for another body")
        return self._replace(content_checked=True)


def of_caller(peer: Peer) -> Attributes:
    """What a span tells of a proven caller."""
    return {"peerseal.caller": peer.id, "peerseal.kid": peer.kid}


class Verifier:
    """Verifies the callers of one service, the audience.

    ``audience`` and the names in ``allow`` are short names or service ids; ``allow`` maps each caller, or ``"*"``, to
    its scopes; a caller that it does not name may not call. Raises ConfigurationError or InvalidName for an invalid
    ``allow``. Where the registry holds a policy for the audience (`KeySource.policy`), only what both allow is allowed.
    ``leeway`` and ``max_lifetime`` are in seconds. If verifiers share a guard, and any of them has a leeway above
    30 s, all must have that leeway. Without ``replay`` the guard is a `MemoryReplayGuard`, which other processes do not
    share.
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
        # Only a RemoteKeySource has it.
        self._recall: Callable[..., KeySource | None] | None = getattr(trust, "recall", None)
        # Only a TrustStore has it: what the caller believes of the ledger is compared there, later.
        self._heard: Callable[[str, str], object] | None = getattr(trust, "heard", None)
        self._audience_name = check_name_or_id(audience)
        self._allow = read_allow(allow)
        self._replay = MemoryReplayGuard(clock=clock) if replay is None else replay
        check_callable("replay.claim", getattr(self._replay, "claim", None))
        self._leeway = leeway
        self._claim_leeway = max(leeway, LEEWAY)
        self._max_lifetime = min(max_lifetime, REQUEST_LIFETIME_CAP)
        self._clock = clock
        self._resolved: tuple[str, AllowedCallers] | None = None
        self._by_policy: tuple[CallPolicy, AllowedCallers] | None = None
        self._reader = TokenReader(REQUEST_TYP, check_request_claims, usual_request_claims)

    @property
    def audience(self) -> str:
        """The service id of the audience, or its name as it was given while the trust domain is not known."""
        return self._audience_name if self._resolved is None else self._resolved[0]

    @property
    def trust(self) -> KeySource:
        """The source of keys and policies."""
        return self._trust

    @property
    def replay(self) -> ReplayGuard:
        """The guard that is asked in step 11."""
        return self._replay

    @property
    def cached_headers(self) -> int:
        """How many token headers are cached; only those of tokens with a valid signature are."""
        return len(self._reader)

    @traced("peerseal.verify", describe=of_caller)
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
        ``headers`` is looked up by lower-case names. ``scope`` is what the route needs; with None any allowed
        caller may use the route. Raises TokenError, Forbidden or TrustUnavailable.
        """
        unverified = self._reader.read(token)
        checked = self.check(unverified, method=method, target=target, body=body, headers=headers, scope=scope)
        return self.claim(checked)

    def read(self, token: str) -> UnverifiedServiceToken:
        """Steps 1 and 2: what the token says, with nothing proven. Raises MissingToken, MalformedToken or WrongType."""
        return self._reader.read(token)

    def recall(self, unverified: UnverifiedServiceToken, headers: Mapping[str, str]) -> KeySource | None:
        """A source for `check` that never blocks, for asyncio; None if memory does not hold all that `check` needs."""
        if self._recall is None or self._resolved is None:
            return None
        (audience, allowed), signer = self._resolved, unverified.signer
        if allowed.scopes(signer.service_id) is None:
            return self._trust  # never asked for a key: step 3 refuses this caller first
        minter_kid = transaction_kid(headers) if "tth" in unverified.claims else None
        return self._recall(signer.kid, audience, recorded_kid=minter_kid)

    def check(
        self,
        unverified: UnverifiedServiceToken,
        *,
        method: str,
        target: str,
        body: bytes | Callable[[], bytes] | BodyLater = b"",
        headers: Mapping[str, str] = _NO_HEADERS,
        scope: str | None = None,
        source: KeySource | None = None,
    ) -> CheckedRequest:
        """Steps 3 to 10, without a side effect; see `verify`. ``source`` replaces the verifier's own source of keys and
        policies. With `BODY_LATER` as ``body``, `CheckedRequest.with_content` checks the content."""
        source = self._trust if source is None else source
        signer, claims = unverified.signer, unverified.claims
        with self._deadline():  # bounds all waits of this check together
            audience, scopes = self._allowed_scopes(signer.service_id, source)  # 3
            key = source.key(signer.kid)
            self._reader.check_signature(unverified, key.public)  # 4
            check_parties(claims["iss"], key.service_id, claims["aud"], audience, subject=claims["sub"])  # 5, 6
            now, issued_at, leeway = self._clock(), claims["iat"], self._leeway
            check_times(issued_at, claims["nbf"], claims["exp"], now=now, leeway=leeway, cap=self._max_lifetime)  # 7
            check_window(issued_at, key, leeway)
            headers = by_lower_name(headers, claims["headers"])
            check_binding(claims, method, target, headers)  # 8
            if body is not BODY_LATER:
                check_content(claims["content_digest"], body)
            transaction = None
            if "tth" in claims or value_of(headers, TRANSACTION_HEADER) is not None:
                carried = key.federated
                transaction = bound_transaction(source, claims, headers, now=now, leeway=leeway, carried=carried)  # 9
                scopes &= transaction.scopes
        service = signer.service
        if key.federated is not None:
            scopes, service = scopes_of_foreigner(scopes, key.federated), signer.service_id
        if scope is not None and plain_text(scope) not in scopes:  # 10
            raise InsufficientScope(_refusal(signer.service_id, scope, audience, transaction))
        peer = Peer(service, signer.service_id, key.kid, scopes, MappingProxyType(claims), transaction)
        return CheckedRequest(peer, claims["jti"], claims["exp"] + self._claim_leeway, body is not BODY_LATER)

    def claim(self, checked: CheckedRequest) -> Peer:
        """Step 11: accept the request. Each request can be accepted once. Raises Replayed, Expired for a request that
        was checked so long ago that the guard may have forgotten it, or TrustUnavailable if the guard cannot answer."""
        peer, jti, until, content_checked = checked
        if not content_checked:
            raise ValueError("the content of the request was not checked: call with_content before")
        if self._clock() >= until:
            raise Expired("the token expired after its check, before it was accepted").at_step(11)
        try:
            first = self._replay.claim(peer.id, jti, until)
        except TrustUnavailable as error:
            error.at_step(11)
            raise
        if not first:
            raise Replayed(f"{peer.id} sent the token with jti {jti} before")
        if "cp" in peer.claims and self._heard is not None:
            self._heard(peer.claims["cp"], peer.kid)
        return peer

    def _allowed_scopes(self, caller: str, source: KeySource) -> tuple[str, frozenset[str]]:
        """The audience's service id, and the scopes that the caller has here by the service's code and the registry's
        policy. Raises CallerNotAllowed or TrustUnavailable."""
        audience, allowed = self._resolved or self._resolve_names(source)
        scopes = allowed.scopes(caller)
        policy = None if scopes is None else source.policy(audience)
        if policy is not None:
            by_policy = self._by_policy
            # A source gives the same object until the policy changes.
            if by_policy is None or by_policy[0] is not policy:
                by_policy = self._by_policy = policy, allowed.narrowed_by(policy)
            scopes = by_policy[1].scopes(caller)
        if scopes is None:
            raise CallerNotAllowed(f"{caller} may not call {audience}")
        return audience, scopes

    def _resolve_names(self, source: KeySource) -> tuple[str, AllowedCallers]:
        """The audience's service id and the allowed callers. To compute both, the trust domain must be known. Raises
        TrustUnavailable."""
        domain = source.domain
        self._resolved = qualify(self._audience_name, domain), AllowedCallers.of(self._allow, domain)
        return self._resolved


def check_binding(claims: Mapping[str, Any], method: str, target: str, headers: Mapping[str, str]) -> None:
    """Step 8 without the content. Raises WrongBinding."""
    if not (type(method) is type(target) is str):
        method, target = text_of(method, "the method"), text_of(target, "the target")
    if claims["method"] != method:
        raise WrongBinding(f"token is signed for method {claims['method']}, this request is {method}")
    if not target.isascii() or claims["target_digest"] != target_digest(target):
        raise WrongBinding("token is signed for another target")
    signed: Mapping[str, str] = claims["headers"]
    if headers is signed:  # what `by_lower_name` returns for equal headers
        return
    for name in {*ALWAYS_BOUND, *signed} if signed else ALWAYS_BOUND:
        if value_of(headers, name) != value_of(signed, name):
            raise WrongBinding(f"token is signed for another value of the header {name}")


def check_content(digest: str, body: bytes | Callable[[], bytes]) -> None:
    """Step 8, the content. Raises WrongBinding, and any error that the function ``body`` raises."""
    content = body if type(body) is bytes else content_of(body)
    if digest != (digest_header(content) if content else DIGEST_OF_NOTHING):
        raise WrongBinding(f"token is signed for another body; this body has {len(content)} bytes")


def _refusal(caller: str, scope: object, audience: str, transaction: Transaction | None) -> str:
    """The detail for the log. Adapters pass the empty scope if a path is ambiguous or has no entry in ``needs``."""
    text = plain_text(scope)
    if text == "":
        return f"{caller} called a path of {audience} that has no entry in needs=, or is ambiguous"
    shown = f"a scope of type {kind_of(scope)}" if text is None else text
    return f"{caller} may not use {shown} at {audience}{' in this transaction' if transaction else ''}"
