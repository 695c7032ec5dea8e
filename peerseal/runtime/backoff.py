"""The pause before another attempt at something that failed."""

import random

_DOUBLINGS = 16  # so that no pause leaves the range of a float


def backoff(failures: int, *, first: float, longest: float, jitter: float = 0.0) -> float:
    """Seconds to wait after so many failures in a row: ``first``, then twice as long each time, ``longest`` at most.

    ``jitter`` is the part of the pause that chance may take away, so that the processes of a fleet do not try in step.
    """
    pause: float = min(first * 2.0 ** min(failures - 1, _DOUBLINGS), longest)
    return pause * random.uniform(1.0 - jitter, 1.0)  # noqa: S311
