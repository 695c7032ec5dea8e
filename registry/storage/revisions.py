"""The newest numbers of entries, and the news that a node has committed.

The newest numbers are read before every answer from memory. The read is fast, and sees the commit of any worker or node
at once. It uses connections of its own, outside of the pool and of transactions, each lent to one thread at a time. On
SQLite there are as many as threads have ever asked at the same time. ``PRAGMA data_version`` takes two microseconds and
changes with every commit of another connection; only then is a table read. On PostgreSQL there is one connection:
threads that ask while a look-up by primary key is under way share the next one.

`CommitListener` wakes the thread that follows the ledger when any node commits. A notification is only a hint: the
woken thread reads the head, and also reads it at fixed intervals. A notification may be late, and never comes through a
pooler that moves each transaction to another connection. On PostgreSQL a trigger on the ledger's head sends it
(migration 0003). SQLite has none, but reading its data version takes microseconds.
"""

import logging
import math
import os
import select
import socket
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, Generic, Protocol, TypeVar

import psycopg
from psycopg.pq.abc import PGresult
from sqlalchemy import Engine, event
from sqlalchemy.exc import TimeoutError as PoolTimeout

from peerseal.protocol.names import REGISTRY
from peerseal.runtime.backoff import backoff
from registry.domain.errors import StorageUnavailable
from registry.storage.connections import NoAnswer, WatchedConnection
from registry.storage.engine import POSTGRESQL, count_timeout, has_its_file
from registry.storage.group_commit import GroupCommit

log = logging.getLogger(__name__)

CHANNEL = "peerseal_ledger"
"""The channel that the trigger notifies. The payload is empty, so a transaction that raises the head several times
sends one notification."""
LOOK_AFTER = 1.0
"""Seconds after which PostgreSQL's head is read without a notification."""
SQLITE_LOOK_AFTER = 0.05
"""Seconds after which SQLite's head is read."""
LISTEN_AGAIN = (1.0, 30.0)
"""Seconds between two attempts to listen: at first, and at most. The time doubles with each failure."""
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
            count_timeout(engine, error)
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


_LEDGER_HEAD = b"SELECT size FROM ledger_head"


@lru_cache
def _service_seqs(names: int) -> bytes:
    """The statement for so many names."""
    places = b", ".join(b"$%d::varchar" % number for number in range(1, names + 1))
    return b"SELECT name, seq FROM services WHERE name IN (%s, 'registry')" % places


class PostgresRevisions:
    """On PostgreSQL."""

    def __init__(self, engine: Engine) -> None:
        self._connections = _Lent(engine, _PostgresConnection)
        self._services: GroupCommit[bytes, tuple[int | None, int | None]] = GroupCommit(self._seqs)
        self._heads: GroupCommit[None, int] = GroupCommit(self._sizes)
        self._turn = threading.Lock()

    def service(self, name: str) -> tuple[int | None, int | None]:
        """See Revisions."""
        return self._services.do(name.encode())

    def head(self) -> int:
        """See Revisions."""
        return self._heads.do(None)

    def _seqs(self, names: Sequence[bytes]) -> list[tuple[int | None, int | None]]:
        found = self._read(_service_seqs(len(names)), *names)
        seqs = {found.get_value(row, 0): int(found.get_value(row, 1) or 0) for row in range(found.ntuples)}
        return [(seqs.get(name), seqs.get(REGISTRY.encode())) for name in names]

    def _sizes(self, asked: Sequence[None]) -> list[int]:
        return [int(self._read(_LEDGER_HEAD).get_value(0, 0) or 0)] * len(asked)

    def _read(self, statement: bytes, *parameters: bytes) -> PGresult:
        with self._turn:
            if (kept := self._kept()) is not None:
                try:
                    return self._read_over(kept, statement, parameters)
                except NoAnswer as error:
                    raise StorageUnavailable(str(error)) from error
                except psycopg.OperationalError:
                    self._connections.close()  # a fail-over cut it; a new one may well work
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


class Waker:
    """Wakes one sleeping thread from any other thread."""

    def __init__(self) -> None:
        self._out, self._in = socket.socketpair()
        self._out.setblocking(False)
        self._in.setblocking(False)

    def wake(self) -> None:
        """Ends the thread's current sleep, or its next one at once."""
        with suppress(BlockingIOError):  # the buffer is full: the thread wakes anyway
            self._in.send(b"\0")

    def sleep(self, seconds: float, descriptor: int | None = None) -> bool:
        """Sleeps until `wake` is called, input arrives on the descriptor, or the time is up. True for input."""
        poll = select.poll()
        poll.register(self._out, select.POLLIN)
        if descriptor is not None:
            poll.register(descriptor, select.POLLIN)
        ready = {awake for awake, _ in poll.poll(seconds * 1000)}
        if self._out.fileno() in ready:
            self._out.recv(4096)
        return descriptor in ready


class CommitListener(Protocol):
    """Learns of commits. One thread uses it; any thread may read ``listening``."""

    @property
    def listening(self) -> bool:
        """Whether notifications arrive, those of this process's own commits included."""

    def listen(self) -> None:
        """Starts to listen if that is possible now. Earlier commits are not reported."""

    def sleep(self, waker: Waker) -> None:
        """Sleeps until a commit, a call of ``waker.wake()``, or the time of the next look at the head."""

    def close(self) -> None:
        """Closes the connection."""


def commit_listener(engine: Engine) -> CommitListener:
    """The listener for the engine's database."""
    return PostgresListener(engine) if engine.dialect.name == POSTGRESQL else SqlitePoller()


class SqlitePoller:
    """SQLite sends no notifications: `sleep` is short instead."""

    listening = False

    def listen(self) -> None:
        """See CommitListener."""

    def sleep(self, waker: Waker) -> None:
        """See CommitListener."""
        waker.sleep(SQLITE_LOOK_AFTER)

    def close(self) -> None:
        """See CommitListener."""


class _Pooled(psycopg.Error):
    """The connection leads to a pooler, where LISTEN is lost after its transaction."""


class PostgresListener:
    """Runs LISTEN on a connection of its own. While it has no such connection it retries after a pause, and the head
    is read once a second."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection: OwnConnection | None = None
        self._attempts = 0
        self._again_at = 0.0

    @property
    def listening(self) -> bool:
        """See CommitListener."""
        return self._connection is not None

    def listen(self) -> None:
        """See CommitListener."""
        if self._connection is not None or time.monotonic() < self._again_at:
            return
        self._attempts += 1
        self._again_at = time.monotonic() + backoff(self._attempts, first=LISTEN_AGAIN[0], longest=LISTEN_AGAIN[1])
        try:
            self._connection = self._connected()
            self._attempts = 0
        except _Pooled:
            self._again_at = math.inf
            message = "the database is behind a pooler: this node reads the ledger every %g s; set REGISTRY_LISTEN_URL"
            log.info(message, LOOK_AFTER)
        except (StorageUnavailable, psycopg.Error):
            pass  # `registry.services.documents.changes` logs it when it cannot read the head either

    def _connected(self) -> OwnConnection:
        """A connection that listens. Raises StorageUnavailable or psycopg.Error; _Pooled for a pooler's connection."""
        connection = OwnConnection(self._engine)
        try:
            if not connection.driver.has_own_session():
                raise _Pooled
            connection.driver.ask(f"LISTEN {CHANNEL}".encode())
        except psycopg.Error:
            connection.close()
            raise
        return connection

    def sleep(self, waker: Waker) -> None:
        """See CommitListener."""
        if self._connection is None:
            waker.sleep(LOOK_AFTER)
            return
        try:
            if waker.sleep(LOOK_AFTER, self._connection.driver.fileno()):
                self._connection.driver.discard_notifications()
        except psycopg.Error:
            self.close()

    def close(self) -> None:
        """See CommitListener."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
