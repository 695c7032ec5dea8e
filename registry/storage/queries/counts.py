"""Bounded counts: none of them reads more rows than it is told to."""

from typing import NamedTuple

from sqlalchemy import Connection, ScalarSelect, Select, exists, func, select

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


class Totals(NamedTuple):
    """The numbers of services, without the row of the registry itself; of keys, past ones too; and of applicants that
    wait, without keys that were admitted by another right meanwhile."""

    services: int
    keys: int
    applicants: int


def totals_up_to(connection: Connection, now: int, most: int) -> Totals:
    """Each is ``most`` where there are as many or more."""
    admitted = exists().where(keys.c.thumbprint == applicants.c.thumbprint)
    found = (
        select(services.c.name).where(services.c.name != REGISTRY),
        select(keys.c.thumbprint),
        select(applicants.c.thumbprint).where(applicants.c.expires_at > now, ~admitted),
    )
    return Totals._make(connection.execute(select(*(_up_to(each, most) for each in found))).one())


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


def _up_to(found: Select[str], most: int) -> ScalarSelect[int]:
    return select(func.count()).select_from(found.limit(most).subquery()).scalar_subquery()
