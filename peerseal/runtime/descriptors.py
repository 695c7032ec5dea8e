"""The file descriptors of a process: each connection takes one."""

import resource
from typing import Final

_OTHERS: Final = 256


def connections_allowed(wanted: int) -> int:
    """The number of connections, up to ``wanted``, for which the process has descriptors. It raises the process's limit
    where it can. Some descriptors, half of them where there are few, are left for files and other connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _OTHERS
    if soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return min(wanted, soft - min(_OTHERS, soft // 2))
