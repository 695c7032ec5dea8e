"""Lists of what has not changed (`peerseal.protocol.documents.current`): the evidence that an older document is true.

A registry signs a document once for each change and once in half a day. A client that fetches one after a start takes
the list of the document's block along, which is signed each half minute and is the same for all clients. On disk the
list is the evidence for the copies: with it they are believed after a restart while the registry is down.
"""

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from peerseal.errors import DocumentRefused, FetchError, TrustUnavailable
from peerseal.protocol.documents.current import CurrentServices, block_of
from peerseal.runtime.bounded import BoundedDict
from peerseal.runtime.forks import in_each_child
from peerseal.runtime.limits import TrustLimits
from peerseal.transport.deadline import acquired_in_time
from peerseal.trust.beliefs import Dated
from peerseal.trust.disk.document_cache import CopyFolder
from peerseal.trust.documents import DocumentReader, Question, check_age

log = logging.getLogger("peerseal.trust")

B = TypeVar("B", bound=Dated)

YOUNG: Final = 30.0
"""Seconds for which a document needs no list, and a list no newer one: a registry signs one each half minute."""
LISTED_FOR: Final = 120.0
"""Seconds for which a list is the newest word of a mirror: it fetches lists once a minute, and caches keep them."""
_KEPT = 64
"""Lists in memory. A process needs few lists: most services that it knows changed in the same blocks."""


class CurrentLists:
    """The lists of the blocks that were asked for. Safe to use from threads, and before and after a fork."""

    def __init__(
        self, reader: DocumentReader, copies: CopyFolder, limits: TrustLimits, clock: Callable[[], float]
    ) -> None:
        self._reader = reader
        self._copies = copies
        self._limits = limits
        self._clock = clock
        self._lists = BoundedDict[int, tuple[CurrentServices, int]](_KEPT)  # with the reader's generation
        self._failed_until = 0.0
        self._renew_lock()
        in_each_child(self._renew_lock)

    def confirmed(self, belief: B, service_id: str) -> B | None:
        """The belief about that service as the registry's list confirms it; None where the list says that the service
        changed. The belief is unaltered where no list can be had now."""
        found = self._list(block_of(belief.seq)) if belief.seq else None
        return belief if found is None else belief.confirmed_by_list(service_id, found)

    def confirmed_from_disk(self, belief: B, service_id: str) -> B | None:
        """The same by the list on disk, without a question to the registry."""
        found = self._on_disk(block_of(belief.seq)) if belief.seq else None
        return belief if found is None else belief.confirmed_by_list(service_id, found)

    def is_due_on_disk(self, belief: Dated) -> bool:
        """Whether copies are kept, and the list of the belief's block is missing among them, or due for renewal."""
        file = _file(block_of(belief.seq))
        return self._copies.wants_copy(file) or (
            0 < self._copies.fetched_at(file) <= self._clock() - self._limits.refresh_interval / 2
        )

    def on_new_ledger(self) -> None:
        """See LedgerCache: the lists in memory are of a lost ledger."""
        self._lists = BoundedDict(_KEPT)

    def endings(self) -> Mapping[str, int]:
        """See LedgerCache. There are no keys in this cache."""
        return {}

    def _list(self, block: int) -> CurrentServices | None:
        found, generation = self._in_memory(block), self._reader.generation
        if found is not None or self._clock() < self._failed_until:
            return found
        if not acquired_in_time(self._lock):
            return None
        try:
            with self._copies.locked(_file(block)):
                found = self._in_memory(block) or self._young(self._on_disk(block)) or self._fetched(block)
        except (FetchError, DocumentRefused, TrustUnavailable) as error:
            log.info("no list confirms what is cached (block %d): %s", block, error)
            self._failed_until = self._clock() + self._limits.poll_interval
            return None
        finally:
            self._lock.release()
        self._lists[block] = found, generation
        return found

    def _in_memory(self, block: int) -> CurrentServices | None:
        """The list in memory, if it is young, and no key was dropped since that may have signed it."""
        found, generation = self._lists.get(block) or (None, 0)
        return self._young(found) if generation == self._reader.generation else None

    def _fetched(self, block: int) -> CurrentServices:
        domain = self._reader.registry_keys().subject

        def check(document: CurrentServices) -> None:
            if document.block != block:
                raise DocumentRefused("document_wrong_subject", f"the list of block {document.block}, not of {block}")
            check_age(document, self._limits.offline_limit, self._clock())

        question = Question(CurrentServices, f"/v1/current/{block}.jwt", domain, check=check)
        fetched = self._reader.fetch_whole(question)
        self._copies.keep(_file(block), fetched.jws, fetched.document.seq, self._clock())
        return fetched.document

    def _on_disk(self, block: int) -> CurrentServices | None:
        copy = self._copies.read(_file(block))
        if copy is None:
            return None
        try:
            domain = self._reader.registry_keys().subject
            document = self._reader.read(CurrentServices, copy.jws, domain, from_disk=True)
        except (FetchError, DocumentRefused, TrustUnavailable) as error:
            log.info("the copy %s is passed over: %s", _file(block), error)
            return None
        return document if document.block == block else None

    def _young(self, found: CurrentServices | None) -> CurrentServices | None:
        return found if found is not None and self._clock() - found.issued_at < YOUNG else None

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()


def _file(block: int) -> str:
    return f"current-{block}.jwt"
