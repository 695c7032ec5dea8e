"""Keys: queries and changes. A change and its entry are written in one transaction.

Statements that every registration runs are built once: building one costs more than running it.
"""

import json
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Exists,
    Integer,
    Row,
    and_,
    bindparam,
    case,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)

from peerseal.protocol.documents.key_set import initial_of, part_of
from peerseal.protocol.encoding import canonical_json
from registry.domain.errors import LedgerContradicted, NotFound
from registry.domain.key_room import KeyCounts, PartCounts
from registry.domain.keys import KeyRecord
from registry.storage.batched_writes import Write
from registry.storage.tables import keys

_RECORD = (
    keys.c.thumbprint,
    keys.c.service,
    keys.c.spki,
    keys.c.admitted_seq,
    keys.c.admitted_by,
    keys.c.active_from,
    keys.c.active_until,
    keys.c.expires_at,
    keys.c.revoked_at,
    keys.c.revoked_seq,
)
_ADMITTED_BY = 4
_OF_SERVICE = select(*_RECORD).where(keys.c.service == bindparam("of")).order_by(keys.c.admitted_seq)

_FIND = select(*_RECORD).where(keys.c.thumbprint == bindparam("of"))
_IN_FULL = keys.c.revoked_at.is_(None) & (keys.c.active_until > bindparam("retired_after"))
_IS_LISTED = and_(
    keys.c.expires_at > bindparam("retired_after"),
    or_(_IN_FULL, keys.c.revoked_at.is_not(None) & (keys.c.expires_at > bindparam("now"))),
)
_LISTED = _OF_SERVICE.where(_IS_LISTED)
_LISTED_RANGE = select(func.count(), func.min(keys.c.admitted_seq)).where(keys.c.service == bindparam("of"), _IS_LISTED)
_INITIAL = func.substr(keys.c.thumbprint, 1, 1)
_LISTED_OF_PARTS = _LISTED.where(_INITIAL.in_(bindparam("initials", expanding=True)))
_ADMITTED = select(keys.c.thumbprint, keys.c.admitted_seq).where(
    keys.c.service == bindparam("of"), keys.c.admitted_seq > bindparam("after")
)
_ACTIVE = keys.c.revoked_at.is_(None) & (keys.c.active_until > bindparam("now"))
_ACTIVE_COUNT = (
    select(func.count())
    .select_from(keys)
    .where(keys.c.service == bindparam("of"), keys.c.expires_at > bindparam("now"), _ACTIVE)
)
_COUNTED = (keys.c.service == bindparam("of")) & (keys.c.expires_at > bindparam("retired_after"))
_TOTALS = select(
    func.coalesce(func.sum(case((_ACTIVE & keys.c.vouched_by.is_(None), 1), else_=0)), 0), func.count(keys.c.vouched_by)
).where(_COUNTED)
_PART_COUNTS = (
    select(_INITIAL, func.count(), func.sum(case((_IN_FULL, 1), else_=0)))
    .where(_COUNTED, _INITIAL.in_(bindparam("initials", expanding=True)))
    .group_by(_INITIAL)
)
_END = update(keys).where(keys.c.thumbprint == bindparam("of"))
_END = _END.values({name: bindparam(f"new_{name}") for name in ("active_until", "revoked_at", "revoked_seq")})
_SOME = select(*_RECORD).where(keys.c.thumbprint.in_(bindparam("thumbprints", expanding=True)))
_NEWEST = (
    select(*_RECORD)
    .where(keys.c.service == bindparam("of"), keys.c.admitted_seq < bindparam("before"))
    .order_by(keys.c.admitted_seq.desc())
    .limit(bindparam("most"))
)
_UNENDED = (
    select(keys.c.thumbprint, keys.c.active_from, keys.c.active_until, keys.c.expires_at, keys.c.revoked_at)
    .where(keys.c.service == bindparam("of"), keys.c.expires_at > bindparam("now"))
    .order_by(keys.c.expires_at.desc())
    .limit(bindparam("most"))
    .subquery()
)
_NEXT = keys.alias()
_HEADS = (
    select(_UNENDED.c.thumbprint, _UNENDED.c.active_from, _UNENDED.c.active_until)
    .where(
        _UNENDED.c.revoked_at.is_(None),
        _UNENDED.c.active_until > bindparam("now"),
        ~exists().where(_NEXT.c.vouched_by == _UNENDED.c.thumbprint, _NEXT.c.revoked_at.is_(None)),
    )
    .order_by(_UNENDED.c.expires_at.desc(), _UNENDED.c.thumbprint)
)
_VOUCHED_BY = select(*_RECORD).where(keys.c.vouched_by == bindparam("of")).limit(bindparam("most"))
_PAGE = 1000
_ADD = insert(keys).values({column: bindparam(f"key_{column.name}") for column in keys.c})


def find(connection: Connection, thumbprint: str) -> KeyRecord | None:
    """The key with that thumbprint, of any service."""
    row = connection.execute(_FIND, {"of": thumbprint}).first()
    return None if row is None else _record(row)


def of_service(connection: Connection, service: str, thumbprint: str) -> KeyRecord:
    """The service's key with that thumbprint. Raises NotFound, also for a key of another service."""
    record = find(connection, thumbprint)
    if record is None or record.service != service:
        raise NotFound("key_not_found")
    return record


def listed(connection: Connection, service: str, retired_after: int, now: int) -> list[KeyRecord]:
    """The keys of the signed set: active ones, those retired after that time, and revoked ones until their natural
    end; oldest first."""
    found = connection.execute(_LISTED, {"of": service, "retired_after": retired_after, "now": now})
    return [_record(row) for row in found]


class ListedRange(NamedTuple):
    """How many keys the signed set lists, and the entry that admitted the first of them; 0 where it lists none."""

    number: int
    first: int


def listed_range(connection: Connection, service: str, retired_after: int, now: int) -> ListedRange:
    """The extent of what `listed` returns."""
    times = {"retired_after": retired_after, "now": now}
    number, first = connection.execute(_LISTED_RANGE, {"of": service, **times}).one()
    return ListedRange(number, first or 0)


def listed_of_parts(
    connection: Connection, service: str, initials: Sequence[str], retired_after: int, now: int
) -> list[KeyRecord]:
    """As `listed`: those whose thumbprints begin with one of these characters."""
    parameters = {"of": service, "initials": initials, "retired_after": retired_after, "now": now}
    return [_record(row) for row in connection.execute(_LISTED_OF_PARTS, parameters)]


def admitted_after(connection: Connection, service: str, after: int) -> Sequence[tuple[str, int]]:
    """The thumbprint and the entry of each key of the service that an entry after ``after`` admitted."""
    return [(row[0], row[1]) for row in connection.execute(_ADMITTED, {"of": service, "after": after})]


def page(connection: Connection, service: str, after: int, limit: int) -> list[KeyRecord]:
    """The keys of a service, past ones too, in order of admission, after the entry ``after``."""
    found = _OF_SERVICE.where(keys.c.admitted_seq > after).limit(limit)
    return [_record(row) for row in connection.execute(found, {"of": service})]


def newest(connection: Connection, service: str, before: int, limit: int) -> list[KeyRecord]:
    """The keys of a service, past ones too, that entries before ``before`` admitted, the newest first."""
    found = connection.execute(_NEWEST, {"of": service, "before": before, "most": limit})
    return [_record(row) for row in found]


class Instance(NamedTuple):
    """The newest key of a host, with its active window, in seconds since the epoch."""

    thumbprint: str
    active_from: int
    active_until: int


def instances(connection: Connection, service: str, now: int, most: int) -> list[Instance]:
    """The active keys that vouched for no further one, the last to end first: each host has one, however often it
    rotated. Of the keys that have not reached their natural end, the newest ``most`` are looked at."""
    return [Instance(*row) for row in connection.execute(_HEADS, {"of": service, "now": now, "most": most})]


def active_count(connection: Connection, service: str, now: int) -> int:
    """The number of a service's active keys."""
    return connection.execute(_ACTIVE_COUNT, {"of": service, "now": now}).scalar_one()


def counts(connection: Connection, service: str, parts: Iterable[int], retired_after: int, now: int) -> KeyCounts:
    """The counts of a service's keys, and of those in some parts, whose natural end is after ``retired_after``."""
    of = {"of": service, "retired_after": retired_after}
    joined, vouched = connection.execute(_TOTALS, {**of, "now": now}).one()
    rows = connection.execute(_PART_COUNTS, {**of, "initials": sorted(set(map(initial_of, parts)))})
    return KeyCounts(joined, vouched, {part_of(initial): PartCounts(*numbers) for initial, *numbers in rows})


def has_more_keys(service: ColumnElement[str]) -> Exists:
    """Whether a service has more keys than ``most`` whose natural end is after ``retired_after``, within another query;
    both are bound there. No more than these are looked at."""
    found = select(keys.c.expires_at).where(keys.c.service == service, keys.c.expires_at > bindparam("retired_after"))
    return found.limit(1).offset(bindparam("most", type_=Integer)).exists()


def descendants(connection: Connection, thumbprint: str) -> list[KeyRecord]:
    """Every key that the key vouched for, directly or through another; oldest first."""
    tree = select(keys.c.thumbprint).where(keys.c.vouched_by == thumbprint).cte("tree", recursive=True)
    tree = tree.union(select(keys.c.thumbprint).where(keys.c.vouched_by == tree.c.thumbprint))
    return some(connection, connection.execute(select(tree.c.thumbprint)).scalars().all())


def some(connection: Connection, thumbprints: Sequence[str]) -> list[KeyRecord]:
    """The keys with these thumbprints, oldest first."""
    found = list[KeyRecord]()
    for first in range(0, len(thumbprints), _PAGE):  # each answer of the database has a time limit
        rows = connection.execute(_SOME, {"thumbprints": thumbprints[first : first + _PAGE]})
        found += [_record(row) for row in rows]
    return sorted(found, key=attrgetter("admitted_seq"))


def vouched_by(connection: Connection, thumbprint: str, limit: int) -> list[KeyRecord]:
    """Some of the keys that the key vouched for directly, oldest first. All of them, if they are no more than that."""
    rows = connection.execute(_VOUCHED_BY, {"of": thumbprint, "most": limit})
    return sorted(map(_record, rows), key=attrgetter("admitted_seq"))


def vouchers(connection: Connection, thumbprint: str, limit: int) -> Sequence[str]:
    """The thumbprints of the key's voucher, of the voucher of that one, and so on, of so many at most."""
    chain = select(keys.c.vouched_by, literal(1).label("step")).where(keys.c.thumbprint == thumbprint)
    up = chain.cte("chain", recursive=True)
    further = select(keys.c.vouched_by, up.c.step + 1).where(keys.c.thumbprint == up.c.vouched_by, up.c.step < limit)
    up = up.union_all(further)
    found = select(up.c.vouched_by).where(up.c.vouched_by.is_not(None)).order_by(up.c.step)
    return [voucher for voucher in connection.execute(found).scalars() if voucher is not None]


def falling(connection: Connection, thumbprint: str, limit: int) -> tuple[int, list[KeyRecord]]:
    """The descendants that are not revoked: how many they are, and the oldest ``limit`` of them. No row is read twice:
    a key may have 80,000 descendants."""
    known = (keys.c.thumbprint, keys.c.admitted_seq, keys.c.revoked_at)
    tree = select(*known).where(keys.c.vouched_by == thumbprint).cte("tree", recursive=True)
    tree = tree.union(select(*known).where(keys.c.vouched_by == tree.c.thumbprint))
    standing = select(tree.c.thumbprint, func.count().over()).where(tree.c.revoked_at.is_(None))
    oldest = connection.execute(standing.order_by(tree.c.admitted_seq).limit(limit)).all()
    rows = connection.execute(_SOME, {"thumbprints": [row[0] for row in oldest]})
    return (oldest[0][1] if oldest else 0), sorted(map(_record, rows), key=attrgetter("admitted_seq"))


def addition(record: KeyRecord, vouched_by: str | None) -> Write:
    """The write of a new key, for a batch with its entry. It raises sqlalchemy.exc.IntegrityError if the key was
    registered a moment before."""
    values = {f"key_{column.name}": getattr(record, column.name) for column in _RECORD}
    values["key_admitted_by"] = canonical_json(dict(record.admitted_by)).decode("utf-8")
    return Write(_ADD, {**values, "key_vouched_by": vouched_by})


def end(connection: Connection, records: Iterable[KeyRecord]) -> None:
    """Writes the ends of keys: the time, and the entry that revoked each."""
    names = ("active_until", "revoked_at", "revoked_seq")
    ends = [{"of": record.thumbprint, **{f"new_{name}": getattr(record, name) for name in names}} for record in records]
    for first in range(0, len(ends), _PAGE):
        connection.execute(_END, ends[first : first + _PAGE])


def _record(row: Row[*tuple[Any, ...]]) -> KeyRecord:
    values = list(row)
    values[_ADMITTED_BY] = _grounds(values[_ADMITTED_BY])
    return KeyRecord(*values)


def _grounds(text: str) -> dict[str, str]:
    """The right by which a key was admitted. Raises LedgerContradicted for an altered row."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise LedgerContradicted(
            f"a key was admitted by {text!r:.80}, expected an object of texts: its row was altered,"
            " run peerseal-registry verify"
        )
    return found
