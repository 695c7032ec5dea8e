"""A clock that tests set."""

import time


class Clock:
    """A clock that stands still until it is set, for every parameter ``clock``.

    ``now`` is in seconds since the epoch; it begins with the time of day.
    """

    def __init__(self, now: float | None = None) -> None:
        self.now = time.time() if now is None else now

    def __call__(self) -> float:
        """The time of the clock."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Move it forward."""
        self.now += seconds
