"""What this process uses, as metrics. The names have a prefix of their own, so that they never meet those of
``prometheus_client``. Linux tells everything; other systems the CPU time only."""

import os
import resource
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from peerseal.runtime.metrics import Metric, gauge

_PROC: Final = Path("/proc/self")


def process_metrics(prefix: str) -> Iterator[Metric]:
    """The metrics ``<prefix>_process_…`` as of now."""
    name = f"{prefix}_process"
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = round(used.ru_utime + used.ru_stime, 1)  # so that an idle worker seldom writes its counters again
    yield Metric(f"{name}_cpu_seconds_total", "counter", "CPU time of user and system.", (({}, seconds),))
    yield gauge(f"{name}_threads", "Threads of Python.", threading.active_count())
    with suppress(OSError, ValueError, IndexError):
        pages = int((_PROC / "statm").read_text().split()[1])
        yield gauge(f"{name}_resident_memory_bytes", "Memory in use.", pages * os.sysconf("SC_PAGE_SIZE"))
        yield gauge(f"{name}_open_fds", "Open file descriptors.", len(os.listdir(_PROC / "fd")))
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if most != resource.RLIM_INFINITY:
            yield gauge(f"{name}_max_fds", "File descriptors that may be open.", most)
