"""Bounded counts: none of them reads more rows than it is told to."""

from typing import NamedTuple

from sqlalchemy import Connection, Select, exists, func, select

from peerseal.protocol.names import REGISTRY
from registry.storage.tables import applicants, entries, keys, services

DAY = 86_400


class KeyCounts(NamedTuple):
    """Active keys, and how many of them end within a day, and within a week."""

    active: int
    within_day: int
    within_week: int

    def plus(self, other: "KeyCounts") -> "KeyCounts":
        """Both together."""
        return KeyCounts(*(one + more for one, more in zip(self, other, strict=True)))


NO_KEYS = KeyCounts(0, 0, 0)


def services_up_to(connection: Connection, most: int) -> int:
    """The number of services, without the row of the registry itself; ``most`` where there are as many or more."""
    return _up_to(connection, select(services.c.name).where(services.c.name != REGISTRY), most)


def keys_up_to(connection: Connection, most: int) -> int:
    """The number of keys, past ones too; ``most`` where there are as many or more."""
    return _up_to(connection, select(keys.c.thumbprint), most)


def applicants_up_to(connection: Connection, now: int, most: int) -> int:
    """The number of applicants that wait, without keys that were admitted by another right meanwhile; ``most`` where
    there are as many or more."""
    admitted = exists().where(keys.c.thumbprint == applicants.c.thumbprint)
    return _up_to(connection, select(applicants.c.thumbprint).where(applicants.c.expires_at > now, ~admitted), most)


def active_keys(connection: Connection, after: str, to: str, now: int) -> KeyCounts:
    """The counts of the services with names after ``after`` up to ``to``."""
    ends = keys.c.active_until  # never after `expires_at`
    found = select(
        func.count(), func.count().filter(ends <= now + DAY), func.count().filter(ends <= now + 7 * DAY)
    ).where(
        keys.c.service > after,
        keys.c.service <= to,
        keys.c.expires_at > now,
        keys.c.active_until > now,
        keys.c.revoked_at.is_(None),
    )
    return KeyCounts(*connection.execute(found).one())


def time_of(connection: Connection, seq: int) -> int | None:
    """The time of an entry, in seconds since the epoch."""
    return connection.execute(select(entries.c.time).where(entries.c.seq == seq)).scalar_one_or_none()


def _up_to(connection: Connection, found: Select[str], most: int) -> int:
    return connection.execute(select(func.count()).select_from(found.limit(most).subquery())).scalar_one()
