"""The key sets of services, as one process believes them: the shelf on which the trust store keeps them.

A kid that is not there costs one fetch, made by one thread while the others of the same service wait, and then none for
a cooldown. A fetch that fails takes nothing away; what ends belief in a document is its own signed time
(`TrustLimits.offline_limit`) and nothing else. What another process of the host has fetched lately is taken from its
copy on disk.
"""

import logging
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import random

from peerseal.errors import DocumentRefused, FetchError, PeersealError, RevokedKey, TrustUnavailable, UnknownKey
from peerseal.protocol.documents.changes import Changes
from peerseal.protocol.documents.key_set import JwkSetDocument
from peerseal.protocol.names import split_kid, split_service_id
from peerseal.runtime.limits import TrustLimits
from peerseal.transport.deadline import acquired_in_time
from peerseal.transport.fetch import Answer, entity_tag
from peerseal.trust.awake import NEVER, AwakePeriods
from peerseal.trust.beliefs import KnownService, TrustedKey
from peerseal.trust.confirmation import Confirmation
from peerseal.trust.documents import DocumentReader, check_age, covering, text_of
from peerseal.trust.new_history import REVOKED_FOR_GOOD

log = logging.getLogger("peerseal.trust")


@dataclass(slots=True)
class Slot:
    """What the shelf holds for one service. ``lock`` is held by the one thread that fetches.

    ``pending`` is the ledger entry that the next document must cover, 0 where none is awaited; ``failures`` counts the
    renewals that failed in a row, and ``retry_at`` is when the next one is tried. ``drops`` is the reader's when the
    document was read: where the root has dropped a signing key since, that key may have signed it. ``period`` is the
    one (of `AwakePeriods`) in which the registry confirmed what is known.
    """

    service_id: str
    lock: threading.Lock = field(default_factory=threading.Lock)
    known: KnownService | None = None
    good_until: float = 0.0
    etag: str | None = None
    drops: int = 0
    fetched_at: float = 0.0
    renew_at: float = 0.0
    cooldown_until: float = 0.0
    unknown_until: dict[str, float] = field(default_factory=dict)
    pending: int = 0
    failures: int = 0
    retry_at: float = 0.0
    period: int = NEVER


class KeyShelf:
    """The key sets of the services that were asked about. ``held`` maps each kid to its key and the slot of its owner,
    which says until when it is believed. Safe to use from threads."""

    def __init__(
        self,
        reader: DocumentReader,
        confirmation: Confirmation,
        awake: AwakePeriods,
        *,
        limits: TrustLimits,
        clock: Callable[[], float],
    ) -> None:
        self.held: dict[str, tuple[TrustedKey, Slot]] = {}
        self._reader = reader
        self._confirmation = confirmation
        self._awake = awake
        self._limits = limits
        self._clock = clock
        self._slots: dict[str, Slot] = {}
        self._stranger_credit = limits.stranger_fetches
        self._credited_at = 0.0
        self._lock = threading.Lock()
        self._doubtful = threading.Semaphore(limits.doubtful_fetches)

    def ask(self, kid: str) -> TrustedKey:
        """The key with that kid, which memory did not have: looked for again, and fetched once where that may help.

        Raises UnknownKey, RevokedKey or TrustUnavailable.
        """
        service_id = split_kid(kid)[0]
        if split_service_id(service_id)[0] != self._reader.registry_keys().subject:
            raise UnknownKey("a key of another trust domain")
        slot = self._slot(service_id)
        if not acquired_in_time(slot.lock):
            raise TrustUnavailable(f"the keys of {service_id} are being fetched", retry_after=1)
        try:  # whoever waited here finds what the first one fetched
            answer = self._answer(slot, kid)
            if answer is None and self._confirm_from_before(slot):
                answer = self._answer(slot, kid)
            if answer is None:
                self._fetch_for(slot, kid)
                answer = self._answer(slot, kid)
        finally:
            slot.lock.release()
        if answer is None:
            raise TrustUnavailable(f"nothing confirmed the keys of {service_id} within the offline limit")
        return answer

    def slots(self) -> list[Slot]:
        """What is held for each service."""
        return list(self._slots.values())

    # ---- the background

    def fetch_now(self, service_id: str) -> None:
        """Fetch the service's keys, asked for or not. A failure is logged only."""
        self._renew(self._slot(service_id))

    def followed(self) -> list[int]:
        """Up to which entries what is held is known to be the truth; without what is to be fetched anyway."""
        slots = [slot for slot in self.slots() if not slot.pending and not self._is_given_up(slot)]
        return [slot.known.covered for slot in slots if slot.known is not None]

    def begin_anew(self) -> None:
        """See HistoryFollower."""
        for slot in self.slots():
            slot.pending, slot.retry_at, slot.failures = 0, 0.0, 0
            slot.unknown_until = {}

    def endings(self) -> Mapping[str, int]:
        """See HistoryFollower."""
        ends: dict[str, int] = {}
        for known in filter(None, (slot.known for slot in self.slots())):
            ends |= {kid: key.active_until for kid, key in known.keys.items()}
            ends |= dict.fromkeys(known.revoked, REVOKED_FOR_GOOD)
        return ends

    def _is_given_up(self, slot: Slot) -> bool:
        """Whether what is known is of a history that the root gave up: nothing confirms it, and it is fetched again."""
        return slot.known is not None and self._reader.is_given_up(slot.drops)

    def confirm(self, changes: Changes, period: int) -> None:
        """Take note of what did not change, and mark what did, by a list that was asked for in that period."""
        for slot in self.slots():
            if slot.known is not None and not slot.pending and not self._is_given_up(slot):
                self._confirm(slot, changes, period)

    def due_at(self, *, failing: bool) -> float:
        """When the next document is to be fetched again, in seconds since the epoch: of those whose last renewal
        failed, or of the others."""
        return min((self._due_at(slot) for slot in self.slots() if bool(slot.failures) is failing), default=math.inf)

    def renew_due(self, *, failing: bool | None = None) -> None:
        """Fetch what changed, or was not fetched for long: of those whose last renewal failed, or of the others, or of
        all. Those that failed come last. Raises nothing of PeersealError."""
        due = [slot for slot in self.slots() if self._due_at(slot) <= self._clock()]
        for slot in sorted(due, key=lambda slot: slot.failures):
            if failing is None or bool(slot.failures) is failing:
                self._renew(slot)

    def renew_locks(self) -> None:
        """In a forked child: a lock that another thread held would never be released."""
        self._lock = threading.Lock()
        self._doubtful = threading.Semaphore(self._limits.doubtful_fetches)
        for slot in self.slots():
            slot.lock = threading.Lock()

    def _confirm(self, slot: Slot, changes: Changes, period: int) -> None:
        if not slot.lock.acquire(blocking=False):
            return  # somebody fetches it this moment; the next round asks again
        try:
            confirmed = slot.known.confirmed(slot.service_id, changes) if slot.known else None
            if confirmed is None:
                slot.pending, slot.retry_at = changes.seq, 0.0  # news: whatever failed before, it is fetched now
            else:
                current = slot.drops == self._reader.drops
                self._believe(slot, confirmed, max(slot.period, period) if current else slot.period)
        finally:
            slot.lock.release()

    def _due_at(self, slot: Slot) -> float:
        """When the service's document is to be fetched again."""
        if slot.known is None:
            return math.inf
        wanted = bool(slot.pending) or slot.drops != self._reader.drops
        return slot.retry_at if wanted else max(slot.retry_at, slot.renew_at)

    def _renew(self, slot: Slot) -> None:
        """Fetch a service's document; after the second failure in a row, with growing pauses between them."""
        with slot.lock:
            try:
                self._load(slot)
                slot.failures = 0
            except PeersealError as error:
                log.warning("cannot renew the keys of %s: %s", slot.service_id, error)
                slot.failures += 1
        pause = min(2.0 ** min(slot.failures, 16), self._limits.longest_pause)
        slot.retry_at = self._clock() + pause if slot.failures > 1 else 0.0

    # ---- a kid that memory does not answer

    def _answer(self, slot: Slot, kid: str) -> TrustedKey | None:
        """What is known of the kid now; None where a fetch is needed to say."""
        now = self._clock()
        if slot.known is not None and now < slot.good_until and self._awake.lasts(slot.period):
            if kid in slot.known.keys:
                return slot.known.keys[kid]
            if kid in slot.known.revoked:
                raise RevokedKey("the key was revoked")
        if slot.unknown_until.get(kid, 0.0) > now:
            raise UnknownKey("nobody registered that key")
        return None

    def _confirm_from_before(self, slot: Slot) -> bool:
        """Have the registry confirm a copy on disk, or what was known before a break. False where it does not: then the
        document must be fetched."""
        if slot.known is None:
            return self._recall(slot)
        period = self._awake.current()
        if slot.pending or slot.period == period:
            return False
        confirmed = self._confirmed(slot, slot.known)
        if confirmed is not None and slot.drops == self._reader.drops:
            self._believe(slot, confirmed, period)
        return confirmed is not None

    def _confirmed(self, slot: Slot, known: KnownService) -> KnownService | None:
        """What the registry leaves of a belief from before; None where it says that it changed."""
        drops = self._reader.drops
        confirmed = self._confirmation.confirmed(known, slot.service_id)
        return confirmed if drops == self._reader.drops else None  # else a key that was dropped may have signed it

    def _fetch_for(self, slot: Slot, kid: str) -> None:
        """One fetch on behalf of an unknown kid, its cooldown started before it. Raises TrustUnavailable.

        A fetch that finds the kid lifts the cooldown again: there are no more such fetches than there are keys.
        """
        now = self._clock()
        if now < slot.cooldown_until:
            raise TrustUnavailable("fetched a moment ago", retry_after=int(slot.cooldown_until - now) + 1)
        if slot.known is None:
            self._spend_on_stranger(now)
        if slot.known is None or now >= slot.good_until or not self._awake.lasts(slot.period):
            self._load_for(slot, kid, now)
        elif self._doubtful.acquire(blocking=False):
            try:
                self._load_for(slot, kid, now)
            finally:
                self._doubtful.release()
        else:
            raise TrustUnavailable("enough is being fetched for unknown kids", retry_after=1)
        known = slot.known
        if known is not None and now >= slot.good_until:
            return  # too old to say anything about the kid
        if known is not None and known.lists(kid):
            slot.cooldown_until = 0.0
        else:
            if len(slot.unknown_until) >= self._limits.max_negative:
                slot.unknown_until.clear()
            slot.unknown_until[kid] = now + self._limits.negative_ttl

    def _load_for(self, slot: Slot, kid: str, now: float) -> None:
        slot.cooldown_until = now + self._limits.cooldown
        try:
            self._load(slot, kid)
        except (FetchError, DocumentRefused) as error:
            raise TrustUnavailable(str(error), retry_after=int(self._limits.cooldown) + 1) from error

    def _spend_on_stranger(self, now: float) -> None:
        """The budget over all services that are not known: where the whole domain may call, anyone can make up names.
        Known services have their own cooldowns and are not held up by it. Raises TrustUnavailable."""
        with self._lock:
            rate, most = self._limits.stranger_rate, self._limits.stranger_fetches
            self._stranger_credit = min(most, self._stranger_credit + max(0.0, now - self._credited_at) * rate)
            self._credited_at = now
            if self._stranger_credit < 1:
                raise TrustUnavailable("too many services asked for that nobody knows", retry_after=1)
            self._stranger_credit -= 1

    def _slot(self, service_id: str) -> Slot:
        slot = self._slots.get(service_id)
        if slot is None:
            if len(self._slots) >= self._limits.max_services:
                self._forget_strangers()
            if len(self._slots) >= self._limits.max_services:
                raise TrustUnavailable("more services than this store may remember")
            slot = self._slots.setdefault(service_id, Slot(service_id))
        return slot

    def _forget_strangers(self) -> None:
        """Make room: names that nobody registered, which anyone can make up where the whole domain may call."""
        for slot in self.slots():
            if slot.known is None and slot.lock.acquire(blocking=False):  # nobody fetches it this moment
                try:
                    if slot.known is None:
                        self._slots.pop(slot.service_id, None)
                finally:
                    slot.lock.release()

    # ---- documents

    def _load(self, slot: Slot, kid: str | None = None) -> None:
        """Fetch the service's signed JWK Set, with ``slot.lock`` held; or take what another process of the host has
        fetched meanwhile, where that is young enough, and has the ``kid`` that is looked for.

        Raises FetchError, DocumentRefused or TrustUnavailable.
        """
        name = _keys_copy(slot.service_id)
        with self._reader.copies.locked(name):
            recalled = self._recall(slot)
            if kid is not None and slot.known is not None and self._awake.lasts(slot.period):
                if recalled and slot.known.lists(kid):
                    return
                self._check_not_missed(slot)
            elif recalled and self._clock() < slot.renew_at:
                return
            asked_at = self._clock()
            try:
                self._fetch(slot)
            finally:
                if kid is not None and slot.known is not None and not slot.known.lists(kid):
                    self._reader.copies.missed(name, asked_at)

    def _recall(self, slot: Slot) -> bool:
        """Believe a copy that another process has fetched since, or one before a restart. False where there is none."""
        if slot.known is not None and slot.drops != self._reader.drops:
            return False
        period = self._awake.current()
        recalled = self._reader.copy(
            JwkSetDocument,
            _keys_copy(slot.service_id),
            slot.service_id,
            newer_than=slot.fetched_at,
            at_least=slot.pending,
        )
        if recalled is None:
            return False
        document = recalled.document
        try:
            known = KnownService.of(document) if slot.known is None else slot.known.updated(document)
        except DocumentRefused as error:
            log.warning("the copy of the keys of %s is refused (%s): %s", slot.service_id, error.code, error)
            return False
        confirmed = self._confirmed(slot, known)
        if confirmed is None:
            return False
        slot.drops, slot.etag = self._reader.drops, None
        self._believe(slot, confirmed, period)
        self._fetched(slot, recalled.fetched_at)
        return True

    def _check_not_missed(self, slot: Slot) -> None:
        """Passes where no process of the host has asked the registry for an unknown kid of the service a moment ago. A
        renewal a moment ago is no such thing: a key that was registered since is looked for. Raises TrustUnavailable.
        """
        if 0 <= self._clock() - self._reader.copies.missed_at(_keys_copy(slot.service_id)) < self._limits.cooldown:
            raise TrustUnavailable("fetched a moment ago", retry_after=int(self._limits.cooldown) + 1)

    def _fetched(self, slot: Slot, at: float) -> None:
        early = self._limits.refresh_interval * self._limits.jitter * random()  # noqa: S311
        slot.fetched_at, slot.renew_at = at, at + self._limits.refresh_interval - early

    def _fetch(self, slot: Slot) -> None:
        self._reader.through_histories(lambda: self._fetch_once(slot))

    def _fetch_once(self, slot: Slot) -> None:
        now, name, period = self._clock(), _keys_copy(slot.service_id), self._awake.current()
        self._fetched(slot, now)
        if self._is_given_up(slot):
            slot.pending = 0
        at_least, drops = max(slot.pending, self._reader.seen()), self._reader.drops
        doubted = slot.drops != drops  # signed by a key that was stolen, perhaps: what it says is no measure
        unconfirmed = slot.period != period  # and what says that it is still the newest is not signed
        whole = slot.pending or doubted or unconfirmed or self._ends_soon(slot) or self._reader.copies.lacks(name)
        tag = None if whole else slot.etag
        stale: list[KnownService] = []

        def read(answer: Answer) -> tuple[KnownService, str | None]:
            if answer.status == 304 and slot.known is not None and tag is not None:
                self._reader.copies.confirm(name, now)
                return slot.known, tag  # nothing new to believe, and no newer signed time: the changes confirm it
            jws = text_of(answer, JwkSetDocument)
            document = self._reader.read(JwkSetDocument, jws, slot.service_id, at_least=at_least)
            known = KnownService.of(document) if slot.known is None or doubted else slot.known.updated(document)
            stale.append(known)
            check_age(document, self._limits.offline_limit, self._clock())
            self._reader.keep(name, document, jws, now)
            return known, entity_tag(answer)

        path = covering(f"/v1/services/{split_service_id(slot.service_id)[1]}/jwks.jwt", at_least)
        try:
            with self._reader.counting("key_set"):
                found = self._reader.fetcher.ask(path, read, headers={"If-None-Match": tag} if tag else {})
        except DocumentRefused:
            if not stale:
                raise
            found = stale[0], None  # nobody has a younger one: the changes may yet confirm it
        except FetchError as error:
            if error.http_status != 404 or not (slot.known is None or self._is_given_up(slot)):
                raise
            self._forget(slot)
            return
        if found is not None:
            slot.drops = drops
            slot.etag = found[1]
            self._believe(slot, found[0], period)

    def _forget(self, slot: Slot) -> None:
        """The service is not in the ledger, or not any more: its registration is among what was lost."""
        for kid in slot.known.keys if slot.known is not None else ():
            self.held.pop(kid, None)
        slot.known, slot.good_until, slot.etag = None, 0.0, None

    def _ends_soon(self, slot: Slot) -> bool:
        """Whether only a new document will do: the one held is not believed any more, or will not be for as long as a
        registry that goes down now must be borne."""
        now, known = self._clock(), slot.known
        return known is None or now >= slot.good_until or now + self._limits.offline_limit >= known.expires_at

    def _believe(self, slot: Slot, known: KnownService, period: int) -> None:
        """Take over what is known of a service now, confirmed in that period, with ``slot.lock`` held. New keys go in
        before old ones go out.

        Raises TrustUnavailable for a slot that was forgotten before its lock was taken, where there is another one by
        now: nobody would follow what this one holds.
        """
        if self._slots.setdefault(slot.service_id, slot) is not slot:
            raise TrustUnavailable(f"another thread asks for the keys of {slot.service_id}", retry_after=1)
        before = slot.known.keys if slot.known else {}
        slot.known = known
        if known.covered >= slot.pending:
            slot.pending = 0
        slot.good_until = min(known.confirmed_at + self._limits.offline_limit, float(known.expires_at))
        slot.unknown_until = {kid: end for kid, end in slot.unknown_until.items() if kid not in known.keys}
        self.held.update({kid: (key, slot) for kid, key in known.keys.items()})
        for kid in before.keys() - known.keys.keys():
            self.held.pop(kid, None)
        slot.period = period


def _keys_copy(service_id: str) -> str:
    return f"keys-{split_service_id(service_id)[1]}.jwt"
