"""Replay guards: each token is accepted once.

A guard is asked last (step 11), so only tokens whose signature was checked are ever recorded: strangers cannot fill
it. It keeps (``iss``, ``jti``) until the token can no longer be accepted, and then forgets.
"""

import hashlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from peerseal.errors import TrustUnavailable


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
        self._limit = limit
        self._clock = clock
        self._seen: dict[str, object] = {}
        self._by_end: dict[int, list[str]] = {}
        self._purged_at = 0.0

    def claim(self, issuer: str, jti: str, until: float) -> bool:
        """See ReplayGuard. ``dict.setdefault`` is the atomic insert: no lock that a fork could leave held."""
        now = self._clock()
        if now - self._purged_at > self.PURGE_EVERY:
            self._purged_at = now
            self._purge(now)
        if len(self._seen) >= self._limit:
            raise TrustUnavailable("the replay guard is full", retry_after=self.PURGE_EVERY)
        token, mine = f"{issuer} {jti}", object()
        if self._seen.setdefault(token, mine) is not mine:
            return False
        self._by_end.setdefault(int(until) // self.PURGE_EVERY + 1, []).append(token)
        return True

    def __len__(self) -> int:
        """How many tokens are held."""
        return len(self._seen)

    def _purge(self, now: float) -> None:
        for end in [end for end in list(self._by_end) if end * self.PURGE_EVERY < now]:
            for token in self._by_end.pop(end, ()):
                self._seen.pop(token, None)


class FileReplayGuard:
    """Shared by all workers of one host, through an SQLite file that outlives restarts.

    It survives the death of any process, not a loss of power: the tokens have then expired before the host is back.
    """

    PURGE_EVERY = 30
    BUSY_TIMEOUT = 2.0
    """Seconds to wait for another worker's insert, which takes some microseconds; then the answer is 503."""

    def __init__(self, path: str | os.PathLike[str], *, clock: Callable[[], float] = time.time) -> None:
        """``path`` is made on first use, mode 0600, in a folder that must exist."""
        self._path = Path(path)
        self._clock = clock
        self._local = threading.local()
        self._purged_at = 0.0

    def claim(self, issuer: str, jti: str, until: float) -> bool:
        """See ReplayGuard. Raises TrustUnavailable where the file cannot be written: fail closed."""
        now = self._clock()
        token = hashlib.blake2b(f"{issuer}\0{jti}".encode(), digest_size=16).digest()
        try:
            connection = self._connection()
            if now - self._purged_at > self.PURGE_EVERY:
                self._purged_at = now
                connection.execute("DELETE FROM seen WHERE until < ?", (int(now),))
            inserted = connection.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (token, int(until) + 1))
            return inserted.rowcount == 1
        except (sqlite3.Error, OSError) as error:
            raise TrustUnavailable(f"the replay guard cannot be used: {error}") from error

    def _connection(self) -> sqlite3.Connection:
        """This thread's connection in this process: SQLite's must not cross a fork."""
        if getattr(self._local, "pid", None) != os.getpid():
            self._local.connection = self._open()
            self._local.pid = os.getpid()
        connection: sqlite3.Connection = self._local.connection
        return connection

    def _open(self) -> sqlite3.Connection:
        os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
        connection = sqlite3.connect(self._path, timeout=self.BUSY_TIMEOUT, isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("CREATE TABLE IF NOT EXISTS seen (token BLOB PRIMARY KEY, until INTEGER) WITHOUT ROWID")
        return connection
