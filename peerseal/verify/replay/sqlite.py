"""Claims in the SQLite file of the release before, while workers of that release still write to it.

A service is reloaded worker by worker: until the last old worker has ended, a token must be new in its file too. The
file is removed ten minutes after the last token that an old worker accepted has expired. This module and its two calls
can be removed in the release after the next one.
"""

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING

from peerseal.runtime.files import Folder
from peerseal.runtime.forks import around_each_fork

if TYPE_CHECKING:
    import sqlite3


class ClaimsInSqlite:
    """The table ``seen (token, until)``. Claims of this release have a fractional ``until``, those of old workers a
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
        self._in_use = False
        self._after_in_child()
        around_each_fork(self._before_fork, self._after_in_parent, self._after_in_child)

    def look(self, now: float) -> None:
        """Look whether the file exists and is in use; remove one that is not. Raises OSError or ConfigurationError."""
        self._in_use = self._is_there()
        if not self._in_use:
            return
        with self._opened() as connection:
            query = "SELECT 1 FROM seen WHERE typeof(until) = 'integer' AND until >= ? LIMIT 1"
            self._in_use = connection.execute(query, (int(now) - self.QUIET,)).fetchone() is not None
        if not self._in_use:
            for file in self._files:
                self._folder.remove(file)

    def claim(self, token: bytes, until: float) -> bool:
        """Whether the token is new in the file. Raises OSError or ConfigurationError."""
        if not self._in_use or not self._is_there():
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
