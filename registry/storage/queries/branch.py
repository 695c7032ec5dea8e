"""Takes entries away: of a branch that nodes wrote after the database had lost entries, and of nothing else.

Only `registry.services.recovery.restore` does so, as the owner of the tables, on an operator's explicit word. The role
that serves may not (migrations/roles.sql).
"""

from collections.abc import Sequence

from sqlalchemy import Connection, delete, select, update

from peerseal.protocol.ledger.checkpoint import TILE_HEIGHT
from peerseal.protocol.ledger.merkle import Frontier
from registry.storage.tables import audit, entries, ledger_head, tiles


def named(connection: Connection, after: int, limit: int) -> Sequence[str]:
    """The first entries behind ``after``: number, type and subject of each."""
    columns = entries.c.seq, entries.c.type, entries.c.service, entries.c.kid
    found = select(*columns).where(entries.c.seq > after).order_by(entries.c.seq).limit(limit)
    return [" ".join(str(part) for part in row if part is not None) for row in connection.execute(found)]


def cut(connection: Connection, edge: Frontier) -> None:
    """Removes the entries behind that edge, the tiles that they completed, and their numbers in the audit trail. The
    head is locked."""
    connection.execute(delete(entries).where(entries.c.seq > edge.size))
    level, complete = 0, edge.size >> TILE_HEIGHT
    while connection.execute(select(tiles.c.level).where(tiles.c.level == level).limit(1)).first() is not None:
        connection.execute(delete(tiles).where(tiles.c.level == level, tiles.c.number >= complete))
        level, complete = level + 1, complete >> TILE_HEIGHT
    connection.execute(update(audit).where(audit.c.seq > edge.size).values(seq=None))
    connection.execute(update(ledger_head).values(size=edge.size, frontier=edge.encode()))
