"""Attacks on ``alg`` and on the signature itself."""

import hashlib
import hmac
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from peerseal.protocol.encoding import b64url, b64url_decode, canonical_json
from peerseal.protocol.keys import KeyPair
from tests.attacks.forge import ABSENT, CALLER, JTI, Callee, claims, forge, header, honest_token

P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551

NONE = ["none", "None", "NONE", "nOnE", "NoNe", "", " none", "none ", "none\0", "ｎｏｎｅ"]
OTHER_ALGORITHMS = [
    *("HS256", "HS384", "HS512", "RS384", "RS512", "PS256", "PS384", "PS512", "ES384", "ES512", "ES256K", "EdDSA"),
    *("RSA1_5", "RSA-OAEP", "dir", "A256GCM", "ES256 ", " RS256", "rs256", "Rs256", "RS256\0", "RS256\n", "ＲＳ256"),
    "http://www.w3.org/2001/04/xmldsig-more#rsa-sha256",
]
PUBLIC_HALVES: dict[str, Callable[[KeyPair], bytes]] = {
    "pem": lambda key: key.public.pem().encode(),
    "pem without its last newline": lambda key: key.public.pem().strip().encode(),
    "der": lambda key: key.public.spki,
    "base64 of the der": lambda key: b64url(key.public.spki).encode(),
    "jwk": lambda key: canonical_json(dict(key.public.jwk)),
    "modulus": lambda key: b64url_decode(key.public.jwk["n"]),
    "thumbprint": lambda key: key.public.thumbprint.encode(),
    "kid": lambda key: f"{CALLER}/{key.public.thumbprint}".encode(),
    "nothing": lambda key: b"",
}


def private(key: KeyPair) -> rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey:
    loaded = serialization.load_pem_private_key(key.to_pem(), None)
    assert isinstance(loaded, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey)
    return loaded


def hmac_with(secret: bytes) -> Callable[[bytes], bytes]:
    return lambda message: hmac.new(secret, message, hashlib.sha256).digest()


def rsa_signer(key: KeyPair, pad: padding.AsymmetricPadding, digest: hashes.HashAlgorithm) -> Callable[[bytes], bytes]:
    secret = private(key)
    assert isinstance(secret, rsa.RSAPrivateKey)
    return lambda message: secret.sign(message, pad, digest)


def test_the_honest_tokens_are_accepted(callee: Callee, key: KeyPair, p256: KeyPair) -> None:
    for jti, honest in enumerate((key, p256)):
        assert callee.accepts(honest_token(honest, jti=f"{jti}{JTI[1:]}"), scope="orders:write").id == CALLER


@pytest.mark.parametrize("spelling", NONE)
@pytest.mark.parametrize("signed", [False, True])
def test_alg_none_in_all_spellings(callee: Callee, key: KeyPair, spelling: str, signed: bool) -> None:
    callee.refuses(forge(header(key, alg=spelling), claims(), key.sign if signed else b""), "malformed_token")


def test_alg_none_written_with_escapes(callee: Callee, key: KeyPair) -> None:
    head = canonical_json(header(key)).replace(b'"RS256"', rb'"\u006eo\u006ee"')
    callee.refuses(forge(head, claims(), b""), "malformed_token")


@pytest.mark.parametrize("algorithm", OTHER_ALGORITHMS)
def test_an_algorithm_that_nobody_may_use(callee: Callee, key: KeyPair, algorithm: str) -> None:
    callee.refuses(forge(header(key, alg=algorithm), claims(), key.sign), "malformed_token")


@pytest.mark.parametrize("algorithm", [ABSENT, None, True, 256, ["RS256"], {"RS256": "RS256"}])
def test_alg_that_is_no_string(callee: Callee, key: KeyPair, algorithm: object) -> None:
    callee.refuses(forge(header(key, alg=algorithm), claims(), key.sign), "malformed_token")


@pytest.mark.parametrize("half", PUBLIC_HALVES)
def test_hs256_keyed_with_the_public_key(callee: Callee, key: KeyPair, half: str) -> None:
    """Key confusion, CVE-2015-9235 and its children (python-jose: CVE-2024-33663)."""
    secret = PUBLIC_HALVES[half](key)
    callee.refuses(forge(header(key, alg="HS256"), claims(), hmac_with(secret)), "malformed_token")
    callee.refuses(forge(header(key), claims(), hmac_with(secret)), "bad_signature")


@pytest.mark.parametrize("half", ["pem", "der", "jwk"])
def test_hs256_keyed_with_the_public_p256_key(callee: Callee, p256: KeyPair, half: str) -> None:
    secret = PUBLIC_HALVES[half](p256)
    callee.refuses(forge(header(p256, alg="HS256"), claims(), hmac_with(secret)), "malformed_token")
    callee.refuses(forge(header(p256), claims(), hmac_with(secret)), "bad_signature")


def test_rs256_token_against_an_es256_key_and_back(callee: Callee, key: KeyPair, p256: KeyPair) -> None:
    callee.refuses(forge(header(p256, alg="RS256"), claims(), key.sign), "bad_signature")
    callee.refuses(forge(header(p256, alg="RS256"), claims(), p256.sign), "bad_signature")
    callee.refuses(forge(header(key, alg="ES256"), claims(), p256.sign), "bad_signature")
    callee.refuses(forge(header(key, alg="ES256"), claims(), key.sign), "bad_signature")


def test_signature_with_another_padding_or_digest(callee: Callee, key: KeyPair) -> None:
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
    for sign in (
        rsa_signer(key, pss, hashes.SHA256()),
        rsa_signer(key, padding.PKCS1v15(), hashes.SHA512()),
        rsa_signer(key, padding.PKCS1v15(), hashes.SHA384()),
    ):
        callee.refuses(forge(header(key), claims(), sign), "bad_signature")


@pytest.mark.parametrize("algorithm", ["PS256", "RS512"])
def test_ps256_and_rs512_rightly_made(callee: Callee, key: KeyPair, algorithm: str) -> None:
    pads = {"PS256": padding.PSS(padding.MGF1(hashes.SHA256()), 32), "RS512": padding.PKCS1v15()}
    digest = hashes.SHA256() if algorithm == "PS256" else hashes.SHA512()
    sign = rsa_signer(key, pads[algorithm], digest)
    callee.refuses(forge(header(key, alg=algorithm), claims(), sign), "malformed_token")


def test_rsa_signature_of_another_length_or_value(callee: Callee, key: KeyPair) -> None:
    good = b64url_decode(honest_token(key).rpartition(".")[2])
    modulus = int.from_bytes(b64url_decode(key.public.jwk["n"]), "big")
    number = int.from_bytes(good, "big")
    wrapped = (number + modulus).to_bytes(257, "big")
    edges = [(value % (1 << 2048)).to_bytes(256, "big") for value in (0, 1, modulus - 1, modulus, modulus + 1, -1)]
    lengths = [b"", good[:-1], good[1:], b"\0" + good, good + b"\0", good * 2, wrapped, wrapped[1:]]
    for signature in edges + lengths:
        callee.refuses(forge(header(key), claims(), signature), "bad_signature")


def test_es256_signature_as_der_or_of_wrong_length(callee: Callee, p256: KeyPair) -> None:
    good = b64url_decode(honest_token(p256).rpartition(".")[2])
    r, s = int.from_bytes(good[:32], "big"), int.from_bytes(good[32:], "big")
    lengths = [b"", good[:32], good[:-1], good[:-2], good + b"\0", b"\0" + good, good * 2]
    wide = [r.to_bytes(33, "big") + s.to_bytes(33, "big"), r.to_bytes(48, "big") + s.to_bytes(48, "big")]
    for signature in [encode_dss_signature(r, s), *lengths, *wide]:
        callee.refuses(forge(header(p256), claims(), signature), "bad_signature")


def test_es256_signature_with_r_or_s_zero_or_out_of_range(callee: Callee, p256: KeyPair) -> None:
    """Psychic signatures, CVE-2022-21449."""
    good = b64url_decode(honest_token(p256).rpartition(".")[2])
    r, s = int.from_bytes(good[:32], "big"), int.from_bytes(good[32:], "big")
    n = P256_ORDER
    for pair in ((0, 0), (0, s), (r, 0), (0, 1), (1, 0), (n, n), (n, s), (r, n), (1, 1), (n - 1, n - 1), (s, r)):
        callee.refuses(forge(header(p256), claims(), b"".join(x.to_bytes(32, "big") for x in pair)), "bad_signature")


def test_es256_signature_turned_over_is_the_same_token(callee: Callee, p256: KeyPair) -> None:
    """(r, n - s) verifies wherever (r, s) does: a second spelling of the signature must not buy a second call."""
    token = honest_token(p256)
    signing_input, _, signature = token.rpartition(".")
    r, s = decode_dss_signature(
        encode_dss_signature(*(int.from_bytes(half, "big") for half in _halves(b64url_decode(signature))))
    )
    turned = f"{signing_input}.{b64url(r.to_bytes(32, 'big') + (P256_ORDER - s).to_bytes(32, 'big'))}"
    assert turned != token
    callee.accepts(token)
    callee.refuses(turned, "replayed")


def test_signature_of_another_token(callee: Callee, key: KeyPair) -> None:
    other = honest_token(key, jti="BBBBBBBBBBBBBBBBBBBBBA").rpartition(".")[2]
    callee.refuses(f"{honest_token(key).rpartition('.')[0]}.{other}", "bad_signature")


def test_signature_over_the_decoded_segments(callee: Callee, key: KeyPair) -> None:
    message = canonical_json(header(key)) + b"." + canonical_json(claims())
    callee.refuses(forge(header(key), claims(), key.sign(message)), "bad_signature")


def _halves(signature: bytes) -> tuple[bytes, bytes]:
    return signature[:32], signature[32:]
