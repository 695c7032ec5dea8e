"""What this process believes about many subjects, each from one signed document: fetched, cached, confirmed, renewed.

A shelf holds the documents of one kind, such as the key sets of services; what differs between kinds is in `shelves`.
One thread fetches a document while the other threads that need it wait. A fetch on behalf of a question begins a
cooldown, which ends early if the fetch finds the name in the question. A failed fetch removes no belief: a document is
believed for `TrustLimits.offline_limit` after its last signed confirmation, or until it expires. If another process of
the host has fetched a document lately, the shelf reads its copy on disk.
"""

import logging
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from random import random
from typing import ClassVar, Generic, TypeVar

from peerseal.errors import DocumentRefused, FetchError, PeersealError, TrustUnavailable, UnknownKey
from peerseal.protocol.documents.changes import Changes
from peerseal.protocol.names import split_service_id
from peerseal.runtime.backoff import backoff
from peerseal.runtime.bounded import AbsentNames
from peerseal.runtime.forks import in_each_child
from peerseal.runtime.limits import TrustLimits
from peerseal.transport.deadline import held_if_free, held_in_time
from peerseal.trust.awake import NEVER, AwakePeriods
from peerseal.trust.beliefs import Dated
from peerseal.trust.confirmation import Confirmation
from peerseal.trust.current import LISTED_FOR, YOUNG, CurrentLists
from peerseal.trust.disk.document_cache import CopyFolder
from peerseal.trust.documents import D, DocumentReader, Fetched, Question
from peerseal.trust.key_set_parts import WrongPart

log = logging.getLogger("peerseal.trust")

B = TypeVar("B", bound=Dated)
"""What is believed of one subject."""
A = TypeVar("A")
"""What the shelf answers."""


@dataclass(frozen=True, slots=True)
class ShelfContext:
    """What all shelves of a trust store use."""

    reader: DocumentReader
    copies: CopyFolder
    confirmation: Confirmation
    current: CurrentLists
    awake: AwakePeriods
    limits: TrustLimits
    clock: Callable[[], float]


@dataclass(slots=True)
class CachedSubject(Generic[B]):
    """What a shelf holds about one subject: a service by its id, or a key by its kid. Lists of changes name the
    ``service``. The document is at ``path``, its copy on disk in ``file``. ``lock`` is held by the one thread that
    fetches. ``known`` is believed until ``good_until``, in its ``period``. ``failures`` counts the renewals that failed
    in a row; ``retry_at`` is when the next is due. The other numbers::

        period         the `AwakePeriods` period in which ``known`` was confirmed, or the registry was not reached
        generation     the generation of the reader (`DocumentReader`) when it read the document
        awaited_entry  the ledger entry that the next document must cover; 0 where none is awaited
        told_until     while one is awaited: the entry up to which lists said what changed, and the signed time
    """

    subject: str
    service: str
    path: str
    file: str
    absent: AbsentNames
    lock: threading.Lock = field(default_factory=threading.Lock)
    known: B | None = None
    good_until: float = 0.0
    period: int = NEVER
    generation: int = 0
    etag: str | None = None
    fetched_at: float = 0.0
    renew_at: float = 0.0
    cooldown_until: float = 0.0
    awaited_entry: int = 0
    told_until: tuple[int, int] = (0, 0)
    failures: int = 0
    retry_at: float = 0.0


class Shelf(ABC, Generic[D, B, A]):
    """The documents of one kind, by subject. A question has a ``name``, for which the document has the answer: the kid
    of a key, or the subject itself. Safe to use from threads."""

    document: type[D]
    """The kind of document."""
    label: ClassVar[str]
    """What a document holds, in messages."""
    path: ClassVar[str]
    """The path of a document below the registry's URL. The first ``{}`` stands for the service's short name, a second
    one for the key's thumbprint."""
    file: ClassVar[str] = ""
    """The name of its copy on disk; ``{}`` stands for the service's short name. Empty for a kind without copies."""
    may_be_absent: ClassVar[bool] = False
    """Whether 404 says that there is no such subject; else it is a failure."""
    mirrors_have_all: ClassVar[bool] = True
    """Whether the 404 of a mirror says so, too: a mirror may leave statements out."""

    def __init__(self, context: ShelfContext) -> None:
        self.items: dict[str, CachedSubject[B]] = {}
        self._reader = context.reader
        self._copies = context.copies
        self._confirmation = context.confirmation
        self._current = context.current
        self._awake = context.awake
        self._limits = context.limits
        self._clock = context.clock
        in_each_child(self.renew_locks)

    # ---- what differs between kinds

    @abstractmethod
    def _belief(self, document: D, known: B | None, subject: str) -> B:
        """The belief about the subject after this document; ``known`` is the belief before it. Raises DocumentRefused
        for a document that contradicts ``known``, or is older."""

    @abstractmethod
    def _find(self, known: B, name: str) -> A | None:
        """What the belief says about the name; None for nothing. Raises RevokedKey for a revoked key."""

    def _version(self, document: D) -> int:
        """The entry that orders the documents about a subject: this host remembers the newest, also over a restart."""
        return document.seq

    def _rests_on(self, known: B) -> int:
        """The entry that proves the belief, so that witnesses vouch for it; 0 where the ledger does not prove it."""
        return known.seq

    def _lists(self, known: B, name: str) -> bool:
        """Whether the belief says anything about the name."""
        return True

    def _complete(self, item: CachedSubject[B], known: B, name: str) -> B:
        """The belief with all that it needs to answer a question with that name. The identical belief where it lacks
        nothing. Raises FetchError, DocumentRefused or TrustUnavailable."""
        return known

    def _document_subject(self, item: CachedSubject[B]) -> str:
        """The subject that the document names."""
        return item.service

    def _fetch(self, item: CachedSubject[B], question: Question[D]) -> Fetched[D] | None:
        """See `DocumentReader.fetch`."""
        return self._reader.fetch(question)

    def _budget(self, item: CachedSubject[B]) -> AbstractContextManager[object]:
        """The context of a fetch on behalf of a question. Entering it raises TrustUnavailable if the fetch would exceed
        a limit."""
        return nullcontext()

    # ---- questions

    def in_memory(self, name: str) -> A | None:
        """The answer, where memory alone can give it now. Raises as `_find`."""
        item = self.items.get(name)
        known = item.known if item is not None and self.is_believed(item) else None  # no lock: `known` is read once
        return None if known is None else self._find(known, name)

    def is_believed(self, item: CachedSubject[B]) -> bool:
        """Whether the belief may be used now: it is not too old, and was confirmed in this period."""
        return self._clock() < item.good_until and self._awake.is_current(item.period)

    def _ask(self, item: CachedSubject[B], name: str) -> A:
        """The answer to a question that memory could not answer. It looks into memory again with the lock held, then
        asks for a confirmation, then fetches once. Raises TrustUnavailable, UnknownKey or RevokedKey."""
        with held_in_time(item.lock, f"the {self.label} of {item.subject}"):
            answer = self._look_up(item, name)  # what another thread has just fetched
            if answer is None and self._confirm_after_break(item):
                answer = self._look_up(item, name)
            if answer is None and self._completed(item, name):
                answer = self._look_up(item, name)
            if answer is None:
                self._fetch_for(item, name)
                answer = self._look_up(item, name)
        if answer is None:
            raise TrustUnavailable(f"the {self.label} of {item.subject}: not confirmed within the offline limit")
        return answer

    def _look_up(self, item: CachedSubject[B], name: str) -> A | None:
        """What memory says about the name; None where a fetch is needed."""
        if item.known is not None and self.is_believed(item):
            found = self._find(item.known, name)
            if found is not None:
                return found
        if item.absent.has(name, self._clock()):
            raise UnknownKey(f"the registry does not know {name}")
        return None

    def _completed(self, item: CachedSubject[B], name: str) -> bool:
        """Complete the belief for that name; return whether it lacked something. Where that fails, the belief may be
        out of date, and the document must be fetched. Raises TrustUnavailable."""
        if item.known is None or not self.is_believed(item):
            return False
        try:
            completed = self._complete(item, item.known, name)
        except (FetchError, DocumentRefused) as error:
            log.info("cannot complete the %s of %s (%s): %s", self.label, item.subject, error.code, error)
            self._await_newer(item, item.known, error)
            return False
        lacked = completed is not item.known
        if lacked:
            self._believe(item, completed, item.period)
        return lacked

    def _lists_completed(self, item: CachedSubject[B], known: B, name: str) -> bool:
        """As `_lists`, after the belief was completed for that name."""
        return self._lists((self._completed(item, name) and item.known) or known, name)

    def _confirm_after_break(self, item: CachedSubject[B]) -> bool:
        """Ask the registry to confirm a copy on disk, or what was known before a break. False where it does not: then
        the document must be fetched."""
        if item.known is None:
            return self._take_copy(item)
        period = self._awake.current()
        if item.awaited_entry or item.period == period:
            return False
        confirmed = self._confirmed(item, item.known)
        if confirmed is not None and item.generation == self._reader.generation:
            self._believe(item, confirmed, period)
        return confirmed is not None

    def _confirmed(self, item: CachedSubject[B], known: B) -> B | None:
        """The belief after the registry confirmed it; None if the registry says that it changed, or if a key that may
        have signed the document was dropped meanwhile."""
        generation = self._reader.generation
        confirmed = self._confirmation.confirmed(known, item.service)
        return confirmed if generation == self._reader.generation else None

    def _fetch_for(self, item: CachedSubject[B], name: str) -> None:
        """Fetch the document once on behalf of a question, outside of a cooldown. Raises TrustUnavailable.

        The cooldown begins before the fetch, and ends if the fetch finds the name. An invented name is never found, so
        invented names cause one fetch in each cooldown.
        """
        now = self._clock()
        if now < item.cooldown_until:
            raise self._fetched_lately(item, item.cooldown_until - now)
        with self._budget(item):
            item.cooldown_until = now + self._limits.cooldown
            try:
                self._load(item, name)
            except (FetchError, DocumentRefused) as error:
                detail = f"the {self.label} of {item.subject}: {error}"
                raise TrustUnavailable(detail, retry_after=int(self._limits.cooldown) + 1) from error
        if item.known is not None and now >= item.good_until:
            return  # too old to say anything about the name
        if item.known is not None and self._lists(item.known, name):
            item.cooldown_until = 0.0
        else:
            item.absent.add(name, now)

    # ---- the background

    def fetch_now(self, item: CachedSubject[B]) -> None:
        """Fetch the document now, without a question, or take the copy that another process of the host has fetched. A
        failure is logged only. From the second failure in a row on, ``retry_at`` sets a growing pause."""
        with item.lock:
            self._renew(item)

    def renew_due(self, *, failing: bool | None = None, ahead: float = 0.0) -> None:
        """Fetch each document that is due, now or within ``ahead`` seconds: it changed, or its last fetch is long ago.

        ``failing`` selects the documents whose last renewal failed (True), the others (False), or all (None). Those
        with the fewest failures come first. Of equals, the one that was fetched longest ago comes first, so that each
        has its turn. Raises no PeersealError.
        """
        due_by = self._clock() + ahead
        due = [item for item in self._all() if self._due_at(item) <= due_by]
        for item in sorted(due, key=lambda item: (item.failures, item.fetched_at)):
            if failing is None or bool(item.failures) is failing:
                with item.lock:
                    if self._due_at(item) <= due_by:  # else another thread has just renewed it
                        self._renew(item)

    def _renew(self, item: CachedSubject[B]) -> None:
        """See `fetch_now`; with ``item.lock`` held."""
        try:
            self._load(item)
            item.failures = 0
        except PeersealError as error:
            log.warning("cannot renew the %s of %s: %s", self.label, item.subject, error)
            item.failures += 1
        pause = backoff(item.failures, first=2.0, longest=self._limits.longest_pause)
        item.retry_at = self._clock() + pause if item.failures > 1 else 0.0

    def due_at(self, *, failing: bool, after: float = -math.inf) -> float:
        """The earliest time later than ``after`` at which a document is due, in seconds since the epoch; infinity where
        none is. ``failing`` selects the documents whose last renewal failed (True), or the others (False)."""
        times = (self._due_at(item) for item in self._all() if bool(item.failures) is failing)
        return min((time for time in times if time > after), default=math.inf)

    def _due_at(self, item: CachedSubject[B]) -> float:
        if item.known is None:
            return math.inf
        wanted = bool(item.awaited_entry) or item.generation != self._reader.generation
        return item.retry_at if wanted else max(item.retry_at, item.renew_at)

    def followed(self) -> list[int]:
        """For each belief from the present ledger: the entry up to which it is true, or up to which lists said what
        its next document must cover."""
        held = [(item, item.known) for item in self._all()]
        return [
            item.told_until[0] if item.awaited_entry else known.covered
            for item, known in held
            if known is not None and self._is_in_ledger(item)
        ]

    def services(self) -> set[str]:
        """The ids of the services about which something is believed."""
        return {item.service for item in self._all() if item.known is not None}

    def confirm(self, changes: Changes, period: int) -> None:
        """Apply a list of changes that was asked for in that period: confirm the beliefs about unchanged subjects, and
        mark the others for a fetch."""
        for item in self._all():
            if item.awaited_entry:
                self._await(item, changes)
            with held_if_free(item.lock) as held:
                if held and self._is_followed(item):  # else the next round asks again
                    self._confirm(item, changes, period)

    def _confirm(self, item: CachedSubject[B], changes: Changes, period: int) -> None:
        known = item.known
        beyond = known is not None and (changes.reset or changes.since > known.covered) and changes.seq >= known.covered
        confirmed = None if known is None else known.confirmed(item.service, changes)
        if confirmed is None and known is not None and beyond:
            confirmed = self._current.confirmed(known, item.service)
            if confirmed is None:  # it changed; the list of its new block says until when the next document is true
                item.awaited_entry, item.told_until = known.covered + 1, (known.covered, 0)
        if confirmed is None or confirmed is known:
            if not item.awaited_entry:
                self._await(item, changes)
            item.retry_at = 0.0  # retry at once: there is something new
        else:
            current = item.generation == self._reader.generation
            self._believe(item, confirmed, max(item.period, period) if current else item.period)

    def _await(self, item: CachedSubject[B], changes: Changes) -> None:
        """Note which entry the next document must cover after that list: the one that changed its service, which all
        clients name in their questions; or all, where the list does not say it."""
        unlisted = changes.seq if changes.reset or changes.since > self._told_until(item) else 0
        entry = changes.last_changes.get(item.service, unlisted)
        item.told_until = max(item.told_until, (changes.seq, changes.issued_at))
        item.awaited_entry = max(item.awaited_entry, entry)

    def _told_until(self, item: CachedSubject[B]) -> int:
        known = item.known
        return item.told_until[0] if item.awaited_entry or known is None else known.covered

    def on_new_ledger(self) -> None:
        """See LedgerCache."""
        for item in self._all():
            item.awaited_entry, item.told_until = 0, (0, 0)
            item.retry_at, item.failures, item.cooldown_until = 0.0, 0, 0.0
            item.absent.clear()

    def endings(self) -> Mapping[str, int]:
        """See LedgerCache. There are no keys in this cache."""
        return {}

    def renew_locks(self) -> None:
        """In a forked child: a lock that another thread held would never be released."""
        for item in self._all():
            item.lock = threading.Lock()

    def _all(self) -> list[CachedSubject[B]]:
        return list(self.items.values())

    def _is_followed(self, item: CachedSubject[B]) -> bool:
        """Whether a list of changes can confirm the belief: the item is on the shelf and awaits no document, and the
        belief is from the present ledger."""
        on_shelf = self.items.get(item.subject) is item
        return on_shelf and not item.awaited_entry and self._is_in_ledger(item)

    def _is_in_ledger(self, item: CachedSubject[B]) -> bool:
        """Whether the belief is from the present ledger, and not from one that the root gave up."""
        return item.known is not None and not self._reader.is_of_lost_ledger(item.generation)

    # ---- documents

    def _new_item(self, subject: str) -> CachedSubject[B]:
        name, absent = split_service_id(subject)[1], AbsentNames(self._limits.max_negative, self._limits.negative_ttl)
        return CachedSubject(subject, subject, self.path.format(name), self.file.format(name), absent)

    def _load(self, item: CachedSubject[B], name: str | None = None) -> None:
        """Fetch the document, with ``item.lock`` held. The copy that another process of the host has fetched meanwhile
        takes the place of a fetch if it lists the ``name``; without a name, if it is not due for renewal.

        Raises FetchError, DocumentRefused or TrustUnavailable.
        """
        with self._copies.locked(item.file):
            copied = self._take_copy(item)
            if name is not None and item.known is not None and self._awake.is_current(item.period):
                if copied and self._lists_completed(item, item.known, name):
                    return
                self._check_not_missed(item)
            elif copied and self._clock() < item.renew_at:
                return
            asked_at = self._clock()
            try:
                self._reader.retrying_on_new_ledger(lambda: self._fetch_complete(item, name))
            finally:
                if name is not None and item.known is not None and not self._lists(item.known, name):
                    self._copies.write_missed(item.file, asked_at)

    def _fetch_complete(self, item: CachedSubject[B], name: str | None) -> None:
        """Fetch the document, and what the belief lacks for that name. Raises as `_load`."""
        for last in (False, True):
            self._fetch_once(item)
            known = item.known
            if name is None or known is None:
                return
            try:
                self._believe(item, self._complete(item, known, name), item.period)
                return
            except DocumentRefused as error:
                if last or not self._await_newer(item, known, error):
                    raise

    def _await_newer(self, item: CachedSubject[B], known: B, error: PeersealError) -> bool:
        """Have the next document cover the change of a part, if the error says that a newer part does not fit: a cache
        on the way kept the document. Returns whether it does."""
        if not isinstance(error, WrongPart) or error.seq <= known.covered:
            return False
        if not item.awaited_entry:
            item.told_until = known.covered, 0
        item.awaited_entry = max(item.awaited_entry, error.seq)
        return True

    def _check_not_missed(self, item: CachedSubject[B]) -> None:
        """Raises TrustUnavailable if a process of the host has looked for a name in that document within the cooldown,
        by a fetch that did not find it. Fetches without a name do not count, since a key may be newer than they are."""
        if 0 <= self._clock() - self._copies.read_missed(item.file) < self._limits.cooldown:
            raise self._fetched_lately(item, self._limits.cooldown)

    def _fetched_lately(self, item: CachedSubject[B], wait: float) -> TrustUnavailable:
        detail = f"the {self.label} of {item.subject}: fetched less than {self._limits.cooldown:g} s ago"
        return TrustUnavailable(detail, retry_after=int(wait) + 1)

    def _take_copy(self, item: CachedSubject[B]) -> bool:
        """Believe the copy on disk if it is newer than the last fetch of this process: from another process, or from
        before a restart. Returns whether it did."""
        doubted = item.known is not None and self._comparable_belief(item) is None
        if doubted or self._copies.fetched_at(item.file) <= item.fetched_at:
            return False
        period, copy = self._awake.current(), self._copies.read(item.file)
        if copy is None:
            return False
        try:
            document, generation = self._read_copy(item, copy.jws)
            known = self._belief(document, self._comparable_belief(item), item.subject)
        except (DocumentRefused, FetchError) as error:
            log.info("the copy %s is passed over (%s): %s", item.file, error.code, error)
            return False
        listed = self._current.confirmed_from_disk(known, item.service)
        confirmed = None if listed is None else self._confirmed(item, listed)
        if confirmed is None:
            return False
        self._store(item, confirmed, generation, period)
        self._schedule_renewal(item, copy.fetched_at)
        return True

    def _read_copy(self, item: CachedSubject[B], jws: str) -> tuple[D, int]:
        """The document in a copy on disk, and the generation in which it was read. Raises DocumentRefused, also if this
        host has seen a newer one; FetchError or TrustUnavailable if it cannot be checked now."""
        subject, covered = self._document_subject(item), item.awaited_entry
        document, generation = self._reader.checked(self.document, jws, subject, at_least=covered, from_disk=True)
        self._check_not_older_than_seen(item, document)
        return document, generation

    def _check_not_older_than_seen(self, item: CachedSubject[B], document: D) -> None:
        """Passes a document that is not older than the newest one that this host has seen, before a restart too. Raises
        DocumentRefused."""
        seen = self._copies.read_seen(item.file) if item.known is None else 0
        if self._version(document) < seen:
            raise DocumentRefused("document_rolled_back", f"entry {self._version(document)}, seen was {seen}")

    def _schedule_renewal(self, item: CachedSubject[B], at: float) -> None:
        """Note that the document was fetched then, and choose the time of its next fetch."""
        early = self._limits.refresh_interval * self._limits.jitter * random()  # noqa: S311
        item.fetched_at, item.renew_at = at, at + self._limits.refresh_interval - early

    def _fetch_once(self, item: CachedSubject[B]) -> None:
        now, period, generation = self._clock(), self._awake.current(), self._reader.generation
        self._schedule_renewal(item, now)
        if not self._is_in_ledger(item):
            item.awaited_entry = 0
        try:
            fetched = self._fetch(item, self._question(item, period))
        except FetchError as error:
            absent = error.http_status == 404 and self.may_be_absent and not self._is_in_ledger(item)
            if not absent or (error.by_mirror and not self.mirrors_have_all):
                raise
            self._forget(item)
            return
        if fetched is None:  # a 304: the document is the newest
            self._confirm_unchanged(item, generation, period)
            return
        self._check_not_older_than_seen(item, fetched.document)
        fetched, current = self._newest(item, fetched, period)
        self._copies.keep(item.file, fetched.jws, self._version(fetched.document), now)
        self._store(item, current, fetched.generation, period, fetched.etag)

    def _confirm_unchanged(self, item: CachedSubject[B], generation: int, period: int) -> None:
        """After a 304, which is not signed: a list is the evidence that the document is true. While changes are
        followed, only the copies on disk need it."""
        self._copies.confirm(item.file, self._clock())
        if item.known is not None:
            needed = self._ends_soon(item) or self._current.is_due_on_disk(item.known)
            listed = self._current.confirmed(item.known, item.service) if needed else None
            self._store(item, listed or item.known, generation, period, item.etag)

    def _newest(self, item: CachedSubject[B], fetched: Fetched[D], period: int) -> tuple[Fetched[D], B]:
        """The document, and the belief from it. If the document changed since, a cache on the way still had the older
        one; and if nothing says now whether it changed, the registry makes one that covers all that was seen: then it
        is fetched again. Raises as `_load`."""
        current, covers = self._current_belief(item, fetched.document)
        if current is not None:
            return fetched, current
        again = self._fetch(item, replace(self._question(item, period), covers=covers, etag=None))
        if again is None:
            raise AssertionError("unreachable: a question without an ETag is answered with a document")
        belief = self._belief(again.document, self._comparable_belief(item), item.subject)
        current = self._made_current(item, belief)
        if current is None:
            raise DocumentRefused("document_stale", f"{item.service} changed after entry {belief.covered}")
        return again, current

    def _current_belief(self, item: CachedSubject[B], document: D) -> tuple[B | None, int]:
        """The belief from the document, true until now; or None, and how many entries another document must cover. A
        part that does not fit a key set may be newer than the set. Raises as `_load`."""
        belief = None
        try:
            belief = self._belief(document, self._comparable_belief(item), item.subject)
            return self._made_current(item, belief), belief.covered + 1
        except DocumentRefused as error:
            if belief is None and not isinstance(error, WrongPart):
                raise
            return None, self._reader.seen()

    def _made_current(self, item: CachedSubject[B], belief: B) -> B | None:
        """The belief from a document that was fetched just now, true until now as far as this process knows; None if it
        changed since. A registry signs documents seldom, so another document has to say that it is still true."""
        listed: B | None = belief
        if self._clock() - belief.confirmed_at > YOUNG:
            listed = self._current.confirmed(belief, item.service)
        if listed is None:
            return None
        try:
            return self._confirmation.caught_up(listed, item.service)
        except DocumentRefused:  # the changes do not reach back to it: the newest list is all that a mirror has
            listed = self._current.confirmed(belief, item.service)
            if listed is not None and (listed is belief or self._clock() - listed.confirmed_at > LISTED_FOR):
                raise
            return listed

    def _question(self, item: CachedSubject[B], period: int) -> Question[D]:
        unconfirmed = item.period != period  # a 304 is not signed: after a break ask for the whole document
        wanted = self._ends_soon(item) or self._copies.wants_copy(item.file)
        whole = item.awaited_entry or self._comparable_belief(item) is None or unconfirmed or wanted
        subject, etag = self._document_subject(item), None if whole else item.etag
        return Question(self.document, item.path, subject, item.awaited_entry, etag)

    def _comparable_belief(self, item: CachedSubject[B]) -> B | None:
        """The belief with which a new document is compared. None where the reader's generation has risen since: then a
        dropped key may have signed the old document, or it is from a lost ledger."""
        return item.known if item.generation == self._reader.generation else None

    def _ends_soon(self, item: CachedSubject[B]) -> bool:
        """Whether a new document is needed, and a 304 is not enough: the belief is too old, or its document expires
        within the offline limit. Such a document would not last through an outage as long as the limit."""
        now, known = self._clock(), item.known
        return known is None or now >= item.good_until or now + self._limits.offline_limit >= known.expires_at

    def _store(self, item: CachedSubject[B], known: B, generation: int, period: int, etag: str | None = None) -> None:
        self._believe(item, known, period)
        item.generation, item.etag = generation, etag  # last: look-ups take no lock

    def _believe(self, item: CachedSubject[B], known: B, period: int) -> None:
        """Make ``known`` the belief, confirmed in that period. The caller holds ``item.lock``.

        An item may be removed from the shelf before its lock is taken. If the shelf has another item for the subject by
        then, it raises TrustUnavailable: lists of changes do not reach the removed one.
        """
        if self.items.setdefault(item.subject, item) is not item:
            raise TrustUnavailable(f"another thread asks for the {self.label} of {item.subject}", retry_after=1)
        if item.awaited_entry and known.covered >= item.awaited_entry:
            known = known.true_until(*item.told_until)
            item.awaited_entry = 0
        self._update_lookup(item, known)
        item.known = known
        witnessed_until = self._reader.witnessed.believed_until(self._rests_on(known))
        ends = known.confirmed_at + self._limits.offline_limit, float(known.expires_at), witnessed_until
        item.good_until = min(ends)  # in one step: look-ups take no lock
        item.period = period

    def _update_lookup(self, item: CachedSubject[B], known: B | None) -> None:
        """Update look-up tables; called before ``known`` replaces ``item.known``."""

    def _forget(self, item: CachedSubject[B]) -> None:
        """Drop the belief: the subject is not in the ledger, or its registration was lost with ledger entries, or it
        changed and is fetched again only for the next question (a statement)."""
        self._update_lookup(item, None)
        item.known, item.good_until, item.etag = None, 0.0, None
