"""The signed answer to "what changed since?" (docs/protocol.md)."""

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Connection

from peerseal.protocol.documents.changes import CHANGES_LIFETIME, Changes
from peerseal.protocol.ledger.merkle import Frontier, Proof
from peerseal.protocol.names import service_id
from registry.domain.errors import StorageUnavailable
from registry.services.authority.authority import Authority
from registry.services.bounded_cache import BoundedCache
from registry.services.documents.answer_cache import JWT, PublicAnswer
from registry.services.documents.waiting import WaitingCall, WaitingCalls
from registry.services.group_commit import GroupCommit
from registry.services.use_case import Node, UseCase
from registry.storage.notifications import commit_listener
from registry.storage.queries import ledger, services

_KEPT = 256
"""Lists in memory. Clients that are up to date all ask for the same one."""
_MOST_REVOKED = 1_000
"""Kids in a list, at most: with a thousand services they fit into the size of a list."""
_LOOKED_BACK = 10_000
"""Entries that are searched for revocations. A client that is further back fetches the key sets that changed."""


class _Read(NamedTuple):
    """What a list is made of: names of changed services, kids of revoked keys, a proof."""

    names: Sequence[str]
    revoked: Sequence[str]
    proof: Proof | None


class ChangesFeed(UseCase):
    """Makes and keeps the lists of changed services. ``waiting`` holds the calls that wait for one."""

    def __init__(self, node: Node) -> None:
        super().__init__(node)
        self._revisions = node.revisions
        self._ledger = node.ledger
        self._cache: BoundedCache[int, PublicAnswer] = BoundedCache(_KEPT)
        self._making: GroupCommit[int, PublicAnswer] = GroupCommit(self.lists)
        engine = node.store.listen_engine
        self.waiting = WaitingCalls(node.revisions.head, self._making.do, lambda: commit_listener(engine), node.limits)
        node.authority.when_changed(self._cache.clear)
        node.store.when_written(self.waiting.committed)

    def since(self, seq: int) -> PublicAnswer:
        """The services that an entry after ``seq`` changed; ``reset`` where they are too many to list, or where the
        ledger is shorter than ``seq``. Raises StorageUnavailable."""
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
        """The list in memory, unless it is too old."""
        kept = self._cache.get(seq)
        if kept is not None and 0 <= self._clock() - kept.issued_at < self._limits.changes_resign_after:
            return kept
        return None

    def _unchanged(self, seq: int) -> PublicAnswer:
        """The list at the end of a wait without a change. Hundreds of waits may end at once, so a list in memory is
        used without a look at the ledger: the thread that follows the ledger has seen no change. With the database
        down an older list is used: its signed time shows its age, and the next call is refused at once."""
        kept = self._young(seq)
        if kept is not None:
            return kept
        try:
            if self.waiting.blind:  # each call would wait for the database
                raise StorageUnavailable("the database did not answer a moment ago")
            return self._making.do(seq)
        except StorageUnavailable:
            kept = self._cache.get(seq)
            if kept is not None and self._clock() < kept.expires_at:
                return kept
            raise

    def lists(self, seqs: Sequence[int]) -> Sequence[PublicAnswer]:
        """The lists after these entries as of one moment, each made once. Raises StorageUnavailable."""
        authority, issued_at = self._authority.current(), self._now()  # not later than the reads
        made: dict[int, PublicAnswer] = {}
        with self._store.read() as connection:
            edge = ledger.frontier(connection)
            for seq in set(seqs):
                kept = self._young(seq)
                if kept is None or kept.head != edge.size:
                    kept = self._signed(seq, edge, self._read(connection, seq, edge.size), authority, issued_at)
                made[seq] = kept
        return [made[seq] for seq in seqs]

    def _read(self, connection: Connection, seq: int, newest: int) -> _Read:
        proof, most = self._proof(connection, seq, newest), self._limits.changes_listed
        names = services.changed_since(connection, seq, most + 1) if seq < newest else []
        near = 0 < len(names) <= most and newest - seq <= _LOOKED_BACK
        revoked = ledger.revoked_after(connection, seq, _MOST_REVOKED) if near else []
        return _Read(names, revoked, proof)

    def _proof(self, connection: Connection, seq: int, newest: int) -> Proof | None:
        """The proof that the ledger extends the one that the caller has seen; else hundreds would ask for it singly."""
        return self._ledger.consistency_in(connection, seq, newest) if 0 < seq <= newest else None

    def _signed(
        self,
        seq: int,
        edge: Frontier,
        read: _Read,
        authority: Authority,
        issued_at: int,
    ) -> PublicAnswer:
        reset, domain = seq > edge.size or len(read.names) > self._limits.changes_listed, authority.domain
        ids = () if reset else tuple(service_id(domain, name) for name in read.names)
        expires_at = issued_at + CHANGES_LIFETIME
        changes = Changes(
            issuer=authority.id,
            subject=domain,
            issued_at=issued_at,
            expires_at=expires_at,
            since=seq,
            seq=edge.size,
            checkpoint=authority.checkpoint(edge),
            services=ids,
            reset=reset,
            revoked=tuple(read.revoked),
            proof=read.proof,
        )
        body = authority.sign(changes).encode("ascii")
        return self._cache.put(seq, PublicAnswer.of(body, JWT, edge.size, edge.size, issued_at, expires_at))
