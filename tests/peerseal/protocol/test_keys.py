"""Key pairs, JWKs, thumbprints and public credentials."""

import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa, x25519
from hypothesis import given, settings
from hypothesis import strategies as st

from peerseal.errors import ConfigurationError, KeyRefused
from peerseal.protocol.encoding import b64url, b64url_decode
from peerseal.protocol.keys import KeyPair, PublicCredentials, PublicKey
from tests.attacks.forge import CALLER, ec_key, rsa_key

# RFC 7638 section 3.1
RFC_7638_KEY = {
    "kty": "RSA",
    "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3"
    "oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6"
    "qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJ"
    "zKnqDKgw",
    "e": "AQAB",
    "alg": "RS256",
    "kid": "2011-04-29",
}


def code_of(jwk: dict[str, Any], alg: str | None = None) -> str:
    with pytest.raises(KeyRefused) as caught:
        PublicKey.from_jwk(jwk, alg)
    return caught.value.code


def number(value: int) -> str:
    return b64url(value.to_bytes((value.bit_length() + 7) // 8, "big"))


def spki(key: Any) -> bytes:
    encoded: bytes = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return encoded


def test_thumbprint_is_that_of_rfc_7638() -> None:
    key = PublicKey.from_jwk(RFC_7638_KEY)
    assert key.thumbprint == "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"
    assert dict(key.jwk) == {name: RFC_7638_KEY[name] for name in ("kty", "n", "e")}
    assert key.alg == "RS256"


def test_thumbprint_of_a_p256_key_is_that_of_rfc_7517s_example() -> None:
    jwk = {
        "kty": "EC",
        "crv": "P-256",
        "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
        "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM",
        "use": "enc",
    }
    assert PublicKey.from_jwk(jwk).thumbprint == "cn-I_WNMClehiVp51i_0VpOENW1upEerA8sEam5hn-s"


@pytest.mark.parametrize("key", [rsa_key("caller").public, ec_key("caller").public], ids=["RSA", "P-256"])
def test_a_public_key_comes_back_from_every_form(key: PublicKey) -> None:
    assert PublicKey.from_jwk(key.jwk) == PublicKey.from_spki(key.spki) == PublicKey.of(key.crypto) == key
    pem = serialization.load_pem_public_key(key.pem().encode())
    assert spki(pem) == key.spki
    assert PublicKey.from_jwk(json.loads(json.dumps(dict(key.jwk)))).verify(b"a", b"") is False


@pytest.mark.parametrize("alg", ["RS256", "ES256"])
@pytest.mark.parametrize("password", [None, b"secret"])
def test_a_key_pair_comes_back_from_its_pem(alg: str, password: bytes | None) -> None:
    key = (rsa_key if alg == "RS256" else ec_key)("caller")
    pem = key.to_pem(password)
    assert (b"ENCRYPTED" in pem) == (password is not None)
    again = KeyPair.from_pem(pem, password)
    assert again.public == key.public
    assert key.public.verify(b"message", again.sign(b"message"))


def test_a_pem_that_cannot_be_read() -> None:
    pem, locked = ec_key("caller").to_pem(), ec_key("caller").to_pem(b"secret")
    cases = [(b"", None), (b"nonsense", None), (pem[:-40], None), (pem, b"secret"), (locked, None), (locked, b"wrong")]
    for data, password in [*cases, (ec_key("caller").public.pem().encode(), None)]:
        with pytest.raises(KeyRefused) as caught:
            KeyPair.from_pem(data, password)
        assert caught.value.code == "key_malformed"
        assert "secret" not in str(caught.value)


def test_private_keys_stay_out_of_texts() -> None:
    key = ec_key("caller")
    assert "_private" not in repr(key)
    assert "sign" not in repr(key)


def test_generated_keys_are_of_the_kind_asked_for() -> None:
    assert rsa_key("caller").public.alg == "RS256"
    assert rsa_key("caller").public.crypto.key_size == 2048
    assert ec_key("caller").public.alg == "ES256"
    for alg, bits in (("RS256", 1024), ("RS256", 16384), ("RS512", 2048), ("none", 2048), ("HS256", 2048), ("", 2048)):
        with pytest.raises(ConfigurationError):
            KeyPair.generate(alg, bits)


# ---- what is refused


@pytest.mark.parametrize("member", ["d", "p", "q", "dp", "dq", "qi", "oth", "k"])
def test_private_members(member: str) -> None:
    for key in (rsa_key("caller"), ec_key("caller")):
        assert code_of({**key.public.jwk, member: "AQAB"}) == "key_private_members"
    assert code_of({**rsa_key("caller").public.jwk, member: None}) == "key_private_members"


@pytest.mark.parametrize(
    "changes",
    [
        *(
            {"kty": "oct", "k2": "AA"},
            {"kty": "OKP", "crv": "Ed25519", "x": "A" * 43},
            {"kty": "rsa"},
            {"kty": None},
            {"kty": ""},
        ),
        *(
            {"kty": ["RSA"]},
            {"kty": {}},
            {"kty": "RSA "},
            {"kty": "EC"},
            {"kty": "EC", "crv": "P-384"},
            {"kty": "EC", "crv": "p-256"},
        ),
        *({"kty": "EC", "crv": "secp256k1"}, {"kty": "EC", "crv": ["P-256"]}, {"kty": "EC", "crv": None}),
    ],
)
def test_other_types_and_curves(changes: dict[str, Any]) -> None:
    assert code_of({**rsa_key("caller").public.jwk, **changes}) == "key_type_unsupported"


def test_no_type_at_all() -> None:
    assert code_of({}) == "key_type_unsupported"


@pytest.mark.parametrize("bits", [512, 1024, 2047, 8193, 16384])
def test_sizes_outside_the_range(bits: int) -> None:
    jwk = {"kty": "RSA", "n": number((1 << (bits - 1)) + 1), "e": "AQAB"}
    assert code_of(jwk) == "key_size_unsupported"


def test_sizes_at_the_ends_of_the_range() -> None:
    for bits in (2048, 8192):
        jwk = {"kty": "RSA", "n": number((1 << (bits - 1)) + 1), "e": "AQAB"}
        assert PublicKey.from_jwk(jwk).jwk["n"] == jwk["n"]


def test_an_endless_modulus_is_not_even_a_number() -> None:
    assert code_of({"kty": "RSA", "n": "B" * 1_000_000, "e": "AQAB"}) == "key_size_unsupported"


@pytest.mark.parametrize("exponent", [1, 2, 3, 17, 65535, 65536, 65538, 2**32 + 1, 2**64])
def test_other_exponents(exponent: int) -> None:
    assert code_of({**rsa_key("caller").public.jwk, "e": number(exponent)}) == "key_exponent_unsupported"


def test_an_even_modulus() -> None:
    n = int.from_bytes(b64url_decode(rsa_key("caller").public.jwk["n"]), "big")
    assert code_of({**rsa_key("caller").public.jwk, "n": number(n - 1)}) == "key_even_modulus"


def test_a_point_off_the_curve() -> None:
    jwk = ec_key("caller").public.jwk
    assert code_of({**jwk, "y": jwk["x"], "x": jwk["y"]}) == "key_off_curve"
    assert code_of({**jwk, "x": b64url(b"\xff" * 32)}) == "key_off_curve"
    assert code_of({**jwk, "x": b64url(b"\0" * 32), "y": b64url(b"\0" * 32)}) == "key_off_curve"


@pytest.mark.parametrize(
    "value",
    [None, "", 1, 1.5, True, [], {}, ["AQAB"], [65, 65], [1, 2, 3, 4], {"a": 1}, "A", "AQ==", "+A", "é", "\ud800"],
)
@pytest.mark.parametrize("member", ["n", "e"])
def test_members_that_are_no_numbers(member: str, value: Any) -> None:
    assert code_of({**rsa_key("caller").public.jwk, member: value}) == "key_malformed"
    assert code_of({**ec_key("caller").public.jwk, "x": value}) == "key_malformed"


def test_numbers_with_leading_zeros_or_short_coordinates() -> None:
    jwk = rsa_key("caller").public.jwk
    assert code_of({**jwk, "n": b64url(b"\0" + b64url_decode(jwk["n"]))}) == "key_malformed"
    assert code_of({**jwk, "e": b64url(b"\0\1\0\1")}) == "key_malformed"
    point = ec_key("caller").public.jwk
    for data in (b64url_decode(point["x"])[1:], b"\0" + b64url_decode(point["x"])):
        assert code_of({**point, "x": b64url(data)}) == "key_malformed"


@pytest.mark.parametrize("alg", ["ES256", "RS512", "PS256", "HS256", "none", "", "rs256"])
def test_another_algorithm_than_the_types(alg: str) -> None:
    assert code_of(dict(rsa_key("caller").public.jwk), alg) == "key_alg_mismatch"
    assert code_of({**rsa_key("caller").public.jwk, "alg": alg}) == "key_alg_mismatch"
    assert code_of({**rsa_key("caller").public.jwk, "alg": [alg]}, "RS256") == "key_alg_mismatch"


def test_other_public_members_are_ignored() -> None:
    key = rsa_key("caller").public
    assert PublicKey.from_jwk({**key.jwk, "use": "sig", "key_ops": ["verify"], "kid": 1, "x5u": "http://h/"}) == key


def test_public_key_infos_of_other_keys() -> None:
    others: list[Any] = [
        ec.generate_private_key(ec.SECP384R1()).public_key(),
        ec.generate_private_key(ec.SECP256K1()).public_key(),
        ed25519.Ed25519PrivateKey.generate().public_key(),
        x25519.X25519PrivateKey.generate().public_key(),
    ]
    for key in others:
        with pytest.raises(KeyRefused) as caught:
            PublicKey.from_spki(spki(key))
        assert caught.value.code == "key_type_unsupported"
    small = rsa.RSAPublicNumbers(65537, (1 << 1023) + 1).public_key()
    with pytest.raises(KeyRefused) as caught:
        PublicKey.from_spki(spki(small))
    assert caught.value.code == "key_size_unsupported"


@given(st.binary(max_size=400))
@settings(deadline=None)
def test_any_bytes_as_public_key_info(der: bytes) -> None:
    with pytest.raises(KeyRefused):
        PublicKey.from_spki(der)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just("AQAB") | st.just("RSA") | st.just("EC"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(["kty", "crv", "n", "e", "x", "y", "alg", "kid"]), json_values))
@settings(deadline=None)
def test_any_json_as_jwk(jwk: dict[str, Any]) -> None:
    with pytest.raises(KeyRefused):
        PublicKey.from_jwk(jwk)


# ---- public credentials


def test_public_credentials_are_as_every_service_shows_them() -> None:
    key = rsa_key("caller").public
    shown = PublicCredentials.of(CALLER, key).to_json()
    assert shown == {"keyId": f"{CALLER}/{key.thumbprint}", "publicKey": b64url(key.spki)}
    der = base64.urlsafe_b64decode(shown["publicKey"] + "=" * (-len(shown["publicKey"]) % 4))
    assert PublicKey.from_spki(der) == key
