"""No second history: a registry signs and appends only while the database's ledger continues the newest one known.

Each edge of the tree that a use case reads passes here (`registry.storage.queries.ledger.LedgerGuard`): one comparison
in memory where it is the edge that this process knows, or has just appended; one query for the leaves in between where
another process appended; a consistency proof (RFC 9162) otherwise, and after a restart. So it does not matter when the
database was exchanged, or how: after a lost connection, a fail-over, a restore.

Where the database does not continue it nothing is signed and nothing appended, until it does again. How operators bring
that about is in docs/how-to/recovery.md.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final, NoReturn, Self

from sqlalchemy import Connection

from peerseal.errors import ConfigurationError, DocumentRefused
from peerseal.protocol.documents.history_statement import Excused, Head, excused_by
from peerseal.protocol.ledger.checkpoint import Checkpoint
from peerseal.protocol.ledger.merkle import Frontier, check_consistency, consistency_proof
from registry.domain.errors import (
    Behind,
    LedgerContradicted,
    LedgerForked,
    LedgerUnconfirmed,
    StorageUnavailable,
)
from registry.services.authority.ledger_memory import LedgerMemory, Remembered
from registry.services.authority.statements import Entries, given_up, statements
from registry.services.documents.tile_cache import TileCache
from registry.settings import Settings
from registry.storage.durability import in_recovery
from registry.storage.queries import ledger
from registry.storage.unit import Store

log = logging.getLogger(__name__)

FOLDED: Final = 256
"""Entries of other processes whose leaves are read and hashed onto the edge that is known; of more a proof is made."""
MADE_KEPT: Final = 64
"""Edges in memory that this process computed and has not seen in the database yet."""
REMEMBER: Final = (
    "where there is nobody to ask, compare the head with one that somebody kept and run peerseal-registry remember"
)
REMEDY: Final = "run peerseal-registry status; docs/how-to/recovery.md, The ledger forked, says what to do"


@dataclass(frozen=True, slots=True)
class Known:
    """The newest head that is known. ``root`` is None where only the size is, ``edge`` where its hashes are not. What
    follows a head that the root declared counts as seen at ``declared_at`` or later."""

    size: int
    root: bytes | None
    edge: Frontier | None
    seen_at: int
    declared_at: int = 0

    @classmethod
    def of(cls, remembered: Remembered) -> "Known":
        """From the file."""
        root = None if remembered.head is None else remembered.head.root
        return cls(remembered.size, root, None, remembered.seen_at, remembered.declared_at)

    @property
    def head(self) -> Head | None:
        """As a head."""
        return None if self.root is None else Head(self.size, self.root)

    def __str__(self) -> str:
        """For messages."""
        return f"{self.size} entries" if self.root is None else str(self.head)


@dataclass(frozen=True, slots=True)
class Fork:
    """Two heads that no proof connects: the one that ``witness`` saw, and the database's."""

    witness: str
    known: Known
    found: Head

    def __str__(self) -> str:
        """What happened, with both heads, and the remedy."""
        return (
            f"the database has another ledger than the one that was seen: it has {self.found}; {self.witness} saw "
            f"{self.known}; nothing is signed or written; {REMEDY}"
        )


class _Growing(threading.local):
    """The edge that this thread's transaction has computed, until it ends."""

    edge: Frontier | None = None


class ForkGuard:
    """A `registry.storage.queries.ledger.LedgerGuard`. ``store`` is the database without a guard. With ``asks`` those
    outside must have been asked (`saw`, `asked`) before anything is signed, where this host remembers no ledger.

    Safe to use from threads, and after a fork. The file is read when the first edge is checked.
    """

    def __init__(
        self, store: Store, memory: LedgerMemory, *, asks: bool = False, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._memory = memory
        self._clock = clock
        self._tiles = TileCache()
        self._known: Known | None = None
        self._made: dict[Frontier, Frontier] = {}
        self._growing = _Growing()
        self._fork: Fork | None = None
        self._witnessed: dict[str, Fork] = {}
        self._asks = asks
        self._recalled = False
        self._unreadable = ""
        self._remembered: Remembered | None = None
        self._followers: list[Callable[[], None]] = []
        self._changing = threading.Lock()

    @classmethod
    def of(cls, settings: Settings, store: Store, clock: Callable[[], float] = time.time) -> Self:
        """The one of a node. ``store`` needs no guard of its own."""
        asks = bool(settings.checkpoint_urls)
        return cls(Store(store.engine), LedgerMemory(settings.home), asks=asks, clock=clock)

    def when_rebased(self, tell: Callable[[], None]) -> None:
        """Has ``tell`` called when another history counts than the one that was known: what was signed for that may be
        refused."""
        self._followers.append(tell)

    @property
    def fork(self) -> Fork | None:
        """The contradiction, where there is one."""
        return self._fork or next(iter(self._witnessed.values()), None)

    @property
    def unconfirmed(self) -> bool:
        """Whether nothing is signed because it is not known yet which ledger was seen."""
        self._recall()
        return self._asks or self._unreadable != ""

    @property
    def sound(self) -> bool:
        """Whether anything may be signed, by memory alone."""
        return self._fork is None and not self._witnessed and not self.unconfirmed

    @property
    def known(self) -> Known | None:
        """The newest head that is known."""
        self._recall()
        return self._known

    @property
    def note(self) -> str | None:
        """The newest checkpoint that was signed, or seen, as it was remembered."""
        return None if self._remembered is None else self._remembered.note

    def require_sound(self) -> None:
        """Passes where no contradiction is known. Looks at no database. Raises LedgerForked."""
        if self._fork is not None or self._witnessed:
            raise LedgerForked(str(self.fork))

    def _check_confirmed(self) -> None:
        if self.unconfirmed:
            raise LedgerUnconfirmed(
                self._unreadable
                or f"this host remembers no ledger, and none of REGISTRY_CHECKPOINT_URLS has answered yet; {REMEMBER}"
            )

    # ---- the edges that are read and appended

    def check(self, connection: Connection, edge: Frontier) -> None:
        """See LedgerGuard. Raises LedgerForked, or LedgerUnconfirmed."""
        known = self._known
        if known is None or edge != known.edge or self._fork is not None or self._witnessed:
            self._check(connection, edge)

    def grew(self, before: Frontier, after: Frontier) -> None:
        """See LedgerGuard."""
        with self._changing:
            while len(self._made) >= MADE_KEPT:
                del self._made[next(iter(self._made))]
            self._made[after] = before
        self._growing.edge = after

    def settled(self, *, committed: bool) -> None:
        """See LedgerGuard. What was appended is known from here on: it is about to be acknowledged."""
        after, self._growing.edge = self._growing.edge, None
        known = self._known
        if committed and after is not None and known is not None and self._appended_here(known, after):
            self._take_over(known, self._seen_now(known, after))

    def _seen_now(self, known: Known | None, edge: Frontier) -> Known:
        """What follows a head that the root declared counts as seen after that, whatever the clock says."""
        declared_at = 0 if known is None else known.declared_at
        return Known(edge.size, edge.root, edge, max(int(self._clock()), declared_at), declared_at)

    def _check(self, connection: Connection, edge: Frontier) -> None:
        if edge.size:  # an empty ledger is no history: `init` may begin one
            self._check_confirmed()
        while not self._passes(connection, edge):
            pass  # another thread went on meanwhile: the edge must continue what is known now
        if self._fork is not None:
            self._fork = None
            log.warning("the ledger in the database continues the one that was seen: signing again")
        self.require_sound()

    def _passes(self, connection: Connection, edge: Frontier) -> bool:
        """Whether the edge passed. False where what is known changed meanwhile. Raises LedgerForked."""
        known = self.known
        if known is not None and edge != known.edge and not self._appended_here(known, edge):
            if edge.size < known.size and self._is_of_a_moment_ago(edge):
                return True
            if not self._continues(connection, known, edge):
                return self._excused(connection, known, edge)
        return self._take_over(known, self._seen_now(known, edge))

    def _appended_here(self, known: Known, edge: Frontier) -> bool:
        return known.edge is not None and self._made.get(edge) == known.edge

    def _is_of_a_moment_ago(self, edge: Frontier) -> bool:
        """Whether the database has gone on since the reader's transaction began, and what is known is in it."""
        known = self.known
        with self._store.read() as connection:
            newest = ledger.frontier(connection)
            if known is None or newest.size < known.size:
                return False
            old = Known(edge.size, edge.root, None, 0)
            return self._continues(connection, known, newest) and self._continues(connection, old, newest)

    def _continues(self, connection: Connection, old: Known, edge: Frontier) -> bool:
        """Whether the tree with that edge begins with the old one. Raises LedgerContradicted where rows are missing."""
        if edge.size < old.size or old.root is None or old.size == 0:
            return edge.size >= old.size
        if edge.size == old.size:
            return edge.root == old.root
        if old.edge is not None and edge.size - old.size <= FOLDED:
            folded = old.edge
            for leaf in ledger.leaves(connection, old.size, edge.size):
                folded = folded.appended(leaf)
            return folded == edge
        try:
            proof = consistency_proof(old.size, edge.size, self._tiles.reader(connection))
            check_consistency(old.size, old.root, edge.size, edge.root, proof)
        except ValueError as error:
            raise LedgerContradicted(str(error)) from error
        except DocumentRefused:
            self._tiles = TileCache()  # complete tiles of the other ledger
            return False
        return True

    def _excused(self, connection: Connection, known: Known, edge: Frontier) -> bool:
        """Goes on from another head, where a statement of the root says so. Raises LedgerForked where none does."""
        excused = None if known.head is None else self._statement(connection, known.head, known.seen_at)
        if excused is None:
            self._check_not_behind(connection, known, edge)
            self._forked(Fork("this node", known, Head(edge.size, edge.root)))
        newer = Known(excused.new.size, excused.new.root, None, excused.seen_at, excused.seen_at)
        if not self._continues(connection, newer, edge):
            self._forked(Fork("the root's statement", newer, Head(edge.size, edge.root)))
        if self._take_over(known, newer):
            log.warning("the root declared a new history: the ledger goes on from %s", excused.new)
            self._forget_behind(excused.common, newer)
            self._tell()
        return False

    def _tell(self) -> None:
        for tell in self._followers:
            tell()

    def _forget_behind(self, common: Head, newer: Known) -> None:
        """The heads behind what both histories have in common are lost: nobody is to declare that once more."""
        before = () if self._remembered is None else self._remembered.before
        kept = tuple(head for head in before if head.size <= common.size)
        self._write(Remembered(newer.size, newer.head, None, newer.seen_at, kept, newer.declared_at))

    def _check_not_behind(self, connection: Connection, known: Known, edge: Frontier) -> None:
        """Raises Behind for a standby that has yet to receive what is known: whether it ever does nobody can tell now.
        Where it contradicts an earlier head it is another ledger already."""
        if edge.size >= known.size or not in_recovery(connection):
            return
        before = (
            [] if self._remembered is None else [head for head in self._remembered.before if head.size <= edge.size]
        )
        if not before or self._continues(connection, Known(before[-1].size, before[-1].root, None, 0), edge):
            raise Behind(
                f"the database is a standby with {edge.size} entries; it has yet to receive those up to {known}"
            )

    def _forked(self, fork: Fork) -> NoReturn:
        """Says so once for each contradiction. Raises LedgerForked."""
        if self._fork is None or (self._fork.known.size, self._fork.known.root) != (fork.known.size, fork.known.root):
            log.error("LEDGER FORKED: %s", fork)
        self._fork = fork
        raise LedgerForked(str(fork))

    def _statement(self, connection: Connection, head: Head, seen_at: float) -> Excused | None:
        return excused_by(statements(connection, self._clock()).values(), head, seen_at)

    def _take_over(self, known: Known | None, newer: Known) -> bool:
        """False where what is known is not ``known`` any more."""
        with self._changing:
            if self._known is not known:
                return False
            self._known = newer
            return True

    # ---- what others saw

    def saw(self, witness: str, checkpoint: Checkpoint, note: str, entries: Entries) -> None:
        """Somebody outside showed a checkpoint, whose signature was checked. ``entries`` reads that ledger.

        Raises StorageUnavailable, and FetchError or DocumentRefused where it cannot be told without the entries what
        the checkpoint means, and these cannot be had.
        """
        seen, fork = Known(checkpoint.size, checkpoint.root, None, int(self._clock())), None
        with self._store.read() as connection:
            edge = ledger.frontier(connection)
            there = self._is_in(connection, seen, edge)
            lost = not there and self._is_given_up(connection, seen, edge, entries)
            if not there and not lost and (edge.size >= seen.size or not in_recovery(connection)):
                fork = Fork(witness, seen, Head(edge.size, edge.root))
        self._note(witness, fork)
        if not lost:
            self._keep_larger(seen, note)

    def _is_given_up(self, connection: Connection, seen: Known, edge: Frontier, entries: Entries) -> bool:
        new = given_up(connection, Head(seen.size, seen.root or b""), entries, self._clock())
        return new is not None and self._continues(connection, Known(new.size, new.root, None, 0), edge)

    def asked(self) -> None:
        """All those outside had their say, and at least one of them was heard."""
        self._asks = False

    def _note(self, witness: str, fork: Fork | None) -> None:
        with self._changing:
            before = self._witnessed.pop(witness, None)
            if fork is not None:
                self._witnessed[witness] = fork
        if fork is not None and before is None:
            log.error("LEDGER FORKED: %s", fork)
        if fork is None and before is not None:
            log.warning("%s and the database have the same ledger again", witness)

    def _keep_larger(self, seen: Known, note: str) -> None:
        """What somebody saw counts as seen here, also after a restart."""
        known = self.known
        if seen.head is None or (known is not None and known.size >= seen.size):
            return
        newer = replace(seen, declared_at=0 if known is None else known.declared_at)
        if self._take_over(known, newer):
            before = self._remembered or Remembered(0)
            self._write(before.followed_by(seen.head, note, newer.seen_at, newer.declared_at))

    def _is_in(self, connection: Connection, seen: Known, edge: Frontier) -> bool:
        """Whether the tree with that edge has the head that was seen. Complete tiles in memory may be of another tree,
        so a proof must confirm it."""
        if edge.size < seen.size or self._tiles.root_at(connection, seen.size) != seen.root:
            return False
        return self._continues(connection, seen, edge)

    # ---- across restarts

    def remember(self, sign: Callable[[Frontier], str]) -> None:
        """Compares what is known with the file, which other processes of the host write as well, and has both say the
        same: what was declared last, else what the database has lost, else what is newer. ``sign`` makes the checkpoint
        of an edge."""
        known = self.known
        if known is None or known.head is None or not known.size:
            return
        written = self._written()
        if written is not None and written.head == known.head:
            return
        with suppress(StorageUnavailable):  # then nothing can be compared
            if written is None or written == self._remembered or not self._goes_before(written, known):
                self._write_known(known, written, sign)
            elif self._take_over(known, Known.of(written)):
                self._remembered = written
                if written.declared_at > known.declared_at:  # what was only lost may still be served from memory
                    self._tell()

    def _written(self) -> Remembered | None:
        try:
            return self._memory.read()
        except ConfigurationError as error:
            log.warning("%s: it is written again", error)
            return None

    def _goes_before(self, written: Remembered, known: Known) -> bool:
        """Whether what another process of this host wrote counts more than what this one knows."""
        if written.declared_at != known.declared_at:
            return written.declared_at > known.declared_at
        seen = Known.of(written)
        with self._store.read() as connection:
            edge = ledger.frontier(connection)
            lost = not self._is_in(connection, seen, edge)
        larger = seen.size > known.size
        return lost or larger if self._fork is None else lost and larger

    def _write_known(self, known: Known, written: Remembered | None, sign: Callable[[Frontier], str]) -> None:
        mine = self._remembered or Remembered(0)
        if known.edge is not None and known.head is not None:
            before = mine if written is None or self._fork is not None else written
            self._write(before.followed_by(known.head, sign(known.edge), known.seen_at, known.declared_at))
        elif mine.head == known.head:
            self._write(mine)

    def believe(self, edge: Frontier, note: str) -> None:
        """An operator says that this is the ledger: nothing that was remembered contradicts it. Raises
        ConfigurationError where that cannot be written down."""
        now, head = int(self._clock()), Head(edge.size, edge.root)
        remembered = Remembered(edge.size, head, note, now, declared_at=now)
        self._memory.replace(remembered)
        with self._changing:
            self._known, self._fork = Known(edge.size, edge.root, edge, now, now), None
            self._recalled, self._unreadable, self._asks, self._remembered = True, "", False, remembered

    def _write(self, remembered: Remembered) -> None:
        self._memory.write(remembered)
        self._remembered = remembered

    def _recall(self) -> None:
        """Reads the file: once, or until it says which ledger was seen where this process waits for that."""
        if self._recalled:
            return
        try:
            remembered, unreadable = self._memory.read(), ""
        except ConfigurationError as error:
            remembered, unreadable = None, f"{error}; {REMEMBER}"
        with self._changing:
            self._unreadable = unreadable
            if remembered is not None and remembered != self._remembered:
                if self._known is None or remembered.declared_at or remembered.size > self._known.size:
                    self._known, self._remembered = Known.of(remembered), remembered
                self._asks = False
            self._recalled = not self._asks and not unreadable
