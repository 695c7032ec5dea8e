"""The only module that uses python-jose, and the strict reader and writer of compact JWS.

Of python-jose only the ``Key`` objects are used. They sign with RSA keys and verify with P-256 keys. For the opposite
operations, RS256 verification and ES256 signing, ``cryptography`` is called directly with the key in the ``Key``
object, which is faster.

The modules ``jwt`` and ``jws`` of python-jose read base64 leniently, accept ``algorithms=None``, pass unknown ``crit``,
try every key of a set, and do not compare the header's ``alg`` with the key's. They also parse a PEM for each
signature, in 30 ms. Here each key is parsed once, into a ``Key`` with one algorithm, and the caller chooses the key by
kid. This module checks the syntax of a token (RFC 7515 section 5.2) before any signature is checked."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from jose import jwk
from jose.backends.cryptography_backend import CryptographyECKey, CryptographyRSAKey
from jose.exceptions import JOSEError

from peerseal.errors import ConfigurationError, MalformedToken, MissingToken
from peerseal.protocol.encoding import b64url, b64url_decode, canonical_json, strict_json_object
from peerseal.protocol.plain import kind_of, plain_text

Algorithm = Literal["RS256", "ES256"]
ALGORITHMS: tuple[Algorithm, ...] = ("RS256", "ES256")

MAX_TOKEN = 6 * 1024
"""The longest compact JWS of a token, in characters (docs/protocol.md)."""

_HEADER_MEMBERS = {"alg", "kid", "typ"}
_DOT = ord(".")
_P256 = 32  # bytes of each half of a signature (RFC 7518 section 3.4)

if not (jwk.get_key("RS256") is CryptographyRSAKey and jwk.get_key("ES256") is CryptographyECKey):
    raise ConfigurationError("python-jose has not chosen its cryptography back end")


class Header(NamedTuple):
    """The protected header of a token: exactly these three members."""

    alg: str
    kid: str
    typ: str


class UnverifiedJws(NamedTuple):
    """A compact JWS with the right syntax. Its signature is not checked."""

    header: Header
    payload: bytes
    signing_input: bytes
    signature: bytes


def verifier(
    public_key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey, alg: Algorithm
) -> Callable[[bytes, bytes], bool]:
    """A function ``(message, signature) -> bool``, which never raises. python-jose verifies a P-256 signature,
    ``cryptography`` an RSA signature."""
    key = jwk.construct(cast(Any, public_key), alg)
    if isinstance(public_key, rsa.RSAPublicKey):
        return _rsa_verifier(cast(Any, key).prepared_key)

    def verify(message: bytes, signature: bytes) -> bool:
        try:
            return key.verify(message, signature) is True
        except (JOSEError, ValueError, TypeError, OverflowError):
            return False

    return verify


def _rsa_verifier(prepared_key: rsa.RSAPublicKey) -> Callable[[bytes, bytes], bool]:
    """Gives the result of ``Key.verify`` of python-jose. On each call that method checks again that the key is public,
    and makes a padding and a hash object. Without this, the verification of a request takes about 3 % less time."""
    padding, algorithm = PKCS1v15(), SHA256()

    def verify(message: bytes, signature: bytes) -> bool:
        try:
            prepared_key.verify(signature, message, padding, algorithm)
        except (InvalidSignature, ValueError, TypeError, OverflowError):
            return False
        return True

    return verify


def signer(private_key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, alg: Algorithm) -> Callable[[bytes], bytes]:
    """A function ``(message) -> signature``. python-jose signs with an RSA key, ``cryptography`` with a P-256 key."""
    key = jwk.construct(cast(Any, private_key), alg)
    if isinstance(private_key, ec.EllipticCurvePrivateKey):
        return _p256_signer(cast(Any, key).prepared_key)
    return cast("Callable[[bytes], bytes]", key.sign)


def _p256_signer(prepared_key: ec.EllipticCurvePrivateKey) -> Callable[[bytes], bytes]:
    """Gives a signature of the same form as ``Key.sign`` of python-jose (RFC 7518 section 3.4). That method parses the
    DER with a general parser, then converts r and s to integers and back, which takes up to half of its time.

    The signature is deterministic (RFC 6979): all nodes of a registry sign a document with the same bytes."""
    algorithm = ec.ECDSA(SHA256(), deterministic_signing=True)

    def sign(message: bytes) -> bytes:
        # SEQUENCE of INTEGER r and INTEGER s, each with a one-byte length (X.690 section 8).
        signature = prepared_key.sign(message, algorithm)
        middle = 4 + signature[3]
        r, s = signature[4:middle], signature[middle + 2 :]
        return r.lstrip(b"\0").rjust(_P256, b"\0") + s.lstrip(b"\0").rjust(_P256, b"\0")

    return sign


def encode_header(header: Header) -> str:
    """The encoded header: the first segment of a token. Encode it once per key and kind."""
    return b64url(canonical_json(header._asdict()))


def compact(header_segment: str, payload: bytes, sign: Callable[[bytes], bytes]) -> str:
    """The compact serialisation (RFC 7515 section 7.1) of a payload, signed."""
    signing_input = f"{header_segment}.{b64url(payload)}"
    return f"{signing_input}.{b64url(sign(signing_input.encode('ascii')))}"


def parse_header(segment: bytes) -> Header:
    """The header in a token's first segment. Raises MalformedToken, also for unknown members such as ``crit``, ``jku``
    or ``jwk``: to ignore them would be wrong (RFC 8725 section 3.10)."""
    members = strict_json_object(b64url_decode(segment))
    if members.keys() != _HEADER_MEMBERS or not all(type(value) is str for value in members.values()):
        raise MalformedToken("the header must hold exactly alg, kid and typ, all texts").at_step(2)
    return Header(**members)


def split_segments(token: str, *, limit: int = MAX_TOKEN) -> tuple[bytes, bytes, bytes, bytes]:
    """Header, payload and signature, still encoded, and the signing input (header and payload). Raises MalformedToken
    unless the token is ASCII text of three segments and ``limit`` characters at most, and MissingToken for None."""
    if type(token) is not str:
        token = _token_text(token)
    if len(token) > limit:
        raise MalformedToken(f"a token of {len(token)} characters, expected {limit} at most")
    try:
        encoded = token.encode("ascii")
    except UnicodeEncodeError as error:
        raise MalformedToken("not ASCII") from error
    signing_input, _, signature = encoded.rpartition(b".")
    header, _, payload = signing_input.partition(b".")
    if not payload or _DOT in payload:
        raise MalformedToken("not three segments")
    return header, payload, signature, signing_input


def _token_text(token: object) -> str:
    """Raises MalformedToken for anything but text, and MissingToken for None."""
    if token is None:
        raise MissingToken("no token")
    text = plain_text(token)
    if text is None:
        raise MalformedToken(f"a token is text, not {kind_of(token)}")
    return text


def parse(token: str, *, limit: int = MAX_TOKEN) -> UnverifiedJws:
    """Syntax of a whole token: size, three canonical segments, a strict header. Raises MalformedToken."""
    header, payload, signature, signing_input = split_segments(token, limit=limit)
    return UnverifiedJws(parse_header(header), b64url_decode(payload), signing_input, b64url_decode(signature))
