"""Calls that fail fast: a circuit breaker and a bulkhead for each origin (docs/how-to/failing-fast.md).

They use no HTTP library. A thread waits in `Circuit.place`; an event loop awaits the future of `Circuit.ask`. All other
methods return at once. Each process has its own circuits; a forked child begins with all circuits closed.
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
from peerseal.runtime.metrics import Metric, gauge
from peerseal.transport.deadline import time_left

log = logging.getLogger("peerseal.circuit")

MAX_ORIGINS: Final = 1_000
"""Number of origins that are kept; the least recently called one is dropped."""


class CircuitState(StrEnum):
    """All calls are made, none, or one at a time as a probe."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class CircuitStatus:
    """The calls of this process to one origin: the last failures in a row, how often the circuit opened, the calls that
    were refused, and the calls that wait and run now."""

    origin: str
    state: CircuitState
    failures: int
    opened: int
    refused: int
    waiting: int
    running: int


@dataclass(eq=False, slots=True)
class Attempt:
    """One request to an origin. ``era`` is how often the circuit had opened when it began."""

    limits: CallLimits
    era: int = 0
    began: float = 0.0
    over: bool = False


class Circuit:
    """The circuit breaker and the bulkhead of one origin. Each call brings the limits of its session."""

    def __init__(self, origin: str, clock: Callable[[], float], chance: Callable[[], float]) -> None:
        self.origin = origin
        self._clock = clock
        self._chance = chance
        self._opened = self._refused = 0
        self.start_closed()

    def start_closed(self) -> None:
        """Forget all calls, including those of other threads of a parent process."""
        self._lock = threading.Lock()
        self._failures: deque[float] = deque()
        self._why = ""
        self._open_until: float | None = None
        self._probe: Attempt | None = None
        self._running: set[Future[None]] = set()
        self._waiting: dict[Future[None], CallLimits] = {}

    def status(self) -> CircuitStatus:
        """The state now."""
        with self._lock:
            counts = len(self._failures), self._opened, self._refused, len(self._waiting), len(self._running)
            return CircuitStatus(self.origin, self._state(), *counts)

    # ---- the bulkhead: how many calls run at once

    @contextmanager
    def place(self, limits: CallLimits) -> Iterator[None]:
        """Reserve a place for one call; this thread may have to wait. Raises CircuitOpen or TooManyCalls."""
        asked: Future[None] = Future()
        try:  # from here on: an exception in a signal handler must release the place
            self._queue(asked, limits)
            try:
                asked.result(min(limits.longest_wait, time_left(), threading.TIMEOUT_MAX))
            except TimeoutError:
                raise self.no_place(limits) from None
            yield
        finally:
            self.leave(asked)

    def ask(self, limits: CallLimits) -> Future[None]:
        """A future that is done when there is a place, or fails if the circuit opens before. The caller returns it with
        `leave`. Raises CircuitOpen or TooManyCalls if it cannot wait."""
        asked: Future[None] = Future()
        self._queue(asked, limits)
        return asked

    def no_place(self, limits: CallLimits) -> TooManyCalls:
        """The error of a call that waited for a place in vain."""
        return self._too_many(f"no place in {limits.longest_wait:g} s")

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
        """Release the place, or stop waiting for one, and let waiting calls run."""
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
        remedy = "call it less, or raise CallLimits.max_running"
        return TooManyCalls(f"too many calls to {self.origin} at once: {why}; {remedy}")

    # ---- the circuit breaker: whether calls are made

    @contextmanager
    def attempt(self, limits: CallLimits) -> Iterator[Attempt]:
        """One request; the caller reports its result by `succeeded` or `failed`. Without a result the circuit does not
        change, such as for a request that cannot be signed. Raises CircuitOpen."""
        attempt = Attempt(limits)
        try:  # from here on: without the end of a probe there would never be another one
            self._begin(attempt)
            yield attempt
        finally:
            with self._lock:
                self._ends(attempt)

    def succeeded(self, attempt: Attempt) -> None:
        """The whole answer came. It counts as a failure if it took too long."""
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
        """The request failed. ``retry_after`` are the seconds of the pause that the origin asks for."""
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
        """Whether the result counts: it is the first one, and the circuit has not opened since the attempt began."""
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
        """Open the circuit; returns for how many seconds. Refuses waiting calls whose limits heed the circuit."""
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
        """Raises CircuitOpen if these limits heed a circuit that is not closed, unless the call may be its probe."""
        pause = self._pause()
        if limits.failures and pause > 0:
            raise self._refusal(pause)

    def _refusal(self, pause: float) -> CircuitOpen:
        self._refused += 1
        return CircuitOpen(f"{self.origin} is not called for {pause:.1f} s: {self._why}", math.ceil(pause))

    def _pause(self) -> float:
        """Seconds until an attempt may be made; 1 during a probe, whose end is not known."""
        if self._open_until is None:
            return 0.0
        return 1.0 if self._probe else max(0.0, self._open_until - self._clock())

    def _state(self) -> CircuitState:
        if self._open_until is None:
            return CircuitState.CLOSED
        return CircuitState.HALF_OPEN if self._probe or self._pause() <= 0 else CircuitState.OPEN


class Circuits:
    """The circuits of one identity in this process, shared by all its sessions. ``clock`` returns monotonic seconds,
    ``chance`` numbers from 0 to 1 for the jitter."""

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, chance: Callable[[], float] = random.random
    ) -> None:
        self._clock = clock
        self._chance = chance
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Circuit] = OrderedDict()
        in_each_child(self._start_closed)

    def of(self, origin: str) -> Circuit:
        """The circuit of that origin."""
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
        """The state of all circuits, by origin."""
        notice_fork()
        with self._lock:
            known = list(self._known.values())
        return tuple(sorted((circuit.status() for circuit in known), key=lambda status: status.origin))

    def collect(self) -> Iterator[Metric]:
        """The state and the counts of each circuit as metrics."""
        for circuit in self.status():
            origin = {"origin": circuit.origin}
            state = {**origin, "state": circuit.state}
            yield gauge("peerseal_circuit_state", "1 for the state that the circuit is in.", 1, state)
            yield gauge("peerseal_circuit_failures", "The last failures in a row.", circuit.failures, origin)
            yield gauge("peerseal_circuit_opened", "How often the circuit opened.", circuit.opened, origin)
            yield gauge("peerseal_circuit_refused", "Calls that were not made.", circuit.refused, origin)
            yield gauge("peerseal_circuit_waiting", "Calls that wait for a place.", circuit.waiting, origin)
            yield gauge("peerseal_circuit_running", "Calls that run.", circuit.running, origin)

    def _start_closed(self) -> None:
        """A forked child does not run the calls of its parent."""
        self._lock = threading.Lock()
        for circuit in self._known.values():
            circuit.start_closed()
