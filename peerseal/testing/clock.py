"""A clock to set."""

import time


class Clock:
    """A clock that stands still until it is set: give it wherever ``clock`` is asked for.

    ``now``, in seconds since the epoch, can be read and set; it begins with the time of day.
    """

    def __init__(self, now: float | None = None) -> None:
        self.now = time.time() if now is None else now

    def __call__(self) -> float:
        """The time that it shows."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Set it that much later."""
        self.now += seconds
