"""Checkpoints, tiles and entry bundles, in the formats of https://c2sp.org: tlog-checkpoint, signed-note, tlog-tiles.

A checkpoint is the ledger's signed tree head: a note of three lines (origin, size, root hash), a blank line, and a
signature line for each key. The origin and the key's name are the trust domain. A tile holds 256 hashes of one level;
only every eighth level has tiles. An entry bundle holds 256 entries, each after its length in two bytes.
"""

import binascii
import hashlib
import re
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from peerseal.errors import DocumentRefused, MalformedToken
from peerseal.protocol.encoding import b64url, b64url_decode
from peerseal.protocol.ledger.merkle import HASH_SIZE, MAX_PROOF, Proof, node_hash
from peerseal.protocol.plain import is_json_object, kind_of, plain_bytes, plain_text

CHECKPOINT_PATH: Final = "/ledger/checkpoint"
COSIGNED_PATH: Final = "/ledger/checkpoint.cosigned"
TILE_HEIGHT: Final = 8
TILE_WIDTH: Final = 1 << TILE_HEIGHT
"""Hashes of a full tile, and entries of a full bundle."""
MAX_NOTE: Final = 16 * 1024
"""Characters of a checkpoint with all its signature lines, at most."""
MAX_NOTE_BYTES: Final = 4 * MAX_NOTE
"""Bytes of a checkpoint, at most: UTF-8 has up to four for a character."""
MAX_SIGNATURES: Final = 64
"""Signature lines of a checkpoint, at most: the ledger's, and those of witnesses."""
MAX_PROOF_BYTES: Final = 16 * 1024
"""Bytes of an answer that holds a proof only."""

_ED25519: Final = b"\x01"  # the signature type of signed-note
_BODY = re.compile(r"([^\n]+)\n(0|[1-9][0-9]{0,17})\n([A-Za-z0-9+/]{43}=)\n")
_SIGNATURE = re.compile(r"— ([^\s+]+) ([A-Za-z0-9+/]+={0,2})")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The head of the ledger of ``origin`` (a trust domain): its size in entries and its RFC 6962 root hash."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """The note's text, which is what is signed."""
        return f"{self.origin}\n{self.size}\n{b64encode(self.root).decode('ascii')}\n"


def ledger_jwk(key: Ed25519PublicKey) -> dict[str, str]:
    """The ledger's public key as a JWK (RFC 8037 section 2)."""
    return {"kty": "OKP", "crv": "Ed25519", "x": b64url(key.public_bytes_raw())}


def ledger_public_key(jwk: Mapping[str, str]) -> Ed25519PublicKey:
    """The key in a JWK. Raises MalformedToken."""
    if (
        not is_json_object(jwk)
        or (jwk.get("kty"), jwk.get("crv")) != ("OKP", "Ed25519")
        or type(jwk.get("x")) is not str
    ):
        raise MalformedToken("not an Ed25519 key")
    try:
        return Ed25519PublicKey.from_public_bytes(b64url_decode(jwk["x"]))
    except ValueError as error:
        raise MalformedToken("not an Ed25519 key") from error


def signed_note_key(origin: str, jwk: Mapping[str, str]) -> str:
    """The key in the text form of signed-note (``name+hash+key``), for other programs. Raises MalformedToken."""
    public = ledger_public_key(jwk).public_bytes_raw()
    return f"{origin}+{_key_id(origin, public).hex()}+{b64encode(_ED25519 + public).decode('ascii')}"


def sign_checkpoint(checkpoint: Checkpoint, key: Ed25519PrivateKey) -> str:
    """The checkpoint as a signed note."""
    text = checkpoint.text()
    key_id = _key_id(checkpoint.origin, key.public_key().public_bytes_raw())
    signature = b64encode(key_id + key.sign(text.encode("utf-8"))).decode("ascii")
    return f"{text}\n— {checkpoint.origin} {signature}\n"


def verify_checkpoint(note: str, origin: str, jwks: Iterable[Mapping[str, str]]) -> Checkpoint:
    """The checkpoint of ``origin``, signed by one of its ledger keys. It ignores signatures under other names
    (witnesses).

    Raises DocumentRefused: ``document_bad_checkpoint``, or ``document_unknown_signer`` where none of the keys signed.
    """
    note = plain_text(note) or ""
    claimed = parse_checkpoint(note)
    if claimed.origin != origin:
        raise DocumentRefused("document_bad_checkpoint", "the checkpoint of another ledger")
    text, _, lines = note.partition("\n\n")
    signatures = _signatures_of(lines, origin)
    for jwk in jwks:
        key = ledger_public_key(jwk)
        for signature in signatures.get(_key_id(origin, key.public_bytes_raw()), ()):
            _verify(key, signature, f"{text}\n")
            return claimed
    raise DocumentRefused("document_unknown_signer", "no key that the root names signed the checkpoint")


def parse_checkpoint(note: str) -> Checkpoint:
    """The checkpoint that a note claims, without a check of its signatures. Raises DocumentRefused with
    ``document_bad_checkpoint``."""
    note = plain_text(note) or ""
    if len(note) > MAX_NOTE:
        raise DocumentRefused(
            "document_bad_checkpoint", f"a note of {len(note)} characters, expected {MAX_NOTE} at most"
        )
    text, blank, lines = note.partition("\n\n")
    body = _BODY.fullmatch(f"{text}\n")
    try:
        if blank and body is not None and lines.endswith("\n"):
            return Checkpoint(body[1], int(body[2]), binascii.a2b_base64(body[3], strict_mode=True))
    except binascii.Error:
        pass  # a root hash in another spelling
    raise DocumentRefused("document_bad_checkpoint", "not a checkpoint")


def _signatures_of(lines: str, name: str) -> dict[bytes, list[bytes]]:
    """The signatures under that name, by key id."""
    found: dict[bytes, list[bytes]] = {}
    each = lines[:-1].split("\n")
    if len(each) > MAX_SIGNATURES:
        raise DocumentRefused(
            "document_bad_checkpoint", f"{len(each)} signature lines, expected {MAX_SIGNATURES} at most"
        )
    for line in each:
        match = _SIGNATURE.fullmatch(line)
        if match is None:
            raise DocumentRefused("document_bad_checkpoint", "not a signature line")
        if match[1] == name:
            try:
                value = binascii.a2b_base64(match[2], strict_mode=True)
            except binascii.Error as error:
                raise DocumentRefused("document_bad_checkpoint", "not a signature line") from error
            found.setdefault(value[:4], []).append(value[4:])
    return found


def _verify(key: Ed25519PublicKey, signature: bytes, text: str) -> None:
    try:
        key.verify(signature, text.encode("utf-8"))
    except InvalidSignature as error:
        raise DocumentRefused("document_bad_checkpoint", "the signature does not verify") from error


def _key_id(name: str, public: bytes) -> bytes:
    return hashlib.sha256(name.encode("utf-8") + b"\n" + _ED25519 + public).digest()[:4]


def tile_path(level: int | str, number: int, width: int = TILE_WIDTH) -> str:
    """The path of a tile below the ledger's prefix: ``tile/<level>/<number>[.p/<width>]``, the number in groups of
    three digits; the level ``entries`` is that of the bundles."""
    groups = [f"{number % 1000:03d}"]
    while number >= 1000:
        number //= 1000
        groups.insert(0, f"x{number % 1000:03d}")
    return f"tile/{level}/{'/'.join(groups)}{'' if width == TILE_WIDTH else f'.p/{width}'}"


def levels_of(tile: bytes) -> list[list[bytes]]:
    """The hashes of a tile, full or partial, then each row of parents that can be computed from them."""
    row = [tile[at : at + HASH_SIZE] for at in range(0, len(tile), HASH_SIZE)]
    levels = [row]
    while len(row) > 1:
        row = [node_hash(left, right) for left, right in zip(row[::2], row[1::2], strict=False)]
        levels.append(row)
    return levels


def tile_root(tile: bytes) -> bytes:
    """The one hash above a full tile."""
    return levels_of(tile)[-1][0]


def encode_bundle(entries: Iterable[bytes]) -> bytes:
    """An entry bundle: each entry after its length, two bytes, big-endian."""
    return b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries)


def decode_bundle(bundle: bytes) -> Sequence[bytes]:
    """The entries of a bundle. Raises DocumentRefused for a bundle that ends early."""
    octets = plain_bytes(bundle)
    if octets is None:
        raise DocumentRefused("document_malformed", f"an entry bundle is bytes, and this is {kind_of(bundle)}")
    bundle, entries, at = octets, [], 0
    while at < len(bundle):
        length = int.from_bytes(bundle[at : at + 2], "big")
        entry = bundle[at + 2 : at + 2 + length]
        if at + 2 > len(bundle) or len(entry) != length:
            raise DocumentRefused("document_malformed", "the entry bundle breaks off")
        entries.append(entry)
        at += 2 + length
    return entries


def encode_proof(proof: Proof) -> list[str]:
    """A proof as documents write it: base64url of each hash."""
    return [b64url(part) for part in proof]


def decode_proof(values: object) -> Proof:
    """The hashes of a proof. Raises MalformedToken."""
    if type(values) is not list or len(values) > MAX_PROOF or any(type(value) is not str for value in values):
        raise MalformedToken("not a proof")
    proof = tuple(b64url_decode(value) for value in values)
    if any(len(part) != HASH_SIZE for part in proof):
        raise MalformedToken("not a proof")
    return proof
