"""The newest checkpoint on disk, so that a restart does not make a client believe a shorter or another history.

One file a trust domain and root key, shared by all processes of the host that use the folder. It holds a signed note
and nothing else: whoever reads it checks the signature, and whoever can write it can at most make it be forgotten.
"""

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peerseal.peers.keyfolder import make_private
from peerseal.protocol.checkpoint import MAX_NOTE_BYTES

_PATIENCE = 0.5
"""Seconds to wait for another process, which needs some microseconds; one that was stopped must hold up nobody."""
_PAUSE = 0.01


class CheckpointFile:
    """The file in ``folder`` (made on first use) for a ``domain`` and its root key's thumbprint ``pin``. All methods
    raise OSError; ConfigurationError where others could change the folder."""

    def __init__(self, folder: Path, domain: str, pin: str) -> None:
        self.path = folder / f"ledger-{domain}-{pin}.checkpoint"

    def read(self) -> str | None:
        """The note, not verified; None where there is none. Bytes that are no text read as signs that no note has."""
        try:
            with self.path.open("rb") as file:
                return file.read(MAX_NOTE_BYTES + 1).decode("utf-8", "replace")
        except FileNotFoundError:
            return None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the one process and thread that changes the file. Raises TimeoutError, an OSError."""
        make_private(self.path.parent, readable=True)
        handle = os.open(self.path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            self._wait_for(handle)
            yield
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)  # closing would not do: a child forked meanwhile has it open too
            os.close(handle)

    def replace(self, note: str) -> None:
        """Put another note in place in one step, mode 0600: a reader, or a host that loses power, sees the old one or
        the new one. Call it with the file locked."""
        descriptor, name = tempfile.mkstemp(dir=self.path.parent, prefix=".ledger-")  # 0600
        try:
            with os.fdopen(descriptor, "wb") as new:
                new.write(note.encode("utf-8"))
                new.flush()
                os.fsync(new.fileno())
            os.replace(name, self.path)
        except BaseException:
            os.unlink(name)
            raise

    @staticmethod
    def _wait_for(handle: int) -> None:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError("another process holds the lock") from None
                time.sleep(_PAUSE)
