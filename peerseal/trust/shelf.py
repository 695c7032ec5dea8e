"""What this process believes about many subjects, each from one signed document: fetched, cached, confirmed, renewed.

A shelf holds the documents of one kind, such as the key sets of services; what differs between kinds is in `shelves`.
One thread fetches a document while the other threads that need it wait, and then there is a cooldown. A fetch that
fails takes nothing away: a document is believed for `TrustLimits.offline_limit` after its last signed confirmation, or
until it expires. A document that another process of the host has fetched lately is taken from its copy on disk.
"""

import logging
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
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
from peerseal.trust.disk.document_cache import CopyFolder
from peerseal.trust.documents import D, DocumentReader, Fetched, Question, check_age

log = logging.getLogger("peerseal.trust")

B = TypeVar("B", bound=Dated)
"""What is believed of one subject."""
A = TypeVar("A")
"""What the shelf answers."""


@dataclass(frozen=True, slots=True)
class ShelfParts:
    """What all shelves of a trust store use."""

    reader: DocumentReader
    copies: CopyFolder
    confirmation: Confirmation
    awake: AwakePeriods
    limits: TrustLimits
    clock: Callable[[], float]


@dataclass(slots=True)
class CachedSubject(Generic[B]):
    """What a shelf holds about one subject: a service by its id, or a key by its kid. Lists of changes name the
    ``service``. The document is at ``path``, its copy on disk in ``file``. ``lock`` is held by the one thread that
    fetches. ``known`` is believed until ``good_until``, in its ``period``. ``failures`` counts the renewals that failed
    in a row; ``retry_at`` is when the next is due. The other numbers::

        period         of `AwakePeriods`, in which the registry confirmed ``known``; rises after each break
        generation     of the reader, when it read the document; rises when the root drops a key that may have signed it
        awaited_entry  the ledger entry that the next document must cover; 0 where none is awaited
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
    failures: int = 0
    retry_at: float = 0.0


class Shelf(ABC, Generic[D, B, A]):
    """The documents of one kind, by subject. A question names what is looked for in the document (``name``): a key by
    its kid, or the subject itself. Safe to use from threads."""

    document: type[D]
    """The kind of document."""
    label: ClassVar[str]
    """What a document holds, in messages."""
    path: ClassVar[str]
    """Of the document, below the registry's URL; ``{}`` stands for the subject's short name."""
    file: ClassVar[str] = ""
    """The name of its copy on disk, with the same ``{}``."""
    may_be_absent: ClassVar[bool] = False
    """Whether 404 says that there is no such subject; else it is a failure."""

    def __init__(self, parts: ShelfParts) -> None:
        self.items: dict[str, CachedSubject[B]] = {}
        self._reader = parts.reader
        self._copies = parts.copies
        self._confirmation = parts.confirmation
        self._awake = parts.awake
        self._limits = parts.limits
        self._clock = parts.clock
        in_each_child(self.renew_locks)

    # ---- what differs between kinds

    @abstractmethod
    def _belief(self, document: D, known: B | None, subject: str) -> B:
        """What is believed of the subject after the document, where ``known`` was believed before. Raises
        DocumentRefused for a document that contradicts that, or is older."""

    @abstractmethod
    def _find(self, known: B, name: str) -> A | None:
        """What the belief says about the name; None for nothing. Raises RevokedKey for a revoked key."""

    def _lists(self, known: B, name: str) -> bool:
        """Whether the belief says anything about the name."""
        return True

    def _document_subject(self, item: CachedSubject[B]) -> str:
        """The subject that the document names."""
        return item.service

    def _fetch(self, item: CachedSubject[B], question: Question[D]) -> Fetched[D] | None:
        """See `DocumentReader.fetch`."""
        return self._reader.fetch(question)

    def _budget(self, item: CachedSubject[B]) -> AbstractContextManager[object]:
        """Entered for a fetch on behalf of a question. Raises TrustUnavailable where it is not allowed now."""
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
        """The answer, which memory did not have: looked for again, and fetched once where that may help. Raises
        TrustUnavailable, UnknownKey or RevokedKey."""
        with held_in_time(item.lock, f"the {self.label} of {item.subject}"):
            answer = self._look_up(item, name)  # what another thread has just fetched
            if answer is None and self._confirm_after_break(item):
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
        """One fetch on behalf of a question, its cooldown started before it. Raises TrustUnavailable.

        A fetch that finds the name ends the cooldown. Invented names cannot use this: only existing names end it.
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
        """Fetch the document, asked for or not; after the second failure in a row, with growing pauses between the
        attempts. A failure is logged only."""
        with item.lock:
            try:
                self._load(item)
                item.failures = 0
            except PeersealError as error:
                log.warning("cannot renew the %s of %s: %s", self.label, item.subject, error)
                item.failures += 1
        pause = backoff(item.failures, first=2.0, longest=self._limits.longest_pause)
        item.retry_at = self._clock() + pause if item.failures > 1 else 0.0

    def renew_due(self, *, failing: bool | None = None, ahead: float = 0.0) -> None:
        """Fetch each document that changed, or was not fetched for long, or is due within ``ahead`` seconds.

        ``failing`` is True for those whose last renewal failed, False for the others, None for all. Those that failed
        come last, and of the others first what was fetched longest ago: none starves. Raises no PeersealError.
        """
        due = [item for item in self._all() if self._due_at(item) <= self._clock() + ahead]
        for item in sorted(due, key=lambda item: (item.failures, item.fetched_at)):
            if failing is None or bool(item.failures) is failing:
                self.fetch_now(item)

    def due_at(self, *, failing: bool, after: float = -math.inf) -> float:
        """The first time ``after`` that one at which a document is to be fetched again, in seconds since the epoch: of
        those whose last renewal failed, or of the others."""
        times = (self._due_at(item) for item in self._all() if bool(item.failures) is failing)
        return min((time for time in times if time > after), default=math.inf)

    def _due_at(self, item: CachedSubject[B]) -> float:
        if item.known is None:
            return math.inf
        wanted = bool(item.awaited_entry) or item.generation != self._reader.generation
        return item.retry_at if wanted else max(item.retry_at, item.renew_at)

    def followed(self) -> list[int]:
        """For each belief from the present ledger: the entry up to which it is true, or which its next document must
        cover."""
        held = [(item, item.known) for item in self._all()]
        return [
            item.awaited_entry or known.covered
            for item, known in held
            if known is not None and self._is_in_ledger(item)
        ]

    def confirm(self, changes: Changes, period: int) -> None:
        """Take note of what did not change, and mark what did, by a list that was asked for in that period."""
        for item in self._all():
            if item.awaited_entry:  # all of the list is known now, and the document must cover it too
                item.awaited_entry = max(item.awaited_entry, changes.seq)
            with held_if_free(item.lock) as held:
                if held and self._is_followed(item):  # else the next round asks again
                    self._confirm(item, changes, period)

    def _confirm(self, item: CachedSubject[B], changes: Changes, period: int) -> None:
        confirmed = item.known.confirmed(item.service, changes) if item.known is not None else None
        if confirmed is None:
            item.awaited_entry, item.retry_at = changes.seq, 0.0  # retry at once: there is something new
        else:
            current = item.generation == self._reader.generation
            self._believe(item, confirmed, max(item.period, period) if current else item.period)

    def on_new_ledger(self) -> None:
        """See LedgerCache."""
        for item in self._all():
            item.awaited_entry, item.retry_at, item.failures, item.cooldown_until = 0, 0.0, 0, 0.0
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
        """Whether lists of changes can confirm it: nothing is to be fetched for it anyway."""
        kept = self.items.get(item.subject) is item
        return kept and not item.awaited_entry and self._is_in_ledger(item)

    def _is_in_ledger(self, item: CachedSubject[B]) -> bool:
        """Whether the belief is from the present ledger, and not from one that the root gave up."""
        return item.known is not None and not self._reader.is_of_lost_ledger(item.generation)

    # ---- documents

    def _new_item(self, subject: str) -> CachedSubject[B]:
        name, absent = split_service_id(subject)[1], AbsentNames(self._limits.max_negative, self._limits.negative_ttl)
        return CachedSubject(subject, subject, self.path.format(name), self.file.format(name), absent)

    def _load(self, item: CachedSubject[B], name: str | None = None) -> None:
        """Fetch the document, with ``item.lock`` held; or take what another process of the host has fetched meanwhile,
        where that is young enough, and lists the ``name`` that is looked for.

        Raises FetchError, DocumentRefused or TrustUnavailable.
        """
        with self._copies.locked(item.file):
            copied = self._take_copy(item)
            if name is not None and item.known is not None and self._awake.is_current(item.period):
                if copied and self._lists(item.known, name):
                    return
                self._check_not_missed(item)
            elif copied and self._clock() < item.renew_at:
                return
            asked_at = self._clock()
            try:
                self._reader.retrying_on_new_ledger(lambda: self._fetch_once(item))
            finally:
                if name is not None and item.known is not None and not self._lists(item.known, name):
                    self._copies.write_missed(item.file, asked_at)

    def _check_not_missed(self, item: CachedSubject[B]) -> None:
        """Passes where no process of the host has asked the registry in vain for a name in that document within the
        cooldown. Renewals do not count: a key that was registered since is looked for. Raises TrustUnavailable."""
        if 0 <= self._clock() - self._copies.read_missed(item.file) < self._limits.cooldown:
            raise self._fetched_lately(item, self._limits.cooldown)

    def _fetched_lately(self, item: CachedSubject[B], wait: float) -> TrustUnavailable:
        detail = f"the {self.label} of {item.subject}: fetched less than {self._limits.cooldown:g} s ago"
        return TrustUnavailable(detail, retry_after=int(wait) + 1)

    def _take_copy(self, item: CachedSubject[B]) -> bool:
        """Believe a copy that another process has fetched since, or one from before a restart. False without one."""
        doubted = item.known is not None and self._undoubted(item) is None
        if doubted or self._copies.fetched_at(item.file) <= item.fetched_at:
            return False
        period, copy = self._awake.current(), self._copies.read(item.file)
        if copy is None:
            return False
        try:
            document, generation = self._read_copy(item, copy.jws)
            known = self._belief(document, self._undoubted(item), item.subject)
        except (DocumentRefused, FetchError) as error:
            log.info("the copy %s is passed over (%s): %s", item.file, error.code, error)
            return False
        confirmed = self._confirmed(item, known)
        if confirmed is None:
            return False
        self._store(item, confirmed, generation, period)
        self._note_fetch(item, copy.fetched_at)
        return True

    def _read_copy(self, item: CachedSubject[B], jws: str) -> tuple[D, int]:
        """The document in a copy on disk, and the generation in which it was read. Raises DocumentRefused, also for
        one that is older than what this host has seen, or was signed before the offline limit."""
        subject, covered = self._document_subject(item), item.awaited_entry
        document, generation = self._reader.checked(self.document, jws, subject, at_least=covered, from_disk=True)
        seen = self._copies.read_seen(item.file)
        if document.seq < seen:
            raise DocumentRefused("document_rolled_back", f"seq {document.seq}, seen was {seen}")
        check_age(document, self._limits.offline_limit, self._clock())
        return document, generation

    def _note_fetch(self, item: CachedSubject[B], at: float) -> None:
        early = self._limits.refresh_interval * self._limits.jitter * random()  # noqa: S311
        item.fetched_at, item.renew_at = at, at + self._limits.refresh_interval - early

    def _fetch_once(self, item: CachedSubject[B]) -> None:
        now, period, generation, beliefs = self._clock(), self._awake.current(), self._reader.generation, list[B]()
        self._note_fetch(item, now)
        if not self._is_in_ledger(item):
            item.awaited_entry = 0
        try:
            fetched = self._fetch(item, self._question(item, period, beliefs))
        except DocumentRefused:
            if not beliefs:
                raise
            self._store(item, beliefs[0], generation, period)  # all were too old, but the changes may confirm the first
        except FetchError as error:
            if error.http_status != 404 or not self.may_be_absent or self._is_in_ledger(item):
                raise
            self._forget(item)
        else:
            if fetched is not None:
                self._copies.keep(item.file, fetched.jws, fetched.document.seq, now)
                self._store(item, beliefs[-1], fetched.generation, period, fetched.etag)
            elif item.known is not None:
                self._copies.confirm(item.file, now)  # a 304: the document is the newest
                self._store(item, item.known, generation, period, item.etag)

    def _question(self, item: CachedSubject[B], period: int, beliefs: list[B]) -> Question[D]:
        """For the document; each that passes all checks but the one of its age is added to ``beliefs``."""
        unconfirmed = item.period != period  # a 304 is not signed: after a break ask for the whole document
        wanted = self._ends_soon(item) or self._copies.wants_copy(item.file)
        whole = item.awaited_entry or self._undoubted(item) is None or unconfirmed or wanted

        def check(document: D) -> None:
            beliefs.append(self._belief(document, self._undoubted(item), item.subject))
            check_age(document, self._limits.offline_limit, self._clock())

        subject, etag = self._document_subject(item), None if whole else item.etag
        return Question(self.document, item.path, subject, item.awaited_entry, etag, check=check)

    def _undoubted(self, item: CachedSubject[B]) -> B | None:
        """What is known, for a comparison; None where a key that was dropped since may have signed it."""
        return item.known if item.generation == self._reader.generation else None

    def _ends_soon(self, item: CachedSubject[B]) -> bool:
        """Whether a 304 is not enough: the document that is held is too old, or expires within the offline limit, and
        could not outlast an outage of the registry."""
        now, known = self._clock(), item.known
        return known is None or now >= item.good_until or now + self._limits.offline_limit >= known.expires_at

    def _store(self, item: CachedSubject[B], known: B, generation: int, period: int, etag: str | None = None) -> None:
        self._believe(item, known, period)
        item.generation, item.etag = generation, etag  # last: look-ups take no lock

    def _believe(self, item: CachedSubject[B], known: B, period: int) -> None:
        """Take over what is known now, confirmed in that period, with ``item.lock`` held.

        Raises TrustUnavailable for an item that was removed before its lock was taken, where there is another one by
        now: lists of changes do not reach the old one.
        """
        if self.items.setdefault(item.subject, item) is not item:
            raise TrustUnavailable(f"another thread asks for the {self.label} of {item.subject}", retry_after=1)
        self._update_lookup(item, known)
        item.known = known
        if known.covered >= item.awaited_entry:
            item.awaited_entry = 0
        item.good_until = min(known.confirmed_at + self._limits.offline_limit, float(known.expires_at))
        item.period = period

    def _update_lookup(self, item: CachedSubject[B], known: B | None) -> None:
        """Update look-up tables; called before ``known`` replaces ``item.known``."""

    def _forget(self, item: CachedSubject[B]) -> None:
        """The subject is not in the ledger, or not any more: its registration is among what was lost."""
        self._update_lookup(item, None)
        item.known, item.good_until, item.etag = None, 0.0, None
