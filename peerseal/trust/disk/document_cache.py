"""Copies of signed documents on disk, which the processes of one host share and which outlive them.

A cold start uses them when the registry is down, and of many workers one fetches for all. The folder needs no trust:
each reader checks a copy like an answer of the registry. The file's time is when the document was fetched, which says
only when it is to be fetched again; its own signed time says how long it is believed. A user who could write there
could put back an older copy, and an older note of what was seen, and so have it believed until its signed time is over.
So the folder is one that others cannot change (`peerseal.runtime.files`). All locks are in one file, so that invented
names create no files.
"""

import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from peerseal.errors import ConfigurationError
from peerseal.protocol.documents.frame import MAX_DOCUMENT
from peerseal.protocol.encoding import natural
from peerseal.runtime.files import Folder, NameLock, cache_folder
from peerseal.transport.deadline import time_left

log = logging.getLogger("peerseal.trust")

_SEEN = ".seen"
_MISSED = ".missed"
_OURS = re.compile(
    r"(?:root|domain|federation|(?:keys|part|policy|current)-[a-z0-9.-]+)\.jwt(?:\.seen|\.missed|\.lock)?"
    r"|(?:un)?cosigned"
    r"|changes(?:\.lists|\.watched|\.answer(?:\.lock)?)?"
    r"|\.new-[a-z0-9_]+"
)
"""Names of files that are removed once they are old: those of this release, and lock files of earlier ones."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A document as it was fetched, and when (seconds since the epoch)."""

    jws: str = field(repr=False)
    fetched_at: float


class CopyFolder:
    """The folder for one registry's documents: a subfolder ``name`` of ``parent``, made on first use.

    Only `made` raises: the other methods log trouble with a disk once, and then there are no copies.
    """

    FORGET_AFTER = 2 * 24 * 3600.0
    """Seconds after which a file that was not renewed is removed: the document in it has expired."""
    PATIENCE = 15.0
    """Seconds to wait for another process that fetches the same, at most, and no more than half of the time that is
    left; then each fetches for itself."""

    def __init__(self, parent: Path, name: str) -> None:
        self._folder = cache_folder(parent).inner(name)
        self._ready = False
        self._works = True

    def read(self, name: str) -> Copy | None:
        """The copy under that name, not verified; None where there is none."""
        with self._complaining(), suppress(FileNotFoundError):
            content, fetched_at = self._folder.read_dated(name, MAX_DOCUMENT + 1)
            return Copy(content.decode("ascii", "replace"), fetched_at)
        return None

    def fetched_at(self, name: str) -> float:
        """When the copy under that name was fetched; 0.0 where there is none."""
        with self._complaining(), suppress(FileNotFoundError):
            return self._folder.stat(name).st_mtime
        return 0.0

    def wants_copy(self, name: str) -> bool:
        """Whether there is a folder for copies, and no copy under that name."""
        return self.fetched_at(name) == 0.0

    def write(self, name: str, jws: str, fetched_at: float) -> None:
        """Put a copy in place in one step, mode 0600: a reader sees the old one or the new one. Where the disk is full
        the old one is removed: it may be from before a revocation."""
        with self._complaining():
            try:
                self.made().write(name, jws.encode("ascii"), modified_at=fetched_at, durable=False)
            except (OSError, ConfigurationError):
                with suppress(OSError, ConfigurationError):
                    self._folder.remove(name)
                raise

    def keep(self, name: str, jws: str, seq: int, fetched_at: float) -> None:
        """Keep a document that was fetched then, for the other processes of the host and for those after a restart; and
        remember its ``seq``."""
        self.write(name, jws, fetched_at)
        self.write_seen(name, seq)

    def names(self, prefix: str) -> list[str]:
        """The documents whose names begin like that."""
        found: list[str] = []
        with self._complaining():
            found += [name for name in self._folder.names() if name.startswith(prefix) and name.endswith(".jwt")]
        return found

    def clear(self) -> None:
        """Remove every document but the root's, and the notes of what was seen: they belong to a lost ledger."""
        with self._complaining():
            for name in filter(_OURS.fullmatch, self._folder.names()):
                if not name.startswith("root.") and not name.endswith(".lock"):
                    with suppress(FileNotFoundError):
                        self._folder.remove(name)

    def confirm(self, name: str, fetched_at: float) -> None:
        """The registry was asked then, and had no newer document."""
        with suppress(OSError, ConfigurationError):
            self._folder.date(name, fetched_at)

    def read_seen(self, name: str) -> int:
        """The highest number of the document under that name that this host has seen: its ``seq``, unless its kind has
        another one. 0 where that is not known."""
        copy = self.read(name + _SEEN)
        return natural(copy.jws) or 0 if copy else 0

    def write_seen(self, name: str, seq: int) -> None:
        """Remember the ``seq`` of the newest document, so that no older copy takes its place. With the name locked."""
        self.write(name + _SEEN, str(max(seq, self.read_seen(name))), time.time())

    def write_missed(self, name: str, at: float) -> None:
        """The registry was asked then for a key that the document does not have."""
        self.write(name + _MISSED, "", at)

    def read_missed(self, name: str) -> float:
        """When a process of the host last asked for such a key in vain; 0.0 where none did."""
        return self.fetched_at(name + _MISSED)

    @contextmanager
    def locked(self, name: str) -> Iterator[bool]:
        """Be the only process of the host that fetches the document. It gives False where another process took too long
        over that."""
        lock, alone = None, False
        with self._complaining():
            lock = NameLock(self.made(), name)
            alone = lock.lock(wait=min(self.PATIENCE, time_left() / 2))  # half of the time is left for the fetch
        try:
            yield alone
        finally:
            if lock is not None:
                lock.close()

    def made(self) -> Folder:
        """The folder, which is there and this user's alone. Raises OSError or ConfigurationError."""
        if not self._ready:
            self._make()
        return self._folder

    def _make(self) -> None:
        self._folder.make()
        self._ready = True
        forgotten = time.time() - self.FORGET_AFTER
        for name in filter(_OURS.fullmatch, self._folder.names()):
            with suppress(OSError, ConfigurationError):
                if self._folder.stat(name).st_mtime < forgotten:
                    self._folder.remove(name)

    @contextmanager
    def _complaining(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ConfigurationError) as error:
            self._ready = False  # it may have been removed: the next use makes it again
            if self._works:
                log.warning("no copies of documents can be kept in %s: %s", self._folder.shown, error)
            self._works = False


class NoCopies(CopyFolder):
    """For a process without a folder."""

    def __init__(self) -> None:
        super().__init__(Path(os.devnull), "")

    def read(self, name: str) -> Copy | None:
        """See CopyFolder."""
        return None

    def fetched_at(self, name: str) -> float:
        """See CopyFolder."""
        return 0.0

    def wants_copy(self, name: str) -> bool:
        """See CopyFolder."""
        return False

    def write(self, name: str, jws: str, fetched_at: float) -> None:
        """See CopyFolder."""

    def names(self, prefix: str) -> list[str]:
        """See CopyFolder."""
        return []

    def clear(self) -> None:
        """See CopyFolder."""

    def confirm(self, name: str, fetched_at: float) -> None:
        """See CopyFolder."""

    def write_seen(self, name: str, seq: int) -> None:
        """See CopyFolder."""

    @contextmanager
    def locked(self, name: str) -> Iterator[bool]:
        """See CopyFolder."""
        yield True
