"""The newest checkpoint on disk, so that a restart does not make a client believe a shorter or another history.

There is one file for each trust domain and root key, shared by all processes of the host that use the folder. It holds
a signed note and nothing else: each reader checks the signature, so a user who can write it can at most make the
checkpoint be forgotten. The file's time is when the checkpoint was seen. Where the root replaced the ledger that was
seen before, a second file names the head from which the ledger goes on (`peerseal.trust.replaced_ledger`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peerseal.protocol.ledger.checkpoint import MAX_NOTE_BYTES
from peerseal.runtime.files import Folder

_PATIENCE = 0.5
"""Seconds to wait for another process. It needs microseconds; one that was stopped must not hold up others."""


class CheckpointFile:
    """The file in ``folder`` for a ``domain`` and its root key's thumbprint ``pin``. All methods raise OSError or
    ConfigurationError."""

    def __init__(self, folder: Folder, domain: str, pin: str) -> None:
        self._folder = folder
        self._name = f"ledger-{domain}-{pin}.checkpoint"
        self._history = f"ledger-{domain}-{pin}.history"

    @property
    def path(self) -> Path:
        """Of the file, for messages."""
        return self._folder.shown / self._name

    def read(self) -> tuple[str | None, float, str]:
        """The note, not verified, when it was seen (seconds since the epoch), and the name of the declared head; None
        for the note where there is none. Bytes that are no text become signs that no note has."""
        try:
            note, seen_at = self._folder.read_dated(self._name, MAX_NOTE_BYTES + 1)
        except FileNotFoundError:
            return None, 0.0, ""
        return note.decode("utf-8", "replace"), seen_at, self._read_history()

    def _read_history(self) -> str:
        try:
            return self._folder.read(self._history, 128).decode("ascii", "replace")
        except FileNotFoundError:
            return ""

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the one process and thread that changes the file. Raises TimeoutError, an OSError."""
        with self._folder.locked(self.path.with_suffix(".lock").name, wait=_PATIENCE) as locked:
            if not locked:
                raise TimeoutError("another process holds the lock")
            yield

    def replace(self, note: str, seen_at: float, history: str = "") -> None:
        """Put another note in place in one step, mode 0600: a reader, or a host that loses power, sees the old one or
        the new one. Call it with the file locked."""
        if history != self._read_history():
            self._folder.write(self._history, history.encode("ascii"))
        self._folder.write(self._name, note.encode("utf-8"), modified_at=seen_at)
