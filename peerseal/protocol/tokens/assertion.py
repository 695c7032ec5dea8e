"""The tokens of the registry's token endpoint: it takes client assertions, and issues access tokens.

A program without the SDK proves which service it is with a client assertion (RFC 7523, OpenID Connect Core section 9:
private_key_jwt). Any JWT library can make one, so unknown claims are ignored. The other rules are those of our own
tokens: a compact JWS in canonical spelling, a header of exactly ``alg``, ``kid`` and ``typ``, and a signature by the
key that the kid names.

Access tokens (RFC 9068) are for resource servers outside of Peerseal, such as a broker. Any JWT library verifies one
with the registry's ``/.well-known/jwks.json``. No part of Peerseal accepts an access token.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

from peerseal.errors import MalformedToken, WrongIssuer
from peerseal.protocol import jose
from peerseal.protocol.encoding import strict_json_object
from peerseal.protocol.tokens.claims import claim, new_jti, owner_in, time_claim
from peerseal.protocol.tokens.transaction import ID_PATTERN

ASSERTION_TYP: Final = "client-authentication+jwt"
CLIENT_ASSERTION_TYPE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
"""The ``client_assertion_type`` of a form that holds an assertion (RFC 7523 section 2.2)."""
ASSERTION_LIFETIME: Final = 60
ASSERTION_LIFETIME_CAP: Final = 300

ACCESS_TYP: Final = "at+jwt"

_TYPES: Final = (ASSERTION_TYP, "JWT")


@dataclass(frozen=True, slots=True)
class ClientAssertion:
    """The claims of an assertion whose signature is not checked yet. ``client`` is the id of the service that owns the
    key named by ``kid``. Times are seconds since the epoch."""

    client: str
    audience: str
    kid: str
    alg: str
    jti: str
    issued_at: int
    not_before: int
    expires_at: int
    signing_input: bytes = field(repr=False)
    signature: bytes = field(repr=False)

    @classmethod
    def parse(cls, unverified_text: str) -> Self:
        """Raises MalformedToken, WrongType, or WrongIssuer where ``iss`` or ``sub`` is not the owner of the kid."""
        token = jose.parse(unverified_text)
        client, claims = owner_in(token.header, *_TYPES), strict_json_object(token.payload)
        if claim(claims, "iss", str) != client or claim(claims, "sub", str) != client:
            raise WrongIssuer("iss or sub is not the owner of the key")
        jti, issued_at = claim(claims, "jti", str), time_claim(claims, "iat")
        if not ID_PATTERN.fullmatch(jti):
            raise MalformedToken("jti is empty, too long, or not visible ASCII")
        return cls(
            client=client,
            audience=_audience(claims),
            kid=token.header.kid,
            alg=token.header.alg,
            jti=jti,
            issued_at=issued_at,
            not_before=time_claim(claims, "nbf") if "nbf" in claims else issued_at,
            expires_at=time_claim(claims, "exp"),
            signing_input=token.signing_input,
            signature=token.signature,
        )


def assertion_claims(client: str, audience: str, now: int) -> dict[str, Any]:
    """The payload of a fresh assertion by ``client``, which is a service's id at the registry."""
    return {
        "iss": client,
        "sub": client,
        "aud": audience,
        "iat": now,
        "exp": now + ASSERTION_LIFETIME,
        "jti": new_jti(),
    }


def _audience(claims: Mapping[str, Any]) -> str:
    """One text, or a list of one. Raises MalformedToken."""
    value = claims.get("aud")
    if type(value) is list and len(value) == 1:
        value = value[0]
    if type(value) is not str:
        raise MalformedToken("aud is not one audience")
    return value


@dataclass(frozen=True, slots=True)
class AccessTokenClaims:
    """The claims of an access token. ``issuer`` is the registry's service id, ``service`` the id of the service that
    receives it, ``audience`` the resource server's URI. Times are seconds since the epoch."""

    issuer: str
    service: str
    audience: str
    scopes: frozenset[str]
    issued_at: int
    expires_at: int
    jti: str

    def claims(self) -> dict[str, Any]:
        """The payload (RFC 9068 section 2.2)."""
        return {
            "iss": self.issuer,
            "sub": self.service,
            "client_id": self.service,
            "aud": self.audience,
            "scope": scope_text(self.scopes),
            "iat": self.issued_at,
            "exp": self.expires_at,
            "jti": self.jti,
        }


def scope_text(scopes: Iterable[str]) -> str:
    """Several scopes as one text (RFC 6749 section 3.3), in one spelling."""
    return " ".join(sorted(scopes))
