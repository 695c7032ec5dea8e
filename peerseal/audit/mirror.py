"""Keeps a copy of a registry's public ledger in a folder, under the paths that the registry has them.

Only what was verified is written: entries that lead from the copy to a checkpoint that a ledger key of the pinned root
signed. So another history never takes the place of the one that is kept, and any web server can show the folder. Where
the root declares that history lost, it is put aside, and the copy begins again.
"""

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peerseal.audit.ledger_reader import CHECKPOINT, Follower, Seen, bodies
from peerseal.errors import ConfigurationError, DocumentRefused, FetchError
from peerseal.protocol.ledger.checkpoint import TILE_WIDTH, claimed_checkpoint, encode_bundle, tile_path
from peerseal.protocol.ledger.merkle import Frontier, leaf_hash
from peerseal.runtime.files import Access, Folder
from peerseal.runtime.trusted_path import Opened

log = logging.getLogger("peerseal.keep")


class KeptLedger:
    """The copy in a folder, which is made where it is missing. The time of its checkpoint is when that was seen."""

    def __init__(self, folder: Path) -> None:
        self._path = folder
        self._folder = Folder(folder, access=Access.READABLE, mode=0o755)
        self._edge: Frontier | None = None
        self._not_before = 0.0

    def follow(self, follower: Follower) -> int:
        """Take over what is new; the copy's size then. Raises FetchError or DocumentRefused, and nothing is changed;
        DocumentRefused also where the copy itself is damaged, ConfigurationError where it cannot be written."""
        try:
            with self._alone():
                before = self._edge or self._read_edge()
                try:
                    seen = follower.read(before, lambda _: True)
                except DocumentRefused as error:
                    before, seen = Frontier(), self._after_loss(follower, before, error)
                if seen.note and seen.edge.size > before.size:
                    self._write(before.size, seen)
                self._edge = seen.edge
                return seen.edge.size
        except OSError as error:
            raise ConfigurationError(f"{self._path}: {error.strerror}") from error

    def _after_loss(self, follower: Follower, before: Frontier, error: DocumentRefused) -> Seen:
        """The whole ledger, where the root says that it goes on from another head. What was kept of the lost one is put
        aside, for nobody else may have it. Raises the error where the root does not."""
        inconsistent = error.code == "document_inconsistent" and before.size > 0
        excused = follower.given_up(before, self._seen_at()) if inconsistent else None
        if excused is None:
            raise error
        seen = follower.read(Frontier(), lambda _: True, (excused.common, excused.new))
        aside = self._path / f"lost-{before.size}-{before.root.hex()[:16]}"
        aside.mkdir(mode=0o755)
        (self._path / "ledger").rename(aside / "ledger")
        self._not_before = excused.seen_at
        log.warning("the root gave up the ledger that was kept (%s entries, now in %s)", before.size, aside)
        return seen

    def _seen_at(self) -> float:
        folder, name = self._at(CHECKPOINT)
        return folder.stat(name).st_mtime

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One at a time: a first copy may take longer than the time to the next run."""
        lock = Opened(self._folder.open(".lock", os.O_CREAT | os.O_RDWR))
        try:
            fcntl.flock(lock.fd, fcntl.LOCK_EX)
            yield
        finally:
            lock.unlock()

    def _read_edge(self) -> Frontier:
        """What is there, from its first entry on."""
        try:
            note = self._get(CHECKPOINT)
        except FetchError:
            return Frontier()
        kept, edge = claimed_checkpoint(note.decode("utf-8", "replace")), Frontier()
        for body in bodies(self._get, 0, kept.size):
            edge = edge.appended(leaf_hash(body))
        if edge.root != kept.root:
            raise DocumentRefused("document_malformed", f"{self._path}: its entries do not lead to its checkpoint")
        return edge

    def _write(self, size: int, seen: Seen) -> None:
        """Bundles first: whoever reads meanwhile finds all that the checkpoint speaks of."""
        first = size // TILE_WIDTH
        started = list(bodies(self._get, first * TILE_WIDTH, size))
        new = started + [entry.encode() for entry in seen.entries]
        for at in range(0, len(new), TILE_WIDTH):
            bundle = new[at : at + TILE_WIDTH]
            number = first + at // TILE_WIDTH
            self._put(f"ledger/{tile_path('entries', number, len(bundle))}", encode_bundle(bundle))
        self._put(CHECKPOINT.lstrip("/"), seen.note.encode(), modified_at=max(time.time(), self._not_before))
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
        """The folder of a path of the registry's, and the file's name in it."""
        *above, name = path.strip("/").split("/")
        folder = self._folder
        for part in above:
            folder = folder.inner(part)
        return folder, name


def read_in(folder: Path, path: str) -> bytes:
    """What a copy in a folder has under a path of the registry's. Raises FetchError as for a 404."""
    try:
        return (folder / path.lstrip("/")).read_bytes()
    except OSError as error:
        raise FetchError(f"{folder}{path}: {error.strerror}", 404) from error
