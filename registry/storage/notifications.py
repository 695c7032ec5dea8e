"""Word of commits, on whichever node: what a thread that follows the ledger sleeps on.

It is a hint and no more. Whoever is woken looks at the head, and looks now and then without having been woken: word
may be late, and behind a pooler that hands each transaction another connection it never comes.

On PostgreSQL a trigger on the ledger's head sends it (migration 0003). SQLite has nothing of the kind, but asking for
its version takes microseconds.
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

from registry.domain.errors import StorageUnavailable
from registry.storage.engine import POSTGRESQL
from registry.storage.revisions import OwnConnection, checked

log = logging.getLogger(__name__)

CHANNEL = "peerseal_ledger"
"""What the trigger notifies. The payload is empty, so that a transaction that raises the head often says so once."""
LOOK_AFTER = 1.0
"""Seconds after which PostgreSQL's head is looked at without word of a change."""
SQLITE_LOOK_AFTER = 0.05
"""Seconds after which SQLite's head is looked at."""
LISTEN_AGAIN = (1.0, 30.0)
"""Seconds after which a connection to listen on is asked for again: at first, and doubled up to this."""


class Bell:
    """Wakes the one thread that sleeps on it, from any other."""

    def __init__(self) -> None:
        self._out, self._in = socket.socketpair()
        self._out.setblocking(False)
        self._in.setblocking(False)

    def ring(self) -> None:
        """Wakes it, or has its next sleep end at once."""
        with suppress(BlockingIOError):  # it has been rung often enough
            self._in.send(b"\0")

    def sleep(self, seconds: float, descriptor: int | None = None) -> bool:
        """Sleeps until the bell rings, something comes in on the descriptor, or that time is up; whether it was the
        descriptor."""
        poll = select.poll()
        poll.register(self._out, select.POLLIN)
        if descriptor is not None:
            poll.register(descriptor, select.POLLIN)
        ready = {awake for awake, _ in poll.poll(seconds * 1000)}
        if self._out.fileno() in ready:
            self._out.recv(4096)
        return descriptor in ready


class Word(Protocol):
    """Where word of commits comes from. One thread uses it, but for ``hears``."""

    @property
    def hears(self) -> bool:
        """Whether word comes of this process's own commits, too."""

    def listen(self) -> None:
        """Gets ready to be told, where that is possible now. Changes before that are not told of."""

    def sleep(self, bell: Bell) -> None:
        """Until there is word, the bell rings, or it is time to look anyway."""

    def close(self) -> None:
        """Lets go of its connection."""


def word_of(engine: Engine) -> Word:
    """The one for the engine's database."""
    return PostgresWord(engine) if engine.dialect.name == POSTGRESQL else SqliteWord()


class SqliteWord:
    """Nobody tells. Who sleeps here looks often."""

    hears = False

    def listen(self) -> None:
        """See Word."""

    def sleep(self, bell: Bell) -> None:
        """See Word."""
        bell.sleep(SQLITE_LOOK_AFTER)

    def close(self) -> None:
        """See Word."""


class _NotOwn(psycopg.Error):
    """A pooler answers in the server's place: what is listened to in one transaction is lost in the next."""


class PostgresWord:
    """LISTEN, on a connection of its own. Where there is none to be had, or it is lost, it is asked for again after a
    while, and until then the head is looked at once a second."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection: OwnConnection | None = None
        self._wait = LISTEN_AGAIN[0]
        self._again_at = 0.0

    @property
    def hears(self) -> bool:
        """See Word."""
        return self._connection is not None

    def listen(self) -> None:
        """See Word."""
        if self._connection is not None or time.monotonic() < self._again_at:
            return
        self._again_at = time.monotonic() + self._wait
        self._wait = min(2 * self._wait, LISTEN_AGAIN[1])
        try:
            self._connection = self._listening()
        except _NotOwn:
            self._tell_of_pooler()
            return
        except (StorageUnavailable, psycopg.Error):
            return  # `registry.services.documents.waiting` says so in the log when it cannot look either
        self._wait = LISTEN_AGAIN[0]

    def _tell_of_pooler(self) -> None:
        self._again_at = math.inf
        message = "the database is behind a pooler, so changes are looked for every %g s: set REGISTRY_LISTEN_URL"
        log.info(message, LOOK_AFTER)

    def _listening(self) -> OwnConnection:
        """A connection that listens. Raises StorageUnavailable, and for a pooler's connection _NotOwn."""
        connection = OwnConnection(self._engine)
        try:
            if not connection.driver.has_own_session():
                raise _NotOwn
            checked(connection.driver, connection.driver.ask(f"LISTEN {CHANNEL}".encode()))
        except psycopg.Error:
            connection.close()
            raise
        return connection

    def sleep(self, bell: Bell) -> None:
        """See Word."""
        if self._connection is None:
            bell.sleep(LOOK_AFTER)
            return
        pgconn = self._connection.driver.pgconn
        try:
            if bell.sleep(LOOK_AFTER, pgconn.socket):
                pgconn.consume_input()
                while pgconn.notifies() is not None:
                    pass
        except psycopg.Error:
            self.close()

    def close(self) -> None:
        """See Word."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
