"""Keys: queries and changes. The changes belong into one transaction with their entry.

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
    """The key with that thumbprint, whosever it is."""
    row = connection.execute(_FIND, {"of": thumbprint}).first()
    return None if row is None else _record(row)


def listed(connection: Connection, service: str, retired_after: int, now: int) -> list[KeyRecord]:
    """The keys of the signed set: active ones, those retired after that time, and revoked ones until their natural
    end; oldest first."""
    found = connection.execute(_LISTED, {"of": service, "retired_after": retired_after, "now": now})
    return [_record(row) for row in found]


def page(connection: Connection, service: str, after: int, limit: int) -> list[KeyRecord]:
    """The keys of a service, past ones too, in order of admission, behind the entry with seq ``after``."""
    found = _OF_SERVICE.where(keys.c.admitted_seq > after).limit(limit)
    return [_record(row) for row in connection.execute(found, {"of": service})]


def active_count(connection: Connection, service: str, now: int) -> int:
    """How many active keys a service has."""
    return connection.execute(_ACTIVE_COUNT, {"of": service, "now": now}).scalar_one()


def joined_count(connection: Connection, service: str, now: int) -> int:
    """How many active keys a service has that no other key vouched for."""
    return connection.execute(_JOINED_COUNT, {"of": service, "now": now}).scalar_one()


def joined_count_of(service: ColumnElement[str]) -> ScalarSelect[int]:
    """`joined_count` within another query; ``now`` is bound there."""
    return _ACTIVE.where(keys.c.service == service, keys.c.vouched_by.is_(None)).scalar_subquery()


def vouched_count(connection: Connection, service: str, listed_from: int) -> int:
    """How many keys of a service that another one vouched for had not reached their natural end at that time, whatever
    became of them: each of these is or may yet be listed in the signed set."""
    return connection.execute(_VOUCHED_COUNT, {"of": service, "now": listed_from}).scalar_one()


def descendants(connection: Connection, thumbprint: str) -> list[KeyRecord]:
    """Every key that the key vouched for, that those vouched for, and so on; oldest first."""
    tree = select(keys.c.thumbprint).where(keys.c.vouched_by == thumbprint).cte("tree", recursive=True)
    tree = tree.union(select(keys.c.thumbprint).where(keys.c.vouched_by == tree.c.thumbprint))
    found = select(*_RECORD).where(keys.c.thumbprint.in_(select(tree.c.thumbprint))).order_by(keys.c.admitted_seq)
    return [_record(row) for row in connection.execute(found)]


def addition(record: KeyRecord, vouched_by: str | None) -> Write:
    """A new key, to be written beside its entry, which raises sqlalchemy.exc.IntegrityError where it was registered a
    moment before."""
    values = {f"key_{column.name}": getattr(record, column.name) for column in _RECORD}
    values["key_admitted_by"] = canonical_json(dict(record.admitted_by)).decode("utf-8")
    return Write(_ADD, {**values, "key_vouched_by": vouched_by})


def end(connection: Connection, record: KeyRecord) -> None:
    """Writes down how a key ended: when its window closed, and the entry that revoked it."""
    ended = {name: getattr(record, name) for name in ("active_until", "revoked_at", "revoked_seq")}
    connection.execute(update(keys).where(keys.c.thumbprint == record.thumbprint).values(**ended))


def _record(row: Row[*tuple[Any, ...]]) -> KeyRecord:
    values = list(row)
    values[_ADMITTED_BY] = json.loads(values[_ADMITTED_BY])
    return KeyRecord(*values)
