"""What entries about the registry itself say in words."""

from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from peerseal.audit.entry_words import changes_in_words, in_words
from peerseal.protocol.documents.frame import sign_document
from peerseal.protocol.ledger.cosignature import WITNESS_KEY, NoteKey
from peerseal.protocol.ledger.entries import FEDERATION_SET, KEY_ADMITTED, REGISTRY_KEYS_ISSUED, Entry
from peerseal.protocol.ledger.quorum import Quorum
from peerseal.testing import MemoryRegistry
from tests.support.federation import PARTNER

ROOT = PARTNER["root"]
OTHER_ROOT = "LSzq4S14tmSwuJYePdRGQSfIJEmCpidxSsckURu3nXA"


def federation(*domains: dict[str, Any]) -> Entry:
    return Entry(7, 1_700_000_000, FEDERATION_SET, data={"federation": {"domains": list(domains)}})


def partner(**members: Any) -> dict[str, Any]:
    return {**PARTNER, **members}


def changes(entry: Entry, before: Entry | None) -> tuple[str, ...]:
    return changes_in_words(entry, None if before is None else before.data)


def quorum(needed: int, *names: str) -> Quorum:
    keys = [NoteKey.of(name, WITNESS_KEY, Ed25519PrivateKey.generate().public_key()) for name in names]
    return Quorum.of(map(str, keys), needed)


def document(registry: MemoryRegistry, witnesses: Quorum | None, version: int = 2) -> Entry:
    said = replace(registry.registry_keys(), witnesses=witnesses, version=version)
    return Entry(8, 1_700_000_000, REGISTRY_KEYS_ISSUED, data={"document": sign_document(said, registry.root)})


@pytest.fixture
def registry() -> MemoryRegistry:
    return MemoryRegistry("acme.internal")


def test_a_federation_is_told_by_the_names_of_its_domains() -> None:
    assert in_words(federation(partner())) == "believed are partner.example"
    assert in_words(federation()) == "no foreign trust domain is believed"


def test_a_line_names_five_domains_and_counts_the_others() -> None:
    many = [partner(domain=f"d{number}.example", root="A" * 41 + f"{number}A") for number in range(8)]
    assert in_words(federation(*many)) == (
        "believed are d0.example, d1.example, d2.example, d3.example, d4.example, and 3 more"
    )


def test_a_root_document_is_told_by_its_version_and_its_witnesses(registry: MemoryRegistry) -> None:
    assert in_words(document(registry, None)) == "version 2 of the root's document, no witness needed"
    told = in_words(document(registry, quorum(2, "b.example", "a.example", "c.example")))
    assert told == ("version 2 of the root's document, 2 of 3 witnesses needed (a.example, b.example, c.example)")


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"federation": None, "document": None},
        {"federation": {"domains": [{}]}, "document": "x.y.z"},
        {"federation": {"domains": [partner(domain="<script>")]}, "document": "…"},
        {"federation": [], "document": 5},
    ],
)
def test_an_entry_that_cannot_be_read_has_no_words(data: dict[str, Any]) -> None:
    for kind in (FEDERATION_SET, REGISTRY_KEYS_ISSUED):
        entry = Entry(7, 0, kind, data=data)
        assert in_words(entry) is None
        assert changes(entry, None) == ()


def test_entries_of_other_types_have_no_words() -> None:
    entry = Entry(7, 0, KEY_ADMITTED, data={"federation": {"domains": []}})
    assert (in_words(entry), changes(entry, None)) == (None, ())


def test_a_domain_that_was_added_is_told_with_its_terms() -> None:
    assert changes(federation(partner()), federation()) == (
        f"partner.example under the root {ROOT} is believed from here on: billing, with the scopes [orders:read] that "
        "policies and code allow; no transaction crosses",
    )
    assert changes(federation(partner()), None) == changes(federation(partner()), federation())


def test_a_domain_that_was_taken_away_is_told_and_one_that_stays_is_not() -> None:
    other = partner(domain="other.example", root=OTHER_ROOT)
    gone = f"partner.example under the root {ROOT} is not believed any more"
    assert changes(federation(other), federation(partner(), other)) == (gone,)


def test_other_terms_and_urls_are_told() -> None:
    wider = {**partner(transactions=True), "urls": ["https://new.partner.example"]}
    del wider["services"]
    assert changes(federation(wider), federation(partner())) == (
        f"partner.example under the root {ROOT} is believed on other terms: all its services, with the scopes "
        "[orders:read] that policies and code allow; transactions and events may cross, with these scopes; "
        "its URLs are https://new.partner.example",
    )


def test_a_root_that_passes_to_another_domain_is_a_removal_and_an_addition() -> None:
    told = changes(federation(partner(domain="other.example")), federation(partner()))
    assert [line.partition(" under ")[0] for line in told] == ["other.example", "partner.example"]
    assert told[1].endswith("is not believed any more")


def test_an_entry_that_changes_nothing_says_so() -> None:
    assert changes(federation(partner()), federation(partner())) == ("nothing: it says the same as before",)


def test_a_change_of_witnesses_is_told_with_those_of_before(registry: MemoryRegistry) -> None:
    one = quorum(1, "a.example")
    first = document(registry, None)
    assert changes(document(registry, one, 3), first) == (
        "version 3 of the root's document, 1 of 1 witnesses needed (a.example); before: no witness needed",
    )
    assert changes(document(registry, one, 4), document(registry, one, 3)) == (
        "version 4 of the root's document, 1 of 1 witnesses needed (a.example), as before",
    )
    assert changes(first, None) == ("version 2 of the root's document, no witness needed",)
