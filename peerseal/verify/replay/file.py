"""The replay guard of a host: append-only logs in a folder, one for each window of 30 seconds in which tokens expire.

A claim appends a record to the log of its token's window and reads the log up to that record. The kernel orders appends
(``O_APPEND``), so each process sees whether its own record of the token is the first. No process waits for the lock of
another one. docs/adr/0020-replay-guard-is-a-log.md gives the reasons.
"""

import hashlib
import logging
import math
import os
import re
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Final

from peerseal.errors import ConfigurationError, TrustUnavailable
from peerseal.runtime.files import Access, Folder
from peerseal.runtime.forks import around_each_fork, in_each_child, notice_fork
from peerseal.runtime.locks import Opened
from peerseal.runtime.metrics import Metric, gauge
from peerseal.runtime.options import check_callable, check_path, check_whole

if TYPE_CHECKING:
    import sqlite3

log = logging.getLogger("peerseal.replay")

_DIGEST = 16
_RECORD = struct.Struct(f"{_DIGEST}s16x")
"""The token's digest, and 16 random bytes that identify the claim."""
_LENGTH = _RECORD.size
_CHUNK = 1 << 20
"""The most bytes of one read."""
_CUT = "its log was cut: tokens that expire within the same 30 seconds are refused"
_MOUNTS = Path("/proc/self/mountinfo")
_NETWORK: Final = re.compile(
    r"9p|afs|beegfs|ceph|cifs|gfs2|gpfs|lustre|ncpfs|nfs4?|ocfs2|orangefs|pvfs2|smb[23]|smbfs"
    r"|fuse\.(beegfs|ceph|cephfs|gcsfuse|glusterfs|juicefs|mfs|moosefs|rclone|s3fs|sshfs)"
)
"""There, appends of two hosts may overwrite each other."""
_IN_MEMORY: Final = ("tmpfs", "ramfs")


def guard_metrics(guard: str, tokens: int, full: float) -> list[Metric]:
    """The metrics of a guard of that kind. ``full`` is 1 where it takes no more."""
    labels = {"guard": guard}
    return [
        gauge("peerseal_replay_guard_tokens", "Tokens that the replay guard holds.", tokens, labels),
        gauge("peerseal_replay_guard_full_ratio", "1 where the replay guard takes no more.", full, labels),
    ]


class FileReplayGuard:
    """Shared by all workers of one host through logs in a folder, also across restarts. A power failure may lose
    claims, whose tokens have expired before the host is back."""

    WINDOW = 30
    """Seconds of expiry of one log, ``<path>.<number>``: the number is ``until // WINDOW``."""
    PURGE_EVERY = 30
    """Seconds between two checks of the folder, which also remove old logs."""
    BUSY_TIMEOUT = 2.0
    """Seconds for which a thread waits for the other threads of this process, which may wait for the disk."""
    MOST_OPEN = 64
    """Logs that a process holds open; it closes the oldest one for another one."""

    def __init__(
        self, path: str | os.PathLike[str], *, limit: int = 1_000_000, clock: Callable[[], float] = time.time
    ) -> None:
        """``path`` is the prefix of the logs' names, in an existing folder that only this user can change. The logs are
        created on first use, mode 0600. A window takes at most ``limit`` claims, of 32 bytes each."""
        check_path("path", path)
        check_whole("limit", limit, at_least=1)
        check_callable("clock", clock)
        path = Path(path).absolute()
        name = path.name.removesuffix(".sqlite3")  # the name of a guard of the release before
        if not name:
            raise ConfigurationError(f"path={path}: expected the prefix of the logs' names, such as FOLDER/replay")
        self._path = path.with_name(name)
        self._folder = Folder(path.parent, access=Access.READABLE, mode=None)
        self._earlier = ClaimsInSqlite(self._folder, f"{self._path.name}.sqlite3")
        self._limit = limit
        self._clock = clock
        self._logs: dict[int, _Log] = {}
        self._tidied_at = -math.inf
        self.in_memory = False
        """Whether a claim waits for no disk: the folder is on a tmpfs, and no file of an earlier release is in use. It
        is found out by the first claim."""
        self._renew_lock()
        in_each_child(self._renew_lock)

    def claim(self, issuer: str, jti: str, until: float) -> bool:
        """See ReplayGuard. Raises TrustUnavailable where the logs cannot be used: fail closed."""
        notice_fork()
        token = hashlib.blake2b(f"{issuer}\0{jti}".encode(), digest_size=_DIGEST).digest()
        lock = self._lock
        if not lock.acquire(blocking=False) and not lock.acquire(timeout=self.BUSY_TIMEOUT):
            raise TrustUnavailable("the replay guard waits for the disk", retry_after=1)
        try:
            now = self._clock()
            if not 0 <= now - self._tidied_at < self.PURGE_EVERY:
                self._tidy(now)
            number = int(until) // self.WINDOW
            held = self._logs.get(number)
            if held is not None and token in held.seen:
                return False  # a flood of replays writes nothing
            if held is None or not held.is_there():
                held = self._open(number)
            return held.claim(token, self._limit) and self._earlier.claim(token, until)
        except (OSError, ConfigurationError, ArithmeticError, ValueError) as error:
            raise TrustUnavailable(f"the replay guard cannot be used: {error}") from error
        finally:
            lock.release()

    def collect(self) -> list[Metric]:
        """The number of tokens in the logs of all workers, and the part of the limit that the fullest log has."""
        of_a_log, held = self._of_a_log(), [0]
        for name in self._folder.names():
            if of_a_log.fullmatch(name):
                with suppress(FileNotFoundError):  # another process removes it
                    held.append(self._folder.stat(name).st_size // _LENGTH)
        return guard_metrics("file", sum(held), max(held) / self._limit)

    def close(self) -> None:
        """Close the logs; the next claim opens them again."""
        notice_fork()
        with self._lock:
            self._logs.clear()
            self._tidied_at = -math.inf

    def _renew_lock(self) -> None:
        """A forked child keeps all else: it reads the files from the place that its sets have reached."""
        self._lock = threading.Lock()

    def _open(self, number: int) -> "_Log":
        """The log of that window, created where it is missing. A log is marked as over before its removal, and the mark
        is read after the log was opened. So a process that was stopped meanwhile, or whose clock was set back, does not
        create a removed log again."""
        if not 0 <= number < 1 << 40:
            raise ValueError(f"the token's window is {number}, expected 0 to {(1 << 40) - 1}")
        while len(self._logs) >= self.MOST_OPEN:
            del self._logs[next(iter(self._logs))]
        opened = _Log(self._folder.open(self._name(number), os.O_CREAT | os.O_RDWR | os.O_APPEND))
        if self._is_over(number):
            ended = (number + 1) * self.WINDOW
            raise OSError(f"it dropped the tokens that expired before {ended}; is this host's clock wrong?")
        if not opened.is_there():
            raise OSError("its log was removed a moment ago")
        removed = self._logs.get(number)
        if removed is not None:
            opened.seen |= removed.seen
        self._logs[number] = opened
        return opened

    def _of_a_log(self) -> re.Pattern[str]:
        return re.compile(re.escape(self._path.name) + r"\.([0-9]{1,15})")

    def _name(self, number: int) -> str:
        return f"{self._path.name}.{number}"

    @property
    def _over(self) -> str:
        """The file with one byte for each window, at the offset of its number: 1 where its log was removed. It is
        sparse, and takes 4 KiB on the disk for 34 hours."""
        return f"{self._path.name}.over"

    def _is_over(self, number: int) -> bool:
        try:
            over = Opened(self._folder.open(self._over))
        except FileNotFoundError:
            return False
        try:
            return os.pread(over.fd, 1, number) == b"\1"
        finally:
            over.close()

    def _tidy(self, now: float) -> None:
        kind = self._check_folder()
        self._earlier.look(now)
        self.in_memory = kind in _IN_MEMORY and not self._earlier.in_use
        self._remove_before(int(now) // self.WINDOW - 1)
        self._tidied_at = now

    def _check_folder(self) -> str | None:
        """The kind of its file system, if the system tells. Raises OSError or ConfigurationError for a folder that
        cannot be used."""
        self._folder.check(self._path.name)  # refuses a path that names a folder or a link
        if not self._folder.is_in_place():
            raise OSError(f"another folder lies at {self._path.parent} now: restart this service")
        kind = file_system(self._folder.stat(".").st_dev)
        if kind is not None and is_network(kind):
            raise OSError(
                f"{self._path.parent} is on a network file system ({kind}): name a local folder"
                " (PEERSEAL_REPLAY_DIR), or share the guard through Redis (PEERSEAL_REPLAY_URL)"
            )
        return kind

    def _remove_before(self, first: int) -> None:
        """Drop the windows before that one and their logs. A removal that fails is tried again next time."""
        for number in [number for number in self._logs if number < first]:
            del self._logs[number]
        of_a_log = self._of_a_log()
        for name in self._folder.names():
            found = of_a_log.fullmatch(name)
            if found and int(found[1]) < first:
                try:
                    self._remove(name, int(found[1]))
                except FileNotFoundError:
                    pass  # another process removed it
                except (OSError, ConfigurationError) as error:
                    log.warning("a log of the replay guard stays after its time: %s", error)

    def _remove(self, name: str, number: int) -> None:
        """A log of one byte takes no more claims, and frees space that the next step needs on a full disk."""
        past = _Log(self._folder.open(name, os.O_RDWR))
        os.ftruncate(past.fd, 1)
        over = Opened(self._folder.open(self._over, os.O_CREAT | os.O_RDWR))
        try:
            if os.pwrite(over.fd, b"\1", number) != 1:
                raise OSError(f"{self._over}: nothing was written")
        finally:
            over.close()
        self._folder.remove(name)


class _Log(Opened):
    """The open log of one window, and the tokens that this process has read from it. It is closed with its object."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self.seen: set[bytes] = set()
        self._size = 0
        self._read = 0, b""
        """The offset read so far, and the record before it: another record there shows that the log was cut."""

    def __del__(self) -> None:
        self.close()

    def is_there(self) -> bool:
        """Whether the log is open and was not removed. Asked before each claim."""
        try:
            found = self.stat()
        except OSError:
            return False
        self._size = found.st_size
        return found.st_nlink > 0

    def claim(self, token: bytes, limit: int) -> bool:
        """Whether this is the first record of the token."""
        read_to, last = self._read
        if self._size % _LENGTH or self._size < read_to:
            raise OSError(_CUT)
        if self._size >= limit * _LENGTH:
            raise OSError(f"it is full: {limit} tokens that expire within the same 30 seconds")
        mine = token + os.urandom(_LENGTH - _DIGEST)
        if os.write(self.fd, mine) != _LENGTH:
            raise OSError("a record was written in part")
        data = os.pread(self.fd, len(last) + _LENGTH, read_to - len(last))
        if not data.startswith(last):
            raise OSError(_CUT)
        if self._size != read_to or data[len(last) :] != mine:
            self._read_up_to(mine)
        won = token not in self.seen
        self.seen.add(token)
        self._read = self._read[0] + _LENGTH, mine  # last: a child forked before this reads the record again
        return won

    def _read_up_to(self, mine: bytes) -> None:
        """Read the records before that one."""
        while True:
            read_to, _ = self._read
            unread = max(self._size - read_to, 0)  # other processes may have added more since
            data = os.pread(self.fd, min(unread + 4 * _LENGTH, _CHUNK), read_to)
            place = data.find(mine)
            before = data[: place if place >= 0 else len(data) - len(data) % _LENGTH]
            if len(before) % _LENGTH or (place < 0 and not before):
                raise OSError("its log was cut in this moment")
            if before:
                self.seen.update(map(itemgetter(0), _RECORD.iter_unpack(before)))
                self._read = read_to + len(before), before[-_LENGTH:]
            if place >= 0:
                return


class ClaimsInSqlite:
    """Claims in the SQLite file of the release before, while workers of that release still write to it.

    A service is reloaded worker by worker: until the last old worker has ended, a token must be new in its file too.
    The file is removed ten minutes after the last token that an old worker accepted has expired. This class can be
    removed in the release after the next one.

    The table is ``seen (token, until)``. Claims of this release have a fractional ``until``, those of old workers a
    whole one; old workers delete both.

    Each claim opens its own connection, and a fork waits until it is closed.
    """

    BUSY_TIMEOUT = 2.0
    """Seconds to wait for another process's insert."""
    QUIET = 600
    """Seconds for which an old worker may be idle."""

    def __init__(self, folder: Folder, name: str) -> None:
        self._folder = folder
        self._files = [name, f"{name}-wal", f"{name}-shm"]
        self.in_use = False
        """Whether claims are also made in the file, as of the last `look`."""
        self._after_in_child()
        around_each_fork(self._before_fork, self._after_in_parent, self._after_in_child)

    def look(self, now: float) -> None:
        """Look whether the file exists and is in use; remove one that is not. Raises OSError or ConfigurationError."""
        self.in_use = self._is_there()
        if not self.in_use:
            return
        with self._opened() as connection:
            query = "SELECT 1 FROM seen WHERE typeof(until) = 'integer' AND until >= ? LIMIT 1"
            self.in_use = connection.execute(query, (int(now) - self.QUIET,)).fetchone() is not None
        if not self.in_use:
            for file in self._files:
                self._folder.remove(file)

    def claim(self, token: bytes, until: float) -> bool:
        """Whether the token is new in the file. Raises OSError or ConfigurationError."""
        if not self.in_use or not self._is_there():
            return True
        with self._opened() as connection:
            inserted = connection.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (token, int(until) + 1.5))
            return inserted.rowcount == 1

    def _is_there(self) -> bool:
        there = [self._folder.check(file) for file in self._files]
        return there[0]

    @contextmanager
    def _opened(self) -> "Iterator[sqlite3.Connection]":
        import sqlite3  # only where there is such a file

        if not self._folder.is_in_place():  # SQLite opens files by their path
            raise OSError(f"another folder lies at {self._folder.path} now: restart this service")
        uri = f"{(self._folder.path / self._files[0]).as_uri()}?mode=rw"
        try:
            with (
                self._lock,
                closing(sqlite3.connect(uri, uri=True, timeout=self.BUSY_TIMEOUT, isolation_level=None)) as connection,
            ):
                connection.execute("PRAGMA synchronous = OFF")
                yield connection
        except sqlite3.Error as error:
            raise OSError(f"{self._files[0]}, of the release before: {error}") from error

    def _before_fork(self) -> None:
        self._lock.acquire()

    def _after_in_parent(self) -> None:
        self._lock.release()

    def _after_in_child(self) -> None:
        self._lock = threading.Lock()


def file_system(device: int) -> str | None:
    """The kind of the file system with that device number (``st_dev``). None where the system does not tell."""
    try:
        return file_system_kind(_MOUNTS.read_text("utf-8", errors="replace"), device)
    except OSError:
        return None


def is_network(kind: str) -> bool:
    """Whether several hosts can mount a file system of that kind at once."""
    return _NETWORK.fullmatch(kind) is not None


def file_system_kind(mounts: str, device: int) -> str | None:
    """The kind of the file system with that device number, in the text of a ``mountinfo`` (see proc(5)), if listed."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.splitlines():
        mount, _, source = line.partition(" - ")
        if mount.split(" ")[2:3] == [wanted]:
            return source.split(" ")[0]
    return None
