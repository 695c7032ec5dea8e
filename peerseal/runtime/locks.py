"""Open files, and the locks on them that the processes of a host share."""

import errno
import fcntl
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

_PAUSE: Final = 0.01
"""Seconds between two attempts to take a lock."""


class Opened:
    """An open file or folder. A process that becomes a daemon may close descriptors that it does not know, and their
    numbers then belong to other files. `Opened` neither uses nor closes such a number."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        found = os.fstat(fd)
        self._is = found.st_dev, found.st_ino

    def stat(self) -> os.stat_result:
        """The state of the file. Raises OSError where it is no longer open."""
        found = os.fstat(self.fd)
        if (found.st_dev, found.st_ino) != self._is:
            self.fd = -1
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return found

    def is_open(self) -> bool:
        """Whether the descriptor still belongs to this file."""
        try:
            self.stat()
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Close it, if it is open."""
        if self.fd >= 0 and self.is_open():
            os.close(self.fd)
        self.fd = -1

    def lock(self, *, wait: float = math.inf) -> bool:
        """Take an exclusive `flock`. False where another process or thread still holds it after ``wait`` seconds."""
        if wait == math.inf:
            fcntl.flock(self.fd, fcntl.LOCK_EX)
            return True
        return succeeds_within(wait, self._lock_now)

    def _lock_now(self) -> bool:
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def unlock(self) -> None:
        """Release a `flock` and close. Closing is not enough: a child that was forked in between has the same open
        file, and keeps the lock."""
        if self.fd >= 0 and self.is_open():
            with suppress(OSError):
                fcntl.flock(self.fd, fcntl.LOCK_UN)
        self.close()


def succeeds_within(wait: float, attempt: Callable[[], bool]) -> bool:
    """Whether the attempt to take a lock succeeds, again and again for ``wait`` seconds."""
    deadline = time.monotonic() + wait
    while not attempt():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_PAUSE)
    return True
