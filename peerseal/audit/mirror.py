"""Mirrors a registry's public ledger in a folder, under the registry's own paths.

Only verified entries are written: they lead from the mirror's last checkpoint to one that a ledger key of the pinned
root signed. So another history never replaces the mirrored one, and any web server can serve the folder. Where the root
declares the mirrored history lost, the mirror moves it to a folder of its own and begins again.
"""

import logging
import time
from pathlib import Path

from peerseal.audit.ledger_reader import LedgerReader, LedgerUpdate, entry_bodies
from peerseal.errors import ConfigurationError, DocumentRefused, FetchError
from peerseal.protocol.ledger.checkpoint import (
    CHECKPOINT_PATH,
    TILE_WIDTH,
    encode_bundle,
    parse_checkpoint,
    tile_path,
)
from peerseal.protocol.ledger.merkle import Frontier, leaf_hash
from peerseal.runtime.files import Access, Folder

log = logging.getLogger("peerseal.keep")


class LedgerMirror:
    """The mirror in a folder, which is made where it is missing. The checkpoint file's time says when it was seen."""

    def __init__(self, folder: Path) -> None:
        self._path = folder
        self._folder = Folder(folder, access=Access.READABLE, mode=0o755)
        self._edge: Frontier | None = None
        self._not_before = 0.0

    def update(self, reader: LedgerReader) -> int:
        """Add what is new, and give the mirror's size. Raises FetchError or DocumentRefused, and then nothing
        changes; DocumentRefused also where the mirror itself is damaged. Raises ConfigurationError where it cannot
        be written."""
        try:
            with self._folder.locked(".lock"):  # a first run may take longer than the interval to the next
                before = self._edge or self._read_edge()
                try:
                    update = reader.read(before, lambda _: True)
                except DocumentRefused as error:
                    before, update = Frontier(), self._after_loss(reader, before, error)
                if update.note and update.edge.size > before.size:
                    self._write(before.size, update)
                self._edge = update.edge
                return update.edge.size
        except OSError as error:
            raise ConfigurationError(f"{self._path}: {error.strerror}") from error

    def _after_loss(self, reader: LedgerReader, before: Frontier, error: DocumentRefused) -> LedgerUpdate:
        """The whole ledger, where the root declared that it goes on from another head. The lost history moves to its
        own folder: this may be its only copy. Raises the error where the root declared nothing."""
        inconsistent = error.code == "document_inconsistent" and before.size > 0
        excused = reader.excused(before, self._seen_at()) if inconsistent else None
        if excused is None:
            raise error
        update = reader.read(Frontier(), lambda _: True, (excused.common, excused.new))
        aside = self._path / f"lost-{before.size}-{before.root.hex()[:16]}"
        aside.mkdir(mode=0o755)
        (self._path / "ledger").rename(aside / "ledger")
        self._not_before = excused.seen_at
        log.warning("the root gave up the ledger that was kept (%s entries, now in %s)", before.size, aside)
        return update

    def _seen_at(self) -> float:
        folder, name = self._at(CHECKPOINT_PATH)
        return folder.stat(name).st_mtime

    def _read_edge(self) -> Frontier:
        """The right edge, computed from the first entry on."""
        try:
            note = self._get(CHECKPOINT_PATH)
        except FetchError:
            return Frontier()
        kept, edge = parse_checkpoint(note.decode("utf-8", "replace")), Frontier()
        for body in entry_bodies(self._get, 0, kept.size):
            edge = edge.appended(leaf_hash(body))
        if edge.root != kept.root:
            raise DocumentRefused("document_malformed", f"{self._path}: its entries do not lead to its checkpoint")
        return edge

    def _write(self, size: int, update: LedgerUpdate) -> None:
        """Bundles first: a reader finds every entry that the checkpoint covers."""
        first = size // TILE_WIDTH
        started = list(entry_bodies(self._get, first * TILE_WIDTH, size))
        new = started + [entry.encode() for entry in update.entries]
        for at in range(0, len(new), TILE_WIDTH):
            bundle = new[at : at + TILE_WIDTH]
            number = first + at // TILE_WIDTH
            self._put(f"ledger/{tile_path('entries', number, len(bundle))}", encode_bundle(bundle))
        self._put(CHECKPOINT_PATH.lstrip("/"), update.note.encode(), modified_at=max(time.time(), self._not_before))
        if size % TILE_WIDTH:
            last = self._at(f"ledger/{tile_path('entries', first, size % TILE_WIDTH)}")
            last[0].remove(last[1])

    def _put(self, path: str, content: bytes, modified_at: float | None = None) -> None:
        folder, name = self._at(path)
        folder.write(name, content, mode=0o644, durable=False, modified_at=modified_at)  # any web server may show it

    def _get(self, path: str) -> bytes:
        folder, name = self._at(path)
        try:
            return folder.read(name)
        except FileNotFoundError as error:
            raise FetchError(f"{self._path}{path}: {error.strerror}", 404) from error

    def _at(self, path: str) -> tuple[Folder, str]:
        """The folder for a path of the registry, and the file's name in it."""
        *above, name = path.strip("/").split("/")
        folder = self._folder
        for part in above:
            folder = folder.inner(part)
        return folder, name


def read_mirrored(folder: Path, path: str) -> bytes:
    """What a mirror has under a path of the registry. Raises FetchError as for a 404."""
    try:
        return (folder / path.lstrip("/")).read_bytes()
    except OSError as error:
        raise FetchError(f"{folder}{path}: {error.strerror}", 404) from error
