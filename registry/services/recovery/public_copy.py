"""A public copy of the ledger, such as a mirror's: a checkpoint and bundles of entries, trusted for its signature only.

The first entry names the root, whose documents among the entries name the ledger keys at the end of the copy. One of
these keys must have signed the checkpoint, and the entries' bytes must lead to its root hash.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import gettempdir
from typing import BinaryIO, Final

from peerseal.audit.ledger_reader import entry_bodies
from peerseal.audit.mirror import read_mirrored
from peerseal.errors import CodedError, ConfigurationError, DocumentRefused, FetchError, PeersealError
from peerseal.protocol.ledger.checkpoint import CHECKPOINT_PATH, Checkpoint, verify_checkpoint
from peerseal.protocol.ledger.entries import JOIN_TOKEN_CREATED, REGISTRY_CREATED, REGISTRY_KEYS_ISSUED, Entry
from peerseal.protocol.ledger.merkle import leaf_hash
from peerseal.runtime.limits import FetchLimits
from peerseal.transport.fetch import HttpFetcher, content
from registry.domain.evidence_checks import EvidenceCheck
from registry.domain.grounds import Grounds
from registry.domain.rebuild import apply
from registry.services.recovery.replay import PAGE, Progress, Replay, Tree
from registry.services.recovery.verify import claimed_size

LIMITS: Final = FetchLimits(total_timeout=60.0, max_bytes=32 * 1024 * 1024)
"""Limits of one call to a mirror: no caller waits for it, and a bundle of the longest entries has 16 MiB."""

_LENGTH: Final = 2
"""Bytes that give the length of an entry in the temporary file, as in a bundle."""
_DOCUMENTS: Final = (REGISTRY_CREATED, REGISTRY_KEYS_ISSUED)


class RestoreRefused(CodedError):
    """Nothing is restored, and nothing was written. Codes: ``copy_incomplete``, ``copy_not_signed``, ``copy_altered``,
    ``copy_unreadable``, ``copy_forked``, ``copy_too_old``, ``checkpoint_contradicted``, ``checkpoint_not_signed``,
    ``not_initialised``, ``ledger_moved``."""


@dataclass(frozen=True, slots=True)
class Source:
    """The place of a copy. ``get`` reads a path of it, and raises FetchError, with ``http_status`` 404 for a missing
    path."""

    name: str
    get: Callable[[str], bytes] = field(repr=False)

    @classmethod
    def of(cls, place: str) -> "Source":
        """A mirror at a URL, or a folder that holds the same paths as files. Raises ConfigurationError."""
        if place.startswith(("http://", "https://")):
            fetcher = HttpFetcher([place], LIMITS)
            return cls(place, lambda path: content(fetcher.call("GET", path)))
        return cls(place, lambda path: read_mirrored(Path(place), path))

    def note(self) -> str:
        """Its checkpoint, unverified. Raises FetchError."""
        return self.get(CHECKPOINT_PATH).decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class LateEntries:
    """What a restore must know of the entries after the database's: how many of them refer to evidence, which no copy
    holds, and the ids of the join tokens that they made."""

    evidence: int = 0
    join_tokens: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PublicCopy:
    """A complete and verified copy. ``note`` is its signed checkpoint, ``late`` describes its entries after the size
    ``after``, and the temporary file ``bodies`` has them: a million do not fit into memory."""

    source: Source
    note: str = field(repr=False)
    checkpoint: Checkpoint
    replayed: Replay
    after: int
    late: LateEntries
    bodies: BinaryIO = field(repr=False)

    def entries(self) -> Iterator[Entry]:
        """The entries after ``after``. Whatever the source does meanwhile, they are those that were checked."""
        self.bodies.seek(0)
        while length := self.bodies.read(_LENGTH):
            yield Entry.decode(self.bodies.read(int.from_bytes(length, "big")))


def read_copy(
    source: Source, note: str, after: int, wanted: Collection[int], bodies: BinaryIO, progress: Progress
) -> PublicCopy:
    """The copy up to the checkpoint ``note``, and the root hashes at the sizes ``wanted`` and ``after``. The entries
    after that are written to ``bodies``. Raises RestoreRefused, FetchError where the source does not answer, or
    ConfigurationError where they cannot be written."""
    bodies.seek(0)
    bodies.truncate()
    replayed, size = Replay(Tree({after, *wanted}), Grounds(_no_evidence)), claimed_size(note)
    reader = _Reader(replayed, after, bodies)
    try:
        for body in _bodies(source, size):
            reader.read(body)
            if replayed.tree.edge.size % PAGE == 0:
                progress(replayed.tree.edge.size, size)
        bodies.flush()
    except OSError as error:
        raise ConfigurationError(f"no room for the entries in {gettempdir()} (TMPDIR): {error.strerror}") from error
    checkpoint, edge = _signed(source, note, replayed), replayed.tree.edge
    if edge.root != checkpoint.root:
        raise RestoreRefused(
            "copy_altered", f"{source.name}: its entries do not lead to the root hash in its checkpoint"
        )
    if reader.trouble is not None:
        raise RestoreRefused("copy_unreadable", f"{source.name}: {reader.trouble}")
    late = LateEntries(reader.evidence, tuple(reader.join_tokens))
    return PublicCopy(source, note, checkpoint, replayed, after, late, bodies)


class _Reader:
    """Reads entry after entry. ``trouble`` describes the first one that cannot be read. ``evidence`` and
    ``join_tokens`` are the members of `LateEntries`."""

    def __init__(self, replayed: Replay, after: int, bodies: BinaryIO) -> None:
        self.replayed = replayed
        self.evidence = 0
        self.join_tokens: list[str] = []
        self.trouble: str | None = None
        self._after = after
        self._bodies = bodies

    def read(self, body: bytes) -> None:
        """Reads one more entry."""
        for _ in self.replayed.tree.append(leaf_hash(body)):
            pass  # tiles are made when entries are written
        if self.trouble is not None:
            return
        try:
            entry = Entry.decode(body)
            self._apply(entry)
        except (PeersealError, KeyError, TypeError, ValueError, AttributeError) as error:
            self.trouble = f"entry {self.replayed.tree.edge.size}: {type(error).__name__}: {error}"
            return
        if entry.seq > self._after:
            self._keep(entry, body)

    def _apply(self, entry: Entry) -> None:
        """Checks only the grounds of the root's documents: the signed checkpoint vouches for the other entries."""
        if entry.type in _DOCUMENTS:
            for wrong in self.replayed.grounds.check(entry, None, self.replayed.state):
                raise ValueError(str(wrong))
        apply(self.replayed.state, entry)

    def _keep(self, entry: Entry, body: bytes) -> None:
        """Notes an entry that the database lacks."""
        self._bodies.write(len(body).to_bytes(_LENGTH, "big") + body)
        self.evidence += entry.evidence is not None
        if entry.type == JOIN_TOKEN_CREATED:
            self.join_tokens.append(entry.data["id"])


def _no_evidence(_: EvidenceCheck) -> None:
    raise AssertionError("unreachable: a public copy has no evidence")


def _bodies(source: Source, size: int) -> Iterator[bytes]:
    try:
        yield from entry_bodies(source.get, 0, size)
    except FetchError as error:
        if error.http_status not in (200, 404):
            raise
        raise RestoreRefused("copy_incomplete", f"{source.name}: {error}") from error


def _signed(source: Source, note: str, replayed: Replay) -> Checkpoint:
    """The checkpoint, which a ledger key in the newest of the root's documents must have signed."""
    documents = replayed.grounds.documents
    jwks = documents[max(documents)].ledger_keys if documents else ()
    try:
        return verify_checkpoint(note, replayed.grounds.domain or "", jwks)
    except DocumentRefused as error:
        raise RestoreRefused("copy_not_signed", f"{source.name}: {error}") from error
