"""Applicants: queries and changes. They are in no entry, since they are not admitted."""

from dataclasses import asdict

from sqlalchemy import Connection, delete, exists, func, insert, select

from registry.domain.keys import Applicant
from registry.storage.tables import applicants, keys

_COLUMNS = tuple(applicants.c[name] for name in Applicant.__slots__)

LOCK = "applicants of all"
"""The name that a transaction locks to add an applicant (`registry.storage.unit.Store.write`): the number of applicants
only grows under it. No service can have this name."""


def find(connection: Connection, service: str, thumbprint: str, now: int) -> Applicant | None:
    """The applicant with that thumbprint for that service, while it waits."""
    found = select(*_COLUMNS).where(applicants.c.thumbprint == thumbprint, applicants.c.service == service)
    row = connection.execute(found.where(applicants.c.expires_at > now)).first()
    return None if row is None else Applicant(*row)


def counts(connection: Connection, service: str, now: int) -> tuple[int, int]:
    """The number of applicants of all services, and of that one."""
    of_service = func.count().filter(applicants.c.service == service)
    row = connection.execute(select(func.count(), of_service).where(applicants.c.expires_at > now)).one()
    return row[0], row[1]


def add(connection: Connection, applicant: Applicant) -> None:
    """Writes a new applicant, in place of one with the same key that has expired or is for another service."""
    connection.execute(delete(applicants).where(applicants.c.thumbprint == applicant.thumbprint))
    connection.execute(insert(applicants).values(**asdict(applicant)))


def remove(connection: Connection, service: str, thumbprint: str) -> bool:
    """Removes an applicant. False where there is none."""
    found = (applicants.c.thumbprint == thumbprint, applicants.c.service == service)
    return connection.execute(delete(applicants).where(*found)).rowcount == 1


def remove_past(connection: Connection, now: int) -> int:
    """Removes expired applicants, and returns their number."""
    return connection.execute(delete(applicants).where(applicants.c.expires_at <= now)).rowcount


def remove_all(connection: Connection) -> int:
    """Removes all applicants, and returns their number."""
    return connection.execute(delete(applicants)).rowcount


def page(connection: Connection, after: str, limit: int, now: int) -> list[Applicant]:
    """A page of the waiting applicants, by thumbprint; without keys that were admitted by another right meanwhile."""
    admitted = exists().where(keys.c.thumbprint == applicants.c.thumbprint)
    found = select(*_COLUMNS).where(applicants.c.thumbprint > after, applicants.c.expires_at > now, ~admitted)
    return [Applicant(*row) for row in connection.execute(found.order_by(applicants.c.thumbprint).limit(limit))]
