"""Services, and the entry that last changed each."""

from dataclasses import dataclass

from sqlalchemy import Connection, Row, bindparam, func, select

from peerseal.protocol.names import REGISTRY
from registry.storage.batched_writes import Write
from registry.storage.tables import entries, keys, services
from registry.storage.upsert import inserts

_SEQ = select(services.c.seq).where(services.c.name == bindparam("of"))
_CHANGED = {
    dialect: insert.values(name=bindparam("service_name"), seq=bindparam("service_seq")).on_conflict_do_update(
        index_elements=["name"], set_={"seq": insert.excluded.seq}
    )
    for dialect, insert in inserts(services).items()
}

KEYS_COUNTED = 500
"""Keys of one service that a summary reads, at most."""
_UNENDED = (
    select(keys.c.active_until, keys.c.revoked_at)
    .where(keys.c.service == services.c.name, keys.c.expires_at > bindparam("now"))
    .limit(KEYS_COUNTED)
    .correlate(services)
    .subquery()
)
_IS_ACTIVE = _UNENDED.c.revoked_at.is_(None) & (_UNENDED.c.active_until > bindparam("now"))
_SUMMARY = (
    select(
        services.c.name,
        services.c.seq,
        entries.c.time,
        entries.c.type,
        select(func.count()).where(_IS_ACTIVE).scalar_subquery().correlate(services),
        select(func.count()).select_from(_UNENDED).scalar_subquery().correlate(services),
    )
    .select_from(services.outerjoin(entries, entries.c.seq == services.c.seq))
    .where(services.c.name != REGISTRY)
)
_SUMMARY_OF = _SUMMARY.where(services.c.name == bindparam("of"))
_SUMMARIES = _SUMMARY.order_by(services.c.name).limit(bindparam("most"))
_SUMMARIES_AFTER = _SUMMARIES.where(services.c.name > bindparam("name"))
_SUMMARIES_FROM = _SUMMARIES.where(services.c.name >= bindparam("name"))
"""Two statements: of two bounds in one, SQLite would begin at the first."""


@dataclass(frozen=True, slots=True)
class ServiceSummary:
    """A service with the entry that last changed it, the time (seconds since the epoch) and type of that entry, None
    where it is missing, and the number of active keys. ``complete`` is False where there may be more of them, because
    only KEYS_COUNTED were read."""

    name: str
    seq: int
    changed_at: int | None
    change: str | None
    active_keys: int
    complete: bool


@dataclass(frozen=True, slots=True)
class ServiceRecord:
    """A service and the entry that last changed it."""

    name: str
    seq: int


def changed(connection: Connection, name: str, seq: int) -> None:
    """Records the entry that last changed a service."""
    connection.execute(*change(connection, name, seq))


def change(connection: Connection, name: str, seq: int) -> Write:
    """The write of `changed`, for a batch with its entry."""
    return Write(_CHANGED[connection.dialect.name], {"service_name": name, "service_seq": seq})


def seq_of(connection: Connection, name: str) -> int | None:
    """The entry that last changed a service; None where it never had a key."""
    return connection.execute(_SEQ, {"of": name}).scalar_one_or_none()


def page(connection: Connection, name: str, limit: int) -> list[ServiceRecord]:
    """A page of the services, by name, without the row that stands for the registry itself."""
    found = (
        select(services.c.name, services.c.seq)
        .where(services.c.name > name, services.c.name != REGISTRY)
        .order_by(services.c.name)
    )
    return [ServiceRecord(name, seq) for name, seq in connection.execute(found.limit(limit))]


def summary(connection: Connection, name: str, now: int) -> ServiceSummary | None:
    """One service; None where it never had a key or a policy, and for the row that stands for the registry itself."""
    row = connection.execute(_SUMMARY_OF, {"of": name, "now": now}).one_or_none()
    return None if row is None else _summary(row)


def summaries(
    connection: Connection, name: str, limit: int, now: int, *, inclusive: bool = False
) -> list[ServiceSummary]:
    """A page of the services by name: those after ``name``, and with ``inclusive`` also the one that has it."""
    query = _SUMMARIES_FROM if inclusive else _SUMMARIES_AFTER
    return [_summary(row) for row in connection.execute(query, {"name": name, "most": limit, "now": now})]


def _summary(row: Row[str, int, int | None, str | None, int, int]) -> ServiceSummary:
    name, seq, at, change, active, counted = row
    return ServiceSummary(name, seq, at, change, active, counted < KEYS_COUNTED)


def changed_since(connection: Connection, seq: int, limit: int) -> list[ServiceRecord]:
    """The services that an entry after ``seq`` changed, in the order of their last change."""
    found = select(services.c.name, services.c.seq).where(services.c.seq > seq).order_by(services.c.seq).limit(limit)
    return [ServiceRecord(*row) for row in connection.execute(found)]


def last_changed(connection: Connection, limit: int) -> list[ServiceRecord]:
    """The services that were changed last, the newest first."""
    found = select(services.c.name, services.c.seq).order_by(services.c.seq.desc()).limit(limit)
    return [ServiceRecord(*row) for row in connection.execute(found)]


def last_changed_in(connection: Connection, first: int, last: int) -> list[ServiceRecord]:
    """The services whose last change is one of the entries from ``first`` to ``last``, in the order of the entries."""
    inside = select(services.c.name, services.c.seq).where(services.c.seq >= first, services.c.seq <= last)
    return [ServiceRecord(*row) for row in connection.execute(inside.order_by(services.c.seq))]
