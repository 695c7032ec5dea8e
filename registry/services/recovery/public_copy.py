"""A copy of the ledger as somebody keeps it: a checkpoint and bundles of entries, believed for its signature alone.

Whoever mirrors the registry's public answers has one. From the first entry, which names the root, its documents lead to
the ledger keys that the root names at the end of the copy; one of these must have signed the checkpoint, and the
entries' own bytes must lead to it.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from peerseal.audit.ledger_reader import entry_bodies
from peerseal.audit.mirror import read_mirrored
from peerseal.errors import CodedError, DocumentRefused, FetchError, PeersealError
from peerseal.protocol.ledger.checkpoint import CHECKPOINT_PATH, Checkpoint, read_checkpoint
from peerseal.protocol.ledger.entries import REGISTRY_CREATED, REGISTRY_KEYS_ISSUED, Entry
from peerseal.protocol.ledger.merkle import leaf_hash
from peerseal.runtime.limits import FetchLimits
from peerseal.transport.fetch import HttpFetcher, content
from registry.domain.rebuild import apply
from registry.services.recovery.replay import PAGE, Replay, Tree
from registry.services.recovery.verify import claimed_size

LIMITS: Final = FetchLimits(total_timeout=60.0, max_bytes=32 * 1024 * 1024)
"""Of one call to a mirror: nobody waits for us, and a bundle of the longest entries is 16 MiB."""

_DOCUMENTS: Final = (REGISTRY_CREATED, REGISTRY_KEYS_ISSUED)


class RestoreRefused(CodedError):
    """Nothing is restored, and nothing was written. Codes: ``copy_incomplete``, ``copy_not_signed``, ``copy_altered``,
    ``copy_unreadable``, ``copy_forked``, ``copy_too_old``, ``checkpoint_contradicted``, ``checkpoint_not_signed``,
    ``not_initialised``, ``ledger_moved``."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a copy is, and how a path of it is read: ``get`` raises FetchError, with ``http_status`` 404 for a path
    that is not there."""

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
class PublicCopy:
    """A copy that was read and is whole. ``note`` is its checkpoint as it was signed, ``behind`` are its entries behind
    a size that was asked for."""

    source: str
    note: str = field(repr=False)
    checkpoint: Checkpoint
    replayed: Replay
    behind: tuple[Entry, ...]


def read_copy(
    source: Source, note: str, after: int, wanted: Collection[int], progress: Callable[[int], None]
) -> PublicCopy:
    """The copy up to the checkpoint ``note``, with its entries behind ``after``, and with the root hashes at the sizes
    ``wanted`` and ``after``. Raises RestoreRefused, or FetchError where the source does not answer."""
    reader = _Reader(Replay(Tree({after, *wanted})), after)
    for body in _bodies(source, claimed_size(note)):
        reader.read(body)
        if reader.replayed.tree.edge.size % PAGE == 0:
            progress(reader.replayed.tree.edge.size)
    checkpoint, edge = _signed(source, note, reader.replayed), reader.replayed.tree.edge
    if edge.root != checkpoint.root:
        raise RestoreRefused("copy_altered", f"{source.name}: its entries do not lead to its checkpoint")
    if reader.trouble is not None:
        raise RestoreRefused("copy_unreadable", f"{source.name}: {reader.trouble}")
    return PublicCopy(source.name, note, checkpoint, reader.replayed, tuple(reader.behind))


class _Reader:
    """Takes entry after entry. ``trouble`` is what is wrong with the first one that cannot be read."""

    def __init__(self, replayed: Replay, after: int) -> None:
        self.replayed = replayed
        self.behind: list[Entry] = []
        self.trouble: str | None = None
        self._after = after

    def read(self, body: bytes) -> None:
        """One more."""
        for _ in self.replayed.tree.append(leaf_hash(body)):
            pass  # tiles are made when entries are written
        if self.trouble is not None:
            return
        try:
            self._apply(Entry.decode(body))
        except (PeersealError, KeyError, TypeError, ValueError, AttributeError) as error:
            self.trouble = f"entry {self.replayed.tree.edge.size}: {type(error).__name__}: {error}"

    def _apply(self, entry: Entry) -> None:
        """Of what the entry rests on only the root's documents are looked at: the signed checkpoint says that the
        others were let in."""
        if entry.type in _DOCUMENTS:
            for wrong in self.replayed.grounds.check(entry, None, self.replayed.state):
                raise ValueError(str(wrong))
        apply(self.replayed.state, entry)
        if entry.seq > self._after:
            self.behind.append(entry)


def _bodies(source: Source, size: int) -> Iterator[bytes]:
    try:
        yield from entry_bodies(source.get, 0, size)
    except FetchError as error:
        if error.http_status not in (200, 404):
            raise
        raise RestoreRefused("copy_incomplete", f"{source.name}: {error}") from error


def _signed(source: Source, note: str, replayed: Replay) -> Checkpoint:
    """The checkpoint, signed by a ledger key that the newest of the root's documents among the entries names."""
    documents = replayed.grounds.documents
    jwks = documents[max(documents)].ledger_keys if documents else ()
    try:
        return read_checkpoint(note, replayed.grounds.domain or "", jwks)
    except DocumentRefused as error:
        raise RestoreRefused("copy_not_signed", f"{source.name}: {error}") from error
