"""``peerseal-registry restore``: completes a database from a backup with the entries of the ledger's public copies.

A registry that went on from the backup would show its clients a second history without the later revocations. The
entries after the backup are public, and a signed checkpoint identifies them. They are written byte for byte, and the
tables are repaired to match them. Data that is in no entry is lost: it is named, and an entry records the restore.
"""

import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from tempfile import TemporaryFile
from typing import Any, BinaryIO, Final

from sqlalchemy import Connection

from peerseal.audit.ledger_reader import entry_bodies
from peerseal.protocol.ledger.checkpoint import TILE_WIDTH
from peerseal.protocol.ledger.entries import REGISTRY_RESTORED
from peerseal.protocol.ledger.merkle import Frontier, frontier_at, leaf_hash
from peerseal.protocol.tokens.claims import LEEWAY
from peerseal.protocol.tokens.request import REQUEST_LIFETIME_CAP
from registry.limits import Limits
from registry.services.access.operators import LOCAL
from registry.services.documents.tile_cache import TileCache
from registry.services.recovery.compare import Retention, repair
from registry.services.recovery.public_copy import PublicCopy, RestoreRefused, Source, read_copy
from registry.services.recovery.replay import Progress, no_progress
from registry.services.recovery.verify import check_kept, claimed_size
from registry.storage.queries import applicants, audit, console_sessions, ledger, used_tokens
from registry.storage.queries.ledger import Change
from registry.storage.unit import Store

NAMED: Final = 20
"""Entries of a branch that a refusal names; it counts the others."""
CLOSED_FOR: Final = REQUEST_LIFETIME_CAP + 2 * LEEWAY + 1
"""Seconds for which services' signed calls are refused: the database has forgotten which tokens were accepted since the
backup, and these could be replayed. A token by a clock that is LEEWAY ahead is valid until LEEWAY after its end."""

_CODES: Final[Mapping[str | None, str]] = {
    "signature": "checkpoint_not_signed",
    "size": "copy_too_old",
    "root": "checkpoint_contradicted",
}


@dataclass(frozen=True, slots=True)
class Lost:
    """Data that no copy holds: the number of entries without their evidence, the valid join tokens (id and service),
    the restricted policies in force (service and entry), and the number of removed applicants."""

    evidence: int = 0
    join_tokens: Sequence[tuple[str, str]] = ()
    policies: Sequence[tuple[str, int]] = ()
    applicants: int = 0


@dataclass(frozen=True, slots=True)
class Restored:
    """What was done, or with ``dry_run`` would be done. The entries after ``before`` up to ``copied`` came from
    ``source``; ``size`` and ``root`` are the ledger's afterwards. ``dropped`` names the removed entries of a branch.
    ``rows`` is the number of changed rows by table. Until ``closed_until`` (seconds since the epoch) services' signed
    calls are refused."""

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
        "dropped"}``, with the members of `Lost`."""
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


@dataclass(frozen=True, slots=True)
class _Plan:
    """The copy to restore from, the database's edge ``found``, and the edge ``before`` that both have in common."""

    copy: PublicCopy
    found: Frontier
    before: Frontier


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
    progress: Progress = no_progress,
) -> Restored:
    """Completes the database up to the end of the longest copy. A database that is complete is left as it is.

    ``kept`` are signed checkpoints, by name for messages; neither they nor the other copies may contradict the copy.
    ``reached`` is the largest size of the ledger that this host has seen: a shorter result would lead to a second
    history. Entries of a branch, which nodes wrote after the database had lost others, are removed with
    ``drop_branch``, and are a reason to refuse without it.
    Raises RestoreRefused, FetchError where a source does not answer, ConfigurationError where the temporary folder has
    no room, StorageUnavailable.
    """
    with TemporaryFile() as bodies:
        plan = _plan(store, sources, kept or {}, drop_branch, bodies, progress)
        copy, before, now = plan.copy, plan.before, int(clock())
        if max(copy.checkpoint.size, before.size) < reached:
            short = f"{copy.checkpoint.size} entries, and the ledger had {reached}"
            raise RestoreRefused("copy_too_old", f"{copy.source.name} has {short}")
        if copy.checkpoint.size <= before.size:
            until = None if dry_run else _close_guard(store, now)
            edge = before.size, before.size, before.size, before.root
            return Restored(copy.source.name, *edge, dry_run, closed_until=until)
        with store.write() as connection:
            restored = _written(connection, plan, limits, now, dry_run)
            if dry_run:
                connection.rollback()
        return restored


def _plan(
    store: Store,
    sources: Sequence[Source],
    kept: Mapping[str, str],
    drop_branch: bool,
    bodies: BinaryIO,
    progress: Progress,
) -> _Plan:
    """Reads the longest copy, and finds where the database ends in it. Raises RestoreRefused where the two have forked,
    unless the branch is to be dropped."""
    found = _edge_of(store)
    copy = _longest(sources, kept, found.size, bodies, progress)
    if _same_history(store, found, copy):
        return _Plan(copy, found, found)
    before, copy = _forked_at(store, found, copy, bodies, progress)
    if not drop_branch:
        raise _two_histories(store, before, found, copy)
    return _Plan(copy, found, before)


def _close_guard(store: Store, now: int) -> int:
    with store.write() as connection:
        return _close(connection, now)


def _close(connection: Connection, now: int) -> int:
    """Ends all sessions of the console, since some of a backup were ended later, and refuses signed calls for a while:
    the tokens that were accepted since the backup are not known. Returns until when."""
    console_sessions.remove_all(connection)
    used_tokens.close(connection, now + CLOSED_FOR)
    return now + CLOSED_FOR


def _edge_of(store: Store) -> Frontier:
    with store.look() as connection:
        edge = ledger.frontier(connection)
    if edge.size == 0:
        raise RestoreRefused(
            "not_initialised", "the database has no entry, so its root is unknown: restore a backup first"
        )
    return edge


def _longest(
    sources: Sequence[Source], kept: Mapping[str, str], after: int, bodies: BinaryIO, progress: Progress
) -> PublicCopy:
    """The copy with the largest checkpoint. All other copies and kept checkpoints must be part of it."""
    notes = [(source, source.note()) for source in sources]
    longest, note = max(notes, key=lambda found: claimed_size(found[1]))
    others = {source.name: other for source, other in notes if source is not longest}
    compared = {**kept, **others}
    copy = read_copy(longest, note, after, {claimed_size(other) for other in compared.values()}, bodies, progress)
    for name, other in compared.items():
        for wrong in check_kept(name, other, copy.replayed):
            raise RestoreRefused(_CODES[wrong.column], f"{longest.name}: {wrong}")
    return copy


def _same_history(store: Store, ours: Frontier, copy: PublicCopy) -> bool:
    """Whether one is the beginning of the other."""
    common = min(ours.size, copy.checkpoint.size)
    root = ours.root
    if common != ours.size:
        with store.read() as connection:
            root = TileCache().root_at(connection, common)
    return copy.replayed.tree.roots.get(common, copy.checkpoint.root) == root


def _forked_at(
    store: Store, ours: Frontier, copy: PublicCopy, bodies: BinaryIO, progress: Progress
) -> tuple[Frontier, PublicCopy]:
    """The edge up to which the database and the copy agree, and the copy with its entries after that."""
    copied = entry_bodies(copy.source.get, 0, copy.checkpoint.size)
    size = _common_size(store, islice(copied, min(ours.size, copy.checkpoint.size)))
    with store.read() as connection:
        edge = frontier_at(size, TileCache().reader(connection))
    copy = read_copy(copy.source, copy.note, size, (), bodies, progress)
    if size == 0 or copy.replayed.tree.roots[size] != edge.root:
        raise RestoreRefused("copy_forked", f"{copy.source.name} has no entry in common with the database")
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
        named = ledger.named(connection, common.size, NAMED)
    more = ours.size - common.size - len(named)
    told = "; ".join(named) + (f"; and {more} more" if more else "")
    return RestoreRefused(
        "copy_forked",
        f"two histories from entry {common.size + 1} on: the database has {here}; {copy.source.name} has {there}. "
        f"Entries that only the database has: {told}. With --drop-branch they are removed",
    )


def _written(connection: Connection, plan: _Plan, limits: Limits, now: int, dry_run: bool) -> Restored:
    """Writes everything in one transaction."""
    copy, before = plan.copy, plan.before
    if ledger.lock_frontier(connection) != plan.found:
        raise RestoreRefused("ledger_moved", "an entry was appended meanwhile: stop every node of the registry")
    dropped = ledger.named(connection, before.size, plan.found.size)
    if dropped:
        ledger.cut(connection, before)
    size = copy.checkpoint.size
    if ledger.extend(connection, before, copy.entries()).root != copy.checkpoint.root:
        raise RestoreRefused("copy_altered", "the entries changed in the temporary file")
    rows = repair(connection, copy.replayed.state, copy.replayed.documents(), Retention(now, limits.spent_kept))
    lost = _lost(copy, now, applicants.remove_all(connection))
    until = _close(connection, now)
    change = Change(REGISTRY_RESTORED, by=LOCAL, data={"first": before.size + 1, "last": size})
    edge = audit.append_act(connection, now, change, copy.checkpoint.origin).after
    return Restored(copy.source.name, before.size, size, edge.size, edge.root, dry_run, rows, lost, until, dropped)


def _lost(copy: PublicCopy, now: int, let_go: int) -> Lost:
    state = copy.replayed.state
    tokens = [(token, state.join_tokens[token]) for token in copy.late.join_tokens]
    policies = [
        (service, seq) for service, (seq, policy) in state.policies.items() if policy is None and seq > copy.after
    ]
    return Lost(
        evidence=copy.late.evidence,
        join_tokens=[(token, found.service) for token, found in tokens if found.good(now)],
        policies=sorted(policies),
        applicants=let_go,
    )
