"""Runs the checks of evidence in processes: they take most of the time of a replay, and depend on no other check."""

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Final, Self

from registry.domain.evidence_checks import Checked, EvidenceCheck, checked_all

BATCH: Final = 250
"""Checks that a process is given at a time: a tenth of a second's work."""
ALONE: Final = 8
"""Batches that this process checks itself: the start of others takes longer."""


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
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self._processes, multiprocessing.get_context("spawn"), initializer=_ignore_interrupts
            )
        self._given.append((batch, self._pool.submit(checked_all, batch)))
        while len(self._given) > 4 * self._processes:  # so that memory stays bounded
            self._take()

    def _take(self) -> None:
        batch, future = self._given.popleft()
        try:
            found = future.result()
        except BrokenProcessPool:  # a process was ended, such as for its memory: no check is left out
            self._processes = 1
            found = checked_all(batch)
        self._tell(found)

    def _tell(self, found: Sequence[Checked]) -> None:
        for checked in found:
            self._report(checked)


def _ignore_interrupts() -> None:
    """Ctrl-C reaches all processes of a terminal; the first one ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
