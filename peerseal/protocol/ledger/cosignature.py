"""Notes with several signatures, and the cosignatures of witnesses, in the formats of https://c2sp.org: signed-note and
tlog-cosignature (``cosignature/v1``, Ed25519).

A cosignature says that the witness has checked that the checkpoint continues every earlier one which it cosigned, and
when it said so. The checkpoint is another log's as well, so it may have extension lines, which are signed with it.
"""

import binascii
import hashlib
import re
from base64 import b64encode
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from peerseal.errors import DocumentRefused, MalformedToken
from peerseal.protocol.ledger.checkpoint import MAX_NOTE, MAX_SIGNATURES, Checkpoint, parse_checkpoint
from peerseal.protocol.plain import kind_of, plain_text

LOG_KEY: Final = 0x01
"""The signature type of the key that signs a log's checkpoints (signed-note)."""
WITNESS_KEY: Final = 0x04
"""The signature type of a witness' key (tlog-cosignature)."""
LONGEST_NAME: Final = 255
"""Characters of the name of a key, at most."""
LATEST: Final = 2**63 - 1
"""The latest time of a cosignature, in seconds since the epoch."""

_KEY_SIZE: Final = 32
_TIME_SIZE: Final = 8
_SIGNATURE_SIZE: Final = 64
_LONGEST_KEY: Final = LONGEST_NAME + 64
_LINE = re.compile(r"— ([^\s+]+) ([A-Za-z0-9+/]+={0,2})")
_ODD = re.compile(r"[\x00-\x09\x0b-\x1f\x7f\ud800-\udfff]")
"""Control characters, and half surrogate pairs, which UTF-8 does not have."""


@dataclass(frozen=True, slots=True)
class NoteKey:
    """The public key of a log or of a witness: its name, its signature type (`LOG_KEY` or `WITNESS_KEY`), and the 32
    bytes of an Ed25519 key."""

    name: str
    kind: int
    public: bytes

    @property
    def id(self) -> bytes:
        """Four bytes that stand before each signature of the key."""
        material = self.name.encode("utf-8") + b"\n" + bytes([self.kind]) + self.public
        return hashlib.sha256(material).digest()[:4]

    def __str__(self) -> str:
        """The key in the text form of signed-note: ``name+id+key``."""
        return f"{self.name}+{self.id.hex()}+{b64encode(bytes([self.kind]) + self.public).decode('ascii')}"

    @classmethod
    def parse(cls, text: str, kind: int) -> Self:
        """The key of that kind in its text form. Raises MalformedToken."""
        shown = plain_text(text)
        if shown is None:
            raise MalformedToken(f"a verifier key is a text, and this is {kind_of(text)}")
        parts = shown.split("+", 2)
        if len(shown) > _LONGEST_KEY or len(parts) != 3 or not is_key_name(parts[0]):
            raise MalformedToken(f"{shown!r:.80} is no verifier key: expected NAME+ID+KEY")
        try:
            material = binascii.a2b_base64(parts[2], strict_mode=True)
        except ValueError as error:
            raise MalformedToken(f"{shown!r:.80} is no verifier key: its key is not in base64") from error
        if len(material) != 1 + _KEY_SIZE or material[0] != kind:
            found = f"type {material[0]} and {len(material) - 1} bytes" if material else "nothing"
            raise MalformedToken(
                f"the verifier key of {parts[0]} has {found}, expected type {kind} and {_KEY_SIZE} bytes"
            )
        key = cls(parts[0], kind, material[1:])
        if parts[1] != key.id.hex():
            raise MalformedToken(f"the verifier key of {parts[0]} has the id {parts[1]!r:.20}, expected {key.id.hex()}")
        return key

    @classmethod
    def of(cls, name: str, kind: int, key: Ed25519PublicKey) -> Self:
        """The key under that name. Raises MalformedToken for a name that a note cannot have."""
        if not is_key_name(name):
            raise MalformedToken(f"{name!r:.80} is no name of a key: expected 1 to {LONGEST_NAME} without a blank or +")
        return cls(name, kind, key.public_bytes_raw())

    def signed(self, signature: bytes, message: bytes) -> bool:
        """Whether the key made this Ed25519 signature."""
        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True


def is_key_name(name: str) -> bool:
    """Whether it may name a key in a note: not empty, no blank, no ``+``, and no control character."""
    return 0 < len(name) <= LONGEST_NAME and name.isprintable() and not set(name) & {" ", "+"}


@dataclass(frozen=True, slots=True)
class SignatureLine:
    """One signature of a note: the name and the id of its key, and what follows the id."""

    name: str
    key_id: bytes
    value: bytes

    def __str__(self) -> str:
        """The line, without its end."""
        return f"— {self.name} {b64encode(self.key_id + self.value).decode('ascii')}"


@dataclass(frozen=True, slots=True)
class Note:
    """A checkpoint and its signatures, none of them checked. ``text`` is what the log signed, extension lines too."""

    text: str
    claimed: Checkpoint
    signatures: tuple[SignatureLine, ...]

    @classmethod
    def parse(cls, note: str) -> Self:
        """Reads a note. Raises DocumentRefused with ``document_bad_checkpoint``."""
        note = plain_text(note) or ""
        if len(note) > MAX_NOTE or _ODD.search(note):
            raise _bad(f"a note of more than {MAX_NOTE} characters, or with a character that no note may have")
        text, blank, lines = note.partition("\n\n")
        head = "".join(f"{line}\n" for line in text.split("\n")[:3])
        claimed = parse_checkpoint(f"{head}\n— a AAAA\n") if blank else parse_checkpoint("")
        return cls(f"{text}\n", claimed, tuple(read_signature_lines(lines)))

    def of(self, key: NoteKey) -> Iterator[bytes]:
        """What the key is said to have signed, each value once."""
        found = (line.value for line in self.signatures if (line.name, line.key_id) == (key.name, key.id))
        yield from dict.fromkeys(found)

    def is_signed_by(self, key: NoteKey) -> bool:
        """Whether the log's key signed the note. Of several signatures of the key only the first counts, as Go's
        ``note.Open`` has it."""
        first = next(self.of(key), None)
        return first is not None and key.signed(first, self.text.encode("utf-8"))


def read_signature_lines(lines: str) -> Iterator[SignatureLine]:
    """Reads signature lines. Each line ends with a newline. Raises DocumentRefused."""
    each = (plain_text(lines) or "").split("\n")
    if each.pop() or not 0 < len(each) <= MAX_SIGNATURES:
        raise _bad(f"{len(each)} signature lines, expected 1 to {MAX_SIGNATURES}, each with its newline")
    for line in each:
        match = _LINE.fullmatch(line)
        if match is None or not is_key_name(match[1]):
            raise _bad("not a signature line")
        try:
            value = binascii.a2b_base64(match[2], strict_mode=True)
        except binascii.Error as error:
            raise _bad("not a signature line") from error
        if len(value) < 5:
            raise _bad("a signature without a value")
        yield SignatureLine(match[1], value[:4], value[4:])


def cosign(text: str, name: str, key: Ed25519PrivateKey, at: int) -> SignatureLine:
    """The witness' signature of a checkpoint's text at that time, in seconds since the epoch."""
    public = NoteKey.of(name, WITNESS_KEY, key.public_key())
    return SignatureLine(name, public.id, at.to_bytes(_TIME_SIZE, "big") + key.sign(_message(text, at)))


def cosigned_at(note: Note, witness: NoteKey) -> int | None:
    """When the witness cosigned the note, in seconds since the epoch; the latest time of several. None where it did
    not: a cosignature that does not verify counts for nothing."""
    return max(filter(None, (_time_of(note.text, value, witness) for value in note.of(witness))), default=None)


def cosigners(note: Note, witnesses: Collection[NoteKey]) -> dict[str, int]:
    """When each witness cosigned the note, by name; of those that did."""
    times = {witness.name: cosigned_at(note, witness) for witness in witnesses}
    return {name: at for name, at in times.items() if at is not None}


def _time_of(text: str, value: bytes, witness: NoteKey) -> int | None:
    at = int.from_bytes(value[:_TIME_SIZE], "big")
    if len(value) != _TIME_SIZE + _SIGNATURE_SIZE or not 0 < at <= LATEST:
        return None
    return at if witness.signed(value[_TIME_SIZE:], _message(text, at)) else None


def _message(text: str, at: int) -> bytes:
    return f"cosignature/v1\ntime {at}\n{text}".encode()


def _bad(detail: str) -> DocumentRefused:
    return DocumentRefused("document_bad_checkpoint", detail)
