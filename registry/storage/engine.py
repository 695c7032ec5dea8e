"""Engines for the two databases, set up so that an acknowledged change is durable and nobody waits for ever."""

import os
import select
import sqlite3
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import sqlalchemy
from psycopg.conninfo import make_conninfo
from sqlalchemy import Connection, Dialect, Engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DisconnectionError

from peerseal.errors import ConfigurationError
from peerseal.runtime.database_url import sqlalchemy_url
from peerseal.runtime.files import resolved
from peerseal.runtime.settings import whole_number

POSTGRESQL = "postgresql"
SQLITE = "sqlite"
NO_SCHEMA = (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn)
"""What PostgreSQL says where the database was not migrated yet; SQLite says that it is not operational."""

WRITES = "registry_writes"
"""The execution option with which a transaction says that it will write."""
SILENT_FOR = 2
"""Seconds for which a process does not ask a PostgreSQL again that let an attempt to connect wait in vain."""


@dataclass(frozen=True, slots=True)
class DatabaseTimeouts:
    """How long to wait, in milliseconds. A caller gives up after some seconds; so does the database."""

    connect: int = 2_000
    """Callers give up after 5 s, and what is in memory is to be served before that."""
    lock: int = 5_000
    """Also SQLite's wait for the one writer before us."""
    statement: int = 10_000
    idle_in_transaction: int = 15_000
    """A node that froze within a transaction holds the ledger's head; after this it holds it no longer."""


def database_url(text: str) -> URL:
    """The URL with its driver settled: SQLite in a file, or PostgreSQL by psycopg 3. Raises ConfigurationError."""
    try:
        url = make_url(sqlalchemy_url(text))
    except (ArgumentError, ValueError):
        raise ConfigurationError("the database URL cannot be read") from None  # it may hold a password
    if url.get_backend_name() == POSTGRESQL:
        return _known_to_libpq(url)
    if url.database and url.database != ":memory:":
        return url
    raise ConfigurationError("the database must be PostgreSQL, or SQLite in a file, such as sqlite:///FILE")


def _known_to_libpq(url: URL) -> URL:
    """The URL, with a password of its query where it is never shown. Raises ConfigurationError for what libpq does not
    know, which is found out at the first connection otherwise."""
    if isinstance(password := url.query.get("password"), str):
        url = url.difference_update_query(["password"]).set(password=password)
    timeout = url.query.get("connect_timeout", "0")
    if not isinstance(timeout, str) or whole_number(timeout) is None:
        raise ConfigurationError("the database URL's connect_timeout must be a whole number of seconds")
    try:
        make_conninfo("", **dict.fromkeys(url.query, ""))
    except psycopg.ProgrammingError as error:
        raise ConfigurationError(f"the database URL: {str(error).strip()}") from None
    return url


def create_engine(text: str, timeouts: DatabaseTimeouts | None = None) -> Engine:
    """An engine that connects when first used, and anew in each forked process. Raises ConfigurationError."""
    url, waits = database_url(text), timeouts or DatabaseTimeouts()
    engine = _sqlite(url, waits) if url.get_backend_name() == SQLITE else _postgresql(url, waits)
    forget = weakref.WeakMethod(engine.dispose)
    os.register_at_fork(after_in_child=lambda: _forget_connections(forget))
    return engine


def _forget_connections(dispose: "weakref.WeakMethod[Callable[..., None]]") -> None:
    """A child leaves its parent's connections alone, and does not close them either: they are the parent's."""
    forget = dispose()
    if forget is not None:
        forget(close=False)


def _postgresql(url: URL, waits: DatabaseTimeouts) -> Engine:
    """What the URL says in its query counts before the values here, and beside them."""
    options = {
        "statement_timeout": waits.statement,
        "lock_timeout": waits.lock,
        "idle_in_transaction_session_timeout": waits.idle_in_transaction,
    }
    connecting = {
        "connect_timeout": waits.connect // 1000,
        "tcp_user_timeout": waits.connect,  # of a server that fell silent
        "application_name": "peerseal-registry",
    }
    ours = " ".join(f"-c {name}={value}" for name, value in options.items())
    theirs = " ".join(url.normalized_query.get("options", ()))
    engine = sqlalchemy.create_engine(
        url,
        hide_parameters=True,  # they hold tokens, and errors are logged
        isolation_level="READ COMMITTED",
        pool_size=8,
        max_overflow=8,
        pool_timeout=waits.lock / 1000,
        connect_args={
            **{name: value for name, value in connecting.items() if name not in url.query},
            "options": f"{ours} {theirs}".strip(),
        },
    )
    event.listen(engine, "do_connect", _Connector().connect)
    event.listen(engine, "checkout", _refuse_cut_connection)
    return engine


class _Connector:
    """Connects to PostgreSQL. While a server is silent each attempt waits until its time is up, and soon every thread
    would; so after one such attempt who asks in the next SILENT_FOR seconds is told at once."""

    def __init__(self) -> None:
        self._silent_until = 0.0

    def connect(self, dialect: Dialect, _record: Any, arguments: list[Any], options: dict[str, Any]) -> Any:
        """A new driver connection. Raises psycopg.OperationalError."""
        if time.monotonic() < self._silent_until:
            raise psycopg.OperationalError("the database did not answer a moment ago")
        try:
            return dialect.connect(*arguments, **options)
        except psycopg.errors.ConnectionTimeout:
            self._silent_until = time.monotonic() + SILENT_FOR
            raise


def _refuse_cut_connection(connection: psycopg.Connection, _record: Any, _proxy: Any) -> None:
    """After a fail-over the next call succeeds: the pool takes another connection for one that was cut meanwhile.

    Nothing comes in on an idle connection but word of its end. Looking for that spares the message, and the wait,
    that the pool's own check costs at each use: a quarter of a registration.
    """
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    if connection.closed or poll.poll(0):
        raise DisconnectionError("the connection was cut")


def _sqlite(url: URL, waits: DatabaseTimeouts) -> Engine:
    engine = sqlalchemy.create_engine(url, hide_parameters=True, connect_args={"timeout": waits.lock / 1000})
    event.listen(engine, "do_connect", _make_sqlite_file)
    event.listen(engine, "connect", lambda connection, _record: _prepare_sqlite(connection, waits))
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _make_sqlite_file(_dialect: Any, _record: Any, arguments: list[Any], _options: dict[str, Any]) -> None:
    """SQLite would make the file as the umask allows, and its log files like it. A file that is there must not even be
    opened: closing it would drop the POSIX locks that SQLite holds on it for this process, and the next writer would
    corrupt the database. One that another user of the host made is not opened at all. Raises ConfigurationError."""
    try:
        folder, name = resolved(Path(arguments[0]))
        for file in (name, f"{name}-wal", f"{name}-shm", f"{name}-journal"):
            folder.check(file, readable=True)
        with suppress(OSError):  # FileExistsError; of anything else SQLite itself says better what is wrong
            os.close(folder.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR))
    except FileNotFoundError:
        return  # nor is the folder there: SQLite says so
    except ConfigurationError as error:
        raise ConfigurationError(f"the database: {error}") from error


def _prepare_sqlite(connection: sqlite3.Connection, waits: DatabaseTimeouts) -> None:
    connection.isolation_level = None  # the driver begins no transactions of its own; `_begin_sqlite` does
    _write_ahead(connection, waits)
    connection.execute("PRAGMA synchronous = FULL")  # WAL's usual NORMAL loses acknowledged changes with the power
    connection.execute("PRAGMA foreign_keys = ON")


def _write_ahead(connection: sqlite3.Connection, waits: DatabaseTimeouts) -> None:
    """Readers do not wait for the writer. Of several that convert one new file SQLite refuses all but one at once, in
    spite of the wait that it was given: the others ask again."""
    deadline = time.monotonic() + waits.lock / 1000
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def _begin_sqlite(connection: Connection) -> None:
    """A transaction that reads and then writes must hold the lock before it reads: on SQLite nothing else keeps what
    it read from being changed by another writer."""
    writes = connection.get_execution_options().get(WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
