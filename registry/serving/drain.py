"""Stops a node without a failed call: it reports that it is not ready, and serves until balancers have noticed.

gunicorn's master waits, not the workers. So all workers become not ready at the same moment, a worker that ends
meanwhile is replaced, and a reload, which replaces workers too, leaves the node ready.
"""

import mmap
import os
import signal
import threading
from types import FrameType
from typing import Any


class Drain:
    """Whether the node is about to stop. The master writes it to memory that it shares with its workers."""

    def __init__(self) -> None:
        self._shared: mmap.mmap | None = None

    @property
    def began(self) -> bool:
        """Whether the node was told to stop."""
        return self._shared is not None and self._shared[0] != 0

    def trouble(self) -> str | None:
        """The check of readiness (`registry.services.readiness.Check`)."""
        return "this node is about to stop" if self.began else None

    def delay_stop_of(self, master: Any, seconds: float) -> None:
        """Has gunicorn's master stop ``seconds`` after the first SIGTERM. Another SIGTERM stops it at once, as SIGINT
        and SIGQUIT always do. Nothing is delayed while a newer or an older master serves the same sockets (SIGUSR2),
        because the address stays ready."""
        shared = self._shared = mmap.mmap(-1, 1)  # the workers are forked after this
        stop = signal.getsignal(signal.SIGTERM)  # gunicorn's handler: it queues the signal for the master's loop
        if not callable(stop):
            raise TypeError(f"SIGTERM has no handler of gunicorn's, but {stop!r}")

        def drain_or_stop(signum: int, frame: FrameType | None) -> None:
            in_worker = os.getpid() != master.pid  # which has this handler until it sets its own
            if in_worker or self.began or not seconds or master.reexec_pid or master.master_pid:
                stop(signum, frame)
                return
            shared[0] = 1
            signal.setitimer(signal.ITIMER_REAL, seconds)
            told = "Not ready any more, still serving for %g s", seconds
            threading.Thread(target=master.log.info, args=told).start()  # a signal handler must not use the log

        signal.signal(signal.SIGTERM, drain_or_stop)
        signal.signal(signal.SIGALRM, lambda _signum, frame: stop(signal.SIGTERM, frame))


DRAIN = Drain()
"""Of the node that this process belongs to."""
