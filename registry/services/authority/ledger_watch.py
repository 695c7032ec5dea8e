"""Detects, also without traffic, that the database has another ledger than the one that was seen.

One thread of each serving process reads the head once a second and remembers it next to the keys. A second thread asks
witnesses that may have seen more than this host (`Settings.checkpoint_urls`): other nodes, mirrors, copies. It asks at
the start, soon after a new connection to the database, and every ten seconds; no call waits for it.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal, NamedTuple

from sqlalchemy import Connection, event
from sqlalchemy.exc import SQLAlchemyError

from peerseal.audit.ledger_reader import MAX_BUNDLE_BYTES, entry_bodies
from peerseal.errors import DocumentRefused, FetchError, PeersealError
from peerseal.protocol.documents.history_statement import Head
from peerseal.protocol.ledger.checkpoint import CHECKPOINT_PATH, MAX_NOTE_BYTES, verify_checkpoint
from peerseal.protocol.ledger.merkle import Frontier
from peerseal.runtime.limits import FetchLimits
from peerseal.transport.fetch import HttpFetcher, content, no_larger_than
from registry.domain.errors import Lagging, LedgerContradicted, LedgerUnconfirmed
from registry.services.authority.authority import AuthoritySource
from registry.services.authority.fork_guard import ForkGuard
from registry.settings import Settings
from registry.storage.queries import ledger
from registry.storage.unit import Store

log = logging.getLogger(__name__)

LOOK_EVERY: Final = 1.0
"""Seconds between two looks at the head."""
ASK_EVERY: Final = 10.0
"""Seconds between two rounds of questions to the witnesses."""
ASK_AGAIN: Final = 1.0
"""Seconds between two rounds while no witness has answered, and after a new connection to the database."""
LIMITS: Final = FetchLimits(connect_timeout=1.0, read_timeout=2.0, total_timeout=3.0, max_bytes=MAX_BUNDLE_BYTES)
"""Limits of one question."""
ANSWERED: Final = "answered"

FORKED = (
    "The database has lost or replaced entries that were signed: it was promoted from a replica that lagged behind, or "
    "restored. No node signs or writes.",
    "1. Find the lost entries: the former primary, a folder of peerseal keep-ledger, a mirror. Stop every node, then: "
    "peerseal-registry restore --from COPY (with --drop-branch where nodes of an earlier release went on writing).",
    "2. Only where no copy has them: peerseal-registry history declare, where the root key is. Clients go on by "
    "themselves; what the lost entries said is gone.",
)
BEHIND = (
    "This node is connected to a standby. It signs when that has caught up.",
    "Name all hosts in REGISTRY_DATABASE_URL, with target_session_attrs=read-write. A standby that is promoted before "
    "it has caught up has lost entries: the state is forked then.",
)
UNCONFIRMED = (
    "This host does not know which ledger was seen.",
    "Start one of those, or compare the head above with a kept checkpoint, and then run: peerseal-registry remember",
)


@dataclass(frozen=True, slots=True)
class LedgerStatus:
    """``remembered`` is the newest head that this host has seen, if any. ``detail`` is the reason for a state that is
    not sound, ``remedy`` the steps to take."""

    state: Literal["sound", "forked", "behind", "unconfirmed"]
    database: Head
    remembered: Head | None
    detail: str = ""
    remedy: Sequence[str] = ()

    @property
    def sound(self) -> bool:
        """Whether nodes sign."""
        return self.state == "sound"

    def to_json(self) -> dict[str, Any]:
        """``{"state", "database", "remembered", "detail", "remedy"}``."""
        remembered = None if self.remembered is None else self.remembered.to_json()
        told = {"state": self.state, "database": self.database.to_json(), "remembered": remembered}
        return {**told, "detail": self.detail, "remedy": list(self.remedy)}


class Answer(NamedTuple):
    """What a witness said in the last round: the size of its ledger, or why it said nothing."""

    told: str
    size: int | None = None


NOT_ASKED: Final = Answer("not asked yet")


@dataclass(frozen=True, slots=True)
class OtherNode:
    """Another node, a mirror or a copy, in the last round. ``size`` is the number of its entries; None while it does
    not answer, for the reason that ``told`` has. ``forked`` says whether its ledger contradicts the database's."""

    url: str
    size: int | None
    told: str
    forked: bool


class LedgerWatch:
    """The threads of one process. ``store`` is guarded by ``guard``."""

    def __init__(self, settings: Settings, store: Store, guard: ForkGuard, authority: AuthoritySource) -> None:
        self._store = store
        self._guard = guard
        self._authority = authority
        self._fetchers = {url: HttpFetcher([url], LIMITS) for url in settings.checkpoint_urls}
        self._threads: list[threading.Thread] = []
        self._starting = threading.Lock()
        self._stopping = threading.Event()
        self._ask_soon = threading.Event()
        self._answers: dict[str, Answer] = {}
        self._blind = False
        event.listen(store.engine, "connect", self._connected)

    # ---- one look

    def passes(self, connection: Connection) -> bool:
        """Whether the connection's ledger continues the one that was seen. Raises SQLAlchemyError."""
        try:
            ledger.frontier(connection)
        except (Lagging, LedgerContradicted, LedgerUnconfirmed):
            return False
        return True

    def check(self) -> None:
        """The readiness check. Raises PeersealError where nothing is signed, or SQLAlchemyError."""
        with self._store.look() as connection:
            ledger.frontier(connection)

    def look(self) -> None:
        """Reads the head and remembers it; a lost one stays remembered. Raises PeersealError."""
        try:
            with self._store.look() as connection:
                ledger.frontier(connection)
        finally:
            self._guard.remember(self._authority.in_force().checkpoint)

    def confirm(self) -> None:
        """Asks the witnesses if this host remembers no ledger: for a command, which has no thread."""
        if self._guard.unconfirmed:
            self.ask()

    def ask(self) -> None:
        """Asks each witness once. A witness that does not answer is logged once and ignored."""
        for url, fetcher in self._fetchers.items():
            self._tell(url, self._asked(url, fetcher))
        if any(answer.told == ANSWERED for answer in self._answers.values()):
            self._guard.asked()

    # ---- for operators

    def status(self) -> LedgerStatus:
        """Compares the database with this host's memory and with the witnesses, and names the remedy. Raises
        StorageUnavailable, ConfigurationError."""
        edge, known = self._unguarded(), self._guard.known
        database, remembered = Head(edge.size, edge.root), None if known is None else known.head
        self.ask()
        try:
            self.look()
        except Lagging as error:
            return LedgerStatus("behind", database, remembered, str(error), BEHIND)
        except LedgerUnconfirmed as error:
            return LedgerStatus("unconfirmed", database, remembered, str(error), UNCONFIRMED)
        except LedgerContradicted as error:
            return LedgerStatus("forked", database, remembered, str(error), FORKED)
        return LedgerStatus("sound", database, remembered)

    @property
    def others(self) -> list[OtherNode]:
        """The witnesses, as this process saw them in the last round."""
        forked = self._guard.contradicted_by
        answers = [(url, self._answers.get(url, NOT_ASKED)) for url in self._fetchers]
        return [OtherNode(url, answer.size, answer.told, url in forked) for url, answer in answers]

    def replace_memory(self) -> Head:
        """Replaces this host's memory by the database's ledger. Raises StorageUnavailable, and ConfigurationError where
        the file cannot be written."""
        edge = self._unguarded()
        self._guard.believe(edge, self._authority.in_force().checkpoint(edge))
        return Head(edge.size, edge.root)

    def _unguarded(self) -> Frontier:
        """The database's edge, whatever ledger was seen."""
        with Store(self._store.engine).look() as connection:
            return ledger.frontier(connection)

    # ---- the witnesses

    def _asked(self, url: str, fetcher: HttpFetcher) -> Answer:
        try:
            with no_larger_than(MAX_NOTE_BYTES):
                note = content(fetcher.call("GET", CHECKPOINT_PATH)).decode("utf-8", "replace")
            keys = self._authority.in_force().keys
            checkpoint = verify_checkpoint(note, keys.subject, keys.ledger_keys)
            self._guard.saw(url, checkpoint, note, lambda begin, end: entry_bodies(partial(_get, fetcher), begin, end))
        except (FetchError, DocumentRefused) as error:
            return Answer(f"{error.code}: {error}")
        return Answer(ANSWERED, checkpoint.size)

    def _tell(self, url: str, answer: Answer) -> None:
        before = self._answers.get(url)
        if before is None or before.told != answer.told:
            told = log.info if answer.told == ANSWERED else log.warning
            told("checkpoint of %s: %s", url, answer.told)
        self._answers[url] = answer

    # ---- the threads

    def start(self) -> None:
        """Starts the threads of this process unless they run. They end with the process, or with `stop`."""
        if self._runs():
            return
        with self._starting:
            if self._runs():
                return
            self._stopping, self._ask_soon = threading.Event(), threading.Event()
            looking = threading.Thread(target=self._repeat, args=(self.look, self._rest), name="ledger", daemon=True)
            asking = threading.Thread(target=self._repeat, args=(self.ask, self._pause), name="witnesses", daemon=True)
            self._threads = [looking, asking] if self._fetchers else [looking]
            for thread in self._threads:
                thread.start()

    def _runs(self) -> bool:
        return bool(self._threads) and all(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        """Ends the threads, and waits for their end."""
        self._stopping.set()
        self._ask_soon.set()
        for thread in self._threads:
            thread.join()

    def _repeat(self, do: Callable[[], None], rest: Callable[[], None]) -> None:
        stopping = self._stopping
        while not stopping.is_set():
            try:
                do()
                self._blind = False
            except (LedgerContradicted, LedgerUnconfirmed):
                pass  # the guard has logged it
            except (PeersealError, SQLAlchemyError) as error:
                if not self._blind:
                    log.warning("the database's ledger cannot be compared with the one that was seen: %s", error)
                self._blind = True
            except Exception:
                log.exception("a look at the ledger failed")
            rest()

    def _rest(self) -> None:
        self._stopping.wait(LOOK_EVERY)

    def _pause(self) -> None:
        self._stopping.wait(ASK_AGAIN)
        if not self._guard.unconfirmed:
            self._ask_soon.wait(ASK_EVERY - ASK_AGAIN)
        self._ask_soon.clear()

    def _connected(self, _connection: object, _record: object) -> None:
        """A new connection may lead to another server."""
        self._ask_soon.set()


def _get(fetcher: HttpFetcher, path: str) -> bytes:
    return content(fetcher.call("GET", path))
