"""A quorum of witnesses: which documents name one, and which checkpoints have it."""

from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from peerseal.errors import MalformedToken
from peerseal.protocol.documents.registry_keys import RegistryKeys
from peerseal.protocol.ledger.checkpoint import MAX_SIGNATURES
from peerseal.protocol.ledger.cosignature import WITNESS_KEY, Note, NoteKey, cosign
from peerseal.protocol.ledger.quorum import MAX_WITNESSES, Quorum
from peerseal.testing import MemoryRegistry
from tests.support.foreign_log import ForeignLog

NOTE = ForeignLog("acme.internal").note(5)
SIGNERS = [Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in range(MAX_WITNESSES + 1)]


def vkey(number: int, name: str | None = None) -> str:
    return str(NoteKey.of(name or f"w{number}.example", WITNESS_KEY, SIGNERS[number].public_key()))


def cosigned(*by: tuple[int, int], text: str | None = None) -> Note:
    """The note, cosigned by these witnesses at these times; with the text of another note where one is given."""
    lines = (cosign(text or Note.parse(NOTE).text, f"w{number}.example", SIGNERS[number], at) for number, at in by)
    return Note.parse(NOTE + "".join(f"{line}\n" for line in lines))


TWO_OF_THREE = Quorum.of(map(vkey, range(3)), 2)


def test_two_of_three_are_enough() -> None:
    assert TWO_OF_THREE.cosigned_at(cosigned((0, 100), (2, 200))) == 100
    assert TWO_OF_THREE.cosigned_at(cosigned((0, 100), (1, 300), (2, 200))) == 200, "the second latest"


def test_one_of_three_is_not_however_often_it_cosigns() -> None:
    assert TWO_OF_THREE.cosigned_at(cosigned((0, 100))) is None
    assert TWO_OF_THREE.cosigned_at(cosigned((0, 100), (0, 200), (0, 300))) is None
    assert TWO_OF_THREE.cosigned_at(Note.parse(NOTE)) is None


def test_witnesses_that_are_not_configured_do_not_count() -> None:
    assert TWO_OF_THREE.cosigned_at(cosigned((0, 100), (3, 100), (4, 100))) is None


def test_a_cosignature_of_another_tree_does_not_count() -> None:
    other = Note.parse(ForeignLog("acme.internal", "other").note(5)).text
    forged = Note.parse(NOTE + "".join(f"{line}\n" for line in cosigned((0, 100), (1, 100), text=other).signatures[1:]))
    assert TWO_OF_THREE.cosigned_at(forged) is None


def test_the_most_signature_lines_that_a_note_may_have_are_read() -> None:
    lines = [(0, at) for at in range(1, MAX_SIGNATURES - 1)]
    assert TWO_OF_THREE.cosigned_at(cosigned(*lines, (1, 7))) == 7


@pytest.mark.parametrize(
    ("witnesses", "needed", "said"),
    [
        ([], 1, "0 witnesses, expected 1 to 16"),
        (list(map(vkey, range(MAX_WITNESSES + 1))), 1, "17 witnesses, expected 1 to 16"),
        ([vkey(0)], 0, "a quorum of 0, expected 1 to 1"),
        ([vkey(0)], 2, "a quorum of 2, expected 1 to 1"),
        ([vkey(0)], True, "a quorum of True"),
        ([vkey(0), vkey(0)], 1, "two witnesses have the same name"),
        ([vkey(0), vkey(1, "w0.example")], 1, "two witnesses have the same name"),
        ([vkey(0), vkey(0, "other.example")], 2, "two witnesses have the same key"),
        (["w0.example+00000000+AAAA"], 1, "the verifier key of w0.example"),
    ],
)
def test_a_quorum_that_means_less_than_it_says_is_refused(witnesses: list[str], needed: int, said: str) -> None:
    with pytest.raises(MalformedToken, match=said):
        Quorum.of(witnesses, needed)


def root_claims(**changes: Any) -> dict[str, Any]:
    with MemoryRegistry("acme.internal") as registry:
        return {**registry.registry_keys().claims(), **changes}


def test_the_roots_document_without_witnesses_is_as_ever() -> None:
    claims = root_claims()
    assert not claims.keys() & {"witnesses", "quorum"}
    assert RegistryKeys.from_claims(claims).witnesses is None


def test_the_roots_document_names_them() -> None:
    document = replace(RegistryKeys.from_claims(root_claims()), witnesses=TWO_OF_THREE)
    assert document.claims()["quorum"] == 2
    assert document.claims()["witnesses"][1] == {"name": "w1.example", "key": vkey(1)}
    assert RegistryKeys.from_claims(document.claims()) == document


@pytest.mark.parametrize(
    "changes",
    [
        {"witnesses": []},
        {"quorum": 0},
        {"quorum": 4},
        {"quorum": "2"},
        {"witnesses": "w0.example"},
        {"witnesses": [vkey(0), vkey(1)]},
        {"witnesses": [{"name": "w0.example"}]},
        {"witnesses": [{"name": "other.example", "key": vkey(0)}], "quorum": 1},
        {"witnesses": [{"name": "w0.example", "key": vkey(0)}, {"name": "other", "key": vkey(0, "other")}]},
    ],
)
def test_a_roots_document_whose_witnesses_cannot_be_read_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(MalformedToken):
        RegistryKeys.from_claims(root_claims(**{**TWO_OF_THREE.members(), **changes}))


@pytest.mark.parametrize("missing", ["witnesses", "quorum"])
def test_one_without_the_other_is_refused(missing: str) -> None:
    members = {name: value for name, value in TWO_OF_THREE.members().items() if name != missing}
    with pytest.raises(MalformedToken, match="claims are missing"):
        RegistryKeys.from_claims(root_claims(**members))


def test_members_of_a_witness_that_are_not_known_are_ignored() -> None:
    members = TWO_OF_THREE.members()
    members["witnesses"][0]["operator"] = "w0"
    assert RegistryKeys.from_claims(root_claims(**members)).witnesses == TWO_OF_THREE
