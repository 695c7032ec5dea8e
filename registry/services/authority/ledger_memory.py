"""The newest head of the ledger that a host has seen: in each process, and in a file next to its keys, outside of the
database.

A database may lose entries that it acknowledged: after a restore from a backup, or the promotion of an asynchronous
replica. Its ledger is consistent in itself. Only a memory outside of it shows that clients have seen another ledger.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from peerseal.errors import ConfigurationError, MalformedToken
from peerseal.protocol.documents.history_statement import Head
from peerseal.protocol.encoding import canonical_json, natural, strict_json_object
from peerseal.protocol.ledger.merkle import Frontier
from peerseal.protocol.tokens.claims import claim, time_claim
from peerseal.runtime.files import Access, Folder
from registry.domain.errors import LedgerUnconfirmed

log = logging.getLogger(__name__)

FILE: Final = "ledger-head"
EARLIER_FILE: Final = "ledger-size"
"""The file of earlier releases, which holds only the size."""
HEADS_KEPT: Final = 64
"""Earlier heads in the file, the older ones further apart: the newest one that a forked ledger has bounds the fork."""
REMEMBER: Final = (
    "if there is no other node to ask, compare the head with a kept checkpoint and run peerseal-registry remember"
)
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


@dataclass(frozen=True, slots=True)
class Known:
    """The newest known head. ``root`` is None where only the size is known, ``edge`` is None where its hashes are not.
    A head after one that the root declared counts as seen at ``declared_at`` or later."""

    size: int
    root: bytes | None
    edge: Frontier | None
    seen_at: int
    declared_at: int = 0

    @classmethod
    def of(cls, remembered: Remembered) -> "Known":
        """The head in the file."""
        root = None if remembered.head is None else remembered.head.root
        return cls(remembered.size, root, None, remembered.seen_at, remembered.declared_at)

    @property
    def head(self) -> Head | None:
        """As a head."""
        return None if self.root is None else Head(self.size, self.root)

    def __str__(self) -> str:
        """For messages."""
        return f"{self.size} entries" if self.root is None else str(self.head)


class NewestHead:
    """The newest known head: in this process, and in the file of the host. With ``asks`` a host that remembers no
    ledger knows none until its witnesses were asked.

    Safe to use from threads, and after a fork. The file is read when the head is first needed.
    """

    def __init__(self, memory: LedgerMemory, *, asks: bool, clock: Callable[[], float]) -> None:
        self._memory = memory
        self._asks = asks
        self._clock = clock
        self._known: Known | None = None
        self._recalled = False
        self._unreadable = ""
        self._changing = threading.Lock()
        self.remembered: Remembered | None = None
        """The content of the file as this process last read or wrote it."""

    @property
    def known(self) -> Known | None:
        """The head."""
        self._recall()
        return self._known

    @property
    def unconfirmed(self) -> bool:
        """Whether the ledger that was seen is not known yet."""
        self._recall()
        return self._asks or self._unreadable != ""

    def require_confirmed(self) -> None:
        """Raises LedgerUnconfirmed where the ledger that was seen is not known yet."""
        if self.unconfirmed:
            raise LedgerUnconfirmed(
                self._unreadable
                or f"this host remembers no ledger, and none of REGISTRY_CHECKPOINT_URLS has answered yet; {REMEMBER}"
            )

    def asked(self) -> None:
        """All witnesses were asked, and at least one has answered."""
        self._asks = False

    def seen_now(self, known: Known | None, edge: Frontier) -> Known:
        """An edge that follows ``known``. After a head that the root declared it counts as seen after that head,
        whatever the clock says."""
        declared_at = 0 if known is None else known.declared_at
        return Known(edge.size, edge.root, edge, max(int(self._clock()), declared_at), declared_at)

    def take_over(self, known: Known | None, newer: Known) -> bool:
        """Makes ``newer`` the known head. False if ``known`` is no longer the known head."""
        with self._changing:
            if self._known is not known:
                return False
            self._known = newer
            return True

    def take_over_written(self, known: Known, written: Remembered) -> bool:
        """As `take_over`, with the head that another process of the host wrote into the file."""
        taken = self.take_over(known, Known.of(written))
        if taken:
            self.remembered = written
        return taken

    def take_over_larger(self, seen: Known, note: str) -> None:
        """Remembers the head of a witness as seen by this host if it is the larger one, also after a restart."""
        known = self.known
        if seen.head is None or (known is not None and known.size >= seen.size):
            return
        newer = replace(seen, declared_at=0 if known is None else known.declared_at)
        if self.take_over(known, newer):
            before = self.remembered or Remembered(0)
            self._write(before.followed_by(seen.head, note, newer.seen_at, newer.declared_at))

    def earlier(self, size: int) -> Head | None:
        """The newest of the earlier heads that were remembered, of those with at most ``size`` entries."""
        before = () if self.remembered is None else self.remembered.before
        return next((head for head in reversed(before) if head.size <= size), None)

    # ---- the file

    def written(self) -> Remembered | None:
        """The content of the file now; None also where it cannot be read."""
        try:
            return self._memory.read()
        except ConfigurationError as error:
            log.warning("%s: it is written again", error)
            return None

    def write(self, known: Known, written: Remembered | None, sign: Callable[[Frontier], str]) -> None:
        """Writes the known head into the file, after the heads in ``written``, or after those that this process
        remembers. ``sign`` makes the checkpoint of an edge."""
        mine = self.remembered or Remembered(0)
        if known.edge is not None and known.head is not None:
            before = written or mine
            self._write(before.followed_by(known.head, sign(known.edge), known.seen_at, known.declared_at))
        elif mine.head == known.head:
            self._write(mine)

    def forget_after(self, common: Head, newer: Known) -> None:
        """Drops the remembered heads after the common one: they are declared lost, which need not be repeated."""
        before = () if self.remembered is None else self.remembered.before
        kept = tuple(head for head in before if head.size <= common.size)
        self._write(Remembered(newer.size, newer.head, None, newer.seen_at, kept, newer.declared_at))

    def believe(self, edge: Frontier, note: str) -> None:
        """Takes this edge for the ledger's: everything that was remembered is dropped. Raises ConfigurationError where
        the file cannot be written."""
        now, head = int(self._clock()), Head(edge.size, edge.root)
        remembered = Remembered(edge.size, head, note, now, declared_at=now)
        self._memory.replace(remembered)
        with self._changing:
            self._known = Known(edge.size, edge.root, edge, now, now)
            self._recalled, self._unreadable, self._asks, self.remembered = True, "", False, remembered

    def _write(self, remembered: Remembered) -> None:
        self._memory.write(remembered)
        self.remembered = remembered

    def _recall(self) -> None:
        """Reads the file: once, or repeatedly while this process waits for a head."""
        if self._recalled:
            return
        try:
            remembered, unreadable = self._memory.read(), ""
        except ConfigurationError as error:
            remembered, unreadable = None, f"{error}; {REMEMBER}"
        with self._changing:
            self._unreadable = unreadable
            if remembered is not None and remembered != self.remembered:
                if self._known is None or remembered.declared_at or remembered.size > self._known.size:
                    self._known, self.remembered = Known.of(remembered), remembered
                self._asks = False
            self._recalled = not self._asks and not unreadable
