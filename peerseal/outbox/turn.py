"""One relay at a time, of all processes and hosts that have the same outbox.

On PostgreSQL the turn is an advisory lock of a transaction, so it ends with the connection, wherever the relay was
killed; and the server ends it for a relay that is frozen or cut off. On SQLite, whose file belongs to one host, the
turn is a lock on a file beside it: a transaction would keep the application from writing while the broker works.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from peerseal.runtime.extras import missing
from peerseal.runtime.trusted_path import Opened

try:
    from sqlalchemy import Connection, Engine, Table, func, select, text
except ModuleNotFoundError as error:
    raise missing(error, "kafka") from error

LONGEST_SILENCE = 120
"""Seconds after which PostgreSQL ends the turn of a relay that says nothing: more than any broker takes."""


class Turns:
    """The turns of one relay at the outbox ``table`` in the database of ``engine``."""

    def __init__(self, engine: Engine, table: Table) -> None:
        self._engine = engine
        self._number = _lock_number(table.fullname)
        self._name = table.name
        self._held: Opened | None = None

    @contextmanager
    def take(self) -> Iterator[Connection | None]:
        """A connection to work on, whose transaction is committed at the end; None where another relay has the turn.
        Raises OSError or what SQLAlchemy raises."""
        with self._engine.connect() as connection, self._alone(connection) as alone:
            yield connection if alone else None
            connection.commit()

    def begin_broker_work(self, connection: Connection) -> None:
        """Let other connections write while the broker works; on PostgreSQL they can."""
        if connection.dialect.name == "sqlite":
            connection.commit()

    def drop_in_child(self) -> None:
        """Close what a forked child inherited of a turn: it would go on if the parent were killed."""
        held, self._held = self._held, None
        if held is not None:
            held.close()

    def _alone(self, connection: Connection) -> AbstractContextManager[bool]:
        if connection.dialect.name == "postgresql":
            return nullcontext(self._alone_on_postgresql(connection))
        return self._alone_on_sqlite(connection)

    def _alone_on_postgresql(self, connection: Connection) -> bool:
        connection.execution_options(isolation_level="READ COMMITTED")  # what is read is never older than the turn
        connection.execute(text(f"SET LOCAL idle_in_transaction_session_timeout = '{LONGEST_SILENCE}s'"))
        return bool(connection.scalar(select(func.pg_try_advisory_xact_lock(self._number))))

    @contextmanager
    def _alone_on_sqlite(self, connection: Connection) -> Iterator[bool]:
        lock = Opened(os.open(self._lock_file(connection), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        try:
            try:
                fcntl.flock(lock.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                self._held = lock
                yield True
        finally:
            self._held = None
            lock.unlock()

    def _lock_file(self, connection: Connection) -> str:
        databases = connection.exec_driver_sql("PRAGMA database_list").all()
        return next(f"{path}-{self._name}.lock" for _, name, path in databases if name == "main")


def _lock_number(name: str) -> int:
    """A number for PostgreSQL's advisory locks, which know no names."""
    return int.from_bytes(hashlib.sha256(f"peerseal.outbox {name}".encode()).digest()[:8], "big", signed=True)
