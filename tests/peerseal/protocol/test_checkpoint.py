"""Checkpoints, tiles and bundles: written as C2SP says, read back, and refused in our own words where they are not."""

import contextlib
import hashlib
from base64 import b64encode
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import example, given, settings
from hypothesis import strategies as st

from peerseal.errors import DocumentRefused, MalformedToken
from peerseal.protocol.encoding import b64url
from peerseal.protocol.ledger.checkpoint import (
    MAX_NOTE,
    TILE_HEIGHT,
    TILE_WIDTH,
    Checkpoint,
    decode_bundle,
    decode_proof,
    encode_bundle,
    encode_proof,
    ledger_jwk,
    ledger_public_key,
    levels_of,
    sign_checkpoint,
    signed_note_key,
    tile_path,
    tile_root,
    verify_checkpoint,
)
from peerseal.protocol.ledger.merkle import Frontier, leaf_hash, node_hash, root_hash

ORIGIN = "acme.internal"
KEY, OTHER = Ed25519PrivateKey.from_private_bytes(b"k" * 32), Ed25519PrivateKey.from_private_bytes(b"o" * 32)
JWK, OTHER_JWK = ledger_jwk(KEY.public_key()), ledger_jwk(OTHER.public_key())
HEAD = Checkpoint(ORIGIN, 42, hashlib.sha256(b"root").digest())
NOTE = sign_checkpoint(HEAD, KEY)


def code_of(note: str, origin: str = ORIGIN, jwks: Any = (JWK,)) -> str:
    with pytest.raises(DocumentRefused) as caught:
        verify_checkpoint(note, origin, jwks)
    return caught.value.code


class TestNotes:
    def test_a_checkpoint_comes_back_from_its_note(self) -> None:
        for size in (0, 1, 10**17):
            head = Checkpoint(ORIGIN, size, HEAD.root)
            assert verify_checkpoint(sign_checkpoint(head, KEY), ORIGIN, [OTHER_JWK, JWK]) == head

    def test_a_note_is_written_as_signed_note_and_tlog_checkpoint_say(self) -> None:
        text = f"acme.internal\n42\n{b64encode(HEAD.root).decode()}\n"
        public = KEY.public_key().public_bytes_raw()
        key_id = hashlib.sha256(b"acme.internal\n\x01" + public).digest()[:4]
        signature = b64encode(key_id + KEY.sign(text.encode())).decode()
        assert f"{text}\n\N{EM DASH} acme.internal {signature}\n" == NOTE
        typed = b64encode(b"\x01" + public).decode()
        assert signed_note_key(ORIGIN, JWK) == f"{ORIGIN}+{key_id.hex()}+{typed}"

    def test_signatures_of_witnesses_are_passed_over(self) -> None:
        witness = NOTE.splitlines()[-1].replace(ORIGIN, "witness.example")
        assert verify_checkpoint(f"{NOTE}{witness}\n", ORIGIN, [JWK]) == HEAD
        head, _, line = NOTE.rpartition(f"\n{NOTE.splitlines()[-1]}")
        assert verify_checkpoint(f"{head}\n{witness}\n{NOTE.splitlines()[-1]}\n{line.strip()}", ORIGIN, [JWK]) == HEAD

    def test_both_keys_may_sign_while_one_follows_another(self) -> None:
        second = sign_checkpoint(HEAD, OTHER).splitlines()[-1]
        for jwks in ([JWK], [OTHER_JWK], [JWK, OTHER_JWK]):
            assert verify_checkpoint(f"{NOTE}{second}\n", ORIGIN, jwks) == HEAD

    def test_a_key_that_the_root_does_not_name_is_an_unknown_signer(self) -> None:
        assert code_of(NOTE, jwks=[OTHER_JWK]) == "document_unknown_signer"
        assert code_of(NOTE, jwks=[]) == "document_unknown_signer"

    def test_the_checkpoint_of_another_ledger(self) -> None:
        assert code_of(NOTE, origin="staging.internal") == "document_bad_checkpoint"
        forged = sign_checkpoint(Checkpoint("staging.internal", 42, HEAD.root), KEY)
        assert code_of(forged) == "document_bad_checkpoint"

    @pytest.mark.parametrize(
        "note",
        [
            *(
                "",
                "\n",
                "\n\n",
                "\n\n\n",
                NOTE[:-1],
                NOTE[:-2] + "\n",
                f"\n{NOTE}",
                f"{NOTE}\n",
                NOTE.replace("\n", "\r\n"),
            ),
            *(NOTE.replace("42", "43"), NOTE.replace("42", "042"), NOTE.replace("42", "-1"), NOTE.replace("42", "4²")),
            *(NOTE.replace("42", "42 "), NOTE.replace("42", "9" * 19), NOTE.replace("\n\n", "\nextension\n\n")),
            *(NOTE.replace("\N{EM DASH}", "-"), NOTE.replace("\n\n", "\n"), NOTE.partition("\n\n")[0] + "\n\n"),
            *(NOTE.replace(ORIGIN, ORIGIN.upper()), NOTE + NOTE, f"{NOTE}{'x' * MAX_NOTE}\n"),
            *(f"{NOTE}\N{EM DASH} a =\n", f"{NOTE}\N{EM DASH} {ORIGIN} AAA\n", f"{NOTE}\N{EM DASH} {ORIGIN} A===\n"),
        ],
    )
    def test_texts_that_are_no_checkpoints(self, note: str) -> None:
        assert code_of(note) == "document_bad_checkpoint"

    @given(st.integers(0, len(NOTE) - 1), st.characters())
    @settings(deadline=None)
    def test_a_note_with_one_character_changed_is_refused(self, at: int, character: str) -> None:
        changed = NOTE[:at] + character + NOTE[at + 1 :]
        if changed != NOTE:
            assert code_of(changed) in ("document_bad_checkpoint", "document_unknown_signer")

    @given(st.text(max_size=300) | st.text("\n— 0123456789AZaz+/=.", max_size=300))
    @example("\ud800\n1\n" + "A" * 43 + "=\n\n— a AAAA\n")
    @settings(deadline=None)
    def test_nothing_that_is_read_raises_outside_our_tree(self, text: str) -> None:
        for note in (text, f"{ORIGIN}\n{text}", NOTE + text, NOTE.partition("\n\n")[0] + "\n\n" + text):
            with contextlib.suppress(DocumentRefused):
                verify_checkpoint(note, ORIGIN, [JWK])

    @pytest.mark.parametrize(
        "jwk",
        [
            *({}, {"kty": "OKP"}, {**JWK, "crv": "X25519"}, {**JWK, "x": ""}, {**JWK, "x": 1}, {**JWK, "kty": "EC"}),
            *({**JWK, "x": JWK["x"] + "="}, {**JWK, "x": b64url(bytes(31))}, {**JWK, "x": "é"}),
        ],
    )
    def test_jwks_that_are_no_ledger_keys(self, jwk: Any) -> None:
        with pytest.raises(MalformedToken):
            ledger_public_key(jwk)


class TestTiles:
    @pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 700, 65_536 + 300])
    def test_a_tree_is_read_out_of_its_tiles(self, size: int) -> None:
        leaves = [leaf_hash(number.to_bytes(4, "big")) for number in range(size)]
        tiles: dict[tuple[int, int], list[list[bytes]]] = {}
        hashes, level = leaves, 0
        while hashes:
            rows = [hashes[at : at + TILE_WIDTH] for at in range(0, len(hashes), TILE_WIDTH)]
            tiles |= {(level, number): levels_of(b"".join(row)) for number, row in enumerate(rows)}
            hashes = [tile_root(b"".join(row)) for row in rows if len(row) == TILE_WIDTH]
            level += 1
        frontier = Frontier()
        for leaf in leaves:
            frontier = frontier.appended(leaf)

        def node(level: int, number: int) -> bytes:
            above = level % TILE_HEIGHT
            row = tiles[level // TILE_HEIGHT, (number << above) // TILE_WIDTH][above]
            return row[number % (TILE_WIDTH >> above)]

        assert root_hash(size, node) == frontier.root

    def test_a_tile_holds_what_is_complete_and_no_more(self) -> None:
        a, b, c = (leaf_hash(letter) for letter in (b"a", b"b", b"c"))
        assert levels_of(a + b + c) == [[a, b, c], [node_hash(a, b)]]
        assert levels_of(a) == [[a]]

    @pytest.mark.parametrize(
        ("level", "number", "width", "path"),
        [
            (0, 0, 256, "tile/0/000"),
            (1, 999, 7, "tile/1/999.p/7"),
            (0, 1_000, 256, "tile/0/x001/000"),
            (2, 1_234_067, 1, "tile/2/x001/x234/067.p/1"),
            ("entries", 5, 256, "tile/entries/005"),
        ],
    )
    def test_paths_are_written_as_tlog_tiles_says(self, level: int | str, number: int, width: int, path: str) -> None:
        assert tile_path(level, number, width) == path

    @given(st.lists(st.binary(max_size=40), max_size=20))
    def test_a_bundle_comes_back(self, entries: list[bytes]) -> None:
        assert list(decode_bundle(encode_bundle(entries))) == entries

    def test_a_bundle_says_lengths_in_two_bytes(self) -> None:
        assert encode_bundle([b"ab", b"", b"c" * 256]) == b"\x00\x02ab\x00\x00\x01\x00" + b"c" * 256

    @pytest.mark.parametrize(
        "bundle", [b"\x00", b"\x00\x01", b"\x00\x02a", b"\x00\x00\x00", b"\xff\xff" + bytes(65_534)]
    )
    def test_a_bundle_that_breaks_off_is_refused(self, bundle: bytes) -> None:
        with pytest.raises(DocumentRefused) as caught:
            decode_bundle(bundle)
        assert caught.value.code == "document_malformed"

    @given(st.binary(max_size=200))
    def test_no_bytes_of_a_bundle_raise_outside_our_tree(self, bundle: bytes) -> None:
        with contextlib.suppress(DocumentRefused):
            assert encode_bundle(decode_bundle(bundle)) == bundle


class TestProofs:
    @given(st.lists(st.binary(min_size=32, max_size=32), max_size=5))
    def test_a_proof_comes_back(self, proof: list[bytes]) -> None:
        assert decode_proof(encode_proof(tuple(proof))) == tuple(proof)

    @pytest.mark.parametrize(
        "value",
        [None, "", {}, [1], [None], [""], ["A" * 42], ["A" * 44], ["A" * 43 + "="], ["A" * 42 + "B"], ["é" * 43]],
    )
    def test_values_that_are_no_proofs(self, value: Any) -> None:
        with pytest.raises(MalformedToken):
            decode_proof(value)
