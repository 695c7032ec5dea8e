"""The operators' audit trail: which operator did what. Rows are added, never changed or removed.

A row is written in the transaction of the act itself. The public part of an act is in the ledger; the trail also holds
acts that change nothing public, and only operators read it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, insert, select

from peerseal.protocol.encoding import canonical_json
from registry.storage.queries.ledger import Appended, Change, append, lock
from registry.storage.tables import audit

APPLICANT_REJECTED: Final = "applicant_rejected"
SIGNED_IN: Final = "signed_in"
SIGNED_OUT_EVERYWHERE: Final = "signed_out_everywhere"
"""The acts without a type of entry. The others have the names of their entries."""


@dataclass(frozen=True, slots=True)
class Act:
    """One row: when (seconds since the epoch), ``by`` as entries name an operator, what, about which token id, kid or
    service, and ``seq`` of the first entry that it made, if any."""

    id: int
    time: int
    by: Mapping[str, str]
    act: str
    subject: str
    seq: int | None


def record(
    connection: Connection, now: int, by: Mapping[str, str], act: str, subject: str, seq: int | None = None
) -> None:
    """Writes what an operator does in this transaction, as late in it as its entry.

    The ledger's head is locked, as by an entry: ids therefore have the order of the commits, and a reader of one row
    misses none before it.
    """
    lock(connection)
    name = canonical_json(dict(by)).decode("utf-8")
    connection.execute(insert(audit).values(time=now, by=name, act=act, subject=subject, seq=seq))


def append_act(connection: Connection, now: int, change: Change, subject: str) -> Appended:
    """Appends the entry of an operator's act, and writes the act."""
    appended = append(connection, now, change)
    record(connection, now, change.by, change.type, subject, appended.entry.seq)
    return appended


def page(connection: Connection, after: int, limit: int) -> list[Act]:
    """A page of the trail after the row ``after``, oldest first."""
    columns = (audit.c[name] for name in Act.__slots__)
    found = select(*columns).where(audit.c.id > after).order_by(audit.c.id).limit(limit)
    rows = connection.execute(found)
    return [Act(row.id, row.time, json.loads(row.by), row.act, row.subject, row.seq) for row in rows]
