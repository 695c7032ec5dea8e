"""What the registry lets call a service: a pure belief, and the shelf on which the trust store keeps it.

A policy is as fresh as keys are, by signed times only: good for the offline limit after it was signed, or after a list
of changes that does not name its service. A fetch that fails takes nothing away. With nothing to believe there is no
answer: a policy that cannot be had may be one that denies.
"""

import logging
import math
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from peerseal.errors import DocumentRefused, FetchError, PeersealError, TrustUnavailable
from peerseal.peers.limits import TrustLimits
from peerseal.peers.patience import acquired_in_time
from peerseal.peers.trusted import Dated
from peerseal.protocol.documents import Changes, PolicyDocument
from peerseal.protocol.policies import CallPolicy

if TYPE_CHECKING:
    from peerseal.peers.reader import Recalled

log = logging.getLogger("peerseal.trust")

RecallPolicy = Callable[[str, float, int], "Recalled[PolicyDocument] | None"]
"""The document about the service with that id from a copy that was fetched after a time and covers so many entries, if
there is one."""

FetchPolicy = Callable[[str, bool], PolicyDocument]
"""Fetches the document about the service with that id, checked; with True in the own service's name, which a restricted
policy needs. Raises FetchError, DocumentRefused or TrustUnavailable."""


@dataclass(frozen=True, slots=True)
class KnownPolicy(Dated):
    """What is believed of who may call one service, and the times of `Dated`."""

    policy: CallPolicy | None
    seq: int
    covered: int
    confirmed_at: int
    expires_at: int

    @classmethod
    def of(cls, document: PolicyDocument) -> Self:
        """From the first document about the service."""
        return cls(document.policy, document.seq, document.head, document.issued_at, document.expires_at)

    def updated(self, document: PolicyDocument) -> Self:
        """After another document. Raises DocumentRefused for one that lies behind what was seen before."""
        self.check_not_behind(document)
        return self.followed_by(type(self).of(document))


@dataclass(slots=True)
class HeldPolicy:
    """What the shelf holds for one service: ``policy`` is believed until ``good_until``. ``lock`` is held by the one
    thread that fetches; the other members are those of the trust store's slots."""

    service_id: str
    policy: CallPolicy | None = None
    good_until: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)
    known: KnownPolicy | None = None
    drops: int = 0
    fetched_at: float = 0.0
    cooldown_until: float = 0.0
    pending: int = 0
    failures: int = 0
    retry_at: float = 0.0

    @property
    def restricted(self) -> bool:
        """Whether the policy that is held is told in the own service's name only."""
        return self.policy is not None and self.policy.restricted


class PolicyShelf:
    """The policies of the services that verifiers of this process stand for: mostly one. ``locked`` keeps the other
    processes of the host from fetching the same.

    ``drops`` tells how often the root dropped a signing key, which may have signed what is held; ``may_sign`` whether
    restricted policies can be asked for.
    """

    def __init__(
        self,
        fetch: FetchPolicy,
        recall: RecallPolicy,
        locked: Callable[[str], AbstractContextManager[object]],
        *,
        limits: TrustLimits,
        clock: Callable[[], float],
        drops: Callable[[], int],
        may_sign: Callable[[], bool],
    ) -> None:
        self.held: dict[str, HeldPolicy] = {}
        self._fetch = fetch
        self._recall = recall
        self._locked = locked
        self._limits = limits
        self._clock = clock
        self._drops = drops
        self._may_sign = may_sign

    def ask(self, service_id: str) -> CallPolicy | None:
        """The service's policy, fetched where what is held is not to be believed any more. One thread fetches, once a
        cooldown at most, while the others wait. Raises TrustUnavailable."""
        held = self.held.setdefault(service_id, HeldPolicy(service_id))
        if not acquired_in_time(held.lock):
            raise TrustUnavailable(f"the policy of {service_id} is being fetched", retry_after=1)
        try:
            now = self._clock()
            if now < held.good_until:
                return held.policy
            if now < held.cooldown_until:
                raise TrustUnavailable("fetched a moment ago", retry_after=int(held.cooldown_until - now) + 1)
            held.cooldown_until = now + self._limits.cooldown
            try:
                self._renew(held)
            except (FetchError, DocumentRefused) as error:
                detail = f"the policy of {service_id}: {error}"
                raise TrustUnavailable(detail, retry_after=int(self._limits.cooldown) + 1) from error
            held.cooldown_until = 0.0
            if now >= held.good_until:
                raise TrustUnavailable(f"nothing confirmed the policy of {service_id} within the offline limit")
            return held.policy
        finally:
            held.lock.release()

    # ---- the background

    def followed(self) -> list[int]:
        """Up to which entries what is held is known to be the truth; without what is to be fetched anyway."""
        return [held.known.covered for held in list(self.held.values()) if held.known is not None and not held.pending]

    def confirm(self, changes: Changes) -> None:
        """Takes note of what did not change, and marks what did."""
        for held in list(self.held.values()):
            if held.known is None or held.pending or not held.lock.acquire(blocking=False):
                continue  # somebody fetches it this moment; the next round asks again
            try:
                confirmed = held.known.confirmed(held.service_id, changes)
                if confirmed is None:
                    held.pending, held.retry_at = changes.seq, 0.0
                else:
                    self._believe(held, confirmed)
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
                    log.warning("cannot renew the policy of %s: %s", held.service_id, error)
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

    def _due_at(self, held: HeldPolicy) -> float:
        if held.known is None:
            return math.inf
        wanted = bool(held.pending) or held.drops != self._drops()
        return held.retry_at if wanted else max(held.retry_at, held.fetched_at + self._limits.refresh_interval)

    def _renew(self, held: HeldPolicy) -> None:
        """Fetches the document, with ``held.lock`` held. Raises FetchError, DocumentRefused or TrustUnavailable."""
        drops = self._drops()
        with self._locked(held.service_id):
            now = self._clock()
            recalled = None if held.known and held.drops != drops else self._recalled(held, now)
            held.fetched_at = now if recalled is None else recalled.fetched_at
            document = self._document(held) if recalled is None else recalled.document
        if document.head < held.pending:
            raise DocumentRefused("document_rolled_back", f"covers {document.head} entries of {held.pending}")
        doubted = held.known is None or held.drops != drops  # by a key that was stolen, perhaps: it is no measure
        known = KnownPolicy.of(document) if held.known is None or doubted else held.known.updated(document)
        held.drops, held.pending = drops, 0
        self._believe(held, known)

    def _recalled(self, held: HeldPolicy, now: float) -> "Recalled[PolicyDocument] | None":
        """What another process of the host has fetched lately, or, where nothing is held, one before a restart."""
        recalled = self._recall(held.service_id, held.fetched_at, held.pending)
        lately = now - self._limits.refresh_interval
        return recalled if recalled and (held.known is None or recalled.fetched_at > lately) else None

    def _document(self, held: HeldPolicy) -> PolicyDocument:
        """Most policies are told to everybody, and come from caches; a restricted one is asked for by who may."""
        if held.restricted and self._may_sign():
            return self._fetch(held.service_id, True)
        try:
            return self._fetch(held.service_id, False)
        except FetchError as error:
            if error.http_status != 401 or not self._may_sign():
                raise
        return self._fetch(held.service_id, True)

    def _believe(self, held: HeldPolicy, known: KnownPolicy) -> None:
        held.known = known
        if known.policy != held.policy:  # else the verifier would put together again what it has
            held.policy = known.policy
        held.good_until = min(known.confirmed_at + self._limits.offline_limit, float(known.expires_at))
