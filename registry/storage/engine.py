"""Engines for the two databases, set up so that an acknowledged change is durable and nobody waits for ever."""

import os
import re
import sqlite3
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import psycopg
import sqlalchemy
from psycopg.conninfo import make_conninfo
from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import URL, ExceptionContext, make_url
from sqlalchemy.exc import ArgumentError, DisconnectionError
from sqlalchemy.pool import QueuePool

from peerseal.errors import ConfigurationError
from peerseal.runtime.database_url import sqlalchemy_url
from peerseal.runtime.files import resolved
from peerseal.runtime.settings import whole_number
from registry.storage.connections import READ_ONLY, ServerWatch, WatchedConnection

POSTGRESQL = "postgresql"
SQLITE = "sqlite"

WRITES = "registry_writes"
"""The execution option with which a transaction says that it will write."""
READS = "registry_reads"
"""The execution option of a transaction that reads, all of it as of one moment."""
LOOKS = "registry_looks"
"""The execution option with which statements run outside of a transaction."""
TIMEOUTS = "registry_timeouts"
"""The execution option with DatabaseTimeouts other than the engine's."""
_WATCH = "registry_watch"
_FILE = "registry_file"


@dataclass(frozen=True, slots=True)
class DatabaseTimeouts:
    """How long to wait, in milliseconds. A caller gives up after 5 s; so does the database before, and where it hangs
    the registry does: see `registry.storage.connections`."""

    connect: int = 2_000
    """For each host of the URL."""
    connect_total: int = 2_000
    """For a connection to any of the hosts, the look-up of their names included. The attempt goes on, and a later
    caller gets its connection; answers in memory are served meanwhile."""
    pool: int = 2_000
    """For one of the pool's 16 connections."""
    look: int = 2_000
    """For an answer to a statement outside of a transaction: a look-up by primary key."""
    answer: int = 4_000
    """For an answer to any other statement, after which the connection is closed."""
    statement: int = 3_500
    """As the server counts it: less than ``answer``, so that a slow statement does not cost the connection."""
    lock: int = 3_000
    idle_in_transaction: int = 15_000
    """A node that froze within a transaction holds the ledger's head; after this it holds it no longer. 0: no end."""
    sqlite_lock: int = 5_000
    """SQLite's wait for the one writer before us."""


OPERATOR_TIMEOUTS = DatabaseTimeouts(connect_total=30_000)
"""For commands: each must reach the last of several hosts by itself."""
BULK_TIMEOUTS = DatabaseTimeouts(connect_total=30_000, lock=5_000, statement=60_000, answer=65_000, look=65_000)
"""For commands that write and count whole tables."""


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
    """What the URL says in its query counts before the values here. A session has no state, neither settings nor
    prepared statements, unless it is known to be the connection's own: behind a pooler the next transaction may run in
    another one."""
    connecting = {
        "connect_timeout": waits.connect // 1000,
        "keepalives": 1,  # of a host that is gone, while nothing is sent
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": waits.answer,  # and while something is
        "application_name": "peerseal-registry",
        "client_encoding": "utf8",  # a server in SQL_ASCII would hand out bytes
    }
    watch = ServerWatch(waits.connect_total / 1000, waits.look / 1000)
    engine = sqlalchemy.create_engine(
        url,
        hide_parameters=True,  # they hold tokens, and errors are logged
        isolation_level="AUTOCOMMIT",  # the driver begins no transactions of its own; `_Begin` does
        use_native_hstore=False,
        execution_options={_WATCH: watch},
        pool_size=8,
        max_overflow=8,
        pool_timeout=waits.pool / 1000,
        connect_args={
            **{name: value for name, value in connecting.items() if name not in url.query},
            "prepare_threshold": None,  # until the session is known to be the connection's own
        },
    )
    event.listen(engine, "engine_disposed", lambda _engine: watch.forget())
    event.listen(engine, "do_connect", lambda _dialect, _record, arguments, options: watch.connect(arguments, options))
    event.listen(engine, "checkout", _refuse_unusable)
    event.listen(engine, "handle_error", _drop_read_only)
    event.listen(engine, "begin", _Begin(waits, " ".join(url.normalized_query.get("options", ()))))
    return engine


def _drop_read_only(context: ExceptionContext) -> None:
    """Connections to a server that became a standby are dropped: with several hosts in the URL and
    ``target_session_attrs=read-write`` the next ones lead to the primary."""
    if isinstance(context.original_exception, READ_ONLY):
        context.is_disconnect = context.invalidate_pool_on_disconnect = True


@dataclass(frozen=True, slots=True)
class ConnectionCounts:
    """Connections of one engine: ``idle`` and ``used`` ones of its pool, and its ``own`` ones, which are outside of it
    (`registry.storage.revisions`, LISTEN); and how many waits have ended without an answer, by what was waited for."""

    idle: int
    used: int
    own: int
    timeouts: Mapping[str, int]


def connection_counts(engine: Engine) -> ConnectionCounts:
    """As of now. Own connections and waits are counted on PostgreSQL only."""
    pool, watch = cast("QueuePool", engine.pool), engine.get_execution_options().get(_WATCH)
    idle, used = pool.checkedin(), pool.checkedout()
    opened, timeouts = (0, {}) if watch is None else (len(watch.opened), dict(watch.timeouts))
    return ConnectionCounts(idle, used, max(0, opened - idle - used), timeouts)


def count_pool_timeout(engine: Engine) -> None:
    """A wait for a connection of the engine's pool has ended in vain."""
    watch = engine.get_execution_options().get(_WATCH)
    if watch is not None:
        watch.timeouts["pool"] += 1


def _refuse_unusable(connection: WatchedConnection, _record: Any, _proxy: Any) -> None:
    """After a fail-over the next call succeeds: the pool takes another connection for one that was cut meanwhile."""
    if not connection.usable:
        raise DisconnectionError("the connection was cut")


class _Begin:
    """Begins a transaction and sets its time limits, in one message. What the URL's own ``options`` set stays."""

    _LIMITS: ClassVar = {
        "statement_timeout": "statement",
        "lock_timeout": "lock",
        "idle_in_transaction_session_timeout": "idle_in_transaction",
    }

    def __init__(self, waits: DatabaseTimeouts, options: str) -> None:
        self._waits = waits
        self._ours = [name for name in self._LIMITS if not re.search(rf"(-c\s*|--){name}\s*=", options)]

    def __call__(self, connection: Connection) -> None:
        """See SQLAlchemy's event ``begin``."""
        options = connection.get_execution_options()
        driver = cast("WatchedConnection", connection.connection.driver_connection)
        waits: DatabaseTimeouts = options.get(TIMEOUTS, self._waits)
        looks = options.get(LOOKS, False)
        driver.answer_timeout = (waits.look if looks else waits.answer) / 1000
        if not looks:
            connection.exec_driver_sql("; ".join(self._statements(waits, options)))

    def _statements(self, waits: DatabaseTimeouts, options: Mapping[str, Any]) -> Iterator[str]:
        yield "BEGIN ISOLATION LEVEL " + ("REPEATABLE READ READ ONLY" if options.get(READS) else "READ COMMITTED")
        limits = self._LIMITS if TIMEOUTS in options else self._ours
        yield from (f"SET LOCAL {name} = {getattr(waits, self._LIMITS[name])}" for name in limits)
        if options.get(WRITES):
            yield _DURABLE


_DURABLE = (
    "SELECT set_config('synchronous_commit', 'on', true)"
    " WHERE current_setting('synchronous_commit') NOT IN ('on', 'remote_apply')"
)
"""What is acknowledged is on disk, and on that of the standbys that the server waits for."""


def _sqlite(url: URL, waits: DatabaseTimeouts) -> Engine:
    engine = sqlalchemy.create_engine(url, hide_parameters=True, connect_args={"timeout": waits.sqlite_lock / 1000})
    event.listen(engine, "do_connect", _make_sqlite_file)
    event.listen(engine, "do_connect", _note_file)
    event.listen(engine, "checkout", lambda _connection, record, _proxy: _refuse_replaced(record.info))
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


def _note_file(_dialect: Any, record: Any, arguments: list[Any], _options: dict[str, Any]) -> None:
    """Before it is opened: one that takes its place meanwhile is noticed at the next use."""
    record.info[_FILE] = arguments[0], _file_at(arguments[0])


def _refuse_replaced(info: Mapping[str, Any]) -> None:
    """A file that was put in the place of the one that is open, such as a backup, is what the next start would find:
    what is written to the other one would be lost. Raises DisconnectionError."""
    if not has_its_file(info):
        raise DisconnectionError("the database's file was replaced")


def has_its_file(info: Mapping[str, Any]) -> bool:
    """Whether an SQLite connection with that ``info`` has the file open that is there now."""
    path, opened = info[_FILE]
    return bool(_file_at(path) == opened)


def _file_at(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _prepare_sqlite(connection: sqlite3.Connection, waits: DatabaseTimeouts) -> None:
    connection.isolation_level = None  # the driver begins no transactions of its own; `_begin_sqlite` does
    _write_ahead(connection, waits)
    connection.execute("PRAGMA synchronous = FULL")  # WAL's usual NORMAL loses acknowledged changes with the power
    connection.execute("PRAGMA foreign_keys = ON")


def _write_ahead(connection: sqlite3.Connection, waits: DatabaseTimeouts) -> None:
    """Readers do not wait for the writer. Of several that convert one new file SQLite refuses all but one at once, in
    spite of the wait that it was given: the others ask again."""
    deadline = time.monotonic() + waits.sqlite_lock / 1000
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
