"""Bringing the schema up to date, by any number of nodes at once."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

import registry
from peerseal.runtime.files import resolved
from registry.domain.errors import SchemaRefused, StorageUnavailable
from registry.storage.engine import POSTGRESQL, TIMEOUTS, WRITES, DatabaseTimeouts
from registry.storage.schema import RELEASED_REVISION, SCHEMA_REVISION, Schema, current_revision, read_schema
from registry.storage.unit import storage_errors

__all__ = ["SCHEMA_REVISION", "current_revision", "migrate", "migrate_down", "newest_revision"]

LOCK_WAIT = 120
"""Seconds to wait for another node that migrates."""
DDL_LOCK_TIMEOUT = 5
"""Seconds for which a change of the schema may keep everybody else from a table while it waits for that table."""
DDL_STATEMENT_TIMEOUT = 300
"""Seconds that one statement of a migration may take."""

_ADVISORY_LOCK = 0x7065_6572_7365_616C  # "peerseal"


def scripts() -> Path:
    """The folder of the migrations, beside the package in a checkout and in an installation alike.

    It is found by place, not by import: in somebody's working directory another `migrations` may stand before ours.
    """
    return Path(registry.__file__).resolve().parent.parent / "migrations"


def migrate(engine: Engine) -> str:
    """Runs the migrations that are missing, one transaction each, and returns the revision of the database. One that a
    newer version has migrated is left as it is, where nodes of this version can go on with it.

    Raises SchemaRefused where they cannot, StorageUnavailable where another node holds the lock for too long.
    """
    with storage_errors(), _one_at_a_time(engine) as connection:
        schema = _schema(connection)
        if schema.newer:
            return _known(schema)
        command.upgrade(_config(connection), SCHEMA_REVISION)
    return SCHEMA_REVISION


def migrate_down(engine: Engine) -> str:
    """Takes the schema back to the last release's, for its nodes to serve alone, and returns the revision reached.

    Raises SchemaRefused where data would be lost, or where a newer version has migrated the database, and
    StorageUnavailable as `migrate` does.
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
        command.downgrade(_config(connection), RELEASED_REVISION)
    return RELEASED_REVISION


def newest_revision() -> str:
    """The revision that this version of the code needs."""
    revision = _scripts().get_current_head()
    if revision is None:
        raise RuntimeError("the migrations are not installed")
    return revision


def _schema(connection: Connection) -> Schema:
    """As it is now. The transaction that reads it ends: each migration has one of its own."""
    with connection.begin():
        return read_schema(connection)


def _known(schema: Schema) -> str:
    """The revision of a newer schema. Raises SchemaRefused where nodes of this version cannot go on with it."""
    if schema.trouble is not None:
        raise SchemaRefused(schema.trouble)
    return str(schema.revision)


def _lost_by_downgrade(connection: Connection, revision: str) -> list[str]:
    """What the revisions behind the last release's hold that it has no place for."""
    undone = _scripts().iterate_revisions(revision, RELEASED_REVISION)
    with connection.begin():
        return [lost for script in undone for lost in script.module.lost_by_downgrade(connection)]


def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(_config())


def _config(connection: Connection | None = None) -> Config:
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
    """An advisory lock of a transaction on a connection of its own: the migrations have transactions of theirs, and
    behind a pooler a session may change between two of them."""
    deadline, holding = time.monotonic() + LOCK_WAIT, engine.execution_options(**{TIMEOUTS: _HOLDING})
    while True:
        with holding.begin() as connection:
            if connection.execute(_TRY_LOCK, {"lock": _ADVISORY_LOCK}).scalar_one():
                yield
                return
        _wait_until(deadline)


_TRY_LOCK = text("SELECT pg_try_advisory_xact_lock(:lock)")
_HOLDING = DatabaseTimeouts(idle_in_transaction=0)
_MIGRATING = DatabaseTimeouts(
    lock=DDL_LOCK_TIMEOUT * 1000, statement=DDL_STATEMENT_TIMEOUT * 1000, answer=(DDL_STATEMENT_TIMEOUT + 5) * 1000
)


def _wait_until(deadline: float) -> None:
    """Until the lock is asked for again. Raises StorageUnavailable after the deadline."""
    if time.monotonic() > deadline:
        raise StorageUnavailable("another node has been migrating for too long")
    time.sleep(0.1)


@contextmanager
def _sqlite_lock(engine: Engine) -> Iterator[None]:
    """A lock on a file beside the database: SQLite's own ends with each transaction."""
    folder, name = resolved(Path(engine.url.database or ""))
    deadline = time.monotonic() + LOCK_WAIT
    with os.fdopen(folder.open(f"{name}.migrate-lock", os.O_CREAT | os.O_RDWR)) as file:
        while not _locked(file):
            _wait_until(deadline)
        yield


def _locked(file: IO[str]) -> bool:
    """Whether the lock on the file is ours now."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
