"""Asks the registry to confirm what this process knew before: a copy on disk, or memory from before a break.

Such a belief decides a request only after the registry was asked what changed since the process started, was forked or
woke (`AwakePeriods`). One answer serves all beliefs of the process, and of the processes of its host that woke before
the question. Where the registry cannot be reached within the caller's patience, the belief decides as it is, within its
signed time and the offline limit.
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
"""The part of a caller's patience that one question may take: callers that wait for it have some left when it fails."""
_NOT_FROM_A_REGISTRY = ("document_malformed", "document_wrong_type")
"""Codes of answers that are no registry's document at all, such as a gateway's error page."""


@dataclass(slots=True)
class _Answers:
    """What the registry answered in one period. ``newest_entry`` is the ledger entry up to which it said what changed,
    None before its first answer; ``changes`` is its last list. ``failed_at`` (by uptime) is when a question failed
    last; ``refusal`` says why, where the registry answered and the answer was refused."""

    period: int
    newest_entry: int | None = None
    changes: Changes | None = None
    failed_at: float = -math.inf
    refusal: DocumentRefused | None = None

    def take(self, changes: Changes) -> None:
        """Keep a list of the registry's."""
        if self.changes is None or changes.seq > self.changes.seq or changes.since < self.changes.since:
            self.changes = changes
        self.newest_entry = max(self.newest_entry or 0, changes.seq)
        self.failed_at, self.refusal = -math.inf, None


class Confirmation:
    """Asks the registry once in each period what changed, and again only for a belief about which the answer says
    nothing. ``followed`` returns the entry up to which every belief that is held is true. Safe to use from threads, and
    before and after a fork."""

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
        self._answers = _Answers(NEVER)
        self._asking_since = math.inf
        self._renew_lock()
        in_each_child(self._renew_lock)

    def confirmed(self, belief: B, subject: str) -> B | None:
        """The belief about ``subject`` (a service id), confirmed by what the registry said in this period; None if it
        says that the subject changed. The belief is unaltered where the registry cannot be reached.

        Raises TrustUnavailable where the registry answers, and the answer is refused.
        """
        changes = self._changes_after(belief.covered)
        return belief if changes is None else belief.confirmed(subject, changes)

    def caught_up(self, belief: B, subject: str) -> B | None:
        """The belief from a document that was fetched just now, as `confirmed` where this process has seen later
        entries than it covers: caches on the way may answer with an older document.

        Raises DocumentRefused where the registry does not say now whether the document is still true, and
        TrustUnavailable as `confirmed` does.
        """
        seen = self._reader.seen()
        if belief.covered >= seen:
            return belief
        changes = self._changes_after(belief.covered)
        if changes is None or changes.reset or not changes.since <= belief.covered <= changes.seq >= seen:
            raise DocumentRefused("document_rolled_back", f"covers {belief.covered} entries, {seen} were seen")
        return belief.confirmed(subject, changes)

    def on_new_ledger(self) -> None:
        """See LedgerCache: the answers were about a lost ledger. The thread that calls this may hold the lock."""
        self._answers = _Answers(NEVER)

    def endings(self) -> Mapping[str, int]:
        """See LedgerCache. There are no keys in this cache."""
        return {}

    def note(self, changes: Changes, period: int) -> None:
        """Take note of a list that the background thread received, asked for in that period. It is used like a list
        that `confirmed` asked for: a copy on disk that covers fewer entries than the list is confirmed again."""
        with self._lock:
            if period not in (NEVER, self._answers.period):
                self._answers = _Answers(period)
            if period != NEVER or self._answers.newest_entry is not None:
                self._answers.take(changes)

    def _changes_after(self, covered: int) -> Changes | None:
        """The registry's list that may concern a belief known up to that entry; None where there is none."""
        if not acquired_in_time(self._lock):
            if self._awake.uptime() - self._asking_since >= self._limits.patience / 2:
                return None  # the question of another thread was not answered in time, so the registry is not reached
            raise TrustUnavailable("another thread asks the registry what changed", retry_after=1)
        try:
            return self._listed(covered)
        finally:
            self._lock.release()

    def _listed(self, covered: int) -> Changes | None:
        period = self._awake.current()
        first = self._answers.period != period
        if first:
            self._answers = _Answers(period)
        answers, changes = self._answers, self._answers.changes
        if answers.newest_entry is not None:
            if changes is not None and changes.since <= covered <= changes.seq >= answers.newest_entry:
                return changes
            if covered >= answers.newest_entry:
                return None
        if self._awake.uptime() - answers.failed_at < self._limits.poll_interval:
            if answers.refusal is not None:
                raise _unavailable(answers.refusal)
            return None
        return self._asked(answers, covered, first)

    def _asked(self, answers: _Answers, covered: int, first: bool) -> Changes | None:
        followed = self._followed()
        since = covered if followed is None else min(covered, followed)
        self._asking_since = self._awake.uptime()
        try:
            with no_longer_than(_PART_OF_PATIENCE * self._limits.patience):
                changes = self._follower.ask_after_break(since, first=first)
        except (FetchError, DocumentRefused) as error:
            self._remember_failure(answers, error)
            return None
        finally:
            self._asking_since = math.inf
        answers.take(changes)
        self._reader.note(changes)
        return changes

    def _remember_failure(self, answers: _Answers, error: FetchError | DocumentRefused) -> None:
        """Raises TrustUnavailable unless the error says that the registry cannot be reached. A mirror's refused answer
        does not count as the registry's while the primary cannot be asked."""
        log.warning("the registry did not confirm cached documents: %s", error)
        answers.failed_at = self._awake.uptime()
        answers.refusal = None
        if isinstance(error, DocumentRefused) and not (error.by_mirror or error.code in _NOT_FROM_A_REGISTRY):
            answers.refusal = error
            raise _unavailable(error)

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()
        self._asking_since = math.inf


def _unavailable(error: DocumentRefused) -> TrustUnavailable:
    unavailable = TrustUnavailable(f"the registry did not confirm cached documents: {error}", retry_after=1)
    unavailable.__cause__ = error
    return unavailable
