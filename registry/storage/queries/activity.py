"""The newest entries of the ledger and rows of the audit trail, as the console lists them: in ranges of their numbers,
so that the primary keys bound each query."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Select, func, or_, select

from registry.storage.tables import audit, entries


class EntryRow(NamedTuple):
    """An entry, with the columns that repeat parts of its body."""

    seq: int
    time: int
    type: str
    service: str | None
    kid: str | None
    body: bytes


class ActRow(NamedTuple):
    """A row of the audit trail. ``seq`` is the first entry that the act made, ``service`` that entry's."""

    id: int
    time: int
    by: str
    act: str
    subject: str
    seq: int | None
    service: str | None


@dataclass(frozen=True, slots=True)
class Span:
    """Numbers after ``above`` and before ``below``, ``limit`` of them at most, the newest first or the oldest."""

    above: int
    below: int
    newest_first: bool
    limit: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to list: only this type of entry or act, this service, this operator (the ``by`` of a row, in canonical
    JSON). ``kids`` is the beginning of the service's kids."""

    type: str | None = None
    service: str | None = None
    kids: str = ""
    by: str | None = None


def newest_act(connection: Connection) -> int:
    """The number of the newest row of the audit trail; 0 where there is none."""
    return connection.execute(select(func.max(audit.c.id))).scalar_one() or 0


def entry_rows(connection: Connection, span: Span, wanted: Wanted) -> list[EntryRow]:
    """The entries in that span, without regard to the operator."""
    found = select(*(entries.c[name] for name in EntryRow._fields))
    if wanted.type is not None:
        found = found.where(entries.c.type == wanted.type)
    if wanted.service is not None:
        found = found.where(entries.c.service == wanted.service)
    return [EntryRow(*row) for row in _rows(connection, found, entries.c.seq, span)]


def act_rows(connection: Connection, span: Span, wanted: Wanted) -> list[ActRow]:
    """The rows of the audit trail in that span. An act without an entry is about the service of its kid."""
    columns = (*(audit.c[name] for name in ActRow._fields[:-1]), entries.c.service)
    found = select(*columns).select_from(audit.outerjoin(entries, entries.c.seq == audit.c.seq))
    if wanted.type is not None:
        found = found.where(audit.c.act == wanted.type)
    if wanted.by is not None:
        found = found.where(audit.c.by == wanted.by)
    if wanted.service is not None:
        of_kid = audit.c.seq.is_(None) & audit.c.subject.startswith(wanted.kids, autoescape=True)
        found = found.where(or_(entries.c.service == wanted.service, of_kid))
    return [ActRow(*row) for row in _rows(connection, found, audit.c.id, span)]


def _rows(
    connection: Connection, found: Select[*tuple[Any, ...]], number: ColumnElement[int], span: Span
) -> Sequence[Any]:
    inside = found.where(number > span.above, number < span.below)
    return connection.execute(inside.order_by(number.desc() if span.newest_first else number).limit(span.limit)).all()
