"""Whether this node can answer calls: named checks, asked by load balancers and orchestrators."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from peerseal.errors import PeersealError, printable
from registry.services.authority.authority import AuthoritySource
from registry.storage.schema import SCHEMA_REVISION, read_schema
from registry.storage.unit import Store

log = logging.getLogger(__name__)

Check = Callable[[], str | None]
"""Returns the fault and its remedy in one line, or None. It may raise PeersealError or SQLAlchemyError."""


@dataclass(frozen=True, slots=True)
class Readiness:
    """The result of each check. All calls need the checks in ``reading``; calls that sign or write also need those in
    ``writing``."""

    reading: Mapping[str, bool]
    writing: Mapping[str, bool]

    @property
    def can_read(self) -> bool:
        """Whether the node can answer calls that read."""
        return all(self.reading.values())

    @property
    def can_write(self) -> bool:
        """Whether it can answer all calls."""
        return self.can_read and all(self.writing.values())


class Checks:
    """The checks of one process. Each part of the registry adds its own. The first failure of a check is logged."""

    def __init__(self) -> None:
        self._reading: dict[str, Check] = {}
        self._writing: dict[str, Check] = {}
        self._troubles: dict[str, str] = {}

    def for_reading(self, name: str, check: Check) -> None:
        """Adds a check without which the node can answer no call."""
        self._reading[name] = check

    def for_writing(self, name: str, check: Check) -> None:
        """Adds a check without which the node can neither sign nor write."""
        self._writing[name] = check

    def now(self) -> Readiness:
        """Runs all checks."""
        troubles = {name: trouble for name, check in self._all().items() if (trouble := _trouble(check)) is not None}
        before, self._troubles = self._troubles, troubles
        if troubles.keys() - before.keys():
            log.warning("not ready: %s", "; ".join(f"{name}: {trouble}" for name, trouble in troubles.items()))
        elif before and not troubles:
            log.info("ready again")
        return Readiness(*({name: name not in troubles for name in of} for of in (self._reading, self._writing)))

    def _all(self) -> dict[str, Check]:
        return {**self._reading, **self._writing}


def _trouble(check: Check) -> str | None:
    try:
        return check()
    except (PeersealError, SQLAlchemyError) as error:
        return printable(str(error).split("\n", 1)[0])


def basic_checks(store: Store, authority: AuthoritySource, clock: Callable[[], float]) -> Checks:
    """The checks for all calls: the database, a schema that this version can work with, and keys in force."""
    checks = Checks()
    checks.for_reading("database", lambda: _database(store))
    checks.for_reading("schema", SchemaCheck(store))
    checks.for_reading("keys", lambda: _keys(authority, clock))
    checks.for_writing("durable", store.not_writable)
    return checks


def _database(store: Store) -> None:
    """Opens a transaction, which a pooler in statement mode refuses."""
    with store.read() as connection:
        connection.execute(select(1))


def _keys(authority: AuthoritySource, clock: Callable[[], float]) -> str | None:
    if clock() < authority.in_force().keys.expires_at:
        return None
    return "the root-signed document has expired: run peerseal-registry init where the root key is"


class SchemaCheck:
    """Checks that this version can serve with the schema. A newer schema is logged once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._told: str | None = None

    def __call__(self) -> str | None:
        """See Check."""
        with self._store.look() as connection:
            schema = read_schema(connection)
        if schema.newer and schema.trouble is None and schema.revision != self._told:
            self._told = schema.revision
            message = "the schema is at revision %s, a newer version's; this node knows %s and serves on: upgrade it"
            log.warning(message, schema.revision, SCHEMA_REVISION)
        return schema.trouble
