"""The trust store: other services' keys, fetched from the registry, checked, cached and kept fresh.

From a pinned root key down: the root signs which keys sign for the registry; those sign each service's JWK Set. A
verifier asks for a key by kid; the answer mostly comes from memory. A kid that is not there costs one fetch, made by
one thread while the others of the same service wait, and then none for a cooldown. In the background one thread a
process follows the registry's list of changes and renews what it names. A fetch that fails takes nothing away; what
ends belief in a document is its own signed time (`offline_limit`) and nothing else.

The processes of a host that have a cache folder in common fetch each document once, through copies on disk, from which
a cold start goes on as well: `peerseal.peers.copies`, `peerseal.peers.news`. How a document is fetched and checked is
told in `peerseal.peers.reader` and `peerseal.peers.ledger`.
"""

import hashlib
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import random

from peerseal.errors import (
    ConfigurationError,
    DocumentRefused,
    FetchError,
    PeersealError,
    RevokedKey,
    TrustUnavailable,
    UnknownKey,
)
from peerseal.peers.copies import CopyFolder, NoCopies
from peerseal.peers.fetch import Answer, Fetcher, HttpFetcher
from peerseal.peers.forks import BackgroundWork, in_each_child
from peerseal.peers.limits import TrustLimits
from peerseal.peers.news import HostNews
from peerseal.peers.patience import acquired_in_time, no_longer_than
from peerseal.peers.policies import PolicyShelf
from peerseal.peers.reader import D, DocumentReader, Recalled, check_age, covering, text_of
from peerseal.peers.rounds import Heard, Rounds
from peerseal.peers.trusted import KnownService, TrustedKey
from peerseal.protocol.documents import Changes, JwkSetDocument, KeyStatement, PolicyDocument
from peerseal.protocol.names import registry_id, split_kid, split_service_id
from peerseal.protocol.policies import CallPolicy

log = logging.getLogger("peerseal.trust")


@dataclass(slots=True)
class _Slot:
    """What the store holds for one service. ``lock`` is held by the one thread that fetches.

    ``pending`` is the ledger entry that the next document must cover, 0 where none is awaited; ``failures`` counts the
    renewals that failed in a row, and ``retry_at`` is when the next one is tried. ``drops`` is the reader's when the
    document was read: where the root has dropped a signing key since, that key may have signed it.
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


class TrustStore:
    """A `KeySource` over a registry.

    ``registry`` is its URL, or several (the primary and its mirrors), as a sequence or joined by commas. ``pin`` is the
    RFC 7638 thumbprint of the registry's root key; it may be left out only where every URL is on loopback.
    ``cache_dir`` is a folder in which the documents and the newest checkpoint of the ledger outlive this process, and
    which it shares with the other processes of its host. Nothing is fetched before the first question. Safe to use
    from threads, and before and after a fork.
    """

    def __init__(
        self,
        registry: str | Sequence[str],
        *,
        pin: str | None = None,
        limits: TrustLimits | None = None,
        clock: Callable[[], float] = time.time,
        fetcher: Fetcher | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self._limits = limits or TrustLimits()
        self._clock = clock
        folder = None if cache_dir is None else Path(cache_dir)
        self._copies = NoCopies() if folder is None else CopyFolder(folder, _folder_name(registry, pin))
        self._news = None if folder is None else HostNews(self._copies)
        self._reader = DocumentReader(
            fetcher or _http_fetcher(registry, pin),
            pin=pin,
            limits=self._limits,
            clock=clock,
            cache_dir=folder,
            copies=self._copies,
        )
        self._policies = PolicyShelf(
            self._fetch_policy,
            self._recall_policy,
            limits=self._limits,
            clock=clock,
            drops=lambda: self._reader.drops,
            may_sign=lambda: self._sign_reading is not None,
        )
        self._sign_reading: Callable[[str], str] | None = None
        self._keys: dict[str, tuple[TrustedKey, _Slot]] = {}
        self._slots: dict[str, _Slot] = {}
        self._stranger_credit = self._limits.stranger_fetches
        self._credited_at = 0.0
        self._lock = threading.Lock()
        self._rounds = Rounds(self._round, self._limits)
        self._working = BackgroundWork()
        in_each_child(self._after_fork)

    @property
    def fetcher(self) -> Fetcher:
        """What calls the registry."""
        return self._reader.fetcher

    @fetcher.setter
    def fetcher(self, fetcher: Fetcher) -> None:
        self._reader.fetcher = fetcher

    @property
    def domain(self) -> str:
        """The registry's trust domain. Raises TrustUnavailable while the registry was never reached."""
        return self._reader.registry_keys().subject

    def key(self, kid: str) -> TrustedKey:
        """See KeySource."""
        if self._rounds.idle:
            self._rounds.start()
        found = self._keys.get(kid)
        if found is not None and self._clock() < found[1].good_until:
            return found[0]
        with no_longer_than(self._limits.patience):
            return self._ask(kid)

    def policy(self, service_id: str) -> CallPolicy | None:
        """See KeySource."""
        held = self._policies.held.get(service_id)
        if held is not None and self._clock() < held.good_until:
            return held.policy
        with no_longer_than(self._limits.patience):
            if split_service_id(service_id)[0] != self.domain:
                return None  # of another trust domain, about which this registry says nothing
            return self._policies.ask(service_id)

    def sign_with(self, sign_reading: Callable[[str], str]) -> None:
        """Ask for restricted policies in a service's name: ``sign_reading`` makes a request token for a GET of that
        target at the registry."""
        self._sign_reading = sign_reading

    def watch(self, services: Iterable[str]) -> None:
        """Fetch these services' (by id) keys now, rather than at their first call. Failures are logged only."""
        for service_id in services:
            self._renew(self._slot(service_id))

    def refresh(self) -> None:
        """One round of what the background thread does: follow the changes, renew what is due.

        Raises nothing of PeersealError: a failure is logged, takes nothing away, and holds up nothing else.
        """
        self._look_at_root()
        self._attempt("follow the registry's changes", self._follow)
        self._renew_due()

    def stop(self) -> None:
        """End the background thread of this process, for good."""
        self._rounds.stop()
        if self._news is not None:
            self._news.resign()

    def read_statement(self, jws: str) -> KeyStatement:
        """A key statement that this registry signed. Raises DocumentRefused, FetchError or TrustUnavailable."""
        return self._reader.read(KeyStatement, jws)

    def document(
        self,
        kind: type[D],
        path: str,
        subject: str,
        *,
        headers: Callable[[str], Mapping[str, str]] | None = None,
        max_age: float | None = None,
    ) -> D:
        """The document of that kind about ``subject``, fetched now from the first mirror whose answer passes every
        check: signature, time, subject, its place in the ledger and the ledger's in history.

        ``headers`` gives those of the call for the path as it is asked for, which says how much of the ledger the
        answer must cover. ``max_age`` is in seconds since the document was signed. Nothing is cached. Raises FetchError
        (with ``http_status`` 404 where there is no such document), DocumentRefused or TrustUnavailable.
        """
        return self._reader.fetch(kind, path, subject, headers=headers, max_age=max_age)

    # ---- a kid that memory does not answer

    def _ask(self, kid: str) -> TrustedKey:
        """Look again, and fetch once where that may help."""
        service_id = split_kid(kid)[0]
        if split_service_id(service_id)[0] != self.domain:
            raise UnknownKey("a key of another trust domain")
        slot = self._slot(service_id)
        if not acquired_in_time(slot.lock):
            raise TrustUnavailable(f"the keys of {service_id} are being fetched", retry_after=1)
        try:  # whoever waited here finds what the first one fetched
            answer = self._answer(slot, kid)
            if answer is None and slot.known is None and self._recall_keys(slot):
                answer = self._answer(slot, kid)
            if answer is None:
                self._fetch_for(slot, kid)
                answer = self._answer(slot, kid)
        finally:
            slot.lock.release()
        if answer is None:
            raise TrustUnavailable(f"nothing confirmed the keys of {service_id} within the offline limit")
        return answer

    def _answer(self, slot: _Slot, kid: str) -> TrustedKey | None:
        """What is known of the kid now; None where a fetch is needed to say."""
        now = self._clock()
        if slot.known is not None and now < slot.good_until:
            if kid in slot.known.keys:
                return slot.known.keys[kid]
            if kid in slot.known.revoked:
                raise RevokedKey("the key was revoked")
        if slot.unknown_until.get(kid, 0.0) > now:
            raise UnknownKey("nobody registered that key")
        return None

    def _fetch_for(self, slot: _Slot, kid: str) -> None:
        """One fetch on behalf of an unknown kid, its cooldown started before it. Raises TrustUnavailable.

        A fetch that finds the kid lifts the cooldown again: there are no more such fetches than there are keys.
        """
        now = self._clock()
        if now < slot.cooldown_until:
            raise TrustUnavailable("fetched a moment ago", retry_after=int(slot.cooldown_until - now) + 1)
        if slot.known is None:
            self._spend_on_stranger(now)
        slot.cooldown_until = now + self._limits.cooldown
        try:
            self._fetch_keys(slot, kid)
        except (FetchError, DocumentRefused) as error:
            raise TrustUnavailable(str(error), retry_after=int(self._limits.cooldown) + 1) from error
        known = slot.known
        if known is not None and now >= slot.good_until:
            return  # too old to say anything about the kid
        if known is not None and (kid in known.keys or kid in known.revoked):
            slot.cooldown_until = 0.0
        else:
            if len(slot.unknown_until) >= self._limits.max_negative:
                slot.unknown_until.clear()
            slot.unknown_until[kid] = now + self._limits.negative_ttl

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

    def _slot(self, service_id: str) -> _Slot:
        slot = self._slots.get(service_id)
        if slot is None:
            if len(self._slots) >= self._limits.max_services:
                self._forget_strangers()
            if len(self._slots) >= self._limits.max_services:
                raise TrustUnavailable("more services than this store may remember")
            slot = self._slots.setdefault(service_id, _Slot(service_id))
        return slot

    def _forget_strangers(self) -> None:
        """Make room: names that nobody registered, which anyone can make up where the whole domain may call."""
        for slot in list(self._slots.values()):
            if slot.known is None and not slot.lock.locked():
                self._slots.pop(slot.service_id, None)

    # ---- documents

    def _fetch_keys(self, slot: _Slot, kid: str | None = None) -> None:
        """Fetch the service's signed JWK Set, with ``slot.lock`` held; or take what another process of the host has
        fetched meanwhile, where that is young enough, and has the ``kid`` that is looked for.

        Raises FetchError, DocumentRefused or TrustUnavailable.
        """
        with self._copies.locked(_keys_copy(slot.service_id)):
            if self._recall_keys(slot) and not self._wants_newer(slot, kid):
                return
            self._fetch_keys_anew(slot)

    def _recall_keys(self, slot: _Slot) -> bool:
        """Believe a copy that another process has fetched since, or one before a restart. False where there is none."""
        if slot.known is not None and slot.drops != self._reader.drops:
            return False
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
        slot.drops, slot.etag = self._reader.drops, None
        self._believe(slot, known)
        self._fetched(slot, recalled.fetched_at)
        return True

    def _wants_newer(self, slot: _Slot, kid: str | None) -> bool:
        """Whether what was recalled will not do. Raises TrustUnavailable where it is so young that nobody would ask
        again on this host."""
        if kid is None or slot.known is None:
            return self._clock() >= slot.renew_at
        if kid in slot.known.keys or kid in slot.known.revoked:
            return False
        if self._clock() < slot.fetched_at + self._limits.cooldown:
            raise TrustUnavailable("fetched a moment ago", retry_after=int(self._limits.cooldown) + 1)
        return True

    def _fetched(self, slot: _Slot, at: float) -> None:
        early = self._limits.refresh_interval * self._limits.jitter * random()  # noqa: S311
        slot.fetched_at, slot.renew_at = at, at + self._limits.refresh_interval - early

    def _fetch_keys_anew(self, slot: _Slot) -> None:
        now, name = self._clock(), _keys_copy(slot.service_id)
        self._fetched(slot, now)
        at_least, drops = max(slot.pending, self._reader.seen()), self._reader.drops
        doubted = slot.drops != drops  # signed by a key that was stolen, perhaps: what it says is no measure
        tag = None if slot.pending or doubted or self._ends_soon(slot) else slot.etag
        stale: list[KnownService] = []

        def read(answer: Answer) -> tuple[KnownService, str | None]:
            if answer.status == 304 and slot.known is not None and tag is not None:
                self._copies.confirm(name, now)
                return slot.known, tag  # nothing new to believe, and no newer signed time: the changes confirm it
            jws = text_of(answer)
            document = self._reader.read(JwkSetDocument, jws, slot.service_id, at_least=at_least)
            known = KnownService.of(document) if slot.known is None or doubted else slot.known.updated(document)
            stale.append(known)
            check_age(document, self._limits.offline_limit, self._clock())
            self._reader.keep(name, document, jws, now)
            return known, answer.headers.get("etag")

        path = covering(f"/v1/services/{split_service_id(slot.service_id)[1]}/jwks.jwt", at_least)
        try:
            found = self.fetcher.ask(path, read, headers={"If-None-Match": tag} if tag else {})
        except DocumentRefused:
            if not stale:
                raise
            found = stale[0], None  # nobody has a younger one: the changes may yet confirm it
        except FetchError as error:
            if error.http_status == 404 and slot.known is None:
                return
            raise
        if found is not None:
            slot.drops = drops
            slot.etag = found[1]
            self._believe(slot, found[0])

    def _fetch_policy(self, service_id: str, signed: bool) -> PolicyDocument:
        path, sign = f"/v1/services/{split_service_id(service_id)[1]}/policy.jwt", self._sign_reading

        def authorization(asked: str) -> Mapping[str, str]:
            return {"Authorization": f"Bearer {sign(self.fetcher.target(asked))}"} if sign and signed else {}

        def keep(document: PolicyDocument, jws: str) -> None:
            self._reader.keep(_policy_copy(service_id), document, jws, self._clock())

        limit = self._limits.offline_limit
        return self._reader.fetch(PolicyDocument, path, service_id, headers=authorization, max_age=limit, keep=keep)

    def _recall_policy(self, service_id: str, newer_than: float, at_least: int) -> Recalled[PolicyDocument] | None:
        name = _policy_copy(service_id)
        return self._reader.copy(PolicyDocument, name, service_id, newer_than=newer_than, at_least=at_least)

    def _ends_soon(self, slot: _Slot) -> bool:
        """Whether only a new document will do: the one held is not believed any more, or will not be for as long as a
        registry that goes down now must be borne."""
        now, known = self._clock(), slot.known
        return known is None or now >= slot.good_until or now + self._limits.offline_limit >= known.expires_at

    def _believe(self, slot: _Slot, known: KnownService) -> None:
        """Take over what is known of a service now. New keys go in before old ones go out."""
        before = slot.known.keys if slot.known else {}
        self._slots[slot.service_id] = slot  # it may have been forgotten while this was fetched
        slot.known = known
        if known.covered >= slot.pending:
            slot.pending = 0
        slot.good_until = min(known.confirmed_at + self._limits.offline_limit, float(known.expires_at))
        slot.unknown_until = {kid: end for kid, end in slot.unknown_until.items() if kid not in known.keys}
        self._keys.update({kid: (key, slot) for kid, key in known.keys.items()})
        for kid in before.keys() - known.keys.keys():
            self._keys.pop(kid, None)

    # ---- the background

    def _attempt(self, what: str, do: Callable[[], object]) -> bool:
        try:
            do()
        except PeersealError as error:
            log.warning("cannot %s: %s", what, error)
            return False
        return True

    def _round(self, stopping: threading.Event) -> Heard:
        """One round of the background thread. It is outside of ``_working`` only while it waits."""
        with self._working:
            self._look_at_root()
        heard = Heard.NOTHING
        try:
            heard = self._follow(min(self._limits.wait, max(0.0, self._due_in())), self._working, stopping)
        except PeersealError as error:
            log.warning("cannot follow the registry's changes: %s", error)
        with self._working:
            self._renew_due()
        return heard

    def _look_at_root(self) -> None:
        if self._reader.registry_keys_due_in() <= 0:
            self._attempt("renew the registry's keys", self._reader.load_registry_keys)

    def _renew_due(self) -> None:
        self._policies.renew_due()
        due = [slot for slot in list(self._slots.values()) if self._due_at(slot) <= self._clock()]
        for slot in sorted(due, key=lambda slot: slot.failures):  # those that failed before come last
            self._renew(slot)

    def _due_in(self) -> float:
        """Seconds until something is to be renewed, changed or not."""
        due_at = min((self._due_at(slot) for slot in list(self._slots.values())), default=math.inf)
        return min(self._reader.registry_keys_due_in(), min(due_at, self._policies.due_at()) - self._clock())

    def _follow(
        self,
        wait: float = 0.0,
        within: AbstractContextManager[object] | None = None,
        stopping: threading.Event | None = None,
    ) -> Heard:
        """Ask what changed since the entry up to which everything is known, and wait that many seconds for it. Confirms
        what did not change, and marks what did. A service that waits for its renewal does not hold back the entry from
        which the others are asked. Raises FetchError, DocumentRefused or TrustUnavailable."""
        slots = [slot for slot in list(self._slots.values()) if slot.known is not None and not slot.pending]
        covered = [slot.known.covered for slot in slots if slot.known] + self._policies.followed()
        if not covered:
            return Heard.NO_NEWS
        since, news = min(covered), False
        for changes in self._changes(since, wait, within, stopping):
            with within or nullcontext():
                self._take_note(slots, changes)
            news = news or changes.seq > since
        return Heard.NEWS if news else Heard.NO_NEWS

    def _changes(
        self,
        since: int,
        wait: float,
        within: AbstractContextManager[object] | None,
        stopping: threading.Event | None,
    ) -> Sequence[Changes]:
        """The lists of changes behind that entry: asked of the registry, or heard from the process of this host that
        does so for all."""
        if self._news is None or stopping is None or self._news.leads():
            return [self._ask_for_changes(since, wait, within)]
        written = self._news.listen(wait, self._limits, stopping)
        heard: list[Changes] = []
        for jws in written or ():
            with within or nullcontext(), suppress(DocumentRefused):  # an old one has expired
                heard.append(self._reader.read(Changes, jws, self.domain, kept=True))
        if written is None or (written and min((changes.since for changes in heard), default=math.inf) > since):
            return [self._ask_for_changes(since, 0.0, within)]  # what was heard begins behind what is known here
        return heard

    def _ask_for_changes(self, since: int, wait: float, within: AbstractContextManager[object] | None) -> Changes:
        def check(changes: Changes) -> None:
            if changes.since != since:
                raise DocumentRefused("document_wrong_subject", "the changes after another entry")
            if changes.seq < since:
                raise DocumentRefused("document_rolled_back", f"the ledger ends at {changes.seq}, seen was {since}")

        def keep(_: Changes, jws: str) -> None:
            if self._news is not None and self._news.leading:
                self._news.tell(jws, self._clock())

        path = f"/v1/changes?since={since}" + (f"&wait={int(wait)}" if wait >= 1 else "")
        return self._reader.fetch(Changes, path, self.domain, check=check, keep=keep, wait=wait, within=within)

    def _take_note(self, slots: Iterable[_Slot], changes: Changes) -> None:
        if changes.reset or registry_id(self.domain) in changes.services:
            self._reader.outdated = True  # until it is loaded: this list is not shown again
            self._attempt("renew the registry's keys", lambda: self._reader.load_registry_keys(at_once=True))
        for slot in slots:
            self._confirm(slot, changes)
        self._policies.confirm(changes)

    def _confirm(self, slot: _Slot, changes: Changes) -> None:
        if not slot.lock.acquire(blocking=False):
            return  # somebody fetches it this moment; the next round asks again
        try:
            confirmed = slot.known.confirmed(slot.service_id, changes) if slot.known else None
            if confirmed is None:
                slot.pending = changes.seq
            elif confirmed is not slot.known:
                self._believe(slot, confirmed)
        finally:
            slot.lock.release()

    def _due_at(self, slot: _Slot) -> float:
        """When the service's document is to be fetched again."""
        if slot.known is None:
            return math.inf
        wanted = bool(slot.pending) or slot.drops != self._reader.drops
        return slot.retry_at if wanted else max(slot.retry_at, slot.renew_at)

    def _renew(self, slot: _Slot) -> None:
        """Fetch a service's document; after the second failure in a row, with growing pauses between them."""
        with slot.lock:
            done = self._attempt(f"renew the keys of {slot.service_id}", lambda: self._fetch_keys(slot))
        slot.failures = 0 if done else slot.failures + 1
        pause = min(2.0 ** min(slot.failures, 16), self._limits.longest_pause)
        slot.retry_at = self._clock() + pause if slot.failures > 1 else 0.0

    def _after_fork(self) -> None:
        """A lock that another thread held would never be released."""
        self._lock = threading.Lock()
        for slot in self._slots.values():
            slot.lock = threading.Lock()
        self._policies.renew_locks()


def _keys_copy(service_id: str) -> str:
    return f"keys-{split_service_id(service_id)[1]}.jwt"


def _policy_copy(service_id: str) -> str:
    return f"policy-{split_service_id(service_id)[1]}.jwt"


def _folder_name(registry: str | Sequence[str], pin: str | None) -> str:
    """One registry's: by its root key, or, where that is believed on first use, by its URLs."""
    if pin is None:
        urls = registry if isinstance(registry, str) else ",".join(registry)
        return f"documents-{hashlib.sha256(urls.encode()).hexdigest()[:32]}"
    return f"documents-{pin}"


def _http_fetcher(registry: str | Sequence[str], pin: str | None) -> HttpFetcher:
    urls = registry.split(",") if isinstance(registry, str) else registry
    fetcher = HttpFetcher([url.strip() for url in urls])
    if pin is None and not fetcher.loopback_only:
        raise ConfigurationError("a registry that is not on loopback needs a pin: its root key's thumbprint")
    return fetcher
