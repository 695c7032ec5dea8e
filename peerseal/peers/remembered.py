"""The newest checkpoint on disk, so that a restart does not make a client believe a shorter or another history.

One file a trust domain and root key, shared by all processes of the host that use the folder. It holds a signed note
and nothing else: whoever reads it checks the signature, and whoever can write it can at most make it be forgotten.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peerseal.protocol.checkpoint import MAX_NOTE_BYTES
from peerseal.runtime.files import Folder
from peerseal.runtime.trusted_path import Opened

_PATIENCE = 0.5
"""Seconds to wait for another process, which needs some microseconds; one that was stopped must hold up nobody."""
_PAUSE = 0.01


class CheckpointFile:
    """The file in ``folder`` for a ``domain`` and its root key's thumbprint ``pin``. All methods raise OSError or
    ConfigurationError."""

    def __init__(self, folder: Folder, domain: str, pin: str) -> None:
        self._folder = folder
        self._name = f"ledger-{domain}-{pin}.checkpoint"

    @property
    def path(self) -> Path:
        """Where it is, for messages."""
        return self._folder.shown / self._name

    def read(self) -> str | None:
        """The note, not verified; None where there is none. Bytes that are no text read as signs that no note has."""
        try:
            return self._folder.read(self._name, MAX_NOTE_BYTES + 1).decode("utf-8", "replace")
        except FileNotFoundError:
            return None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the one process and thread that changes the file. Raises TimeoutError, an OSError."""
        lock = Opened(self._folder.open(self.path.with_suffix(".lock").name, os.O_CREAT | os.O_RDWR))
        try:
            self._wait_for(lock.fd)
            yield
        finally:
            lock.unlock()

    def replace(self, note: str) -> None:
        """Put another note in place in one step, mode 0600: a reader, or a host that loses power, sees the old one or
        the new one. Call it with the file locked."""
        self._folder.write(self._name, note.encode("utf-8"))

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
