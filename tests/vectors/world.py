"""The world of the vectors: keys from seeds, a time that stands still, and tokens and documents with any fault.

All signatures are deterministic (RSASSA-PKCS1-v1_5, RFC 6979, Ed25519), so that each run makes the same bytes. The keys
are public test data. No registry may ever admit one.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final

import gmpy2
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from peerseal.protocol.encoding import b64url, canonical_json
from peerseal.protocol.keys import KeyPair, PublicKey
from peerseal.protocol.names import make_kid

DOMAIN: Final = "acme.internal"
REGISTRY: Final = f"{DOMAIN}/registry"
CALLER: Final = f"{DOMAIN}/client-service"
CALLEE: Final = f"{DOMAIN}/resource-service"
MINTER: Final = f"{DOMAIN}/edge"
STRANGER: Final = f"{DOMAIN}/stranger"
NOW: Final = 1_800_000_000
DAY: Final = 24 * 3600

ABSENT: Any = object()
"""A member with this value is left out."""

_E: Final = 65537


def seed(name: str, size: int = 32) -> bytes:
    """Bytes for a name."""
    return hashlib.shake_256(f"peerseal test vectors: {name}".encode()).digest(size)


@cache
def ec_key(name: str) -> KeyPair:
    """A P-256 key whose signatures are deterministic (RFC 6979)."""
    private = ec.derive_private_key(int.from_bytes(seed(name), "big"), ec.SECP256R1())

    def sign(message: bytes) -> bytes:
        r, s = decode_dss_signature(private.sign(message, ec.ECDSA(SHA256(), deterministic_signing=True)))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    return KeyPair(PublicKey.of(private.public_key()), sign, private)


@cache
def rsa_key(name: str) -> KeyPair:
    """An RSA key of 2048 bits."""
    p, q = (_prime(f"{name} {factor}", 1024) for factor in "pq")
    d = int(gmpy2.invert(_E, (p - 1) * (q - 1)))
    crt = rsa.rsa_crt_dmp1(d, p), rsa.rsa_crt_dmq1(d, q), rsa.rsa_crt_iqmp(p, q)
    return KeyPair.of(rsa.RSAPrivateNumbers(p, q, d, *crt, rsa.RSAPublicNumbers(_E, p * q)).private_key())


def _prime(name: str, bits: int) -> int:
    """A prime whose two top bits are set, so that a product has full length."""
    return int(gmpy2.next_prime(int.from_bytes(seed(name, bits // 8), "big") | 3 << bits - 2))


def modulus(bits: int) -> int:
    """An RSA modulus of that size."""
    half = bits // 2
    return _prime(f"{bits} p", half) * _prime(f"{bits} q", bits - half)


@cache
def ledger_key(name: str = "ledger") -> Ed25519PrivateKey:
    """A ledger's key."""
    return Ed25519PrivateKey.from_private_bytes(seed(name))


def jti(name: str) -> str:
    """128 bits for a name."""
    return b64url(seed(name, 16))


def kid_of(owner: str, key: KeyPair) -> str:
    """The kid under which the service holds the key."""
    return make_kid(owner, key.public.thumbprint)


def changed(members: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The members with changes; ABSENT takes one away."""
    return {name: value for name, value in {**members, **changes}.items() if value is not ABSENT}


TEXT: Final = '\\u2028\\u007f\u2028\u2029\x7f\x1f"é😀'
"""Characters that writers of JSON escape in different ways, and text that looks like an escape."""


def object_of(size: int) -> dict[str, str]:
    """An object of that many bytes as canonical JSON, most of them of TEXT."""
    texts = (size - 8) // (len(canonical_json(TEXT)) - 2)
    text = TEXT * texts
    return {"a": text + "b" * (size - len(canonical_json({"a": text})))}


def segment(value: Any) -> str:
    """One segment of a JWS: of bytes as they are, of anything else as canonical JSON."""
    return b64url(value if isinstance(value, bytes) else canonical_json(value))


def jws(header: Any, payload: Any, sign: Callable[[bytes], bytes] | bytes) -> str:
    """A compact JWS of any header and payload (bytes, or a value that is written as JSON), signed by the key or with
    the given bytes."""
    signing_input = f"{segment(header)}.{segment(payload)}"
    signature = sign if isinstance(sign, bytes) else sign(signing_input.encode("ascii"))
    return f"{signing_input}.{b64url(signature)}"


def header_of(key: KeyPair, owner: str, typ: str, /, **changes: Any) -> dict[str, Any]:
    """The protected header of a token or document, changed."""
    return changed({"alg": key.public.alg, "kid": kid_of(owner, key), "typ": typ}, changes)


def listed(owner: str, key: KeyPair, state: str = "active", *, since: int = NOW - DAY, until: int = NOW + DAY) -> Any:
    """A key as the file's ``keys`` list it: what the verifier believes."""
    public = key.public
    window = {"active_from": since, "active_until": until}
    return {"kid": kid_of(owner, key), "alg": public.alg, "jwk": dict(public.jwk), "state": state, **window}


@dataclass
class Vectors:
    """One file. ``defaults`` are members of ``input`` that hold where a case does not give them; ``keys`` are the keys
    that the verifier believes, or the private keys of a signer."""

    kind: str
    about: str
    keys: list[Any] = field(default_factory=list)
    defaults: dict[str, Any] = field(default_factory=dict)
    cases: list[dict[str, Any]] = field(default_factory=list)

    def good(self, name: str, comment: str, claims: Any = None, /, **given: Any) -> None:
        """A case that is accepted; ``claims`` are what the verifier then knows."""
        self._add(name, comment, given, "accepted", {} if claims is None else {"claims": claims})

    def bad(self, name: str, code: str, comment: str, /, **given: Any) -> None:
        """A case that is refused with that code."""
        self._add(name, comment, given, code, {})

    def _add(self, name: str, comment: str, given: dict[str, Any], expect: str, rest: dict[str, Any]) -> None:
        self.cases.append({"id": name, "comment": comment, "input": given, "expect": expect, **rest})

    def to_json(self) -> dict[str, Any]:
        """The file's content."""
        return {
            "kind": self.kind,
            "about": self.about,
            "keys": self.keys,
            "defaults": self.defaults,
            "cases": self.cases,
        }
