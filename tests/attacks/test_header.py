"""Attacks on the header: members that a library might obey, other kinds of token, poison for what is remembered."""

import json
from typing import Any

import pytest

from peerseal.errors import DocumentRefused, TokenError
from peerseal.protocol.documents.changes import CHANGES_LIFETIME, Changes
from peerseal.protocol.documents.frame import read_document, sign_document
from peerseal.protocol.documents.key_set import KeySetDocument
from peerseal.protocol.encoding import b64url, canonical_json
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.names import make_kid, registry_id
from peerseal.protocol.tokens.proof import Proof, sign_proof
from peerseal.protocol.tokens.request import REQUEST_TYP
from tests.attacks.forge import (
    ABSENT,
    CALLER,
    DOMAIN,
    JTI,
    NOW,
    OTHER,
    STRANGER,
    Callee,
    claims,
    ec_key,
    forge,
    header,
    honest_token,
    rsa_key,
)

KINDS = [
    *("txntoken+jwt", "peerseal-event+jwt", "peerseal-proof+jwt", "jwk-set+jwt", "peerseal-key+jwt"),
    *(
        "peerseal-changes+jwt",
        "peerseal-domain+jwt",
        "peerseal-federation+jwt",
        "peerseal-policy+jwt",
        "peerseal-registry+jwt",
    ),
]
SPELLINGS = [
    *("JWT", "jwt", "at+jwt", "JOSE", "", "application/peerseal-request+jwt", REQUEST_TYP.upper(), f"{REQUEST_TYP} "),
    *(f" {REQUEST_TYP}", f"{REQUEST_TYP}\0", f"{REQUEST_TYP}\n", REQUEST_TYP[:-1], f"{REQUEST_TYP}; a=b"),
]


def dangerous_members(attacker: KeyPair) -> dict[str, Any]:
    jwk = dict(attacker.public.jwk)
    return {
        "jku": "http://127.0.0.1:9/jwks.json",
        "x5u": "http://127.0.0.1:9/chain.pem",
        "x5c": [b64url(attacker.public.spki)],
        "x5t": b64url(b"\0" * 20),
        "x5t#S256": b64url(b"\0" * 32),
        "jwk": jwk,
        "crit": ["exp"],
        "b64": False,
        "zip": "DEF",
        "cty": "JWT",
        "enc": "A256GCM",
        "epk": jwk,
        "apu": "AA",
        "p2c": 2**31,
        "nonce": "a",
        "url": "http://127.0.0.1:9/",
        "iss": CALLER,
        "ALG": "none",
        "alg ": "none",
        "": "",
        "__proto__": {"alg": "none"},
    }


@pytest.mark.parametrize("member", dangerous_members(ec_key("attacker")))
def test_header_member_that_is_not_ours(callee: Callee, key: KeyPair, attacker: KeyPair, member: str) -> None:
    head = header(key, **{member: dangerous_members(attacker)[member]})
    callee.refuses(forge(head, claims(), key.sign), "malformed_token")
    callee.refuses(forge(head, claims(), attacker.sign), "malformed_token")


def test_embedded_key_instead_of_a_kid(callee: Callee, attacker: KeyPair) -> None:
    head = header(attacker, kid=ABSENT, jwk=dict(attacker.public.jwk))
    callee.refuses(forge(head, claims(), attacker.sign), "malformed_token")


def test_crit_with_b64_false_and_the_payload_as_it_is(callee: Callee, key: KeyPair) -> None:
    """RFC 7797: the payload unencoded in the signing input."""
    head = b64url(canonical_json(header(key, crit=["b64"], b64=False)))
    payload = b64url(canonical_json(claims()))
    signature = b64url(key.sign(f"{head}.".encode() + canonical_json(claims())))
    callee.refuses(f"{head}.{payload}.{signature}", "malformed_token")


@pytest.mark.parametrize(
    "head", [b"", b"null", b"[]", b'"RS256"', b"1", b"{}", b"true", b'{"alg":"RS256"}', b"{", b"{}{}", b'{"alg"}']
)
def test_header_that_is_no_header(callee: Callee, key: KeyPair, head: bytes) -> None:
    callee.refuses(forge(head, claims(), key.sign), "malformed_token")


@pytest.mark.parametrize("member", ["alg", "kid", "typ"])
@pytest.mark.parametrize("first", [False, True])
def test_header_member_twice(callee: Callee, key: KeyPair, attacker: KeyPair, member: str, first: bool) -> None:
    """Two parsers that each believe another one of two members is how signatures are stepped around."""
    evil = {"alg": "none", "kid": make_kid(OTHER, rsa_key("other").public.thumbprint), "typ": "txntoken+jwt"}[member]
    honest = canonical_json(header(key))[1:-1]
    for name in (f'"{member}"', f'"\\u{ord(member[0]):04x}{member[1:]}"'):
        extra = f"{name}:{json.dumps(evil)}".encode()
        head = b"{" + (extra + b"," + honest if first else honest + b"," + extra) + b"}"
        callee.refuses(forge(head, claims(), key.sign), "malformed_token")


@pytest.mark.parametrize("typ", KINDS + SPELLINGS)
def test_other_typ(callee: Callee, key: KeyPair, typ: str) -> None:
    callee.refuses(forge(header(key, typ=typ), claims(), key.sign), "wrong_type")


@pytest.mark.parametrize("typ", [ABSENT, None, 1, True, [REQUEST_TYP], {REQUEST_TYP: REQUEST_TYP}])
def test_typ_missing_or_no_string(callee: Callee, key: KeyPair, typ: object) -> None:
    callee.refuses(forge(header(key, typ=typ), claims(), key.sign), "malformed_token")


def a_changes_document(key: KeyPair) -> str:
    frame: dict[str, Any] = {"issuer": registry_id(DOMAIN), "issued_at": NOW, "expires_at": NOW + CHANGES_LIFETIME}
    return sign_document(Changes(**frame, subject=DOMAIN, since=0, seq=1, checkpoint="", services=()), key)


def a_jwk_set(key: KeyPair) -> str:
    frame: dict[str, Any] = {"issuer": registry_id(DOMAIN), "issued_at": NOW, "expires_at": NOW + 3600}
    return sign_document(KeySetDocument(**frame, subject=CALLER, seq=1, head=1, checkpoint="", keys=()), key)


def test_proof_of_possession_as_request_token(callee: Callee, key: KeyPair) -> None:
    callee.refuses(sign_proof(key, issuer=CALLER, audience=registry_id(DOMAIN), now=NOW), "wrong_type")


def test_signed_document_as_request_token(callee: Callee) -> None:
    for document in (a_changes_document(ec_key("registry")), a_jwk_set(ec_key("registry"))):
        callee.refuses(document, "wrong_type")


def test_request_token_as_proof_of_possession(key: KeyPair) -> None:
    with pytest.raises(TokenError) as caught:
        Proof.read(honest_token(key), issuer=CALLER, audience=registry_id(DOMAIN), now=NOW)
    assert caught.value.code == "wrong_type"


def test_signed_document_as_proof_of_possession() -> None:
    with pytest.raises(TokenError) as caught:
        Proof.read(a_changes_document(ec_key("registry")), issuer=CALLER, audience=registry_id(DOMAIN), now=NOW)
    assert caught.value.code == "wrong_type"


def test_request_token_and_proof_as_signed_document(key: KeyPair) -> None:
    signers = {header(key)["kid"]: key.public}
    for token in (honest_token(key), sign_proof(key, issuer=CALLER, audience=registry_id(DOMAIN), now=NOW)):
        with pytest.raises(DocumentRefused) as caught:
            read_document(KeySetDocument, token, signers, now=NOW, domain=DOMAIN)
        assert caught.value.code == "document_wrong_type"


def test_one_signed_document_as_another() -> None:
    key = ec_key("registry")
    signers = {make_kid(registry_id(DOMAIN), key.public.thumbprint): key.public}
    for kind, document in ((KeySetDocument, a_changes_document(key)), (Changes, a_jwk_set(key))):
        with pytest.raises(DocumentRefused) as caught:
            read_document(kind, document, signers, now=NOW, domain=DOMAIN)  # type: ignore[type-var]
        assert caught.value.code == "document_wrong_type"


def test_a_service_cannot_sign_the_registrys_documents(key: KeyPair) -> None:
    signers = {make_kid(registry_id(DOMAIN), ec_key("registry").public.thumbprint): ec_key("registry").public}
    with pytest.raises(DocumentRefused) as caught:
        read_document(KeySetDocument, a_jwk_set(key), signers, now=NOW, domain=DOMAIN)
    assert caught.value.code == "document_unknown_signer"


def test_header_written_otherwise_is_signed_as_it_stands(callee: Callee, key: KeyPair) -> None:
    """Order and blanks are the signer's. Moving them after signing breaks the signature, remembered header or not."""
    honest = honest_token(key)
    _, payload, signature = honest.split(".")
    callee.accepts(honest)
    for head in (json.dumps(header(key)), json.dumps(dict(reversed(header(key).items())), indent=1)):
        callee.refuses(f"{b64url(head.encode())}.{payload}.{signature}", "bad_signature")
    spaced = forge(json.dumps(header(key)).encode(), claims(jti=f"B{JTI[1:]}"), key.sign)
    assert callee.accepts(spaced).id == CALLER


def test_remembered_header_is_no_good_signature(callee: Callee, key: KeyPair, attacker: KeyPair) -> None:
    """The memory saves parsing a header again, and nothing else: everything after it is checked for every token."""
    callee.accepts(honest_token(key))
    fresh = f"B{JTI[1:]}"
    callee.refuses(forge(header(key), claims(jti=fresh), attacker.sign), "bad_signature")
    callee.refuses(forge(header(key), claims(jti=fresh), b""), "bad_signature")
    callee.refuses(honest_token(key, jti=fresh, iss=OTHER, sub=OTHER), "wrong_issuer")
    callee.refuses(honest_token(key, jti=fresh, aud=OTHER), "wrong_audience")
    callee.refuses(honest_token(key), "replayed")


def test_forged_headers_are_not_remembered(callee: Callee, key: KeyPair, attacker: KeyPair) -> None:
    for number in range(200):
        head = canonical_json(header(key)) + b" " * number
        callee.refuses(forge(head, claims(), attacker.sign), "bad_signature")
    assert callee.verifier.cached_headers == 0


def test_header_memory_is_bounded(callee: Callee, p256: KeyPair) -> None:
    """An allowed caller that writes every header otherwise fills no memory."""
    for number in range(4200):
        head = canonical_json(header(p256)).replace(b",", b"," + b" " * (number % 70), 1) + b" " * (number // 70)
        callee.accepts(forge(head, claims(jti=b64url(number.to_bytes(16, "big"))), p256.sign))
    assert callee.verifier.cached_headers <= 4096


def test_header_blown_up_with_blanks_is_not_remembered(callee: Callee, key: KeyPair) -> None:
    callee.accepts(forge(canonical_json(header(key)) + b" " * 700, claims(), key.sign))
    assert callee.verifier.cached_headers == 0


def test_longest_honest_header_is_remembered(key: KeyPair) -> None:
    domain, service = ".".join(["a" * 62] * 4)[:253], ".".join(["a" * 49] * 2)[:100]
    head = b64url(canonical_json(header(key, f"{domain}/{service}")))
    assert len(head) <= 700


def test_one_verifiers_memory_is_no_other_ones(key: KeyPair) -> None:
    """What one callee remembers gives the caller nothing at a callee that does not let it in."""
    open_callee, closed_callee = Callee(allow={"stranger": {"a"}}), Callee()
    token = honest_token(rsa_key("stranger"), STRANGER)
    open_callee.accepts(token)
    closed_callee.refuses(token, "caller_not_allowed")
