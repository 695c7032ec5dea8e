"""Replay guards: each token is accepted once.

A guard is asked last (step 11), so only tokens whose signature was checked are ever recorded: strangers cannot fill
it. It keeps (``iss``, ``jti``) until the token can no longer be accepted, and then forgets.
"""

import ctypes
import hashlib
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from peerseal.errors import ConfigurationError, TrustUnavailable
from peerseal.peers.forks import around_each_fork, notice_fork
from peerseal.runtime.files import DRAFT, Access, Folder
from peerseal.runtime.options import check_callable, check_path, check_whole

_DESCRIPTORS = "/proc/self/fd"


class ReplayGuard(Protocol):
    """Remembers which tokens were accepted."""

    def claim(self, issuer: str, jti: str, until: float) -> bool:
        """True for the first claim of this (issuer, jti), False for any other until the time ``until`` (seconds since
        the epoch) has passed. One atomic insert. Raises TrustUnavailable where the guard cannot say."""


class MemoryReplayGuard:
    """For one process. Other workers, other hosts and the process after a restart know nothing of it.

    Bounded by time: what has expired is dropped within ``PURGE_EVERY`` seconds. Where ``limit`` unexpired tokens are
    held, further ones are refused rather than old ones forgotten.
    """

    PURGE_EVERY = 30

    def __init__(self, *, limit: int = 1_000_000, clock: Callable[[], float] = time.time) -> None:
        check_whole("limit", limit, at_least=1)
        check_callable("clock", clock)
        self._limit = limit
        self._clock = clock
        self._seen: dict[str, object] = {}
        self._by_end: dict[float, list[str]] = {}
        self._purged_at = 0.0

    def claim(self, issuer: str, jti: str, until: float) -> bool:
        """See ReplayGuard. ``dict.setdefault`` is the atomic insert: no lock that a fork could leave held."""
        now = self._clock()
        if not 0 <= now - self._purged_at < self.PURGE_EVERY:
            self._purged_at = now
            self._purge(now)
        if len(self._seen) >= self._limit:
            raise TrustUnavailable("the replay guard is full", retry_after=self.PURGE_EVERY)
        token, mine = f"{issuer} {jti}", object()
        if self._seen.setdefault(token, mine) is not mine:
            return False
        end = until // self.PURGE_EVERY
        (self._by_end.get(end) or self._by_end.setdefault(end, [])).append(token)
        return True

    def __len__(self) -> int:
        """How many tokens are held."""
        return len(self._seen)

    def _purge(self, now: float) -> None:
        for end in [end for end in list(self._by_end) if (end + 1) * self.PURGE_EVERY < now]:
            for token in self._by_end.pop(end, ()):
                self._seen.pop(token, None)


class FileReplayGuard:
    """Shared by all workers of one host, through an SQLite file that outlives restarts.

    It survives the death of any process, not a loss of power: the tokens have then expired before the host is back.

    A process has one connection, closed before every fork. SQLite's locks are POSIX's, which belong to a process: in a
    forked child it believes in locks that only the parent holds, and whoever opens and closes the file beside it drops
    them all. Another worker that ends would then remove the log that this one still writes to.
    """

    PURGE_EVERY = 30
    """Seconds after which what has expired is forgotten, and the file opened anew: one that somebody removed meanwhile
    would remember for this worker alone."""
    BUSY_TIMEOUT = 2.0
    """Seconds to wait for another worker's insert, which takes some microseconds; then the answer is 503."""
    COOLDOWN = 1.0
    """Seconds for which a file that was not let go of in time is not waited for: or each thread of a worker would wait
    for all those before it, one after the other."""

    def __init__(self, path: str | os.PathLike[str], *, clock: Callable[[], float] = time.time) -> None:
        """``path`` is made on first use, mode 0600, in a folder that must exist, and that only this user can change."""
        check_path("path", path)
        check_callable("clock", clock)
        self._path = Path(path).absolute()
        self._folder = Folder(self._path.parent, access=Access.READABLE, mode=None)
        self._clock = clock
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._purged_at = self._busy_at = 0.0
        self._inherited: sqlite3.Connection | None = None
        self._redirected = ""
        around_each_fork(self._before_fork, self._after_in_parent, self._after_in_child)

    def claim(self, issuer: str, jti: str, until: float) -> bool:
        """See ReplayGuard. Raises TrustUnavailable where the file cannot be written: fail closed."""
        notice_fork()
        token = hashlib.blake2b(f"{issuer}\0{jti}".encode(), digest_size=16).digest()
        if not self._lock.acquire(timeout=self.BUSY_TIMEOUT):
            raise TrustUnavailable("the replay guard is busy", retry_after=1)
        try:
            if 0 <= self._clock() - self._busy_at < self.COOLDOWN:
                raise TrustUnavailable("the replay guard was busy a moment ago", retry_after=1)
            inserted = self._ready().execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (token, int(until) + 1))
            return inserted.rowcount == 1
        except (sqlite3.Error, OSError, ConfigurationError) as error:
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
                self._busy_at = self._clock()
            raise TrustUnavailable(f"the replay guard cannot be used: {error}") from error
        finally:
            self._lock.release()

    def close(self) -> None:
        """Give the file back; the next claim opens it again."""
        notice_fork()
        with self._lock:
            self._close()

    def _ready(self) -> sqlite3.Connection:
        """The connection, with the lock held."""
        if self._inherited is not None:
            raise OSError(
                f"process {os.getpid()} was forked without Python's hooks after its parent had opened the file, whose"
                " locks it cannot take; start the service in each worker (uWSGI: --lazy-apps)"
            )
        now = self._clock()
        if self._connection is not None and 0 <= now - self._purged_at < self.PURGE_EVERY:
            return self._connection
        self._close()
        self._connection = self._open()
        self._connection.execute("DELETE FROM seen WHERE until < ?", (int(now),))
        self._purged_at = now
        return self._connection

    def _open(self) -> sqlite3.Connection:
        """SQLite opens its files by their path: before that the path must lead to the folder that is held, and after
        each step the files that were opened must lie in it."""
        if self._redirected:
            raise OSError(self._redirected)
        name = self._path.name
        if not self._folder.check(name):
            self._make()
        beside = [f"{name}-wal", f"{name}-shm"]
        for file in beside:
            self._folder.check(file)
        if not self._folder.is_in_place():
            raise OSError(f"another folder lies at {self._path.parent} now: restart this service")
        connection = self._connect(self._path)
        if not self._has_open(name):
            connection.close()  # it has read nothing yet
            raise OSError(f"another folder was put at {self._path.parent} for a moment")
        try:
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("SELECT 1 FROM seen LIMIT 1").fetchone()  # now the log is open as well
        finally:
            if not all(map(self._has_open, beside)):
                what = "its log is not the one in the folder, or it is no replay guard's"
                self._redirected = f"{self._path}: {what}: restart this service"
                _never_close(connection)
        if self._redirected:
            raise OSError(self._redirected)
        return connection

    def _has_open(self, name: str) -> bool:
        """Whether this process has the file of that name in the held folder open, as far as the system tells."""
        try:
            found, opened = self._folder.stat(name), _open_files()
        except FileNotFoundError:
            return False
        return opened is None or (found.st_dev, found.st_ino) in opened

    def _make(self) -> None:
        """Put a finished file in place, or find that another worker has: two that set up one file refuse each other."""
        draft = f"{DRAFT}{secrets.token_hex(8)}"
        self._folder.write(draft, b"", durable=False)
        try:
            connection = self._connect(self._folder.path / draft)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("CREATE TABLE seen (token BLOB PRIMARY KEY, until INTEGER) WITHOUT ROWID")
            connection.close()
            self._folder.put_in_place(draft, self._path.name)
        finally:
            self._folder.remove(draft)

    def _connect(self, path: Path) -> sqlite3.Connection:
        """To a file that is there: SQLite would make an empty one."""
        uri = f"{path.absolute().as_uri()}?mode=rw"
        return sqlite3.connect(uri, uri=True, timeout=self.BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _before_fork(self) -> None:
        self._lock.acquire()
        self._close()

    def _after_in_parent(self) -> None:
        self._lock.release()

    def _after_in_child(self) -> None:
        """A connection is there only where nobody called `_before_fork`. It is kept, and never used: SQLite, asked to
        close it or to open the file again, would go by locks that only the parent holds."""
        self._lock = threading.Lock()
        self._connection, self._inherited = None, self._connection


def _open_files() -> set[tuple[int, int]] | None:
    """Device and inode of each file that this process has open; None where the system does not say."""
    try:
        descriptors = [int(name) for name in os.listdir(_DESCRIPTORS)]
    except OSError:
        return None
    opened = set()
    for descriptor in descriptors:
        with suppress(OSError):  # closed meanwhile, as the one that listed them
            found = os.fstat(descriptor)
            opened.add((found.st_dev, found.st_ino))
    return opened


def _never_close(connection: sqlite3.Connection) -> None:
    """Keep a connection for as long as the process lives, its end included: closing it would write what stands in
    another user's log into our file."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))
