"""Timing functions side by side: the same batch for each, one after the other, round after round."""

import gc
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import TypeVar

T = TypeVar("T")

Contender = Callable[[Sequence[T]], Callable[[], object]]
"""Prepares a batch and returns the timed function, which processes the batch once."""


class Timings:
    """Seconds per item of every contender, by rounds."""

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = defaultdict(list)

    def add(self, name: str, seconds: float) -> None:
        """One more round."""
        self._seconds[name].append(seconds)

    def names(self) -> list[str]:
        """The contenders, in the order in which they first ran."""
        return list(self._seconds)

    def seconds(self, name: str) -> float:
        """The median of all rounds."""
        return median(self._seconds[name])

    def micros(self, name: str) -> float:
        """The same in microseconds."""
        return self.seconds(name) * 1e6

    def ratio(self, name: str, to: str) -> float:
        """The median of the rounds' quotients: a machine that was slow for a round was slow for both."""
        return median(mine / theirs for mine, theirs in zip(self._seconds[name], self._seconds[to], strict=True))


def each(call: Callable[[T], object]) -> Contender[T]:
    """A contender that calls one function with every item."""

    def prepare(batch: Sequence[T]) -> Callable[[], None]:
        def run() -> None:
            for item in batch:
                call(item)

        return run

    return prepare


def interleaved(contenders: Mapping[str, Contender[T]], batches: Iterable[Sequence[T]]) -> Timings:
    """One round for each batch. Each round begins with another contender.

    The garbage collector runs before every block and never within one, as with `timeit`.
    """
    timings, order = Timings(), list(contenders)
    for batch in batches:
        for name in order:
            run = contenders[name](batch)
            timings.add(name, _timed(run) / len(batch))
        order.append(order.pop(0))
    return timings


def _timed(run: Callable[[], object]) -> float:
    gc.collect()
    gc.disable()
    try:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started
    finally:
        gc.enable()
