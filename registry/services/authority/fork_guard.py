"""The fork guard: a registry signs and appends only while the database's ledger continues the newest known head.

Each edge of the tree that a use case reads is checked (`registry.storage.queries.ledger.LedgerGuard`): by a comparison
in memory if this process knows the edge or has just appended it; by a query for the leaves in between if another
process appended; otherwise, and after a restart, by a consistency proof (RFC 9162). It therefore does not matter when
or how the database was replaced: after a lost connection, a fail-over, or a restore.

While the database does not continue the known head, nothing is signed or appended. The operators' handbook
(docs/how-to/operations.md) says what to do then.
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
from peerseal.protocol.documents.history_statement import Continuation, Head, excused_by
from peerseal.protocol.ledger.checkpoint import Checkpoint
from peerseal.protocol.ledger.merkle import Frontier, check_consistency, consistency_proof
from registry.domain.errors import (
    Lagging,
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
"""The most entries of other processes whose leaves are read and hashed onto the known edge; for more a proof is
made."""
MADE_KEPT: Final = 64
"""Edges in memory that this process has computed and not yet seen in the database."""
REMEMBER: Final = (
    "if there is no other node to ask, compare the head with a kept checkpoint and run peerseal-registry remember"
)
REMEDY: Final = "run peerseal-registry status; docs/how-to/recovery.md, The ledger forked, says what to do"


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


@dataclass(frozen=True, slots=True)
class Fork:
    """Two heads that no proof connects: the one that ``witness`` has seen, and the database's."""

    witness: str
    known: Known
    found: Head

    def __str__(self) -> str:
        """Both heads, the effect, and the remedy."""
        return (
            f"the database has another ledger than the one that was seen: it has {self.found}; {self.witness} saw "
            f"{self.known}; nothing is signed or written; {REMEDY}"
        )


class _Growing(threading.local):
    """The edge that this thread's open transaction has computed."""

    edge: Frontier | None = None


class ForkGuard:
    """A `registry.storage.queries.ledger.LedgerGuard`. ``store`` is the database without a guard. With ``asks`` a host
    that remembers no ledger signs nothing until its witnesses were asked (`saw`, `asked`).

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
        """The guard of a node. ``store`` has no guard."""
        asks = bool(settings.checkpoint_urls)
        return cls(Store(store.engine), LedgerMemory(settings.home), asks=asks, clock=clock)

    def when_rebased(self, tell: Callable[[], None]) -> None:
        """Has ``tell`` called when another history is in force: clients may refuse what was signed for the old one."""
        self._followers.append(tell)

    @property
    def fork(self) -> Fork | None:
        """The contradiction, where there is one."""
        return self._fork or next(iter(self._witnessed.values()), None)

    @property
    def unconfirmed(self) -> bool:
        """Whether nothing is signed because the ledger that was seen is not known yet."""
        self._recall()
        return self._asks or self._unreadable != ""

    @property
    def sound(self) -> bool:
        """Whether documents may be signed, decided without the database."""
        return self._fork is None and not self._witnessed and not self.unconfirmed

    @property
    def known(self) -> Known | None:
        """The newest known head."""
        self._recall()
        return self._known

    @property
    def note(self) -> str | None:
        """The newest checkpoint that was signed or seen."""
        return None if self._remembered is None else self._remembered.note

    def require_sound(self) -> None:
        """Raises LedgerForked where a contradiction is known. Does not read the database."""
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
        """See LedgerGuard. Committed entries are known from here on: they are about to be acknowledged."""
        after, self._growing.edge = self._growing.edge, None
        known = self._known
        if committed and after is not None and known is not None and self._appended_here(known, after):
            self._take_over(known, self._seen_now(known, after))

    def _seen_now(self, known: Known | None, edge: Frontier) -> Known:
        """An edge after a head that the root declared counts as seen after it, whatever the clock says."""
        declared_at = 0 if known is None else known.declared_at
        return Known(edge.size, edge.root, edge, max(int(self._clock()), declared_at), declared_at)

    def _check(self, connection: Connection, edge: Frontier) -> None:
        if edge.size:  # `init` may begin an empty ledger
            self._check_confirmed()
        while not self._passes(connection, edge):
            pass  # another thread changed what is known: the edge must continue the new head
        if self._fork is not None:
            self._fork = None
            log.warning("the ledger in the database continues the one that was seen: signing again")
        self.require_sound()

    def _passes(self, connection: Connection, edge: Frontier) -> bool:
        """Whether the edge is good. False if the known head changed meanwhile. Raises LedgerForked."""
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
        """Whether the reader's transaction is older than the known head, which the database has."""
        known = self.known
        with self._store.read() as connection:
            newest = ledger.frontier(connection)
            if known is None or newest.size < known.size:
                return False
            old = Known(edge.size, edge.root, None, 0)
            return self._continues(connection, known, newest) and self._continues(connection, old, newest)

    def _continues(self, connection: Connection, old: Known, edge: Frontier) -> bool:
        """Whether the tree with that edge extends the old one. Raises LedgerContradicted where rows are missing."""
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
        """Continues from another head if a statement of the root declares it. Raises LedgerForked otherwise."""
        excused = None if known.head is None else self._statement(connection, known.head, known.seen_at)
        if excused is None:
            self._check_not_behind(connection, known, edge)
            self._forked(Fork("this node", known, Head(edge.size, edge.root)))
        newer = Known(excused.new.size, excused.new.root, None, excused.seen_at, excused.seen_at)
        if not self._continues(connection, newer, edge):
            self._forked(Fork("the root's statement", newer, Head(edge.size, edge.root)))
        if self._take_over(known, newer):
            log.warning("the root declared a new history: the ledger goes on from %s", excused.new)
            self._forget_after(excused.common, newer)
            self._tell()
        return False

    def _tell(self) -> None:
        for tell in self._followers:
            tell()

    def _forget_after(self, common: Head, newer: Known) -> None:
        """Drops the remembered heads after the common one: they are declared lost, which need not be repeated."""
        before = () if self._remembered is None else self._remembered.before
        kept = tuple(head for head in before if head.size <= common.size)
        self._write(Remembered(newer.size, newer.head, None, newer.seen_at, kept, newer.declared_at))

    def _check_not_behind(self, connection: Connection, known: Known, edge: Frontier) -> None:
        """Raises Lagging for a standby that has not received the known head, and may yet do so. A standby that
        contradicts an earlier head has another ledger."""
        if edge.size >= known.size or not in_recovery(connection):
            return
        before = (
            [] if self._remembered is None else [head for head in self._remembered.before if head.size <= edge.size]
        )
        if not before or self._continues(connection, Known(before[-1].size, before[-1].root, None, 0), edge):
            raise Lagging(
                f"the database is a standby with {edge.size} entries; it has yet to receive those up to {known}"
            )

    def _forked(self, fork: Fork) -> NoReturn:
        """Logs each contradiction once, and raises LedgerForked."""
        if self._fork is None or (self._fork.known.size, self._fork.known.root) != (fork.known.size, fork.known.root):
            log.error("LEDGER FORKED: %s", fork)
        self._fork = fork
        raise LedgerForked(str(fork))

    def _statement(self, connection: Connection, head: Head, seen_at: float) -> Continuation | None:
        return excused_by(statements(connection, self._clock()).values(), head, seen_at)

    def _take_over(self, known: Known | None, newer: Known) -> bool:
        """Makes ``newer`` the known head. False if ``known`` is no longer the known head."""
        with self._changing:
            if self._known is not known:
                return False
            self._known = newer
            return True

    # ---- heads that witnesses have seen

    def saw(self, witness: str, checkpoint: Checkpoint, note: str, entries: Entries) -> None:
        """Compares the database with the checkpoint of a witness, whose signature was checked. ``entries`` reads the
        ledger of the witness.

        Raises StorageUnavailable, and FetchError or DocumentRefused where the entries are needed and cannot be fetched.
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
        """All witnesses were asked, and at least one has answered."""
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
        """Remembers the head of a witness as seen by this host, also after a restart."""
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
        """Makes the known head and the file equal; other processes of the host write the file as well. The head that
        was declared last counts, else one that the database has lost, else the newer one. ``sign`` makes the checkpoint
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
                if written.declared_at > known.declared_at:  # else what is in memory may be served
                    self._tell()

    def _written(self) -> Remembered | None:
        try:
            return self._memory.read()
        except ConfigurationError as error:
            log.warning("%s: it is written again", error)
            return None

    def _goes_before(self, written: Remembered, known: Known) -> bool:
        """Whether the head that another process of this host wrote counts more than the known one."""
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
        """Takes this edge for the ledger's, on an operator's word: everything that was remembered is dropped. Raises
        ConfigurationError where the file cannot be written."""
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
        """Reads the file: once, or repeatedly while this process waits for a head."""
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
