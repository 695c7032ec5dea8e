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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final, NoReturn, Self

from sqlalchemy import Connection

from peerseal.protocol.documents.history_statement import Continuation, Head, excused_by
from peerseal.protocol.ledger.checkpoint import Checkpoint
from peerseal.protocol.ledger.merkle import Frontier
from registry.domain.errors import Lagging, LedgerForked, StorageUnavailable
from registry.limits import TILES_CACHED
from registry.services.authority.ledger_memory import Known, LedgerMemory, NewestHead, Remembered
from registry.services.authority.statements import Entries, given_up, statements
from registry.services.documents.tile_cache import TileCache
from registry.settings import Settings
from registry.storage.durability import in_recovery
from registry.storage.engine import second_engine
from registry.storage.queries import ledger
from registry.storage.unit import Store

log = logging.getLogger(__name__)

FOLDED: Final = 256
"""The most entries of other processes whose leaves are read and hashed onto the known edge; for more a proof is
made."""
MADE_KEPT: Final = 64
"""Edges in memory that this process has computed and not yet seen in the database."""
REMEDY: Final = "run peerseal-registry status; docs/how-to/recovery.md, The ledger forked, says what to do"


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

    ``second`` is the same database with a connection of its own. It serves a second look while a caller holds a
    connection of the pool: two threads that each hold one and wait for another would wait for ever.

    Safe to use from threads, and after a fork.
    """

    def __init__(
        self,
        store: Store,
        memory: LedgerMemory,
        *,
        second: Store | None = None,
        asks: bool = False,
        clock: Callable[[], float] = time.time,
        tiles_cached: int = TILES_CACHED,
    ) -> None:
        self._store = store
        self._second = second or store
        self._newest = NewestHead(memory, asks=asks, clock=clock)
        self._clock = clock
        self._tiles = TileCache(tiles_cached)
        self._made: dict[Frontier, Frontier] = {}
        self._growing = _Growing()
        self._fork: Fork | None = None
        self._witnessed: dict[str, Fork] = {}
        self._followers: list[Callable[[], None]] = []
        self._changing = threading.Lock()

    @classmethod
    def of(cls, settings: Settings, store: Store, clock: Callable[[], float] = time.time) -> Self:
        """The guard of a node. ``store`` has no guard."""
        asks = bool(settings.checkpoint_urls)
        memory, most = LedgerMemory(settings.home), settings.limits.tiles_cached
        second = Store(second_engine(store.engine, settings.database_url))
        return cls(Store(store.engine), memory, second=second, asks=asks, clock=clock, tiles_cached=most)

    def when_rebased(self, tell: Callable[[], None]) -> None:
        """Has ``tell`` called when another history is in force: clients may refuse what was signed for the old one."""
        self._followers.append(tell)

    @property
    def held(self) -> int:
        """Bytes of the ledger's tiles in memory."""
        return self._tiles.held

    @property
    def fork(self) -> Fork | None:
        """The contradiction, where there is one."""
        return self._fork or next(iter(self._witnessed.values()), None)

    @property
    def contradicted_by(self) -> frozenset[str]:
        """The witnesses whose ledger contradicts the database's."""
        return frozenset(self._witnessed)

    @property
    def unconfirmed(self) -> bool:
        """Whether nothing is signed because the ledger that was seen is not known yet."""
        return self._newest.unconfirmed

    @property
    def sound(self) -> bool:
        """Whether documents may be signed, decided without the database."""
        return self._fork is None and not self._witnessed and not self.unconfirmed

    @property
    def known(self) -> Known | None:
        """The newest known head."""
        return self._newest.known

    @property
    def note(self) -> str | None:
        """The newest checkpoint that was signed or seen."""
        remembered = self._newest.remembered
        return None if remembered is None else remembered.note

    def require_sound(self) -> None:
        """Raises LedgerForked where a contradiction is known. Does not read the database."""
        if self._fork is not None or self._witnessed:
            raise LedgerForked(str(self.fork))

    # ---- the edges that are read and appended

    def check(self, connection: Connection, edge: Frontier) -> None:
        """See LedgerGuard. Raises LedgerForked, or LedgerUnconfirmed."""
        known = self.known
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
        known = self.known
        if committed and after is not None and known is not None and self._appended_here(known, after):
            self._newest.take_over(known, self._newest.seen_now(known, after))

    def _check(self, connection: Connection, edge: Frontier) -> None:
        if edge.size:  # `init` may begin an empty ledger
            self._newest.require_confirmed()
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
        return self._newest.take_over(known, self._newest.seen_now(known, edge))

    def _appended_here(self, known: Known, edge: Frontier) -> bool:
        return known.edge is not None and self._made.get(edge) == known.edge

    def _is_of_a_moment_ago(self, edge: Frontier) -> bool:
        """Whether the reader's transaction is older than the known head, which the database has."""
        known = self.known
        with self._second_look() as connection:
            newest = ledger.frontier(connection)
            if known is None or newest.size < known.size:
                return False
            old = Known(edge.size, edge.root, None, 0)
            return self._continues(connection, known, newest) and self._continues(connection, old, newest)

    @contextmanager
    def _second_look(self) -> Iterator[Connection]:
        """A transaction on the connection of its own, which is closed afterwards: it is needed for moments only."""
        with self._second.read() as connection:
            yield connection
        if self._second.engine is not self._store.engine:
            self._second.engine.dispose()

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
        return self._tiles.continues(connection, Head(old.size, old.root), edge)

    def _excused(self, connection: Connection, known: Known, edge: Frontier) -> bool:
        """Continues from another head if a statement of the root declares it. Raises LedgerForked otherwise."""
        excused = None if known.head is None else self._statement(connection, known.head, known.seen_at)
        if excused is None:
            self._check_not_behind(connection, known, edge)
            self._forked(Fork("this node", known, Head(edge.size, edge.root)))
        newer = Known(excused.new.size, excused.new.root, None, excused.seen_at, excused.seen_at)
        if not self._continues(connection, newer, edge):
            self._forked(Fork("the root's statement", newer, Head(edge.size, edge.root)))
        if self._newest.take_over(known, newer):
            log.warning("the root declared a new history: the ledger goes on from %s", excused.new)
            self._newest.forget_after(excused.common, newer)
            self._tell()
        return False

    def _tell(self) -> None:
        for tell in self._followers:
            tell()

    def _check_not_behind(self, connection: Connection, known: Known, edge: Frontier) -> None:
        """Raises Lagging for a standby that has not received the known head, and may yet do so. A standby that
        contradicts an earlier head has another ledger."""
        if edge.size >= known.size or not in_recovery(connection):
            return
        before = self._newest.earlier(edge.size)
        if before is None or self._continues(connection, Known(before.size, before.root, None, 0), edge):
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
            self._newest.take_over_larger(seen, note)

    def _is_given_up(self, connection: Connection, seen: Known, edge: Frontier, entries: Entries) -> bool:
        new = given_up(connection, Head(seen.size, seen.root or b""), entries, self._clock())
        return new is not None and self._continues(connection, Known(new.size, new.root, None, 0), edge)

    def asked(self) -> None:
        """All witnesses were asked, and at least one has answered."""
        self._newest.asked()

    def _note(self, witness: str, fork: Fork | None) -> None:
        with self._changing:
            before = self._witnessed.pop(witness, None)
            if fork is not None:
                self._witnessed[witness] = fork
        if fork is not None and before is None:
            log.error("LEDGER FORKED: %s", fork)
        if fork is None and before is not None:
            log.warning("%s and the database have the same ledger again", witness)

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
        written = self._newest.written()
        if written is not None and written.head == known.head:
            return
        with suppress(StorageUnavailable):  # then nothing can be compared
            if written is None or written == self._newest.remembered or not self._goes_before(written, known):
                self._newest.write(known, None if self._fork is not None else written, sign)
            elif self._newest.take_over_written(known, written) and written.declared_at > known.declared_at:
                self._tell()  # else what is in memory may be served

    def _goes_before(self, written: Remembered, known: Known) -> bool:
        """Whether the head that another process of this host wrote counts more than the known one."""
        if written.declared_at != known.declared_at:
            return written.declared_at > known.declared_at
        seen = Known.of(written)
        with self._second_look() as connection:
            edge = ledger.frontier(connection)
            lost = not self._is_in(connection, seen, edge)
        larger = seen.size > known.size
        return lost or larger if self._fork is None else lost and larger

    def believe(self, edge: Frontier, note: str) -> None:
        """Takes this edge for the ledger's, on an operator's word: everything that was remembered is dropped. Raises
        ConfigurationError where the file cannot be written."""
        self._newest.believe(edge, note)
        self._fork = None
