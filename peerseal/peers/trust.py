"""The trust store: other services' keys, fetched from the registry, checked, cached and kept fresh.

From a pinned root key down: the root signs which keys sign for the registry; those sign each service's JWK Set. A
verifier asks for a key by kid; the answer mostly comes from memory. A kid that is not there costs one fetch, made by
one thread while the others of the same service wait, and then none for a cooldown. In the background one thread a
process follows the registry's list of changes and renews what it names. A fetch that fails takes nothing away; what
ends belief in a document is its own signed time (`offline_limit`) and nothing else.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from peerseal.errors import (
    ConfigurationError,
    DocumentRefused,
    FetchError,
    PeersealError,
    RevokedKey,
    TrustUnavailable,
    UnknownKey,
)
from peerseal.peers.fetch import Answer, Fetcher, HttpFetcher
from peerseal.peers.forks import BackgroundWork, in_each_child
from peerseal.peers.limits import TrustLimits
from peerseal.peers.trusted import KnownService, TrustedKey
from peerseal.protocol.documents import (
    MAX_DOCUMENT,
    Changes,
    Document,
    JwkSetDocument,
    KeyStatement,
    RegistryKeys,
    read_document,
    read_registry_keys,
)
from peerseal.protocol.names import make_kid, split_kid, split_service_id

log = logging.getLogger("peerseal.trust")

D = TypeVar("D", bound=Document)

_ROOT_PATH = "/.well-known/peerseal-registry"


@dataclass(slots=True)
class _Slot:
    """What the store holds for one service. ``lock`` is held by the one thread that fetches.

    ``pending`` is the ledger entry that the next document must cover, 0 where none is awaited; ``failures`` counts the
    renewals that failed in a row, and ``retry_at`` is when the next one is tried.
    """

    service_id: str
    lock: threading.Lock = field(default_factory=threading.Lock)
    known: KnownService | None = None
    good_until: float = 0.0
    etag: str | None = None
    fetched_at: float = 0.0
    cooldown_until: float = 0.0
    unknown_until: dict[str, float] = field(default_factory=dict)
    pending: int = 0
    failures: int = 0
    retry_at: float = 0.0


class TrustStore:
    """A `KeySource` over a registry.

    ``registry`` is its URL, or several (the primary and its mirrors), as a sequence or joined by commas. ``pin`` is the
    RFC 7638 thumbprint of the registry's root key; it may be left out only where every URL is on loopback. Nothing is
    fetched before the first question. Safe to use from threads, and before and after a fork.
    """

    def __init__(
        self,
        registry: str | Sequence[str],
        *,
        pin: str | None = None,
        limits: TrustLimits | None = None,
        clock: Callable[[], float] = time.time,
        fetcher: Fetcher | None = None,
    ) -> None:
        self.fetcher = fetcher or _http_fetcher(registry, pin)
        self._pin = pin
        self._limits = limits or TrustLimits()
        self._clock = clock
        self._keys: dict[str, tuple[TrustedKey, _Slot]] = {}
        self._slots: dict[str, _Slot] = {}
        self._root: RegistryKeys | None = None
        self._root_loaded_at = 0.0
        self._root_cooldown_until = 0.0
        self._stranger_credit = (limits or TrustLimits()).stranger_fetches
        self._credited_at = 0.0
        self._lock = threading.Lock()
        self._follower: threading.Thread | None = None
        self._stopping = threading.Event()
        self._stopped = False
        self._working = BackgroundWork()
        in_each_child(self._after_fork)

    @property
    def domain(self) -> str:
        """The registry's trust domain. Raises TrustUnavailable while the registry was never reached."""
        return self._registry_keys().subject

    def key(self, kid: str) -> TrustedKey:
        """See KeySource."""
        if self._follower is None and not self._stopped:
            self._start_following()
        found = self._keys.get(kid)
        if found is not None and self._clock() < found[1].good_until:
            return found[0]
        return self._ask(kid)

    def watch(self, services: Iterable[str]) -> None:
        """Fetch these services' (by id) keys now, rather than at their first call. Failures are logged only."""
        for service_id in services:
            self._renew(self._slot(service_id))

    def refresh(self) -> None:
        """One round of what the background thread does: follow the changes, renew what is due.

        Raises nothing of PeersealError: a failure is logged, takes nothing away, and holds up nothing else.
        """
        if self._clock() > self._root_loaded_at + self._limits.refresh_interval:
            self._attempt("renew the registry's keys", self._load_root)
        self._attempt("follow the registry's changes", self._follow)
        due = [slot for slot in list(self._slots.values()) if self._is_due(slot)]
        for slot in sorted(due, key=lambda slot: slot.failures):  # those that failed before come last
            self._renew(slot)

    def stop(self) -> None:
        """End the background thread of this process, for good."""
        self._stopped = True
        self._stopping.set()
        if self._follower is not None and self._follower is not threading.current_thread():
            self._follower.join(timeout=self._limits.poll_interval + 1)
        self._follower = None

    def read_statement(self, jws: str) -> KeyStatement:
        """A key statement that this registry signed. Raises DocumentRefused or TrustUnavailable."""
        return self._read(KeyStatement, jws)

    # ---- a kid that memory does not answer

    def _ask(self, kid: str) -> TrustedKey:
        """Look again, and fetch once where that may help."""
        service_id = split_kid(kid)[0]
        if split_service_id(service_id)[0] != self.domain:
            raise UnknownKey("a key of another trust domain")
        slot = self._slot(service_id)
        with slot.lock:  # whoever waited here finds what the first one fetched
            answer = self._answer(slot, kid)
            if answer is None:
                self._fetch_for(slot, kid)
                answer = self._answer(slot, kid)
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
            self._fetch_keys(slot)
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

    def _fetch_keys(self, slot: _Slot, at_least: int = 0) -> None:
        """Fetch the service's signed JWK Set, with ``slot.lock`` held. ``at_least`` is the ledger entry that the
        answer must cover; it stands in the URL, so that no cache on the way answers with less.

        Raises FetchError, DocumentRefused or TrustUnavailable.
        """
        slot.fetched_at = self._clock()
        path = f"/v1/services/{split_service_id(slot.service_id)[1]}/jwks.jwt"
        conditional = slot.etag and not at_least and not self._ends_soon(slot)
        headers = {"If-None-Match": slot.etag} if slot.etag and conditional else {}
        answer = self.fetcher.call("GET", f"{path}?seq={at_least}" if at_least else path, headers=headers)
        if answer.status == 304:
            return  # nothing new to believe, and no newer signed time: the changes confirm what we hold
        if answer.status == 404 and slot.known is None:
            return
        document = self._read(JwkSetDocument, _text(answer))
        if document.subject != slot.service_id:
            raise DocumentRefused("document_wrong_subject", f"{document.subject} instead of {slot.service_id}")
        if document.head < at_least:
            raise DocumentRefused("document_rolled_back", f"covers {document.head} entries of {at_least}")
        self._believe(slot, slot.known.updated(document) if slot.known else KnownService.of(document))
        slot.etag = answer.headers.get("etag")

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

    def _read(self, kind: type[D], jws: str) -> D:
        """A document signed by a key that the root names; the root's own document is looked at again where it names
        another. Raises DocumentRefused or TrustUnavailable."""
        try:
            return self._read_with(self._registry_keys(), kind, jws)
        except DocumentRefused as error:
            if error.code != "document_unknown_signer":
                raise
        return self._read_with(self._load_root(), kind, jws)

    def _read_with(self, root: RegistryKeys, kind: type[D], jws: str) -> D:
        signers = {make_kid(root.issuer, key.thumbprint): key for key in root.signing_keys}
        return read_document(kind, jws, signers, now=self._clock(), domain=root.subject)

    def _registry_keys(self) -> RegistryKeys:
        root = self._root
        return root if root is not None and self._clock() < root.expires_at else self._load_root()

    def _load_root(self) -> RegistryKeys:
        """Fetch the root-signed document, at most once a cooldown. Raises TrustUnavailable."""
        with self._lock:
            now, root = self._clock(), self._root
            if now < self._root_cooldown_until:
                if root is not None and now < root.expires_at:
                    return root
                raise TrustUnavailable("the registry's keys could not be fetched a moment ago", retry_after=1)
            self._root_cooldown_until = now + (1.0 if root is None else self._limits.cooldown)
            try:
                found = read_registry_keys(_text(self.fetcher.call("GET", _ROOT_PATH)), pin=self._pin, now=now)
                if root is not None and (found.subject != root.subject or found.version < root.version):
                    raise DocumentRefused("document_rolled_back", "older registry keys than seen before")
                if root is not None and found.root.thumbprint != root.root.thumbprint:
                    raise DocumentRefused("document_wrong_root", "another root key than seen before")
            except (FetchError, DocumentRefused) as error:
                raise TrustUnavailable(f"the registry's keys: {error}", retry_after=1) from error
            self._root, self._root_loaded_at = found, now
            self._root_cooldown_until = now + self._limits.cooldown
            return found

    # ---- the background

    def _attempt(self, what: str, do: Callable[[], object]) -> bool:
        try:
            do()
        except PeersealError as error:
            log.warning("cannot %s: %s", what, error)
            return False
        return True

    def _follow(self) -> None:
        """Ask what changed since the entry up to which everything is known. Confirms what did not change, and marks
        what did. A service that waits for its renewal does not hold back the entry from which the others are asked."""
        slots = [slot for slot in list(self._slots.values()) if slot.known is not None and not slot.pending]
        if not slots:
            return
        since = min(slot.known.covered for slot in slots if slot.known)
        changes = self._read(Changes, _text(self.fetcher.call("GET", f"/v1/changes?since={since}")))
        if changes.since != since or changes.subject != self.domain:
            raise DocumentRefused("document_wrong_subject", "the changes after another entry, or of another domain")
        if changes.seq < since:
            raise DocumentRefused("document_rolled_back", f"the ledger ends at {changes.seq}, seen was {since}")
        for slot in slots:
            self._confirm(slot, changes)

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

    def _is_due(self, slot: _Slot) -> bool:
        now = self._clock()
        if slot.known is None or now < slot.retry_at:
            return False
        return bool(slot.pending) or now > slot.fetched_at + self._limits.refresh_interval

    def _renew(self, slot: _Slot) -> None:
        """Fetch a service's document; after the second failure in a row, with growing pauses between them."""
        with slot.lock:
            done = self._attempt(
                f"renew the keys of {slot.service_id}", lambda: self._fetch_keys(slot, at_least=slot.pending)
            )
        slot.failures = 0 if done else slot.failures + 1
        pause = min(2.0 ** min(slot.failures, 16), self._limits.longest_pause)
        slot.retry_at = self._clock() + pause if slot.failures > 1 else 0.0

    def _start_following(self) -> None:
        """Start this process's background thread; after a fork, the child's own."""
        if self._follower is None:
            with self._lock:
                if self._follower is None:
                    self._stopping = threading.Event()
                    self._follower = threading.Thread(
                        target=self._run, args=(self._stopping,), name="peerseal-trust", daemon=True
                    )
                    self._follower.start()

    def _run(self, stopping: threading.Event) -> None:
        # Jitter keeps the workers of a fleet from asking in step.
        while not stopping.wait(self._limits.poll_interval * random.uniform(0.8, 1.2)):  # noqa: S311
            try:
                with self._working:
                    self.refresh()
            except Exception:  # the thread must not die of a surprise: without it revocations go unseen
                log.exception("a round of the trust store failed")

    def _after_fork(self) -> None:
        """Threads do not survive a fork, and a lock that one of them held would never be released."""
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._follower = None
        for slot in self._slots.values():
            slot.lock = threading.Lock()


def _http_fetcher(registry: str | Sequence[str], pin: str | None) -> HttpFetcher:
    urls = registry.split(",") if isinstance(registry, str) else registry
    fetcher = HttpFetcher([url.strip() for url in urls])
    if pin is None and not fetcher.loopback_only:
        raise ConfigurationError("a registry that is not on loopback needs a pin: its root key's thumbprint")
    return fetcher


def _text(answer: Answer) -> str:
    """The body of a 200 as a compact JWS. Raises FetchError."""
    if answer.status != 200 or len(answer.body) > MAX_DOCUMENT:
        raise FetchError(f"the registry answered {answer.status}", answer.status)
    try:
        return answer.body.decode("ascii")
    except UnicodeDecodeError as error:
        raise FetchError("the registry's answer is not a JWS") from error
