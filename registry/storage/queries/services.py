"""Services, and the entry that last changed each."""

from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, select

from peerseal.protocol.names import REGISTRY
from registry.storage.batched_writes import Write
from registry.storage.tables import services
from registry.storage.upsert import inserts

_SEQ = select(services.c.seq).where(services.c.name == bindparam("of"))
_CHANGED = {
    dialect: insert.values(name=bindparam("service_name"), seq=bindparam("service_seq")).on_conflict_do_update(
        index_elements=["name"], set_={"seq": insert.excluded.seq}
    )
    for dialect, insert in inserts(services).items()
}


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
