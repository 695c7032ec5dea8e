"""Calls that fail fast: a circuit breaker and a bulkhead for each origin (docs/how-to/failing-fast.md).

They know no HTTP library. A thread waits in `Circuit.place`; an event loop would await the future of `Circuit.ask`.
Everything else returns at once. The state is this process's own; a forked child begins with all circuits closed.
"""

import logging
import math
import random
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from peerseal.errors import CircuitOpen, TooManyCalls
from peerseal.runtime.forks import in_each_child, notice_fork
from peerseal.runtime.limits import CallLimits
from peerseal.transport.deadline import time_left

log = logging.getLogger("peerseal.circuit")

MAX_ORIGINS: Final = 1_000
"""Origins remembered at most; the one that was called least recently is forgotten."""


class CircuitState(StrEnum):
    """Whether calls are made: all, none, or one at a time as a probe."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class CircuitStatus:
    """One origin, as this process has called it. ``failures`` counts the last ones in a row, ``opened`` how often the
    circuit opened, ``refused`` the calls that were not made; ``waiting`` and ``running`` are calls of this moment."""

    origin: str
    state: CircuitState
    failures: int
    opened: int
    refused: int
    waiting: int
    running: int


@dataclass(eq=False, slots=True)
class Attempt:
    """One request to an origin, begun when its circuit had opened ``era`` times."""

    limits: CallLimits
    era: int = 0
    began: float = 0.0
    over: bool = False


class Circuit:
    """Of one origin: whether calls are made, and how many at once. The limits are those of the session that calls."""

    def __init__(self, origin: str, clock: Callable[[], float], chance: Callable[[], float]) -> None:
        self.origin = origin
        self._clock = clock
        self._chance = chance
        self._opened = self._refused = 0
        self.start_closed()

    def start_closed(self) -> None:
        """Forget all calls, also those that other threads of a parent process have on the way."""
        self._lock = threading.Lock()
        self._failures: deque[float] = deque()
        self._why = ""
        self._open_until: float | None = None
        self._probe: Attempt | None = None
        self._running: set[Future[None]] = set()
        self._waiting: dict[Future[None], CallLimits] = {}

    def status(self) -> CircuitStatus:
        """A snapshot."""
        with self._lock:
            return CircuitStatus(
                self.origin,
                self._state(),
                len(self._failures),
                self._opened,
                self._refused,
                len(self._waiting),
                len(self._running),
            )

    # ---- the bulkhead: how many calls at once

    @contextmanager
    def place(self, limits: CallLimits) -> Iterator[None]:
        """A place for one call, for which this thread may have to wait. Raises CircuitOpen or TooManyCalls."""
        asked: Future[None] = Future()
        try:  # from here on: an exception of a signal's handler must not leave a place taken
            self._queue(asked, limits)
            try:
                asked.result(min(limits.longest_wait, time_left(), threading.TIMEOUT_MAX))
            except TimeoutError:
                raise self._too_many(f"no place in {limits.longest_wait:g} s") from None
            yield
        finally:
            self.leave(asked)

    def ask(self, limits: CallLimits) -> Future[None]:
        """A future that is done when there is a place, or fails when the circuit opens before. `leave` gives either
        back. Raises CircuitOpen or TooManyCalls where there is nothing to wait for."""
        asked: Future[None] = Future()
        self._queue(asked, limits)
        return asked

    def _queue(self, asked: Future[None], limits: CallLimits) -> None:
        with self._lock:
            self._check(limits)
            if len(self._running) < limits.max_running:
                return self._take_place(asked)
            if len(self._waiting) < limits.max_waiting:
                self._waiting[asked] = limits
                return None
        raise self._too_many(f"{limits.max_running} run, {limits.max_waiting} wait")

    def leave(self, asked: Future[None]) -> None:
        """Give the place, or the wait for one, to the calls that wait."""
        with self._lock:
            self._running.discard(asked)
            self._waiting.pop(asked, None)
            for waiting, limits in list(self._waiting.items()):
                if len(self._running) < limits.max_running:
                    del self._waiting[waiting]
                    if waiting.set_running_or_notify_cancel():
                        self._take_place(waiting)

    def _take_place(self, asked: Future[None]) -> None:
        self._running.add(asked)
        asked.set_result(None)

    def _too_many(self, why: str) -> TooManyCalls:
        with self._lock:
            self._refused += 1
        return TooManyCalls(
            f"too many calls to {self.origin} at once: {why}; call it less, or raise CallLimits.max_running"
        )

    # ---- the circuit breaker: whether calls are made

    @contextmanager
    def attempt(self, limits: CallLimits) -> Iterator[Attempt]:
        """One request, of whose end the circuit is told by `succeeded` or `failed`. Where it is told nothing, as of a
        request that cannot be signed, it learns nothing. Raises CircuitOpen."""
        attempt = Attempt(limits)
        try:  # from here on: where a probe's end is not seen, no other one is made
            self._begin(attempt)
            yield attempt
        finally:
            with self._lock:
                self._ends(attempt)

    def succeeded(self, attempt: Attempt) -> None:
        """The answer came, whole. It counts as a failure if it took too long."""
        took = self._clock() - attempt.began
        if took >= attempt.limits.slow:
            self.failed(attempt, f"an answer took {took:.1f} s")
            return
        with self._lock:
            if not self._ends(attempt):
                return
            was_closed = self._open_until is None
            self._open_until = None
            self._failures.clear()
        if not was_closed:
            log.warning("circuit to %s is closed: it answers", self.origin)

    def failed(self, attempt: Attempt, why: str, retry_after: float = 0.0) -> None:
        """No good answer came. ``retry_after`` are the seconds for which the origin asks for a pause."""
        limits = attempt.limits
        with self._lock:
            probed = attempt is self._probe
            if not self._ends(attempt) or not limits.failures:
                return
            self._count_failure(limits)
            if not probed and not retry_after and len(self._failures) < limits.failures:
                return
            seconds = self._open(limits, why, retry_after)
        level = logging.INFO if probed else logging.WARNING
        log.log(level, "circuit to %s is open for %.1f s: %s", self.origin, seconds, why)

    def lets_through(self, limits: CallLimits) -> bool:
        """Whether an attempt would be made now."""
        with self._lock:
            return not limits.failures or self._pause() <= 0

    def _begin(self, attempt: Attempt) -> None:
        with self._lock:
            self._check(attempt.limits)
            attempt.era, attempt.began = self._opened, self._clock()
            if self._open_until is None or not attempt.limits.failures:
                return
            self._probe = attempt
        log.info("circuit to %s is half open: one call tries it", self.origin)

    def _ends(self, attempt: Attempt) -> bool:
        """Whether its end counts: it is told for the first time, and the circuit has not opened since it began."""
        if attempt.over:
            return False
        attempt.over = True
        if attempt is self._probe:
            self._probe = None
        return attempt.era == self._opened

    def _count_failure(self, limits: CallLimits) -> None:
        now = self._clock()
        self._failures.append(now)
        while len(self._failures) > limits.failures or self._failures[0] < now - limits.window:
            self._failures.popleft()

    def _open(self, limits: CallLimits, why: str, retry_after: float) -> float:
        """For how many seconds. Calls that wait for a place are refused at once where their limits heed the circuit."""
        seconds = max(limits.open_time, min(retry_after, limits.longest_open)) * (1 + limits.jitter * self._chance())
        self._open_until = self._clock() + seconds
        self._opened += 1
        self._why = why
        for waiting in [waiting for waiting, heeds in self._waiting.items() if heeds.failures]:
            del self._waiting[waiting]
            if waiting.set_running_or_notify_cancel():
                waiting.set_exception(self._refusal(seconds))
        return seconds

    def _check(self, limits: CallLimits) -> None:
        """Raises CircuitOpen where these limits heed a circuit that is not closed, unless the call may be its probe."""
        pause = self._pause()
        if limits.failures and pause > 0:
            raise self._refusal(pause)

    def _refusal(self, pause: float) -> CircuitOpen:
        self._refused += 1
        return CircuitOpen(f"{self.origin} is not called for {pause:.1f} s: {self._why}", math.ceil(pause))

    def _pause(self) -> float:
        """Seconds until an attempt may be made: how long the probe that is under way takes is not known."""
        if self._open_until is None:
            return 0.0
        return 1.0 if self._probe else max(0.0, self._open_until - self._clock())

    def _state(self) -> CircuitState:
        if self._open_until is None:
            return CircuitState.CLOSED
        return CircuitState.HALF_OPEN if self._probe or self._pause() <= 0 else CircuitState.OPEN


class Circuits:
    """The circuits of one identity in this process, shared by all its sessions. ``clock`` counts seconds from anywhere;
    ``chance`` gives numbers from 0 to 1, for the jitter."""

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, chance: Callable[[], float] = random.random
    ) -> None:
        self._clock = clock
        self._chance = chance
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Circuit] = OrderedDict()
        in_each_child(self._start_closed)

    def of(self, origin: str) -> Circuit:
        """The one of that origin."""
        notice_fork()
        with self._lock:
            circuit = self._known.get(origin)
            if circuit is None:
                circuit = self._known[origin] = Circuit(origin, self._clock, self._chance)
                if len(self._known) > MAX_ORIGINS:
                    self._known.popitem(last=False)
            self._known.move_to_end(origin)
            return circuit

    def status(self) -> tuple[CircuitStatus, ...]:
        """A snapshot of each, by origin."""
        notice_fork()
        with self._lock:
            known = list(self._known.values())
        return tuple(sorted((circuit.status() for circuit in known), key=lambda status: status.origin))

    def _start_closed(self) -> None:
        """What a parent process saw says little in a child, and its calls are not the child's."""
        self._lock = threading.Lock()
        for circuit in self._known.values():
            circuit.start_closed()
