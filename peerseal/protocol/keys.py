"""Key pairs, JSON Web Keys, thumbprints, kids and public credentials (docs/protocol.md).

Services use RSA of 2048 to 8192 bits with e = 65537 for RS256, or EC P-256 for ES256. `peerseal.protocol.weak_keys`
looks for weaknesses (ROCA, close primes…) in keys of the right shape."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self, cast

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from peerseal.errors import BadSignature, ConfigurationError, KeyRefused, MalformedToken
from peerseal.protocol import jose
from peerseal.protocol.encoding import b64url, b64url_decode, canonical_json
from peerseal.protocol.jose import Algorithm
from peerseal.protocol.names import make_kid
from peerseal.protocol.plain import is_json_object, kind_of, plain_bytes, text_like

RSA_BITS = range(2048, 8193)
RSA_EXPONENT = 65537
DEFAULT_RSA_BITS = 2048

PRIVATE_MEMBERS = {"d", "p", "q", "dp", "dq", "qi", "oth", "k"}
_P256_COORDINATE = 32  # bytes, RFC 7518 section 6.2.1.2

PublicCryptoKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey
PrivateCryptoKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True)
class PublicKey:
    """The public half of a service's or the registry's key, its algorithm pinned.

    ``jwk`` holds the required members only (RFC 7638 section 3.2), ``thumbprint`` is their SHA-256 in base64url,
    ``spki`` the X.509 SubjectPublicKeyInfo in DER.
    """

    alg: Algorithm
    jwk: Mapping[str, str]
    thumbprint: str
    spki: bytes = field(repr=False)
    verify: Callable[[bytes, bytes], bool] = field(repr=False, compare=False)

    @classmethod
    def of(cls, key: PublicCryptoKey) -> Self:
        """From a ``cryptography`` key. Raises KeyRefused for a type, size, exponent or curve that is not accepted."""
        jwk, alg = _jwk_of(key)
        spki = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        thumbprint = b64url(hashlib.sha256(canonical_json(jwk)).digest())
        return cls(alg, jwk, thumbprint, spki, jose.verifier(key, alg))

    @classmethod
    def from_jwk(cls, jwk: Mapping[str, Any], alg: str | None = None) -> Self:
        """From a JWK (RFC 7517), read strictly: it has no private members, and its integers are canonical. The argument
        ``alg`` and the member ``alg`` are optional; each must be the algorithm of this type of key. Other public
        members are ignored. Raises KeyRefused."""
        if not is_json_object(jwk):
            raise KeyRefused("key_malformed", f"a JWK is an object, and this is {kind_of(jwk)}")
        if PRIVATE_MEMBERS & jwk.keys():
            raise KeyRefused("key_private_members", "a public JWK must not hold private members")
        public = cls.of(_crypto_of(jwk))
        if any(given not in (None, public.alg) for given in (alg, jwk.get("alg"))):
            raise KeyRefused("key_alg_mismatch", f"this type of key is for {public.alg}")
        return public

    @classmethod
    def from_spki(cls, der: bytes) -> Self:
        """From a DER SubjectPublicKeyInfo. Raises KeyRefused."""
        try:
            key = serialization.load_der_public_key(plain_bytes(der) or b"")
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise KeyRefused("key_malformed", type(error).__name__) from error
        return cls.of(cast("PublicCryptoKey", key))

    def check_signature(self, alg: str, message: bytes, signature: bytes) -> None:
        """Raises BadSignature unless this key, with its own ``alg``, made the signature."""
        if alg != self.alg:
            raise BadSignature(f"alg is {text_like(alg)}, and the key is for {self.alg}")
        if not self.verify(message, signature):
            raise BadSignature("the signature does not verify")

    @property
    def crypto(self) -> PublicCryptoKey:
        """The key as an object of the ``cryptography`` package, parsed on each call."""
        return cast("PublicCryptoKey", serialization.load_der_public_key(self.spki))

    def pem(self) -> str:
        """The SubjectPublicKeyInfo as PEM (RFC 7468)."""
        encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        return self.crypto.public_bytes(encoding, form).decode("ascii")


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A private key with its public half. ``sign(message)`` gives the JWS signature (RFC 7518 sections 3.3, 3.4)."""

    public: PublicKey
    sign: Callable[[bytes], bytes] = field(repr=False, compare=False)
    _private: PrivateCryptoKey = field(repr=False, compare=False)

    @classmethod
    def of(cls, private: PrivateCryptoKey) -> Self:
        """From a ``cryptography`` private key. Raises KeyRefused as PublicKey.of does."""
        public = PublicKey.of(private.public_key())
        return cls(public, jose.signer(private, public.alg), private)

    @classmethod
    def generate(cls, alg: str = "RS256", bits: int = DEFAULT_RSA_BITS) -> Self:
        """A new key pair for ``alg``; ``bits`` is the size of an RSA modulus. Raises ConfigurationError."""
        if alg == "RS256" and bits in RSA_BITS:
            return cls.of(rsa.generate_private_key(RSA_EXPONENT, bits))
        if alg == "ES256":
            return cls.of(ec.generate_private_key(ec.SECP256R1()))
        raise ConfigurationError(f"no such kind of key: {alg}, {bits} bits")

    @classmethod
    def from_pem(cls, pem: bytes, password: bytes | None = None) -> Self:
        """From a PKCS #8 PEM. Raises KeyRefused where it cannot be read."""
        try:
            private = serialization.load_pem_private_key(plain_bytes(pem) or b"", password)
            return cls.of(cast("PrivateCryptoKey", private))
        except (ValueError, TypeError, AttributeError, UnsupportedAlgorithm) as error:
            raise KeyRefused("key_malformed", f"no private key could be read: {type(error).__name__}") from error

    def to_pem(self, password: bytes | None = None) -> bytes:
        """PKCS #8, encrypted where a password is given. Write an unencrypted one to a file of mode 0600 only."""
        return private_pem(self._private, password)


def private_pem(key: PrivateCryptoKey | ed25519.Ed25519PrivateKey, password: bytes | None) -> bytes:
    """The private key as PKCS #8 in PEM, encrypted where a password is given."""
    protection: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password is not None:
        protection = serialization.BestAvailableEncryption(password)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection)


@dataclass(frozen=True, slots=True)
class PublicCredentials:
    """What a service publishes about its key: the kid, and the base64url of the SubjectPublicKeyInfo DER."""

    key_id: str
    public_key: str

    @classmethod
    def of(cls, owner: str, key: PublicKey) -> Self:
        """The credentials of a key that the service with id ``owner`` holds."""
        return cls(make_kid(owner, key.thumbprint), b64url(key.spki))

    def to_json(self) -> dict[str, str]:
        """The JSON members under which a service publishes them."""
        return {"keyId": self.key_id, "publicKey": self.public_key}


def _jwk_of(key: object) -> tuple[dict[str, str], Algorithm]:
    if isinstance(key, rsa.RSAPublicKey):
        return _rsa_jwk(key.public_numbers()), "RS256"
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        point = key.public_numbers()
        x, y = (b64url(number.to_bytes(_P256_COORDINATE, "big")) for number in (point.x, point.y))
        return {"kty": "EC", "crv": "P-256", "x": x, "y": y}, "ES256"
    raise KeyRefused("key_type_unsupported", type(key).__name__)


def _rsa_jwk(numbers: rsa.RSAPublicNumbers) -> dict[str, str]:
    _check_rsa(numbers.n, numbers.e)
    n, e = (b64url(number.to_bytes((number.bit_length() + 7) // 8, "big")) for number in (numbers.n, numbers.e))
    return {"kty": "RSA", "n": n, "e": e}


def _check_rsa(n: int, e: int) -> None:
    if n.bit_length() not in RSA_BITS:
        raise KeyRefused("key_size_unsupported", f"{n.bit_length()} bits")
    if e != RSA_EXPONENT:
        raise KeyRefused("key_exponent_unsupported", f"e is not {RSA_EXPONENT}")
    if n % 2 == 0:
        raise KeyRefused("key_even_modulus", "the modulus is even")


def _crypto_of(jwk: Mapping[str, Any]) -> PublicCryptoKey:
    kind, curve = jwk.get("kty"), jwk.get("crv")
    if kind == "RSA":
        n, e = _number(jwk, "n"), _number(jwk, "e")
        _check_rsa(n, e)  # first, since the library raises errors without our codes
        return rsa.RSAPublicNumbers(e, n).public_key()
    if kind == "EC" and curve == "P-256":
        x, y = (_number(jwk, name, _P256_COORDINATE) for name in ("x", "y"))
        try:
            return ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
        except ValueError as error:
            raise KeyRefused("key_off_curve", "not a point of P-256") from error
    raise KeyRefused("key_type_unsupported", f"kty {text_like(kind)}, crv {text_like(curve)}")


def _number(jwk: Mapping[str, Any], name: str, size: int | None = None) -> int:
    """A Base64urlUInt (RFC 7518 section 2). If ``size`` is given (a coordinate), the value has exactly that many
    bytes; otherwise it has no leading zero byte."""
    value = jwk.get(name)
    try:
        data = b64url_decode(value) if type(value) is str else b""
    except MalformedToken as error:
        raise KeyRefused("key_malformed", f"member {name}") from error
    if not data or (len(data) != size if size else data[0] == 0):
        raise KeyRefused("key_malformed", f"member {name} has the wrong length")
    if len(data) > 2 * RSA_BITS.stop // 8:
        raise KeyRefused("key_size_unsupported", f"member {name} is too long")
    return int.from_bytes(data, "big")
