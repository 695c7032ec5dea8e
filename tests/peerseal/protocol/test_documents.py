"""The registry's signed documents: made, read back, and refused where anything about them is wrong."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peerseal.errors import DocumentRefused
from peerseal.protocol.documents.changes import Changes
from peerseal.protocol.documents.domain import DomainDocument
from peerseal.protocol.documents.frame import MAX_DOCUMENT, Document, read_document, sign_document
from peerseal.protocol.documents.key_set import KeySetDocument, ListedKey, RevokedKey
from peerseal.protocol.documents.policy import PolicyDocument
from peerseal.protocol.documents.registry_keys import RegistryKeys, read_registry_keys
from peerseal.protocol.documents.statement import KeyStatement
from peerseal.protocol.encoding import canonical_json, strict_json_object
from peerseal.protocol.keys import KeyPair, PublicKey
from peerseal.protocol.ledger.entries import Admission
from peerseal.protocol.names import make_kid, registry_id
from peerseal.protocol.policies import CallPolicy, DomainSettings, UserIssuer
from peerseal.protocol.tokens.claims import LATEST_TIME
from tests.attacks.forge import CALLER, DOMAIN, NOW, OTHER, ec_key, forge, kid_of, rsa_key

REGISTRY = registry_id(DOMAIN)
SIGNER, ROOT = ec_key("registry"), ec_key("root")
LEDGER_KEY = {"kty": "OKP", "crv": "Ed25519", "x": "A" * 43}
SIGNERS = {make_kid(REGISTRY, SIGNER.public.thumbprint): SIGNER.public}

NOTE = "a checkpoint, which is for the reader to check"
JOINED = Admission(1, NOW, NOW + 600, {"join_token": "x"}, "A" * 43)
PROOF = (b"a" * 32, b"b" * 32)
KEY = ListedKey(kid_of(CALLER, rsa_key("caller")), rsa_key("caller").public, "active", NOW + 600, JOINED, PROOF)
OLD = ListedKey(
    kid_of(CALLER, ec_key("caller")),
    ec_key("caller").public,
    "retired",
    NOW,
    replace(JOINED, index=0, evidence=None),
    (),
)
GONE = RevokedKey(f"{CALLER}/{'A' * 43}", NOW, 3)
FRAME: dict[str, Any] = {"issuer": REGISTRY, "subject": CALLER, "issued_at": NOW, "expires_at": NOW + 60}
PLACE: dict[str, Any] = {"seq": 3, "head": 4, "checkpoint": NOTE}
OF_DOMAIN = {**FRAME, "subject": DOMAIN}
JWK_SET = KeySetDocument(**FRAME | {"expires_at": NOW + 3600}, **PLACE, keys=(KEY, OLD), revoked=(GONE,))
STATEMENT = KeyStatement(
    **FRAME,
    **PLACE,
    kid=KEY.kid,
    public=KEY.public,
    state="active",
    active_until=NOW + 60,
    revoked_at=None,
    admission=JOINED,
    proof=PROOF,
)
CHANGES = Changes(**OF_DOMAIN, since=2, seq=4, checkpoint=NOTE, services=(CALLER, OTHER))
POLICY = PolicyDocument(**FRAME, **PLACE, policy=CallPolicy({OTHER: frozenset("a")}, True))
SETTINGS = DomainSettings(frozenset((CALLER,)), (UserIssuer("https://users.example.com", "peerseal"),))
DOMAIN_SETTINGS = DomainDocument(**OF_DOMAIN, **PLACE | {"seq": 0}, settings=SETTINGS)
ROOT_KEYS = RegistryKeys(
    **OF_DOMAIN,
    version=1,
    root=ROOT.public,
    signing_keys=(SIGNER.public,),
    ledger_key=LEDGER_KEY,
    urls=("https://r/",),
)
DOCUMENTS: list[Document] = [JWK_SET, STATEMENT, CHANGES, POLICY, replace(POLICY, policy=None), DOMAIN_SETTINGS]
IDS = ["JWK Set", "key statement", "changes", "policy", "no policy", "domain"]

times = st.integers(0, LATEST_TIME)
counts = st.integers(0, 2**40)
publics = st.sampled_from([rsa_key("caller").public, ec_key("caller").public, rsa_key("other").public])
digests = st.binary(min_size=32, max_size=32)
proofs = st.lists(digests, max_size=4).map(tuple)
admissions = st.builds(
    Admission,
    index=counts,
    active_from=times,
    expires_at=times,
    by=st.dictionaries(st.text("abc", max_size=3), st.text("xyz", max_size=3), max_size=2),
    evidence=st.none() | st.just("A" * 43),
)
names = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?(\.[a-z0-9]{1,5})?", fullmatch=True)


@st.composite
def jwk_sets(draw: st.DrawFn) -> KeySetDocument:
    owner = f"{DOMAIN}/{draw(names)}"

    def signed(public: PublicKey) -> ListedKey:
        state, kid = draw(st.sampled_from(["active", "retired"])), make_kid(owner, public.thumbprint)
        return ListedKey(kid, public, state, draw(times), draw(admissions), draw(proofs))

    keys = tuple(signed(public) for public in draw(st.lists(publics, max_size=3, unique_by=lambda key: key.thumbprint)))
    revoked = tuple(
        RevokedKey(f"{owner}/{'A' * 43}", draw(times), draw(counts)) for _ in range(draw(st.integers(0, 2)))
    )
    place = {"seq": draw(counts), "head": draw(counts), "checkpoint": draw(st.text("note\n"))}
    return KeySetDocument(**drawn_frame(draw, owner), **place, keys=keys, revoked=revoked)


def drawn_frame(draw: st.DrawFn, owner: str) -> dict[str, Any]:
    return {"issuer": REGISTRY, "subject": owner, "issued_at": draw(times), "expires_at": draw(times)}


@st.composite
def statements(draw: st.DrawFn) -> KeyStatement:
    owner, public = f"{DOMAIN}/{draw(names)}", draw(publics)
    state = draw(st.sampled_from(["active", "retired", "revoked"]))
    return KeyStatement(
        **drawn_frame(draw, owner),
        **{"seq": draw(counts), "head": draw(counts), "checkpoint": NOTE},
        kid=make_kid(owner, public.thumbprint),
        public=public,
        state=state,
        active_until=draw(times),
        revoked_at=draw(times) if state == "revoked" else None,
        admission=draw(admissions),
        proof=draw(proofs),
    )


changes = st.builds(
    Changes,
    issuer=st.just(REGISTRY),
    subject=st.just(DOMAIN),
    issued_at=times,
    expires_at=times,
    since=counts,
    seq=counts,
    checkpoint=st.just(NOTE),
    services=st.lists(names.map(lambda name: f"{DOMAIN}/{name}"), max_size=4).map(tuple),
    reset=st.booleans(),
)


def read(kind: type[Any], jws: str, *, now: float = NOW, signers: Any = SIGNERS, domain: str = DOMAIN) -> Any:
    return read_document(kind, jws, signers, now=now, domain=domain)


def code_of(kind: type[Any], jws: str, **more: Any) -> str:
    with pytest.raises(DocumentRefused) as caught:
        read(kind, jws, **more)
    return caught.value.code


def signed(document: Document, key: KeyPair = SIGNER, **claims: Any) -> str:
    """The document with other claims, rightly signed."""
    head = {"alg": key.public.alg, "kid": make_kid(REGISTRY, key.public.thumbprint), "typ": document.TYP}
    return forge(head, {**document.claims(), **claims}, key.sign)


@given(jwk_sets() | statements() | changes)
@settings(deadline=None)
def test_every_document_comes_back_from_its_claims(document: Document) -> None:
    assert type(document).from_claims(strict_json_object(canonical_json(document.claims()))) == document


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_a_signed_document_comes_back(document: Document) -> None:
    assert read(type(document), sign_document(document, SIGNER)) == document


def test_a_jwk_set_is_one_for_any_library() -> None:
    claims = JWK_SET.claims()
    for jwk, key in zip(claims["keys"], (KEY, OLD), strict=True):
        assert {**key.public.jwk, "alg": key.public.alg, "use": "sig", "kid": key.kid}.items() <= jwk.items()


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_who_signs_and_for_which_domain(document: Document) -> None:
    kind, jws = type(document), sign_document(document, SIGNER)
    assert code_of(kind, jws, signers={}) == "document_unknown_signer"
    assert code_of(kind, sign_document(document, ec_key("attacker"))) == "document_unknown_signer"
    assert code_of(kind, jws, signers=dict.fromkeys(SIGNERS, ROOT.public)) == "document_bad_signature"
    assert code_of(kind, jws, signers={kid: rsa_key("caller").public for kid in SIGNERS}) == "document_unknown_signer"
    assert code_of(kind, jws[:-6] + "AAAAAA") == "document_bad_signature"
    assert code_of(kind, jws, domain="staging.internal") == "document_wrong_issuer"
    assert code_of(kind, signed(document, iss=CALLER)) == "document_wrong_issuer"


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_a_document_has_its_time(document: Document) -> None:
    kind, jws = type(document), sign_document(document, SIGNER)
    for now in (NOW - 30, document.expires_at + 29):
        assert read(kind, jws, now=now) == document
    assert code_of(kind, jws, now=NOW - 31) == "document_from_future"
    assert code_of(kind, jws, now=document.expires_at + 30) == "document_expired"


OPTIONAL = ("revoked",)
"""Claims that a registry of an earlier release leaves out."""


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_claims_missing_or_of_another_type(document: Document) -> None:
    kind = type(document)
    for name in document.claims():
        head = {"alg": "ES256", "kid": next(iter(SIGNERS)), "typ": kind.TYP}
        less = {claim: value for claim, value in document.claims().items() if claim != name}
        if name not in OPTIONAL:
            assert code_of(kind, forge(head, less, SIGNER.sign)) == "document_malformed"
        for value in ([] if name == "by" else {}, 1.5, 1 if name == "reset" else True):
            assert code_of(kind, signed(document, **{name: value})) == "document_malformed", (name, value)


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_members_of_a_newer_registry_are_let_be(document: Document) -> None:
    assert read(type(document), signed(document, novelty="what this version does not know")) == document


@pytest.mark.parametrize(
    "changes",
    [
        *(
            {"kid": OLD.kid},
            {"kid": kid_of(OTHER, rsa_key("caller"))},
            {"state": "revoked"},
            {"state": "pending"},
            {"n": "AQAB"},
        ),
        *({"d": "AQAB"}, {"alg": "ES256"}, {"active_from": -1}, {"active_until": "a"}, {"index": None}, {"kty": "oct"}),
        *(
            {"expires_at": -1},
            {"by": None},
            {"by": []},
            {"evidence": 1},
            {"proof": None},
            {"proof": [1]},
            {"proof": [""]},
        ),
        *({"proof": ["A" * 42]}, {"proof": ["A" * 43 + "="]}, {"proof": "A" * 43}, {"proof": ["A" * 42 + "B"]}),
    ],
)
def test_a_key_in_a_jwk_set_is_what_its_kid_says(changes: dict[str, Any]) -> None:
    assert code_of(KeySetDocument, signed(JWK_SET, keys=[{**KEY.to_json(), **changes}])) == "document_malformed"


def test_a_jwk_set_speaks_of_one_service_only() -> None:
    assert code_of(KeySetDocument, signed(JWK_SET, sub=OTHER)) == "document_malformed"
    other = RevokedKey(f"{OTHER}/{'A' * 43}", NOW, 3).to_json()
    assert code_of(KeySetDocument, signed(JWK_SET, revoked=[other])) == "document_malformed"
    for lists in ({"keys": [1]}, {"keys": [None]}, {"revoked": ["a"]}, {"revoked": [{}]}, {"keys": {}}):
        assert code_of(KeySetDocument, signed(JWK_SET, **lists)) == "document_malformed"


def test_a_statement_tells_a_time_of_revocation_exactly_for_revoked_keys() -> None:
    revoked = replace(STATEMENT, state="revoked", revoked_at=NOW)
    assert read(KeyStatement, sign_document(revoked, SIGNER)) == revoked
    assert code_of(KeyStatement, signed(STATEMENT, revoked_at=NOW)) == "document_malformed"
    assert code_of(KeyStatement, signed(revoked, revoked_at=None)) == "document_malformed"
    assert code_of(KeyStatement, signed(STATEMENT, kid=OLD.kid)) == "document_malformed"


def test_changes_name_services() -> None:
    for services in (["Billing"], ["billing"], [1], [None], [f"{DOMAIN}/../x"], "a"):
        assert code_of(Changes, signed(CHANGES, services=services)) == "document_malformed"


def test_one_kind_is_not_another() -> None:
    for document in DOCUMENTS:
        for kind in {type(other) for other in DOCUMENTS} - {type(document)}:
            assert code_of(kind, sign_document(document, SIGNER)) == "document_wrong_type"


# ---- the root's


def root_code_of(jws: str, *, pin: str | None = ROOT.public.thumbprint, now: float = NOW) -> str:
    with pytest.raises(DocumentRefused) as caught:
        read_registry_keys(jws, pin=pin, now=now)
    return caught.value.code


def test_the_roots_document_is_believed_for_its_pin() -> None:
    jws = sign_document(ROOT_KEYS, ROOT)
    assert read_registry_keys(jws, pin=ROOT.public.thumbprint, now=NOW) == ROOT_KEYS
    assert read_registry_keys(jws, pin=None, now=NOW) == ROOT_KEYS
    assert root_code_of(jws, pin=SIGNER.public.thumbprint) == "document_wrong_root"
    assert root_code_of(jws, pin="") == "document_wrong_root"


def test_the_roots_document_is_signed_by_the_root_in_it() -> None:
    for pin in (ROOT.public.thumbprint, None):
        assert root_code_of(sign_document(ROOT_KEYS, SIGNER), pin=pin) == "document_unknown_signer"
        forged = forge(
            {"alg": "ES256", "kid": make_kid(REGISTRY, ROOT.public.thumbprint), "typ": RegistryKeys.TYP},
            ROOT_KEYS.claims(),
            ec_key("attacker").sign,
        )
        assert root_code_of(forged, pin=pin) == "document_bad_signature"
    assert root_code_of(sign_document(replace(ROOT_KEYS, root=SIGNER.public), SIGNER)) == "document_wrong_root"


def test_the_roots_document_speaks_of_its_own_domain() -> None:
    assert root_code_of(signed(ROOT_KEYS, ROOT, sub="other.internal")) == "document_wrong_subject"
    for issuer in (CALLER, DOMAIN, "", "other.internal/registry", f"{DOMAIN}/registry/"):
        assert root_code_of(signed(ROOT_KEYS, ROOT, iss=issuer)) in ("document_unknown_signer", "document_wrong_issuer")


def test_the_roots_document_has_its_time_and_type() -> None:
    jws = sign_document(ROOT_KEYS, ROOT)
    assert root_code_of(jws, now=NOW - 31) == "document_from_future"
    assert root_code_of(jws, now=NOW + 90) == "document_expired"
    assert root_code_of(sign_document(CHANGES, ROOT)) == "document_wrong_type"


@pytest.mark.parametrize(
    "changes",
    [
        *(
            {"signing_keys": {}},
            {"signing_keys": [1]},
            {"signing_keys": [{}]},
            {"root": {}},
            {"root": LEDGER_KEY},
            {"urls": [1]},
        ),
        *({"urls": "a"}, {"ledger_key": []}, {"version": "1"}, {"version": True}),
        {"signing_keys": [{**SIGNER.public.jwk, "d": "AQAB"}]},
    ],
)
def test_the_roots_document_is_read_strictly(changes: dict[str, Any]) -> None:
    assert root_code_of(signed(ROOT_KEYS, ROOT, **changes)) == "document_malformed"


@pytest.mark.parametrize("jws", ["", "a", "a.b", "a.b.c", "..", "é", "A" * (MAX_DOCUMENT + 1)])
def test_texts_that_are_no_documents(jws: str) -> None:
    assert root_code_of(jws) == code_of(KeySetDocument, jws) == "document_malformed"
