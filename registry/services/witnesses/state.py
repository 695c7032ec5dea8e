"""What the witnesses of a node have cosigned: one file in its home, for all worker processes of the node."""

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from peerseal.errors import ConfigurationError, DocumentRefused, MalformedToken
from peerseal.protocol.encoding import canonical_json, strict_json_object
from peerseal.protocol.ledger.checkpoint import MAX_NOTE_BYTES
from peerseal.protocol.ledger.cosignature import Note
from peerseal.protocol.tokens.claims import claim, number_claim, time_claim
from peerseal.runtime.files import Access, Folder, NameLock
from peerseal.runtime.times import rfc3339

log = logging.getLogger(__name__)

FILE: Final = "cosigned-checkpoint"
_LARGEST: Final = 2 * MAX_NOTE_BYTES


@dataclass(frozen=True, slots=True)
class WitnessState:
    """The newest checkpoint that a witness has cosigned: its ``size``, and when (``at``, seconds since the epoch).
    After ``failures`` submissions in a row that failed, the last of them at ``tried_at``, ``trouble`` says why."""

    size: int = 0
    at: int = 0
    failures: int = 0
    tried_at: int = 0
    trouble: str = ""

    def __str__(self) -> str:
        """For operators."""
        cosigned = f"cosigned {self.size} entries, at {rfc3339(self.at)}" if self.at else "has cosigned nothing"
        return f"{cosigned}; {self.failures} failure(s) since: {self.trouble}" if self.failures else cosigned

    @classmethod
    def read(cls, members: Any) -> "WitnessState":
        """From the file. Raises MalformedToken."""
        return cls(
            number_claim(members, "size"),
            time_claim(members, "at"),
            number_claim(members, "failures"),
            time_claim(members, "tried_at"),
            claim(members, "trouble", str),
        )


@dataclass(frozen=True, slots=True)
class QuorumState:
    """The quorum that the root names: ``needed`` of ``named`` witnesses. The newest checkpoint that they have cosigned
    has ``size`` entries, and they had cosigned it ``at`` that time; both are 0 where there is none. This node submits
    nothing to the witnesses in ``unasked``."""

    needed: int
    named: int
    size: int
    at: int
    unasked: tuple[str, ...]

    def __str__(self) -> str:
        """For operators."""
        cosigned = f"cosigned {self.size} entries, at {rfc3339(self.at)}" if self.at else "has cosigned nothing"
        unasked = f"; this node submits nothing to {', '.join(self.unasked)}" if self.unasked else ""
        return f"{self.needed} of {self.named}, {cosigned}{unasked}"


@dataclass(frozen=True, slots=True)
class Cosigned:
    """The newest checkpoint that enough witnesses have cosigned, with their lines, and each witness' state by name."""

    note: Note | None = None
    witnesses: Mapping[str, WitnessState] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The file's content."""
        note = None if self.note is None else written(self.note)
        return {"note": note, "witnesses": {name: asdict(state) for name, state in self.witnesses.items()}}

    @classmethod
    def from_json(cls, members: dict[str, Any]) -> "Cosigned":
        """Back again. Raises MalformedToken or DocumentRefused."""
        note, witnesses = members.get("note"), claim(members, "witnesses", dict)
        return cls(
            None if note is None else Note.parse(claim(members, "note", str)),
            {name: WitnessState.read(state) for name, state in witnesses.items()},
        )


def written(note: Note) -> str:
    """The note as text, with all its lines."""
    return note.text + "\n" + "".join(f"{line}\n" for line in note.signatures)


class CosignedFile:
    """The file in the folder ``home``. It saves questions after a start, and nothing depends on it: a file that cannot
    be read counts as none."""

    def __init__(self, home: Path) -> None:
        self._home = Folder(home, "REGISTRY_HOME", access=Access.COMMON, mode=None)
        self._lock: NameLock | None = None
        self._seen: tuple[object, Cosigned] = (None, Cosigned())
        self._writable = True

    def lead(self) -> bool:
        """Whether this process is the one of its host that submits; once it is, it is until its end. Each is where the
        home takes no files."""
        if self._lock is None and self._writable:
            try:
                lock = NameLock(self._home, FILE)
            except (OSError, ConfigurationError) as error:
                self._cannot_write(error)
                return True
            if not lock.lock():
                lock.close()
                return False
            self._lock = lock
        return True

    def resign(self) -> None:
        """Let another process submit."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.close()

    def read(self) -> Cosigned:
        """What the file holds now, or what this process knows where there is none. It is parsed once for each
        change."""
        with suppress(OSError, ConfigurationError):
            found = self._home.stat(FILE)
            version = found.st_mtime_ns, found.st_ino, found.st_size
            if version != self._seen[0]:
                self._seen = version, _read(self._home.read(FILE, _LARGEST))
        return self._seen[1]

    def write(self, cosigned: Cosigned) -> None:
        """Replace the content. If it cannot be written, only this process knows it."""
        self._seen = self._seen[0], cosigned
        try:
            self._home.write(FILE, canonical_json(cosigned.to_json()), durable=False)
            self._writable = True
        except (OSError, ConfigurationError) as error:
            self._cannot_write(error)

    def _cannot_write(self, error: Exception) -> None:
        if self._writable:
            log.warning("what the witnesses cosigned cannot be kept for other workers: %s", error)
        self._writable = False


def _read(content: bytes) -> Cosigned:
    try:
        return Cosigned.from_json(strict_json_object(content))
    except (MalformedToken, DocumentRefused) as error:
        log.warning("what the witnesses cosigned before cannot be read: %s", error)
        return Cosigned()
