"""Keys: queries and changes. A change and its entry are written in one transaction.

Statements that every registration runs are built once: building one costs more than running it.
"""

import json
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, ScalarSelect, bindparam, func, insert, or_, select, update

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
_LISTED = _OF_SERVICE.where(
    keys.c.expires_at > bindparam("retired_after"),
    or_(
        keys.c.revoked_at.is_(None) & (keys.c.active_until > bindparam("retired_after")),
        keys.c.revoked_at.is_not(None) & (keys.c.expires_at > bindparam("now")),
    ),
)
_ACTIVE = (
    select(func.count())
    .select_from(keys)
    .where(keys.c.expires_at > bindparam("now"), keys.c.active_until > bindparam("now"), keys.c.revoked_at.is_(None))
)
_ACTIVE_COUNT = _ACTIVE.where(keys.c.service == bindparam("of"))
_JOINED_COUNT = _ACTIVE_COUNT.where(keys.c.vouched_by.is_(None))
_VOUCHED_COUNT = (
    select(func.count())
    .select_from(keys)
    .where(keys.c.service == bindparam("of"), keys.c.expires_at > bindparam("now"))
    .where(keys.c.vouched_by.is_not(None))
)
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


def vouched_count(connection: Connection, service: str, listed_from: int) -> int:
    """The number of a service's keys with a voucher whose natural end is after that time, in any state: each is listed
    in the signed set, or may be."""
    return connection.execute(_VOUCHED_COUNT, {"of": service, "now": listed_from}).scalar_one()


def descendants(connection: Connection, thumbprint: str) -> list[KeyRecord]:
    """Every key that the key vouched for, directly or through another; oldest first."""
    tree = select(keys.c.thumbprint).where(keys.c.vouched_by == thumbprint).cte("tree", recursive=True)
    tree = tree.union(select(keys.c.thumbprint).where(keys.c.vouched_by == tree.c.thumbprint))
    found = select(*_RECORD).where(keys.c.thumbprint.in_(select(tree.c.thumbprint))).order_by(keys.c.admitted_seq)
    return [_record(row) for row in connection.execute(found)]


def addition(record: KeyRecord, vouched_by: str | None) -> Write:
    """The write of a new key, for a batch with its entry. It raises sqlalchemy.exc.IntegrityError if the key was
    registered a moment before."""
    values = {f"key_{column.name}": getattr(record, column.name) for column in _RECORD}
    values["key_admitted_by"] = canonical_json(dict(record.admitted_by)).decode("utf-8")
    return Write(_ADD, {**values, "key_vouched_by": vouched_by})


def end(connection: Connection, record: KeyRecord) -> None:
    """Writes the end of a key: the time, and the entry that revoked it."""
    ended = {name: getattr(record, name) for name in ("active_until", "revoked_at", "revoked_seq")}
    connection.execute(update(keys).where(keys.c.thumbprint == record.thumbprint).values(**ended))


def _record(row: Row[*tuple[Any, ...]]) -> KeyRecord:
    values = list(row)
    values[_ADMITTED_BY] = json.loads(values[_ADMITTED_BY])
    return KeyRecord(*values)
