"""100,000 spoilt tokens: none is accepted, and none brings about an error that is not ours.

Seeded: the same tokens are spoilt in the same way in every run, but for the bytes of keys and signatures.
"""

import json
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from peerseal.errors import PeersealError
from peerseal.protocol.documents.changes import Changes
from peerseal.protocol.documents.frame import Document, read_document, sign_document
from peerseal.protocol.documents.key_set import KeySetDocument, ListedKey
from peerseal.protocol.documents.registry_keys import RegistryKeys, read_registry_keys
from peerseal.protocol.documents.statement import KeyStatement
from peerseal.protocol.encoding import b64url, b64url_decode
from peerseal.protocol.join import JoinToken
from peerseal.protocol.keys import KeyPair, PublicKey
from peerseal.protocol.ledger.entries import Admission, Entry
from peerseal.protocol.names import make_kid, registry_id
from peerseal.protocol.tokens.proof import Proof, sign_proof
from tests.attacks.forge import (
    CALLER,
    DOMAIN,
    HEADERS,
    JTI,
    NOW,
    OTHER,
    Callee,
    claims,
    ec_key,
    honest_token,
    kid_of,
    rsa_key,
)
from tests.attacks.mutations import VALUES, misspelled, other_bytes, other_json, resigned, respelled

SEED = 20_270_115
MUTATED = 100_000
SIGNED_BY_THE_CALLER = 5_000
OTHERS = 3_000

pytestmark = pytest.mark.slow


def originals() -> list[str]:
    """Good tokens of either algorithm, with and without what may be left out."""
    fancy = {"ctx": {"order": 7, "ü": ["a", {"b": None}]}, "headers": {**HEADERS, "x-tenant": "7"}}
    tokens = []
    for number, key in enumerate((rsa_key("caller"), ec_key("caller"))):
        tokens.append(honest_token(key, jti=f"{number}{JTI[1:]}"))
        tokens.append(honest_token(key, jti=f"{number}B{JTI[2:]}", **fancy))
    return [*tokens, honest_token(rsa_key("other"), OTHER), honest_token(rsa_key("stranger"), f"{DOMAIN}/stranger")]


def spoilt(random: Random, tokens: list[str]) -> str:
    """One spoilt token: as a stranger, or as the holder of some other key, can make it."""
    token = random.choice(tokens)
    kind = random.random()
    if kind < 0.85:
        return respelled(random, token, tokens)
    if kind < 0.99:
        return resigned(random, token, ec_key("attacker").sign)
    return resigned(random, token, rsa_key("attacker").sign)


@pytest.mark.thorough
def test_100_000_mutated_tokens() -> None:
    callee, random, tokens = Callee(), Random(SEED), originals()
    codes: Counter[str] = Counter()
    while codes.total() < MUTATED:
        token = spoilt(random, tokens)
        if token in tokens:
            continue
        try:
            callee.accepts(token)
        except PeersealError as error:
            codes[error.code] += 1
        else:
            pytest.fail(f"accepted after {codes.total()}: {token}")
    assert callee.guard.asked == 0
    assert set(codes) == {"malformed_token", "bad_signature", "unknown_key", "wrong_type", "caller_not_allowed"}
    assert min(codes["malformed_token"], codes["bad_signature"]) > MUTATED // 10, codes


def test_mutated_claims_that_the_caller_signs_itself() -> None:
    """A caller gone bad: it gets no further than what it may do, and nothing breaks."""
    key, random = ec_key("caller"), Random(SEED)
    codes: Counter[str] = Counter()
    bound = {name: claims()[name] for name in claims() if name not in ("iat", "nbf", "exp", "jti")}
    for _ in range(SIGNED_BY_THE_CALLER):
        callee = Callee()
        try:
            peer = callee.accepts(resigned(random, honest_token(key), key.sign, places=(1,)))
        except PeersealError as error:
            codes[error.code] += 1
        else:
            codes["accepted"] += 1
            assert {name: peer.claims[name] for name in bound} == bound
            assert peer.id == CALLER
    assert codes["accepted"] < SIGNED_BY_THE_CALLER / 2
    assert {"malformed_token", "wrong_issuer", "wrong_audience", "wrong_binding", "lifetime_too_long"} <= set(codes)


def documents(key: KeyPair) -> list[Document]:
    frame: dict[str, Any] = {"issuer": registry_id(DOMAIN), "issued_at": NOW, "expires_at": NOW + 3600}
    place: dict[str, Any] = {"seq": 2, "head": 3, "checkpoint": "a note"}
    admission = Admission(1, NOW, NOW + 60, {"join_token": "x"}, "A" * 43)
    signed = ListedKey(kid_of(CALLER, key), key.public, "active", NOW + 60, admission, (b"a" * 32,))
    ledger_key = {"kty": "OKP", "crv": "Ed25519", "x": "A" * 43}
    return [
        KeySetDocument(**frame, **place, subject=CALLER, keys=(signed,)),
        KeyStatement(
            **frame,
            **place,
            subject=CALLER,
            kid=signed.kid,
            public=key.public,
            state="revoked",
            active_until=NOW + 60,
            revoked_at=NOW + 1,
            admission=admission,
            proof=(),
        ),
        Changes(**frame, subject=DOMAIN, since=0, seq=3, checkpoint="a note", services=(CALLER,)),
        RegistryKeys(
            **frame,
            subject=DOMAIN,
            version=1,
            root=key.public,
            signing_keys=(key.public,),
            ledger_key=ledger_key,
            urls=("http://127.0.0.1:1",),
        ),
    ]


def only_our_errors(job: Callable[[], Any]) -> bool:
    """Whether the job went well; an error that is not ours goes on."""
    try:
        job()
    except PeersealError:
        return False
    return True


@pytest.mark.parametrize("kind", [KeySetDocument, KeyStatement, Changes, RegistryKeys])
def test_mutated_documents(kind: type[Any]) -> None:
    """By a mirror, which has no key, and by a registry gone mad, which has."""
    key, random = ec_key("registry"), Random(SEED)
    document = next(document for document in documents(key) if type(document) is kind)
    jws, signers = sign_document(document, key), {make_kid(registry_id(DOMAIN), key.public.thumbprint): key.public}

    def read(text: str) -> bool:
        if kind is RegistryKeys:
            return only_our_errors(lambda: read_registry_keys(text, pin=key.public.thumbprint, now=NOW))
        return only_our_errors(lambda: read_document(kind, text, signers, now=NOW, domain=DOMAIN))

    assert read(jws)
    for _ in range(OTHERS):
        mutated = respelled(random, jws, [jws])
        assert mutated == jws or not read(mutated), mutated
        read(resigned(random, jws, key.sign))


def test_mutated_proofs_of_possession() -> None:
    random, audience = Random(SEED), registry_id(DOMAIN)
    for key in (ec_key("caller"), rsa_key("caller")):
        proof = sign_proof(key, issuer=CALLER, audience=audience, now=NOW)

        def read(text: str) -> bool:
            return only_our_errors(lambda: Proof.read(text, issuer=CALLER, audience=audience, now=NOW))

        assert read(proof)
        for _ in range(OTHERS):
            mutated = respelled(random, proof, [proof])
            assert mutated == proof or not read(mutated), mutated
        for _ in range(OTHERS if key.public.alg == "ES256" else OTHERS // 10):
            read(resigned(random, proof, key.sign))


def test_mutated_public_keys() -> None:
    random = Random(SEED)
    for key in (ec_key("caller"), rsa_key("caller")):
        jwk = {**key.public.jwk, "alg": key.public.alg, "kid": "a"}
        for _ in range(OTHERS):
            members = json.loads(other_json(random, json.dumps(jwk).encode()))
            members[random.choice([*members, "kty", "crv"])] = random.choice(
                [*VALUES, [65, 65], [1, 2, 3, 4], {"a": 1}]
            )
            only_our_errors(lambda members=members: PublicKey.from_jwk(members, random.choice((None, "RS256", "none"))))
            only_our_errors(lambda spki=key.public.spki: PublicKey.from_spki(other_bytes(random, spki)))


def test_mutated_private_keys() -> None:
    random, pem = Random(SEED), ec_key("caller").to_pem()
    for _ in range(OTHERS // 10):
        only_our_errors(lambda: KeyPair.from_pem(other_bytes(random, pem)))
        only_our_errors(lambda: KeyPair.from_pem(other_bytes(random, pem), b"password"))


def test_mutated_join_tokens() -> None:
    random, text = Random(SEED), JoinToken.generate("A" * 43).encode()
    for _ in range(OTHERS):
        mutated = misspelled(random, text)
        if only_our_errors(lambda mutated=mutated: JoinToken.parse(mutated)):
            assert JoinToken.parse(mutated).encode() == mutated.strip()


def test_mutated_ledger_entries() -> None:
    random = Random(SEED)
    body = Entry(1, NOW, "key_admitted", "a", f"{CALLER}/{'A' * 43}", {"self": "a"}, "a.b.c", {"x": [1]}).encode()
    for _ in range(OTHERS):
        mutated = random.choice((other_bytes, other_json))(random, body)
        if only_our_errors(lambda mutated=mutated: Entry.decode(mutated)):
            assert Entry.decode(mutated).encode() == mutated


def test_mutated_base64url() -> None:
    random = Random(SEED)
    for _ in range(OTHERS * 10):
        mutated = misspelled(random, b64url(random.randbytes(random.randrange(2, 12))))
        if only_our_errors(lambda mutated=mutated: b64url_decode(mutated)):
            assert b64url(b64url_decode(mutated)) == mutated
