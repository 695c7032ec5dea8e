"""Following the registry's list of changes: one question for all processes of a host, kept until something changed."""

import logging
import math
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import NamedTuple

from peerseal.errors import DocumentRefused, FetchError
from peerseal.protocol.documents.changes import Changes
from peerseal.runtime.limits import TrustLimits
from peerseal.transport.mirrors import asking_resting_urls
from peerseal.trust.awake import AwakePeriods
from peerseal.trust.disk.shared_changes import HostNews, Word
from peerseal.trust.documents import DocumentReader

log = logging.getLogger("peerseal.trust")


class Told(NamedTuple):
    """A list of changes, and the uptime at which a process of this host asked for it."""

    changes: Changes
    asked_at: float


class ChangesFollower:
    """Asks what changed, or hears it from the process of the host that asks for all: ``news``, where there is a folder.

    ``within`` is entered when there is something to check, and left while it is waited for.
    """

    def __init__(
        self,
        reader: DocumentReader,
        news: HostNews | None,
        *,
        limits: TrustLimits,
        clock: Callable[[], float],
        awake: AwakePeriods,
        within: AbstractContextManager[object],
    ) -> None:
        self._reader = reader
        self._news = news
        self._limits = limits
        self._clock = clock
        self._awake = awake
        self._within = within

    def ask(self, since: int) -> Told:
        """The list of changes behind that entry, as of now. Raises FetchError, DocumentRefused or TrustUnavailable."""
        return self._ask(since, 0.0, nullcontext())

    def ask_since_waking(self, since: int, *, first: bool) -> Changes:
        """As `ask`; or what a process of this host was told that asked the same, or more, after this one woke.

        The ``first`` question of a period reaches the registry if any does: it takes a new connection, since those from
        before the break may be dead, and asks URLs that are left alone for a while, since the break itself may have
        made a call fail.
        """
        if self._news is None:
            return self._ask_now(since, first).changes
        with self._news.asking():
            told, answers = self._told_since_waking(since), list[str]()
            if told is None:
                told, asked_at = self._ask_now(since, first, answers)
                for jws in answers:
                    self._news.tell_answer(Word(jws, asked_at), self._clock())
            return told

    def wait(self, since: int, seconds: float, stopping: threading.Event) -> Sequence[Told]:
        """The lists of changes behind that entry, oldest first, waited for that long. Raises as `ask` does."""
        if self._news is None or self._news.leads():
            return [self._ask(since, seconds, self._within)]
        written = self._news.listen(seconds, self._limits, stopping)
        heard: list[Told] = []
        for jws, asked_at in written or ():
            with self._within, suppress(DocumentRefused):  # an old one has expired
                heard.append(Told(self._reader.read(Changes, jws, self._domain, kept=True), asked_at))
        if written is None or (written and min((told.changes.since for told in heard), default=math.inf) > since):
            return [self._ask(since, 0.0, self._within)]  # what was heard begins behind what is known here
        return heard

    def stop(self) -> None:
        """Let another process of the host ask."""
        if self._news is not None:
            self._news.resign()

    @property
    def leads(self) -> bool:
        """Whether this process asks the registry, for itself or for all of the host."""
        return self._news is None or self._news.leading

    @property
    def _domain(self) -> str:
        return self._reader.registry_keys().subject

    def _ask_now(self, since: int, first: bool, answers: list[str] | None = None) -> Told:
        if first:
            self._reader.fetcher.reconnect()
        with asking_resting_urls() if first else nullcontext():
            return self._ask(since, 0.0, nullcontext(), answers)

    def _told_since_waking(self, since: int) -> Changes | None:
        """What another process of the host was told, where it serves."""
        awake = self._awake
        jws = self._news.answer(awake.began_at, awake.uptime()) if self._news is not None else None
        if jws is None:
            return None
        try:
            changes = self._reader.read(Changes, jws, self._domain, at_least=self._reader.seen(), kept=True)
        except (DocumentRefused, FetchError):
            return None
        return changes if changes.since <= since else None

    def _ask(
        self, since: int, wait: float, within: AbstractContextManager[object], answers: list[str] | None = None
    ) -> Told:
        """The answer to one question; as it was signed it is added to ``answers``."""
        asked_at = self._awake.uptime()

        def check(changes: Changes) -> None:
            if changes.since != since:
                raise DocumentRefused("document_wrong_subject", "the changes after another entry")
            if changes.seq < since:
                raise DocumentRefused("document_rolled_back", f"the ledger ends at {changes.seq}, seen was {since}")

        def keep(_: Changes, jws: str) -> None:
            if answers is not None:
                answers.append(jws)
            if self._news is not None and self._news.leading:
                self._news.tell(Word(jws, asked_at), self._clock())

        path = f"/v1/changes?since={since}" + (f"&wait={int(wait)}" if wait >= 1 else "")
        changes = self._reader.fetch(Changes, path, self._domain, check=check, keep=keep, wait=wait, within=within)
        return Told(changes, asked_at)
