"""Sends what waits in the outbox, in the background, until the broker has confirmed it.

An order is accepted while the broker is down: its event is in the database, and goes out once the broker is back. Of a
host's workers one sends at a time. Should two hosts send the same event, or a process die between the broker's
confirmation and its own note of it, the event comes twice, and consumers count it once.
"""

import atexit
import fcntl
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from client_service import storage
from client_service.settings import Settings
from peerseal.errors import ConfigurationError, PeersealError
from peerseal.messaging import Outlet, open_outlet

log = logging.getLogger("client_service.outbox")

PAUSE = 0.5
"""Seconds between two looks into the outbox where nobody wakes it: another worker may have left something there."""
CONFIRMED_WITHIN = 5.0
"""Seconds that the broker has to confirm what it was sent, before all of it is sent again."""


class Outbox:
    """The outbox of ``database``. Without ``connect`` there is no broker, and events wait.

    The thread that sends is started by the first request of each process, since one started before a fork is not there
    after it, and ends with the process.
    """

    def __init__(self, database: Engine, connect: Callable[[], Outlet] | None, lock_file: Path) -> None:
        self._database = database
        self._connect = connect
        self._lock_file = lock_file
        self._outlet: Outlet | None = None
        self._starting = threading.Lock()
        self._pid = 0
        self._stopping, self._wake = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    @classmethod
    def of(cls, settings: Settings, database: Engine) -> Self:
        """With the broker of the settings."""
        url, options = settings.broker_url, settings.broker_settings
        connect = None if url is None else lambda: open_outlet(url, settings=options)
        return cls(database, connect, settings.state / "outbox.lock")

    def ensure_running(self) -> None:
        """Have the thread in this process."""
        if self._pid == os.getpid() or self._connect is None:
            return
        with self._starting:
            if self._pid != os.getpid():
                self._stopping, self._wake = threading.Event(), threading.Event()
                self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
                self._thread.start()
                self._pid = os.getpid()
                atexit.register(self.stop)

    def wake(self) -> None:
        """Something was put in."""
        self._wake.set()

    def stop(self) -> None:
        """End the thread, once an attempt under way has ended."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None and self._pid == os.getpid():
            self._thread.join(2 * CONFIRMED_WITHIN)
        atexit.unregister(self.stop)

    def send_waiting(self) -> int:
        """Send what waits, a batch at most, and forget it once the broker has it; → how many, none where another
        process is at it. Raises BrokerUnavailable, ConfigurationError or SQLAlchemyError."""
        with self._alone() as alone:
            events = storage.unsent(self._database) if alone else []
            if events:
                outlet = self._opened()
                for event in events:
                    headers = [(name, value.encode("ascii")) for name, value in event.headers.items()]
                    outlet.send(event.topic, event.payload, headers)
                outlet.flush(CONFIRMED_WITHIN)
                storage.forget(self._database, events)
            return len(events)

    # ---- the thread

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._wake.clear()
                if not self._attempt():
                    self._wake.wait(PAUSE)
        finally:
            self._give_up_outlet()

    def _attempt(self) -> bool:
        """Whether something was sent, so that there may be more."""
        try:
            return self.send_waiting() > 0
        except (PeersealError, SQLAlchemyError) as error:
            log.warning("events wait: %s", error)
        except Exception:  # the thread must not die of a surprise: orders would wait unseen
            log.exception("events wait")
        self._give_up_outlet()  # with what it still holds: all of it is in the database
        self._stopping.wait(PAUSE)
        return False

    def _opened(self) -> Outlet:
        if self._outlet is None:
            if self._connect is None:
                raise ConfigurationError("there is no broker")
            self._outlet = self._connect()
        return self._outlet

    def _give_up_outlet(self) -> None:
        outlet, self._outlet = self._outlet, None
        if outlet is not None:
            with suppress(PeersealError):
                outlet.close()

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Whether no other process of this host sends now. A lock of the system's, so that one that is killed leaves
        none behind."""
        with self._lock_file.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
