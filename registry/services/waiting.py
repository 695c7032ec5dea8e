"""Calls that wait for the first change after an entry, hundreds of them, and the one thread that wakes them.

A call that waits holds a thread of the server and nothing else: no connection, no lock. The thread that follows the
ledger is started by the first of them, in the process that serves it, and ends some time after the last. It makes each
list once, and hands it to all who wait for it.

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
from registry.services.rendered import Rendered
from registry.settings import Limits
from registry.storage.notifications import Bell, Word

log = logging.getLogger(__name__)

LINGER = 30
"""Seconds for which the thread stays when nobody waits any more: who was just answered comes again."""
AT_ONCE = 4
"""Calls that are woken before the first of them runs. All at once would stand between every other call and the
interpreter's lock."""
PAUSE, LONGEST_PAUSE = 0.002, 1.0
"""Seconds for each call that was woken until more are, and in all: 500 answers a second, or all calls once, of the
thousands that a process gives."""
GIVE_UP = 1
"""Seconds after which the next one is woken although none of those runs."""


class Place:
    """A call that waits, until `wait` returns."""

    def __init__(self, waiting: "Waiting", since: int, address: str) -> None:
        self.since = since
        self.address = address
        self.answer: Rendered | None = None
        self.has_turn = False
        self.sleeping = threading.Lock()
        self.sleeping.acquire()
        self._waiting = waiting

    def wait(self, seconds: float) -> Rendered | None:
        """The list of what changed; None where nothing did in that time, or waiting is over."""
        try:
            self._waiting.follow()
            awoken = self.sleeping.acquire(timeout=seconds)
        finally:
            gone = self._waiting.take_out(self)
        if not gone:  # it was woken, perhaps in this very moment
            if not awoken:
                self.sleeping.acquire()
            self._waiting.has_awoken(self)
        return self.answer


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
        self._most, self._most_of_address = limits.waiting_calls, limits.waiting_calls_of_address
        self._changing = threading.Lock()
        self._places: dict[Place, None] = {}  # in the order in which they came
        self._of: Counter[str] = Counter()
        self._seen = 0
        self._pause_ends = 0.0
        self._turns = threading.Semaphore(AT_ONCE)
        self._over = self._blind = False
        self._thread: threading.Thread | None = None
        self._word, self._bell = word(), Bell()

    def __len__(self) -> int:
        """How many wait."""
        return len(self._places)

    def at_most(self, calls: int) -> None:
        """Lets no more than so many wait, and no more than the limits say: a server that has fewer threads would serve
        nobody else."""
        self._most = min(self._most, calls)

    @property
    def pausing(self) -> bool:
        """Whether many were told a moment ago. Who comes now waits for the end of that, and need not look for
        changes."""
        return time.monotonic() < self._pause_ends

    def place(self, since: int, address: str) -> Place | None:
        """A place for a call from that address that has just seen that ``since`` is the newest entry, or a pause; None
        where there is none, where something changed meanwhile, or where waiting is over."""
        with self._changing:
            full = len(self._places) >= self._most or self._of[address] >= self._most_of_address
            if self._over or full or (self._seen > since and not self.pausing):
                return None
            place = Place(self, since, address)
            self._places[place] = None
            self._of[address] += 1
            return place

    def take_out(self, place: Place) -> bool:
        """Whether the call was counted until now, and is not any more."""
        with self._changing:
            if place not in self._places:
                return False
            del self._places[place]
            others = self._of.pop(place.address) - 1
            if others:
                self._of[place.address] = others
            return True

    def has_awoken(self, place: Place) -> None:
        """One that was woken runs: the next may be."""
        if place.has_turn:
            self._turns.release()

    def committed(self) -> None:
        """This process has committed something."""
        if self._places and not self._word.hears:
            self._bell.ring()

    def end(self) -> None:
        """Has all be answered now, and nobody wait any more: the process is about to end."""
        if not self._over:
            self._over = True
            self._bell.ring()

    def follow(self) -> None:
        """Has a thread follow the ledger from now on."""
        with self._changing:
            if self._thread is None or not self._thread.is_alive():  # not started, ended, or left behind by a fork
                self._word, self._bell = self._new_word(), Bell()
                sleep = self._word, self._bell
                self._thread = threading.Thread(target=self._follow, args=sleep, name="changes", daemon=True)
                self._thread.start()
            elif len(self._places) == 1:
                self._bell.ring()  # until now nobody waited

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
            if not self._blind:
                log.warning("calls that wait are not told of changes: %s", error)
            self._blind = True
            return
        self._blind = False
        self._pause_ends = time.monotonic() + min(PAUSE * len(answers), LONGEST_PAUSE)
        for place, answer in answers.items():
            if self.take_out(place):
                place.has_turn = self._turns.acquire(timeout=GIVE_UP)
                place.answer = answer
                place.sleeping.release()

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
