"""Answers from memory that are right the moment a change commits, on every worker and node."""

import time
from collections.abc import Callable
from typing import Generic, TypeVar

from peerseal.protocol.names import check_service
from registry.domain.errors import Behind, LedgerForked, NotFound, StorageUnavailable
from registry.services.authority.authority import AuthoritySource
from registry.services.documents.answers import Rendered, RenderedCache
from registry.settings import Limits
from registry.storage.revisions import Revisions

S = TypeVar("S", bound=tuple[str, ...])


class FreshAnswers(Generic[S]):
    """Keeps answers by slot: a tuple whose second member is the service that the answer is about.

    An answer is served from memory while the service has not changed on any node and it is younger than
    ``resign_after``. With the database down, behind, or with another ledger than the one that was signed, what is in
    memory is served until it expires: its signed time says how old it is.
    """

    def __init__(
        self,
        revisions: Revisions,
        authority: AuthoritySource,
        limits: Limits,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._revisions = revisions
        self._authority = authority
        self._limits = limits
        self._clock = clock
        self._cache: RenderedCache[S] = RenderedCache(limits.documents_cached)
        self._issued: int | None = None
        authority.when_changed(self._cache.clear)

    def answer(
        self, slot: S, at_least: int, make: Callable[[S, int], Rendered], *, of_unknown: bool = False
    ) -> Rendered:
        """What the slot holds, as of entry ``at_least`` or later; ``make`` makes it anew, as of a time. ``of_unknown``
        says that there is an answer about a service that no entry names, too: then with ``seq`` 0.

        Raises InvalidName, NotFound for a service that no entry names, Behind where the ledger does not reach that
        far, StorageUnavailable, LedgerContradicted.
        """
        if self._cache.get(slot) is None:
            check_service(slot[1])
        try:
            return self._answer(slot, at_least, make, of_unknown)
        except (StorageUnavailable, LedgerForked, Behind):
            kept = self._cache.get(slot)
            if kept is not None and kept.head >= at_least and self._clock() < kept.expires_at:
                return kept
            raise

    def _answer(self, slot: S, at_least: int, make: Callable[[S, int], Rendered], of_unknown: bool) -> Rendered:
        self._authority.require_sound()
        kept, now = self._cache.get(slot), self._clock()
        seq, issued = self._revisions.service(slot[1])
        if issued != self._issued:  # another document of the root: perhaps a key that signed is good no more
            self._authority.newest()
            self._issued, kept = issued, self._cache.get(slot)
        if at_least and (kept is None or at_least > kept.head) and self._revisions.head() < at_least:
            raise Behind(f"entry {at_least} is not here")
        if seq is None:
            if not of_unknown:
                raise NotFound("service_not_found")
            seq = 0
        if (
            kept is not None
            and kept.seq == seq
            and kept.head >= at_least
            and 0 <= now - kept.issued_at < self._limits.resign_after
        ):
            return kept
        return self._cache.put(slot, make(slot, int(now)))
