"""The background thread of a trust store: follows the registry's changes, and renews what is due.

There is one such thread in each process, and it works in rounds. A round asks the registry what changed, by a long
poll: the registry answers when something changes that concerns this process, or when the time of the poll is over. The
next round begins at once after a change, and after a round that took at least `poll_interval`, but at least
`look_interval` after the beginning of the last one. A pause follows a shorter round without a change, a round without
an answer, and any round if `wait` is 0. A round ends early if this process begins to watch another service: the next
one asks about that service too.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

from peerseal.errors import PeersealError
from peerseal.protocol.documents.changes import Watched
from peerseal.protocol.names import split_service_id
from peerseal.runtime.backoff import backoff
from peerseal.runtime.forks import BackgroundWork, in_each_child, left_to_workers
from peerseal.runtime.limits import TrustLimits
from peerseal.transport.fetch import HungUp
from peerseal.trust.awake import AwakePeriods
from peerseal.trust.changes import ChangesFollower, ReceivedChanges
from peerseal.trust.shelf import Shelf, ShelfContext
from peerseal.trust.shelves import SPREAD

log = logging.getLogger("peerseal.trust")

_JITTER = 0.3
"""The random part of a pause, so that the workers of a fleet do not ask at the same time."""


class RoundResult(Enum):
    """What the registry said in one round: that something changed, that nothing did, or nothing at all. Or this process
    interrupted the wait."""

    CHANGED = "changed"
    UNCHANGED = "unchanged"
    INTERRUPTED = "interrupted"
    NO_ANSWER = "no answer"


class BackgroundThread:
    """Runs ``work`` again and again from `start` on, in this process and in each forked child that starts it.

    ``work`` gets an event, and returns soon after that is set. ``interrupt`` ends the wait of ``work`` for the
    registry. A second thread notes in ``awake`` that the process runs, and interrupts a wait that is ``outgrown``: the
    registry would not end it for all changes that concern this process. ``idle`` is true while this process has no
    background thread and may start one. It is a plain attribute, since each request reads it.
    """

    _NOTES = 5
    """How many notes of the time fall into `AwakePeriods.longest_break`. A longer time without a note is a break."""

    def __init__(
        self,
        work: Callable[[threading.Event], RoundResult],
        interrupt: Callable[[], None],
        outgrown: Callable[[], bool],
        limits: TrustLimits,
        awake: AwakePeriods,
    ) -> None:
        self.idle = True
        self._stopped = False
        self._work = work
        self._interrupt = interrupt
        self._outgrown = outgrown
        self._limits = limits
        self._awake = awake
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        in_each_child(self._after_fork)

    def start(self) -> None:
        """Start this process's threads, if it has none. A master of uWSGI gets none."""
        with self._lock:
            if self.idle and not left_to_workers():
                self.idle = False
                self._stopping = threading.Event()
                self._thread = self._started(self._run, "peerseal-trust")
                self._started(self._note_time, "peerseal-awake")

    def _started(self, run: Callable[[threading.Event], None], name: str) -> threading.Thread:
        thread = threading.Thread(target=run, args=(self._stopping,), name=name, daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        """End this process's threads, for good. It waits for the background thread, ``poll_interval`` seconds at most:
        a thread that is still in a call to the registry ends by itself after that call."""
        self._stopped, self.idle = True, False
        self._stopping.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._interrupt()
            self._thread.join(timeout=self._limits.poll_interval)
        self._thread = None

    def _run(self, stopping: threading.Event) -> None:
        pause, unanswered_rounds = self._poll_pause(), 0
        while not stopping.wait(pause):
            began = time.monotonic()
            try:
                result = self._work(stopping)
            except Exception:  # the thread must survive any error: without it revocations go unseen
                log.exception("a round of the trust store failed")
                result = RoundResult.NO_ANSWER
            unanswered_rounds = unanswered_rounds + 1 if result is RoundResult.NO_ANSWER else 0
            pause = self._pause(result, unanswered_rounds, time.monotonic() - began)

    def _note_time(self, stopping: threading.Event) -> None:
        """Note the time. After a break that was longer than a long poll, interrupt the work: its connection may be
        dead, and the next round takes another one."""
        period = self._awake.current()
        while not stopping.wait(self._awake.longest_break / self._NOTES):
            before, period = period, self._awake.current()
            slept = period != before and self._awake.slept >= self._limits.wait
            if slept or self._outgrown():
                self._interrupt()

    def _pause(self, result: RoundResult, unanswered_rounds: int, took: float) -> float:
        """Seconds until the next round."""
        limits = self._limits
        if result is RoundResult.NO_ANSWER:
            longest = limits.longest_poll_pause
            return backoff(unanswered_rounds, first=limits.poll_interval, longest=longest, jitter=_JITTER)
        told = result in (RoundResult.CHANGED, RoundResult.INTERRUPTED)
        was_long_poll = limits.wait > 0 and (told or took >= limits.poll_interval)
        return max(0.0, limits.look_interval - took) if was_long_poll else self._poll_pause()

    def _poll_pause(self) -> float:
        return backoff(1, first=self._limits.poll_interval, longest=math.inf, jitter=_JITTER)

    def _after_fork(self) -> None:
        """Threads do not survive a fork, and a lock that one of them held would never be released."""
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = None
        self.idle = not self._stopped


class Renewal:
    """Follows the changes, and renews those documents on the shelves that are due. It holds ``working`` while it works,
    but not while it waits for the registry's changes. A fork of this process waits until ``working`` is free, as
    `BackgroundWork` says."""

    def __init__(
        self,
        context: ShelfContext,
        changes: ChangesFollower,
        shelves: Sequence[Shelf[Any, Any, Any]],
        working: BackgroundWork,
    ) -> None:
        self._reader = context.reader
        self._confirmation = context.confirmation
        self._awake = context.awake
        self._limits = context.limits
        self._clock = context.clock
        self._changes = changes
        self._shelves = shelves
        self._working, self._retry_working, self._spread_working = working, BackgroundWork(), BackgroundWork()
        self._witness_working = BackgroundWork()
        self._retrying = self._spreading = self._witnessing = threading.Thread()  # not started: none is alive
        in_each_child(self._after_fork)

    def refresh(self) -> None:
        """See `TrustStore.refresh`."""
        self._renew_registry_keys()
        self._renew_cosigned()
        try:
            since = self.followed()
            if since is not None:
                self._apply_changes(self._changes.ask(since))
        except PeersealError as error:
            log.warning("cannot follow the registry's changes: %s", error)
        for shelf in self._shelves:
            shelf.renew_due(ahead=SPREAD)

    def round(self, stopping: threading.Event) -> RoundResult:
        """One round of the background thread. It ends early where ``stopping`` is set."""
        with self._working:
            self._renew_registry_keys()
        result = self._wait_for_changes(stopping)
        with self._working:
            self._renew_due(failing=False)
        if not self._retrying.is_alive() and self._due_at(failing=True) <= self._clock():
            self._retrying = threading.Thread(target=self._retry, name="peerseal-trust-retry", daemon=True)
            self._retrying.start()
        if self._reader.witnessed.is_due() and not self._witnessing.is_alive():
            self._witnessing = threading.Thread(target=self._renew_cosigned, name="peerseal-witnesses", daemon=True)
            self._witnessing.start()
        return result

    def followed(self) -> int | None:
        """The entry after which the registry is asked for changes: the lowest entry up to which a belief is true. A
        belief whose next document is awaited counts with the entry that this document must cover. None where there is
        no belief."""
        return min((entry for shelf in self._shelves for entry in shelf.followed()), default=None)

    def watched(self) -> Watched:
        """The services whose changes concern this process."""
        return Watched.of(split_service_id(name)[1] for shelf in self._shelves for name in shelf.services())

    def _retry(self) -> None:
        """Renew the documents whose last renewal failed, in a thread of its own: these fetches may hang again, and must
        not delay the other renewals."""
        with self._retry_working:
            self._renew_due(failing=True)

    def _renew_due(self, *, failing: bool) -> None:
        for shelf in self._shelves:
            shelf.renew_due(failing=failing)

    def _start_spread(self, stopping: threading.Event) -> None:
        now = self._clock()
        if now < self._due_at(failing=False) <= now + SPREAD and not self._spreading.is_alive():
            self._spreading = threading.Thread(
                target=self._renew_soon, args=(stopping,), name="peerseal-trust-spread", daemon=True
            )
            self._spreading.start()

    def _renew_soon(self, stopping: threading.Event) -> None:
        """Renew each document that is due within `SPREAD` seconds when its time comes. This thread of its own does so,
        since the background thread waits in its next long poll meanwhile."""
        while not stopping.is_set():
            due_in = self._due_at(failing=False) - self._clock()
            if due_in > SPREAD or stopping.wait(max(due_in, self._limits.look_interval)):
                return
            with self._spread_working:
                self._renew_due(failing=False)

    def _wait_for_changes(self, stopping: threading.Event) -> RoundResult:
        """Wait for changes, at most until the next document is due for renewal."""
        since = self.followed()
        if since is None:
            return RoundResult.UNCHANGED
        due_at = self._due_at(failing=False, after=self._clock() + SPREAD if self._spreading.is_alive() else -math.inf)
        if not self._retrying.is_alive():
            due_at = min(due_at, self._due_at(failing=True))
        due_in = min(self._reader.registry_keys_due_in(), due_at - self._clock())
        try:
            # What is due within a second can wait for the end of the shortest long poll.
            seconds = min(self._limits.wait, max(1.0, due_in)) if due_in > 0 else 0.0
            lists = self._changes.wait(since, seconds, stopping)
            with self._working:
                for received in lists:
                    self._apply_changes(received)
            self._start_spread(stopping)
        except HungUp:
            return RoundResult.INTERRUPTED
        except PeersealError as error:
            log.warning("cannot follow the registry's changes: %s", error)
            return RoundResult.NO_ANSWER
        changed = any(received.changes.seq > since for received in lists)
        return RoundResult.CHANGED if changed else RoundResult.UNCHANGED

    def _due_at(self, *, failing: bool, after: float = -math.inf) -> float:
        return min(shelf.due_at(failing=failing, after=after) for shelf in self._shelves)

    def _apply_changes(self, received: ReceivedChanges) -> None:
        """Confirm what did not change, and mark what did."""
        changes, period = received.changes, self._awake.period_at(received.asked_at)
        self._reader.note(changes)
        self._confirmation.note(changes, period)
        for shelf in self._shelves:
            shelf.confirm(changes, period)

    def _renew_registry_keys(self) -> None:
        if self._reader.registry_keys_due_in() <= 0:
            try:
                self._reader.load_registry_keys()
            except PeersealError as error:
                log.warning("cannot renew the registry's keys: %s", error)

    def _renew_cosigned(self) -> None:
        """Ask for a newer cosigned checkpoint, if one is due: in a thread of its own, as `_retry`."""
        with self._witness_working:
            root = self._reader.registry_keys_in_memory()
            if root is not None and self._reader.witnessed.is_due():
                self._reader.witnessed.renew(root)

    def _after_fork(self) -> None:
        self._retrying = self._spreading = self._witnessing = threading.Thread()
