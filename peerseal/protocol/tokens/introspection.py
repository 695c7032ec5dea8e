"""The issuer's answer about an opaque token: token introspection (RFC 7662), plain or signed (RFC 9701).

An opaque token has no readable content, so a client asks its issuer over a confidential connection. The steps:

1. `check_opaque`: the token is visible ASCII of a bounded length
2. `unsigned_answer`, or `signed_answer`: strict JSON; if signed, ``typ``, ``alg``, signature, ``iss``, ``aud``, ``iat``
3. `ActiveToken.read`: the members' types, ``active``, ``iss``, ``aud``, ``exp``, ``nbf``, ``iat``, ``sub``

An answer that breaks these rules is the issuer's fault and raises DocumentRefused. A token that the issuer refuses
raises TokenError.
"""

import re
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Self

from peerseal.errors import (
    BadSignature,
    DocumentRefused,
    Expired,
    MalformedToken,
    NotYetValid,
    TokenError,
    WrongAudience,
    WrongIssuer,
    WrongType,
)
from peerseal.protocol.encoding import strict_json_object
from peerseal.protocol.keys import PublicKey
from peerseal.protocol.plain import plain_bytes, plain_text
from peerseal.protocol.tokens.claims import LEEWAY, claim, time_claim
from peerseal.protocol.tokens.oidc import MAX_FOREIGN_TOKEN, MAX_SUBJECT, UnverifiedToken, audiences_of

SIGNED_TYP: Final = "token-introspection+jwt"
SIGNED_CONTENT: Final = f"application/{SIGNED_TYP}"
MAX_ANSWER: Final = 16 * 1024
"""Bytes of an answer, at most: the same limit as for a JWT, which holds the same data."""

_KINDS: Final = ("token_type", "token_use", "typ")
"""Members in which issuers say what kind of token it is, so a refresh token can be detected and refused: RFC 7662
allows questions about refresh tokens, too."""
_OPAQUE = re.compile(rf"[\x21-\x7e]{{1,{MAX_FOREIGN_TOKEN}}}")


def is_jwt_shaped(token: str) -> bool:
    """Whether the token looks like a signed JWT: three segments, of which the first begins as a JSON object does in
    base64url. An encrypted JWT (five segments) is opaque to everyone but its issuer."""
    return token.count(".") == 2 and token.startswith("ey")


def check_opaque(token: str) -> str:
    """The token itself if an issuer may be asked about it. Raises MalformedToken."""
    text = plain_text(token)
    if text is None or not _OPAQUE.fullmatch(text):
        raise MalformedToken(f"a token is 1 to {MAX_FOREIGN_TOKEN} visible ASCII characters")
    return text


@dataclass(frozen=True, slots=True)
class ActiveToken:
    """What an issuer says about a token that is active. ``expires_at`` (seconds since the epoch) is None where the
    issuer names no end. ``claims`` holds all members of the answer."""

    issuer: str
    subject: str = field(repr=False)
    expires_at: int | None
    claims: Mapping[str, Any] = field(repr=False)

    @classmethod
    def read(cls, answer: Mapping[str, Any], *, issuer: str, audience: str | None, now: float) -> Self:
        """Step 3. With ``audience`` None the answer may be about a token for any audience.

        Raises DocumentRefused, Expired (not active, or past its end), WrongType (a refresh token), WrongIssuer,
        WrongAudience, NotYetValid, or MalformedToken where the token is not a user's.
        """
        try:
            active = claim(answer, "active", bool)
            named = claim({"iss": issuer, **answer}, "iss", str)
            audiences = audiences_of(answer) if "aud" in answer else []
            times = {name: time_claim(answer, name) for name in ("iat", "nbf", "exp") if name in answer}
        except MalformedToken as error:
            raise DocumentRefused("document_malformed", f"not an answer as in RFC 7662 section 2.2: {error}") from error
        if not active:
            raise Expired("the issuer says that the token is not active: it has ended, was revoked, or never existed")
        if any("refresh" in str(answer.get(name)).lower() for name in _KINDS):
            raise WrongType("the issuer says that it is a refresh token, which is for the issuer alone")
        if named != issuer:
            raise WrongIssuer("the issuer says that the token is another issuer's")
        if audience is not None and audience not in audiences:
            raise WrongAudience(f"the issuer does not say that the token is for {audience}: its aud is {audiences}")
        if "exp" in times and now >= times["exp"] + LEEWAY:
            raise Expired(f"expired {now - times['exp']:.0f} s ago; is a clock wrong?")
        if max(times.get("iat", 0), times.get("nbf", 0)) > now + LEEWAY:
            raise NotYetValid("iat or nbf is in the future; is a clock wrong?")
        subject = answer.get("sub")
        if type(subject) is not str or not 0 < len(subject) <= MAX_SUBJECT:
            raise MalformedToken(f"the issuer names no user: sub must be 1 to {MAX_SUBJECT} characters")
        return cls(issuer, subject, times.get("exp"), MappingProxyType(dict(answer)))


def unsigned_answer(body: bytes) -> dict[str, Any]:
    """Step 2 for a JSON answer. Raises DocumentRefused."""
    try:
        return strict_json_object(body)
    except MalformedToken as error:
        raise DocumentRefused("document_malformed", f"not an answer to introspection: {error}") from error


def parse_signed(body: bytes) -> UnverifiedToken:
    """Step 2 for a signed answer, first half: its syntax and ``typ``. Raises DocumentRefused."""
    try:
        return UnverifiedToken.parse((plain_bytes(body) or b"").decode("ascii"), types=(SIGNED_TYP,))
    except (TokenError, UnicodeDecodeError) as error:
        raise DocumentRefused("document_malformed", f"not a signed answer to introspection: {error}") from error


def signed_answer(
    unverified: UnverifiedToken, key: PublicKey, *, issuer: str, readers: Set[str], now: float
) -> dict[str, Any]:
    """Step 2 for a signed answer, second half: signed by the issuer's ``key`` for one of ``readers``, just now. The
    answer does not name its token, so only a fresh answer is accepted. Raises DocumentRefused."""
    try:
        claims = unverified.signed_claims(key, issuer=issuer, audiences=readers)
        issued_at, answer = time_claim(claims, "iat"), claim(claims, "token_introspection", dict)
    except BadSignature as error:
        raise DocumentRefused("document_bad_signature", str(error)) from error
    except TokenError as error:
        raise DocumentRefused("document_malformed", f"a signed answer to introspection: {error}") from error
    if abs(now - issued_at) > LEEWAY:
        raise DocumentRefused("document_stale", f"signed {now - issued_at:.0f} s ago; is a clock wrong?")
    return answer
