"""The append-only entries. There is no statement here that changes or removes one."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update

from peerseal.protocol.ledger import Entry
from registry.storage.tables import entries, ledger_head

_HEAD = select(ledger_head.c.size)
_RAISE = update(ledger_head).values(size=ledger_head.c.size + bindparam("by")).returning(ledger_head.c.size)
_INSERT = insert(entries)


@dataclass(frozen=True, slots=True)
class Change:
    """An entry that has no number yet; the members are those of `peerseal.protocol.ledger.Entry`."""

    type: str
    service: str | None = None
    kid: str | None = None
    by: Mapping[str, str] = field(default_factory=dict)
    proof: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)

    def at(self, seq: int, time: int) -> Entry:
        """The entry, numbered."""
        return Entry(seq, time, self.type, self.service, self.kid, self.by, self.proof, self.data)


def append(connection: Connection, now: int, *changes: Change) -> list[Entry]:
    """Writes the entries, numbered without gaps.

    Raising the head's counter locks its row until the transaction ends: who comes next gets the next number and sees
    everything before. So a transaction appends once, and late: on PostgreSQL all writers queue from here on.
    """
    first = connection.execute(_RAISE, {"by": len(changes)}).scalar_one() - len(changes) + 1
    numbered = [change.at(seq, now) for seq, change in enumerate(changes, first)]
    rows = [_row(entry) for entry in numbered]
    connection.execute(_INSERT, rows if len(rows) > 1 else rows[0])
    return numbered


def head(connection: Connection) -> int:
    """The number of entries."""
    return connection.execute(_HEAD).scalar_one()


def read_entries(connection: Connection, after: int = 0, limit: int = 1000) -> Iterator[Entry]:
    """All entries behind ``after`` in order, fetched ``limit`` at a time. Raises MalformedToken for altered bytes."""
    while True:
        page = select(entries.c.body).where(entries.c.seq > after).order_by(entries.c.seq).limit(limit)
        bodies: Sequence[bytes] = connection.execute(page).scalars().all()
        for body in bodies:
            yield Entry.decode(body)
        if len(bodies) < limit:
            return
        after += limit


def _row(entry: Entry) -> dict[str, Any]:
    own = {name: getattr(entry, name) for name in ("seq", "time", "type", "service", "kid")}
    return {**own, "body": entry.encode()}
