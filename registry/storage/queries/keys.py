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
    Row,
    ScalarSelect,
    and_,
    bindparam,
    case,
    func,
    insert,
    or_,
    select,
    update,
)

from peerseal.protocol.encoding import canonical_json
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
_ACTIVE = (
    select(func.count())
    .select_from(keys)
    .where(keys.c.expires_at > bindparam("now"), keys.c.active_until > bindparam("now"), keys.c.revoked_at.is_(None))
)
_ACTIVE_COUNT = _ACTIVE.where(keys.c.service == bindparam("of"))
_JOINED_COUNT = _ACTIVE_COUNT.where(keys.c.vouched_by.is_(None))
_IN_PART = bindparam("initial") == _INITIAL
_VOUCHED_COUNTS = (
    select(
        func.count(),
        func.coalesce(func.sum(case((_IN_PART, 1), else_=0)), 0),
        func.coalesce(func.sum(case((_IN_PART & _IN_FULL, 1), else_=0)), 0),
    )
    .where(keys.c.service == bindparam("of"), keys.c.expires_at > bindparam("retired_after"))
    .where(keys.c.vouched_by.is_not(None))
)
_END = update(keys).where(keys.c.thumbprint == bindparam("of"))
_END = _END.values({name: bindparam(f"new_{name}") for name in ("active_until", "revoked_at", "revoked_seq")})
_SOME = select(*_RECORD).where(keys.c.thumbprint.in_(bindparam("thumbprints", expanding=True)))
_PAGE = 1000
_ADD = insert(keys).values({column: bindparam(f"key_{column.name}") for column in keys.c})


def find(connection: Connection, thumbprint: str) -> KeyRecord | None:
    """The key with that thumbprint, of any service."""
    row = connection.execute(_FIND, {"of": thumbprint}).first()
    return None if row is None else _record(row)


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


def active_count(connection: Connection, service: str, now: int) -> int:
    """The number of a service's active keys."""
    return connection.execute(_ACTIVE_COUNT, {"of": service, "now": now}).scalar_one()


def joined_count(connection: Connection, service: str, now: int) -> int:
    """The number of a service's active keys without a voucher."""
    return connection.execute(_JOINED_COUNT, {"of": service, "now": now}).scalar_one()


def joined_count_of(service: ColumnElement[str]) -> ScalarSelect[int]:
    """`joined_count` within another query; ``now`` is bound there."""
    return _ACTIVE.where(keys.c.service == service, keys.c.vouched_by.is_(None)).scalar_subquery()


class VouchedCounts(NamedTuple):
    """Numbers of a service's keys with a voucher, in any state: each is listed in the signed set, or may be.
    ``in_part`` are in the part of one key, and ``in_full`` are those of them that the part lists with the key itself,
    and not by kid alone."""

    all: int
    in_part: int
    in_full: int


def vouched_counts(connection: Connection, service: str, initial: str, retired_after: int) -> VouchedCounts:
    """The counts of the keys whose natural end is after that time. ``initial`` is the first character of the
    thumbprints in the part."""
    parameters = {"of": service, "initial": initial, "retired_after": retired_after}
    return VouchedCounts(*connection.execute(_VOUCHED_COUNTS, parameters).one())


def descendants(connection: Connection, thumbprint: str) -> list[KeyRecord]:
    """Every key that the key vouched for, directly or through another; oldest first."""
    tree = select(keys.c.thumbprint).where(keys.c.vouched_by == thumbprint).cte("tree", recursive=True)
    tree = tree.union(select(keys.c.thumbprint).where(keys.c.vouched_by == tree.c.thumbprint))
    thumbprints = connection.execute(select(tree.c.thumbprint)).scalars().all()
    found = list[KeyRecord]()
    for first in range(0, len(thumbprints), _PAGE):  # each answer of the database has a time limit
        rows = connection.execute(_SOME, {"thumbprints": thumbprints[first : first + _PAGE]})
        found += [_record(row) for row in rows]
    return sorted(found, key=attrgetter("admitted_seq"))


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
    values[_ADMITTED_BY] = json.loads(values[_ADMITTED_BY])
    return KeyRecord(*values)
