"""Did anything change? Asked before every answer that is served from memory, so it has to be quick, and right from
the moment in which another worker or node commits.

Each thread has one connection of its own for this, outside the pool and outside transactions. On SQLite ``PRAGMA
data_version`` costs some two microseconds and changes with every commit of anybody else; only then is a table read.
On PostgreSQL it is one look-up by primary key, prepared.
"""

import os
import sqlite3
import threading
from typing import Any, ClassVar, Protocol, cast

import psycopg
from psycopg.pq import ConnStatus, ExecStatus
from psycopg.pq.abc import PGresult
from sqlalchemy import Engine
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import PoolProxiedConnection

from peerseal.protocol.names import REGISTRY
from registry.domain.errors import StorageUnavailable
from registry.storage.engine import POSTGRESQL

REMEMBERED = 10_000
"""Services whose number one thread remembers between two changes."""


class Revisions(Protocol):
    """The newest committed numbers, as of now. Both methods raise StorageUnavailable."""

    def service(self, name: str) -> tuple[int | None, int | None]:
        """The entries that last changed the service, and the registry's own documents; None where none did."""

    def head(self) -> int:
        """The number of entries."""


def revisions(engine: Engine) -> Revisions:
    """The one for the engine's database."""
    return PostgresRevisions(engine) if engine.dialect.name == POSTGRESQL else SqliteRevisions(engine)


class _ThreadConnection:
    """One connection for each thread of each process, made when first asked for."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._local = threading.local()
        self._inherited: list[Any] = []

    def get(self) -> Any:
        """This thread's driver connection. Raises StorageUnavailable."""
        if getattr(self._local, "pid", None) != os.getpid():
            if hasattr(self._local, "holder"):
                self._inherited.append(self._local.holder)  # a fork's parent uses it: never to be closed here
            holder = self._connect()
            holder.detach()
            self._local.holder, self._local.pid = holder, os.getpid()
        return self._local.holder.dbapi_connection

    def _connect(self) -> PoolProxiedConnection:
        try:
            return self._engine.raw_connection()
        except (self._engine.dialect.loaded_dbapi.Error, PoolTimeout) as error:  # here SQLAlchemy wraps nothing
            raise StorageUnavailable(str(error).split("\n", 1)[0]) from error

    def drop(self) -> None:
        """Closes this thread's connection, which has failed; the next use makes another."""
        self._local.holder.close()
        del self._local.holder, self._local.pid


class SqliteRevisions:
    """On SQLite. What a thread has read is good until the version of the data changes."""

    def __init__(self, engine: Engine) -> None:
        self._connection = _ThreadConnection(engine)
        self._local = threading.local()

    def service(self, name: str) -> tuple[int | None, int | None]:
        """See Revisions."""
        own = self._read("SELECT seq FROM services WHERE name = ?", name)
        return own, self._read("SELECT seq FROM services WHERE name = ?", REGISTRY)

    def head(self) -> int:
        """See Revisions."""
        return cast(int, self._read("SELECT size FROM ledger_head"))

    def _read(self, query: str, *parameters: str) -> int | None:
        connection: sqlite3.Connection = self._connection.get()
        try:
            seen = self._seen(connection)
            if (query, *parameters) not in seen:
                rows = connection.execute(query, parameters).fetchall()
                seen[query, *parameters] = rows[0][0] if rows else None
            return seen[query, *parameters]
        except sqlite3.Error as error:
            self._connection.drop()
            self._local.version = None  # each connection counts versions of its own
            raise StorageUnavailable(str(error)) from error

    def _seen(self, connection: sqlite3.Connection) -> dict[tuple[str, ...], int | None]:
        # the version is asked for before the tables are read: a change in between is found at the next look
        version = os.getpid(), connection.execute("PRAGMA data_version").fetchall()
        if getattr(self._local, "version", None) != version or len(self._local.seen) > REMEMBERED:
            self._local.version, self._local.seen = version, {}
        return cast("dict[tuple[str, ...], int | None]", self._local.seen)


class PostgresRevisions:
    """On PostgreSQL, by libpq's own prepared statements: a third of what a cursor takes."""

    _STATEMENTS: ClassVar = {
        b"service_seq": b"SELECT name, seq FROM services WHERE name IN ($1::varchar, 'registry')",
        b"ledger_head": b"SELECT size FROM ledger_head",
    }

    def __init__(self, engine: Engine) -> None:
        self._connection = _ThreadConnection(engine)
        self._prepared = threading.local()

    def service(self, name: str) -> tuple[int | None, int | None]:
        """See Revisions."""
        found = self._read(b"service_seq", name.encode())
        rows = {found.get_value(row, 0): int(found.get_value(row, 1) or 0) for row in range(found.ntuples)}
        return rows.get(name.encode()), rows.get(REGISTRY.encode())

    def head(self) -> int:
        """See Revisions."""
        return int(self._read(b"ledger_head").get_value(0, 0) or 0)

    def _read(self, statement: bytes, *parameters: bytes) -> PGresult:
        try:
            return self._execute(statement, parameters)
        except psycopg.OperationalError:
            self._connection.drop()  # a fail-over cut it; the next one may well work
        try:
            return self._execute(statement, parameters)
        except psycopg.OperationalError as error:
            self._connection.drop()
            raise StorageUnavailable(str(error)) from error

    def _execute(self, statement: bytes, parameters: tuple[bytes, ...]) -> PGresult:
        """What is found. Outside of a transaction, as libpq is where nobody began one."""
        connection: psycopg.Connection = self._connection.get()
        if getattr(self._prepared, "connection", None) is not connection:
            for name, query in self._STATEMENTS.items():
                _checked(connection, connection.pgconn.prepare(name, query))
            self._prepared.connection = connection
        return _checked(connection, connection.pgconn.exec_prepared(statement, parameters))


def _checked(connection: psycopg.Connection, result: PGresult) -> PGresult:
    """The result of a statement that succeeded. Raises psycopg.Error."""
    if result.status in (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK):
        return result
    message = result.get_error_message()
    if connection.pgconn.status != ConnStatus.OK:
        raise psycopg.OperationalError(message)
    raise psycopg.errors.error_from_result(result)
