"""Following the registry's list of changes: one question for all processes of a host, kept until something changed."""

import logging
import math
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress

from peerseal.errors import DocumentRefused
from peerseal.peers.limits import TrustLimits
from peerseal.peers.news import HostNews
from peerseal.peers.reader import DocumentReader
from peerseal.protocol.documents import Changes

log = logging.getLogger("peerseal.trust")


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

    def wait(self, since: int, seconds: float, stopping: threading.Event) -> Sequence[Changes]:
        """The lists of changes behind that entry, oldest first, waited for that long. Raises as `ask` does."""
        if self._news is None or self._news.leads():
            return [self._ask(since, seconds, self._within)]
        written = self._news.listen(seconds, self._limits, stopping)
        heard: list[Changes] = []
        for jws in written or ():
            with self._within, suppress(DocumentRefused):  # an old one has expired
                heard.append(self._reader.read(Changes, jws, self._domain, kept=True))
        if written is None or (written and min((changes.since for changes in heard), default=math.inf) > since):
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

    def _ask(self, since: int, wait: float, within: AbstractContextManager[object]) -> Changes:
        def check(changes: Changes) -> None:
            if changes.since != since:
                raise DocumentRefused("document_wrong_subject", "the changes after another entry")
            if changes.seq < since:
                raise DocumentRefused("document_rolled_back", f"the ledger ends at {changes.seq}, seen was {since}")

        def keep(_: Changes, jws: str) -> None:
            if self._news is not None and self._news.leading:
                self._news.tell(jws, self._clock())

        path = f"/v1/changes?since={since}" + (f"&wait={int(wait)}" if wait >= 1 else "")
        return self._reader.fetch(Changes, path, self._domain, check=check, keep=keep, wait=wait, within=within)
