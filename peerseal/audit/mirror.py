"""Mirrors a registry's public ledger in a folder, under the registry's own paths.

Only verified entries are written: they lead from the mirror's last checkpoint to one that a ledger key of the pinned
root signed. So another history never replaces the mirrored one, and any web server can serve the folder. Where the root
declares the mirrored history lost, the mirror moves it to a folder of its own and begins again.
"""

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from peerseal.audit.ledger_reader import TELLS_OF_A_LOSS, LedgerReader, LedgerUpdate, entry_bodies
from peerseal.audit.public_files import AnswersFromFiles, PublicFiles
from peerseal.errors import ConfigurationError, DocumentRefused, FetchError
from peerseal.protocol.ledger.checkpoint import (
    CHECKPOINT_PATH,
    TILE_HEIGHT,
    TILE_WIDTH,
    encode_bundle,
    parse_checkpoint,
    tile_path,
    tile_root,
)
from peerseal.protocol.ledger.entries import Entry
from peerseal.protocol.ledger.merkle import HASH_SIZE, Frontier, NodeReader, leaf_hash
from peerseal.trust.tile_proofs import nodes_from_tiles

log = logging.getLogger("peerseal.keep")

_KEPT_FOR = 600.0
"""Seconds for which the files of an older checkpoint stay: a reader has read it and asks for them now."""


class LedgerMirror:
    """The mirror in a folder, which is made where it is missing. The checkpoint file's time says when it was seen.
    ``losses`` counts how often the mirrored history was given up; the documents below ``v1`` go with it."""

    def __init__(self, folder: Path, see: Callable[[Entry], None] = lambda _: None) -> None:
        """``see`` is called with each entry, those on disk first, and again from the first after a loss."""
        self._path = folder
        self._files = PublicFiles(folder)
        self._see = see
        self._edge: Frontier | None = None
        self._not_before = 0.0
        self.losses = 0

    def update(self, reader: LedgerReader) -> int:
        """Add what is new, and give the mirror's size. Raises FetchError or DocumentRefused, and then nothing
        changes; DocumentRefused also where the mirror itself is damaged. Raises ConfigurationError where it cannot
        be written."""
        try:
            with self._files.folder.locked(".lock"):  # a first run may take longer than the interval to the next
                before = self._edge or self._read_edge()
                try:
                    update = reader.read(before, lambda _: True, held=self._nodes(before.size))
                except DocumentRefused as error:
                    before, update = Frontier(), self._after_loss(reader, before, error)
                if update.note and update.edge.size > before.size:
                    self._write(before.size, update)
                    for entry in update.entries:
                        self._see(entry)
                self._edge = update.edge
                return update.edge.size
        except OSError as error:
            raise ConfigurationError(f"{self._path}: {error.strerror}") from error

    def _after_loss(self, reader: LedgerReader, before: Frontier, error: DocumentRefused) -> LedgerUpdate:
        """The whole ledger, where the root declared that it goes on from another head. The lost history moves to its
        own folder: this may be its only copy. Raises the error where the root declared nothing."""
        may_be_lost = error.code in TELLS_OF_A_LOSS and before.size > 0
        excused = reader.excused(before, self._seen_at()) if may_be_lost else None
        if excused is None:
            raise error
        update = reader.read(Frontier(), lambda _: True, (excused.common, excused.new))
        aside = self._path / f"lost-{before.size}-{before.root.hex()[:16]}"
        aside.mkdir(mode=0o755, exist_ok=True)
        for name in ("v1", "ledger"):  # the ledger last: while it is there, a process that starts again does this again
            if (self._path / name).exists():
                (self._path / name).rename(aside / name)
        self._edge = Frontier()  # also where the new history cannot be written yet
        self.losses += 1
        self._not_before = excused.seen_at
        log.warning("the root gave up the ledger that was kept (%s entries, now in %s)", before.size, aside)
        return update

    def _nodes(self, size: int) -> NodeReader:
        """The nodes of the mirrored tree, of that size."""
        return nodes_from_tiles(AnswersFromFiles(self._files), size)

    def _seen_at(self) -> float:
        folder, name = self._files.at(CHECKPOINT_PATH)
        return folder.stat(name).st_mtime

    def _read_edge(self) -> Frontier:
        """The right edge, computed from the first entry on."""
        try:
            note = self._files.get(CHECKPOINT_PATH)
        except FetchError:
            return Frontier()
        kept, edge = parse_checkpoint(note.decode("utf-8", "replace")), Frontier()
        leaves = list[bytes]()
        for body in entry_bodies(self._files.get, 0, kept.size):
            leaves.append(leaf_hash(body))
            edge = edge.appended(leaves[-1])
            self._see(Entry.decode(body))
        if edge.root != kept.root:
            raise DocumentRefused("document_malformed", f"{self._path}: its entries do not lead to its checkpoint")
        if kept.size and not self._has_tiles(kept.size):
            self._write_tiles(0, leaves)  # of a release before 0.4, which kept bundles only
        return edge

    def _has_tiles(self, size: int) -> bool:
        number, width = (size - 1) // TILE_WIDTH, (size - 1) % TILE_WIDTH + 1
        try:
            self._files.get(f"ledger/{tile_path(0, number, width)}")
        except FetchError:
            return False
        return True

    def _write(self, size: int, update: LedgerUpdate) -> None:
        """Bundles and tiles first: a reader finds everything that the checkpoint covers."""
        bodies = [entry.encode() for entry in update.entries]
        first = size // TILE_WIDTH
        new = [*entry_bodies(self._files.get, first * TILE_WIDTH, size), *bodies]
        for at in range(0, len(new), TILE_WIDTH):
            bundle = new[at : at + TILE_WIDTH]
            number = first + at // TILE_WIDTH
            self._files.put(f"ledger/{tile_path('entries', number, len(bundle))}", encode_bundle(bundle))
        self._write_tiles(size, [leaf_hash(body) for body in bodies])
        checkpoint = CHECKPOINT_PATH.lstrip("/")
        self._files.put(checkpoint, update.note.encode(), modified_at=max(time.time(), self._not_before))
        self._prune("entries", first)
        for level in range(_levels(size)):
            self._prune(level, (size >> TILE_HEIGHT * level) // TILE_WIDTH)

    def _write_tiles(self, size: int, leaves: Sequence[bytes]) -> None:
        """Write the tiles that change as the tree of that size grows by these leaves, level by level: the root of each
        tile that is filled is a hash of the level above."""
        level, before, hashes = 0, size, leaves
        while hashes:
            first, width = before // TILE_WIDTH, before % TILE_WIDTH
            kept = self._files.get(f"ledger/{tile_path(level, first, width)}") if width else b""
            row, filled = kept + b"".join(hashes), list[bytes]()
            for at in range(0, len(row), TILE_WIDTH * HASH_SIZE):
                tile = row[at : at + TILE_WIDTH * HASH_SIZE]
                number = first + at // (TILE_WIDTH * HASH_SIZE)
                self._files.put(f"ledger/{tile_path(level, number, len(tile) // HASH_SIZE)}", tile)
                if len(tile) == TILE_WIDTH * HASH_SIZE:
                    filled.append(tile_root(tile))
            level, before, hashes = level + 1, before >> TILE_HEIGHT, filled

    def _prune(self, level: int | str, newest: int) -> None:
        """Remove the partial files of the newest tile and the one before it that no reader of an older checkpoint needs
        any more: a wider file has all that they have."""
        for number in range(max(0, newest - 1), newest + 1):
            whole, whole_name = self._files.at(f"ledger/{tile_path(level, number)}")
            partial, _ = self._files.at(f"ledger/{tile_path(level, number, 1)}")
            widths = sorted((int(width) for width in partial.names() if width.isdigit()), reverse=True)
            for width in widths if whole_name in whole.names() else widths[1:]:
                if partial.stat(str(width)).st_mtime < time.time() - _KEPT_FOR:
                    partial.remove(str(width))


def _levels(size: int) -> int:
    """The number of levels of tiles of a tree of that size."""
    return max(1, -(-size.bit_length() // TILE_HEIGHT))


def read_mirrored(folder: Path, path: str) -> bytes:
    """What a mirror has under a path of the registry. Raises FetchError as for a 404."""
    try:
        return (folder / path.lstrip("/")).read_bytes()
    except OSError as error:
        raise FetchError(f"{folder}{path}: {error.strerror}", 404) from error
