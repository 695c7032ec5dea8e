"""Tokens of foreign issuers and their keys as they publish them: what is believed, and what is refused."""

import base64
import contextlib
import hashlib
import hmac
import json
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from peerseal.errors import (
    BadSignature,
    DocumentRefused,
    Expired,
    KeyRefused,
    LifetimeTooLong,
    MalformedToken,
    NotYetValid,
    PeersealError,
    TokenError,
    UnknownKey,
    WrongAudience,
    WrongIssuer,
    WrongType,
)
from peerseal.protocol.encoding import b64url, b64url_decode
from peerseal.protocol.keys import PublicKey
from peerseal.protocol.tokens.oidc import (
    LIFETIME_CAP,
    MAX_FOREIGN_TOKEN,
    MAX_KEYS,
    MAX_KID,
    MAX_SUBJECT,
    UnverifiedToken,
    VerifiedClaims,
    read_discovery,
    read_key_set,
)
from tests.support.issuer import Issuer, public_jwk
from tests.support.weak_keys import public, with_close_primes, with_roca, with_small_factor

NOW = 1_900_000_000
URL = "https://issuer.test"
AUDIENCE = "acme.internal/registry"
SUBJECT = "system:serviceaccount:shop:billing"


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    """One that needs no answers: for pure functions."""
    return Issuer(URL)


@pytest.fixture(scope="module")
def other() -> Issuer:
    return Issuer("https://other.test")


def verified(issuer: Issuer, token: str, *, audience: str = AUDIENCE, now: float = NOW) -> VerifiedClaims:
    unverified = UnverifiedToken.parse(token)
    key = read_key_set(json.dumps(issuer.jwks).encode()).get(unverified.kid)
    if key is None:
        raise UnknownKey(unverified.kid)
    return unverified.verified(key, issuer=issuer.url, audience=audience, now=now)


def good(issuer: Issuer, **changes: Any) -> str:
    return issuer.token(SUBJECT, AUDIENCE, now=NOW, **changes)


def segment(value: Any) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed_by_hand(issuer: Issuer, header: Any, payload: Any) -> str:
    """For what PyJWT does not write."""
    message = f"{segment(header)}.{segment(payload)}"
    signature = jwt.get_algorithm_by_name(issuer.alg).sign(message.encode(), issuer.keys[issuer.kid])  # type: ignore[arg-type]
    return f"{message}.{segment(signature)}"


# what is believed


@pytest.mark.parametrize("alg", ["RS256", "ES256"])
def test_a_token_says_who_made_it_for_whom_about_whom(alg: str) -> None:
    issuer = Issuer(URL, alg=alg)
    claims = verified(issuer, good(issuer))
    assert (claims.issuer, claims.audience, claims.subject) == (URL, AUDIENCE, SUBJECT)
    assert (claims.issued_at, claims.expires_at) == (NOW, NOW + 600)
    assert claims.claims["ref_protected"] == "true"


@pytest.mark.parametrize("typ", ["JWT", "at+jwt", None])
def test_a_type_may_be_missing_or_one_of_two(issuer: Issuer, typ: str | None) -> None:
    header = {"alg": "RS256", "kid": issuer.kid, **({"typ": typ} if typ else {})}
    assert verified(issuer, signed_by_hand(issuer, header, issuer.claims(SUBJECT, AUDIENCE, now=NOW)))


def test_a_hash_of_a_certificate_in_the_header_is_let_be(issuer: Issuer) -> None:
    token = issuer.sign(issuer.claims(SUBJECT, AUDIENCE, now=NOW), headers={"x5t": "ykNaY4qM_ta4k2TgZOCEYLkcYlA"})
    assert verified(issuer, token).subject == SUBJECT


def test_one_of_several_audiences_is_enough_and_nbf_may_be_missing(issuer: Issuer) -> None:
    assert verified(issuer, issuer.token(SUBJECT, ["https://x", AUDIENCE], now=NOW, nbf=None))


def test_times_are_taken_with_the_leeway_and_no_further(issuer: Issuer) -> None:
    token = good(issuer)
    assert verified(issuer, token, now=NOW - 30)
    assert verified(issuer, token, now=NOW + 629)
    with pytest.raises(NotYetValid):
        verified(issuer, token, now=NOW - 31)
    with pytest.raises(Expired):
        verified(issuer, token, now=NOW + 630)


def test_verified_claims_are_made_by_verification_only() -> None:
    with pytest.raises(TypeError):
        VerifiedClaims(URL, AUDIENCE, SUBJECT, NOW, NOW + 600, {}, object())


def test_verified_claims_cannot_be_changed_and_do_not_show_the_subject(issuer: Issuer) -> None:
    claims = verified(issuer, good(issuer))
    with pytest.raises(TypeError):
        claims.claims["sub"] = "somebody else"  # type: ignore[index]
    assert SUBJECT not in repr(claims)
    assert SUBJECT not in repr(UnverifiedToken.parse(good(issuer)))


# what is refused


@pytest.mark.parametrize(
    ("audience", "error"),
    [
        ("acme.internal/other", WrongAudience),
        ("acme.internal/registry/", WrongAudience),
        ("Acme.internal/registry", WrongAudience),
        ("acme.internal/registr", WrongAudience),
        (["https://kubernetes.default.svc"], WrongAudience),
        ([], WrongAudience),
        (None, MalformedToken),
        (7, MalformedToken),
        ({"acme.internal/registry": 1}, MalformedToken),
        ([AUDIENCE, 7], MalformedToken),
        ([[AUDIENCE]], MalformedToken),
        ([AUDIENCE] * 21, MalformedToken),
    ],
)
def test_another_audience_is_refused(issuer: Issuer, audience: Any, error: type[TokenError]) -> None:
    payload = issuer.claims(SUBJECT, AUDIENCE, now=NOW) | {"aud": audience}
    with pytest.raises(error):
        verified(issuer, signed_by_hand(issuer, {"alg": "RS256", "kid": issuer.kid}, payload))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"exp": NOW - 31, "iat": NOW - 600}, Expired),
        ({"exp": NOW}, Expired),
        ({"iat": NOW + 31, "exp": NOW + 700}, NotYetValid),
        ({"nbf": NOW + 31}, NotYetValid),
        ({"exp": NOW + LIFETIME_CAP + 1}, LifetimeTooLong),
        ({"exp": None}, MalformedToken),
        ({"iat": None}, MalformedToken),
        *(({name: float(NOW + 1)}, MalformedToken) for name in ("exp", "iat", "nbf")),
        *(({name: str(NOW + 1)}, MalformedToken) for name in ("exp", "iat", "nbf")),
        *(({name: True}, MalformedToken) for name in ("exp", "iat", "nbf")),
        *(({name: -1}, MalformedToken) for name in ("exp", "iat", "nbf")),
        ({"exp": 10**12}, MalformedToken),
    ],
)
def test_times_that_are_past_to_come_too_long_or_none_are_refused(
    issuer: Issuer, changes: dict[str, Any], error: type[TokenError]
) -> None:
    claims = issuer.claims(SUBJECT, AUDIENCE, now=NOW) | changes
    payload = {name: value for name, value in claims.items() if value is not None}
    with pytest.raises(error):
        verified(issuer, signed_by_hand(issuer, {"alg": "RS256", "kid": issuer.kid}, payload))


@pytest.mark.parametrize("subject", [None, "", 7, ["a"], "s" * (MAX_SUBJECT + 1)])
def test_a_subject_that_is_none_is_refused(issuer: Issuer, subject: Any) -> None:
    payload = issuer.claims(SUBJECT, AUDIENCE, now=NOW) | {"sub": subject}
    with pytest.raises(MalformedToken):
        verified(issuer, signed_by_hand(issuer, {"alg": "RS256", "kid": issuer.kid}, payload))


@pytest.mark.parametrize("name", [URL + "/", URL.upper(), "http://issuer.test", "https://other.test", ""])
def test_another_issuer_is_refused_whoever_signed(issuer: Issuer, name: str) -> None:
    with pytest.raises(WrongIssuer):
        verified(issuer, good(issuer, iss=name))


def test_another_issuers_key_is_refused(issuer: Issuer, other: Issuer) -> None:
    claims = issuer.claims(SUBJECT, AUDIENCE, now=NOW)
    with pytest.raises(UnknownKey):
        verified(issuer, other.sign(claims))
    with pytest.raises(BadSignature):
        verified(issuer, other.sign(claims, headers={"kid": issuer.kid}))


@pytest.mark.parametrize("alg", ["none", "None", "NONE", "", "HS256", "RS512", "PS256", "ES384", "EdDSA", "rs256"])
def test_other_algorithms_are_refused(issuer: Issuer, alg: str) -> None:
    header = {"alg": alg, "kid": issuer.kid}
    with pytest.raises(MalformedToken):
        verified(issuer, signed_by_hand(issuer, header, issuer.claims(SUBJECT, AUDIENCE, now=NOW)))


@pytest.mark.parametrize("alg", ["HS256", "RS256", "ES256"])
def test_a_mac_keyed_with_the_public_key_is_refused(issuer: Issuer, alg: str) -> None:
    pem = issuer.keys[issuer.kid].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    message = f"{segment({'alg': alg, 'kid': issuer.kid})}.{segment(issuer.claims(SUBJECT, AUDIENCE, now=NOW))}"
    mac = hmac.new(pem, message.encode(), hashlib.sha256).digest()
    with pytest.raises((MalformedToken, BadSignature)):
        verified(issuer, f"{message}.{segment(mac)}")


@pytest.mark.parametrize(("said", "real"), [("RS256", "ES256"), ("ES256", "RS256")])
def test_alg_must_be_the_keys(said: str, real: str) -> None:
    issuer = Issuer(URL, alg=real)
    header = {"alg": said, "kid": issuer.kid}
    with pytest.raises(BadSignature):
        verified(issuer, signed_by_hand(issuer, header, issuer.claims(SUBJECT, AUDIENCE, now=NOW)))


def test_an_unsigned_token_is_refused(issuer: Issuer) -> None:
    head, payload, _ = good(issuer).split(".")
    for token in (f"{head}.{payload}.", f"{head}.{payload}", head):
        with pytest.raises((MalformedToken, BadSignature)):
            verified(issuer, token)


@pytest.mark.parametrize(
    "member",
    [
        {"crit": ["exp"]},
        {"jku": "https://attacker.test/keys"},
        {"jwk": {"kty": "RSA", "n": "AQAB", "e": "AQAB"}},
        {"x5u": "https://attacker.test/chain"},
        {"x5c": ["MIIB"]},
        {"b64": False},
        {"zip": "DEF"},
        {"cty": "JWT"},
        {"anything": "else"},
    ],
    ids=lambda member: next(iter(member)),
)
def test_a_header_that_would_change_how_the_token_is_read_is_refused(issuer: Issuer, member: dict[str, Any]) -> None:
    header = {"alg": "RS256", "kid": issuer.kid, **member}
    with pytest.raises(MalformedToken):
        verified(issuer, signed_by_hand(issuer, header, issuer.claims(SUBJECT, AUDIENCE, now=NOW)))


@pytest.mark.parametrize("kid", [None, "", 7, ["a"], "k" * (MAX_KID + 1)])
def test_a_kid_that_is_missing_or_none_is_refused(issuer: Issuer, kid: Any) -> None:
    header = {"alg": "RS256", **({} if kid is None else {"kid": kid})}
    with pytest.raises(MalformedToken):
        verified(issuer, signed_by_hand(issuer, header, issuer.claims(SUBJECT, AUDIENCE, now=NOW)))


@pytest.mark.parametrize("typ", ["peerseal-request+jwt", "peerseal-proof+jwt", "jwt", "dpop+jwt", "", "logout+jwt"])
def test_a_token_of_another_kind_is_refused(issuer: Issuer, typ: str) -> None:
    header = {"alg": "RS256", "kid": issuer.kid, "typ": typ}
    with pytest.raises(WrongType):
        verified(issuer, signed_by_hand(issuer, header, issuer.claims(SUBJECT, AUDIENCE, now=NOW)))


def test_a_token_as_long_as_agreed_is_taken_and_a_longer_one_is_not(issuer: Issuer) -> None:
    def padded(size: int) -> str:
        return good(issuer, pad="x" * size)

    room = MAX_FOREIGN_TOKEN - len(padded(0))
    longest = next(token for size in range(room * 3 // 4 + 4, 0, -1) if len(token := padded(size)) <= MAX_FOREIGN_TOKEN)
    assert verified(issuer, longest)
    with pytest.raises(MalformedToken):
        verified(issuer, padded(room))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda token: token + "=",
        lambda token: token + "\n",
        lambda token: token.replace(".", "..", 1),
        lambda token: " " + token,
        lambda token: "Bearer " + token,
        lambda token: token + ".x",
        lambda token: token + "é",
        lambda token: "",
    ],
)
def test_other_spellings_are_refused(issuer: Issuer, spoil: Callable[[str], str]) -> None:
    with pytest.raises(MalformedToken):
        verified(issuer, spoil(good(issuer)))


def test_a_member_that_stands_twice_is_refused(issuer: Issuer) -> None:
    text = json.dumps(issuer.claims(SUBJECT, AUDIENCE, now=NOW))
    twice = text[:-1] + f', "sub": "{SUBJECT}"}}'
    with pytest.raises(MalformedToken):
        verified(issuer, signed_by_hand(issuer, {"alg": "RS256", "kid": issuer.kid}, twice.encode()))
    header = f'{{"alg": "RS256", "kid": "{issuer.kid}", "alg": "RS256"}}'
    with pytest.raises(MalformedToken):
        verified(issuer, signed_by_hand(issuer, header.encode(), text.encode()))


_HONEST = Issuer(URL)
_TOKEN = good(_HONEST)


@settings(max_examples=1000, deadline=None)
@given(st.integers(0, len(_TOKEN) - 1), st.integers(0, 5), st.text(max_size=5))
def test_a_mutated_token_is_never_accepted_and_never_an_error_of_another_kind(at: int, cut: int, put: str) -> None:
    mutated = _TOKEN[:at] + put + _TOKEN[at + cut :]
    if mutated != _TOKEN:
        with pytest.raises(PeersealError):
            verified(_HONEST, mutated)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=6), children, max_size=4),
    max_leaves=10,
)


@settings(max_examples=500, deadline=None)
@given(st.sampled_from(("alg", "kid", "typ", "x5t", "iss", "sub", "aud", "iat", "nbf", "exp")), _JSON)
def test_whatever_a_signed_member_holds_nothing_but_an_error_of_ours_is_raised(name: str, value: Any) -> None:
    header = {"alg": "RS256", "kid": _HONEST.kid, "typ": "JWT"}
    payload = _HONEST.claims(SUBJECT, AUDIENCE, now=NOW)
    (header if name in ("alg", "kid", "typ", "x5t") else payload)[name] = value
    try:
        claims = verified(_HONEST, signed_by_hand(_HONEST, header, payload))
    except PeersealError:
        return
    assert (claims.issuer, claims.audience) == (URL, AUDIENCE)


@settings(max_examples=300, deadline=None)
@given(_JSON)
def test_whatever_an_issuer_publishes_nothing_but_an_error_of_ours_is_raised(value: Any) -> None:
    for document in (value, {"keys": value}, {"keys": [value]}, {"keys": [{"kid": "a", "kty": "RSA", "n": value}]}):
        body = json.dumps(document).encode()
        with contextlib.suppress(DocumentRefused):
            assert read_key_set(body) == {}
        with pytest.raises(DocumentRefused):
            read_discovery(body, issuer=URL)


# an issuer's keys


def keys_of(*jwks: Any) -> set[str]:
    return set(read_key_set(json.dumps({"keys": jwks}).encode()))


@pytest.fixture(scope="module")
def rsa_private() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def test_keys_are_taken_with_and_without_alg_and_use(rsa_private: rsa.RSAPrivateKey) -> None:
    jwk = public_jwk(rsa_private, "a")
    del jwk["alg"], jwk["use"]
    assert keys_of(jwk, public_jwk(ec.generate_private_key(ec.SECP256R1()), "b", x5c=["MIIB"])) == {"a", "b"}


@pytest.mark.parametrize(
    "changes",
    [
        {"use": "enc"},
        {"use": None},
        {"key_ops": ["encrypt"]},
        {"key_ops": "verify"},
        {"alg": "RS512"},
        {"alg": "PS256"},
        {"alg": "ES256"},
        {"alg": "RSA-OAEP"},
        {"kid": None},
        {"kid": ""},
        {"kid": 7},
        {"kid": "k" * (MAX_KID + 1)},
        {"kty": "oct", "k": "c2VjcmV0"},
        {"kty": "EC"},
        {"d": "AQAB"},
        {"n": "AQAB"},
        {"n": None},
        {"e": "Aw"},
    ],
)
def test_a_key_for_something_else_is_left_out_and_the_others_stay(
    rsa_private: rsa.RSAPrivateKey, changes: dict[str, Any]
) -> None:
    sound = public_jwk(ec.generate_private_key(ec.SECP256R1()), "sound")
    assert keys_of(public_jwk(rsa_private, "a") | changes, sound, "no object", None) == {"sound"}


def test_a_weak_rsa_key_is_left_out() -> None:
    assert keys_of(public_jwk(rsa.generate_private_key(65537, 1024), "a")) == set()


@pytest.mark.parametrize("modulus", [with_small_factor, with_close_primes, with_roca], ids=lambda make: make.__name__)
def test_a_key_that_can_be_computed_is_left_out(rsa_private: rsa.RSAPrivateKey, modulus: Callable[[], int]) -> None:
    weak = {**public(modulus()).jwk, "kid": "weak"}
    assert keys_of(weak, public_jwk(rsa_private, "sound")) == {"sound"}
    assert keys_of(weak | {"kid": "a"}, public_jwk(rsa_private, "a")) == {"a"}, "which is no second key of its kid"


def test_the_check_may_be_another(rsa_private: rsa.RSAPrivateKey) -> None:
    def refuse(_: PublicKey) -> None:
        raise KeyRefused("key_sparse_primes")

    body = json.dumps({"keys": [public_jwk(rsa_private, "a")]}).encode()
    assert read_key_set(body, refuse) == {}


@pytest.mark.parametrize(
    "second",
    [
        {},
        {"alg": "RS512"},
        {"use": "enc"},
        {"use": "enc", "alg": "RSA-OAEP"},
        {"key_ops": ["wrapKey"]},
        {"n": "AQAB"},
        {"kty": "oct", "k": "c2VjcmV0"},
        {"x5c": ["MIIB"]},
        {"kid": 7},
    ],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_a_second_entry_of_the_same_kid_that_is_no_other_usable_key_changes_nothing(
    rsa_private: rsa.RSAPrivateKey, second: dict[str, Any], swapped: bool
) -> None:
    good = public_jwk(rsa_private, "a")
    entries = [good, good | second]
    body = json.dumps({"keys": entries[::-1] if swapped else entries}).encode()
    found = read_key_set(body)
    assert found.keys() == {"a"}
    assert found["a"].thumbprint == PublicKey.from_jwk(good).thumbprint


def test_an_encryption_key_under_the_same_kid_changes_nothing(rsa_private: rsa.RSAPrivateKey) -> None:
    other = public_jwk(ec.generate_private_key(ec.SECP256R1()), "a", use="enc", alg="ECDH-ES")
    assert keys_of(other, public_jwk(rsa_private, "a")) == {"a"}


def test_a_key_whose_private_half_is_published_is_left_out_under_every_kid(rsa_private: rsa.RSAPrivateKey) -> None:
    good = public_jwk(rsa_private, "a")
    sound = public_jwk(ec.generate_private_key(ec.SECP256R1()), "sound")
    assert keys_of(good, good | {"d": "AQAB"}, good | {"kid": "b"}, sound) == {"sound"}
    assert keys_of(good | {"d": "AQAB", "kid": None}, good, sound) == {"sound"}


@pytest.mark.parametrize("member", ["d", "p", "k", "oth"])
def test_a_private_member_that_is_null_is_none(rsa_private: rsa.RSAPrivateKey, member: str) -> None:
    good = public_jwk(rsa_private, "a")
    assert keys_of(good | {member: None}) == {"a"}
    assert keys_of(good, good | {"kid": "b", member: None}) == {"a", "b"}


@pytest.mark.parametrize(
    "entry",
    [
        {"alg": "PS256"},
        {"alg": "RSA-OAEP", "use": "enc"},
        {"alg": 7},
        {"e": "AAEAAQ"},
        {"e": "Aw"},
        {"kty": None},
        {"kty": "rsa"},
        {"n": "padded"},
        {"n": "zero"},
        {"n": "standard alphabet"},
        {"n": "missing"},
    ],
    ids=repr,
)
def test_a_private_half_counts_in_whatever_entry_and_spelling(
    rsa_private: rsa.RSAPrivateKey, entry: dict[str, Any]
) -> None:
    good, numbers = public_jwk(rsa_private, "a"), rsa_private.private_numbers()
    private = {**good, "kid": "b", "d": b64url(b"d"), **entry}
    raw = b64url_decode(good["n"])
    spellings = {
        "padded": f"{good['n']}==",
        "zero": b64url(b"\0" + raw),
        "standard alphabet": good["n"].translate(str.maketrans("-_", "+/")),
    }
    if "n" in entry:
        private["n"] = spellings.get(entry["n"])
        private |= {name: b64url(value.to_bytes(128)) for name, value in (("p", numbers.p), ("q", numbers.q))}
    assert keys_of(good) == {"a"}
    assert keys_of(good, private) == keys_of(private, good) == set()


@pytest.mark.parametrize("entry", [{"crv": None}, {"alg": "ES384"}, {"y": None}, {"use": "enc"}], ids=repr)
def test_a_private_point_counts_in_whatever_entry(entry: dict[str, Any]) -> None:
    good = public_jwk(ec.generate_private_key(ec.SECP256R1()), "a")
    assert keys_of(good, {**good, "kid": "b", "d": "AQAB", **entry}) == set()


def test_a_byte_order_mark_is_passed_over(rsa_private: rsa.RSAPrivateKey) -> None:
    body = json.dumps({"keys": [public_jwk(rsa_private, "a")]}).encode("utf-8-sig")
    assert read_key_set(body).keys() == {"a"}
    assert read_discovery(json.dumps({"issuer": URL, "jwks_uri": URL}).encode("utf-8-sig"), issuer=URL) == URL
    with pytest.raises(DocumentRefused):
        read_key_set(b"\xef\xbb\xbf" + body)


def test_a_kid_that_two_keys_have_is_nobodys(rsa_private: rsa.RSAPrivateKey) -> None:
    second = public_jwk(ec.generate_private_key(ec.SECP256R1()), "a")
    assert keys_of(public_jwk(rsa_private, "a"), second, second | {"kid": "b"}) == {"b"}


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"keys": {}}', b'{"keys": [], "keys": []}', b"<html>"])
def test_what_is_no_key_set_is_refused(body: bytes) -> None:
    with pytest.raises(DocumentRefused):
        read_key_set(body)


def test_a_set_of_too_many_keys_is_refused() -> None:
    assert read_key_set(json.dumps({"keys": [{}] * MAX_KEYS}).encode()) == {}
    with pytest.raises(DocumentRefused):
        read_key_set(json.dumps({"keys": [{}] * (MAX_KEYS + 1)}).encode())
