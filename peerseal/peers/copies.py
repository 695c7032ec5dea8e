"""Copies of signed documents on disk, which the processes of one host share and which outlive them.

A cold start goes on from here when the registry is down, and of many workers one fetches for all. The folder needs no
trust: whoever reads a copy checks it like an answer of the registry's. When a document was fetched, which is the
file's time, says only when it is to be fetched again; how long it is believed is its own signed time. What can be
written on the folder's disk by others is another matter (`make_private`): they could at most bring back an older copy,
with an older word of what was seen, and make it believed until its signed time is over.
"""

import fcntl
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from peerseal.errors import ConfigurationError
from peerseal.peers.keyfolder import make_private
from peerseal.peers.patience import time_left
from peerseal.protocol.documents import MAX_DOCUMENT
from peerseal.protocol.numbers import natural

log = logging.getLogger("peerseal.trust")

_PAUSE = 0.005
_SEEN = ".seen"
_MISSED = ".missed"
_TEMPORARY = ".new-"


@dataclass(frozen=True, slots=True)
class Copy:
    """A document as it was fetched, and when (seconds since the epoch)."""

    jws: str = field(repr=False)
    fetched_at: float


class CopyFolder:
    """The folder for one registry's documents: a subfolder ``name`` of ``parent``, made on first use.

    But for `made` no method raises: trouble with a disk is logged once, and then there are no copies.
    """

    FORGET_AFTER = 2 * 24 * 3600.0
    """Seconds after which a file that nobody renewed is removed: the document in it has expired."""
    PATIENCE = 15.0
    """Seconds to wait for another process that fetches the same, at most, and no more than half of what there is; then
    each fetches for itself."""

    def __init__(self, parent: Path, name: str) -> None:
        self._parent = parent
        self._path = parent / name
        self._ready = False
        self._works = True

    def read(self, name: str) -> Copy | None:
        """The copy under that name, not verified; None where there is none."""
        with self._complaining(), suppress(FileNotFoundError), (self.made() / name).open("rb") as file:
            content, fetched_at = file.read(MAX_DOCUMENT + 1), os.fstat(file.fileno()).st_mtime
            return Copy(content.decode("ascii", "replace"), fetched_at)
        return None

    def fetched_at(self, name: str) -> float:
        """When the copy under that name was fetched; 0.0 where there is none."""
        with self._complaining(), suppress(FileNotFoundError):
            return (self.made() / name).stat().st_mtime
        return 0.0

    def lacks(self, name: str) -> bool:
        """Whether a copy under that name is wanted, and not there."""
        return self.fetched_at(name) == 0.0

    def write(self, name: str, jws: str, fetched_at: float) -> None:
        """Put a copy in place in one step, mode 0600: a reader sees the old one or the new one. Where the new one finds
        no room the old one goes: it may be from before a revocation."""
        with self._complaining():
            try:
                self._put(self.made() / name, jws, fetched_at)
            except OSError:
                with suppress(OSError):
                    (self._path / name).unlink()
                raise

    def _put(self, path: Path, text: str, modified_at: float) -> None:
        descriptor, draft = tempfile.mkstemp(dir=self._path, prefix=_TEMPORARY)  # 0600
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(text)
            os.utime(draft, (modified_at, modified_at))
            os.replace(draft, path)
        except BaseException:
            os.unlink(draft)
            raise

    def confirm(self, name: str, fetched_at: float) -> None:
        """The registry was asked then, and had no newer document."""
        with suppress(OSError):
            os.utime(self._path / name, (fetched_at, fetched_at))

    def seen(self, name: str) -> int:
        """The highest ``seq`` of the document under that name that this host has seen; 0 where that is not known."""
        copy = self.read(name + _SEEN)
        return natural(copy.jws) or 0 if copy else 0

    def saw(self, name: str, seq: int) -> None:
        """Remember the ``seq`` of the newest document, so that no older copy takes its place. With the name locked."""
        self.write(name + _SEEN, str(max(seq, self.seen(name))), time.time())

    def missed(self, name: str, at: float) -> None:
        """The registry was asked then for a key that the document does not have."""
        self.write(name + _MISSED, "", at)

    def missed_at(self, name: str) -> float:
        """When it was last asked for such a key in vain, by any process of the host; 0.0 where it never was."""
        return self.fetched_at(name + _MISSED)

    @contextmanager
    def locked(self, name: str) -> Iterator[bool]:
        """Be the only process of the host that fetches the document, or no longer wait for the one that does: then it
        gives False."""
        handle, alone = None, False
        with self._complaining():
            self.made()
            handle = os.open(self._path / f"{name}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            alone = _had(handle, min(self.PATIENCE, time_left() / 2))  # and the rest is for fetching
        try:
            yield alone
        finally:
            if handle is not None:
                fcntl.flock(handle, fcntl.LOCK_UN)  # closing would not do: a child forked meanwhile has it open too
                os.close(handle)

    def made(self) -> Path:
        """The folder, which is there and nobody else's. Raises OSError or ConfigurationError."""
        if not self._ready:
            self._make()
        return self._path

    def _make(self) -> None:
        make_private(self._parent, readable=True)
        make_private(self._path)
        self._ready = True
        forgotten = time.time() - self.FORGET_AFTER
        for file in self._path.iterdir():
            with suppress(OSError):
                if file.stat().st_mtime < forgotten:
                    file.unlink()

    @contextmanager
    def _complaining(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ConfigurationError) as error:
            self._ready = False  # somebody may have removed it: the next one makes it again
            if self._works:
                log.warning("no copies of documents can be kept in %s: %s", self._path, error)
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

    def lacks(self, name: str) -> bool:
        """See CopyFolder."""
        return False

    def write(self, name: str, jws: str, fetched_at: float) -> None:
        """See CopyFolder."""

    def confirm(self, name: str, fetched_at: float) -> None:
        """See CopyFolder."""

    def saw(self, name: str, seq: int) -> None:
        """See CopyFolder."""

    @contextmanager
    def locked(self, name: str) -> Iterator[bool]:
        """See CopyFolder."""
        yield True


def _had(handle: int, patience: float) -> bool:
    """Whether the lock on the open file was had in time."""
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(_PAUSE)
        else:
            return True
