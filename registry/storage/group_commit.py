"""Group commit: concurrent requests share one transaction."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from registry.domain.errors import StorageUnavailable

W = TypeVar("W")
R = TypeVar("R")


@dataclass(slots=True)
class _Waiting(Generic[W, R]):
    """A request with its result, or the error to raise; None while it waits."""

    work: W
    outcome: R | Exception | None = None


class GroupCommit(Generic[W, R]):
    """Executes the requests of waiting threads together: costs that do not depend on their number, such as a
    transaction's begin and commit, are paid once.

    ``do_all`` executes several requests or none, and returns for each its result or the error to raise. If it raises
    itself, the requests are executed one by one, so that none fails because of another; but not if the database is
    unavailable, which would fail all of them. A single request does not wait for others.
    """

    MOST = 32
    """Requests in one group."""

    def __init__(self, do_all: Callable[[Sequence[W]], Sequence[R | Exception]], longest_wait: float = -1) -> None:
        """``longest_wait`` is for how long (seconds) a request waits for those before; -1: without an end."""
        self._do_all = do_all
        self._longest_wait = longest_wait
        self._waiting: deque[_Waiting[W, R]] = deque()
        self._turn = threading.Lock()

    @property
    def waiting(self) -> int:
        """The number of requests that have not begun."""
        return len(self._waiting)

    @property
    def busy(self) -> bool:
        """Whether a group is being executed."""
        return self._turn.locked()

    def do(self, work: W) -> R:
        """The result of one request. Raises its error, or StorageUnavailable where it waited for too long."""
        mine = _Waiting[W, R](work)
        self._waiting.append(mine)
        if not self._turn.acquire(timeout=self._longest_wait):
            with suppress(ValueError):  # the thread before has begun with it
                self._waiting.remove(mine)
            raise StorageUnavailable(f"requests before it took more than {self._longest_wait:g} s")
        try:
            while mine.outcome is None:  # the thread before usually has done it meanwhile
                self._do_some()
        finally:
            self._turn.release()
        if isinstance(mine.outcome, Exception):
            raise mine.outcome
        return mine.outcome

    def _do_some(self) -> None:
        some = [self._waiting.popleft() for _ in range(min(len(self._waiting), self.MOST))]
        outcomes: Sequence[R | Exception] = [StorageUnavailable("interrupted") for _ in some]  # if the process exits
        try:
            outcomes = self._outcomes([one.work for one in some])
        finally:
            for one, outcome in zip(some, outcomes, strict=True):
                one.outcome = outcome

    def _outcomes(self, works: Sequence[W]) -> Sequence[R | Exception]:
        try:
            return self._do_all(works)
        except StorageUnavailable as error:
            return [error] * len(works)
        except Exception as error:
            return [error] if len(works) == 1 else [self._outcomes([work])[0] for work in works]
