"""Stops a node without a failed call: it says that it is not ready, and serves on until balancers have noticed.

gunicorn's master waits, not the workers: all of them become not ready at the same moment, a worker that ends meanwhile
is replaced, and a reload, which replaces workers too, makes no node unready.
"""

import mmap
import signal
from typing import Any


class Drain:
    """Whether the node is about to stop. The master says so in memory that its workers share."""

    def __init__(self) -> None:
        self._shared: mmap.mmap | None = None

    @property
    def began(self) -> bool:
        """Whether the node was told to stop."""
        return self._shared is not None and self._shared[0] != 0

    def trouble(self) -> str | None:
        """The check of readiness (`registry.services.readiness.Check`)."""
        return "this node is about to stop" if self.began else None

    def before_stop_of(self, master: Any, seconds: float) -> None:
        """Has gunicorn's master wait so many seconds between the first SIGTERM and its stop. Another SIGTERM stops it
        at once; SIGINT and SIGQUIT do so anyway. Where another master, a newer or an older one, serves at the
        same sockets (SIGUSR2), nothing waits: the address is ready."""
        shared = self._shared = mmap.mmap(-1, 1)  # with the workers, which are forked after this
        stop = master.handle_term

        def drain_or_stop() -> None:
            if self.began or not seconds or master.reexec_pid or master.master_pid:
                stop()  # raises StopIteration
            shared[0] = 1
            master.log.info("Not ready any more, still serving for %g s", seconds)
            signal.setitimer(signal.ITIMER_REAL, seconds)

        signal.signal(signal.SIGALRM, lambda _signal, frame: master.signal(signal.SIGTERM, frame))
        master.handle_term = drain_or_stop


DRAIN = Drain()
"""Of the node that this process belongs to."""
