"""Connections to PostgreSQL on which every wait has an end, also when the server hangs or its host is gone.

The server's own timeouts work only while the server runs, and TCP's only while its kernel is silent. So each connection
measures the time itself. When the time is up it is closed, and the other connections of its engine are no longer used.
One attempt at a time is then made to connect again, and callers are refused at once until an attempt succeeds.

This is the only module that uses libpq itself (psycopg's ``pgconn``): a look-up by `WatchedConnection.ask` takes a
third of the time of a cursor's, and one runs before each answer that is served from memory.
"""

import select
import threading
import time
from collections import Counter, deque
from concurrent.futures import Future
from typing import Any, TypeVar
from weakref import WeakSet

import psycopg
from psycopg.abc import PQGen
from psycopg.pq import ConnStatus, ExecStatus
from psycopg.pq.abc import PGresult

R = TypeVar("R")

NO_SCHEMA = (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn)
"""PostgreSQL's errors for a database that was not migrated; SQLite reports an operational error."""
READ_ONLY = psycopg.errors.ReadOnlySqlTransaction
"""The error of a standby, and of a server that was made read-only (SQLSTATE 25006)."""
NO_RIGHT = psycopg.errors.InsufficientPrivilege
"""The error for a role without the privileges of migrations/roles.sql."""
GRANT = "run migrations/roles.sql (docs/how-to/operations.md)"
"""The remedy."""

TRY_AFTER = 2
"""Seconds between the starts of two attempts to connect, when the first was not answered."""
PROBE = 0.25
"""Seconds for which a caller waits for such an attempt, which goes on without it: answers in memory are served
meanwhile."""
SLOW = 0.5
"""Seconds after which a failed attempt counts as not answered: one of several hosts was silent."""
PREPARE_AFTER = 5
"""Executions after which the driver prepares a statement: psycopg's own default."""
PAUSE = 0.5
"""Seconds without an attempt after a statement that was not answered: callers in the queue fail with it."""


class NoAnswer(psycopg.OperationalError):
    """The database did not answer in time. Another attempt would take as long again."""


class ServerWatch:
    """Whether the server of one engine answers. ``timeouts`` counts the waits that ended without an answer, by kind:
    ``connect``, ``answer``, ``pool``, ``lock`` or ``statement``. ``opened`` holds the open connections. A caller waits
    ``connect_timeout`` seconds for a connection to any host of the URL, and ``look_timeout`` for the answer to a
    look-up.
    """

    def __init__(self, connect_timeout: float, look_timeout: float) -> None:
        self._connect_timeout = connect_timeout
        self.look_timeout = look_timeout
        self._unfinished: Future[WatchedConnection] | None = None
        self._lock = threading.Lock()
        self.timeouts: Counter[str] = Counter()
        self.opened: WeakSet[WatchedConnection] = WeakSet()
        self._silent = False
        self._silent_since = 0.0
        self._try_at = 0.0
        self._last: tuple[str, str] | None = None

    def connect(self, arguments: list[Any], options: dict[str, Any]) -> "WatchedConnection":
        """A new connection. Raises psycopg.OperationalError, at once while the server is silent."""
        began, timeout = time.monotonic(), self._connect_timeout
        if self._silent:
            if not self._may_try(began):
                raise NoAnswer("the database did not answer a moment ago")
            timeout = min(PROBE, timeout)
            self._try_at = began + TRY_AFTER  # other callers do not wait as well
        try:
            connection = self._connected(arguments, self._last_first(options), timeout)
        except psycopg.Error as error:
            if isinstance(error, NoAnswer | psycopg.errors.ConnectionTimeout) or time.monotonic() - began > SLOW:
                self._fell_silent("connect", try_after=TRY_AFTER)
            else:
                self._silent = False  # a refusal is an answer
            raise
        self._silent = False
        self._last = connection.info.host, str(connection.info.port)
        self.opened.add(connection)
        return connection

    def _may_try(self, now: float) -> bool:
        attempt = self._unfinished
        if attempt is None or (attempt.done() and attempt.exception() is not None):
            return now >= self._try_at
        return attempt.done()

    def _connected(self, arguments: list[Any], options: dict[str, Any], timeout: float) -> "WatchedConnection":
        """Connects in a thread, since a look-up of names has no timeout that could be set, and each of several hosts
        has its own. An attempt that takes longer than its caller waits goes on, and the next caller gets its result."""
        if (late := self._late_connection()) is not None:
            return late
        attempt: Future[WatchedConnection] = Future()
        work = attempt, arguments, options
        threading.Thread(target=self._attempt, args=work, name="connecting", daemon=True).start()
        try:
            return attempt.result(timeout)
        except TimeoutError:
            with self._lock:
                other, self._unfinished = self._unfinished, attempt
            if other is not None:
                other.add_done_callback(_close)
            raise NoAnswer(f"no host of the database answered within {timeout:g} s") from None

    def _attempt(self, attempt: "Future[WatchedConnection]", arguments: list[Any], options: dict[str, Any]) -> None:
        try:
            attempt.set_result(self._made(WatchedConnection.connect(*arguments, **options)))
        except BaseException as error:  # raised to the caller
            attempt.set_exception(error)

    def _made(self, connection: "WatchedConnection") -> "WatchedConnection":
        connection.watch = self
        try:
            if connection.has_own_session():
                connection.prepare_threshold = PREPARE_AFTER
        except psycopg.Error:
            connection.close()
            raise
        return connection

    def _late_connection(self) -> "WatchedConnection | None":
        with self._lock:
            attempt = self._unfinished
            if attempt is None or not attempt.done():
                return None
            self._unfinished = None
        return attempt.result() if attempt.exception() is None else None

    def forget(self) -> None:
        """Drops connections and attempts after a fork: they are the parent's."""
        self.opened.clear()
        self._unfinished = None
        self._lock = threading.Lock()

    def _last_first(self, options: dict[str, Any]) -> dict[str, Any]:
        """Puts the host that answered last before the others: a host that is gone would delay every connection."""
        hosts, ports = (str(options.get(name, "")).split(",") for name in ("host", "port"))
        if len(hosts) < 2 or len(hosts) != len(ports) or "hostaddr" in options:
            return options
        places = sorted(zip(hosts, ports, strict=True), key=lambda place: place != self._last)
        return options | {"host": ",".join(host for host, _ in places), "port": ",".join(port for _, port in places)}

    def no_answer(self) -> None:
        """A connection got no answer. Other connections may work: the next caller finds out."""
        self._fell_silent("answer", try_after=PAUSE)

    def trusts(self, connection: "WatchedConnection") -> bool:
        """Whether the connection was made since the server last fell silent."""
        return connection.made_at > self._silent_since

    def _fell_silent(self, kind: str, try_after: float) -> None:
        self.timeouts[kind] += 1
        now = time.monotonic()
        if not self._silent:
            self._silent, self._silent_since, self._try_at = True, now, now
        self._try_at = max(self._try_at, now + try_after)


def _close(attempt: "Future[WatchedConnection]") -> None:
    if attempt.exception() is None:
        psycopg.Connection.close(attempt.result())


class WatchedConnection(psycopg.Connection[Any]):
    """A connection that is closed when the server does not answer a statement, COMMIT and ROLLBACK included, within
    ``answer_timeout`` seconds."""

    watch: ServerWatch

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.answer_timeout = 2.0
        self.made_at = time.monotonic()
        self._warnings: deque[str] = deque(maxlen=1)
        self.add_notice_handler(self._noticed)

    def commit(self) -> None:
        """See psycopg.Connection. Raises psycopg.OperationalError for a warning: a server whose wait for standbys was
        cancelled reports success with one, and the change may be on its own disk alone."""
        self._warnings.clear()
        super().commit()
        if self._warnings:
            self.close()
            raise psycopg.OperationalError(self._warnings[0])

    def _noticed(self, notice: psycopg.errors.Diagnostic) -> None:
        if notice.severity_nonlocalized == "WARNING":
            self._warnings.append(notice.message_primary or "the server warned of the commit")

    def close(self) -> None:
        """See psycopg.Connection."""
        self.watch.opened.discard(self)
        super().close()

    @property
    def usable(self) -> bool:
        """Whether it can be used. Input on an idle connection means that the server has closed it; this check saves a
        message to the server at each use, a quarter of a registration."""
        if self.closed or not self.watch.trusts(self):
            return False
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        return not poll.poll(0)

    def has_own_session(self) -> bool:
        """Whether all its transactions run in one session of the server. A pooler reports a process id of its own in
        place of the session's. Raises psycopg.Error."""
        found = self.ask(b"SELECT pg_backend_pid()").get_value(0, 0)
        return found is not None and int(found) == self.pgconn.backend_pid

    def wait(self, gen: PQGen[R], *arguments: Any, **options: Any) -> R:
        """See psycopg.Connection. Raises NoAnswer when the time is up."""
        return super().wait(self._in_time(gen), *arguments, **options)

    def _in_time(self, gen: PQGen[R]) -> PQGen[R]:
        until = time.monotonic() + self.answer_timeout
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                wanted = gen.send(ready)  # ends when the answer is complete, however late this process runs
                if time.monotonic() >= until:
                    raise self._given_up(self.answer_timeout)
        except StopIteration as end:
            result: R = end.value
            return result

    def ask(self, query: bytes, parameters: tuple[bytes, ...] = ()) -> PGresult:
        """The result of one statement, sent outside of a transaction by libpq itself. Raises psycopg.Error."""
        until, pgconn = time.monotonic() + self.watch.look_timeout, self.pgconn
        pgconn.send_query_params(query, parameters)
        while pgconn.flush():
            self._await(select.POLLIN | select.POLLOUT, until)
            pgconn.consume_input()
        result = following = self._next_result(until)
        while following is not None:
            result, following = following, self._next_result(until)
        if result is None:
            raise psycopg.OperationalError("the connection was cut")
        if result.status not in (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK):
            raise self._error(result)
        return result

    def discard_notifications(self) -> None:
        """Reads and drops the notifications that have arrived. Raises psycopg.Error."""
        self.pgconn.consume_input()
        while self.pgconn.notifies() is not None:
            pass

    def _error(self, result: PGresult) -> psycopg.Error:
        message = result.get_error_message().split("\n", 1)[0]
        error = psycopg.errors.error_from_result(result)
        if self.pgconn.status != ConnStatus.OK or isinstance(error, NO_SCHEMA):
            return psycopg.OperationalError(message)
        return psycopg.OperationalError(f"{message}: {GRANT}") if isinstance(error, NO_RIGHT) else error

    def _next_result(self, until: float) -> PGresult | None:
        while self.pgconn.is_busy():
            self._await(select.POLLIN, until)
            self.pgconn.consume_input()
        return self.pgconn.get_result()

    def _await(self, events: int, until: float) -> None:
        poll = select.poll()
        poll.register(self.fileno(), events)
        if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
            raise self._given_up(self.watch.look_timeout)

    def _given_up(self, waited: float) -> NoAnswer:
        self.close()
        self.watch.no_answer()
        return NoAnswer(f"the database did not answer within {waited:g} s")
