"""Runs the checks of evidence in processes: they take most of the time of a replay, and depend on no other check."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from threading import Thread
from types import TracebackType
from typing import Final, Self

from registry.domain.evidence_checks import Checked, EvidenceCheck, checked_all

BATCH: Final = 250
"""Checks that a process is given at a time: a tenth of a second's work."""
ALONE: Final = 8
"""Batches that this process checks itself: the start of others takes longer."""


MOST: Final = 3
"""Processes that are of use: reading the entries takes a third of the time of all checks."""


def processors() -> int:
    """The processors that this process may use, as far as the system says it."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class ParallelChecks:
    """Checks in ``processes`` at most, and tells each result to ``report`` in this thread, in the order of `submit`.

    It is a context manager: all checks are done when it is left without an error."""

    def __init__(self, processes: int, report: Callable[[Checked], object]) -> None:
        self._processes = processes
        self._report = report
        self._batch: list[EvidenceCheck] = []
        self._alone = ALONE
        self._pool: ProcessPoolExecutor | None = None
        self._given = deque[tuple[Sequence[EvidenceCheck], Future[list[Checked]]]]()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._give()
                while self._given:
                    self._take()
        finally:
            if self._pool is not None:
                self._pool.shutdown(wait=True, cancel_futures=True)

    def submit(self, check: EvidenceCheck) -> None:
        """One more check, made now or later."""
        self._batch.append(check)
        if len(self._batch) == BATCH:
            self._give()

    def _give(self) -> None:
        batch, self._batch = self._batch, []
        if self._processes == 1 or self._alone:
            self._alone = max(self._alone - 1, 0)
            self._tell(checked_all(batch))
            return
        try:
            if self._pool is None:
                self._pool = ProcessPoolExecutor(
                    self._processes, multiprocessing.get_context("spawn"), initializer=_follow_parent
                )
            self._given.append((batch, self._pool.submit(checked_all, batch)))
        except (BrokenProcessPool, OSError):  # OSError: the host has no semaphores, or no more processes
            self._check_here(batch)
            return
        while len(self._given) > 4 * self._processes:  # so that memory stays bounded
            self._take()

    def _take(self) -> None:
        batch, future = self._given.popleft()
        try:
            found = future.result()
        except BrokenProcessPool:
            found = checked_all(batch)
        self._tell(found)

    def _check_here(self, batch: Sequence[EvidenceCheck]) -> None:
        """Where a process was ended, such as for its memory, or none can be started: this one makes all checks, and
        none is left out."""
        self._processes = 1
        while self._given:
            self._take()
        self._tell(checked_all(batch))

    def _tell(self, found: Sequence[Checked]) -> None:
        for checked in found:
            self._report(checked)


def _follow_parent() -> None:
    """Ctrl-C reaches all processes of a terminal, and the first one ends the others. A signal that ends the first one
    alone ends this one as well."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)
