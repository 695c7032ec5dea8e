"""The newest numbers of entries, read before every answer from memory. The read is fast, and sees the commit of any
worker or node at once.

It uses connections of its own, outside of the pool and of transactions, each lent to one thread at a time. There are as
many as threads have ever asked at the same time. On SQLite ``PRAGMA data_version`` takes two microseconds and changes
with every commit of another connection; only then is a table read. On PostgreSQL it is one look-up by primary key.
"""

import os
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

import psycopg
from psycopg.pq.abc import PGresult
from sqlalchemy import Engine, event
from sqlalchemy.exc import TimeoutError as PoolTimeout

from peerseal.protocol.names import REGISTRY
from registry.domain.errors import StorageUnavailable
from registry.storage.connections import NoAnswer, WatchedConnection
from registry.storage.engine import POSTGRESQL, count_pool_timeout, has_its_file

REMEMBERED = 10_000
"""Services whose number a connection remembers between two changes."""

Rows = Sequence[tuple[Any, ...]]
C = TypeVar("C", bound="OwnConnection")


class Revisions(Protocol):
    """The newest committed numbers. Both methods raise StorageUnavailable."""

    def service(self, name: str) -> tuple[int | None, int | None]:
        """The entries that last changed the service, and the registry's own documents; None where none did."""

    def head(self) -> int:
        """The number of entries."""


def revisions(engine: Engine) -> Revisions:
    """The implementation for the engine's database."""
    return PostgresRevisions(engine) if engine.dialect.name == POSTGRESQL else SqliteRevisions(engine)


class OwnConnection:
    """A connection outside of the pool. Raises StorageUnavailable where none can be opened."""

    def __init__(self, engine: Engine) -> None:
        try:
            holder = engine.raw_connection()
        except (engine.dialect.loaded_dbapi.Error, PoolTimeout) as error:  # here SQLAlchemy wraps nothing
            if isinstance(error, PoolTimeout):
                count_pool_timeout(engine)
            raise StorageUnavailable(str(error).split("\n", 1)[0]) from error
        self.info = dict(holder.info)
        holder.detach()
        self.driver: Any = holder.dbapi_connection

    def close(self) -> None:
        """Closes the connection."""
        self.driver.close()


class _Lent(Generic[C]):
    """Connections that are lent to one thread each; the one used last is lent first. They are closed with the engine's
    own connections. A forked child leaves them open: they are the parent's."""

    def __init__(self, engine: Engine, make: Callable[[Engine], C]) -> None:
        self._engine = engine
        self._made = make
        self._free: deque[C] = deque()
        self._pid = os.getpid()
        self._inherited: list[object] = []
        event.listen(engine, "engine_disposed", self._disposed)

    def make(self) -> C:
        """Opens a connection, to be given back or closed. Raises StorageUnavailable."""
        return self._made(self._engine)

    def take(self) -> C:
        """Lends a free connection, or opens one. Raises StorageUnavailable."""
        kept = self.kept()
        return self.make() if kept is None else kept

    def kept(self) -> C | None:
        """Lends a free connection; None where there is none."""
        try:
            return self._free.pop()
        except IndexError:
            return None

    def give(self, connection: C) -> None:
        """Takes a connection back."""
        self._free.append(connection)

    def close(self) -> None:
        """Closes the free connections."""
        free, self._free = self._free, deque()
        for connection in free:
            connection.close()

    def _disposed(self, _engine: Engine) -> None:
        if self._pid == os.getpid():
            self.close()
        else:  # as `registry.storage.engine` does after a fork
            self._inherited.append(self._free)
            self._free, self._pid = deque(), os.getpid()


class _SqliteConnection(OwnConnection):
    """Remembers what it read until the version of the data changes."""

    driver: sqlite3.Connection

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._version: object = None
        self._seen: dict[tuple[str, ...], Rows] = {}

    def read(self, query: str, *parameters: str) -> Rows:
        """The result of the query. Raises sqlite3.Error."""
        # the version is asked for before the tables are read: a change in between is found at the next look
        version = self.driver.execute("PRAGMA data_version").fetchall()
        if self._version != version or len(self._seen) > REMEMBERED:
            self._version, self._seen = version, {}
        if (query, *parameters) not in self._seen:
            self._seen[query, *parameters] = self.driver.execute(query, parameters).fetchall()
        return self._seen[query, *parameters]


class SqliteRevisions:
    """On SQLite."""

    def __init__(self, engine: Engine) -> None:
        self._connections = _Lent(engine, _SqliteConnection)

    def service(self, name: str) -> tuple[int | None, int | None]:
        """See Revisions."""
        seqs: dict[str, int] = dict(self._read("SELECT name, seq FROM services WHERE name IN (?, ?)", name, REGISTRY))
        return seqs.get(name), seqs.get(REGISTRY)

    def head(self) -> int:
        """See Revisions."""
        rows = self._read("SELECT size FROM ledger_head")
        return rows[0][0] if rows else 0

    def _read(self, query: str, *parameters: str) -> Rows:
        connection = self._connections.take()
        if not has_its_file(connection.info):
            connection.close()
            self._connections.close()
            connection = self._connections.make()
        try:
            found = connection.read(query, *parameters)
        except sqlite3.Error as error:
            connection.close()
            raise StorageUnavailable(str(error)) from error
        self._connections.give(connection)
        return found


class _PostgresConnection(OwnConnection):
    """Its statements are not prepared: with a pooler the next one may run on another connection."""

    driver: WatchedConnection

    def read(self, statement: bytes, parameters: tuple[bytes, ...]) -> PGresult:
        """The result, outside of a transaction. Raises psycopg.Error."""
        return self.driver.ask(statement, parameters)


_SERVICE_SEQ = b"SELECT name, seq FROM services WHERE name IN ($1::varchar, 'registry')"
_LEDGER_HEAD = b"SELECT size FROM ledger_head"


class PostgresRevisions:
    """On PostgreSQL."""

    def __init__(self, engine: Engine) -> None:
        self._connections = _Lent(engine, _PostgresConnection)

    def service(self, name: str) -> tuple[int | None, int | None]:
        """See Revisions."""
        found = self._read(_SERVICE_SEQ, name.encode())
        rows = {found.get_value(row, 0): int(found.get_value(row, 1) or 0) for row in range(found.ntuples)}
        return rows.get(name.encode()), rows.get(REGISTRY.encode())

    def head(self) -> int:
        """See Revisions."""
        return int(self._read(_LEDGER_HEAD).get_value(0, 0) or 0)

    def _read(self, statement: bytes, *parameters: bytes) -> PGresult:
        if (kept := self._kept()) is not None:
            try:
                return self._read_over(kept, statement, parameters)
            except NoAnswer as error:
                raise StorageUnavailable(str(error)) from error
            except psycopg.OperationalError:
                self._connections.close()  # a fail-over cut them; a new one may well work
        try:
            return self._read_over(self._connections.make(), statement, parameters)
        except psycopg.OperationalError as error:
            raise StorageUnavailable(str(error)) from error

    def _kept(self) -> _PostgresConnection | None:
        """A free connection, unless the server stopped answering since its last use."""
        kept = self._connections.kept()
        if kept is None or kept.driver.usable:
            return kept
        kept.close()
        self._connections.close()
        return None

    def _read_over(self, connection: _PostgresConnection, statement: bytes, parameters: tuple[bytes, ...]) -> PGresult:
        try:
            found = connection.read(statement, parameters)
        except psycopg.Error:
            connection.close()
            raise
        self._connections.give(connection)
        return found
