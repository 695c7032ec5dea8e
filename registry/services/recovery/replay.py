"""Replays the ledger from its first entry: checks numbers, bytes, hashes and grounds, and rebuilds the tree."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, select

from peerseal.errors import PeersealError
from peerseal.protocol.ledger.checkpoint import TILE_WIDTH, tile_root
from peerseal.protocol.ledger.entries import Entry
from peerseal.protocol.ledger.merkle import HASH_SIZE, Frontier, leaf_hash
from registry.domain.differences import Difference
from registry.domain.evidence_checks import Checked
from registry.domain.grounds import Grounds
from registry.domain.rebuild import PublicState, apply
from registry.services.recovery.parallel_checks import ParallelChecks
from registry.storage.queries import ledger
from registry.storage.tables import entries, ledger_head, tiles

PAGE = 1000
"""Entries in memory at the same time."""
REPEATED = ("time", "type", "service", "kid")
"""Columns of an entry that repeat parts of its body."""

Report = Callable[[Difference], None]
Progress = Callable[[int, int], None]
"""Called with the number of entries that are done, and with the number of all."""
_TILE = select(tiles.c.hashes, tiles.c.root)


class Tree:
    """The tree, computed from the bytes of the entries alone. ``roots`` are its root hashes at the ``wanted`` sizes.
    ``whole`` is False once an entry is missing: then there is no tree."""

    def __init__(self, wanted: set[int]) -> None:
        self.edge = Frontier()
        self.whole = True
        self.roots: dict[int, bytes] = {0: self.edge.root}
        self.complete: dict[int, int] = {}
        self._wanted = wanted
        self._pending: list[bytearray] = [bytearray()]

    def append(self, leaf: bytes) -> Iterator[tuple[int, int, bytes]]:
        """Adds a leaf, and yields the tiles that it completes: level, number, hashes."""
        self.edge = self.edge.appended(leaf)
        if self.edge.size in self._wanted:
            self.roots[self.edge.size] = self.edge.root
        level, hashed = 0, leaf
        while True:
            if level == len(self._pending):
                self._pending.append(bytearray())
            row = self._pending[level]
            row += hashed
            if len(row) < TILE_WIDTH * HASH_SIZE:
                return
            number = self.complete[level] = self.complete.get(level, 0) + 1
            tile = bytes(row)
            row.clear()
            yield level, number - 1, tile
            level, hashed = level + 1, tile_root(tile)


@dataclass(slots=True)
class Replay:
    """The result of a replay. ``unbound`` counts the vouchers for a body in another spelling than the canonical one."""

    tree: Tree
    grounds: Grounds
    state: PublicState = field(default_factory=PublicState)
    unbound: int = 0

    def documents(self) -> dict[int, str]:
        """The root-signed documents by version. If one could not be read, which is reported, all are numbered from
        1."""
        versions = sorted(self.grounds.documents)
        if len(versions) == len(self.state.documents):
            return dict(zip(versions, self.state.documents, strict=True))
        return dict(enumerate(self.state.documents, 1))


@dataclass(frozen=True, slots=True)
class Replayer:
    """Replays the ledger of a database. ``wanted`` are the sizes whose root hash is needed. The evidence is
    checked in ``processes`` at most."""

    connection: Connection
    report: Report
    wanted: set[int]
    progress: Progress
    processes: int

    def replay(self) -> Replay:
        """Reads the whole ledger. Differences in evidence are reported later than others."""

        def take(checked: Checked) -> None:
            if checked.difference is not None:
                self.report(checked.difference)
            replayed.unbound += checked.unbound

        with ParallelChecks(self.processes, take) as checks:
            replayed = Replay(Tree(self.wanted), Grounds(checks.submit))
            self._read(replayed)
        for difference in replayed.grounds.end(replayed.state):
            self.report(difference)
        _check_head(self.connection, replayed, self.report)
        _check_extra_tiles(self.connection, replayed.tree, self.report)
        return replayed

    def _read(self, replayed: Replay) -> None:
        after, size = 0, ledger.head(self.connection)
        page = select(entries).order_by(entries.c.seq).limit(PAGE)
        while rows := self.connection.execute(page.where(entries.c.seq > after)).all():
            for row in rows:
                _entry(self.connection, row, replayed, self.report)
            after = rows[-1].seq
            self.progress(after, size)


def no_progress(_done: int, _of: int) -> None:
    """For callers that show none."""


def _entry(connection: Connection, row: Any, replayed: Replay, report: Report) -> None:
    state, tree = replayed.state, replayed.tree
    if row.seq != state.size + 1:
        _report_gap(row.seq, replayed, report)
    leaf = leaf_hash(row.body)
    if leaf != row.leaf:
        report(Difference.of("entries", row.seq, "leaf", row.leaf, leaf))
    if tree.whole:
        for tile in tree.append(leaf):
            _check_tile(connection, tile, report)
    try:
        entry = Entry.decode(row.body)
    except PeersealError as error:
        report(Difference.of("entries", row.seq, "body", error, "a canonical entry"))
        state.size = row.seq
        return
    for name in ("seq", *REPEATED):
        if (said := getattr(row, name)) != (should := getattr(entry, name)):
            report(Difference.of("entries", row.seq, name, said, should))
    for difference in replayed.grounds.check(entry, row.evidence, state):
        report(difference)
    try:
        apply(state, entry)
    except (PeersealError, KeyError, TypeError, ValueError, AttributeError) as error:
        report(Difference.of("entries", row.seq, "body", f"{type(error).__name__}: {error}", "what changes a state"))
    state.size = row.seq


def _report_gap(seq: int, replayed: Replay, report: Report) -> None:
    first, last = replayed.state.size + 1, seq - 1
    report(Difference.missing("entries", first if first == last else f"{first} to {last}"))
    replayed.tree.whole = False
    replayed.state.size = last


def _check_tile(connection: Connection, tile: tuple[int, int, bytes], report: Report) -> None:
    level, number, hashes = tile
    place = f"level {level}, number {number}"
    row = connection.execute(_TILE.where(tiles.c.level == level, tiles.c.number == number)).one_or_none()
    if row is None:
        report(Difference.missing("tiles", place))
        return
    for column, said, should in (("hashes", row.hashes, hashes), ("root", row.root, tile_root(hashes))):
        if said != should:
            report(Difference.of("tiles", place, column, said, should))


def _check_head(connection: Connection, replayed: Replay, report: Report) -> None:
    """The row that the registry signs its checkpoints from."""
    row = connection.execute(select(ledger_head)).one_or_none()
    if row is None:
        report(Difference.missing("ledger_head", 1))
        return
    if row.size != replayed.state.size:
        report(Difference.of("ledger_head", row.id, "size", row.size, replayed.state.size))
    edge = replayed.tree.edge.encode()
    if not replayed.tree.whole:
        report(Difference.of("ledger_head", row.id, "frontier", row.frontier, "unknown: entries are missing"))
    elif row.frontier != edge:
        report(Difference.of("ledger_head", row.id, "frontier", row.frontier, edge))


def _check_extra_tiles(connection: Connection, tree: Tree, report: Report) -> None:
    if not tree.whole:
        return
    for level, number in connection.execute(select(tiles.c.level, tiles.c.number).order_by(tiles.c.level)):
        if number >= tree.complete.get(level, 0):
            report(Difference.unexpected("tiles", f"level {level}, number {number}"))
