"""Engines for the two databases, set up so that an acknowledged change is durable and every wait has an end."""

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
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import QueuePool

from peerseal.errors import ConfigurationError
from peerseal.runtime.database_url import sqlalchemy_url
from peerseal.runtime.files import resolved
from peerseal.runtime.settings import whole_number
from registry.limits import DATABASE_CONNECTIONS
from registry.storage.connections import READ_ONLY, ServerWatch, WatchedConnection

POSTGRESQL = "postgresql"
SQLITE = "sqlite"

OWN_CONNECTIONS = 2
"""Connections outside of the pool (`registry.storage.revisions`): one looks numbers up, one listens for commits."""

WRITES = "registry_writes"
"""The execution option of a transaction that writes."""
READS = "registry_reads"
"""The execution option of a transaction that reads, as of one moment."""
LOOKS = "registry_looks"
"""The execution option for statements outside of a transaction."""
TIMEOUTS = "registry_timeouts"
"""The execution option for other DatabaseTimeouts than the engine's."""
_WATCH = "registry_watch"
_SQLITE_POOL = 16  # connections: a file in use costs little more for each
_FILE = "registry_file"


@dataclass(frozen=True, slots=True)
class DatabaseTimeouts:
    """Time limits in milliseconds. A caller gives up after 5 s; the database gives up before that, and if it hangs the
    registry does (`registry.storage.connections`)."""

    connect: int = 2_000
    """For each host of the URL."""
    connect_total: int = 2_000
    """For a connection to any of the hosts, the look-up of their names included. The attempt goes on, and a later
    caller gets its connection; answers in memory are served meanwhile."""
    pool: int = 2_000
    """For one of the pool's connections."""
    look: int = 2_000
    """For an answer to a statement outside of a transaction: a look-up by primary key."""
    answer: int = 4_000
    """For an answer to any other statement, after which the connection is closed."""
    statement: int = 3_500
    """Measured by the server; less than ``answer``, so a slow statement does not cost the connection."""
    lock: int = 3_000
    idle_in_transaction: int = 15_000
    """After this a node that froze within a transaction no longer holds the ledger's head. 0: no limit."""
    sqlite_lock: int = 5_000
    """SQLite's wait for another writer."""


OPERATOR_TIMEOUTS = DatabaseTimeouts(connect_total=30_000)
"""For commands: each must reach the last of several hosts by itself."""
BULK_TIMEOUTS = DatabaseTimeouts(connect_total=30_000, lock=5_000, statement=60_000, answer=65_000, look=65_000)
"""For commands that write or count whole tables."""


def database_url(text: str) -> URL:
    """The URL with its driver: SQLite in a file, or PostgreSQL by psycopg 3. Raises ConfigurationError."""
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
    """The URL, with the password moved from its query to where it is never shown. Raises ConfigurationError for options
    that libpq does not know, which otherwise fail at the first connection."""
    if isinstance(password := url.query.get("password"), str):
        url = url.difference_update_query(["password"]).set(password=password)
    timeout = url.query.get("connect_timeout", "0")
    if not isinstance(timeout, str) or whole_number(timeout) is None:
        raise ConfigurationError(f"the database URL: connect_timeout={timeout!s:.20} must be a whole number of seconds")
    try:
        make_conninfo("", **dict.fromkeys(url.query, ""))
    except psycopg.ProgrammingError as error:
        raise ConfigurationError(f"the database URL: {str(error).strip()}") from None
    return url


def create_engine(
    text: str, timeouts: DatabaseTimeouts | None = None, connections: int = DATABASE_CONNECTIONS
) -> Engine:
    """An engine that connects when it is first used, and again in each forked process. To PostgreSQL it has so many
    ``connections`` at most, `OWN_CONNECTIONS` of them outside of its pool. Raises ConfigurationError."""
    url, waits = database_url(text), timeouts or DatabaseTimeouts()
    pooled = connections - OWN_CONNECTIONS
    engine = _sqlite(url, waits) if url.get_backend_name() == SQLITE else _postgresql(url, waits, pooled)
    forget = weakref.WeakMethod(engine.dispose)
    os.register_at_fork(after_in_child=lambda: _forget_connections(forget))
    return engine


def second_engine(engine: Engine, text: str) -> Engine:
    """An engine of one connection to the same database, which is disposed of with the first; the first itself for
    SQLite, whose connections are many. Raises ConfigurationError."""
    if engine.dialect.name != POSTGRESQL:
        return engine
    second = create_engine(text, connections=OWN_CONNECTIONS + 1)
    event.listen(engine, "engine_disposed", lambda _: second.dispose())
    return second


def _forget_connections(dispose: "weakref.WeakMethod[Callable[..., None]]") -> None:
    """Drops the parent's connections in a forked child without closing them."""
    forget = dispose()
    if forget is not None:
        forget(close=False)


def _postgresql(url: URL, waits: DatabaseTimeouts, pooled: int) -> Engine:
    """Options in the URL's query override the values here. A session has no state, neither settings nor prepared
    statements, unless it is known to be the connection's own: with a pooler the next transaction may run in another
    session."""
    connecting = {
        "connect_timeout": waits.connect // 1000,
        "keepalives": 1,  # detects a host that is gone while nothing is sent
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": waits.answer,  # and while data is sent
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
        pool_size=pooled,
        max_overflow=0,
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
    """Drops connections to a server that became a standby: with several hosts in the URL and
    ``target_session_attrs=read-write`` the next ones lead to the primary."""
    if isinstance(context.original_exception, READ_ONLY):
        context.is_disconnect = context.invalidate_pool_on_disconnect = True


@dataclass(frozen=True, slots=True)
class ConnectionCounts:
    """Connections of one engine: ``idle`` and ``used`` ones of its pool, and its ``own`` ones, which are outside of it
    (`registry.storage.revisions`, LISTEN); how many the pool may have at ``most``; and how many waits have ended
    without an answer, by what was waited for."""

    idle: int
    used: int
    own: int
    most: int
    timeouts: Mapping[str, int]


def connection_counts(engine: Engine) -> ConnectionCounts:
    """As of now. Own connections and waits are counted on PostgreSQL only."""
    pool, watch = cast("QueuePool", engine.pool), engine.get_execution_options().get(_WATCH)
    idle, used = pool.checkedin(), pool.checkedout()
    opened, timeouts = (0, {}) if watch is None else (len(watch.opened), dict(watch.timeouts))
    return ConnectionCounts(idle, used, max(0, opened - idle - used), pool.size(), timeouts)


def count_timeout(engine: Engine, error: Exception) -> None:
    """Counts the wait that ended with this error: for a connection of the pool, for a lock, or for the end of a
    statement. Other errors are not counted here."""
    watch, cause = engine.get_execution_options().get(_WATCH), getattr(error, "orig", error)
    kind = next((kind for kind, errors in _TIMEOUTS.items() if isinstance(cause, errors)), None)
    if watch is not None and kind is not None:
        watch.timeouts[kind] += 1


_TIMEOUTS = {
    "pool": PoolTimeout,
    "lock": psycopg.errors.LockNotAvailable,
    "statement": psycopg.errors.QueryCanceled,
}


def _refuse_unusable(connection: WatchedConnection, _record: Any, _proxy: Any) -> None:
    """Has the pool replace a connection that was cut, so the next call after a fail-over succeeds."""
    if not connection.usable:
        raise DisconnectionError("the connection was cut")


class _Begin:
    """Begins a transaction and sets its time limits, in one message. Limits in the URL's ``options`` stay."""

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
"""A commit is acknowledged once it is on the server's disk, and on those of the standbys that it waits for."""


def _sqlite(url: URL, waits: DatabaseTimeouts) -> Engine:
    engine = sqlalchemy.create_engine(
        url,
        hide_parameters=True,
        pool_size=_SQLITE_POOL,
        max_overflow=0,
        connect_args={"timeout": waits.sqlite_lock / 1000},
    )
    event.listen(engine, "do_connect", _make_sqlite_file)
    event.listen(engine, "do_connect", _note_file)
    event.listen(engine, "checkout", lambda _connection, record, _proxy: _refuse_replaced(record.info))
    event.listen(engine, "connect", lambda connection, _record: _prepare_sqlite(connection, waits))
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _make_sqlite_file(_dialect: Any, _record: Any, arguments: list[Any], _options: dict[str, Any]) -> None:
    """Makes the file with mode 0600: SQLite would use the umask, and make its log files like it. An existing file is
    not opened here: closing it would drop the POSIX locks that SQLite holds for this process, and the next writer would
    corrupt the database. A file of another user of the host is refused. Raises ConfigurationError."""
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
    """Notes the file's identity before it is opened: a replacement is noticed at the next use."""
    record.info[_FILE] = arguments[0], _file_at(arguments[0])


def _refuse_replaced(info: Mapping[str, Any]) -> None:
    """Raises DisconnectionError if the open file was replaced, for example by a backup: the next start would find the
    new file, and lose what is written to the old one."""
    if not has_its_file(info):
        raise DisconnectionError("the database's file was replaced")


def has_its_file(info: Mapping[str, Any]) -> bool:
    """Whether the SQLite connection with that ``info`` has opened the file that is in its place now."""
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
    """Switches to write-ahead logging, in which readers do not wait for the writer. SQLite ignores its timeout here: if
    several processes switch one new file, all but one are refused and retry."""
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
    """Takes the lock before a transaction that writes reads anything: otherwise another writer may change, on SQLite,
    the rows that it has read."""
    writes = connection.get_execution_options().get(WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
