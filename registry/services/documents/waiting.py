"""Calls that wait for the first change after an entry, thousands of them, and the one thread that wakes them.

A call that waits holds no connection to the database and no lock. The thread that follows the ledger is started by the
first of them, in the process that serves it, and ends some time after the last. It makes each list once, and hands it
to all who wait for it.

Calls wait only where the server is known to have room for them: `registry.serving.worker` says so, or the operator
does.

The first change is told at once. Then there is a pause, as long as answering took or may take: whoever was told comes
again, and where changes come one upon the other, hundreds of peers would ask for each, and nothing else be served.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable

from peerseal.errors import PeersealError
from registry.domain.errors import StorageUnavailable
from registry.services.documents.answers import Rendered
from registry.settings import Limits
from registry.storage.notifications import Bell, Word

log = logging.getLogger(__name__)

LINGER = 30
"""Seconds for which the thread stays when nobody waits any more: who was just answered comes again."""
PAUSE, LONGEST_PAUSE = 0.002, 1.0
"""Seconds for each call that was woken until more are, and in all: 500 answers a second, or all calls once, of the
thousands that a process gives."""


class Place:
    """A call that waits until it is told of a change, gives up, or leaves."""

    def __init__(self, waiting: "Waiting", since: int, address: str) -> None:
        self.since = since
        self.address = address
        self.answer: Rendered | None = None
        self._waiting = waiting
        self._changing = threading.Lock()
        self._told = False
        self._callback: Callable[[], object] = lambda: None

    def when_told(self, callback: Callable[[], object]) -> None:
        """Has ``callback`` called when the wait has ended, in the thread that ends it; at once where it has."""
        with self._changing:
            self._callback = callback
            told = self._told
        if told:
            callback()

    def tell(self, answer: Rendered | None) -> None:
        """Ends the wait of a call that is not counted any more."""
        with self._changing:
            self.answer, self._told = answer, True
            callback = self._callback
        callback()

    def give_up(self) -> None:
        """Ends the wait, if it has not ended, without a list."""
        if self._waiting.take_out(self):
            self.tell(None)

    def leave(self) -> None:
        """Ends the wait, if it has not ended, and calls nothing."""
        if not self._told:
            self._waiting.take_out(self)

    def wait(self, seconds: float) -> None:
        """Holds this thread until the wait has ended, so many seconds at most."""
        told = threading.Event()
        self.when_told(told.set)
        if not told.wait(seconds):
            self.give_up()
            told.wait()


class Waiting:
    """The calls that wait in this process.

    ``head`` gives the number of entries, ``make`` the list of what changed after one; both may raise
    StorageUnavailable. ``word`` makes what the thread sleeps on.
    """

    def __init__(
        self, head: Callable[[], int], make: Callable[[int], Rendered], word: Callable[[], Word], limits: Limits
    ) -> None:
        self._head = head
        self._make = make
        self._new_word = word
        self._limits = limits
        self._most = limits.waiting_calls or 0
        self._changing = threading.Lock()
        self._places: dict[Place, None] = {}  # in the order in which they came
        self._of: Counter[str] = Counter()
        self._seen = 0
        self._pause_ends = 0.0
        self._over = False
        self.blind = False
        self._thread: threading.Thread | None = None
        self._word, self._bell = word(), Bell()

    def __len__(self) -> int:
        """How many wait."""
        return len(self._places)

    def server_holds(self, calls: int) -> None:
        """Lets so many wait, or fewer where the limits say so: the server has room for them."""
        allowed = self._limits.waiting_calls
        self._most = calls if allowed is None else min(calls, allowed)

    @property
    def pausing(self) -> bool:
        """Whether many were told a moment ago. Who comes now waits for the end of that, and need not look for
        changes."""
        return time.monotonic() < self._pause_ends

    def place(self, since: int, address: str) -> Place | None:
        """A place for a call from that address that has just seen that ``since`` is the newest entry, or a pause; None
        where there is none, where something changed meanwhile, or where waiting is over."""
        with self._changing:
            full = len(self._places) >= self._most or self._of[address] >= self._limits.waiting_calls_of_address
            if self._over or full or (self._seen > since and not self.pausing) or not self._followed():
                return None
            place = Place(self, since, address)
            self._places[place] = None
            self._of[address] += 1
            if len(self._places) == 1:
                self._bell.ring()  # until now nobody waited
            return place

    def take_out(self, *places: Place) -> list[Place]:
        """Those that were counted until now, and are not any more."""
        with self._changing:
            counted = [place for place in places if place in self._places]
            for place in counted:
                del self._places[place]
                others = self._of.pop(place.address) - 1
                if others:
                    self._of[place.address] = others
            return counted

    def committed(self) -> None:
        """This process has committed something."""
        if self._places and not self._word.hears:
            self._bell.ring()

    def end(self) -> None:
        """Has all be answered now, and nobody wait any more: the process is about to end."""
        if not self._over:
            self._over = True
            self._bell.ring()

    def _followed(self) -> bool:
        """Whether a thread follows the ledger; it is started where none does."""
        if self._thread is None or not self._thread.is_alive():  # not started, ended, or left behind by a fork
            self._word, self._bell = self._new_word(), Bell()
            sleep = self._word, self._bell
            self._thread = threading.Thread(target=self._follow, args=sleep, name="changes", daemon=True)
            try:
                self._thread.start()
            except RuntimeError as error:  # the process may have no more threads
                log.warning("calls are not let wait for changes: %s", error)
                self._thread = None
        return self._thread is not None

    def _follow(self, word: Word, bell: Bell) -> None:
        try:
            while self._stays(bell):
                word.listen()
                self._look()
                word.sleep(bell)
                self._pause(bell)
        except Exception:
            log.exception("nobody follows the ledger until the next call that waits")
        finally:
            word.close()

    def _stays(self, bell: Bell) -> bool:
        """Waits for somebody who waits; whether somebody came."""
        if not self._places:
            bell.sleep(LINGER)
        with self._changing:
            if not self._places:
                self._thread, self._seen = None, 0
            return bool(self._places)

    def _pause(self, bell: Bell) -> None:
        while not self._over and (left := self._pause_ends - time.monotonic()) > 0:
            bell.sleep(left)

    def _look(self) -> None:
        """Wakes those for whom there is something new."""
        try:
            answers = self._answers()
        except StorageUnavailable as error:
            if not self.blind:
                log.warning("calls that wait are not told of changes: %s", error)
            self.blind = True
            return
        self.blind = False
        self._pause_ends = time.monotonic() + min(PAUSE * len(answers), LONGEST_PAUSE)
        for place in self.take_out(*answers):
            place.tell(answers[place])

    def _answers(self) -> dict[Place, Rendered | None]:
        """What to tell whom. Raises StorageUnavailable."""
        if self._over:
            with self._changing:
                return dict.fromkeys(self._places)
        head = self._head()
        with self._changing:
            self._seen = head
            due = [place for place in self._places if place.since != head]
        made = {since: self._made(since) for since in {place.since for place in due}}
        return {place: made[place.since] for place in due}

    def _made(self, since: int) -> Rendered | None:
        try:
            return self._make(since)
        except StorageUnavailable:
            raise
        except PeersealError:
            return None  # each of them asks, and is told what is wrong
