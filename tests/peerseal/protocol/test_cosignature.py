"""Cosignatures and notes with several signatures."""

from base64 import b64decode, b64encode
from contextlib import suppress

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from peerseal.errors import DocumentRefused, MalformedToken
from peerseal.protocol.ledger.checkpoint import ledger_jwk, signed_note_key, verify_checkpoint
from peerseal.protocol.ledger.cosignature import (
    LATEST,
    LOG_KEY,
    WITNESS_KEY,
    Note,
    NoteKey,
    cosign,
    cosigned_at,
    cosigners,
)
from tests.support.foreign_log import ForeignLog

LOG = ForeignLog("acme.internal", key=Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
SIGNER = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
WITNESS = NoteKey.of("witness.example", WITNESS_KEY, SIGNER.public_key())
NOTE = LOG.note(5)


def cosigned(at: int = 1_800_000_000, note: str = NOTE, name: str = "witness.example") -> str:
    return f"{note}{cosign(Note.parse(note).text, name, SIGNER, at)}\n"


class TestAKey:
    def test_has_the_text_form_that_the_ledgers_key_has(self) -> None:
        assert str(LOG.key) == signed_note_key("acme.internal", ledger_jwk(LOG.signer.public_key()))

    def test_is_read_from_its_own_text(self) -> None:
        assert NoteKey.parse(str(WITNESS), WITNESS_KEY) == WITNESS

    def test_of_a_log_is_no_witness_key(self) -> None:
        with pytest.raises(MalformedToken, match="has type 1 and 32 bytes, expected type 4"):
            NoteKey.parse(str(LOG.key), WITNESS_KEY)

    @pytest.mark.parametrize(
        "text", ["", "name", "name+00000000", "a b+00000000+AAAA", "+00000000+AAAA", "n+0+" + "A" * 999]
    )
    def test_that_is_none_is_refused(self, text: str) -> None:
        with pytest.raises(MalformedToken):
            NoteKey.parse(text, WITNESS_KEY)

    def test_with_another_keys_id_is_refused(self) -> None:
        name, _, material = str(WITNESS).split("+", 2)
        with pytest.raises(MalformedToken, match="expected"):
            NoteKey.parse(f"{name}+00000000+{material}", WITNESS_KEY)

    @given(st.text(max_size=80))
    def test_of_any_text_is_read_or_refused(self, text: str) -> None:
        with suppress(MalformedToken):
            NoteKey.parse(text, WITNESS_KEY)


class TestACosignature:
    def test_tells_when_the_witness_cosigned(self) -> None:
        assert cosigners(Note.parse(cosigned()), [WITNESS]) == {"witness.example": 1_800_000_000}

    def test_leaves_the_note_a_checkpoint_of_its_log(self) -> None:
        assert verify_checkpoint(cosigned(), "acme.internal", [ledger_jwk(LOG.signer.public_key())]).size == 5

    def test_covers_extension_lines(self) -> None:
        text, _, lines = NOTE.partition("\n\n")
        extended = f"{text}\nan extension\n\n{lines}"
        assert Note.parse(extended).text == f"{text}\nan extension\n"
        assert cosigned_at(Note.parse(cosigned(note=extended)), WITNESS) is not None

    def test_of_several_the_latest_counts(self) -> None:
        twice = cosigned(at=7, note=cosigned(at=9))
        assert cosigned_at(Note.parse(twice), WITNESS) == 9

    def test_by_another_key_or_under_another_name_counts_for_nothing(self) -> None:
        other = NoteKey.of("witness.example", WITNESS_KEY, Ed25519PrivateKey.generate().public_key())
        assert cosigned_at(Note.parse(cosigned()), other) is None
        assert cosigned_at(Note.parse(cosigned(name="other.example")), WITNESS) is None

    def test_of_another_checkpoint_counts_for_nothing(self) -> None:
        line = cosigned().splitlines()[-1]
        assert cosigned_at(Note.parse(f"{LOG.note(6)}{line}\n"), WITNESS) is None

    def test_with_another_time_than_the_signed_one_counts_for_nothing(self) -> None:
        *before, line = cosigned().splitlines()
        dash, name, value = line.split(" ")
        bent = bytearray(b64decode(value))
        bent[11] ^= 1  # the last byte of the time
        note = "\n".join([*before, f"{dash} {name} {b64encode(bent).decode()}", ""])
        assert cosigned_at(Note.parse(note), WITNESS) is None

    @pytest.mark.parametrize("at", [0, LATEST + 1, 2**64 - 1])
    def test_with_a_time_that_none_has_counts_for_nothing(self, at: int) -> None:
        assert cosigned_at(Note.parse(cosigned(at=at)), WITNESS) is None

    def test_is_no_signature_of_the_log(self) -> None:
        as_log = NoteKey(WITNESS.name, LOG_KEY, WITNESS.public)
        assert not Note.parse(cosigned()).is_signed_by(as_log)

    @given(at=st.integers(0, len(cosigned()) - 1), put=st.characters())
    def test_with_any_character_altered_is_refused_or_counts_for_nothing(self, at: int, put: str) -> None:
        whole = cosigned()
        bent = whole[:at] + put + whole[at + 1 :]
        try:
            note = Note.parse(bent)
        except DocumentRefused:
            return
        if note.text != Note.parse(whole).text or note.signatures[1:] != Note.parse(whole).signatures[1:]:
            assert cosigned_at(note, WITNESS) is None


class TestANote:
    @pytest.mark.parametrize(
        "note",
        [
            "",
            NOTE.removesuffix("\n"),
            NOTE.partition("\n\n")[0],
            NOTE.replace("— ", "- "),
            NOTE + "\n",
            NOTE + "— a AAAA\n",
            NOTE + "— a b AAAAAAAA\n",
            NOTE.replace("acme", "ac\rme"),
            NOTE.replace("acme", "ac\udc00me"),
            NOTE.replace("5", "05", 1),
            NOTE + "— x AAAAAAAA\n" * 64,
            NOTE + "x" * 16_384,
        ],
    )
    def test_that_breaks_the_syntax_is_refused(self, note: str) -> None:
        with pytest.raises(DocumentRefused) as caught:
            Note.parse(note)
        assert caught.value.code == "document_bad_checkpoint"

    def test_with_sixteen_signatures_is_read(self) -> None:
        assert len(Note.parse(NOTE + "— x AAAAAAAA\n" * 15).signatures) == 16

    @given(st.text(max_size=200))
    def test_of_any_text_is_read_or_refused(self, text: str) -> None:
        with suppress(DocumentRefused):
            Note.parse(f"acme.internal\n{text}")
