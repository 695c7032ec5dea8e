"""Request tokens and proofs of possession: their claims, their shape, their times."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peerseal.errors import (
    BadSignature,
    Expired,
    KeyRefused,
    LifetimeTooLong,
    MalformedToken,
    NotYetValid,
    PeersealError,
    TokenError,
    WrongAudience,
    WrongIssuer,
)
from peerseal.protocol.encoding import b64url, canonical_json, strict_json_object
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.tokens.claims import LATEST_TIME, LEEWAY, check_jti, check_times, new_jti
from peerseal.protocol.tokens.proof import PROOF_LIFETIME, PROOF_TYP, Proof, sign_proof
from peerseal.protocol.tokens.request import MAX_CTX, RequestToken, check_request_claims
from tests.attacks.forge import ABSENT, CALLER, DOMAIN, JTI, NOW, OTHER, changed, claims, ec_key, forge, header, rsa_key

REGISTRY = f"{DOMAIN}/registry"

without_deadline = settings(deadline=None)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
times = st.integers(0, LATEST_TIME)
request_tokens = st.builds(
    RequestToken,
    issuer=text,
    audience=text,
    issued_at=times,
    not_before=times,
    expires_at=times,
    jti=st.binary(min_size=16, max_size=16).map(b64url),
    method=text,
    target_digest=text,
    content_digest=text,
    headers=st.dictionaries(text.map(str.lower).filter(lambda name: name == name.lower()), text, max_size=4),
    tth=st.none() | st.binary(min_size=32, max_size=32).map(b64url),
    ctx=st.none() | st.dictionaries(text, st.none() | st.integers() | text | st.lists(text, max_size=2), max_size=3),
    cp=st.none() | text,
)


# ---- request tokens


plain = st.text(st.characters(min_codepoint=0x1F, max_codepoint=0x80), max_size=8)
plain_request_tokens = st.builds(
    RequestToken,
    *[plain] * 2,
    *[times] * 3,
    *[plain] * 4,
    headers=st.just({}) | st.dictionaries(plain, plain, max_size=2),
    tth=st.none() | plain,
    ctx=st.none(),
    cp=st.none() | plain,
)


@given(request_tokens | plain_request_tokens)
@without_deadline
def test_the_payload_of_every_request_token_is_its_claims_in_canonical_json(token: RequestToken) -> None:
    assert token.payload() == canonical_json(token.claims())


@pytest.mark.parametrize("value", [True, 1.9, None, 7, "a"])
def test_a_value_of_another_type_is_written_as_json_writes_it(value: Any) -> None:
    token = RequestToken(value, "b", value, 1, 2, "j", "GET", "t", "c")
    assert token.payload() == canonical_json(token.claims())


@given(request_tokens)
@without_deadline
def test_the_claims_of_every_request_token_are_of_the_right_shape(token: RequestToken) -> None:
    read = strict_json_object(canonical_json(token.claims()))
    check_request_claims(read)
    assert read == token.claims()
    assert read["sub"] == read["iss"] == token.issuer
    assert ("tth" in read) == (token.tth is not None)
    assert ("ctx" in read) == (token.ctx is not None)


@given(request_tokens, st.data())
@without_deadline
def test_a_claim_of_another_type_or_left_out_is_refused(token: RequestToken, data: st.DataObject) -> None:
    honest = token.claims()
    name = data.draw(st.sampled_from(sorted(honest)))
    kinds: list[Any] = [None, True, 1, -1, 1.5, "a", [], {"a": 1}, LATEST_TIME + 1]
    other = data.draw(st.sampled_from([value for value in kinds if type(value) is not type(honest[name])]))
    with pytest.raises(MalformedToken):
        check_request_claims({**honest, name: other})
    if name not in ("tth", "ctx", "cp"):
        with pytest.raises(MalformedToken):
            check_request_claims({claim: honest[claim] for claim in honest if claim != name})


@given(request_tokens, text.filter(lambda name: name not in {*claims(), "tth", "ctx", "cp"}))
@without_deadline
def test_an_unknown_claim_is_refused(token: RequestToken, name: str) -> None:
    with pytest.raises(MalformedToken):
        check_request_claims({**token.claims(), name: "a"})


@given(st.dictionaries(st.sampled_from([*claims(), "tth", "ctx", "cp"]), st.integers() | text | st.none()))
@without_deadline
def test_any_claims_are_good_or_refused(members: dict[str, Any]) -> None:
    with pytest.raises(MalformedToken):
        check_request_claims(members)


def test_ctx_has_a_limit_where_it_is_written() -> None:
    honest = {"issuer": "a", "audience": "a", "issued_at": 0, "not_before": 0, "expires_at": 0, "jti": JTI}
    bound = {"method": "GET", "target_digest": "", "content_digest": ""}
    fits = "x" * (MAX_CTX - len('{"a":""}'))
    assert RequestToken(**honest, **bound, ctx={"a": fits}).claims()["ctx"] == {"a": fits}
    with pytest.raises(ValueError, match="ctx"):
        RequestToken(**honest, **bound, ctx={"a": f"{fits}x"}).claims()


def test_jtis_are_128_random_bits() -> None:
    made = {new_jti() for _ in range(1000)}
    assert len(made) == 1000
    assert all(check_jti(jti) == jti for jti in made)


@given(st.text(max_size=30) | st.text(st.sampled_from("AQgwBz09-_"), min_size=21, max_size=23))
@without_deadline
def test_a_jti_is_16_bytes_in_canonical_base64url(jti: str) -> None:
    try:
        check_jti(jti)
    except MalformedToken:
        return
    assert len(jti) == 22
    assert jti[-1] in "AQgw"


# ---- times


def code_at(now: float, *, issued_at: int = NOW, not_before: int = NOW, expires_at: int = NOW + 60) -> str | None:
    try:
        check_times(issued_at, not_before, expires_at, now=now, leeway=LEEWAY, cap=300)
    except TokenError as error:
        return error.code
    return None


def test_a_token_is_good_from_the_leeway_before_it_to_the_leeway_after_it() -> None:
    assert code_at(NOW - 30) is None
    assert code_at(NOW - 30.001) == "not_yet_valid"
    assert code_at(NOW + 89.999) is None
    assert code_at(NOW + 90) == "expired"
    assert code_at(NOW, not_before=NOW + 31) == "not_yet_valid"
    assert code_at(NOW, issued_at=NOW + 31, expires_at=NOW + 90) == "not_yet_valid"


def test_a_token_lives_no_longer_than_the_cap_and_ends_after_it_begins() -> None:
    assert code_at(NOW, expires_at=NOW + 300) is None
    assert code_at(NOW, expires_at=NOW + 301) == "lifetime_too_long"
    for end in (NOW, NOW - 1):
        assert code_at(NOW, expires_at=end) == "expired"


@given(times, times, times, st.floats(0, LATEST_TIME))
@without_deadline
def test_whatever_passes_is_in_its_time(issued_at: int, not_before: int, expires_at: int, now: float) -> None:
    try:
        check_times(issued_at, not_before, expires_at, now=now, leeway=LEEWAY, cap=300)
    except (NotYetValid, Expired, LifetimeTooLong):
        return
    assert max(issued_at, not_before) - LEEWAY <= now < expires_at + LEEWAY
    assert 0 < expires_at - issued_at <= 300


# ---- proofs of possession


def read(jws: str, *, now: float = NOW, issuer: str = CALLER, audience: str = REGISTRY) -> Proof:
    return Proof.read(jws, issuer=issuer, audience=audience, now=now)


def proof_of(key: KeyPair, *, head: dict[str, Any] | None = None, by: KeyPair | None = None, **changes: Any) -> str:
    honest = {"iss": CALLER, "aud": REGISTRY, "iat": NOW, "exp": NOW + PROOF_LIFETIME, "jti": JTI}
    honest["jwk"] = dict(key.public.jwk)
    head = {"alg": key.public.alg, "kid": f"{CALLER}/{key.public.thumbprint}", "typ": PROOF_TYP, **(head or {})}
    return forge(head, changed(honest, changes), (by or key).sign)


@pytest.mark.parametrize("make", [rsa_key, ec_key])
def test_a_proof_comes_back(make: Any) -> None:
    key: KeyPair = make("caller")
    jws = sign_proof(key, issuer=CALLER, audience=REGISTRY, now=NOW + 0.9)
    proof = read(jws)
    assert proof.public_key == key.public
    assert (proof.issuer, proof.audience, proof.jws) == (CALLER, REGISTRY, jws)
    assert (proof.issued_at, proof.expires_at) == (NOW, NOW + PROOF_LIFETIME)
    assert jws not in repr(proof)
    assert read(proof_of(key)).jti == JTI


def test_a_proof_is_for_one_service_and_one_registry() -> None:
    jws = sign_proof(ec_key("caller"), issuer=CALLER, audience=REGISTRY, now=NOW)
    with pytest.raises(WrongIssuer):
        read(jws, issuer=OTHER)
    with pytest.raises(WrongAudience):
        read(jws, audience="staging.internal/registry")


def test_a_proof_is_signed_by_the_key_in_it() -> None:
    key, attacker = ec_key("caller"), ec_key("attacker")
    for jws in (proof_of(key, by=attacker), proof_of(attacker, by=key)):
        with pytest.raises(BadSignature):
            read(jws)
    kid = {"kid": f"{CALLER}/{key.public.thumbprint}"}
    with pytest.raises(WrongIssuer):
        read(proof_of(attacker, head=kid))


@pytest.mark.parametrize(
    ("late", "code"), [(-31, "not_yet_valid"), (-30, None), (89, None), (90, "expired"), (10**6, "expired")]
)
def test_a_proof_has_its_time(late: int, code: str | None) -> None:
    jws = proof_of(ec_key("caller"))
    if code is None:
        read(jws, now=NOW + late)
    else:
        with pytest.raises(TokenError) as caught:
            read(jws, now=NOW + late)
        assert caught.value.code == code


def test_a_proof_does_not_live_long() -> None:
    with pytest.raises(LifetimeTooLong):
        read(proof_of(ec_key("caller"), exp=NOW + PROOF_LIFETIME + 1))


@pytest.mark.parametrize("name", ["iss", "aud", "iat", "exp", "jti", "jwk"])
@pytest.mark.parametrize("value", [ABSENT, None, [], True, 1.5])
def test_a_proof_with_a_claim_missing_or_of_another_type(name: str, value: Any) -> None:
    with pytest.raises(MalformedToken):
        read(proof_of(ec_key("caller"), **{name: value}))


@pytest.mark.parametrize("name", ["sub", "nbf", "scope", "method", "cnf"])
def test_a_proof_with_an_unknown_claim(name: str) -> None:
    with pytest.raises(MalformedToken):
        read(proof_of(ec_key("caller"), **{name: "a"}))


@pytest.mark.parametrize("alg", ["none", "HS256", "RS256", "ES384", ""])
def test_a_proof_with_another_algorithm_than_its_key(alg: str) -> None:
    with pytest.raises(KeyRefused) as caught:
        read(proof_of(ec_key("caller"), head={"alg": alg}))
    assert caught.value.code == "key_alg_mismatch"


def test_a_proof_whose_key_holds_its_private_half() -> None:
    jwk = {**ec_key("caller").public.jwk, "d": "AA"}
    with pytest.raises(KeyRefused) as caught:
        read(proof_of(ec_key("caller"), jwk=jwk))
    assert caught.value.code == "key_private_members"


def test_a_proof_whose_key_is_another_kids_twin() -> None:
    """The thumbprint is computed from the key; the header's word for it is not taken."""
    with pytest.raises(WrongIssuer):
        read(proof_of(ec_key("caller"), head={"kid": f"{CALLER}/{'A' * 43}"}))
    with pytest.raises(WrongIssuer):
        read(proof_of(ec_key("caller"), head={"kid": f"{OTHER}/{ec_key('caller').public.thumbprint}"}))
    with pytest.raises(PeersealError):
        read(forge(header(ec_key("caller")), b"", b""))
