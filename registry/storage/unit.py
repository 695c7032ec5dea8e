"""Transactions: a reading one sees one moment, a writing one is atomic."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Self

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import QueuePool

from peerseal.runtime.tracing import span
from peerseal.verify.context import current_trace
from registry.domain.errors import StorageReadOnly, StorageUnavailable
from registry.storage.connections import GRANT, NO_RIGHT, NO_SCHEMA, READ_ONLY
from registry.storage.durability import Durability, DurabilityGuard, read_durability
from registry.storage.engine import LOOKS, POSTGRESQL, READS, WRITES, count_timeout
from registry.storage.queries.ledger import GUARD, LedgerGuard


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turns failures of the database into StorageUnavailable; errors in our statements are raised unchanged."""
    try:
        yield
    except (OperationalError, InterfaceError, PoolTimeout) as error:
        raise StorageUnavailable(_brief(error)) from error
    except DBAPIError as error:
        if isinstance(error.orig, READ_ONLY):
            raise StorageReadOnly(f"{_brief(error)}: the database server takes no writes") from error
        if isinstance(error.orig, NO_RIGHT):
            raise StorageUnavailable(f"{_brief(error)}: {GRANT}") from error
        if error.connection_invalidated or isinstance(error.orig, NO_SCHEMA):
            raise StorageUnavailable(_brief(error)) from error
        raise


class Writers:
    """Admits the writing transactions of one engine of PostgreSQL: one fewer than its pool has connections, so that
    reads proceed while writes wait for locks. On SQLite the database itself lets one write at a time."""

    def __init__(self, engine: Engine) -> None:
        pool = engine.pool
        self._timeout = 0.0
        self._places: threading.Semaphore | None = None
        if engine.dialect.name == POSTGRESQL and isinstance(pool, QueuePool):
            self._timeout = pool.timeout()
            self._places = threading.Semaphore(max(1, pool.size() - 1))

    def __enter__(self) -> None:
        """Raises SQLAlchemy's TimeoutError when the time for a connection is up."""
        if self._places is not None and not self._places.acquire(timeout=self._timeout):
            raise PoolTimeout(f"other writes of this process did not end within {self._timeout:g} s")

    def __exit__(self, *_: object) -> None:
        if self._places is not None:
            self._places.release()


class Store:
    """The database as the use cases see it."""

    def __init__(
        self,
        engine: Engine,
        durable: DurabilityGuard | None = None,
        listen: Engine | None = None,
        guard: LedgerGuard | None = None,
        writers: "Writers | None" = None,
    ) -> None:
        self.engine = engine
        self.listen_engine = listen or engine
        self._durable = durable
        self._guard = guard
        self._writers = writers or Writers(engine)
        self._postgresql = engine.dialect.name == POSTGRESQL
        self._reader = engine.execution_options(**{GUARD: guard, READS: True})
        self._looker = engine.execution_options(**{GUARD: guard, LOOKS: True})
        self._writer = engine.execution_options(**{GUARD: guard, WRITES: True})
        self._followers: list[Callable[[], None]] = []

    def guarded(self, guard: LedgerGuard) -> Self:
        """The same database, with a guard that checks every edge of the ledger's tree that is read."""
        return type(self)(self.engine, self._durable, self.listen_engine, guard, self._writers)

    def when_written(self, tell: Callable[[], None]) -> None:
        """Has ``tell`` called after each commit of a writing transaction of this process."""
        self._followers.append(tell)

    def durability(self) -> Durability | None:
        """The server's report; None on SQLite, which is set up to be durable. Raises StorageUnavailable."""
        if not self._postgresql:
            return None
        with self.look() as connection:
            return read_durability(connection)

    def not_writable(self) -> str | None:
        """The reason why writing transactions would be refused, with the remedy; None where they would not. Raises
        StorageUnavailable."""
        found = self.durability()
        return None if found is None or self._durable is None else self._durable.trouble(found)

    @contextmanager
    def look(self) -> Iterator[Connection]:
        """A connection without a transaction, for reads that need not see one moment: saves two messages to PostgreSQL.
        Raises StorageUnavailable."""
        with self._errors(), self._span("look"), self._looker.connect() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that reads, as of one moment. Raises StorageUnavailable."""
        with self._errors(), self._span("read"), self._reader.begin() as connection:
            yield connection

    @contextmanager
    def write(self, service: str | None = None, links: Sequence[str] = ()) -> Iterator[Connection]:
        """A transaction that writes, and locks the rows of ``service`` against other writers. ``links`` are the traces
        of the requests that share it.

        SQLite has one writer at a time. On PostgreSQL writers for other services run at the same time, until this one
        appends its entry (`registry.storage.queries.ledger.append`). Raises StorageUnavailable.
        """
        self._settle(committed=False)  # after an earlier one that failed
        with self._errors(), self._span("write", links), self._writers, self._writer.begin() as connection:
            if self._postgresql and self._durable is not None:
                self._check_durable(connection, self._durable)
            if self._postgresql and service is not None:
                connection.execute(_LOCK_SERVICE, {"name": service})
            yield connection
            committed = connection.in_transaction()  # else it was rolled back
        self._settle(committed=committed)
        for tell in self._followers:
            tell()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        with storage_errors():
            try:
                yield
            except (OperationalError, PoolTimeout) as error:
                count_timeout(self.engine, error)
                raise

    def _span(self, work: str, links: Sequence[str] = ()) -> AbstractContextManager[object]:
        """The time of the database in a request that is traced, and none of the threads in the background."""
        if current_trace() is None:
            return nullcontext()
        return span(f"registry.{work}", "client", lambda: {"db.system.name": self.engine.dialect.name}, links)

    def _settle(self, *, committed: bool) -> None:
        if self._guard is not None:
            self._guard.settled(committed=committed)

    @staticmethod
    def _check_durable(connection: Connection, guard: DurabilityGuard) -> None:
        """Raises StorageReadOnly, and StorageNotDurable."""
        try:
            guard.check(connection)
        except StorageReadOnly:
            connection.invalidate()  # the next connection may lead to the new primary
            raise


_LOCK_SERVICE = text("SELECT pg_advisory_xact_lock(hashtextextended('peerseal service ' || :name, 0))")


def _brief(error: Exception) -> str:
    """The driver's message, without the statement and its parameters."""
    cause = getattr(error, "orig", None) or error
    return f"{type(cause).__name__}: {cause}".split("\n", 1)[0]
