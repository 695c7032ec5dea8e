"""The relay: a thread of each process that sends the events of the outbox until the broker has confirmed them.

One round sends one batch of one topic::

    confirmed ────────────────── deleted
    the broker does not answer ─ the topic pauses, longer each time; other topics continue
    one of several refused ───── each event is sent alone
    refused alone ────────────── the event and later events of its key wait, longer each time
       └── for the last time ─── put aside; later events of its key continue

If a process is killed after the confirmation and before the deletion, the next relay sends the batch again: each event
is sent at least once, in the order of its key.

One relay works at a time, of all processes and hosts with the same outbox. On PostgreSQL it has an advisory lock of its
transaction: the lock ends with the connection, and the server ends the connection of a relay that is frozen or cut off.
On SQLite, whose file belongs to one host, it locks a file next to the database: a transaction would keep the
application from writing.
"""

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass

from peerseal.errors import BrokerUnavailable, ConfigurationError, MessageNotTaken, PeersealError
from peerseal.messaging import SEND, Outlet, system_of
from peerseal.outbox.rows import Rows, Waiting, code_of
from peerseal.protocol.trace_context import TRACEPARENT
from peerseal.runtime.extras import missing
from peerseal.runtime.forks import BackgroundWork, in_each_child, left_to_workers, notice_fork, warn_of_uwsgi_options
from peerseal.runtime.locks import Opened
from peerseal.runtime.options import check_is, check_number, check_whole
from peerseal.runtime.terminal import printable
from peerseal.runtime.tracing import Attributes, of_messages, span
from peerseal.verify.context import serving

try:
    from sqlalchemy import Connection, Engine, Table, func, select, text
    from sqlalchemy.exc import DBAPIError, SQLAlchemyError
except ModuleNotFoundError as error:
    raise missing(error, "kafka") from error

log = logging.getLogger("peerseal.outbox")

Connect = Callable[[], Outlet]
"""Opens an outlet, such as ``lambda: open_outlet(url)``."""
Refused = tuple[Waiting, Exception]

LONGEST_SILENCE = 120
"""Seconds without a statement after which PostgreSQL ends the transaction of a relay: longer than any broker takes."""
MAX_BATCH = 10_000
"""Events of a batch at most: each is a parameter of one statement, and databases take tens of thousands."""
SUSPICIOUS = 2
"""Failures of a topic in a row after which its events are sent one by one, to find the one that causes them."""


@dataclass(frozen=True, slots=True)
class OutboxLimits:
    """The limits of a relay."""

    batch: int = 100
    """Events that are sent before the broker must confirm them; 10,000 at most."""
    poll: float = 0.5
    """Seconds between two checks of the outbox for events of other processes."""
    confirm_within: float = 5.0
    """Seconds for the broker to confirm a batch before it is sent again."""
    attempts: int = 30
    """How often the broker may refuse an event before it is put aside: four minutes with these pauses, in which a full
    queue may have room again."""
    pauses: Sequence[float] = (0.5, 1.0, 2.0, 5.0, 10.0)
    """Seconds before each further attempt; the last pause is repeated."""

    def __post_init__(self) -> None:
        """Raises ConfigurationError, which names the limit."""
        for name in ("batch", "attempts"):
            check_whole(f"OutboxLimits.{name}", getattr(self, name), at_least=1)
        check_number("OutboxLimits.batch", self.batch, at_most=MAX_BATCH)
        check_is("OutboxLimits.pauses", self.pauses, Sequence, "a list of seconds")
        if not self.pauses:
            raise ConfigurationError("OutboxLimits.pauses is empty: expected one pause or more, in seconds")
        for pause in (self.poll, self.confirm_within, *self.pauses):
            check_number("OutboxLimits: a time", pause, at_most=threading.TIMEOUT_MAX)

    def pause_after(self, failures: int) -> float:
        """Seconds to wait after that many failures in a row (1 or more)."""
        return self.pauses[min(failures, len(self.pauses)) - 1]


class _PausedTopics:
    """Topics for which the broker does not answer: how often in a row, and the end of each pause."""

    def __init__(self, limits: OutboxLimits) -> None:
        self._limits = limits
        self._topics: dict[str, tuple[int, float]] = {}

    def now(self) -> list[str]:
        """Topics whose pause has not ended."""
        return [topic for topic, (_, until) in self._topics.items() if time.monotonic() < until]

    def failing(self) -> list[str]:
        """Topics for which the last attempt failed."""
        return list(self._topics)

    def failures(self, topic: str) -> int:
        """Failures of the topic in a row."""
        return self._topics.get(topic, (0, 0.0))[0]

    def begin(self, topic: str) -> float:
        """Note a failure; returns the seconds of the pause."""
        failures = self.failures(topic) + 1
        pause = self._limits.pause_after(failures)
        self._topics[topic] = failures, time.monotonic() + pause
        return pause

    def end(self, topic: str) -> None:
        """The broker accepted an event of the topic."""
        self._topics.pop(topic, None)


class _RelayLock:
    """The lock of the one relay that works on the outbox ``table`` in the database of ``engine``."""

    def __init__(self, engine: Engine, table: Table) -> None:
        self._engine = engine
        self._number = _lock_number(table.fullname)
        self._name = table.name
        self._held: Opened | None = None

    @contextmanager
    def take(self) -> Iterator[Connection | None]:
        """A connection to work with, whose transaction is committed at the end; None if another relay has the lock.
        Raises OSError or an error of SQLAlchemy."""
        with self._engine.connect() as connection, self._alone(connection) as alone:
            yield connection if alone else None
            connection.commit()

    def begin_broker_work(self, connection: Connection) -> None:
        """Let other connections write to SQLite while the broker works."""
        if connection.dialect.name == "sqlite":
            connection.commit()

    def drop_in_child(self) -> None:
        """Close the file that a forked child inherited: it would keep the lock of a parent that was killed."""
        held, self._held = self._held, None
        if held is not None:
            held.close()

    def _alone(self, connection: Connection) -> AbstractContextManager[bool]:
        if connection.dialect.name == "postgresql":
            return nullcontext(self._alone_on_postgresql(connection))
        return self._alone_on_sqlite(connection)

    def _alone_on_postgresql(self, connection: Connection) -> bool:
        connection.execution_options(isolation_level="READ COMMITTED")  # reads nothing older than the lock
        connection.execute(text(f"SET LOCAL idle_in_transaction_session_timeout = '{LONGEST_SILENCE}s'"))
        return bool(connection.scalar(select(func.pg_try_advisory_xact_lock(self._number))))

    @contextmanager
    def _alone_on_sqlite(self, connection: Connection) -> Iterator[bool]:
        lock = Opened(os.open(self._lock_file(connection), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        try:
            locked = lock.lock(wait=0.0)
            self._held = lock if locked else None
            yield locked
        finally:
            self._held = None
            lock.unlock()

    def _lock_file(self, connection: Connection) -> str:
        databases = connection.exec_driver_sql("PRAGMA database_list").all()
        return next(f"{path}-{self._name}.lock" for _, name, path in databases if name == "main")


def _lock_number(name: str) -> int:
    """A number for PostgreSQL's advisory locks, which have no names."""
    return int.from_bytes(hashlib.sha256(f"peerseal.outbox {name}".encode()).digest()[:8], "big", signed=True)


@contextmanager
def _span_of(events: Sequence[Waiting], outlet: Outlet) -> Iterator[None]:
    """The span of sending: in the trace of the one event, or in none with links to the traces of several."""
    given = [value.decode() for event in events for name, value in event.headers if name == TRACEPARENT]
    parent, links = (given[0], ()) if len(events) == len(given) == 1 else (None, given)

    def about() -> Attributes:
        return of_messages("send", events[0].topic, system_of(outlet), len(events))

    with serving(traceparent=parent), span(SEND, "client", about, links):
        yield


class Relay:
    """Sends the events in ``rows`` to an outlet that ``connect`` opens. See `peerseal.outbox.Outbox`."""

    def __init__(
        self, engine: Engine, rows: Rows, connect: Connect, limits: OutboxLimits, clock: Callable[[], float]
    ) -> None:
        self._engine, self._rows, self._lock = engine, rows, _RelayLock(engine, rows.table)
        self._connect, self._limits, self._clock = connect, limits, clock
        self._paused = _PausedTopics(limits)
        self._outlet: Outlet | None = None
        self._inherited: list[Outlet] = []  # outlets of a parent process, which are never used or closed here
        self._confirmed: list[int] = []  # numbers of events that are confirmed and not deleted yet
        self._one_round, self._working = threading.Lock(), BackgroundWork()
        self._started, self._pid = False, os.getpid()
        self._thread: threading.Thread | None = None
        self._stopping, self._woken = threading.Event(), threading.Event()
        self.failure: str | None = None
        """The code of the last error of this process; None if the last attempt succeeded."""
        in_each_child(self._after_fork)

    # ---- the thread

    def start(self) -> None:
        """Start the thread of this process, and of each process that is forked from it. A master of uWSGI has none."""
        notice_fork()
        if not self._started:
            self._started = True
            warn_of_uwsgi_options()
            self._start_thread()

    def wake(self) -> None:
        """Check the outbox now."""
        notice_fork()
        self._woken.set()

    def stop(self, timeout: float) -> bool:
        """End the thread; returns whether it ended within ``timeout`` seconds."""
        self._started = False
        self._stopping.set()
        self._woken.set()
        if self._thread is None or self._pid != os.getpid():
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _start_thread(self) -> None:
        self._pid = os.getpid()
        self._stopping, self._woken = threading.Event(), threading.Event()
        if not left_to_workers():
            self._thread = threading.Thread(target=self._run, name="peerseal-outbox", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        stopping, woken, failures = self._stopping, self._woken, 0
        while not stopping.is_set():
            woken.clear()
            try:
                with self._working:
                    sent = self.send_waiting()
                failures = 0
            except Exception as error:  # without this thread events would never be sent
                sent, failures = 0, failures + 1
                self._note_failure(error)
                stopping.wait(self._limits.pause_after(failures))
            if not sent:
                woken.wait(self._limits.poll)
        self._give_up_outlet()

    def _note_failure(self, error: Exception) -> None:
        self.failure = code_of(error)
        known = isinstance(error, (PeersealError, SQLAlchemyError, OSError))
        said = error.orig if isinstance(error, DBAPIError) else error  # without the statement and its values
        log.error("the outbox cannot be sent: %s", printable(said), exc_info=None if known else error)

    def _after_fork(self) -> None:
        """A forked child has no thread, and does not use its parent's connections, outlet and locks."""
        self._one_round = threading.Lock()
        self._lock.drop_in_child()
        self._engine.dispose(close=False)
        if self._outlet is not None:
            self._inherited.append(self._outlet)
            self._outlet = None
        self._confirmed = []
        if self._started:
            self._start_thread()

    # ---- a round

    def send_waiting(self) -> int:
        """One round; returns the number of events in it: 0 if none may be sent now, or another relay works. Raises
        ConfigurationError, OSError or an error of SQLAlchemy."""
        with self._one_round:
            count = 0
            with self._lock.take() as connection:
                if connection is not None:
                    self._forget_confirmed(connection)
                    count = self._send_batch(connection)
            if connection is not None:
                self._confirmed.clear()
            return count

    def _send_batch(self, connection: Connection) -> int:
        batch = self._rows.next_batch(
            connection,
            self._limits.batch,
            self._clock(),
            longest_pause=max(self._limits.pauses),
            paused=self._paused.now(),
            failing=self._paused.failing(),
        )
        if batch:
            self._lock.begin_broker_work(connection)
            for event, refusal in self._send(batch):
                self._note_refusal(connection, event, refusal)
            self._forget_confirmed(connection)
        return len(batch)

    def _send(self, batch: Sequence[Waiting]) -> list[Refused]:
        """Send a batch of one topic; returns the events that are refused."""
        topic, refused = batch[0].topic, list[Refused]()
        try:
            together = len(batch) > 1 and self._paused.failures(topic) < SUSPICIOUS
            if not together or self._refusal_of(*batch) is not None:
                self._send_singly(batch, refused)
        except PeersealError as error:
            self._give_up_outlet()
            self.failure = code_of(error)
            pause = self._paused.begin(topic)
            log.warning("events on %s wait, the next attempt is in %s s: %s", topic, pause, printable(error))
        else:
            self._paused.end(topic)
            self.failure = code_of(refused[-1][1]) if refused else None
        return refused

    def _send_singly(self, batch: Sequence[Waiting], refused: list[Refused]) -> None:
        """Send the events one by one, for as long as a batch may take; the next round sends the rest. Raises
        PeersealError if the broker does not answer."""
        ends = time.monotonic() + self._limits.confirm_within
        for event in batch:
            if event.number not in self._confirmed:
                refusal = self._refusal_of_one(event, batch, refused)
                refused += [] if refusal is None else [(event, refusal)]
            if time.monotonic() >= ends:
                return

    def _refusal_of_one(self, event: Waiting, batch: Sequence[Waiting], refused: list[Refused]) -> Exception | None:
        """As `_refusal_of`. No answer for this event counts as a refusal if the broker accepts another event."""
        try:
            return self._refusal_of(event)
        except PeersealError as error:
            self._give_up_outlet()
            if event.failures and not self._paused.failures(event.topic):
                refused.append((event, error))  # other events were accepted just before
                raise
            if not self._another_is_accepted(event, batch):
                raise
            return error

    def _another_is_accepted(self, event: Waiting, batch: Sequence[Waiting]) -> bool:
        others = [one for one in batch if one is not event and one.number not in self._confirmed]
        with suppress(PeersealError):
            return bool(others) and self._refusal_of(others[-1]) is None
        return False

    def _refusal_of(self, *events: Waiting) -> Exception | None:
        """Send these events; returns why the broker refuses one of them, or None when all are confirmed. Raises
        PeersealError if the broker does not answer."""
        try:
            outlet = self._opened_outlet()
            with _span_of(events, outlet):
                for event in events:
                    outlet.send(event.topic, event.payload, event.headers, event.key)
                outlet.flush(self._limits.confirm_within)
        except MessageNotTaken as error:
            self._give_up_outlet()
            return error
        except PeersealError:
            raise
        except Exception as error:  # an event that the broker's library cannot send at all
            self._give_up_outlet()
            return error
        self._confirmed += [event.number for event in events]
        return None

    def _note_refusal(self, connection: Connection, event: Waiting, refusal: Exception) -> None:
        attempts, said = event.failures + 1, printable(refusal)
        if attempts >= self._limits.attempts:
            self._rows.note_refusal(connection, event.number, refusal, put_aside_at=self._clock())
            log.error("event %d on %s is put aside, refused %d times: %s", event.number, event.topic, attempts, said)
        else:
            pause = self._limits.pause_after(attempts)
            self._rows.note_refusal(connection, event.number, refusal, not_before=self._clock() + pause)
            log.warning("event %d on %s is refused, and waits for %s s: %s", event.number, event.topic, pause, said)

    def _forget_confirmed(self, connection: Connection) -> None:
        """Delete confirmed events. If that fails, the next round does it first, before it sends anything."""
        if self._confirmed:
            self._rows.forget(connection, self._confirmed)

    # ---- the outlet

    def _opened_outlet(self) -> Outlet:
        if self._outlet is None:
            try:
                self._outlet = self._connect()
            except PeersealError:
                raise
            except Exception as error:  # an error of the application's function, and of no event
                problem = f"the way to the broker cannot be opened: {type(error).__name__}: {printable(error)}"
                raise BrokerUnavailable(problem) from error
        return self._outlet

    def _give_up_outlet(self) -> None:
        """Close the outlet. Events that it still holds are in the database."""
        outlet, self._outlet = self._outlet, None
        if outlet is not None:
            with suppress(Exception):
                outlet.close()
