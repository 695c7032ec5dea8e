"""The thread of a process that has its keys replaced in time, and tells the other workers what it counts."""

import logging
import threading
from collections.abc import Callable

from peerseal.errors import PeersealError
from peerseal.identity.enrolment import LONGEST_PAUSE, pauses
from peerseal.identity.rotation import KeyKeeper
from peerseal.runtime.forks import BackgroundWork
from peerseal.runtime.limits import RotationSchedule

log = logging.getLogger("peerseal.identity")

_LONGEST_WORK = 15.0
"""Seconds for which `KeyRotation.stop` waits for work on the keys that is under way: one call to the registry."""


class KeyRotation:
    """Has ``keeper`` do what is due, and calls ``publish``, again and again. ``service`` is for the log."""

    def __init__(
        self, service: str, keeper: KeyKeeper, schedule: RotationSchedule, publish: Callable[[], None]
    ) -> None:
        self._service = service
        self._keeper = keeper
        self._publish = publish
        self._tick = min(max(schedule.every / 20, 0.1), 10.0, max(schedule.lead / 2, 0.1))
        self._working = BackgroundWork()
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    def start(self) -> None:
        """Start the thread of this process: once in each."""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="peerseal-rotate", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it, once work under way has ended: else it could look for keys that are gone."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(_LONGEST_WORK)

    def _run(self) -> None:
        stopping, failing, pause = self._stopping, pauses(), self._tick
        while not stopping.wait(pause):
            pause = self._tick
            try:
                with self._working:
                    self._publish()
                    if self._keeper.is_due():
                        self._keeper.work()
                failing = pauses()
            except PeersealError as error:
                pause = max(self._tick, next(failing))
                log.warning("keys of %s could not be looked after: %s", self._service, error)
            except Exception:  # the thread must not die of a surprise: keys would run out a week later
                pause = LONGEST_PAUSE
                log.exception("keys of %s could not be looked after", self._service)
