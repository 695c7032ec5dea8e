"""The relay: a thread of each process that sends what waits in the outbox, until the broker has confirmed it.

One round sends one batch of one topic::

    confirmed ────────────────── deleted
    the broker is away ───────── the topic rests for a growing pause, other topics go on
    one of several refused ───── each goes out alone
    refused alone ────────────── noted; the event waits for a growing pause, and those of its key behind it
       └── for the last time ─── put aside; those behind it go on

A process that is killed between the broker's confirmation and the deletion leaves the batch to the next relay, which
sends it again: at least once, in the order of each key.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from peerseal.errors import BrokerUnavailable, ConfigurationError, MessageNotTaken, PeersealError
from peerseal.messaging import Outlet
from peerseal.outbox.rows import Rows, Waiting, code_of
from peerseal.outbox.turn import Turns
from peerseal.runtime.extras import missing
from peerseal.runtime.forks import BackgroundWork, in_each_child, notice_fork, warn_without_threads
from peerseal.runtime.options import check_is, check_number, check_whole
from peerseal.runtime.terminal import printable

try:
    from sqlalchemy import Connection, Engine
    from sqlalchemy.exc import DBAPIError, SQLAlchemyError
except ModuleNotFoundError as error:
    raise missing(error, "kafka") from error

log = logging.getLogger("peerseal.outbox")

Connect = Callable[[], Outlet]
"""Opens the way to the broker, such as ``lambda: open_outlet(url)``."""


Refused = tuple[Waiting, Exception]

MAX_BATCH = 10_000
"""Events of a batch, at most: each is a parameter of one statement, and databases take tens of thousands."""
SUSPICIOUS = 2
"""Failures of a topic in a row from which on its events go out one by one, to find the one that the broker fails at."""


@dataclass(frozen=True, slots=True)
class OutboxLimits:
    """Of a relay."""

    batch: int = 100
    """Events that are sent before the broker must confirm them all; 10,000 at most."""
    poll: float = 0.5
    """Seconds between two looks into the outbox while nobody wakes the relay: another process may have added events."""
    confirm_within: float = 5.0
    """Seconds for the broker to confirm a batch, before all of it is sent again."""
    attempts: int = 30
    """How often the broker may refuse an event before it is put aside: with these pauses in four minutes, in which a
    full queue may have room again."""
    pauses: Sequence[float] = (0.5, 1.0, 2.0, 5.0, 10.0)
    """Seconds before another attempt after each failure, the last one again and again."""

    def __post_init__(self) -> None:
        """Raises ConfigurationError for a limit that is none."""
        for name in ("batch", "attempts"):
            check_whole(f"OutboxLimits.{name}", getattr(self, name), at_least=1)
        check_number("OutboxLimits.batch", self.batch, at_most=MAX_BATCH)
        check_is("OutboxLimits.pauses", self.pauses, Sequence, "a list of seconds")
        if not self.pauses:
            raise ConfigurationError("OutboxLimits.pauses is empty: expected one pause or more, in seconds")
        for pause in (self.poll, self.confirm_within, *self.pauses):
            check_number("OutboxLimits: a time", pause, at_most=threading.TIMEOUT_MAX)

    def pause_after(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row, one or more."""
        return self.pauses[min(failures, len(self.pauses)) - 1]


class _Rests:
    """Topics for which the broker is away: how often in a row it was, and until when each rests."""

    def __init__(self, limits: OutboxLimits) -> None:
        self._limits = limits
        self._topics: dict[str, tuple[int, float]] = {}

    def now(self) -> list[str]:
        """Those that rest."""
        return [topic for topic, (_, until) in self._topics.items() if time.monotonic() < until]

    def topics(self) -> list[str]:
        """Those that rest, or did so last time."""
        return list(self._topics)

    def failures(self, topic: str) -> int:
        """How often in a row the broker was away for the topic."""
        return self._topics.get(topic, (0, 0.0))[0]

    def begin(self, topic: str) -> float:
        """Let a topic rest; → for how many seconds."""
        failures = self.failures(topic) + 1
        pause = self._limits.pause_after(failures)
        self._topics[topic] = failures, time.monotonic() + pause
        return pause

    def end(self, topic: str) -> None:
        """The broker took an event of the topic."""
        self._topics.pop(topic, None)


class Relay:
    """Sends what waits in ``rows`` by an outlet that ``connect`` opens. See `peerseal.outbox.Outbox`."""

    def __init__(
        self, engine: Engine, rows: Rows, connect: Connect, limits: OutboxLimits, clock: Callable[[], float]
    ) -> None:
        self._engine, self._rows, self._turns = engine, rows, Turns(engine, rows.table)
        self._connect, self._limits, self._clock = connect, limits, clock
        self._rests = _Rests(limits)
        self._outlet: Outlet | None = None
        self._inherited: list[Outlet] = []  # of a parent process: never used, and never closed here
        self._confirmed: list[int] = []  # what the broker has and the database could not forget yet
        self._round, self._working = threading.Lock(), BackgroundWork()
        self._started, self._pid = False, os.getpid()
        self._thread: threading.Thread | None = None
        self._stopping, self._woken = threading.Event(), threading.Event()
        self.failure: str | None = None
        """The code of what this process failed at last; None where the last attempt succeeded."""
        in_each_child(self._after_fork)

    # ---- the thread

    def start(self) -> None:
        """Start the thread of this process, and one in each process that is forked from it."""
        notice_fork()
        if not self._started:
            self._started = True
            warn_without_threads()
            self._start_thread()

    def wake(self) -> None:
        """Look into the outbox now."""
        notice_fork()
        self._woken.set()

    def stop(self, timeout: float) -> bool:
        """End the thread; → whether it ended within ``timeout`` seconds."""
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
            except Exception as error:  # the thread must not die of a surprise: events would wait unseen
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
        log.error("the outbox cannot be relayed: %s", printable(said), exc_info=None if known else error)

    def _after_fork(self) -> None:
        """A child has no thread, and no use for its parent's connections, outlet, locks and turn."""
        self._round = threading.Lock()
        self._turns.drop_in_child()
        self._engine.dispose(close=False)
        if self._outlet is not None:
            self._inherited.append(self._outlet)
            self._outlet = None
        self._confirmed = []
        if self._started:
            self._start_thread()

    # ---- a round

    def send_waiting(self) -> int:
        """One round; → how many events it was about, 0 where none may go now or another relay has the turn. Raises
        ConfigurationError, OSError or what SQLAlchemy raises."""
        with self._round:
            count = 0
            with self._turns.take() as connection:
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
            resting=self._rests.now(),
            failing=self._rests.topics(),
        )
        if batch:
            self._turns.begin_broker_work(connection)
            for event, refusal in self._send(batch):
                self._note_refusal(connection, event, refusal)
            self._forget_confirmed(connection)
        return len(batch)

    def _send(self, batch: Sequence[Waiting]) -> list[Refused]:
        """Send a batch of one topic; → those of its events that are refused."""
        topic, refused = batch[0].topic, list[Refused]()
        try:
            together = len(batch) > 1 and self._rests.failures(topic) < SUSPICIOUS
            if not together or self._refusal_of(*batch) is not None:
                self._send_singly(batch, refused)
        except PeersealError as error:
            self._give_up_outlet()
            self.failure = code_of(error)
            pause = self._rests.begin(topic)
            log.warning("events on %s wait, the next attempt is in %s s: %s", topic, pause, printable(error))
        else:
            self._rests.end(topic)
            self.failure = code_of(refused[-1][1]) if refused else None
        return refused

    def _send_singly(self, batch: Sequence[Waiting], refused: list[Refused]) -> None:
        """One event after the other, for as long as a batch may take; the rest is left to the next round. Raises
        PeersealError where the broker is away."""
        ends = time.monotonic() + self._limits.confirm_within
        for event in batch:
            if event.number not in self._confirmed:
                refusal = self._refusal_of_one(event, batch, refused)
                refused += [] if refusal is None else [(event, refusal)]
            if time.monotonic() >= ends:
                return

    def _refusal_of_one(self, event: Waiting, batch: Sequence[Waiting], refused: list[Refused]) -> Exception | None:
        """As `_refusal_of`. Where the broker is away for this event and takes another one, the event is to blame."""
        try:
            return self._refusal_of(event)
        except PeersealError as error:
            self._give_up_outlet()
            if event.failures and not self._rests.failures(event.topic):
                refused.append((event, error))  # others passed just before; and the topic rests until others pass again
                raise
            if not self._another_passes(event, batch):
                raise
            return error

    def _another_passes(self, event: Waiting, batch: Sequence[Waiting]) -> bool:
        others = [one for one in batch if one is not event and one.number not in self._confirmed]
        with suppress(PeersealError):
            return bool(others) and self._refusal_of(others[-1]) is None
        return False

    def _refusal_of(self, *events: Waiting) -> Exception | None:
        """Send these events; → why the broker refuses one of them, None once it has confirmed them all. Raises
        PeersealError where the broker is away."""
        try:
            outlet = self._opened_outlet()
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
            self._rows.put_aside(connection, event.number, refusal, now=self._clock())
            log.error("event %d on %s is put aside, refused %d times: %s", event.number, event.topic, attempts, said)
        else:
            pause = self._limits.pause_after(attempts)
            self._rows.note_refusal(connection, event.number, refusal, not_before=self._clock() + pause)
            log.warning("event %d on %s is refused, and waits for %s s: %s", event.number, event.topic, pause, said)

    def _forget_confirmed(self, connection: Connection) -> None:
        """Where that fails, the next turn begins with it, so that the same events are not sent again and again."""
        if self._confirmed:
            self._rows.forget(connection, self._confirmed)

    # ---- the outlet

    def _opened_outlet(self) -> Outlet:
        if self._outlet is None:
            try:
                self._outlet = self._connect()
            except PeersealError:
                raise
            except Exception as error:  # of the application's function: no event is to blame
                what = f"the way to the broker cannot be opened: {type(error).__name__}: {printable(error)}"
                raise BrokerUnavailable(what) from error
        return self._outlet

    def _give_up_outlet(self) -> None:
        """With what it still holds: all of it is in the database."""
        outlet, self._outlet = self._outlet, None
        if outlet is not None:
            with suppress(Exception):
                outlet.close()
