"""Split views: the checkpoint that peers tell each other (``cp``), and the evidence that a ledger has two histories.

A registry that shows two clients two histories must sign two checkpoints that no one tree can have. Services compare
theirs with each call (docs/protocol.md). Evidence can be checked offline, with the ledger's key alone:

- Two notes of one size with two root hashes suffice by themselves.
- Two notes of different sizes prove nothing by themselves. The evidence then also holds the root hash that the larger
  tree has at the smaller size, and the RFC 9162 consistency proof from that root to the larger note. A tree has one
  root at each of its sizes, so a smaller note with another root is of another tree. A proof that merely fails shows
  nothing: any peer can make one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

from peerseal.errors import DocumentRefused, MalformedToken
from peerseal.protocol.documents.frame import UnverifiedDocument, errors_as_document_refused
from peerseal.protocol.documents.history_statement import MAX_HISTORY_BYTES, Head, excused_by, signed_histories
from peerseal.protocol.documents.registry_keys import RegistryKeys, read_registry_keys
from peerseal.protocol.encoding import b64url, b64url_decode, canonical_json, strict_json_object
from peerseal.protocol.ledger.checkpoint import (
    MAX_NOTE_BYTES,
    Checkpoint,
    decode_proof,
    encode_proof,
    parse_checkpoint,
    verify_checkpoint,
)
from peerseal.protocol.ledger.cosignature import Note
from peerseal.protocol.ledger.merkle import (
    HASH_SIZE,
    NodeReader,
    Proof,
    check_consistency,
    consistency_proof,
    root_hash,
)
from peerseal.protocol.plain import kind_of, plain_bytes
from peerseal.protocol.tokens.claims import LATEST_TIME, claim, number_claim, time_claim

MAX_CP: Final = 512
"""Characters of a ``cp`` that is sent, at most. A domain with a longer note sends none."""
MAX_EVIDENCE: Final = RegistryKeys.MAX_SIZE + MAX_HISTORY_BYTES + 4 * MAX_NOTE_BYTES
"""Bytes of an evidence file, at most."""
MAX_SEEN: Final = 64
"""Entries of ``seen`` in an evidence file, at most."""

Jwks = Iterable[Mapping[str, str]]
"""The ledger's public keys."""


def encode_cp(note: str, domain: str, jwks: Jwks) -> str | None:
    """The note as a ``cp``: base64url, with the log's own signature alone. None for a note that is too long, or that
    none of these keys signed."""
    keys = tuple(jwks)
    try:
        parsed = Note.parse(note)
        for line in parsed.signatures:
            own = f"{parsed.text}\n{line}\n"
            if line.name == domain and _is_signed(own, domain, keys):
                cp = b64url(own.encode("utf-8"))
                return cp if len(cp) <= MAX_CP else None
    except DocumentRefused:
        pass
    return None


def decode_cp(cp: object) -> str:
    """The note in a ``cp``, whose signature is not checked. Raises DocumentRefused with ``document_bad_checkpoint``."""
    try:
        if type(cp) is not str:
            raise MalformedToken("a cp is a text")
        note = b64url_decode(cp).decode("utf-8")
    except (MalformedToken, UnicodeDecodeError) as error:
        raise DocumentRefused("document_bad_checkpoint", f"a cp that is no note in base64url: {error}") from error
    parse_checkpoint(note)
    return note


@dataclass(frozen=True, slots=True)
class Fork:
    """The ``root`` hash that the larger of two trees has at the smaller size, and the consistency proof (``path``) from
    it to the larger tree's root."""

    root: bytes
    path: Proof

    @classmethod
    def of(cls, size: int, larger: Checkpoint, node: NodeReader) -> Self:
        """Read from the nodes of the larger tree, which need no trust. Raises DocumentRefused with
        ``document_inconsistent`` where they are not of that tree, and what ``node`` raises."""
        fork = cls(root_hash(size, node), consistency_proof(size, larger.size, node))
        check_consistency(size, fork.root, larger.size, larger.root, fork.path)
        return fork

    def to_json(self) -> dict[str, Any]:
        """``{"root", "path"}`` in base64url."""
        return {"root": b64url(self.root), "path": encode_proof(self.path)}

    @classmethod
    def from_json(cls, members: dict[str, Any]) -> Self:
        """Reads what `to_json` writes. Raises MalformedToken."""
        root = b64url_decode(claim(members, "root", str))
        if len(root) != HASH_SIZE:
            raise MalformedToken("a root hash has 32 bytes")
        return cls(root, decode_proof(members.get("path")))


@dataclass(frozen=True, slots=True)
class Sighting:
    """Who told of one of the two notes (0 or 1), and when, in seconds since the epoch. It is not signed."""

    note: int
    source: str
    at: int

    def to_json(self) -> dict[str, Any]:
        """``{"note", "from", "at"}``."""
        return {"note": self.note, "from": self.source, "at": self.at}

    @classmethod
    def from_json(cls, members: Any) -> Self:
        """Reads what `to_json` writes. Raises MalformedToken."""
        if type(members) is not dict:
            raise MalformedToken("seen is a list of objects")
        note = number_claim(members, "note")
        if note > 1:
            raise MalformedToken(f"seen tells of note {note}: expected 0 or 1")
        return cls(note, claim(members, "from", str), time_claim(members, "at"))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What evidence proves. ``code`` is ``two_roots`` or ``not_extended`` where a split view is ``proven``; else
    ``same_tree``, ``no_proof``, ``bad_proof`` or ``declared_loss``."""

    proven: bool
    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class Evidence:
    """Two signed notes of one domain's ledger, the smaller first, and what is needed to see that they contradict each
    other.

    ``fork`` is there where the sizes differ. ``registry_keys`` is the document, signed by the root, that names the
    ledger's keys, so that the root's thumbprint suffices to check the file. ``statements`` are the root's statements
    about lost entries that the registry served.
    """

    domain: str
    notes: tuple[str, str]
    seen: tuple[Sighting, ...] = ()
    fork: Fork | None = None
    registry_keys: str | None = field(default=None, repr=False)
    statements: tuple[str, ...] = ()

    def encode(self) -> bytes:
        """The file: ``{"domain", "notes", "seen", "proof"?, "registry_keys"?, "statements"?}``."""
        members: dict[str, Any] = {"domain": self.domain, "notes": list(self.notes)}
        members["seen"] = [sighting.to_json() for sighting in self.seen]
        if self.fork is not None:
            members["proof"] = self.fork.to_json()
        if self.registry_keys is not None:
            members["registry_keys"] = self.registry_keys
        if self.statements:
            members["statements"] = list(self.statements)
        return canonical_json(members)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Reads a file, and checks no signature. Raises DocumentRefused with ``document_malformed``."""
        with errors_as_document_refused():
            octets = plain_bytes(data)
            if octets is None or len(octets) > MAX_EVIDENCE:
                given = kind_of(data) if octets is None else f"{len(octets)} bytes"
                raise MalformedToken(f"evidence is a file of {MAX_EVIDENCE} bytes at most, and this is {given}")
            members = strict_json_object(octets)
            notes, seen = (claim(members, name, list) for name in ("notes", "seen"))
            statements = claim({"statements": [], **members}, "statements", list)
            if len(notes) != 2 or len(seen) > MAX_SEEN or any(type(text) is not str for text in (*notes, *statements)):
                raise MalformedToken("expected two notes, a list of who told of them, and statements that are texts")
            return cls(
                claim(members, "domain", str),
                (notes[0], notes[1]),
                tuple(map(Sighting.from_json, seen)),
                Fork.from_json(claim(members, "proof", dict)) if "proof" in members else None,
                claim(members, "registry_keys", str) if "registry_keys" in members else None,
                tuple(statements),
            )

    def keys_under(self, pin: str) -> RegistryKeys:
        """The document in the file that names the ledger's keys, signed by the root key with the thumbprint ``pin``. It
        is read as of the time at which it was signed: evidence outlives it. Raises DocumentRefused."""
        jws = self.registry_keys
        if jws is None:
            raise DocumentRefused("document_unknown_signer", "the file holds no registry_keys: give the ledger's key")
        with errors_as_document_refused():
            signed_at = time_claim(UnverifiedDocument.parse(RegistryKeys, jws).payload(), "iat")
        keys = read_registry_keys(jws, pin=pin, now=signed_at)
        if keys.subject != self.domain:
            raise DocumentRefused("document_wrong_subject", f"registry_keys of {keys.subject}, not of {self.domain}")
        return keys

    def verdict(self, jwks: Jwks, root: RegistryKeys | None = None) -> Verdict:
        """What the notes prove, signed by these keys of the ledger. ``root`` names the root key, for the statements in
        the file; without it they are not read. Raises DocumentRefused where a note is not signed, or is no note."""
        keys = tuple(jwks)
        first, second = (verify_checkpoint(note, self.domain, keys) for note in self.notes)
        found = compared(first, second, self.fork)
        if found.proven and root is not None:
            lost = declared_loss((first, second), self.statements, root)
            if lost is not None:
                return Verdict(False, "declared_loss", f"the root key declared entries lost that explain it: {lost}")
        return found


def compared(first: Checkpoint, second: Checkpoint, fork: Fork | None) -> Verdict:
    """What two signed checkpoints of one ledger prove."""
    smaller, larger = sorted((first, second), key=lambda checkpoint: checkpoint.size)
    if smaller.size == larger.size:
        if smaller.root == larger.root:
            return Verdict(False, "same_tree", f"both notes are of one tree of {smaller.size} entries")
        roots = f"{b64url(first.root)} and {b64url(second.root)}"
        return Verdict(True, "two_roots", f"the ledger's key signed two trees of {first.size} entries: {roots}")
    if fork is None:
        sizes = f"{smaller.size} and {larger.size} entries"
        return Verdict(False, "no_proof", f"the notes are of {sizes}, and the file does not show that they contradict")
    try:
        check_consistency(smaller.size, fork.root, larger.size, larger.root, fork.path)
    except DocumentRefused as error:
        return Verdict(False, "bad_proof", f"the proof does not lead to the note of {larger.size} entries: {error}")
    if not smaller.size or fork.root == smaller.root:
        return Verdict(False, "same_tree", f"the tree of {larger.size} entries begins with that of {smaller.size}")
    roots = f"{b64url(fork.root)}, and the ledger's key signed {b64url(smaller.root)}"
    detail = f"at {smaller.size} entries the tree of {larger.size} entries has the root {roots}"
    return Verdict(True, "not_extended", detail)


def declared_loss(found: Iterable[Checkpoint], statements: Iterable[str], root: RegistryKeys) -> Head | None:
    """The head of one of the checkpoints, where a statement of the root key declares it lost; else None.

    It does not matter when the head was seen: a peer that slept for a week still believes what was lost meanwhile.
    """
    lost = next(iter(declared_lost(found, statements, root)), None)
    return None if lost is None else Head(lost.size, lost.root)


def declared_lost(found: Iterable[Checkpoint], statements: Iterable[str], root: RegistryKeys) -> tuple[Checkpoint, ...]:
    """Those of the checkpoints that statements of the root key declare lost."""
    declared = signed_histories(statements, root.root, domain=root.subject, now=LATEST_TIME).values()
    return tuple(each for each in found if excused_by(declared, Head(each.size, each.root), 0) is not None)


def _is_signed(note: str, domain: str, jwks: Jwks) -> bool:
    try:
        verify_checkpoint(note, domain, jwks)
    except DocumentRefused:
        return False
    return True
