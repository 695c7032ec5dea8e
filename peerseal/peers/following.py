"""Following the registry's list of changes: one question for all processes of a host, kept until something changed."""

import logging
import math
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import NamedTuple

from peerseal.errors import DocumentRefused, FetchError
from peerseal.peers.awake import AwakePeriods
from peerseal.peers.limits import TrustLimits
from peerseal.peers.mirrors import asking_resting_urls
from peerseal.peers.news import HostNews
from peerseal.peers.reader import DocumentReader
from peerseal.protocol.documents import Changes

log = logging.getLogger("peerseal.trust")


class Told(NamedTuple):
    """Lists of changes, oldest first. ``asked_here`` says that this process asked the registry for them just now."""

    lists: Sequence[Changes]
    asked_here: bool


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
        within: AbstractContextManager[object],
    ) -> None:
        self._reader = reader
        self._news = news
        self._limits = limits
        self._clock = clock
        self._within = within

    def ask(self, since: int) -> Changes:
        """The list of changes behind that entry, as of now. Raises FetchError, DocumentRefused or TrustUnavailable."""
        return self._ask(since, 0.0, nullcontext())

    def ask_since_waking(self, since: int, awake: AwakePeriods, *, first: bool) -> Changes:
        """As `ask`; or what a process of this host was told that asked the same, or more, after this one woke.

        The ``first`` question of a period reaches the registry if any does: it takes a new connection, since those from
        before the break may be dead, and asks URLs that are left alone for a while, since the break itself may have
        made a call fail.
        """
        if self._news is None:
            return self._ask_first(since) if first else self.ask(since)
        with self._news.asking():
            told = self._told_since_waking(since, awake)
            if told is not None:
                return told
            asked_at, answers = awake.uptime(), list[str]()
            changes = self._ask_first(since, answers) if first else self._ask(since, 0.0, nullcontext(), answers)
            for jws in answers:
                self._news.tell_answer(jws, asked_at, self._clock())
            return changes

    def wait(self, since: int, seconds: float, stopping: threading.Event) -> Told:
        """The lists of changes behind that entry, waited for that long. Raises as `ask` does."""
        if self._news is None or self._news.leads():
            return Told([self._ask(since, seconds, self._within)], asked_here=True)
        written = self._news.listen(seconds, self._limits, stopping)
        heard: list[Changes] = []
        for jws in written or ():
            with self._within, suppress(DocumentRefused):  # an old one has expired
                heard.append(self._reader.read(Changes, jws, self._domain, kept=True))
        if written is None or (written and min((changes.since for changes in heard), default=math.inf) > since):
            # what was heard begins behind what is known here
            return Told([self._ask(since, 0.0, self._within)], asked_here=True)
        return Told(heard, asked_here=False)

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

    def _ask_first(self, since: int, answers: list[str] | None = None) -> Changes:
        self._reader.fetcher.reconnect()
        with asking_resting_urls():
            return self._ask(since, 0.0, nullcontext(), answers)

    def _told_since_waking(self, since: int, awake: AwakePeriods) -> Changes | None:
        """What another process of the host was told, where it serves."""
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
    ) -> Changes:
        """The answer to one question; as it was signed it is added to ``answers``."""

        def check(changes: Changes) -> None:
            if changes.since != since:
                raise DocumentRefused("document_wrong_subject", "the changes after another entry")
            if changes.seq < since:
                raise DocumentRefused("document_rolled_back", f"the ledger ends at {changes.seq}, seen was {since}")

        def keep(_: Changes, jws: str) -> None:
            if answers is not None:
                answers.append(jws)
            if self._news is not None and self._news.leading:
                self._news.tell(jws, self._clock())

        path = f"/v1/changes?since={since}" + (f"&wait={int(wait)}" if wait >= 1 else "")
        return self._reader.fetch(Changes, path, self._domain, check=check, keep=keep, wait=wait, within=within)
