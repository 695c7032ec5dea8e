"""New keys for the registry, named by a root that may be offline; on both databases."""

from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from peerseal.errors import ConfigurationError, DocumentRefused
from peerseal.protocol.documents.frame import read_document
from peerseal.protocol.documents.key_set import KeySetDocument
from peerseal.protocol.documents.registry_keys import RegistryKeys, read_registry_keys
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.ledger.checkpoint import verify_checkpoint
from peerseal.protocol.ledger.cosignature import WITNESS_KEY, NoteKey
from peerseal.protocol.ledger.quorum import Quorum
from peerseal.protocol.names import make_kid, registry_id
from registry.services.setup.ceremony import SETTLED_AFTER, Ceremony, NotSettled, Rolled, signed, written
from registry.services.setup.initialise import initialise
from tests.registry.driver import DOMAIN, Clock, Driver

SET = "/v1/services/billing/jwks.jwt"


@pytest.fixture
def ceremony(registry: Driver, clock: Clock) -> Ceremony:
    return Ceremony(registry.settings, registry.store, clock)


def roll(ceremony: Ceremony, registry: Driver, *rolled: Rolled, drop_past: bool = False) -> RegistryKeys:
    """All three steps."""
    request = written(ceremony.requested(rolled, drop_past=drop_past))
    document = ceremony.publish(signed(request, registry.settings.root_key_file))
    ceremony.put_in_place(document)
    return document


def root_document(registry: Driver) -> RegistryKeys:
    jws = registry.client.get("/.well-known/peerseal-registry").text
    return read_registry_keys(jws, pin=registry.pin, now=registry.clock())


def signer_of(registry: Driver, jws: str, keys: RegistryKeys) -> int:
    """Which of the document's signing keys signed the set."""
    for number, key in enumerate(keys.signing_keys):
        signers = {make_kid(registry_id(DOMAIN), key.thumbprint): key}
        try:
            read_document(KeySetDocument, jws, signers, now=registry.clock(), domain=DOMAIN)
        except DocumentRefused:
            continue
        return number
    raise AssertionError("signed by none of them")


def test_a_new_signing_key_signs_and_the_one_before_stays_good(
    registry: Driver, ceremony: Ceremony, clock: Clock
) -> None:
    registry.joined(KeyPair.generate("ES256"), "billing")
    before = registry.client.get(SET).text
    document = roll(ceremony, registry, Rolled.SIGNING)
    clock.forward(registry.settings.limits.registry_keys_cached)
    assert (document.version, len(document.signing_keys)) == (2, 2)
    assert signer_of(registry, registry.client.get(SET).text, document) == 0
    assert signer_of(registry, before, document) == 1
    assert root_document(registry) == document


def test_a_new_key_is_published_before_it_signs(registry: Driver, ceremony: Ceremony) -> None:
    registry.joined(KeyPair.generate("ES256"), "billing")
    request = written(ceremony.requested([Rolled.SIGNING], drop_past=False))
    document = ceremony.publish(signed(request, registry.settings.root_key_file))
    assert root_document(registry) == document, "at once, on every node: the changes have just told clients to look"
    assert signer_of(registry, registry.client.get(SET).text, document) == 1, "the key before"


def test_a_dropped_signing_key_is_named_no_more(registry: Driver, ceremony: Ceremony, clock: Clock) -> None:
    registry.joined(KeyPair.generate("ES256"), "billing")
    before = registry.client.get(SET).text
    roll(ceremony, registry, Rolled.SIGNING)
    with pytest.raises(NotSettled):
        roll(ceremony, registry, drop_past=True)
    clock.forward(SETTLED_AFTER)
    document = roll(ceremony, registry, drop_past=True)
    assert len(document.signing_keys) == 1
    with pytest.raises(AssertionError, match="none of them"):
        signer_of(registry, before, document)


def test_a_stolen_key_is_replaced_and_dropped_at_once(registry: Driver, ceremony: Ceremony) -> None:
    stolen = root_document(registry).signing_keys
    document = roll(ceremony, registry, Rolled.SIGNING, drop_past=True)
    assert len(document.signing_keys) == 1
    assert document.signing_keys != stolen


def test_a_new_ledger_key_signs_checkpoints_of_the_same_ledger(
    registry: Driver, ceremony: Ceremony, clock: Clock
) -> None:
    old = root_document(registry).ledger_key
    document = roll(ceremony, registry, Rolled.LEDGER)
    assert document.past_ledger_keys == (old,)
    clock.forward(registry.settings.limits.registry_keys_cached)
    note = registry.client.get("/ledger/checkpoint").text
    assert verify_checkpoint(note, DOMAIN, [document.ledger_key]).size == document.version + 1  # the operator's entry
    with pytest.raises(DocumentRefused, match="document_unknown_signer"):
        verify_checkpoint(note, DOMAIN, [old])


def test_a_node_with_the_key_before_goes_on_while_it_is_named(
    registry: Driver, ceremony: Ceremony, clock: Clock, tmp_path: Path
) -> None:
    old = registry.settings.signing_key_file.read_bytes()
    roll(ceremony, registry, Rolled.SIGNING)
    registry.settings.signing_key_file.write_bytes(old)  # the new file was not copied to this node yet
    clock.forward(registry.settings.limits.registry_keys_cached)
    registry.joined(KeyPair.generate("ES256"), "billing")
    assert signer_of(registry, registry.client.get(SET).text, root_document(registry)) == 1
    clock.forward(SETTLED_AFTER)
    roll(ceremony, registry, drop_past=True)
    clock.forward(registry.settings.limits.registry_keys_cached)
    refused = registry.client.get("/.well-known/peerseal-registry")
    assert (refused.status_code, refused.json["code"]) == (503, "not_initialised")


def test_what_changed_names_the_registry_itself(registry: Driver, ceremony: Ceremony) -> None:
    since = registry.changes(0).seq
    roll(ceremony, registry, Rolled.SIGNING)
    assert registry.changes(since).services == (registry_id(DOMAIN),)


def test_publishing_again_changes_nothing(registry: Driver, ceremony: Ceremony) -> None:
    request = written(ceremony.requested([Rolled.SIGNING], drop_past=False))
    jws = signed(request, registry.settings.root_key_file)
    assert ceremony.publish(jws) == ceremony.publish(jws)
    assert root_document(registry).version == 2


def test_a_document_that_does_not_follow_the_one_in_force(registry: Driver, ceremony: Ceremony) -> None:
    root = registry.settings.root_key_file
    first = signed(written(ceremony.requested([Rolled.SIGNING], drop_past=False)), root)
    roll(ceremony, registry, Rolled.LEDGER)
    with pytest.raises(ConfigurationError, match="does not follow"):
        ceremony.publish(first)


def test_witnesses_stay_named_through_roll_overs_and_renewals(registry: Driver, ceremony: Ceremony) -> None:
    witness = NoteKey.of("witness.example", WITNESS_KEY, Ed25519PrivateKey.generate().public_key())
    quorum = Quorum.of([str(witness)], 1)
    named = replace(ceremony.requested([], drop_past=False), witnesses=quorum)
    ceremony.publish(signed(written(named), registry.settings.root_key_file))
    assert roll(ceremony, registry, Rolled.SIGNING, Rolled.LEDGER).witnesses == quorum
    moved = replace(registry.settings, public_urls=("https://moved.example",))
    initialise(moved, registry.store, None, registry.clock)
    renewed = root_document(registry)
    assert (renewed.urls, renewed.witnesses) == (moved.public_urls, quorum)


def test_only_the_pinned_root_signs(registry: Driver, ceremony: Ceremony, tmp_path: Path) -> None:
    request = written(ceremony.requested([Rolled.SIGNING], drop_past=False))
    other = tmp_path / "other-root.pem"
    other.write_bytes(KeyPair.generate("ES256").to_pem())
    with pytest.raises(ConfigurationError, match="not the one that clients have pinned"):
        signed(request, other)


@pytest.mark.parametrize("request_", [b"", b"{}", b"[]", b'{"iss":1}', b"\xff"])
def test_a_request_that_cannot_be_read(registry: Driver, request_: bytes) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        signed(request_, registry.settings.root_key_file)
