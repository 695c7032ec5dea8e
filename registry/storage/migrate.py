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
from sqlalchemy import Connection, Engine, inspect, select, text

import registry
from peerseal.runtime.files import resolved
from registry.domain.errors import StorageUnavailable
from registry.storage.engine import POSTGRESQL, WRITES
from registry.storage.unit import storage_errors

SCHEMA_REVISION = "0005"
"""The revision that this version of the code needs, so that a running server need not read the scripts."""
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
    """Runs the migrations that are missing, one transaction each, and returns the revision reached.

    Raises StorageUnavailable where another node holds the lock for too long.
    """
    with storage_errors(), _one_at_a_time(engine) as connection:
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
    return newest_revision()


def newest_revision() -> str:
    """The revision that this version of the code needs."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    if revision is None:
        raise RuntimeError("the migrations are not installed")
    return revision


def current_revision(connection: Connection) -> str | None:
    """The revision of the database; None for an empty one."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(select(text("version_num")).select_from(text("alembic_version"))).scalar_one_or_none()


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(scripts()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


@contextmanager
def _one_at_a_time(engine: Engine) -> Iterator[Connection]:
    lock = _postgresql_lock if engine.dialect.name == POSTGRESQL else _sqlite_lock
    with engine.execution_options(**{WRITES: True}).connect() as connection, lock(connection):
        yield connection


@contextmanager
def _postgresql_lock(connection: Connection) -> Iterator[None]:
    """An advisory lock of the session: it outlives the transactions, and ends with the connection at the latest."""
    timeouts = text(
        "SELECT set_config('lock_timeout', :lock, false), set_config('statement_timeout', :statement, false)"
    )
    connection.execute(timeouts, {"lock": f"{LOCK_WAIT}s", "statement": f"{LOCK_WAIT}s"})
    connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": _ADVISORY_LOCK})
    connection.execute(timeouts, {"lock": f"{DDL_LOCK_TIMEOUT}s", "statement": f"{DDL_STATEMENT_TIMEOUT}s"})
    connection.commit()
    try:
        yield
    finally:
        connection.invalidate()  # which gives up the lock and the time limits in one


@contextmanager
def _sqlite_lock(connection: Connection) -> Iterator[None]:
    """A lock on a file beside the database: SQLite's own ends with each transaction."""
    folder, name = resolved(Path(connection.engine.url.database or ""))
    deadline = time.monotonic() + LOCK_WAIT
    with os.fdopen(folder.open(f"{name}.migrate-lock", os.O_CREAT | os.O_RDWR)) as file:
        while not _locked(file):
            if time.monotonic() > deadline:
                raise StorageUnavailable("another node has been migrating for too long")
            time.sleep(0.1)
        yield


def _locked(file: IO[str]) -> bool:
    """Whether the lock on the file is ours now."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
