"""Evidence of a split view: what it proves, and to whom."""

import contextlib
import json
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from peerseal.errors import DocumentRefused, PeersealError
from peerseal.protocol.documents.frame import sign_document
from peerseal.protocol.ledger.checkpoint import Checkpoint, parse_checkpoint, sign_checkpoint
from peerseal.protocol.ledger.split_view import MAX_EVIDENCE, Evidence, Fork, Sighting
from peerseal.testing import MemoryRegistry
from tests.support.two_histories import grow, second_view


@pytest.fixture(scope="module")
def views() -> tuple[MemoryRegistry, MemoryRegistry]:
    """Two views with three entries in common, and three and seven of their own."""
    one = MemoryRegistry("acme.internal")
    grow(one, 2)
    two = second_view(one)
    grow(one, 3, caller="one")
    grow(two, 7, caller="two")
    return one, two


Views = tuple[MemoryRegistry, MemoryRegistry]


def evidence_of(views: Views, smaller: int, larger: int) -> Evidence:
    """Of the first view at the smaller size and the second at the larger."""
    one, two = views
    notes = one.ledger.checkpoint(smaller), two.ledger.checkpoint(larger)
    fork = None if smaller == larger else Fork.of(smaller, parse_checkpoint(notes[1]), two.ledger.node)
    keys = sign_document(one.registry_keys(), one.root)
    return Evidence("acme.internal", notes, (Sighting(0, "acme.internal/a", 7),), fork, keys)


def code(evidence: Evidence, registry: MemoryRegistry) -> str:
    verdict = evidence.verdict([registry.ledger.jwk])
    assert verdict.proven == (verdict.code in ("two_roots", "not_extended"))
    return verdict.code


@pytest.mark.parametrize("smaller", range(1, 7))
@pytest.mark.parametrize("larger", range(1, 11))
def test_a_contradiction_is_proven_at_every_pair_of_sizes_and_no_other(views: Views, smaller: int, larger: int) -> None:
    if smaller > larger:
        return
    expected = "same_tree" if smaller <= 3 else "two_roots" if smaller == larger else "not_extended"
    assert code(evidence_of(views, smaller, larger), views[0]) == expected


def test_it_is_read_as_it_was_written(views: Views) -> None:
    for evidence in (evidence_of(views, 5, 5), evidence_of(views, 5, 9)):
        assert Evidence.decode(evidence.encode()) == evidence
    assert json.loads(evidence.encode()).keys() == {"domain", "notes", "seen", "proof", "registry_keys"}


def test_the_order_of_the_notes_does_not_matter(views: Views) -> None:
    evidence = evidence_of(views, 5, 9)
    assert code(replace(evidence, notes=evidence.notes[::-1]), views[0]) == "not_extended"


def test_two_sizes_alone_prove_nothing(views: Views) -> None:
    assert code(replace(evidence_of(views, 5, 9), fork=None), views[0]) == "no_proof"


@pytest.mark.parametrize("bit", range(0, 256, 37))
def test_a_proof_that_fails_proves_nothing(views: Views, bit: int) -> None:
    """Any peer can make one."""
    evidence = evidence_of(views, 5, 9)
    assert evidence.fork is not None
    bent = bytearray(evidence.fork.root)
    bent[bit // 8] ^= 1 << bit % 8
    assert code(replace(evidence, fork=replace(evidence.fork, root=bytes(bent))), views[0]) == "bad_proof"
    path = (bytes(32), *evidence.fork.path[1:])
    assert code(replace(evidence, fork=replace(evidence.fork, path=path)), views[0]) == "bad_proof"
    assert code(replace(evidence, fork=replace(evidence.fork, path=())), views[0]) == "bad_proof"


def test_an_honest_ledger_cannot_be_accused(views: Views) -> None:
    """Whatever proof is made up, two checkpoints of one tree prove nothing."""
    one, two = views
    honest = replace(evidence_of(views, 5, 9), notes=(two.ledger.checkpoint(5), two.ledger.checkpoint(9)))
    assert code(honest, two) == "same_tree"
    forged = Fork.of(5, parse_checkpoint(one.ledger.checkpoint(6)), one.ledger.node)
    assert code(replace(honest, fork=forged), two) == "bad_proof"


@pytest.mark.parametrize("note", [0, 1])
def test_a_note_of_another_signer_is_refused(views: Views, note: int) -> None:
    evidence, forger = evidence_of(views, 5, 5), Ed25519PrivateKey.generate()
    notes = list(evidence.notes)
    notes[note] = sign_checkpoint(Checkpoint("acme.internal", 5, bytes(32)), forger)
    with pytest.raises(DocumentRefused) as caught:
        replace(evidence, notes=(notes[0], notes[1])).verdict([views[0].ledger.jwk])
    assert caught.value.code == "document_unknown_signer"


def test_the_keys_in_the_file_are_believed_under_the_pin_only(views: Views) -> None:
    evidence, stranger = evidence_of(views, 5, 5), MemoryRegistry("acme.internal")
    assert evidence.keys_under(views[0].pin).ledger_key == views[0].ledger.jwk
    with pytest.raises(DocumentRefused) as caught:
        evidence.keys_under(stranger.pin)
    assert caught.value.code == "document_wrong_root"
    foreign = MemoryRegistry("elsewhere.internal")
    keys = sign_document(foreign.registry_keys(), foreign.root)
    with pytest.raises(DocumentRefused) as caught:
        replace(evidence, registry_keys=keys).keys_under(foreign.pin)
    assert caught.value.code == "document_wrong_subject"
    with pytest.raises(DocumentRefused, match="holds no registry_keys"):
        replace(evidence, registry_keys=None).keys_under(views[0].pin)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"domain":"a","notes":[],"seen":[]}',
        b'{"domain":"a","notes":["",1],"seen":[]}',
        b'{"domain":"a","notes":["",""],"seen":[1]}',
        b'{"domain":"a","notes":["",""],"seen":[],"proof":{}}',
        b" " * (MAX_EVIDENCE + 1),
        b'{"domain":"a","notes":["",""],"seen":[],"statements":[1]}',
        b"\xff",
    ],
)
def test_a_file_that_is_no_evidence_is_refused(data: bytes) -> None:
    with pytest.raises(DocumentRefused) as caught:
        Evidence.decode(data)
    assert caught.value.code == "document_malformed"


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_no_mutated_file_proves_more_or_ends_in_another_error(views: Views, data: st.DataObject) -> None:
    """Notes of one tree, and a proof: no mutation of the bytes makes evidence of them."""
    two = views[1]
    notes = two.ledger.checkpoint(5), two.ledger.checkpoint(9)
    honest = replace(evidence_of(views, 5, 9), notes=notes, registry_keys=None).encode()
    at = data.draw(st.integers(0, len(honest) - 1))
    mutated = honest[:at] + data.draw(st.binary(max_size=3)) + honest[at + data.draw(st.integers(0, 3)) :]
    with contextlib.suppress(PeersealError):
        assert not Evidence.decode(mutated).verdict([two.ledger.jwk]).proven
