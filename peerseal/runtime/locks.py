"""Locks that the processes of a host share, as files of a folder."""

import errno
import fcntl
import hashlib
import os
import re
import struct
from contextlib import suppress
from typing import Final

from peerseal.runtime.files import Folder

_LOCK_FILES: Final = 64


class NameLock:
    """A lock on a name, in a folder: held by one process and thread at a time, with no file for each name.

    It is one byte of the file ``locks``, as an open-file-description lock: like `flock` it belongs to what was opened,
    so a forked child neither has it nor drops it. Where the system has none, the name's hash chooses one of 64 files.
    """

    def __init__(self, folder: Folder, name: str) -> None:
        digest = hashlib.blake2b(name.encode("utf-8"), digest_size=8).digest()
        self._place = int.from_bytes(digest, "big") >> 2
        kind = re.split(r"[-.]", name, maxsplit=1)[0]  # the kinds may be locked one within the other
        self._file = f"{kind}-{self._place % _LOCK_FILES}.lock"
        self._folder = folder
        self._by_file = not hasattr(fcntl, "F_OFD_SETLK")
        self._handle = folder.open(self._file if self._by_file else "locks", os.O_CREAT | os.O_RDWR)

    def acquired(self) -> bool:
        """Take it, if it is free now. Raises OSError or ConfigurationError."""
        try:
            self._apply(fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.F_WRLCK)
        except BlockingIOError:
            return False
        except OSError as error:
            if self._by_file or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
                raise
            os.close(self._handle)
            self._by_file = True
            self._handle = self._folder.open(self._file, os.O_CREAT | os.O_RDWR)
            return self.acquired()
        return True

    def close(self) -> None:
        """Give it up. Closing alone would not do: a child forked meanwhile has the same file open."""
        with suppress(OSError):
            self._apply(fcntl.LOCK_UN, fcntl.F_UNLCK)
        os.close(self._handle)

    def _apply(self, whole: int, part: int) -> None:
        if self._by_file:
            fcntl.flock(self._handle, whole)
        else:
            wanted = struct.pack("hhqqi4x", part, os.SEEK_SET, self._place, 1, 0)  # struct flock
            fcntl.fcntl(self._handle, fcntl.F_OFD_SETLK, wanted)
