"""No second history: a registry signs and appends only while the database's ledger continues the newest one known.

Each edge of the tree that a use case reads passes here (`registry.storage.ledger.LedgerGuard`): one comparison in
memory where it is the edge that this process knows, or has just appended; one query for the leaves in between where
another process appended; a consistency proof (RFC 9162) otherwise, and after a restart. So it does not matter when the
database was exchanged, or how: after a lost connection, a fail-over, a restore.

Where the database does not continue it nothing is signed and nothing appended, until it does again. How operators bring
that about is in docs/operations.md.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NoReturn, Self

from sqlalchemy import Connection

from peerseal.errors import DocumentRefused
from peerseal.protocol.checkpoint import Checkpoint
from peerseal.protocol.documents import read_registry_keys
from peerseal.protocol.history import Excused, Head, HistoryStatement, excused_by, read_history
from peerseal.protocol.merkle import Frontier, check_consistency, consistency_proof, root_hash
from registry.domain.errors import LedgerContradicted, LedgerForked, LedgerUnconfirmed
from registry.services.ledger_memory import LedgerMemory, Remembered
from registry.services.tile_cache import TileCache
from registry.settings import Settings
from registry.storage import documents, ledger
from registry.storage.unit import Store

log = logging.getLogger(__name__)

FOLDED: Final = 256
"""Entries of other processes whose leaves are read and hashed onto the edge that is known; of more a proof is made."""
MADE_KEPT: Final = 64
"""Edges in memory that this process computed and has not seen in the database yet."""
REMEDY: Final = "run peerseal-registry status; docs/operations.md, The ledger forked, says what to do"


@dataclass(frozen=True, slots=True)
class Known:
    """The newest head that is known. ``root`` is None where only the size is, ``edge`` where its hashes are not."""

    size: int
    root: bytes | None
    edge: Frontier | None
    seen_at: int

    @classmethod
    def of(cls, remembered: Remembered) -> "Known":
        """From the file."""
        root = None if remembered.head is None else remembered.head.root
        return cls(remembered.size, root, None, remembered.seen_at)

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
    """A `registry.storage.ledger.LedgerGuard`. ``store`` is the database without a guard. With ``asks`` somebody
    outside must have confirmed the ledger (`saw`) before anything is signed, where this host remembers none.

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
        self._remembered: Remembered | None = None
        self._followers: list[Callable[[], None]] = []
        self._changing = threading.Lock()

    @classmethod
    def of(cls, settings: Settings, store: Store, clock: Callable[[], float] = time.time) -> Self:
        """The one of a node. ``store`` needs no guard of its own."""
        asks = bool(settings.checkpoint_urls)
        return cls(Store(store.engine), LedgerMemory(settings.home), asks=asks, clock=clock)

    def when_rebased(self, tell: Callable[[], None]) -> None:
        """Has ``tell`` called when the root gave the history up that was known: what was signed for it is refused."""
        self._followers.append(tell)

    @property
    def fork(self) -> Fork | None:
        """The contradiction, where there is one."""
        return self._fork or next(iter(self._witnessed.values()), None)

    @property
    def unconfirmed(self) -> bool:
        """Whether nothing is signed because nobody has said yet which ledger was seen."""
        self._recall()
        return self._asks and self._known is None

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
                "this host remembers no ledger, and none of REGISTRY_CHECKPOINT_URLS has answered yet; where there is "
                "nobody to ask, compare the head with one that somebody kept and run peerseal-registry remember"
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
        now = int(self._clock())
        return Known(edge.size, edge.root, edge, now if known is None else max(now, known.seen_at))

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
            self._forked(Fork("this node", known, Head(edge.size, edge.root)))
        newer = Known(excused.new.size, excused.new.root, None, excused.seen_at)
        if not self._continues(connection, newer, edge):
            self._forked(Fork("the root's statement", newer, Head(edge.size, edge.root)))
        if self._take_over(known, newer):
            log.warning("the root declared a new history: the ledger goes on from %s", excused.new)
            for tell in self._followers:
                tell()
        return False

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

    def saw(self, witness: str, checkpoint: Checkpoint, note: str) -> None:
        """Somebody outside showed a checkpoint, whose signature was checked. Raises StorageUnavailable."""
        seen = Known(checkpoint.size, checkpoint.root, None, 0)
        with self._store.read() as connection:
            edge = ledger.frontier(connection)
            sound = edge.size >= seen.size and self._is_in(connection, seen, edge)
            sound = sound or self._statement(connection, Head(seen.size, checkpoint.root), 0) is not None
        with self._changing:
            self._asks = False
            before = self._witnessed.pop(witness, None)
            if not sound:
                self._witnessed[witness] = Fork(witness, seen, Head(edge.size, edge.root))
        if not sound and before is None:
            log.error("LEDGER FORKED: %s", self._witnessed[witness])
        if sound and before is not None:
            log.warning("%s and the database have the same ledger again", witness)
        if not sound:
            self._keep_larger(Known(seen.size, seen.root, None, int(self._clock())), note)

    def _keep_larger(self, seen: Known, note: str) -> None:
        """What somebody saw counts as seen here, also after a restart."""
        known = self.known
        if seen.head is None or (known is not None and known.size >= seen.size) or not self._take_over(known, seen):
            return
        self._write((self._remembered or Remembered(0)).followed_by(seen.head, note, seen.seen_at))

    def _is_in(self, connection: Connection, seen: Known, edge: Frontier) -> bool:
        try:
            same = root_hash(seen.size, self._tiles.reader(connection)) == seen.root
        except ValueError as error:
            raise LedgerContradicted(str(error)) from error
        return same and self._continues(connection, seen, edge)

    # ---- across restarts

    def remember(self, sign: Callable[[Frontier], str]) -> None:
        """Compares what is known with the file, which other processes of the host write as well, and keeps the newer of
        the two in both. ``sign`` makes the checkpoint of an edge. Raises ConfigurationError."""
        known, written = self.known, self._memory.read()
        if known is None or known.edge is None or not known.edge.size:
            return
        head, before = Head(known.size, known.edge.root), written or Remembered(0)
        if before != self._remembered and before.size > known.size:
            self._take_over(known, Known.of(before))
            self._remembered = before
        elif before.head != head:
            self._write(before.followed_by(head, sign(known.edge), known.seen_at))

    def believe(self, edge: Frontier, note: str) -> None:
        """An operator says that this is the ledger: nothing that was remembered contradicts it."""
        now = int(self._clock())
        with self._changing:
            self._known, self._fork, self._recalled = Known(edge.size, edge.root, edge, now), None, True
        self._write(Remembered(edge.size, Head(edge.size, edge.root), note, now))

    def _write(self, remembered: Remembered) -> None:
        self._memory.write(remembered)
        self._remembered = remembered

    def _recall(self) -> None:
        if self._recalled:
            return
        remembered = self._memory.read()
        with self._changing:
            if self._known is None and remembered is not None:
                self._known, self._remembered = Known.of(remembered), remembered
            self._recalled = True


def statements(connection: Connection, now: float) -> Mapping[str, HistoryStatement]:
    """The statements of the root about lost entries that the ledger holds, by their compact JWS, oldest first. Those
    that the root in force did not sign are passed over."""
    jws = documents.newest(connection)
    found: dict[str, HistoryStatement] = {}
    for statement in ledger.histories(connection) if jws is not None else ():
        try:
            keys = read_registry_keys(jws or "", pin=None, now=now)
            found[statement] = read_history(statement, keys.root, domain=keys.subject, now=now)
        except DocumentRefused as error:
            log.error("a statement about a new history is passed over (%s): %s", error.code, error)
    return found
