"""Keys and certificates of an issuer in the domain's settings: read strictly, and no fetch where the keys are there."""

import base64
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from peerseal import UserVerifier
from peerseal.errors import MalformedToken, TrustUnavailable, UnknownKey
from peerseal.protocol.issuer_trust import MAX_CA, canonical_ca, canonical_jwks, keys_from_jwks
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.policies import UserIssuer
from peerseal.testing import Clock, MemoryRegistry
from tests.support.certificates import Authority
from tests.support.issuer import DISCOVERY, JWKS, Issuer, private_ca, public_jwk, running_issuer

NAMED = "https://login.example.com"
EC, RSA = ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 2048)
HONEST = public_jwk(EC, "one")


# ---- what an operator may write


def test_a_set_has_one_spelling_with_the_members_that_are_needed() -> None:
    text = canonical_jwks({"keys": [public_jwk(RSA, "two", x5t="abc"), {**HONEST, "key_ops": ["verify"]}]})
    assert [(jwk["kid"], sorted(jwk)) for jwk in json.loads(text)["keys"]] == [
        ("one", ["alg", "crv", "kid", "kty", "use", "x", "y"]),
        ("two", ["alg", "e", "kid", "kty", "n", "use"]),
    ]
    assert canonical_jwks(json.loads(text)) == text
    assert [(kid, key.alg) for kid, key in keys_from_jwks(text).items()] == [("one", "ES256"), ("two", "RS256")]


def secret_of(key: rsa.RSAPrivateKey) -> str:
    number = key.private_numbers().d
    return base64.urlsafe_b64encode(number.to_bytes((number.bit_length() + 7) // 8, "big")).decode().rstrip("=")


SECRET = secret_of(RSA)

WRONG_JWKS: Mapping[str, tuple[Any, str]] = {
    "a text": (json.dumps({"keys": [HONEST]}), 'jwks: expected {"keys": [JWK…]}'),
    "a list": ([HONEST], 'jwks: expected {"keys": [JWK…]}'),
    "null": (None, 'jwks: expected {"keys": [JWK…]}'),
    "another member": ({"keys": [HONEST], "url": NAMED}, 'jwks: expected {"keys": [JWK…]}'),
    "no key": ({"keys": []}, "jwks.keys has 0 keys, expected 1 to 10"),
    "many keys": ({"keys": [HONEST] * 11}, "jwks.keys has 11 keys, expected 1 to 10"),
    "no object": ({"keys": ["one"]}, "jwks.keys[0]: a JWK is an object, and this is str"),
    "a private key": ({"keys": [HONEST, public_jwk(RSA, "two", d=SECRET)]}, "jwks.keys[1]: member d is private"),
    "a secret": ({"keys": [{"kty": "oct", "kid": "s", "k": SECRET}]}, "jwks.keys[0]: member k is private"),
    "no kid": ({"keys": [{n: HONEST[n] for n in HONEST if n != "kid"}]}, "kid is a value of the type None, expected"),
    "a long kid": ({"keys": [{**HONEST, "kid": "k" * 257}]}, "expected a text of 1 to 256 printable characters"),
    "a kid of two lines": ({"keys": [{**HONEST, "kid": "one\n"}]}, "expected a text of 1 to 256 printable characters"),
    "half a character as kid": ({"keys": [{**HONEST, "kid": "\ud800"}]}, "of 1 to 256 printable characters"),
    "for encryption": (
        {"keys": [{**HONEST, "use": "enc"}]},
        "kid 'one' has another use or key_ops, expected a key for",
    ),
    "for signing": ({"keys": [{**HONEST, "key_ops": ["sign"]}]}, "kid 'one' has another use or key_ops"),
    "a kid twice": ({"keys": [HONEST, public_jwk(RSA, "one")]}, "jwks.keys[1]: kid 'one' is in the set twice"),
    "a key twice": (
        {"keys": [HONEST, public_jwk(EC, "two")]},
        "jwks.keys[1]: kid 'two' is the same key as another one",
    ),
    "another algorithm": (
        {"keys": [{**HONEST, "alg": "RS256"}]},
        "jwks.keys[0]: key_alg_mismatch: this type of key is for ES256",
    ),
    "another curve": (
        {"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "AA", "kid": "one"}]},
        "jwks.keys[0]: key_type_unsupported: kty 'OKP', crv 'Ed25519'",
    ),
    "1024 bits": (
        {"keys": [public_jwk(rsa.generate_private_key(65537, 1024), "one")]},
        "jwks.keys[0]: key_size_unsupported: 1024 bits",
    ),
    "off the curve": ({"keys": [{**HONEST, "y": HONEST["x"]}]}, "jwks.keys[0]: key_off_curve: not a point of P-256"),
}


@pytest.mark.parametrize(("value", "says"), WRONG_JWKS.values(), ids=WRONG_JWKS)
def test_what_is_no_set_of_public_keys_is_refused_by_name_and_without_its_secrets(value: Any, says: str) -> None:
    with pytest.raises(MalformedToken) as refused:
        canonical_jwks(value)
    assert says in str(refused.value)
    assert SECRET[:8] not in str(refused.value)


def test_certificates_have_one_spelling(tmp_path: Path) -> None:
    one, two = (Authority.make(tmp_path, name).file.read_text() for name in ("one", "two"))
    assert canonical_ca(f"# our authority\n{one}\r\n\n{two}") == one + two
    assert canonical_ca(one + two) == one + two


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda _: None, "ca is of the type None, expected a text"),
        (lambda pem: [pem], "ca is of the type list, expected a text"),
        (lambda _: "", "ca: expected certificates as PEM"),
        (lambda _: "/etc/ssl/ca.pem", "ca: expected certificates as PEM"),
        (lambda pem: pem.replace("MI", "ÄÖ"), "ca: expected certificates as PEM"),
        (lambda pem: pem[:200], "ca: expected certificates as PEM"),
        (
            lambda pem: pem + KeyPair.generate("ES256").to_pem().decode(),
            "ca holds a private key, expected certificates",
        ),
        (lambda pem: pem * 11, "ca has 11 certificates, expected 10 at most"),
        (lambda pem: pem + " " * MAX_CA, f"expected a text of {MAX_CA} characters at most"),
    ],
    ids=["null", "a list", "nothing", "a file's name", "not ASCII", "cut", "a private key", "many", "long"],
)
def test_what_is_no_certificate_is_refused_by_name(tmp_path: Path, make: Callable[[str], Any], says: str) -> None:
    with pytest.raises(MalformedToken) as refused:
        canonical_ca(make(Authority.make(tmp_path, "one").file.read_text()))
    assert says in str(refused.value)


def test_an_issuer_has_keys_in_the_settings_or_at_a_url() -> None:
    named = {"issuer": NAMED, "audience": "edge", "jwks": {"keys": [HONEST]}}
    assert UserIssuer.from_json(named).to_json() == {**named, "jwks_url": None}
    with pytest.raises(MalformedToken, match="jwks and jwks_url are both set"):
        UserIssuer.from_json({**named, "jwks_url": f"{NAMED}/keys"})
    assert UserIssuer(NAMED, "edge").to_json() == {"issuer": NAMED, "audience": "edge", "jwks_url": None}


# ---- at the edge


@pytest.mark.parametrize("alg", ["RS256", "ES256"])
def test_keys_in_the_settings_are_fetched_from_nowhere(registry: MemoryRegistry, clock: Clock, alg: str) -> None:
    issuer = Issuer(NAMED, alg=alg)
    trust = registry.trust_store()
    registry.set_domain(issuers=[UserIssuer(NAMED, "edge", jwks=canonical_jwks(issuer.jwks))])
    users = UserVerifier(trust, clock=clock)
    assert users.verify(issuer.token("ada", "edge", now=clock())).name == "ada"
    old = issuer.token("ada", "edge", now=clock(), exp=int(clock()) + 7200)
    issuer.rotate(keep=0)
    for _ in range(3):
        with pytest.raises(UnknownKey):
            users.verify(issuer.token("ada", "edge", now=clock()))
    registry.set_domain(issuers=[UserIssuer(NAMED, "edge", jwks=canonical_jwks(issuer.jwks))])
    trust.refresh()
    assert users.verify(issuer.token("ada", "edge", now=clock())).name == "ada", "an operator laid down the new key"
    with pytest.raises(UnknownKey):
        users.verify(old)


def test_a_file_at_the_edge_counts_before_the_settings(registry: MemoryRegistry, clock: Clock, tmp_path: Path) -> None:
    issuer, other = Issuer(NAMED), Issuer(NAMED)
    (tmp_path / "jwks.json").write_text(json.dumps(issuer.jwks))
    registry.set_domain(issuers=[UserIssuer(NAMED, "edge", jwks=canonical_jwks(other.jwks))])
    users = UserVerifier(registry.trust_store(), jwks_files={NAMED: tmp_path / "jwks.json"}, clock=clock)
    assert users.verify(issuer.token("ada", "edge", now=clock())).name == "ada"


@pytest.mark.parametrize("by_url", [False, True])
def test_an_issuers_https_is_checked_with_its_certificates_in_the_settings_and_no_others(
    registry: MemoryRegistry, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_url: bool
) -> None:
    another = Authority.make(tmp_path, "another").file
    with running_issuer(tls=private_ca(tmp_path)) as issuer:
        right, url = (tmp_path / "ca.pem").read_text(), issuer.url + JWKS if by_url else None

        def verified(ca: str | None, **options: Any) -> str:
            registry.set_domain(issuers=[UserIssuer(issuer.url, "edge", url, ca=ca and canonical_ca(ca))])
            users = UserVerifier(registry.trust_store(), clock=clock, **options)
            return users.verify(issuer.token("ada", "edge", now=clock())).name

        for ca, options in (
            (None, {}),
            (another.read_text(), {}),
            (another.read_text(), {"ca_file": tmp_path / "ca.pem"}),
        ):
            with pytest.raises(TrustUnavailable):
                verified(ca, **options)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
        with pytest.raises(TrustUnavailable):
            verified(another.read_text())
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "not-there.pem"))
        assert verified(right) == "ada"
        assert verified(right, ca_file=another) == "ada"
        assert issuer.fetched == ({JWKS: 2} if by_url else {DISCOVERY: 2, JWKS: 2})
