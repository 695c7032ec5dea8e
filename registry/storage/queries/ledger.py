"""The append-only entries, and the tree over them. Only `cut` removes entries, and only a restore calls it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple, Protocol

from sqlalchemy import Connection, Row, Select, Update, bindparam, delete, exists, insert, literal, select, update

from peerseal.protocol.encoding import canonical_json
from peerseal.protocol.ledger.checkpoint import TILE_HEIGHT, TILE_WIDTH, tile_root
from peerseal.protocol.ledger.entries import Entry, evidence_digest
from peerseal.protocol.ledger.merkle import HASH_SIZE, Frontier, leaf_hash
from registry.domain.errors import LedgerContradicted
from registry.storage.batched_writes import Write, write_batch
from registry.storage.engine import POSTGRESQL
from registry.storage.tables import ENDINGS, HISTORIES, SETTINGS, audit, entries, keys, ledger_head, tiles

_HEAD = select(ledger_head.c.size)
_FRONTIER = select(ledger_head.c.size, ledger_head.c.frontier)
_LOCK = _FRONTIER.with_for_update()
_RAISE = update(ledger_head).values(size=bindparam("head_size"), frontier=bindparam("head_frontier"))
_INSERT = insert(entries)
_INSERT_ONE = _INSERT.values({column: bindparam(f"entry_{column.name}") for column in entries.c})
_ADD_TILE = insert(tiles)
_REVOKED = (
    select(entries.c.kid)
    .where(entries.c.seq > bindparam("after"), entries.c.type == "key_revoked")
    .order_by(entries.c.seq.desc())
    .limit(bindparam("most"))
)
_LEAVES = (
    select(entries.c.leaf)
    .where(entries.c.seq > bindparam("after"), entries.c.seq <= bindparam("to"))
    .order_by(entries.c.seq)
)
_TILE = select(tiles.c.hashes).where(tiles.c.level == bindparam("at"), tiles.c.number == bindparam("of"))
_ROOTS = (
    select(tiles.c.root)
    .where(tiles.c.level == bindparam("at"), tiles.c.number >= bindparam("after"), tiles.c.number < bindparam("to"))
    .order_by(tiles.c.number)
)
_BODIES = (
    select(entries.c.body)
    .where(entries.c.seq > bindparam("after"), entries.c.seq <= bindparam("to"))
    .order_by(entries.c.seq)
)
_NEWEST_FIRST = (
    select(entries.c.seq, entries.c.body)
    .where(entries.c.seq > bindparam("after"), entries.c.seq <= bindparam("to"))
    .order_by(entries.c.seq.desc())
)
_STORED = select(entries.c.body, entries.c.leaf, entries.c.evidence).where(entries.c.seq == bindparam("of"))
_ENDED = (
    select(entries.c.body).where(entries.c.kid.in_(bindparam("kids", expanding=True)), ENDINGS).order_by(entries.c.seq)
)
_ENDED_AFTER = select(entries.c.kid, entries.c.seq).where(
    entries.c.service == bindparam("of"), ENDINGS, entries.c.seq > bindparam("after")
)
_PAGE = 1000
_SOME = select(entries.c.body).where(entries.c.seq.in_(bindparam("seqs", expanding=True))).order_by(entries.c.seq)
_REVOCATIONS = select(entries.c.seq, entries.c.kid, entries.c.time).where(
    entries.c.seq.in_(bindparam("seqs", expanding=True)), entries.c.type == "key_revoked"
)
_NEWEST_ABOUT = [
    query.limit(bindparam("most"))
    for query in (
        select(keys.c.admitted_seq).where(keys.c.service == bindparam("of")).order_by(keys.c.admitted_seq.desc()),
        *(
            select(entries.c.seq).where(entries.c.service == bindparam("of"), kind).order_by(entries.c.seq.desc())
            for kind in (ENDINGS, SETTINGS)
        ),
    )
]
_HISTORIES = select(entries.c.body).where(HISTORIES).order_by(entries.c.seq)

GUARD = "ledger_guard"
"""The execution option that holds the guard of a connection (`registry.storage.unit.Store.guarded`)."""


class LedgerGuard(Protocol):
    """Checks each edge of the tree that is read, before it is signed or extended."""

    def check(self, connection: Connection, edge: Frontier) -> None:
        """Checks the edge that the connection's transaction sees. Raises LedgerContradicted."""

    def grew(self, before: Frontier, after: Frontier) -> None:
        """Records an edge that extends a checked one. Its transaction may still fail."""

    def settled(self, *, committed: bool) -> None:
        """Records the end of this thread's transaction, and whether its entries are in the ledger."""


@dataclass(frozen=True, slots=True)
class Change:
    """An entry without a number; the members are those of `peerseal.protocol.ledger.entries.Entry`. ``evidence`` proves
    the grounds of the entry: it is stored with the entry, which holds its digest."""

    type: str
    service: str | None = None
    kid: str | None = None
    by: Mapping[str, str] = field(default_factory=dict)
    evidence: Mapping[str, str] | None = None
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def evidence_bytes(self) -> bytes | None:
        """The evidence as it is stored."""
        return None if self.evidence is None else canonical_json(dict(self.evidence))

    def at(self, seq: int, time: int) -> Entry:
        """The entry, numbered."""
        evidence = self.evidence_bytes
        digest = None if evidence is None else evidence_digest(evidence)
        return Entry(seq, time, self.type, self.service, self.kid, self.by, digest, self.data)


class Appended(NamedTuple):
    """Entries with their rows, and the tree's right edge before and after them."""

    entries: Sequence[Entry]
    rows: Sequence[Mapping[str, Any]]
    before: Frontier
    after: Frontier

    @property
    def entry(self) -> Entry:
        """The last entry."""
        return self.entries[-1]


def append(connection: Connection, now: int, *changes: Change) -> Appended:
    """Writes the entries, numbered without gaps, and extends the tree.

    The head's row is locked until the transaction ends: the next writer gets the next number and sees all entries
    before. A transaction therefore appends once, and late: on PostgreSQL all writers queue from here on.
    """
    appended = grown(lock_frontier(connection), now, *changes)
    for first in range(0, len(appended.rows), _PAGE):  # each answer of the database has a time limit
        connection.execute(_INSERT, appended.rows[first : first + _PAGE])
    connection.execute(*_raised(appended.after))
    complete_tiles(connection, appended.before, appended.after)
    _tell_guard(connection, appended.before, appended.after)
    return appended


class Addition(NamedTuple):
    """One entry of `grown` that is not written yet, and the other writes of its transaction."""

    appended: Appended
    others: Sequence[Write]

    def writes(self) -> Sequence[Write]:
        """All writes, in a fixed order."""
        [row] = self.appended.rows
        entry = Write(_INSERT_ONE, {f"entry_{name}": value for name, value in row.items()})
        return (entry, *self.others, _raised(self.appended.after))


def append_each(connection: Connection, additions: Sequence[Addition]) -> None:
    """Writes entries of one kind in one message. The first extends the locked frontier, each further one the entry
    before it."""
    write_batch(connection, [addition.writes() for addition in additions])
    before, after = additions[0].appended.before, additions[-1].appended.after
    complete_tiles(connection, before, after)
    _tell_guard(connection, before, after)


def grown(before: Frontier, now: int, *changes: Change) -> Appended:
    """The entries that extend a tree with that right edge. Nothing is written."""
    numbered, rows, edge = [], [], before
    for change in changes:
        entry = change.at(edge.size + 1, now)
        row = _row(entry, change.evidence_bytes)
        edge = edge.appended(row["leaf"])
        rows.append(row)
        numbered.append(entry)
    return Appended(numbered, rows, before, edge)


def _row(entry: Entry, evidence: bytes | None) -> dict[str, Any]:
    own = {name: getattr(entry, name) for name in ("seq", "time", "type", "service", "kid")}
    body = entry.encode()
    return {**own, "body": body, "leaf": leaf_hash(body), "evidence": evidence}


def extend(connection: Connection, before: Frontier, numbered: Iterable[Entry]) -> Frontier:
    """Writes entries of a public copy, byte for byte and without their evidence, after the locked edge. Returns the new
    edge."""
    edge, coming = before, iter(numbered)
    while rows := [_row(entry, None) for entry in islice(coming, _PAGE)]:
        connection.execute(_INSERT, rows)
        for row in rows:
            edge = edge.appended(row["leaf"])
    connection.execute(*_raised(edge))
    complete_tiles(connection, before, edge)
    return edge


def _raised(edge: Frontier) -> Write:
    return Write(_RAISE, {"head_size": edge.size, "head_frontier": edge.encode()})


def lock_frontier(connection: Connection) -> Frontier:
    """The tree's right edge, locked until the transaction ends. Raises LedgerContradicted where it was altered."""
    return _edge(connection, connection.execute(_LOCK).one())


def lock(connection: Connection) -> None:
    """Locks the head as `lock_frontier` does, also after this transaction has extended the tree."""
    connection.execute(_LOCK).one()


def lock_by(connection: Connection, claim: Write) -> Frontier | None:
    """Executes the claim, and locks the frontier if it changed a row. None, and nothing is locked, if it did not.

    On PostgreSQL both are one message. As everywhere, the claim's row is locked before the head, which is only read
    once the claim has succeeded.
    """
    if connection.dialect.name == POSTGRESQL:
        row = connection.execute(_locking(claim.statement), claim.parameters).one_or_none()
        return None if row is None else _edge(connection, row)
    claimed = connection.execute(claim.statement, claim.parameters).rowcount == 1
    return lock_frontier(connection) if claimed else None


@lru_cache(8)
def _locking(claim: Update) -> Select[int, bytes]:
    claimed = claim.returning(literal(1).label("claimed")).cte("claim")
    return _FRONTIER.where(exists().select_from(claimed)).with_for_update(of=ledger_head)


def frontier(connection: Connection) -> Frontier:
    """The tree's right edge. Raises LedgerContradicted where it was altered, or where the guard refuses it."""
    return _edge(connection, connection.execute(_FRONTIER).one())


def _edge(connection: Connection, row: Row[int, bytes]) -> Frontier:
    try:
        edge = Frontier.decode(row[0], row[1])
    except ValueError as error:
        raise LedgerContradicted(str(error)) from error
    guard: LedgerGuard | None = connection.get_execution_options().get(GUARD)
    if guard is not None:
        guard.check(connection, edge)
    return edge


def _tell_guard(connection: Connection, before: Frontier, after: Frontier) -> None:
    guard: LedgerGuard | None = connection.get_execution_options().get(GUARD)
    if guard is not None:
        guard.grew(before, after)


def head(connection: Connection) -> int:
    """The number of entries."""
    return connection.execute(_HEAD).scalar_one()


def read_entries(connection: Connection, after: int = 0, limit: int = 1000) -> Iterator[Entry]:
    """All entries after ``after`` in order, fetched ``limit`` at a time. Raises MalformedToken for altered bytes."""
    while bodies := read_bodies(connection, after, after + limit):
        yield from map(Entry.decode, bodies)
        after += limit


def read_bodies(connection: Connection, after: int, to: int) -> Sequence[bytes]:
    """The bytes of the entries after ``after`` up to ``to``."""
    return connection.execute(_BODIES, {"after": after, "to": to}).scalars().all()


def read_numbered(connection: Connection, after: int, to: int) -> Sequence[tuple[int, bytes]]:
    """Number and bytes of the entries after ``after`` up to ``to``, the newest first."""
    return [(row[0], row[1]) for row in connection.execute(_NEWEST_FIRST, {"after": after, "to": to})]


class Stored(NamedTuple):
    """What the row of an entry says: its bytes, its leaf hash and its evidence."""

    body: bytes
    leaf: bytes
    evidence: bytes | None


def stored(connection: Connection, seq: int) -> Stored | None:
    """The row of an entry."""
    row = connection.execute(_STORED, {"of": seq}).one_or_none()
    return None if row is None else Stored(row[0], row[1], row[2])


def read_some(connection: Connection, seqs: Sequence[int]) -> list[Entry]:
    """The entries with these numbers, in order."""
    found, ordered = list[Entry](), sorted(seqs)
    for first in range(0, len(ordered), _PAGE):
        bodies = connection.execute(_SOME, {"seqs": ordered[first : first + _PAGE]}).scalars()
        found += [Entry.decode(body) for body in bodies]
    return found


def newest_about(connection: Connection, service: str, limit: int) -> list[Entry]:
    """The newest entries that admitted or ended keys of the service, or set its policy, the newest first. Entries about
    its join tokens are not among them: no index leads to those. Raises MalformedToken for altered bytes."""
    parameters = {"of": service, "most": limit}
    seqs = {seq for query in _NEWEST_ABOUT for seq in connection.execute(query, parameters).scalars()}
    return read_some(connection, sorted(seqs, reverse=True)[:limit])[::-1]


def endings(connection: Connection, kids: Sequence[str]) -> list[Entry]:
    """The entries that retired or revoked these keys, those of each key in order."""
    found = list[Entry]()
    for first in range(0, len(kids), _PAGE):
        bodies = connection.execute(_ENDED, {"kids": kids[first : first + _PAGE]}).scalars()
        found += [Entry.decode(body) for body in bodies]
    return found


def ended_after(connection: Connection, service: str, after: int) -> Sequence[tuple[str, int]]:
    """The kid and the number of each entry after ``after`` that retired or revoked a key of the service."""
    rows = connection.execute(_ENDED_AFTER, {"of": service, "after": after})
    return [(row[0], row[1]) for row in rows if row[0] is not None]


def revocations(connection: Connection, seqs: Sequence[int]) -> dict[int, tuple[str, int]]:
    """The kid and the time of those of these entries that revoked keys, by their numbers. Bodies are not read: there
    may be tens of thousands."""
    found = dict[int, tuple[str, int]]()
    for first in range(0, len(seqs), _PAGE):
        rows = connection.execute(_REVOCATIONS, {"seqs": seqs[first : first + _PAGE]})
        found |= {row[0]: (row[1], row[2]) for row in rows if row[1] is not None}
    return found


def revoked_after(connection: Connection, seq: int, limit: int) -> Sequence[str]:
    """The kids that entries after ``seq`` revoked, the newest first. It looks at each of these entries."""
    return [kid for kid in connection.execute(_REVOKED, {"after": seq, "most": limit}).scalars() if kid is not None]


def leaves(connection: Connection, after: int, to: int) -> Sequence[bytes]:
    """The leaf hashes of the entries after ``after`` up to ``to``."""
    return connection.execute(_LEAVES, {"after": after, "to": to}).scalars().all()


def histories(connection: Connection) -> list[str]:
    """The root's statements about lost entries, oldest first, as compact JWS, unverified."""
    found = (Entry.decode(body).data.get("statement") for body in connection.execute(_HISTORIES).scalars())
    return [jws for jws in found if type(jws) is str]


def has_any(connection: Connection, kind: str) -> bool:
    """Whether there is an entry of that type."""
    first = select(entries.c.seq).where(entries.c.type == kind).order_by(entries.c.seq).limit(1)
    return connection.execute(first).first() is not None


def evidence(connection: Connection, seq: int) -> bytes | None:
    """The evidence of an entry."""
    return connection.execute(select(entries.c.evidence).where(entries.c.seq == seq)).scalar_one_or_none()


def tile(connection: Connection, level: int, number: int) -> bytes:
    """The hashes of a tile: 256 where it is complete, otherwise those that the tree has so far."""
    complete = connection.execute(_TILE, {"at": level, "of": number}).scalar_one_or_none()
    return b"".join(_hashes_of(connection, level, number)) if complete is None else complete


def _hashes_of(connection: Connection, level: int, number: int) -> Sequence[bytes]:
    first = number * TILE_WIDTH
    query, at = (_LEAVES, {}) if level == 0 else (_ROOTS, {"at": level - 1})
    return connection.execute(query, {**at, "after": first, "to": first + TILE_WIDTH}).scalars().all()


def complete_tiles(connection: Connection, edge_before: Frontier, edge_after: Frontier) -> None:
    """Writes the tiles that have become complete, level by level."""
    level, before, after = 0, edge_before.size, edge_after.size
    while before // TILE_WIDTH < after // TILE_WIDTH:
        before, after = before // TILE_WIDTH, after // TILE_WIDTH
        for number in range(before, after):
            hashes = b"".join(_hashes_of(connection, level, number))
            if len(hashes) != TILE_WIDTH * HASH_SIZE:
                raise ValueError("entries or tiles are missing")
            row = {"level": level, "number": number, "hashes": hashes, "root": tile_root(hashes)}
            connection.execute(_ADD_TILE, row)
        level += 1


def named(connection: Connection, after: int, limit: int) -> Sequence[str]:
    """The first entries after ``after``: number, type and subject of each."""
    columns = entries.c.seq, entries.c.type, entries.c.service, entries.c.kid
    found = select(*columns).where(entries.c.seq > after).order_by(entries.c.seq).limit(limit)
    return [" ".join(str(part) for part in row if part is not None) for row in connection.execute(found)]


def cut(connection: Connection, edge: Frontier) -> None:
    """Removes the entries after that edge, the tiles that they completed, and their numbers in the audit trail. The
    head is locked. Only `registry.services.recovery.restore` calls this, on an operator's explicit demand and as the
    owner of the tables: the serving role has no right to (migrations/roles.sql)."""
    connection.execute(delete(entries).where(entries.c.seq > edge.size))
    level, complete = 0, edge.size >> TILE_HEIGHT
    while connection.execute(select(tiles.c.level).where(tiles.c.level == level).limit(1)).first() is not None:
        connection.execute(delete(tiles).where(tiles.c.level == level, tiles.c.number >= complete))
        level, complete = level + 1, complete >> TILE_HEIGHT
    connection.execute(update(audit).where(audit.c.seq > edge.size).values(seq=None))
    connection.execute(update(ledger_head).values(size=edge.size, frontier=edge.encode()))
