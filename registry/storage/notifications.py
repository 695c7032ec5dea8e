"""Wakes the thread that follows the ledger when any node commits.

A notification is only a hint: the woken thread reads the head, and also reads it at fixed intervals. A notification may
be late, and never comes through a pooler that moves each transaction to another connection.

On PostgreSQL a trigger on the ledger's head sends the notification (migration 0003). SQLite has none, but reading its
data version takes microseconds.
"""

import logging
import math
import select
import socket
import time
from contextlib import suppress
from typing import Protocol

import psycopg
from sqlalchemy import Engine

from peerseal.runtime.backoff import backoff
from registry.domain.errors import StorageUnavailable
from registry.storage.engine import POSTGRESQL
from registry.storage.revisions import OwnConnection

log = logging.getLogger(__name__)

CHANNEL = "peerseal_ledger"
"""The channel that the trigger notifies. The payload is empty, so a transaction that raises the head several times
sends one notification."""
LOOK_AFTER = 1.0
"""Seconds after which PostgreSQL's head is read without a notification."""
SQLITE_LOOK_AFTER = 0.05
"""Seconds after which SQLite's head is read."""
LISTEN_AGAIN = (1.0, 30.0)
"""Seconds between two attempts to listen: at first, and at most. The time doubles with each failure."""


class Waker:
    """Wakes one sleeping thread from any other thread."""

    def __init__(self) -> None:
        self._out, self._in = socket.socketpair()
        self._out.setblocking(False)
        self._in.setblocking(False)

    def wake(self) -> None:
        """Ends the thread's current sleep, or its next one at once."""
        with suppress(BlockingIOError):  # the buffer is full: the thread wakes anyway
            self._in.send(b"\0")

    def sleep(self, seconds: float, descriptor: int | None = None) -> bool:
        """Sleeps until `wake` is called, input arrives on the descriptor, or the time is up. True for input."""
        poll = select.poll()
        poll.register(self._out, select.POLLIN)
        if descriptor is not None:
            poll.register(descriptor, select.POLLIN)
        ready = {awake for awake, _ in poll.poll(seconds * 1000)}
        if self._out.fileno() in ready:
            self._out.recv(4096)
        return descriptor in ready


class CommitListener(Protocol):
    """Learns of commits. One thread uses it; any thread may read ``listening``."""

    @property
    def listening(self) -> bool:
        """Whether notifications arrive, those of this process's own commits included."""

    def listen(self) -> None:
        """Starts to listen if that is possible now. Earlier commits are not reported."""

    def sleep(self, waker: Waker) -> None:
        """Sleeps until a commit, a call of ``waker.wake()``, or the time of the next look at the head."""

    def close(self) -> None:
        """Closes the connection."""


def commit_listener(engine: Engine) -> CommitListener:
    """The listener for the engine's database."""
    return PostgresListener(engine) if engine.dialect.name == POSTGRESQL else SqlitePoller()


class SqlitePoller:
    """SQLite sends no notifications: `sleep` is short instead."""

    listening = False

    def listen(self) -> None:
        """See CommitListener."""

    def sleep(self, waker: Waker) -> None:
        """See CommitListener."""
        waker.sleep(SQLITE_LOOK_AFTER)

    def close(self) -> None:
        """See CommitListener."""


class _Pooled(psycopg.Error):
    """The connection leads to a pooler, where LISTEN is lost after its transaction."""


class PostgresListener:
    """Runs LISTEN on a connection of its own. While it has no such connection it retries after a pause, and the head
    is read once a second."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection: OwnConnection | None = None
        self._attempts = 0
        self._again_at = 0.0

    @property
    def listening(self) -> bool:
        """See CommitListener."""
        return self._connection is not None

    def listen(self) -> None:
        """See CommitListener."""
        if self._connection is not None or time.monotonic() < self._again_at:
            return
        self._attempts += 1
        self._again_at = time.monotonic() + backoff(self._attempts, first=LISTEN_AGAIN[0], longest=LISTEN_AGAIN[1])
        try:
            self._connection = self._connected()
            self._attempts = 0
        except _Pooled:
            self._again_at = math.inf
            message = "the database is behind a pooler: changes are looked for every %g s; set REGISTRY_LISTEN_URL"
            log.info(message, LOOK_AFTER)
        except (StorageUnavailable, psycopg.Error):
            pass  # `registry.services.documents.changes` logs it when it cannot read the head either

    def _connected(self) -> OwnConnection:
        """A connection that listens. Raises StorageUnavailable or psycopg.Error; _Pooled for a pooler's connection."""
        connection = OwnConnection(self._engine)
        try:
            if not connection.driver.has_own_session():
                raise _Pooled
            connection.driver.ask(f"LISTEN {CHANNEL}".encode())
        except psycopg.Error:
            connection.close()
            raise
        return connection

    def sleep(self, waker: Waker) -> None:
        """See CommitListener."""
        if self._connection is None:
            waker.sleep(LOOK_AFTER)
            return
        try:
            if waker.sleep(LOOK_AFTER, self._connection.driver.fileno()):
                self._connection.driver.discard_notifications()
        except psycopg.Error:
            self.close()

    def close(self) -> None:
        """See CommitListener."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
