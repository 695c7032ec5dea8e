"""``peerseal-registry restore``: a database that came back from a backup gets what the ledger's public copies hold.

A registry that went on from the backup would show every client a second history, and have forgotten revocations. The
entries behind the backup are public, and their signed checkpoint says which they are: they are written byte for byte,
and the tables made to say what they amount to. What is in no entry is lost: it is named, and an entry of its own says
so to everybody.
"""

import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from typing import Any, Final

from sqlalchemy import Connection

from peerseal.audit.ledger_reader import bodies
from peerseal.protocol.ledger.checkpoint import TILE_WIDTH
from peerseal.protocol.ledger.entries import JOIN_TOKEN_CREATED, REGISTRY_RESTORED
from peerseal.protocol.ledger.merkle import Frontier, frontier_at, leaf_hash, root_hash
from peerseal.protocol.tokens.claims import LEEWAY
from peerseal.protocol.tokens.request import REQUEST_LIFETIME_CAP
from registry.domain.errors import LedgerContradicted
from registry.services.access.operators import LOCAL
from registry.services.documents.tile_cache import TileCache
from registry.services.recovery.compare import Retention
from registry.services.recovery.public_copy import PublicCopy, RestoreRefused, Source, read_copy
from registry.services.recovery.repair import align
from registry.services.recovery.verify import check_kept, claimed_size
from registry.settings import Limits
from registry.storage.queries import applicants, audit, branch, ledger, used_tokens
from registry.storage.queries.ledger import Change, append
from registry.storage.unit import Store

NAMED: Final = 20
"""Entries of a branch that a refusal names; the others it counts."""
CLOSED_FOR: Final = REQUEST_LIFETIME_CAP + 2 * LEEWAY + 1
"""Seconds for which services' signed calls are not accepted: as long as a token could be good that was accepted before,
of which nobody knows any more. One by a clock that is LEEWAY ahead lives LEEWAY behind its end."""

_CODES: Final[Mapping[str | None, str]] = {
    "signature": "checkpoint_not_signed",
    "size": "copy_too_old",
    "root": "checkpoint_contradicted",
}


@dataclass(frozen=True, slots=True)
class Lost:
    """What came back from no copy: of how many entries the evidence, by id and service the join tokens that were good,
    by service and entry the restricted policies in force, and how many applicants of before were let go."""

    evidence: int = 0
    join_tokens: Sequence[tuple[str, str]] = ()
    policies: Sequence[tuple[str, int]] = ()
    applicants: int = 0


@dataclass(frozen=True, slots=True)
class Restored:
    """What was done, or with ``dry_run`` what would be. The entries behind ``before``, up to ``copied``, came from
    ``source``; ``size`` and ``root`` are the ledger's as it stands then. ``dropped`` names the entries of a branch that
    were in the place of the first of them. ``rows`` are those that changed, by table.
    Up to ``closed_until`` (seconds since the epoch) services' signed calls are not accepted."""

    source: str
    before: int
    copied: int
    size: int
    root: bytes
    dry_run: bool = False
    rows: Mapping[str, int] = field(default_factory=dict)
    lost: Lost = field(default_factory=Lost)
    closed_until: int | None = None
    dropped: Sequence[str] = ()

    @property
    def anything(self) -> bool:
        """Whether the copy had more than the database."""
        return self.copied > self.before

    def to_json(self) -> dict[str, Any]:
        """``{"restored", "dry_run", "source", "first", "last", "size", "root", "rows", "lost", "closed_until",
        "dropped"}``; what was lost by the members of `Lost`."""
        first, last = (self.before + 1, self.copied) if self.anything else (None, None)
        tokens = [{"id": token, "service": service} for token, service in self.lost.join_tokens]
        policies = [{"service": service, "entry": entry} for service, entry in self.lost.policies]
        return {
            "restored": self.anything and not self.dry_run,
            "dry_run": self.dry_run,
            "source": self.source,
            "first": first,
            "last": last,
            "size": self.size,
            "root": b64encode(self.root).decode("ascii"),
            "rows": dict(self.rows),
            "lost": {**asdict(self.lost), "join_tokens": tokens, "policies": policies},
            "closed_until": self.closed_until,
            "dropped": list(self.dropped),
        }


def restore(
    store: Store,
    limits: Limits,
    sources: Sequence[Source],
    *,
    kept: Mapping[str, str] | None = None,
    reached: int = 0,
    drop_branch: bool = False,
    dry_run: bool = False,
    clock: Callable[[], float] = time.time,
    progress: Callable[[int], None] = lambda _: None,
) -> Restored:
    """Brings the database from where it is to where the longest copy is. Where it is there, nothing is done.

    ``kept`` are signed notes that somebody remembers, by name; the copy must not contradict them, nor the other copies.
    ``reached`` is how far this host knows that the ledger was: an entry of ours in the place of one that clients may
    have seen would be a second history. Where nodes wrote entries behind the one at which the database forked from the
    copy, they are removed with ``drop_branch``, and a reason to refuse without.
    Raises RestoreRefused, FetchError where a source does not answer, StorageUnavailable.
    """
    found = _edge_of(store)
    copy = _longest(sources, kept or {}, found.size, progress)
    before = found
    if not _same_history(store, found, copy):
        before, copy = _forked_at(store, found, copy, sources, progress)
        if not drop_branch:
            raise _two_histories(store, before, found, copy)
    if max(copy.checkpoint.size, before.size) < reached:
        short = f"{copy.checkpoint.size} entries, and the ledger had {reached}"
        raise RestoreRefused("copy_too_old", f"{copy.source} has {short}")
    if copy.checkpoint.size <= before.size:
        until = None if dry_run else _close_guard(store, int(clock()))
        return Restored(copy.source, before.size, before.size, before.size, before.root, dry_run, closed_until=until)
    with store.write() as connection:
        if ledger.lock_frontier(connection) != found:
            raise RestoreRefused("ledger_moved", "an entry was appended meanwhile: stop every node of the registry")
        dropped = branch.named(connection, before.size, found.size)
        if dropped:
            branch.cut(connection, before)
        restored = replace(_written(connection, before, copy, limits, int(clock()), dry_run), dropped=dropped)
        if dry_run:
            connection.rollback()
    return restored


def _close_guard(store: Store, now: int) -> int:
    """Calls that write no entry were accepted since the backup as well, and nobody knows of them any more."""
    with store.write() as connection:
        used_tokens.close(connection, now + CLOSED_FOR)
    return now + CLOSED_FOR


def _edge_of(store: Store) -> Frontier:
    with store.look() as connection:
        edge = ledger.frontier(connection)
    if edge.size == 0:
        raise RestoreRefused(
            "not_initialised", "no entry is here that says which root to believe: restore a backup first"
        )
    return edge


def _longest(
    sources: Sequence[Source], kept: Mapping[str, str], after: int, progress: Callable[[int], None]
) -> PublicCopy:
    """The copy with the largest checkpoint, which every other one and every note that was kept must be part of."""
    notes = [(source, source.note()) for source in sources]
    longest, note = max(notes, key=lambda found: claimed_size(found[1]))
    others = {source.name: other for source, other in notes if source is not longest}
    compared = {**kept, **others}
    copy = read_copy(longest, note, after, {claimed_size(other) for other in compared.values()}, progress)
    for name, other in compared.items():
        for wrong in check_kept(name, other, copy.replayed):
            raise RestoreRefused(_CODES[wrong.column], f"{longest.name}: {wrong}")
    return copy


def _same_history(store: Store, ours: Frontier, copy: PublicCopy) -> bool:
    """Whether the one is the beginning of the other."""
    common = min(ours.size, copy.checkpoint.size)
    root = ours.root if common == ours.size else _root_at(store, common)
    return copy.replayed.tree.roots.get(common, copy.checkpoint.root) == root


def _forked_at(
    store: Store, ours: Frontier, copy: PublicCopy, sources: Sequence[Source], progress: Callable[[int], None]
) -> tuple[Frontier, PublicCopy]:
    """The edge up to which the database and the copy are the same, and the copy with its entries behind that."""
    source = next(source for source in sources if source.name == copy.source)
    copied = bodies(source.get, 0, copy.checkpoint.size)
    size = _common_size(store, islice(copied, min(ours.size, copy.checkpoint.size)))
    with store.read() as connection:
        edge = frontier_at(size, TileCache().reader(connection))
    copy = read_copy(source, copy.note, size, (), progress)
    if size == 0 or copy.replayed.tree.roots[size] != edge.root:
        raise RestoreRefused("copy_forked", f"{copy.source} has nothing in common with the database")
    return edge, copy


def _common_size(store: Store, copied: Iterator[bytes]) -> int:
    size = 0
    with store.read() as connection:
        while page := [leaf_hash(body) for body in islice(copied, TILE_WIDTH)]:
            for theirs, ours in zip(page, ledger.leaves(connection, size, size + len(page)), strict=False):
                if theirs != ours:
                    return size
                size += 1
    return size


def _two_histories(store: Store, common: Frontier, ours: Frontier, copy: PublicCopy) -> RestoreRefused:
    heads = [(ours.size, ours.root), (copy.checkpoint.size, copy.checkpoint.root)]
    here, there = (f"{size} entries, root hash {b64encode(root).decode('ascii')}" for size, root in heads)
    with store.read() as connection:
        named = branch.named(connection, common.size, NAMED)
    more = ours.size - common.size - len(named)
    told = "; ".join(named) + (f"; and {more} more" if more else "")
    return RestoreRefused(
        "copy_forked",
        f"two histories from entry {common.size + 1} on: the database has {here}; {copy.source} has {there}. Entries "
        f"that only the database has: {told}. With --drop-branch they are removed",
    )


def _root_at(store: Store, size: int) -> bytes:
    with store.read() as connection:
        try:
            return root_hash(size, TileCache().reader(connection))
        except ValueError as error:
            raise LedgerContradicted(str(error)) from error


def _written(
    connection: Connection, before: Frontier, copy: PublicCopy, limits: Limits, now: int, dry_run: bool
) -> Restored:
    """Everything at once. The ledger's head is locked."""
    state, size, domain = copy.replayed.state, copy.checkpoint.size, copy.checkpoint.origin
    ledger.extend(connection, before, copy.behind)
    rows = align(connection, state, copy.replayed.documents(), Retention(now, limits.spent_kept))
    lost = _lost(copy, now, applicants.remove_all(connection))
    used_tokens.close(connection, now + CLOSED_FOR)
    said = Change(REGISTRY_RESTORED, by=LOCAL, data={"first": before.size + 1, "last": size})
    appended = append(connection, now, said)
    audit.record(connection, now, LOCAL, REGISTRY_RESTORED, domain, appended.entry.seq)
    edge = appended.after
    return Restored(copy.source, before.size, size, edge.size, edge.root, dry_run, rows, lost, now + CLOSED_FOR)


def _lost(copy: PublicCopy, now: int, let_go: int) -> Lost:
    state, first = copy.replayed.state, copy.behind[0].seq
    made = [entry.data["id"] for entry in copy.behind if entry.type == JOIN_TOKEN_CREATED]
    tokens = [(token, state.join_tokens[token]) for token in made]
    policies = [(service, seq) for service, (seq, policy) in state.policies.items() if policy is None and seq >= first]
    return Lost(
        evidence=sum(entry.evidence is not None for entry in copy.behind),
        join_tokens=[(token, found.service) for token, found in tokens if found.good(now)],
        policies=sorted(policies),
        applicants=let_go,
    )
