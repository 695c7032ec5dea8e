"""Brings the schema up to date. Any number of nodes may do so at the same time."""

import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from psycopg.errors import DeadlockDetected, LockNotAvailable
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import OperationalError

import registry
from peerseal.runtime.files import resolved
from registry.domain.errors import SchemaRefused, StorageUnavailable
from registry.storage.engine import POSTGRESQL, TIMEOUTS, WRITES, DatabaseTimeouts
from registry.storage.schema import RELEASED_REVISION, SCHEMA_REVISION, Schema, current_revision, read_schema
from registry.storage.unit import storage_errors

log = logging.getLogger(__name__)

__all__ = ["SCHEMA_REVISION", "current_revision", "migrate", "migrate_down", "newest_revision"]

LOCK_WAIT = 180
"""Seconds to wait for another node that migrates."""
DDL_LOCK_TIMEOUT = 1
"""Seconds for which a change of the schema may block other users of a table while it waits for that table: they give up
after two (`DatabaseTimeouts.pool`). Then it lets them pass, and tries again."""
DDL_ATTEMPTS = 60
"""Attempts to lock a table, a second apart."""
DDL_STATEMENT_TIMEOUT = 300
"""Seconds that one statement of a migration may take."""

_ADVISORY_LOCK = 0x7065_6572_7365_616C  # "peerseal"


def scripts() -> Path:
    """The folder of the migrations, next to the package in a checkout and in an installation.

    It is found by its path, not by import: the working directory may hold another `migrations`.
    """
    return Path(registry.__file__).resolve().parent.parent / "migrations"


def migrate(engine: Engine) -> str:
    """Runs the missing migrations, one transaction each, and returns the revision of the database. A newer schema with
    which nodes of this version can work is left as it is.

    Raises SchemaRefused where they cannot, StorageUnavailable where another node holds the lock for too long.
    """
    with storage_errors(), _one_at_a_time(engine) as connection:
        schema = _schema(connection)
        if schema.newer:
            return _known(schema)
        if schema.revision == SCHEMA_REVISION:
            return SCHEMA_REVISION  # the scripts need not be read
        _when_tables_are_free(lambda: command.upgrade(alembic_config(connection), SCHEMA_REVISION))
    return SCHEMA_REVISION


def migrate_down(engine: Engine) -> str:
    """Returns to the schema of the last release, before its nodes serve alone, and returns its revision.

    Raises SchemaRefused where data would be lost, or where the schema is a newer version's, and StorageUnavailable as
    `migrate` does.
    """
    with storage_errors(), _one_at_a_time(engine) as connection:
        schema = _schema(connection)
        if schema.newer:
            raise SchemaRefused(f"the schema is at revision {schema.revision}: run migrate --down of that version")
        if schema.revision is None:
            raise SchemaRefused(str(schema.trouble))
        if schema.revision <= RELEASED_REVISION:
            return schema.revision
        if lost := _lost_by_downgrade(connection, schema.revision):
            raise SchemaRefused(f"nothing is changed: revision {RELEASED_REVISION} has no place for {', '.join(lost)}")
        _when_tables_are_free(lambda: command.downgrade(alembic_config(connection), RELEASED_REVISION))
    return RELEASED_REVISION


def apply_roles(engine: Engine) -> None:
    """Runs roles.sql: makes the two roles of PostgreSQL if they are missing, and grants the privileges that the tables
    which exist need. May be repeated.

    Raises SchemaRefused on SQLite, and for a role that does not own the tables: PostgreSQL would only warn, and grant
    nothing.
    """
    if engine.dialect.name != POSTGRESQL:
        raise SchemaRefused(f"roles are for PostgreSQL, the database is {engine.dialect.name}: nothing to grant")
    with storage_errors(), _one_at_a_time(engine) as connection, connection.begin():
        if (role := connection.execute(_NOT_THE_OWNER).scalar()) is not None:
            raise SchemaRefused(f"{role} does not own the tables, nothing is granted: run it as peerseal_owner")
        # Without parameters, since several statements and a % are in it.
        connection.execution_options(no_parameters=True).exec_driver_sql(roles_sql())


def roles_sql() -> str:
    """The statements of migrations/roles.sql."""
    return (scripts() / "roles.sql").read_text("utf-8")


def newest_revision() -> str:
    """The revision that this version of the code needs."""
    revision = _scripts().get_current_head()
    if revision is None:
        raise RuntimeError(f"there are no migrations in {scripts()}")
    return revision


def _when_tables_are_free(change: Callable[[], None]) -> None:
    """Changes the schema, also where others use a table for long: one transaction that waits for a table has all later
    users of it wait as well."""
    for left in reversed(range(DDL_ATTEMPTS)):
        try:
            change()
            return
        except OperationalError as error:
            if not isinstance(error.orig, _TABLE_IN_USE):
                raise
            if not left:
                raise StorageUnavailable(f"{_BUSY} for a minute: end it, and migrate again") from error
            if left == DDL_ATTEMPTS - 1:
                log.warning("%s: the change of the schema waits for its end", _BUSY)
        time.sleep(1.0)


def _schema(connection: Connection) -> Schema:
    """The current schema, read in a transaction of its own, as each migration has."""
    with connection.begin():
        return read_schema(connection)


def _known(schema: Schema) -> str:
    """The revision of a newer schema. Raises SchemaRefused where nodes of this version cannot work with it."""
    if schema.trouble is not None:
        raise SchemaRefused(schema.trouble)
    return str(schema.revision)


def _lost_by_downgrade(connection: Connection, revision: str) -> list[str]:
    """The data of later revisions for which the last release's schema has no place."""
    undone = _scripts().iterate_revisions(revision, RELEASED_REVISION)
    with connection.begin():
        return [lost for script in undone for lost in script.module.lost_by_downgrade(connection)]


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(alembic_config())


def alembic_config(connection: Connection | None = None) -> Config:
    """Alembic's settings, for the migrations on that connection."""
    config = Config()
    config.attributes["connection"] = connection
    config.set_main_option("script_location", str(scripts()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


@contextmanager
def _one_at_a_time(engine: Engine) -> Iterator[Connection]:
    if engine.dialect.name == POSTGRESQL:
        lock, options = _postgresql_lock, {WRITES: True, TIMEOUTS: _MIGRATING}
    else:
        lock, options = _sqlite_lock, {WRITES: True}
    with lock(engine), engine.execution_options(**options).connect() as connection:
        yield connection


@contextmanager
def _postgresql_lock(engine: Engine) -> Iterator[None]:
    """Holds an advisory lock in a transaction on a separate connection: migrations have their own transactions, and
    with a pooler the session may change between two of them."""
    deadline, holding = time.monotonic() + LOCK_WAIT, engine.execution_options(**{TIMEOUTS: _HOLDING})
    while True:
        with holding.begin() as connection:
            if connection.execute(_TRY_LOCK, {"lock": _ADVISORY_LOCK}).scalar_one():
                yield
                return
        _wait_until(deadline)


_NOT_THE_OWNER = text(
    "SELECT current_user FROM pg_tables WHERE schemaname = 'public' AND NOT pg_has_role(tableowner, 'USAGE') LIMIT 1"
)
_BUSY = "a transaction has been using a table (pg_stat_activity names it)"
_TABLE_IN_USE = (LockNotAvailable, DeadlockDetected)
_TRY_LOCK = text("SELECT pg_try_advisory_xact_lock(:lock)")
_HOLDING = DatabaseTimeouts(idle_in_transaction=0)
_MIGRATING = DatabaseTimeouts(
    lock=DDL_LOCK_TIMEOUT * 1000, statement=DDL_STATEMENT_TIMEOUT * 1000, answer=(DDL_STATEMENT_TIMEOUT + 5) * 1000
)


def _wait_until(deadline: float) -> None:
    """Waits before the next attempt to lock. Raises StorageUnavailable after the deadline."""
    if time.monotonic() > deadline:
        raise StorageUnavailable(f"another node has been migrating for more than {LOCK_WAIT} s: look at its log")
    time.sleep(0.1)


@contextmanager
def _sqlite_lock(engine: Engine) -> Iterator[None]:
    """Holds a lock on a file next to the database: SQLite's own lock ends with each transaction."""
    folder, name = resolved(Path(engine.url.database or ""))
    deadline = time.monotonic() + LOCK_WAIT
    with os.fdopen(folder.open(f"{name}.migrate-lock", os.O_CREAT | os.O_RDWR)) as file:
        while not _locked(file):
            _wait_until(deadline)
        yield


def _locked(file: IO[str]) -> bool:
    """Whether this process now holds the lock on the file."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
