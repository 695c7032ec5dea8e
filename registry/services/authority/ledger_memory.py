"""What a host remembers of the ledger, beside its keys and outside the database: the newest head that it has seen.

A database may lose what it acknowledged: it came back from a backup, or an asynchronous replica was promoted. The
ledger in it is whole by itself. Only a memory outside of it tells that it is not the ledger that clients have seen.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from peerseal.errors import ConfigurationError, MalformedToken
from peerseal.protocol.documents.history_statement import Head
from peerseal.protocol.encoding import canonical_json, strict_json_object
from peerseal.protocol.numbers import natural
from peerseal.protocol.tokens.claims import claim, time_claim
from peerseal.runtime.files import Access, Folder

log = logging.getLogger(__name__)

FILE: Final = "ledger-head"
EARLIER_FILE: Final = "ledger-size"
"""What releases before this one remembered: the size alone."""
HEADS_KEPT: Final = 64
"""Earlier heads in the file, the older ones further apart: the last one that a ledger still has is where it forked."""
_LARGEST: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Remembered:
    """The newest head, the checkpoint that signs it where there is one, when it was seen (seconds since the epoch), and
    heads from before, oldest first. ``head`` is None where an earlier release remembered a ``size`` and no root.
    ``declared_at`` is when the root, or an operator of this host, last said which ledger goes on; 0 for never."""

    size: int
    head: Head | None = None
    note: str | None = None
    seen_at: int = 0
    before: Sequence[Head] = ()
    declared_at: int = 0

    def followed_by(self, head: Head, note: str | None, seen_at: int, declared_at: int) -> "Remembered":
        """The memory after a newer head was seen."""
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
            raise MalformedToken("the checkpoint is no text")
        return cls(head.size, head, note, time_claim(members, "seen_at"), before, time_claim(members, "declared_at"))


class LedgerMemory:
    """The file in the folder ``home``, for all processes of the host."""

    def __init__(self, home: Path) -> None:
        self._home = Folder(home, "REGISTRY_HOME", access=Access.COMMON, mode=None)
        self.file = home / FILE
        self._told = False

    def read(self) -> Remembered | None:
        """What is remembered; None where nothing is. Raises ConfigurationError for a file that cannot be read: that is
        no reason to forget it."""
        try:
            return Remembered.from_json(strict_json_object(self._home.read(FILE, _LARGEST)))
        except FileNotFoundError:
            return self._of_earlier_release()
        except (OSError, MalformedToken) as error:
            raise ConfigurationError(f"{self.file} does not say which ledger was seen: {error}") from error

    def _of_earlier_release(self) -> Remembered | None:
        file = self.file.with_name(EARLIER_FILE)
        try:
            size = natural(self._home.read(EARLIER_FILE, 64).decode("ascii").strip())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{file} does not say how far the ledger reached: {error}") from error
        if size is None:
            raise ConfigurationError(f"{file} does not say how far the ledger reached: it holds no natural number")
        return Remembered(size)

    def replace(self, remembered: Remembered) -> None:
        """Writes the file whole or not at all, also when the power fails: an empty file would lock the host out. Raises
        ConfigurationError where the file cannot be written."""
        try:
            self._home.write(FILE, canonical_json(remembered.to_json()))
        except OSError as error:
            raise ConfigurationError(f"{self.file} cannot be written: {error.strerror}") from error

    def write(self, remembered: Remembered) -> None:
        """Does the same. A host that cannot write logs that once, and remembers nothing."""
        try:
            self.replace(remembered)
            self._told = False
        except ConfigurationError as error:
            if not self._told:
                self._told = True
                log.warning("which ledger was seen cannot be remembered: %s", error)
