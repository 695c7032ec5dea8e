"""The signed answer to "what changed since?" (docs/protocol.md)."""

import time
from collections.abc import Callable, Sequence

from sqlalchemy import Connection

from peerseal.protocol.documents.signed_documents import CHANGES_LIFETIME, Changes
from peerseal.protocol.ledger.merkle import Frontier, Proof
from peerseal.protocol.names import service_id
from registry.domain.errors import StorageUnavailable
from registry.services.authority.authority import Authority, AuthoritySource
from registry.services.bounded_cache import BoundedCache
from registry.services.documents.answer_cache import JWT, PublicAnswer
from registry.services.documents.ledger import LedgerView
from registry.services.documents.waiting import WaitingCall, WaitingCalls
from registry.services.group_commit import GroupCommit
from registry.settings import Limits
from registry.storage.notifications import commit_listener
from registry.storage.queries import ledger, services
from registry.storage.revisions import Revisions
from registry.storage.unit import Store

_KEPT = 256
"""Lists in memory: watchers that keep up all ask for the same one."""


class ChangesFeed:
    """Makes and keeps the lists of changed services. ``waiting`` are the calls that wait for one."""

    def __init__(
        self,
        store: Store,
        revisions: Revisions,
        authority: AuthoritySource,
        ledger: LedgerView,
        limits: Limits,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._revisions = revisions
        self._authority = authority
        self._ledger = ledger
        self._limits = limits
        self._clock = clock
        self._cache: BoundedCache[int, PublicAnswer] = BoundedCache(_KEPT)
        self._making: GroupCommit[int, PublicAnswer] = GroupCommit(self._make)
        self.waiting = WaitingCalls(
            revisions.head, self._making.do, lambda: commit_listener(store.listen_engine), limits
        )
        authority.when_changed(self._cache.clear)
        store.when_written(self.waiting.committed)

    def since(self, seq: int) -> PublicAnswer:
        """The services that an entry behind ``seq`` changed; ``reset`` where they are too many to list, or where the
        ledger has not so many entries. Raises StorageUnavailable."""
        kept = self._young(seq)
        if kept is not None and kept.head == self._revisions.head():
            return kept
        return self._making.do(seq)

    def wait(self, seq: int, address: str) -> WaitingCall | None:
        """A call that waits for the first change after an entry. None where it is answered at once: the ledger has
        changed, or too many calls wait, from that address or in all. Raises StorageUnavailable."""
        if not self.waiting.pausing and self._revisions.head() != seq:
            return None
        return self.waiting.add(seq, address)

    def answer_to(self, call: WaitingCall) -> PublicAnswer:
        """The answer to a call whose wait has ended: its list, or that nothing changed. Raises StorageUnavailable."""
        return self._unchanged(call.since) if call.answer is None else call.answer

    def _young(self, seq: int) -> PublicAnswer | None:
        """The list in memory, where it need not be signed anew."""
        kept = self._cache.get(seq)
        if kept is not None and 0 <= self._clock() - kept.issued_at < self._limits.changes_resign_after:
            return kept
        return None

    def _unchanged(self, seq: int) -> PublicAnswer:
        """The list at the end of a wait. Hundreds may end at once, so nobody looks at the ledger who need not: the
        thread that follows it has just not seen a change. With the database down it is one that was signed before:
        its signed time says how old it is, and who comes again is told at once that nothing is known now."""
        kept = self._young(seq)
        if kept is not None:
            return kept
        try:
            if self.waiting.blind:  # each of them would wait for the database
                raise StorageUnavailable("the database did not answer a moment ago")
            return self._making.do(seq)
        except StorageUnavailable:
            kept = self._cache.get(seq)
            if kept is not None and self._clock() < kept.expires_at:
                return kept
            raise

    def _make(self, seqs: Sequence[int]) -> Sequence[PublicAnswer]:
        """One list for all who ask for the same, as of one moment."""
        authority, issued_at = self._authority.current(), int(self._clock())  # not later than what is read
        made: dict[int, PublicAnswer] = {}
        with self._store.read() as connection:
            edge = ledger.frontier(connection)
            for seq in set(seqs):
                kept = self._young(seq)
                if kept is None or kept.head != edge.size:
                    names, proof = self._names(connection, seq, edge.size), self._proof(connection, seq, edge.size)
                    kept = self._signed(seq, edge, names, proof, authority, issued_at)
                made[seq] = kept
        return [made[seq] for seq in seqs]

    def _names(self, connection: Connection, seq: int, newest: int) -> Sequence[str]:
        return services.changed_since(connection, seq, self._limits.changes_listed + 1) if seq < newest else []

    def _proof(self, connection: Connection, seq: int, newest: int) -> Proof | None:
        """That the ledger begins with the one that the watcher has seen: hundreds would ask for it one by one."""
        return self._ledger.consistency_in(connection, seq, newest) if 0 < seq <= newest else None

    def _signed(
        self,
        seq: int,
        edge: Frontier,
        names: Sequence[str],
        proof: Proof | None,
        authority: Authority,
        issued_at: int,
    ) -> PublicAnswer:
        reset = seq > edge.size or len(names) > self._limits.changes_listed
        ids = () if reset else tuple(service_id(authority.domain, name) for name in names)
        expires_at = issued_at + CHANGES_LIFETIME
        frame, checkpoint = (authority.id, authority.domain, issued_at, expires_at), authority.checkpoint(edge)
        changes = Changes(*frame, seq, edge.size, checkpoint, ids, reset, proof)
        body = authority.sign(changes).encode("ascii")
        return self._cache.put(seq, PublicAnswer.of(body, JWT, edge.size, edge.size, issued_at, expires_at))
