"""Empty databases that have the newest schema: copies of one that was migrated, which takes a tenth of the time."""

import functools
import os
import tempfile
from pathlib import Path

import psycopg
from sqlalchemy import make_url

from registry.storage.engine import create_engine
from registry.storage.migrate import migrate
from tests.support.postgres import SOCKET_USER


def copy_schema(url: str) -> None:
    """Gives the database of that URL the newest schema, if it is one of `tests.conftest` that has none yet."""
    parsed = make_url(url)
    folder = parsed.query.get("host")
    if parsed.get_backend_name() == "sqlite":
        _copy_file(Path(str(parsed.database)))
    elif parsed.username == SOCKET_USER and isinstance(folder, str) and str(parsed.database).startswith("test_"):
        _copy_database(str(parsed.database), folder)


def _copy_file(file: Path) -> None:
    if file.parent.is_dir() and not file.exists():
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as copied:
            copied.write(_migrated_file())


@functools.cache
def _migrated_file() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "registry.sqlite3"
        _migrate(f"sqlite:///{file}")
        return file.read_bytes()


def _copy_database(name: str, folder: str) -> None:
    with psycopg.connect(host=folder, user=SOCKET_USER, dbname=name) as connection:
        if connection.execute("SELECT to_regclass('alembic_version')").fetchone() != (None,):
            return
    template = _migrated_database(folder)
    with psycopg.connect(host=folder, user=SOCKET_USER, dbname="postgres", autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{name}"'.encode())
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"'.encode())


@functools.cache
def _migrated_database(folder: str) -> str:
    """Its name, of this process alone: no other may be connected while it is copied."""
    name = f"migrated_{os.getpid()}"
    with psycopg.connect(host=folder, user=SOCKET_USER, dbname="postgres", autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
    _migrate(f"postgresql://{SOCKET_USER}@/{name}?host={folder}")
    return name


def _migrate(url: str) -> None:
    engine = create_engine(url)
    try:
        migrate(engine)
    finally:
        engine.dispose()
