"""The federation document: what it may say, and what is refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peerseal.errors import InvalidName, MalformedToken, PeersealError
from peerseal.protocol.documents.federation import MAX_DOMAINS, Federation, FederationDocument, FederationEntry
from peerseal.protocol.documents.frame import read_document, sign_document
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.names import make_kid

OWN = "acme.internal"
ROOT = "BH-WksFyk6HqY8cwiW_Mi5KLfDPApQ8urKiMMPE0SOQ"
PARTNER: dict[str, Any] = {"domain": "partner.example", "urls": ["https://registry.partner.example"], "root": ROOT}


def read(*domains: Any) -> Federation:
    return Federation.from_json({"domains": list(domains)}, OWN)


def test_what_is_left_out_limits_no_service_and_lets_no_transaction_cross() -> None:
    [partner] = read(PARTNER).of("partner.example")
    assert (partner.services, partner.scopes, partner.transactions) == (None, None, False)
    assert read(PARTNER).of("other.example") == ()


def test_a_signed_document_says_what_was_written() -> None:
    key = KeyPair.generate("ES256")
    limited = read({**PARTNER, "services": ["billing"], "scopes": ["orders:read"], "transactions": True})
    place: dict[str, Any] = {"seq": 1, "head": 1, "checkpoint": "", "issued_at": 1000, "expires_at": 2000}
    entry = FederationEntry(0, 900, {"operator": "o_1"}, None, (bytes(32),))
    document = FederationDocument(issuer=f"{OWN}/registry", subject=OWN, federation=limited, entry=entry, **place)
    signers = {make_kid(document.issuer, key.public.thumbprint): key.public}
    jws = sign_document(document, key)
    assert read_document(FederationDocument, jws, signers, now=1500, domain=OWN) == document


@pytest.mark.parametrize(
    "name", ["p\u0430rtner.example", "PARTNER.example", "partner.example.", "", "a/b", "*", "..", 7, None, ["a"]]
)
def test_homographs_and_names_in_another_spelling_are_refused(name: Any) -> None:
    with pytest.raises((InvalidName, MalformedToken)):
        read({**PARTNER, "domain": name})


@pytest.mark.parametrize(
    "change",
    [
        {"domain": OWN},
        {"urls": []},
        {"urls": ["http://registry.partner.example"]},
        {"urls": ["https://a.example"] * 2},
        {"urls": [f"https://{n}.example" for n in range(11)]},
        {"root": "short"},
        {"services": ["registry"]},
        {"services": ["a", "a"]},
        {"services": ["partner.example/billing"]},
        {"services": ["*"]},
        {"scopes": "a"},
        {"scopes": [f"s{n}" for n in range(201)]},
        {"transactions": 1},
        {"more": 1},
    ],
)
def test_a_domain_with_one_wrong_member_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises((InvalidName, MalformedToken)):
        read({**PARTNER, **change})


def test_a_root_is_of_one_registry_and_domains_are_bounded() -> None:
    for second in (PARTNER, {**PARTNER, "domain": "other.example"}):
        with pytest.raises(MalformedToken, match="one root twice"):
            read(PARTNER, second)
    with pytest.raises(MalformedToken, match="at most"):
        read(*[PARTNER] * (MAX_DOMAINS + 1))


def a_root() -> str:
    return KeyPair.generate("ES256").public.thumbprint


def test_a_domain_has_two_roots_at_most_while_it_replaces_its_root() -> None:
    new = {**PARTNER, "root": a_root(), "urls": ["https://new.partner.example"]}
    both = read(new, PARTNER)
    assert {one.root for one in both.of("partner.example")} == {ROOT, new["root"]}
    assert both == read(PARTNER, new)
    with pytest.raises(MalformedToken, match="has 3 roots"):
        read(PARTNER, new, {**PARTNER, "root": a_root()})


@pytest.mark.parametrize("change", [{"services": ["billing"]}, {"scopes": ["a"]}, {"transactions": True}])
def test_the_two_roots_of_a_domain_may_do_the_same(change: dict[str, Any]) -> None:
    with pytest.raises(MalformedToken, match="differ in more than root and urls"):
        read(PARTNER, {**PARTNER, "root": a_root(), **change})


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9) | st.just(PARTNER),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*PARTNER, "domains"]), inner),
)


@given(ANY)
def test_no_json_raises_an_error_outside_the_tree(value: Any) -> None:
    try:
        found = Federation.from_json(value, OWN)
    except PeersealError:
        return
    assert Federation.from_json(found.to_json(), OWN) == found
