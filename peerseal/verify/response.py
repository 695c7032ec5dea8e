"""Verification of a response token: the one place where an answer is believed to be the callee's.

The steps, in this order (docs/protocol.md), and the functions that do them:

     1  size and strict syntax                                    TokenReader.read
     2  header: typ, allowed alg, kid shape; claims' shape        TokenReader.read, check_response_claims
     3  req is the hash of the request token that was sent        ResponseVerifier.read
     4  the kid is one of the service that was called; its key    ResponseVerifier.check, KeySource.key
     5  alg equals the key's; signature                           TokenReader.check_signature
     6  iss is that service, aud is the caller                    check_parties
     7  times, lifetime cap, the key's window                     check_times, check_window
     8  status, headers                                           _check_head
     9  content                                                   CheckedResponse.with_content

No replay guard is needed: a request token is accepted once, and an answer is bound to it. The body is read last, so
that an answer without a good token costs no memory. Every failure is a ResponseRefused.
"""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Self

from peerseal.errors import (
    BadSignature,
    Expired,
    LifetimeTooLong,
    MalformedToken,
    MissingToken,
    NotYetValid,
    PeersealError,
    ResponseRefused,
    RevokedKey,
    TrustUnavailable,
    UnknownKey,
    WrongAudience,
    WrongIssuer,
    WrongType,
)
from peerseal.protocol.encoding import DIGEST_OF_NOTHING, digest_header
from peerseal.protocol.names import check_name_or_id, qualify
from peerseal.protocol.tokens.bearer import BLANKS
from peerseal.protocol.tokens.claims import LEEWAY, check_parties, check_times
from peerseal.protocol.tokens.response import (
    ALWAYS_SIGNED,
    LENGTH,
    RESPONSE_HEADER,
    RESPONSE_LIFETIME,
    RESPONSE_TYP,
    check_response_claims,
    request_hash,
    signed_headers,
)
from peerseal.runtime.options import check_callable, check_header_name, check_number
from peerseal.trust.beliefs import KeySource, TrustedKey, check_window, deadline_of
from peerseal.verify.token_reader import TokenReader, UnverifiedServiceToken

UNSIGNED: Final = "unsigned_response"
WRONG_BINDING: Final = "wrong_binding"

_CODES: Final[tuple[tuple[tuple[type[PeersealError], ...], str], ...]] = (
    ((MalformedToken, MissingToken, WrongType), "malformed_response"),
    ((WrongIssuer, WrongAudience), "wrong_response"),
    ((BadSignature,), "bad_signature"),
    ((UnknownKey,), "unknown_key"),
    ((RevokedKey,), "revoked_key"),
    ((Expired, NotYetValid, LifetimeTooLong), "expired"),
    ((TrustUnavailable,), "trust_unavailable"),
)
_HINTS: Final[Mapping[str, str]] = {
    "content-encoding": "a proxy compresses or unpacks answers on the way (nginx: gzip off for this location)",
    "etag": "a proxy that compresses makes ETags weak (nginx: gzip off for this location)",
    "location": "a proxy rewrites redirects (nginx: proxy_redirect off)",
    "content-type": "a proxy adds or replaces the content type",
    "set-cookie": "no service signs it",
}
_NOT_VERIFIED: Final = (
    "the service did not verify this caller (its log has the reason), or a proxy answered in its place"
)
_IN_FRONT: Final = "a proxy in front answered in its place, and the service may be down or overloaded"
_WHY_UNSIGNED: Final[Mapping[int, str]] = {
    401: _NOT_VERIFIED,
    403: _NOT_VERIFIED,
    413: "the body of the request is longer than the service (max_body) or a proxy in front takes",
    502: _IN_FRONT,
    503: f"the service cannot verify callers now (its log has the reason), or {_IN_FRONT}",
    504: _IN_FRONT,
}
"""What an answer of this status without a token may mean."""
_UNASKED: Final = (
    "the service does not sign answers (sign_responses), or not this one (its log has the reason): its path is public,"
    " its body too long or a stream, or a header that chooses it was added to the request; or a proxy answered in place"
    " of the service or removed the header"
)
_INFORMATIONAL: Final = "an informational answer came before the answer, and this client does not wait for more"
_ASKED_BY: Final = {206: ("range",), 304: ("if-none-match", "if-modified-since")}
"""The headers of a request that ask for answers of these statuses (RFC 9110 sections 13 and 14)."""
_SHOWN = 80  # characters of a header that is not verified


class ResponseHead(NamedTuple):
    """The head of an answer as it arrived, with nothing proven. ``headers`` are all pairs of names and values, in any
    case and order."""

    status: int
    headers: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, status: int, headers: Iterable[tuple[str, str]]) -> Self:
        """From the status and the pairs."""
        return cls(status, tuple(headers))

    @property
    def token(self) -> str | None:
        """The response token; None if the answer has none. Two values are joined, and so no token."""
        return self.value(RESPONSE_HEADER)

    def value(self, name: str) -> str | None:
        """The value of one header."""
        lower = name.lower()
        return signed_headers(self.headers, (lower,)).get(lower)


class CheckedResponse(NamedTuple):
    """An answer whose steps 1 to 8 passed; `with_content` is step 9. ``claims`` are the verified claims, ``kid`` the
    key of the callee that signed."""

    kid: str
    claims: Mapping[str, Any]

    def with_content(self, content: bytes) -> Self:
        """The same, after a check of the body's bytes as they arrived, before they are unpacked. Raises
        ResponseRefused."""
        if self.claims["content_digest"] != (digest_header(content) if content else DIGEST_OF_NOTHING):
            raise ResponseRefused(
                WRONG_BINDING,
                f"the body of {len(content)} bytes is not the one that was signed; was it cut or changed on the way?",
            )
        return self


class ResponseVerifier:
    """Verifies the answers of the service ``audience`` to requests of the service ``caller``: short names or ids.

    ``headers`` names further headers of answers that count only if they are signed. ``leeway`` is in seconds.
    """

    def __init__(
        self,
        trust: KeySource,
        *,
        caller: str,
        audience: str,
        headers: Collection[str] = (),
        leeway: int = LEEWAY,
        clock: Callable[[], float] = time.time,
    ) -> None:
        check_number("leeway", leeway, at_most=3600)
        check_callable("clock", clock)
        check_callable("trust.key", getattr(trust, "key", None))
        for name in headers:
            check_header_name("headers", name)
        self._trust = trust
        self._deadline = deadline_of(trust)
        # Only a TrustStore has it: what the callee believes of the ledger is compared there, later.
        self._heard: Callable[[str, str], object] | None = getattr(trust, "heard", None)
        self._accepted: Callable[[str, str], object] = getattr(trust, "accepted", _told_nothing)
        self._names = check_name_or_id(caller), check_name_or_id(audience)
        self._signed = (*ALWAYS_SIGNED, *(name.lower() for name in headers))
        self._leeway = leeway
        self._clock = clock
        self._parties: tuple[str, str] | None = None
        self._reader = TokenReader(RESPONSE_TYP, check_response_claims, _no_usual_claims)
        self._known_key: Callable[[str], TrustedKey | None] = getattr(trust, "known_key", _no_known_key)

    def verify(self, head: ResponseHead, *, request_token: str, body: bytes) -> CheckedResponse:
        """The verified answer to the request that carried ``request_token``, a compact JWS. ``body`` is its body as it
        arrived, empty for HEAD. Raises ResponseRefused."""
        return self.check(head, request_token=request_token).with_content(body)

    def check(self, head: ResponseHead, *, request_token: str) -> CheckedResponse:
        """Steps 1 to 8. May wait for the registry. Raises ResponseRefused."""
        unverified = self.read(head, request_token=request_token)
        with _refusing(), self._deadline():
            checked = self._checked(head, unverified, self._trust.key(self._kid_of(unverified)))
        self._accepted(request_token, checked.kid)
        return checked

    def check_from_memory(self, head: ResponseHead, *, request_token: str) -> CheckedResponse | None:
        """As `check`, but it never waits: None where memory lacks the key."""
        unverified = self.read(head, request_token=request_token)
        with _refusing():
            key = None if self._parties is None else self._known_key(self._kid_of(unverified))
            checked = None if key is None else self._checked(head, unverified, key)
        if checked is not None:
            self._accepted(request_token, checked.kid)
        return checked

    def read(self, head: ResponseHead, *, request_token: str) -> UnverifiedServiceToken:
        """Steps 1 to 3: what the answer's token says, with nothing proven. Raises ResponseRefused."""
        if head.token is None:
            raise ResponseRefused(UNSIGNED, _why_unsigned(head), answered=head.status)
        with _refusing():
            unverified = self._reader.read(head.token)
            if unverified.claims["req"] != request_hash(request_token):
                raise ResponseRefused("wrong_response", "the token is for the answer to another request")
        return unverified

    def _kid_of(self, unverified: UnverifiedServiceToken) -> str:
        """Step 4: the kid, if it is one of the service that was called. Nothing is asked about another service."""
        _, audience = self._resolved()
        signer = unverified.signer
        if signer.service_id != audience:
            raise WrongIssuer(f"the token is signed by {signer.service_id}, the call was to {audience}")
        return signer.kid

    def _checked(self, head: ResponseHead, unverified: UnverifiedServiceToken, key: TrustedKey) -> CheckedResponse:
        """Steps 5 to 8."""
        caller, _ = self._resolved()
        claims, now, leeway = unverified.claims, self._clock(), self._leeway
        self._reader.check_signature(unverified, key.public)
        check_parties(claims["iss"], key.service_id, claims["aud"], caller)
        issued_at = claims["iat"]
        check_times(issued_at, issued_at, claims["exp"], now=now, leeway=leeway, cap=RESPONSE_LIFETIME)
        check_window(issued_at, key, leeway)
        _check_head(claims, head, self._signed)
        if "cp" in claims and self._heard is not None:
            self._heard(claims["cp"], key.kid)
        return CheckedResponse(key.kid, MappingProxyType(claims))

    def _resolved(self) -> tuple[str, str]:
        """The service ids of caller and callee, which need the trust domain. Raises TrustUnavailable."""
        if self._parties is None:
            caller, audience = self._names
            domain = self._trust.domain
            self._parties = qualify(caller, domain), qualify(audience, domain)
        return self._parties


def check_asked_for(status: int, sent: Collection[str]) -> None:
    """Passes an answer whose status the request asked for. ``sent`` are the names of the request's headers, in any
    case. A part, or the word that nothing changed, is otherwise for a header that was added on the way. Raises
    ResponseRefused."""
    asking = _ASKED_BY.get(status)
    if asking is not None and not {name.lower() for name in sent}.intersection(asking):
        header = " or ".join(asking)
        raise ResponseRefused(
            WRONG_BINDING, f"the answer has status {status}, and the request has no {header}: it was added on the way"
        )


@contextmanager
def _refusing() -> Iterator[None]:
    """Turns the errors of all steps into ResponseRefused, with the code of the answer."""
    try:
        yield
    except ResponseRefused:
        raise
    except PeersealError as error:
        code = next((code for kinds, code in _CODES if isinstance(error, kinds)), "malformed_response")
        raise ResponseRefused(code, str(error)) from error


def _check_head(claims: Mapping[str, Any], head: ResponseHead, names: Collection[str]) -> None:
    """Step 8: the status, and the signed headers. Raises ResponseRefused."""
    if claims["status"] != head.status:
        raise ResponseRefused(
            WRONG_BINDING, f"the answer has status {head.status}, signed was {claims['status']}{_by_proxy(head)}"
        )
    signed: Mapping[str, str] = claims["headers"]
    arrived = signed_headers(head.headers, {*names, *signed})
    if LENGTH in signed:
        arrived.setdefault(LENGTH, signed[LENGTH])
    if arrived == signed:
        return
    name = next(name for name in (*names, *signed) if arrived.get(name) != signed.get(name))
    shown = f"the header {name} is {_shown(arrived.get(name))}, signed was {_shown(signed.get(name))}"
    hint = _HINTS.get(name, "a proxy adds, removes or rewrites this header")
    if name not in signed and name not in (*ALWAYS_SIGNED, *_HINTS):
        hint = "the service does not sign it (bind_response_headers of its PeerAuth), or a proxy added it"
    raise ResponseRefused(WRONG_BINDING, f"{shown}: {hint}{_by_proxy(head)}")


def _why_unsigned(head: ResponseHead) -> str:
    """What an answer without a token may mean."""
    cause = _INFORMATIONAL if head.status < HTTPStatus.OK else _WHY_UNSIGNED.get(head.status, _UNASKED)
    return f"the answer has status {head.status} and no {RESPONSE_HEADER}: {cause}{_by_proxy(head)}"


def _by_proxy(head: ResponseHead) -> str:
    """The names that proxies write into answers, as a hint: they are not verified."""
    named = [f"{name}: {_shown(value)}" for name in ("Via", "Server") if (value := head.value(name))]
    return f"; unverified {', '.join(named)}" if named else ""


def _shown(value: str | None) -> str:
    return "missing" if value is None else repr(value.strip(BLANKS)[:_SHOWN])


def _no_usual_claims(_: bytes) -> None:
    """Response tokens are all read strictly."""


def _told_nothing(_: str, __: str) -> None:
    """A source that tells callees nothing."""


def _no_known_key(_: str) -> None:
    """A source that may have to wait for each key."""
