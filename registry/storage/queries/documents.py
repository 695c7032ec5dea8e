"""Published documents that have a table of their own: the registry keys, signed by the root, and settings: services'
policies and the domain's settings. ``service`` is None for the domain's settings. The federation has no table: its
newest entry is in force."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, Table, bindparam, delete, insert, select

from peerseal.protocol.ledger.entries import Entry
from registry.storage.tables import FEDERATIONS, SETTINGS, domain_settings, entries, policies, registry_documents
from registry.storage.upsert import inserts

_SETTINGS_ID = 1  # the primary key of the one row of the domain's settings
_POLICY = select(policies.c.seq, policies.c.body).where(policies.c.service == bindparam("of"))
_DOMAIN = select(domain_settings.c.seq, domain_settings.c.body).where(domain_settings.c.id == _SETTINGS_ID)
_NEWEST_ENTRY = select(entries.c.body, entries.c.evidence).where(SETTINGS).order_by(entries.c.seq.desc()).limit(1)
_ENTRIES_OF_FEDERATION = select(entries.c.body).where(FEDERATIONS).order_by(entries.c.seq.desc())
_ENTRY_OF_SERVICE = _NEWEST_ENTRY.where(entries.c.service == bindparam("of"))
_ENTRY_OF_DOMAIN = _NEWEST_ENTRY.where(entries.c.service.is_(None))


def _puts(table: Table[Any], key: str) -> dict[str, Any]:
    """INSERTs that replace the row with the same key, by the dialect's name."""
    return {
        dialect: new.on_conflict_do_update(
            index_elements=[key], set_={"seq": new.excluded.seq, "body": new.excluded.body}
        )
        for dialect, new in inserts(table).items()
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


def registry_keys(connection: Connection) -> str | None:
    """The registry keys document in force, as its JWS; None before the registry was initialised."""
    newest_first = select(registry_documents.c.jws).order_by(registry_documents.c.version.desc())
    return connection.execute(newest_first.limit(1)).scalar_one_or_none()


def registry_keys_of(connection: Connection, version: int) -> str | None:
    """That version of the registry keys document, as its JWS."""
    found = select(registry_documents.c.jws).where(registry_documents.c.version == version)
    return connection.execute(found).scalar_one_or_none()


def add_registry_keys(connection: Connection, version: int, jws: str) -> None:
    """Writes the next version of the registry keys document."""
    connection.execute(insert(registry_documents).values(version=version, jws=jws))


def setting(connection: Connection, service: str | None) -> SettingRow | None:
    """The row of a setting."""
    found = connection.execute(_DOMAIN if service is None else _POLICY, {"of": service}).one_or_none()
    return None if found is None else SettingRow(*found)


def newest_setting_entry(connection: Connection, service: str | None) -> SettingEntry | None:
    """The entry that set or removed a setting last. Raises MalformedToken for altered bytes."""
    found = connection.execute(
        _ENTRY_OF_DOMAIN if service is None else _ENTRY_OF_SERVICE, {"of": service}
    ).one_or_none()
    return None if found is None else SettingEntry(Entry.decode(found.body), found.evidence)


def newest_federation_entry(connection: Connection) -> Entry | None:
    """The entry that set the federation last. Raises MalformedToken for altered bytes."""
    body = connection.execute(_ENTRIES_OF_FEDERATION.limit(1)).scalar_one_or_none()
    return None if body is None else Entry.decode(body)


def federation_bodies(connection: Connection, below: int, limit: int) -> Sequence[bytes]:
    """The bytes of the entries before number ``below`` that set the federation, the newest first."""
    return connection.execute(_ENTRIES_OF_FEDERATION.where(entries.c.seq < below).limit(limit)).scalars().all()


def put_setting(connection: Connection, service: str | None, new: SettingRow | None) -> None:
    """Writes the row of a setting, or removes a policy."""
    dialect = connection.dialect.name
    if new is None:
        connection.execute(delete(policies).where(policies.c.service == service))
    elif service is None:
        connection.execute(_PUT_DOMAIN[dialect], {"id": _SETTINGS_ID, **new._asdict()})
    else:
        connection.execute(_PUT_POLICY[dialect], {"service": service, **new._asdict()})
