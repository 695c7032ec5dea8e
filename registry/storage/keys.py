"""Keys: queries and changes. The changes belong into one transaction with their entry."""

import json
from typing import Any

from sqlalchemy import Connection, Row, Select, func, insert, or_, select, update

from peerseal.protocol.encoding import canonical_json
from registry.domain.keys import KeyRecord
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


def find(connection: Connection, thumbprint: str) -> KeyRecord | None:
    """The key with that thumbprint, whosever it is."""
    row = connection.execute(select(*_RECORD).where(keys.c.thumbprint == thumbprint)).first()
    return None if row is None else _record(row)


def listed(connection: Connection, service: str, retired_after: int, now: int) -> list[KeyRecord]:
    """The keys of the signed set: active ones, those retired after that time, and revoked ones until their natural
    end; oldest first."""
    recent = keys.c.revoked_at.is_(None) & (keys.c.active_until > retired_after)
    revoked = keys.c.revoked_at.is_not(None) & (keys.c.expires_at > now)
    return _records(connection, _of(service).where(keys.c.expires_at > retired_after, or_(recent, revoked)))


def page(connection: Connection, service: str, after: int, limit: int) -> list[KeyRecord]:
    """The keys of a service, past ones too, in order of admission, behind the entry with seq ``after``."""
    return _records(connection, _of(service).where(keys.c.admitted_seq > after).limit(limit))


def active_count(connection: Connection, service: str, now: int) -> int:
    """How many active keys a service has."""
    mine = keys.c.service == service, keys.c.expires_at > now
    active = keys.c.active_until > now, keys.c.revoked_at.is_(None)
    return connection.execute(select(func.count()).select_from(keys).where(*mine, *active)).scalar_one()


def descendants(connection: Connection, thumbprint: str) -> list[KeyRecord]:
    """Every key that the key vouched for, that those vouched for, and so on; oldest first."""
    tree = select(keys.c.thumbprint).where(keys.c.vouched_by == thumbprint).cte("tree", recursive=True)
    tree = tree.union(select(keys.c.thumbprint).where(keys.c.vouched_by == tree.c.thumbprint))
    found = select(*_RECORD).where(keys.c.thumbprint.in_(select(tree.c.thumbprint))).order_by(keys.c.admitted_seq)
    return _records(connection, found)


def add(connection: Connection, record: KeyRecord, vouched_by: str | None) -> None:
    """Writes a new key. Raises sqlalchemy.exc.IntegrityError where another service registered it a moment before."""
    values = {column.name: getattr(record, column.name) for column in _RECORD}
    values["admitted_by"] = canonical_json(dict(record.admitted_by)).decode("utf-8")
    connection.execute(insert(keys).values(**values, vouched_by=vouched_by))


def retire(connection: Connection, thumbprint: str, at: int) -> None:
    """Ends a key's active window."""
    connection.execute(update(keys).where(keys.c.thumbprint == thumbprint).values(active_until=at))


def revoke(connection: Connection, thumbprint: str, at: int, seq: int) -> None:
    """Marks a key as revoked by the entry ``seq``."""
    ended = {"revoked_at": at, "revoked_seq": seq}
    connection.execute(update(keys).where(keys.c.thumbprint == thumbprint).values(**ended))


def _of(service: str) -> Select[*tuple[Any, ...]]:
    return select(*_RECORD).where(keys.c.service == service).order_by(keys.c.admitted_seq)


def _records(connection: Connection, statement: Select[*tuple[Any, ...]]) -> list[KeyRecord]:
    return [_record(row) for row in connection.execute(statement)]


def _record(row: Row[*tuple[Any, ...]]) -> KeyRecord:
    values = list(row)
    values[_ADMITTED_BY] = json.loads(values[_ADMITTED_BY])
    return KeyRecord(*values)
