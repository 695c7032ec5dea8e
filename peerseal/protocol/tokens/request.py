"""The tokens that services sign: request tokens and proofs of possession (docs/protocol.md).

Each kind has its own ``typ`` and is good for one purpose. Times are seconds since the epoch. A token type's
``from_claims`` checks the shape of claims and nothing else; what they must say here and now is checked in
`peerseal.verify.request`, step by step.
"""

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Final, Self

from peerseal.errors import (
    BadSignature,
    Expired,
    LifetimeTooLong,
    MalformedToken,
    NotYetValid,
    WrongAudience,
    WrongIssuer,
    WrongType,
)
from peerseal.protocol import jose
from peerseal.protocol.encoding import b64url, b64url_decode, canonical_json, strict_json_object
from peerseal.protocol.keys import KeyPair, PublicKey
from peerseal.protocol.names import make_kid
from peerseal.protocol.plain import kind_of, plain_text
from peerseal.protocol.tokens.claims import LATEST_TIME, claim, exactly, time_claim

REQUEST_TYP: Final = "peerseal-request+jwt"
PROOF_TYP: Final = "peerseal-proof+jwt"

REQUEST_LIFETIME = 60
REQUEST_LIFETIME_CAP = 300
PROOF_LIFETIME = 60
LEEWAY = 30
"""Seconds by which two honest clocks may differ."""

MAX_CTX = 1024
"""Bytes of the application's own ``ctx``, as canonical JSON."""

ALWAYS_BOUND = ("content-type", "content-encoding")
"""Headers that a request token binds wherever the request has them: they say how the body is read."""

BLANKS = " \t"
"""What stands around a header's value and is no part of it (RFC 9110 section 5.5)."""

_JTI = re.compile(r"[A-Za-z0-9_-]{21}[AQgw]")  # 128 bits in canonical base64url
_REQUEST_MEMBERS = (
    *("iss", "sub", "aud", "jti", "method", "target_digest", "content_digest"),
    *("iat", "nbf", "exp", "headers"),
)
_request_values = itemgetter(*_REQUEST_MEMBERS)
_REQUEST_OPTIONAL = frozenset(("tth", "ctx"))
_PROOF_MEMBERS = frozenset(("iss", "aud", "iat", "exp", "jti", "jwk"))


def new_jti() -> str:
    """128 random bits, unpadded base64url."""
    return b64url(secrets.token_bytes(16))


def check_jti(jti: str) -> str:
    """The jti itself if it is 128 bits in canonical base64url. Raises MalformedToken."""
    text = plain_text(jti)
    if text is None or not _JTI.fullmatch(text):
        raise MalformedToken("jti is not 128 bits")
    return text


@dataclass(frozen=True, slots=True)
class RequestToken:
    """The claims of a request token: who calls whom, for which request exactly.

    ``issuer`` and ``audience`` are service ids; ``target_digest`` and ``content_digest`` are ``sha-256=:…:`` of the
    origin-form request-target and of the body's bytes; ``headers`` maps lower-case names to values; ``tth`` stands
    there only where a transaction token goes along; ``ctx`` is the application's own.
    """

    issuer: str
    audience: str
    issued_at: int
    not_before: int
    expires_at: int
    jti: str
    method: str
    target_digest: str
    content_digest: str
    headers: Mapping[str, str] = field(default_factory=dict)
    tth: str | None = None
    ctx: Mapping[str, Any] | None = None

    def claims(self) -> dict[str, Any]:
        """The JSON payload. Raises as `plain_ctx` for a ``ctx`` that does not fit."""
        claims: dict[str, Any] = {
            "iss": self.issuer,
            "sub": self.issuer,
            "aud": self.audience,
            "iat": self.issued_at,
            "nbf": self.not_before,
            "exp": self.expires_at,
            "jti": self.jti,
            "method": self.method,
            "target_digest": self.target_digest,
            "content_digest": self.content_digest,
            "headers": dict(self.headers),
        }
        if self.tth is not None:
            claims["tth"] = self.tth
        if self.ctx is not None:
            claims["ctx"] = plain_ctx(self.ctx)
        return claims


def plain_ctx(ctx: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``ctx``, as a verifier will read it. Raises ValueError where it is no mapping or longer than MAX_CTX,
    MalformedToken where it is nested deeper than any verifier reads, and what json raises for what is no JSON."""
    if not isinstance(ctx, Mapping):
        raise ValueError(f"ctx is a mapping, and this is {kind_of(ctx)}")
    text = canonical_json(dict(ctx))
    if len(text) > MAX_CTX:
        raise ValueError(f"ctx is longer than {MAX_CTX} bytes")
    return strict_json_object(text)  # what we would refuse is not signed


def check_request_claims(claims: dict[str, Any]) -> None:
    """Step 1 for a request token's payload: every claim there, none unknown, each of its type. Raises MalformedToken.

    It checks in place and builds nothing: it runs on every request.
    """
    if type(claims) is not dict:
        raise MalformedToken(f"claims are an object, and this is {kind_of(claims)}")
    try:
        iss, sub, aud, jti, method, target, content, iat, nbf, exp, headers = _request_values(claims)
    except KeyError as error:
        raise MalformedToken("a claim is missing") from error
    if len(claims) != len(_REQUEST_MEMBERS):
        _check_optional_claims(claims)
    if not (
        (type(iat) is type(nbf) is type(exp) is int and type(headers) is dict)
        and (type(iss) is type(sub) is type(aud) is type(jti) is str)
        and (type(method) is type(target) is type(content) is str)
    ):
        raise MalformedToken("a claim is of the wrong type")
    if not (0 <= iat <= LATEST_TIME and 0 <= nbf <= LATEST_TIME and 0 <= exp <= LATEST_TIME):
        raise MalformedToken("a claim is no time")
    if not _JTI.fullmatch(jti):
        raise MalformedToken("jti is not 128 bits")
    for name, value in headers.items():
        if not (type(value) is type(name) is str and name == name.lower()):
            raise MalformedToken("claim headers holds other than lower-case names with strings")


def _check_optional_claims(claims: dict[str, Any]) -> None:
    exactly(claims, frozenset(_REQUEST_MEMBERS), _REQUEST_OPTIONAL)
    if "tth" in claims and len(b64url_decode(claim(claims, "tth", str))) != 32:
        raise MalformedToken("tth is not a SHA-256")
    if "ctx" in claims and len(canonical_json(claim(claims, "ctx", dict))) > MAX_CTX:
        raise MalformedToken(f"ctx is longer than {MAX_CTX} bytes")


@dataclass(frozen=True, slots=True)
class Proof:
    """A verified proof of possession: the holder of ``public_key`` asked to register it for the service ``issuer``."""

    public_key: PublicKey
    issuer: str
    audience: str
    issued_at: int
    expires_at: int
    jti: str
    jws: str = field(repr=False)

    @classmethod
    def read(cls, jws: str, *, issuer: str, audience: str, now: float, leeway: int = LEEWAY) -> Self:
        """Check a proof made for the service ``issuer`` at the registry ``audience`` (both service ids).

        The key that signs is the one in the payload; the header's kid must name it. Raises TokenError, or KeyRefused
        for a key of a kind that is not accepted.
        """
        token = jose.parse(jws)
        if token.header.typ != PROOF_TYP:
            raise WrongType("not a proof of possession")
        claims = strict_json_object(token.payload)
        exactly(claims, _PROOF_MEMBERS)
        key = PublicKey.from_jwk(claim(claims, "jwk", dict), token.header.alg)
        if not key.verify(token.signing_input, token.signature):
            raise BadSignature("the proof is not signed by the key in it")
        if claim(claims, "iss", str) != issuer or token.header.kid != make_kid(issuer, key.thumbprint):
            raise WrongIssuer("the proof is for another service")
        if claim(claims, "aud", str) != audience:
            raise WrongAudience("the proof is for another registry")
        issued_at, expires_at = time_claim(claims, "iat"), time_claim(claims, "exp")
        check_times(issued_at, issued_at, expires_at, now=now, leeway=leeway, cap=PROOF_LIFETIME)
        return cls(key, issuer, audience, issued_at, expires_at, check_jti(claim(claims, "jti", str)), jws)


def sign_proof(key: KeyPair, *, issuer: str, audience: str, now: float) -> str:
    """A proof of possession of ``key`` by the service ``issuer`` for the registry ``audience`` (both service ids)."""
    issued_at = int(now)
    claims = {
        "iss": issuer,
        "aud": audience,
        "iat": issued_at,
        "exp": issued_at + PROOF_LIFETIME,
        "jti": new_jti(),
        "jwk": dict(key.public.jwk),
    }
    kid = make_kid(issuer, key.public.thumbprint)
    header = jose.encode_header(jose.Header(key.public.alg, kid, PROOF_TYP))
    return jose.compact(header, canonical_json(claims), key.sign)


def check_times(issued_at: int, not_before: int, expires_at: int, *, now: float, leeway: float, cap: int) -> None:
    """Step 7 for any token: not yet, no longer, or for too long. Raises NotYetValid, Expired or LifetimeTooLong.

    A token is good while ``max(iat, nbf) - leeway <= now < exp + leeway``.
    """
    if expires_at <= issued_at:
        raise Expired("ends before it begins")
    if expires_at - issued_at > cap:
        raise LifetimeTooLong(f"lives {expires_at - issued_at} s, {cap} s at most")
    if issued_at > now + leeway or not_before > now + leeway:
        raise NotYetValid(f"issued {issued_at - now:.0f} s in the future; is a clock wrong?")
    if now >= expires_at + leeway:
        raise Expired(f"expired {now - expires_at:.0f} s ago; is a clock wrong?")
