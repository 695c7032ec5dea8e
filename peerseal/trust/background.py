"""The trust store's background thread: one round after the other, in one thread of each process.

A round asks the registry what changed, and the registry keeps the question until something did. So rounds follow each
other at once where the registry answers in its own time, and are spaced where it answers too soon to have kept the
question, or not at all.
"""

import logging
import math
import threading
import time
from collections.abc import Callable
from enum import Enum

from peerseal.runtime.backoff import backoff
from peerseal.runtime.forks import in_each_child
from peerseal.runtime.limits import TrustLimits
from peerseal.trust.awake import AwakePeriods

log = logging.getLogger("peerseal.trust")

_JITTER = 0.3
"""The part of a pause that chance may take away: the workers of a fleet do not ask in step."""


class Heard(Enum):
    """What a round heard of the registry: news, or that there is none, or nothing at all."""

    NEWS = "news"
    NO_NEWS = "no news"
    NOTHING = "nothing"


class Rounds:
    """Runs ``work`` in the background from `start` on, in this process and anew in each forked child that starts it.

    ``work`` gets an event that is set when it is to end, and says what it heard; ``interrupt`` ends what it waits for.
    A second thread notes in ``awake`` that the process runs. ``idle`` says that this process has no thread for it and
    may have one: a plain member, since it is looked at for every request.
    """

    _NOTES = 5
    """How often in the shortest break the time is noted."""

    def __init__(
        self,
        work: Callable[[threading.Event], Heard],
        interrupt: Callable[[], None],
        limits: TrustLimits,
        awake: AwakePeriods,
    ) -> None:
        self.idle = True
        self._stopped = False
        self._work = work
        self._interrupt = interrupt
        self._limits = limits
        self._awake = awake
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        in_each_child(self._after_fork)

    def start(self) -> None:
        """Start this process's threads, if it has none."""
        with self._lock:
            if self.idle:
                self.idle = False
                self._stopping = threading.Event()
                self._thread = self._started(self._run, "peerseal-trust")
                self._started(self._stay_awake, "peerseal-awake")

    def _started(self, run: Callable[[threading.Event], None], name: str) -> threading.Thread:
        thread = threading.Thread(target=run, args=(self._stopping,), name=name, daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        """End this process's thread, for good. One that the registry holds up otherwise is not waited for for long."""
        self._stopped, self.idle = True, False
        self._stopping.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._interrupt()
            self._thread.join(timeout=self._limits.poll_interval)
        self._thread = None

    def _run(self, stopping: threading.Event) -> None:
        pause, silent = self._poll_pause(), 0
        while not stopping.wait(pause):
            began = time.monotonic()
            try:
                heard = self._work(stopping)
            except Exception:  # the thread must not die of a surprise: without it revocations go unseen
                log.exception("a round of the trust store failed")
                heard = Heard.NOTHING
            silent = silent + 1 if heard is Heard.NOTHING else 0
            pause = self._pause(heard, silent, time.monotonic() - began)

    def _stay_awake(self, stopping: threading.Event) -> None:
        """Note the time, and after a break that was longer than the registry keeps a question, ask it again: the
        connection may lead nowhere by now."""
        period = self._awake.current()
        while not stopping.wait(self._awake.longest_break / self._NOTES):
            before, period = period, self._awake.current()
            if period != before and self._awake.slept >= self._limits.wait:
                self._interrupt()

    def _pause(self, heard: Heard, silent: int, took: float) -> float:
        """Seconds until the next round."""
        limits = self._limits
        if heard is Heard.NOTHING:
            return backoff(silent, first=limits.poll_interval, longest=limits.longest_poll_pause, jitter=_JITTER)
        kept = limits.wait > 0 and (heard is Heard.NEWS or took >= limits.poll_interval)
        return max(0.0, limits.look_interval - took) if kept else self._poll_pause()

    def _poll_pause(self) -> float:
        return backoff(1, first=self._limits.poll_interval, longest=math.inf, jitter=_JITTER)

    def _after_fork(self) -> None:
        """Threads do not survive a fork, and a lock that one of them held would never be released."""
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = None
        self.idle = not self._stopped
