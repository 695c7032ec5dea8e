"""An issuer's keys and certificates in the domain's settings. Keys that operators set are not fetched; CA certificates
are for https to the issuer. Operators paste both, so a refusal names the mistake. The stored form is canonical."""

from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from peerseal.errors import KeyRefused, MalformedToken
from peerseal.protocol.encoding import canonical_json
from peerseal.protocol.keys import PRIVATE_MEMBERS, PublicKey
from peerseal.protocol.plain import kind_of, text_like
from peerseal.protocol.tokens.oidc import MAX_KID, read_key_set

MAX_GIVEN_KEYS: Final = 10
"""Keys of an issuer in the settings, at most: all settings must fit into one entry."""
MAX_CA: Final = 16 * 1024
"""Characters of an issuer's certificates in the settings, at most."""
MAX_CERTIFICATES: Final = 10
"""Certificates of an issuer in the settings, at most."""


def canonical_jwks(value: Any) -> str:
    """The JWK Set (RFC 7517 section 5) as canonical JSON: public signature keys with different kids,
    sorted by kid, with only the needed members. Raises MalformedToken that names member, value and expectation."""
    if type(value) is not dict or value.keys() != {"keys"} or type(value["keys"]) is not list:
        raise MalformedToken('jwks: expected {"keys": [JWK…]} and no other member')
    jwks = value["keys"]
    if not 0 < len(jwks) <= MAX_GIVEN_KEYS:
        raise MalformedToken(f"jwks.keys has {len(jwks)} keys, expected 1 to {MAX_GIVEN_KEYS}")
    found: dict[str, PublicKey] = {}
    for number, jwk in enumerate(jwks):
        try:
            kid, key = _signature_key(jwk)
            if kid in found:
                raise MalformedToken(f"kid {text_like(kid)} is in the set twice")
            if any(key.thumbprint == other.thumbprint for other in found.values()):
                raise MalformedToken(f"kid {text_like(kid)} is the same key as another one, expected different keys")
        except (KeyRefused, MalformedToken) as error:
            raise MalformedToken(f"jwks.keys[{number}]: {error}") from error
        found[kid] = key
    keys = [{**found[kid].jwk, "kid": kid, "alg": found[kid].alg, "use": "sig"} for kid in sorted(found)]
    return canonical_json({"keys": keys}).decode("utf-8")


def keys_from_jwks(jwks: str) -> dict[str, PublicKey]:
    """The keys of such a set, by kid."""
    return read_key_set(jwks.encode("utf-8"), lambda _: None)


def canonical_ca(value: Any) -> str:
    """The certificates as PEM, one after the other, and nothing else. Raises as `canonical_jwks` does."""
    if type(value) is not str or len(value) > MAX_CA:
        size = f"{len(value)} characters" if type(value) is str else f"of the type {kind_of(value)}"
        raise MalformedToken(f"ca is {size}, expected a text of {MAX_CA} characters at most")
    if "PRIVATE KEY" in value:
        raise MalformedToken("ca holds a private key, expected certificates only")
    try:
        certificates = x509.load_pem_x509_certificates(value.encode("ascii"))
    except ValueError as error:
        raise MalformedToken("ca: expected certificates as PEM, one after the other") from error
    if len(certificates) > MAX_CERTIFICATES:
        raise MalformedToken(f"ca has {len(certificates)} certificates, expected {MAX_CERTIFICATES} at most")
    return "".join(certificate.public_bytes(Encoding.PEM).decode("ascii") for certificate in certificates)


def _signature_key(jwk: Any) -> tuple[str, PublicKey]:
    """Raises KeyRefused or MalformedToken."""
    if type(jwk) is not dict:
        raise MalformedToken(f"a JWK is an object, and this is {kind_of(jwk)}")
    private = PRIVATE_MEMBERS & jwk.keys()
    if private:
        raise MalformedToken(f"member {min(private)} is private, expected a public key")
    kid, operations = jwk.get("kid"), jwk.get("key_ops", ["verify"])
    if type(kid) is not str or not 0 < len(kid) <= MAX_KID or not kid.isprintable():
        raise MalformedToken(f"kid is {text_like(kid)}, expected a text of 1 to {MAX_KID} printable characters")
    if jwk.get("use", "sig") != "sig" or type(operations) is not list or "verify" not in operations:
        raise MalformedToken(f"kid {text_like(kid)} has another use or key_ops, expected a key for signatures")
    return kid, PublicKey.from_jwk(jwk)
