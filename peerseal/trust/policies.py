"""What operators laid down, as one process believes it: a pure belief, and the trust store's shelves for it.

One shelf has policies, by the service that is called, and one the domain's settings. A setting is as fresh as keys are,
by signed times only: good for the offline limit after it was signed, or after a list of changes that does not name its
subject. A fetch that fails takes nothing away. With nothing to believe there is no answer: a policy that cannot be had
may be one that denies.
"""

import logging
import math
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from peerseal.errors import DocumentRefused, FetchError, PeersealError, TrustUnavailable
from peerseal.protocol.documents.changes import Changes
from peerseal.protocol.documents.domain import DomainDocument
from peerseal.protocol.documents.policy import PolicyDocument
from peerseal.runtime.limits import TrustLimits
from peerseal.transport.deadline import acquired_in_time
from peerseal.trust.awake import NEVER, AwakePeriods
from peerseal.trust.beliefs import Dated
from peerseal.trust.confirmation import Confirmation

if TYPE_CHECKING:
    from peerseal.trust.documents import CachedDocument, DocumentReader

log = logging.getLogger("peerseal.trust")

V = TypeVar("V")
S = TypeVar("S", bound=PolicyDocument | DomainDocument)

RecallSetting = Callable[[str, float, int], "CachedDocument[S] | None"]
"""The document about that subject (a service id) from a copy that was fetched after a time and covers so many entries,
if there is one."""


@dataclass(frozen=True, slots=True)
class KnownSetting(Dated, Generic[V]):
    """What is believed that operators laid down for one subject, and the times of `Dated`."""

    value: V
    seq: int
    covered: int
    confirmed_at: int
    expires_at: int

    @classmethod
    def of(cls, document: PolicyDocument | DomainDocument, value: V) -> "KnownSetting[V]":
        """From the first document about the subject, which says ``value``."""
        return cls(value, document.seq, document.head, document.issued_at, document.expires_at)

    def updated(self, document: PolicyDocument | DomainDocument, value: V) -> "KnownSetting[V]":
        """After another document. Raises DocumentRefused for one that lies behind what was seen before."""
        self.check_not_behind(document)
        return self.followed_by(type(self).of(document, value))


@dataclass(slots=True)
class Held(Generic[V]):
    """What a shelf holds for one subject: ``value`` is believed until ``good_until``, and None before the first answer.
    ``lock`` is held by the one thread that fetches; the other members are those of the trust store's slots."""

    subject: str
    value: V | None = None
    good_until: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)
    known: KnownSetting[V] | None = None
    drops: int = 0
    fetched_at: float = 0.0
    cooldown_until: float = 0.0
    pending: int = 0
    failures: int = 0
    retry_at: float = 0.0
    period: int = NEVER


class SettingShelf(Generic[S, V]):
    """The settings of one kind, such as the policies of the services that verifiers of this process stand for: mostly
    one.

    ``fetch`` fetches the document about a subject, checked, and is told what is held: it raises FetchError,
    DocumentRefused or TrustUnavailable. ``value`` is what a document says. ``locked`` keeps the other processes of the
    host from fetching the same. ``reader`` tells how often the root dropped a signing key, which may have signed what
    is held, and whether that is of a history which the root gave up.
    """

    def __init__(
        self,
        what: str,
        fetch: Callable[[str, V | None], S],
        value: Callable[[S], V],
        recall: "RecallSetting[S]",
        locked: Callable[[str], AbstractContextManager[object]],
        confirmation: Confirmation,
        awake: AwakePeriods,
        *,
        limits: TrustLimits,
        clock: Callable[[], float],
        reader: "DocumentReader",
    ) -> None:
        self.held: dict[str, Held[V]] = {}
        self._what = what
        self._fetch = fetch
        self._value = value
        self._recall = recall
        self._locked = locked
        self._confirmation = confirmation
        self._awake = awake
        self._limits = limits
        self._clock = clock
        self._reader = reader

    def ask(self, subject: str) -> V:
        """The setting about that subject, fetched where what is held is not to be believed any more. One thread
        fetches, once a cooldown at most, while the others wait. Raises TrustUnavailable."""
        held = self.held.setdefault(subject, Held(subject))
        if not acquired_in_time(held.lock):
            raise TrustUnavailable(f"the {self._what} of {subject} is being fetched", retry_after=1)
        try:
            now = self._clock()
            if now < held.good_until and self._confirmed_from_before(held):
                return cast(V, held.value)
            if now < held.cooldown_until:
                raise TrustUnavailable("fetched a moment ago", retry_after=int(held.cooldown_until - now) + 1)
            held.cooldown_until = now + self._limits.cooldown
            try:
                self._renew(held)
            except (FetchError, DocumentRefused) as error:
                detail = f"the {self._what} of {subject}: {error}"
                raise TrustUnavailable(detail, retry_after=int(self._limits.cooldown) + 1) from error
            held.cooldown_until = 0.0
            if now >= held.good_until or not self._awake.lasts(held.period):
                raise TrustUnavailable(f"nothing confirmed the {self._what} of {subject} within the offline limit")
            return cast(V, held.value)
        finally:
            held.lock.release()

    # ---- the background

    def followed(self) -> list[int]:
        """Up to which entries what is held is known to be the truth; without what is to be fetched anyway."""
        known = [
            held for held in list(self.held.values()) if not held.pending and not self._reader.is_given_up(held.drops)
        ]
        return [held.known.covered for held in known if held.known is not None]

    def begin_anew(self) -> None:
        """See HistoryFollower."""
        for held in list(self.held.values()):
            held.pending, held.retry_at, held.failures, held.cooldown_until = 0, 0.0, 0, 0.0

    def endings(self) -> Mapping[str, int]:
        """See HistoryFollower: no keys are here."""
        return {}

    def confirm(self, changes: Changes, period: int) -> None:
        """Takes note of what did not change, and marks what did, by a list that was asked for in that period."""
        for held in list(self.held.values()):
            if held.known is None or held.pending or self._reader.is_given_up(held.drops):
                continue
            if not held.lock.acquire(blocking=False):
                continue  # somebody fetches it this moment; the next round asks again
            try:
                confirmed = held.known.confirmed(held.subject, changes)
                if confirmed is None:
                    held.pending, held.retry_at = changes.seq, 0.0
                else:
                    sound = held.drops == self._reader.drops
                    self._believe(held, confirmed, max(held.period, period) if sound else held.period)
            finally:
                held.lock.release()

    def renew_due(self) -> None:
        """Fetches what changed, or was not fetched for long; after the second failure in a row, with growing pauses.
        Raises nothing of PeersealError."""
        for held in list(self.held.values()):
            if self._due_at(held) > self._clock():
                continue
            with held.lock:
                try:
                    self._renew(held)
                    held.failures = 0
                except PeersealError as error:
                    log.warning("cannot renew the %s of %s: %s", self._what, held.subject, error)
                    held.failures += 1
            pause = min(2.0 ** min(held.failures, 16), self._limits.longest_pause)
            held.retry_at = self._clock() + pause if held.failures > 1 else 0.0

    def renew_locks(self) -> None:
        """In a forked child: a lock that another thread held would never be released."""
        for held in list(self.held.values()):
            held.lock = threading.Lock()

    def due_at(self) -> float:
        """When the next one is to be fetched again."""
        return min((self._due_at(held) for held in list(self.held.values())), default=math.inf)

    def _due_at(self, held: Held[V]) -> float:
        if held.known is None:
            return math.inf
        wanted = bool(held.pending) or held.drops != self._reader.drops
        return held.retry_at if wanted else max(held.retry_at, held.fetched_at + self._limits.refresh_interval)

    def _renew(self, held: Held[V]) -> None:
        """Fetches the document, with ``held.lock`` held. Raises FetchError, DocumentRefused or TrustUnavailable."""
        drops, period = self._reader.drops, self._awake.current()
        with self._locked(held.subject):
            known = self._copied(held, drops) or self._fetched(held, drops)
        held.drops, held.pending = drops, 0
        self._believe(held, known, period)

    def _copied(self, held: Held[V], drops: int) -> KnownSetting[V] | None:
        """What another process of the host has fetched lately, or, where nothing is held, one before a restart, if the
        registry confirms it."""
        if held.known is not None and held.drops != drops:
            return None
        recalled = self._recall(held.subject, held.fetched_at, held.pending)
        lately = self._clock() - self._limits.refresh_interval
        if recalled is None or (held.known is not None and recalled.fetched_at <= lately):
            return None
        confirmed = self._confirmed(held, self._updated(held, recalled.document))
        if confirmed is not None:
            held.fetched_at = recalled.fetched_at
        return confirmed

    def _fetched(self, held: Held[V], drops: int) -> KnownSetting[V]:
        held.fetched_at = self._clock()
        if self._reader.is_given_up(held.drops):
            held.pending = 0
        document = self._fetch(held.subject, held.value)
        if document.head < held.pending:
            raise DocumentRefused("document_rolled_back", f"covers {document.head} entries of {held.pending}")
        if held.drops != drops:  # by a key that was stolen, perhaps: what is held is no measure
            return KnownSetting.of(document, self._value(document))
        return self._updated(held, document)

    def _updated(self, held: Held[V], document: S) -> KnownSetting[V]:
        value = self._value(document)
        return KnownSetting.of(document, value) if held.known is None else held.known.updated(document, value)

    def _confirmed_from_before(self, held: Held[V]) -> bool:
        """Whether the registry confirmed what is held in this period; where it was not asked yet, it is."""
        period = self._awake.current()
        if held.period == period or held.known is None:
            return held.known is not None
        confirmed = None if held.pending or held.drops != self._reader.drops else self._confirmed(held, held.known)
        if confirmed is not None:
            self._believe(held, confirmed, period)
        return confirmed is not None

    def _confirmed(self, held: Held[V], known: KnownSetting[V]) -> KnownSetting[V] | None:
        """What the registry leaves of a belief from before; None where it says that it changed."""
        drops = self._reader.drops
        confirmed = self._confirmation.confirmed(known, held.subject)
        return confirmed if drops == self._reader.drops else None  # else a key that was dropped may have signed it

    def _believe(self, held: Held[V], known: KnownSetting[V], period: int) -> None:
        held.known = known
        if known.value != held.value:  # else a verifier would put together again what it has
            held.value = known.value
        held.good_until = min(known.confirmed_at + self._limits.offline_limit, float(known.expires_at))
        held.period = period
