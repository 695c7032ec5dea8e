"""Following the registry's list of changes: one question for all processes of a host,
which the registry answers when something changes."""

import logging
import math
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass

from peerseal.errors import DocumentRefused, FetchError
from peerseal.protocol.documents.changes import Changes, Watched
from peerseal.runtime.limits import TrustLimits
from peerseal.transport.fetch import HungUp
from peerseal.transport.mirrors import asking_resting_urls
from peerseal.trust.awake import AwakePeriods
from peerseal.trust.disk.shared_changes import NOTHING, SharedChanges, SignedChanges
from peerseal.trust.documents import DocumentReader, Question

log = logging.getLogger("peerseal.trust")


RECENT = "/v1/changes/recent.jwt"
"""The path of the one list for all clients. A cache may keep it for a second."""
NO_WAITS_FOR = 60.0
"""Seconds for which a client does not ask the registry to wait, after it had no room for the client's question."""


@dataclass(frozen=True, slots=True)
class ReceivedChanges:
    """A list of changes that passed all checks, and as it was signed."""

    changes: Changes
    signed: SignedChanges

    @property
    def asked_at(self) -> float:
        """The uptime at which a process of this host asked for the list."""
        return self.signed.asked_at


class ChangesFollower:
    """Asks the registry what changed. Where the processes of a host share a folder, one of them asks, and the others
    read in ``shared`` what it was told. A question that the registry keeps names the services that all of them watch;
    ``watched`` returns those of this process, by default all.

    ``working`` is held while a list is checked, and not while the registry keeps the question.
    """

    def __init__(
        self,
        reader: DocumentReader,
        shared: SharedChanges | None,
        awake: AwakePeriods,
        limits: TrustLimits,
        clock: Callable[[], float],
        working: AbstractContextManager[object],
        watched: Callable[[], Watched] = Watched,
    ) -> None:
        self._reader = reader
        self._shared = shared
        self._awake = awake
        self._limits = limits
        self._clock = clock
        self._working = working
        self._watched = watched
        self._asked_about: Watched | None = None  # while the registry keeps a question
        self._recent_until = -math.inf

    def ask(self, since: int) -> ReceivedChanges:
        """The list of changes after that entry, as of now. Raises FetchError, DocumentRefused or TrustUnavailable."""
        return self._ask(since, 0.0, nullcontext())

    def ask_after_break(self, since: int, *, first: bool) -> Changes:
        """As `ask`; or the list that another process of the host received, if it asked with the same or a lower
        ``since``, after this process woke.

        The ``first`` question of a period must not fail because of the break. So it takes a new connection, since those
        from before may be dead, and also goes to URLs that rest, since the break itself may have made a call fail.
        """
        if self._shared is None:
            return self._ask_now(since, first).changes
        with self._shared.answering():
            found = self._answer_after_break(since)
            if found is None:
                received = self._ask_now(since, first)
                self._shared.write_answer(received.signed, self._clock())
                found = received.changes
            return found

    def wait(self, since: int, seconds: float, stopping: threading.Event) -> Sequence[ReceivedChanges]:
        """The lists of changes after that entry, oldest first, waited for that long. Raises as `ask` does."""
        if self._shared is None or self._shared.lead():
            recent = self._ask_recent(since, self._working) if self._without_waits() else None
            return [recent or self._ask(since, seconds, self._working)]
        written = self._shared.wait_for_new(seconds, self._limits, stopping)
        received = list[ReceivedChanges]()
        for signed in written or ():
            with self._working, suppress(DocumentRefused):  # an old list may have expired
                changes = self._reader.read(Changes, signed.jws, self._domain, from_disk=True)
                received.append(ReceivedChanges(changes, signed))
        if written is None or (written and min((one.changes.since for one in received), default=math.inf) > since):
            return [self._ask(since, 0.0, self._working)]  # the file begins after the entry that is known here
        return received

    def outgrown(self) -> bool:
        """Whether the registry keeps a question that does not name all services which the processes of the host watch
        by now. Where another process asks, it is told which services this one watches. Called several times a second,
        by one thread."""
        if self._shared is not None and not self._shared.leads:
            self._shared.watch(self._watched)
            return False
        asked_about = self._asked_about
        return asked_about not in (None, Watched()) and not asked_about >= self._watched_by_all()

    def stop(self) -> None:
        """Let another process of the host ask."""
        if self._shared is not None:
            self._shared.resign()

    def _without_waits(self) -> bool:
        """Whether the registry keeps no question now: this process was told not to wait, or the registry had no room
        for its question a moment ago."""
        return self._limits.wait < 1 or self._awake.uptime() < self._recent_until

    @property
    def leads(self) -> bool:
        """Whether this process asks the registry, for itself or for all of the host."""
        return self._shared is None or self._shared.leads

    @property
    def _domain(self) -> str:
        return self._reader.registry_keys().subject

    def _watched_by_all(self) -> Watched:
        others = NOTHING if self._shared is None else self._shared.watched()
        return others | self._watched()

    def _ask_now(self, since: int, first: bool) -> ReceivedChanges:
        if first:
            self._reader.fetcher.reconnect()
        with asking_resting_urls() if first else nullcontext():
            return self._ask(since, 0.0, nullcontext())

    def _answer_after_break(self, since: int) -> Changes | None:
        """The list that another process of the host received, where it serves."""
        awake = self._awake
        jws = self._shared.answer(awake.began_at, awake.uptime()) if self._shared is not None else None
        if jws is None:
            return None
        try:
            changes = self._reader.read(Changes, jws, self._domain, at_least=self._reader.seen(), from_disk=True)
        except (DocumentRefused, FetchError):
            return None
        return changes if changes.since <= since else None

    def _ask(self, since: int, wait: float, within: AbstractContextManager[object]) -> ReceivedChanges:
        """The changes since that entry. Where a mirror has the recent changes alone: those, even if they begin
        later."""
        try:
            return self._ask_since(since, wait, within)
        except FetchError as error:
            missing = error.http_status == 404 or getattr(self._reader.fetcher, "has_mirrors", False)
            if missing and not isinstance(error, HungUp):
                with suppress(FetchError, DocumentRefused):
                    recent = self._ask_recent(since, within, from_later=True)
                    if recent is not None:
                        return recent
            raise

    def _ask_since(self, since: int, wait: float, within: AbstractContextManager[object]) -> ReceivedChanges:
        asked_at, seen = self._awake.uptime(), self._reader.seen()

        def check(changes: Changes) -> None:
            if changes.seq < max(since, seen):
                raise DocumentRefused("document_rolled_back", f"the ledger ends at {changes.seq}, seen was {seen}")
            if changes.since != since:
                raise DocumentRefused("document_wrong_subject", f"changes after {changes.since} instead of {since}")

        path = f"/v1/changes?since={since}"
        if wait >= 1:
            self._asked_about = watched = self._watched_by_all()
            path += f"&wait={int(wait)}" + (f"&services={watched.text}" if watched.text else "")
        question = Question(Changes, path, self._domain, check=check, wait=wait, within=within)
        try:
            received = self._received(question, asked_at)
        finally:
            self._asked_about = None
        if wait >= 1 and received.changes.seq == since and self._awake.uptime() - asked_at < min(wait / 2, 1.0):
            self._recent_until = self._awake.uptime() + NO_WAITS_FOR
        return received

    def _ask_recent(
        self, since: int, within: AbstractContextManager[object], *, from_later: bool = False
    ) -> ReceivedChanges | None:
        """The list of recent changes, which is the same for all clients and may come from a cache: it may be a second
        old. None where it begins after that entry (unless ``from_later``), or ends before it, or the registry has no
        such list."""

        def reaches(found: Changes) -> bool:
            return (from_later or found.since <= since) and since <= found.seq

        question = Question(Changes, RECENT, self._domain, within=within)
        try:
            received = self._received(question, self._awake.uptime(), publish=reaches)
        except FetchError as error:
            if error.http_status != 404:
                raise
            self._recent_until = -math.inf
            return None
        return received if reaches(received.changes) else None

    def _received(
        self, question: Question[Changes], asked_at: float, publish: Callable[[Changes], bool] = lambda _: True
    ) -> ReceivedChanges:
        try:
            fetched = self._reader.fetch_whole(question)
        except (DocumentRefused, FetchError) as error:  # no retry: `since` is an entry of the old history
            self._reader.adopt_new_ledger_after(error)
            raise
        signed = SignedChanges(fetched.jws, asked_at)
        if self._shared is not None and self._shared.leads and publish(fetched.document):
            self._shared.write(signed, self._clock())
        return ReceivedChanges(fetched.document, signed)
