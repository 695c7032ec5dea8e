"""Has the registry confirm what this process believes from before: a copy on disk, or memory from before a break.

Such a belief decides a request only after the registry was asked what changed since the process started, was forked or
woke (`AwakePeriods`). One question serves all beliefs of the process, and of the processes of its host that woke before
it was asked. Where the registry cannot be reached within the caller's patience, the belief decides as it is: its signed
time and the offline limit bound that.
"""

import logging
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from peerseal.errors import DocumentRefused, FetchError, TrustUnavailable
from peerseal.protocol.documents.changes import Changes
from peerseal.runtime.forks import in_each_child
from peerseal.runtime.limits import TrustLimits
from peerseal.transport.deadline import acquired_in_time, no_longer_than
from peerseal.trust.awake import NEVER, AwakePeriods
from peerseal.trust.beliefs import Dated
from peerseal.trust.changes import ChangesFollower
from peerseal.trust.documents import DocumentReader

log = logging.getLogger("peerseal.trust")

B = TypeVar("B", bound=Dated)

_PART_OF_PATIENCE = 0.8
"""What one question may take of a caller's patience: callers that wait for it have some left when it fails."""
_NO_WORD_OF_THE_REGISTRY = ("document_malformed", "document_wrong_type")
"""Codes of answers that are no document of a registry at all, such as a gateway's error page."""


@dataclass(slots=True)
class _Heard:
    """What was heard in one period. ``newest`` is the ledger entry up to which the registry told what changed, None
    where it told nothing yet; ``changes`` the list that it told last when asked. ``failed_at`` (by uptime) is when a
    question failed last, and ``refusal`` why where the registry answered, but not in a way to believe."""

    period: int
    newest: int | None = None
    changes: Changes | None = None
    failed_at: float = -math.inf
    refusal: DocumentRefused | None = None

    def take(self, changes: Changes) -> None:
        """Hold on to a list that the registry told."""
        if self.changes is None or changes.seq > self.changes.seq or changes.since < self.changes.since:
            self.changes = changes
        self.newest = max(self.newest or 0, changes.seq)
        self.failed_at, self.refusal = -math.inf, None


class Confirmation:
    """Asks for each period once, and again only for a belief about which the answer says nothing. ``followed`` gives
    the entry up to which all that is held is known. Safe to use from threads, and before and after a fork."""

    def __init__(
        self,
        follower: ChangesFollower,
        reader: DocumentReader,
        awake: AwakePeriods,
        limits: TrustLimits,
        followed: Callable[[], int | None],
    ) -> None:
        self._follower = follower
        self._reader = reader
        self._awake = awake
        self._limits = limits
        self._followed = followed
        self._heard = _Heard(NEVER)
        self._asking_since = math.inf
        self._renew_lock()
        in_each_child(self._renew_lock)

    def confirmed(self, belief: B, subject: str) -> B | None:
        """The belief about ``subject`` (a service id) as the registry's word in this period leaves it: None where that
        says that it changed. Unaltered where the registry cannot be reached.

        Raises TrustUnavailable where the registry answers, but not in a way to believe.
        """
        changes = self._word_on(belief.covered)
        return belief if changes is None else belief.confirmed(subject, changes)

    def on_new_history(self) -> None:
        """See HistoryFollower: what was heard is of a history that was given up. Its thread may hold the lock."""
        self._heard = _Heard(NEVER)

    def endings(self) -> Mapping[str, int]:
        """See HistoryFollower: no keys are here."""
        return {}

    def note(self, changes: Changes, period: int) -> None:
        """Take note of a list that the background thread heard, asked for in that period: it is as good as one that is
        asked for here, and copies must cover as much from now on."""
        with self._lock:
            if period not in (NEVER, self._heard.period):
                self._heard = _Heard(period)
            if period != NEVER or self._heard.newest is not None:
                self._heard.take(changes)

    def _word_on(self, covered: int) -> Changes | None:
        """What the registry says that may concern a belief known up to that entry; None where it says nothing more."""
        if not acquired_in_time(self._lock):
            if self._awake.uptime() - self._asking_since >= self._limits.patience / 2:
                return None  # the question of another thread was not answered in time, so the registry is not reached
            raise TrustUnavailable("another thread asks the registry what changed", retry_after=1)
        try:
            return self._told(covered)
        finally:
            self._lock.release()

    def _told(self, covered: int) -> Changes | None:
        period = self._awake.current()
        first = self._heard.period != period
        if first:
            self._heard = _Heard(period)
        heard = self._heard
        if heard.newest is not None:
            if covered >= heard.newest:
                return None
            if heard.changes is not None and heard.changes.since <= covered and heard.changes.seq >= heard.newest:
                return heard.changes
        if self._awake.uptime() - heard.failed_at < self._limits.poll_interval:
            if heard.refusal is not None:
                raise _unavailable(heard.refusal)
            return None
        return self._asked(heard, covered, first)

    def _asked(self, heard: _Heard, covered: int, first: bool) -> Changes | None:
        followed = self._followed()
        since = covered if followed is None else min(covered, followed)
        self._asking_since = self._awake.uptime()
        try:
            with no_longer_than(_PART_OF_PATIENCE * self._limits.patience):
                changes = self._follower.ask_since_waking(since, first=first)
        except (FetchError, DocumentRefused) as error:
            self._remember_failure(heard, error)
            return None
        finally:
            self._asking_since = math.inf
        heard.take(changes)
        self._reader.note(changes)
        return changes

    def _remember_failure(self, heard: _Heard, error: FetchError | DocumentRefused) -> None:
        """Raises TrustUnavailable unless the error says that the registry cannot be reached. What a mirror says while
        the primary cannot be asked is no word of the registry either."""
        log.warning("the registry does not confirm what is known from before: %s", error)
        heard.failed_at = self._awake.uptime()
        heard.refusal = None
        if isinstance(error, DocumentRefused) and not (error.by_mirror or error.code in _NO_WORD_OF_THE_REGISTRY):
            heard.refusal = error
            raise _unavailable(error)

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()
        self._asking_since = math.inf


def _unavailable(error: DocumentRefused) -> TrustUnavailable:
    unavailable = TrustUnavailable(f"the registry does not confirm what is known from before: {error}", retry_after=1)
    unavailable.__cause__ = error
    return unavailable
