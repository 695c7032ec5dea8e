"""Work that waits at once is done at once."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from registry.domain.errors import StorageUnavailable

W = TypeVar("W")
R = TypeVar("R")


@dataclass(slots=True)
class _Waiting(Generic[W, R]):
    """A piece of work, and what became of it: nothing yet, a result, or the error to raise."""

    work: W
    outcome: R | Exception | None = None


class GroupCommit(Generic[W, R]):
    """Does the work of threads that wait at once in one go: what costs the same for one as for many, such as a
    transaction's begin and commit, is paid once.

    ``do_all`` does several pieces at once, or none of them, and gives for each its result or the error to raise.
    Where it raises itself, the pieces are done one by one, so that nobody fails for another's sake; but not where the
    database is away, which is everybody's trouble. A lone piece waits for nobody.
    """

    MOST = 32
    """Pieces done in one go."""

    def __init__(self, do_all: Callable[[Sequence[W]], Sequence[R | Exception]]) -> None:
        self._do_all = do_all
        self._waiting: deque[_Waiting[W, R]] = deque()
        self._turn = threading.Lock()

    @property
    def waiting(self) -> int:
        """How many pieces nobody has begun with."""
        return len(self._waiting)

    @property
    def busy(self) -> bool:
        """Whether something is being done."""
        return self._turn.locked()

    def do(self, work: W) -> R:
        """The result. Raises its error."""
        mine = _Waiting[W, R](work)
        self._waiting.append(mine)
        with self._turn:  # mostly somebody did it meanwhile
            while mine.outcome is None:
                self._do_some()
        if isinstance(mine.outcome, Exception):
            raise mine.outcome
        return mine.outcome

    def _do_some(self) -> None:
        some = [self._waiting.popleft() for _ in range(min(len(self._waiting), self.MOST))]
        outcomes: Sequence[R | Exception] = [StorageUnavailable("interrupted") for _ in some]  # what an exit leaves
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
