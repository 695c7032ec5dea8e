"""Proofs of possession: the sender shows that it holds a key, and names its service (docs/protocol.md)."""

from dataclasses import dataclass, field
from typing import Final, Self

from peerseal.errors import WrongIssuer, WrongType
from peerseal.protocol import jose
from peerseal.protocol.encoding import canonical_json, strict_json_object
from peerseal.protocol.keys import KeyPair, PublicKey
from peerseal.protocol.names import make_kid
from peerseal.protocol.tokens.claims import (
    LEEWAY,
    check_jti,
    check_parties,
    check_times,
    claim,
    exactly,
    new_jti,
    time_claim,
)

PROOF_TYP: Final = "peerseal-proof+jwt"
PROOF_LIFETIME = 60

_MEMBERS = frozenset(("iss", "aud", "iat", "exp", "jti", "jwk"))


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
        """Verifies a proof made for the service ``issuer`` at the registry ``audience`` (both service ids).

        The key that signs is the one in the payload; the header's kid must name it. Raises TokenError, or KeyRefused
        for a key of a kind that is not accepted.
        """
        token = jose.parse(jws)
        if token.header.typ != PROOF_TYP:
            raise WrongType("not a proof of possession")
        claims = strict_json_object(token.payload)
        exactly(claims, _MEMBERS)
        key = PublicKey.from_jwk(claim(claims, "jwk", dict), token.header.alg)
        key.check_signature(token.header.alg, token.signing_input, token.signature)
        check_parties(claim(claims, "iss", str), issuer, claim(claims, "aud", str), audience)
        if token.header.kid != make_kid(issuer, key.thumbprint):
            raise WrongIssuer("the kid in the header is not the one of the key in the proof")
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
