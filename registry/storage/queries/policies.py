"""Policies and the domain's settings: queries and changes."""

from typing import Any, NamedTuple

from sqlalchemy import Connection, Table, bindparam, delete, select

from peerseal.protocol.ledger.entries import Entry
from registry.storage.tables import SETTINGS, domain_settings, entries, policies
from registry.storage.upsert import inserts

_THE_ROW = 1  # the primary key of the domain's settings
_POLICY = select(policies.c.seq, policies.c.body).where(policies.c.service == bindparam("of"))
_DOMAIN = select(domain_settings.c.seq, domain_settings.c.body).where(domain_settings.c.id == _THE_ROW)
_NEWEST = select(entries.c.body, entries.c.evidence).where(SETTINGS).order_by(entries.c.seq.desc()).limit(1)
_OF_SERVICE = _NEWEST.where(entries.c.service == bindparam("of"))
_OF_DOMAIN = _NEWEST.where(entries.c.service.is_(None))


def _puts(table: Table[Any], key: str) -> dict[str, Any]:
    """INSERTs that replace the row with the same key, by the dialect's name."""
    return {
        dialect: insert.on_conflict_do_update(
            index_elements=[key], set_={"seq": insert.excluded.seq, "body": insert.excluded.body}
        )
        for dialect, insert in inserts(table).items()
    }


_PUT_POLICY = _puts(policies, "service")
_PUT_DOMAIN = _puts(domain_settings, "id")


class SettingRow(NamedTuple):
    """A row: the entry that set it, and its content in canonical JSON."""

    seq: int
    body: str


class SettingEntry(NamedTuple):
    """The newest entry about a setting, and its evidence."""

    entry: Entry
    evidence: bytes | None


def policy(connection: Connection, service: str) -> SettingRow | None:
    """The row of the service's policy."""
    row = connection.execute(_POLICY, {"of": service}).one_or_none()
    return None if row is None else SettingRow(*row)


def newest_policy(connection: Connection, service: str) -> SettingEntry | None:
    """The entry that set or removed the service's policy last. Raises MalformedToken for altered bytes."""
    row = connection.execute(_OF_SERVICE, {"of": service}).one_or_none()
    return None if row is None else SettingEntry(Entry.decode(row.body), row.evidence)


def put_policy(connection: Connection, service: str, row: SettingRow) -> None:
    """Writes the service's policy."""
    statement = _PUT_POLICY[connection.dialect.name]
    connection.execute(statement, {"service": service, **row._asdict()})


def remove_policy(connection: Connection, service: str) -> None:
    """Removes the service's policy."""
    connection.execute(delete(policies).where(policies.c.service == service))


def domain(connection: Connection) -> SettingRow | None:
    """The row of the domain's settings."""
    row = connection.execute(_DOMAIN).one_or_none()
    return None if row is None else SettingRow(*row)


def newest_domain(connection: Connection) -> SettingEntry | None:
    """The entry that set the domain's settings last. Raises MalformedToken for altered bytes."""
    row = connection.execute(_OF_DOMAIN).one_or_none()
    return None if row is None else SettingEntry(Entry.decode(row.body), row.evidence)


def put_domain(connection: Connection, row: SettingRow) -> None:
    """Writes the domain's settings."""
    statement = _PUT_DOMAIN[connection.dialect.name]
    connection.execute(statement, {"id": _THE_ROW, **row._asdict()})
