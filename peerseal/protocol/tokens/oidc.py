"""Tokens of foreign issuers: a platform's (Kubernetes, a CI system) or, at the edge, a user's (OpenID Connect Core).

Other programs make them, so less is fixed than in our own tokens: unknown claims are ignored, and ``typ`` may be
missing. The rest is as strict: a compact JWS in canonical spelling, RS256 or ES256 only, signed by the key that the
kid names in the issuer's set. It is for the expected audience and valid now, with times as integers. The steps:

1. `UnverifiedToken.parse`: size, three segments, strict JSON, the header's members, ``alg`` and ``typ``
2. the issuer that was configured under exactly that ``iss``, and its key by kid: `peerseal.verify.issuers`
3. `UnverifiedToken.verified`: ``alg`` is the key's, the signature, ``iss``, ``aud``, times and lifetime, ``sub``

URLs, keys and certificates in a token are never used, and a token of our own kinds is never accepted as a foreign one.
"""

from base64 import urlsafe_b64decode
from collections.abc import Callable, Collection, Mapping, Set
from dataclasses import InitVar, dataclass, field
from types import MappingProxyType
from typing import Any, Final, Self

from peerseal.errors import (
    DocumentRefused,
    KeyRefused,
    MalformedToken,
    WrongAudience,
    WrongIssuer,
    WrongType,
)
from peerseal.protocol import jose
from peerseal.protocol.encoding import b64url_decode, strict_json_object
from peerseal.protocol.keys import PRIVATE_MEMBERS, PublicKey
from peerseal.protocol.plain import plain_bytes
from peerseal.protocol.tokens.claims import LEEWAY, check_times, claim, time_claim
from peerseal.protocol.weak_keys import check_not_weak

MAX_FOREIGN_TOKEN = 16 * 1024
"""Characters of a foreign token, at most: a token of Kubernetes has about 1,200, one of GitHub 2,000, one of a user
with many groups several thousand."""
LIFETIME_CAP = 24 * 3600
"""Seconds that a foreign token may live: platforms issue them for minutes to a day. A longer lifetime
helps only someone who stole the token."""
MAX_SUBJECT = 512
"""Characters of ``sub``, at most (OpenID Connect Core section 2 has 255; a CI system's may be longer)."""
MAX_KID = 256
"""Characters of a foreign kid, at most: limited, because unknown kids are kept in memory for a while."""
MAX_AUDIENCES = 20
"""Members of an ``aud`` that is a list, at most."""
MAX_KEYS = 100
"""Keys of an issuer's set, at most."""

MAX_DISCOVERY = 64 * 1024
"""Bytes of a discovery document, at most: those of large providers have 5 KiB."""

BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
"""Some editors write it before a JSON text, and a parser may ignore it there (RFC 8259 section 8.1)."""
_HEADER_REQUIRED: Final = frozenset(("alg", "kid"))
_HEADER_OPTIONAL: Final = frozenset(("typ", "x5t"))
_TYPES: Final = (None, "JWT", "at+jwt")
_VERIFICATION: Final = object()


@dataclass(frozen=True, slots=True)
class VerifiedClaims:
    """The claims of a foreign issuer for the expected audience. Only `UnverifiedToken.verified` makes this object.

    ``claims`` holds all claims, also the unchecked ones. Times are seconds since the epoch.
    """

    issuer: str
    audience: str
    subject: str = field(repr=False)
    issued_at: int
    expires_at: int
    claims: Mapping[str, Any] = field(repr=False)
    made_by: InitVar[object]

    def __post_init__(self, made_by: object) -> None:
        """Raises TypeError unless `UnverifiedToken.verified` makes the object."""
        if made_by is not _VERIFICATION:
            raise TypeError("verified claims are made by verification only")


@dataclass(frozen=True, slots=True)
class UnverifiedToken:
    """A foreign token with the right syntax. Its signature is not checked, so use it to choose a key only: ``issuer``
    and ``kid`` are what it claims."""

    issuer: str
    kid: str
    alg: str
    _claims: Mapping[str, Any] = field(repr=False)
    _signing_input: bytes = field(repr=False)
    _signature: bytes = field(repr=False)

    @classmethod
    def parse(cls, text: str, *, types: Collection[str | None] = _TYPES) -> Self:
        """Step 1; ``types`` are the values of ``typ`` that are accepted. Raises MalformedToken or WrongType."""
        header_segment, payload, signature, signing_input = jose.split_segments(text, limit=MAX_FOREIGN_TOKEN)
        header = _parse_header(header_segment, types)
        claims = strict_json_object(b64url_decode(payload))
        issuer = claim(claims, "iss", str)
        return cls(issuer, header["kid"], header["alg"], claims, signing_input, b64url_decode(signature))

    def verified(
        self, key: PublicKey, *, issuer: str, audience: str, now: float, leeway: int = LEEWAY, cap: int = LIFETIME_CAP
    ) -> VerifiedClaims:
        """Step 3, with the key that the issuer publishes under this kid. ``leeway`` and ``cap`` are in seconds.

        Raises TokenError: BadSignature, WrongIssuer, WrongAudience, MalformedToken, Expired, NotYetValid or
        LifetimeTooLong.
        """
        claims = self.signed_claims(key, issuer=issuer, audiences={audience})
        issued_at, expires_at = time_claim(claims, "iat"), time_claim(claims, "exp")
        not_before = time_claim(claims, "nbf") if "nbf" in claims else issued_at
        check_times(issued_at, not_before, expires_at, now=now, leeway=leeway, cap=cap)
        subject = claim(claims, "sub", str)
        if not 0 < len(subject) <= MAX_SUBJECT:
            raise MalformedToken(f"sub is empty, or longer than {MAX_SUBJECT} characters")
        everything = MappingProxyType(dict(claims))
        return VerifiedClaims(issuer, audience, subject, issued_at, expires_at, everything, _VERIFICATION)

    def signed_claims(self, key: PublicKey, *, issuer: str, audiences: Set[str]) -> Mapping[str, Any]:
        """The claims, signed by that issuer's ``key`` and addressed to one of ``audiences``. Times and subject are not
        checked. Raises BadSignature, WrongIssuer, WrongAudience or MalformedToken."""
        key.check_signature(self.alg, self._signing_input, self._signature)
        if self.issuer != issuer:
            raise WrongIssuer("iss is not the issuer whose key this is")
        if audiences.isdisjoint(audiences_of(self._claims)):
            raise WrongAudience(f"aud has none of {', '.join(sorted(audiences))}")
        return self._claims


_PRIVATE_HALF = PRIVATE_MEMBERS - {"k"}  # `k` is a symmetric key, which has no public half
_LONGEST_NUMBER = 4096
"""Characters of a key's number, at most; longer ones are ignored. An RSA key of 16,384 bits has 2,731."""
_URL_ALPHABET = str.maketrans("+/", "-_")


def read_key_set(body: bytes, check_key: Callable[[PublicKey], None] = check_not_weak) -> dict[str, PublicKey]:
    """An issuer's keys by kid, from its JWK Set (RFC 7517 section 5). ``check_key`` raises KeyRefused for a weak key.

    An issuer may publish more than is accepted here, and may repeat a key. The result leaves out:

    - a key without a kid
    - a key for another use or algorithm, of another type, weak or malformed
    - a key whose private half is in any entry of the set
    - after that, every kid that names two different keys

    Raises DocumentRefused.
    """
    try:
        jwks = claim(strict_json_object((plain_bytes(body) or b"").removeprefix(BYTE_ORDER_MARK)), "keys", list)
    except MalformedToken as error:
        raise DocumentRefused("document_malformed", f"no JWK Set: {error}") from error
    if len(jwks) > MAX_KEYS:
        raise DocumentRefused("document_malformed", f"a JWK Set of more than {MAX_KEYS} keys")
    members = [_without_null_private_members(jwk) for jwk in jwks if type(jwk) is dict]
    leaked = {number for jwk in members if _PRIVATE_HALF & jwk.keys() for number in _public_numbers(jwk)}
    found: dict[str, dict[str, PublicKey]] = {}
    for jwk in members:
        key = _accepted_key(jwk, check_key)
        if key is not None and leaked.isdisjoint(_public_numbers(key.jwk)):
            found.setdefault(jwk["kid"], {})[key.thumbprint] = key
    return {kid: next(iter(keys.values())) for kid, keys in found.items() if len(keys) == 1}


def read_discovery(body: bytes, *, issuer: str) -> str:
    """Where an issuer's JWK Set is, from its discovery document (OpenID Connect Discovery 1.0 section 3): the
    ``jwks_uri`` unchanged. Raises DocumentRefused, also for the document of another issuer (section 4.3)."""
    try:
        document = strict_json_object((plain_bytes(body) or b"").removeprefix(BYTE_ORDER_MARK))
        named, jwks_uri = claim(document, "issuer", str), claim(document, "jwks_uri", str)
    except MalformedToken as error:
        raise DocumentRefused("document_malformed", f"no discovery document: {error}") from error
    if named != issuer:
        raise DocumentRefused("document_wrong_issuer", "the discovery document is another issuer's")
    return jwks_uri


def _without_null_private_members(jwk: Mapping[str, Any]) -> dict[str, Any]:
    """The JWK without private members that are null: some libraries write them for a public key."""
    return {name: value for name, value in jwk.items() if value is not None or name not in PRIVATE_MEMBERS}


def _public_numbers(jwk: Mapping[str, Any]) -> set[int]:
    """The numbers that identify a key, whatever its algorithm and use: modulus, or x of its point. With them
    `read_key_set` finds the keys whose private half is in the set: everyone can sign with those."""
    given = {name: _lenient_number(jwk.get(name)) for name in ("n", "x", "p", "q")}
    # Private p and q give the modulus, too.
    numbers = {given["n"], given["x"], given["p"] * given["q"]}
    return numbers - {0}


def _lenient_number(text: object) -> int:
    """A base64 number in either alphabet, padded or not, with or without leading zeros; 0 for anything else."""
    if type(text) is not str or len(text) > _LONGEST_NUMBER:
        return 0
    try:
        unpadded = text.rstrip("=").translate(_URL_ALPHABET)
        return int.from_bytes(urlsafe_b64decode(unpadded + "=" * (-len(unpadded) % 4)))
    except ValueError:
        return 0


def _accepted_key(jwk: Mapping[str, Any], check_key: Callable[[PublicKey], None]) -> PublicKey | None:
    operations = jwk.get("key_ops", ["verify"])
    if jwk.get("use", "sig") != "sig" or type(operations) is not list or "verify" not in operations:
        return None
    kid = jwk.get("kid")
    if type(kid) is not str or not 0 < len(kid) <= MAX_KID:
        return None
    try:
        key = PublicKey.from_jwk(jwk)
        check_key(key)
    except KeyRefused:
        return None
    return key


def _parse_header(segment: bytes, types: Collection[str | None]) -> dict[str, str]:
    """The header of ``alg``, ``kid``, ``typ`` and ``x5t``. Raises MalformedToken for every other member, since some
    change how a token is read: ``crit``, ``jku``, ``jwk``, ``x5u``, ``x5c``, ``b64``, ``zip`` (RFC 8725 section 3.10).
    ``x5t`` is accepted and not used: it is only a hash. Raises WrongType for another ``typ``."""
    header = strict_json_object(b64url_decode(segment))
    if not _HEADER_REQUIRED <= header.keys() <= _HEADER_REQUIRED | _HEADER_OPTIONAL:
        raise MalformedToken("the header needs alg and kid, and may have only typ and x5t besides")
    if not all(type(value) is str for value in header.values()):
        raise MalformedToken("a member of the header is no string")
    if header["alg"] not in jose.ALGORITHMS:
        raise MalformedToken("alg is neither RS256 nor ES256")
    if not 0 < len(header["kid"]) <= MAX_KID:
        raise MalformedToken(f"kid is empty, or longer than {MAX_KID} characters")
    if header.get("typ") not in types:
        raise WrongType("a token of another kind")
    return header


def audiences_of(claims: Mapping[str, Any]) -> list[str]:
    """``aud``, one string or several (RFC 7519 section 4.1.3). Raises MalformedToken."""
    value = claims.get("aud")
    audiences: list[str] = value if type(value) is list else [claim(claims, "aud", str)]
    if len(audiences) > MAX_AUDIENCES or not all(type(audience) is str for audience in audiences):
        raise MalformedToken("aud is neither a string nor a short list of strings")
    return audiences
