"""The newest head of the ledger that a host has seen, in a file next to its keys, outside of the database.

A database may lose entries that it acknowledged: after a restore from a backup, or the promotion of an asynchronous
replica. Its ledger is consistent in itself. Only a memory outside of it shows that clients have seen another ledger.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from peerseal.errors import ConfigurationError, MalformedToken
from peerseal.protocol.documents.history_statement import Head
from peerseal.protocol.encoding import canonical_json, natural, strict_json_object
from peerseal.protocol.tokens.claims import claim, time_claim
from peerseal.runtime.files import Access, Folder

log = logging.getLogger(__name__)

FILE: Final = "ledger-head"
EARLIER_FILE: Final = "ledger-size"
"""The file of earlier releases, which holds only the size."""
HEADS_KEPT: Final = 64
"""Earlier heads in the file, the older ones further apart: the newest one that a forked ledger has bounds the fork."""
_LARGEST: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Remembered:
    """The newest head, its checkpoint if it was signed, the time when it was seen (seconds since the epoch), and
    earlier heads, oldest first. ``head`` is None where an earlier release wrote only the ``size``. ``declared_at`` is
    the time when the root, or an operator of this host, last declared the ledger to follow; 0 for never."""

    size: int
    head: Head | None = None
    note: str | None = None
    seen_at: int = 0
    before: Sequence[Head] = ()
    declared_at: int = 0

    def followed_by(self, head: Head, note: str | None, seen_at: int, declared_at: int) -> "Remembered":
        """The memory with a newer head."""
        before = [*self.before, *([self.head] if self.head is not None and self.head.size else [])]
        if len(before) > HEADS_KEPT:
            half = HEADS_KEPT // 2
            before = [*before[:-half:2], *before[-half:]]
        return Remembered(head.size, head, note, seen_at, tuple(before), declared_at)

    def to_json(self) -> dict[str, Any]:
        """The file's content."""
        head = None if self.head is None else self.head.to_json()
        before = [one.to_json() for one in self.before]
        times = {"seen_at": self.seen_at, "declared_at": self.declared_at}
        return {"head": head, "checkpoint": self.note, "before": before, **times}

    @classmethod
    def from_json(cls, members: dict[str, Any]) -> "Remembered":
        """Back again. Raises MalformedToken."""
        head = Head.from_json(claim(members, "head", dict))
        before = tuple(Head.from_json(one) for one in claim(members, "before", list))
        note = members.get("checkpoint")
        if note is not None and type(note) is not str:
            raise MalformedToken(f"the checkpoint is {type(note).__name__}, it must be text")
        return cls(head.size, head, note, time_claim(members, "seen_at"), before, time_claim(members, "declared_at"))


class LedgerMemory:
    """The file in the folder ``home``, for all processes of the host."""

    def __init__(self, home: Path) -> None:
        self._home = Folder(home, "REGISTRY_HOME", access=Access.COMMON, mode=None)
        self.file = home / FILE
        self._told = False

    def read(self) -> Remembered | None:
        """The memory; None where there is none. Raises ConfigurationError for a file that cannot be read: it must not
        count as none."""
        try:
            return Remembered.from_json(strict_json_object(self._home.read(FILE, _LARGEST)))
        except FileNotFoundError:
            return self._of_earlier_release()
        except (OSError, MalformedToken) as error:
            raise ConfigurationError(f"{self.file} does not show which ledger was seen: {error}") from error

    def _of_earlier_release(self) -> Remembered | None:
        file = self.file.with_name(EARLIER_FILE)
        try:
            size = natural(self._home.read(EARLIER_FILE, 64).decode("ascii").strip())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{file} does not show the size of the ledger: {error}") from error
        if size is None:
            raise ConfigurationError(f"{file} holds no natural number, so the size of the ledger is unknown")
        return Remembered(size)

    def replace(self, remembered: Remembered) -> None:
        """Writes the file atomically, also against a power failure: an empty file would lock the host out. Raises
        ConfigurationError where it cannot be written."""
        try:
            self._home.write(FILE, canonical_json(remembered.to_json()))
        except OSError as error:
            raise ConfigurationError(f"{self.file} cannot be written: {error.strerror}") from error

    def write(self, remembered: Remembered) -> None:
        """Writes the file. A failure is logged once."""
        try:
            self.replace(remembered)
            self._told = False
        except ConfigurationError as error:
            if not self._told:
                self._told = True
                log.warning("the head of the ledger cannot be remembered: %s", error)
