"""Numbers of the whole registry, cheap whatever its size."""

import logging
import threading
from dataclasses import dataclass
from typing import Final

from peerseal.errors import PeersealError
from registry.domain.errors import Lagging, LedgerContradicted, LedgerUnconfirmed
from registry.services.use_case import Node, UseCase
from registry.storage.queries import counts, ledger, services
from registry.storage.queries.counts import NO_KEYS, KeyCounts

log = logging.getLogger(__name__)

COUNTED: Final = 10_000
"""Rows that are counted while a request waits; where there are more, the page says so."""
KEYS_COUNTED_FOR: Final = 30
"""Seconds for which a count of more keys is shown, with its time, before a thread counts again."""
_SLICE: Final = 1_000


@dataclass(frozen=True, slots=True)
class CountedKeys:
    """Counts of keys as of ``at``, in seconds since the epoch."""

    counts: KeyCounts
    at: int


@dataclass(frozen=True, slots=True)
class Numbers:
    """``services`` and ``applicants`` are one more than `COUNTED` where there are more than that. ``keys`` is None
    until they are counted for the first time. ``size`` is the number of entries, ``changed_at`` the time of the last
    one, and ``root`` that of the tree; None where the database has another ledger than the one that was seen."""

    services: int
    applicants: int
    keys: CountedKeys | None
    size: int
    root: bytes | None
    changed_at: int | None


class Overview(UseCase):
    """Counts. Many keys are counted in a thread of their own, one at a time in each process, since no index has the
    active ones."""

    def __init__(self, node: Node, counted: int = COUNTED) -> None:
        super().__init__(node)
        self._counted = counted
        self._keys: CountedKeys | None = None
        self._counting = threading.Lock()

    def numbers(self) -> Numbers:
        """The numbers now. Raises StorageUnavailable."""
        now, most = self._now(), self._counted + 1
        with self._store.read() as connection:
            size = ledger.head(connection)
            changed_at = counts.time_of(connection, size)
            totals = counts.totals_up_to(connection, now, most)
        keys = self._keys_counted(totals.keys < most)
        return Numbers(totals.services, totals.applicants, keys, size, self._root(), changed_at)

    def _root(self) -> bytes | None:
        try:
            with self._store.look() as connection:
                return ledger.frontier(connection).root
        except (LedgerContradicted, LedgerUnconfirmed, Lagging):
            return None

    def _keys_counted(self, few: bool) -> CountedKeys | None:
        if few:
            self._keys = self._count()
        elif (self._keys is None or self._now() >= self._keys.at + KEYS_COUNTED_FOR) and self._counting.acquire(
            blocking=False
        ):
            threading.Thread(target=self._count_apart, name="console-count", daemon=True).start()
        return self._keys

    def _count_apart(self) -> None:
        try:
            self._keys = self._count()
        except PeersealError as error:
            log.warning("the active keys could not be counted: %s", error)
        finally:
            self._counting.release()

    def _count(self) -> CountedKeys:
        """Counts service by service, some at a time: each answer of the database has a time limit."""
        now, found, after = self._now(), NO_KEYS, ""
        while True:
            with self._store.look() as connection:
                names = services.page(connection, after, _SLICE)
                if not names:
                    return CountedKeys(found, now)
                last = names[-1].name
                found, after = found.plus(counts.active_keys(connection, after, last, now)), last
