"""The trust store: other services' keys, fetched from the registry, checked, cached and kept fresh.

From a pinned root key down: the root signs which keys sign for the registry; those sign each service's JWK Set. A
verifier asks for a key by kid; the answer mostly comes from memory. A kid that is not there costs one fetch, made by
one thread while the others of the same service wait, and then none for a cooldown. In the background one thread a
process follows the registry's list of changes and renews what it names. A fetch that fails takes nothing away; what
ends belief in a document is its own signed time (`offline_limit`) and nothing else.

The processes of a host that have a cache folder in common fetch each document once, through copies on disk, from which
a cold start goes on as well: `peerseal.trust.disk.document_cache`, `peerseal.trust.disk.shared_changes`. A copy, or
what this process knew before it was suspended, decides a request only after one question to the registry:
`peerseal.trust.confirmation`. How a document is fetched and checked is told in `peerseal.trust.documents` and
`peerseal.trust.history`.
"""

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from peerseal.errors import ConfigurationError, DocumentRefused, FetchError, PeersealError, UnknownKey
from peerseal.protocol.documents.domain import DomainDocument
from peerseal.protocol.documents.policy import PolicyDocument
from peerseal.protocol.documents.statement import KeyStatement
from peerseal.protocol.names import make_kid, name_text, registry_id, split_kid, split_service_id
from peerseal.protocol.policies import CallPolicy, DomainSettings
from peerseal.protocol.tokens.claims import LATEST_TIME
from peerseal.runtime.forks import BackgroundWork, in_each_child, notice_fork
from peerseal.runtime.limits import TrustLimits
from peerseal.runtime.options import check_callable, check_is, check_path, check_pin, check_text_or_texts
from peerseal.transport.deadline import Deadline, check_may_wait, no_longer_in_all
from peerseal.transport.fetch import Fetcher, HttpFetcher
from peerseal.trust.awake import AwakePeriods, uptime
from peerseal.trust.background import Heard, Rounds
from peerseal.trust.beliefs import Recalled, TrustedKey
from peerseal.trust.changes import ChangesFollower, Told
from peerseal.trust.confirmation import Confirmation
from peerseal.trust.disk.document_cache import CopyFolder, NoCopies
from peerseal.trust.disk.shared_changes import HostNews
from peerseal.trust.documents import CachedDocument, D, DocumentReader
from peerseal.trust.key_sets import KeyShelf, Slot
from peerseal.trust.policies import Held, SettingShelf
from peerseal.trust.statements import StatementShelf
from peerseal.trust.status import ServiceStatus, TrustStatus

log = logging.getLogger("peerseal.trust")

_SETTINGS_COPY = "domain.jwt"


class TrustStore:
    """A `KeySource` over a registry.

    ``registry`` is its URL, or several (the primary and its mirrors), as a sequence or joined by commas. ``pin`` is the
    RFC 7638 thumbprint of the registry's root key; it may be left out only where every URL is on loopback.
    ``cache_dir`` is a folder in which the documents and the newest checkpoint of the ledger outlive this process, and
    which it shares with the other processes of its host. ``sign_reading`` returns a request token for a GET of a target
    at the registry: the store asks for restricted policies with it. Nothing is fetched before the first question.
    ``uptime`` gives the seconds since the machine started, those of a suspension included. Safe to use from threads,
    and before and after a fork.
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
        sign_reading: Callable[[str], str] | None = None,
        uptime: Callable[[], float] = uptime,
    ) -> None:
        _check_options(registry, pin, limits, clock, cache_dir, uptime)
        self._limits = limits or TrustLimits()
        self._clock = clock
        folder = None if cache_dir is None else Path(cache_dir)
        copies = NoCopies() if folder is None else CopyFolder(folder, _folder_name(registry, pin))
        fetcher = _http_fetcher(registry, pin) if fetcher is None else fetcher
        self._working, self._working_apart = BackgroundWork(), BackgroundWork()
        self._reader = DocumentReader(
            fetcher, pin=pin, limits=self._limits, clock=clock, cache_dir=folder, copies=copies
        )
        self._awake = AwakePeriods(self._limits, uptime)
        self._changes = ChangesFollower(
            self._reader,
            None if folder is None else HostNews(copies),
            limits=self._limits,
            clock=clock,
            awake=self._awake,
            within=self._working,
        )
        self._confirmation = Confirmation(
            self._changes, self._reader, self._awake, limits=self._limits, followed=lambda: self._since()
        )
        self._keys = KeyShelf(self._reader, self._confirmation, self._awake, limits=self._limits, clock=clock)
        self._held = self._keys.held
        self._policies = SettingShelf(
            "policy",
            self._fetch_policy,
            lambda document: document.policy,
            self._recall_policy,
            lambda service_id: copies.locked(_policy_copy(service_id)),
            self._confirmation,
            self._awake,
            limits=self._limits,
            clock=clock,
            reader=self._reader,
        )
        self._domain = SettingShelf(
            "settings",
            self._fetch_settings,
            lambda document: document.settings,
            self._recall_settings,
            lambda _: copies.locked(_SETTINGS_COPY),
            self._confirmation,
            self._awake,
            limits=self._limits,
            clock=clock,
            reader=self._reader,
        )
        self._statements = StatementShelf(
            self._fetch_statement,
            self._confirmation,
            self._awake,
            limits=self._limits,
            clock=clock,
            drops=lambda: self._reader.drops,
        )
        self._shelves = self._keys, self._policies, self._domain, self._statements
        self._reader.histories.followers = *self._shelves, self._confirmation
        self._sign_reading = sign_reading
        self._hits = self._misses = 0
        self._retrying = threading.Thread()  # not started: none is alive
        self._rounds = Rounds(self._round, lambda: self.fetcher.hang_up(), self._limits, self._awake)
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
        notice_fork()
        root = self._reader.root
        if root is None or self._clock() >= root.expires_at:
            with self._waiting(last=False):
                root = self._reader.registry_keys()
        return root.subject

    def key(self, kid: str) -> TrustedKey:
        """See KeySource."""
        self._begin()
        kid = kid if type(kid) is str else name_text(kid)
        found = self._held.get(kid)
        if found is not None and self._clock() < found[1].good_until and self._awake.lasts(found[1].period):
            self._hits += 1  # without a lock: a count of so many may miss one
            return found[0]
        with self._waiting(last=True):
            self._misses += 1
            return self._keys.ask(kid)

    def policy(self, service_id: str) -> CallPolicy | None:
        """See KeySource."""
        self._begin()
        service_id = name_text(service_id)
        held = self._policies.held.get(service_id)
        if held is not None and self._clock() < held.good_until and self._awake.lasts(held.period):
            return held.value
        with self._waiting(last=False):
            if split_service_id(service_id)[0] != self.domain:
                return None  # of another trust domain, about which this registry says nothing
            return self._policies.ask(service_id)

    def recorded_key(self, kid: str) -> TrustedKey:
        """See KeySource."""
        self._begin()
        kid = name_text(kid)
        current = self._held.get(kid)
        if current is not None and self._clock() < current[1].good_until and self._awake.lasts(current[1].period):
            return current[0]
        found = self._statements.known(kid)
        if found is not None:
            return found
        with self._waiting(last=True):
            owner = split_kid(kid)[0]
            if split_service_id(owner)[0] != self.domain:
                raise UnknownKey("a key of another trust domain")
            return self._registry_key(kid) if owner == registry_id(self.domain) else self._statements.ask(kid, owner)

    def settings(self) -> DomainSettings:
        """See KeySource."""
        self._begin()
        for held in list(self._domain.held.values()):
            if held.value is not None and self._clock() < held.good_until and self._awake.lasts(held.period):
                return held.value
        with self._waiting(last=False):
            return self._domain.ask(registry_id(self.domain))

    def recall(self, kid: str, audience: str, *, recorded_kid: str | None = None) -> Recalled | None:
        """What memory holds now for one verification: the policy of ``audience`` (a service id) and the key ``kid``;
        for a transaction token also the key ``recorded_kid`` of its signer, and the domain's settings.

        None where memory cannot answer all of that, or its answer is that a key is not good: then ask the store itself,
        where the thread may wait. This never waits and makes no call, so an event loop may ask.
        """
        self._begin()
        root, keys = self._reader.root, dict[str, TrustedKey]()
        if root is None or self._clock() >= root.expires_at:
            return None
        for each in (kid,) if recorded_kid is None else (kid, recorded_kid):
            found = self._held.get(each)
            if found is None or not self._is_believed(found[1]):
                return None
            keys[each] = found[0]
        settings = next((held.value for held in list(self._domain.held.values()) if self._is_believed(held)), None)
        if recorded_kid is not None and settings is None:
            return None
        held, policy = self._policies.held.get(audience), None
        if held is not None and self._is_believed(held):
            policy = held.value
        elif split_service_id(audience)[0] == root.subject:
            return None
        self._hits += 1
        return Recalled(root.subject, audience, policy, keys, settings)

    def _is_believed(self, held: Slot | Held[Any]) -> bool:
        return self._clock() < held.good_until and self._awake.lasts(held.period)

    def deadline(self) -> Deadline:
        """See BoundedKeySource: ``TrustLimits.patience`` is the bound. A question outside of one has it alone."""
        return Deadline(self._limits.patience)

    def _waiting(self, *, last: bool) -> AbstractContextManager[None]:
        """Around what a question does that memory does not answer. Raises WouldWait."""
        check_may_wait()
        return no_longer_in_all(self._limits.patience, last=last)

    def _begin(self) -> None:
        """What each question to this store does first: have the background thread in this process."""
        notice_fork()
        if self._rounds.idle:
            self._rounds.start()

    def watch(self, services: Iterable[str]) -> None:
        """Fetch these services' (by id) keys now, rather than at their first call. Failures are logged only."""
        notice_fork()
        for service_id in services:
            self._keys.fetch_now(service_id)

    def refresh(self) -> None:
        """One round of what the background thread does: follow the changes, renew what is due.

        Raises nothing of PeersealError: a failure is logged, takes nothing away, and holds up nothing else.
        """
        notice_fork()
        self._look_at_root()
        self._attempt("follow the registry's changes", self._follow)
        self._domain.renew_due()
        self._policies.renew_due()
        self._keys.renew_due()

    def stop(self) -> None:
        """End the background thread of this process, for good."""
        notice_fork()
        self._rounds.stop()
        self._changes.stop()

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
        notice_fork()
        return self._reader.fetch(kind, path, subject, headers=headers, max_age=max_age)

    def status(self, *, start: bool = True) -> TrustStatus:
        """How this process's store does now: for readiness checks, and for metrics. Makes no call itself; but it starts
        the background thread, which fetches the registry's keys where they are not known yet, if it may ``start``
        that."""
        if start:
            self._begin()
        now, root = self._clock(), self._reader.root
        services = {slot.service_id: ServiceStatus.of(slot, now) for slot in self._keys.slots() if slot.known}
        ready, fetches = root is not None and now < root.expires_at, dict(self._reader.fetches)
        failed = dict(self._reader.failed)
        return TrustStatus(ready, self._changes.leads, self._hits, self._misses, fetches, services, failed)

    # ---- the background

    def _round(self, stopping: threading.Event) -> Heard:
        """One round of the background thread."""
        with self._working:
            self._look_at_root()
        heard = self._listen(stopping)
        with self._working:
            self._domain.renew_due()
            self._policies.renew_due()
            self._keys.renew_due(failing=False)
        self._retry_failing()
        return heard

    def _retry_failing(self) -> None:
        """Renew in a thread of its own what could not be renewed before: it may hang again, and holds up nobody."""
        if not self._retrying.is_alive() and self._keys.due_at(failing=True) <= self._clock():
            self._retrying = threading.Thread(target=self._renew_failing, name="peerseal-trust-retry", daemon=True)
            self._retrying.start()

    def _renew_failing(self) -> None:
        with self._working_apart:
            self._keys.renew_due(failing=True)

    def _listen(self, stopping: threading.Event) -> Heard:
        """Wait for what changes, though not longer than until something is to be renewed anyway."""
        since = self._since()
        if since is None:
            return Heard.NO_NEWS
        due_at = min(self._keys.due_at(failing=False), self._policies.due_at(), self._domain.due_at())
        if not self._retrying.is_alive():
            due_at = min(due_at, self._keys.due_at(failing=True))
        due_in = min(self._reader.registry_keys_due_in(), due_at - self._clock())
        try:
            heard = self._changes.wait(since, min(self._limits.wait, max(0.0, due_in)), stopping)
            with self._working:
                for told in heard:
                    self._take_note(told)
        except PeersealError as error:
            log.warning("cannot follow the registry's changes: %s", error)
            return Heard.NOTHING
        return Heard.NEWS if any(told.changes.seq > since for told in heard) else Heard.NO_NEWS

    def _since(self) -> int | None:
        """The entry up to which everything is known; None where nothing is followed. What waits for its renewal does
        not hold back the entry from which the rest is asked for."""
        return min((entry for shelf in self._shelves for entry in shelf.followed()), default=None)

    def _follow(self) -> None:
        since = self._since()
        if since is not None:
            self._take_note(self._changes.ask(since))

    def _take_note(self, told: Told) -> None:
        """Confirm what did not change, and mark what did."""
        changes, period = told.changes, self._awake.of(told.asked_at)
        self._reader.note(changes)
        self._confirmation.note(changes, period)
        for shelf in self._shelves:
            shelf.confirm(changes, period)

    def _look_at_root(self) -> None:
        if self._reader.registry_keys_due_in() <= 0:
            self._attempt("renew the registry's keys", self._reader.load_registry_keys)

    def _attempt(self, what: str, do: Callable[[], object]) -> None:
        try:
            do()
        except PeersealError as error:
            log.warning("cannot %s: %s", what, error)

    def _after_fork(self) -> None:
        """A lock that another thread held would never be released; what is counted is of one process."""
        self._hits = self._misses = 0
        for shelf in self._shelves:
            shelf.renew_locks()
        self._retrying = threading.Thread()

    # ---- documents

    def _fetch_policy(self, service_id: str, held: CallPolicy | None) -> PolicyDocument:
        """Most policies are told to everybody, and come from caches; a restricted one is asked for by who may."""
        if held is not None and held.restricted and self._sign_reading is not None:
            return self._fetch_policy_as(service_id, signed=True)
        try:
            return self._fetch_policy_as(service_id, signed=False)
        except FetchError as error:
            if error.http_status != 401 or self._sign_reading is None:
                raise
        return self._fetch_policy_as(service_id, signed=True)

    def _fetch_policy_as(self, service_id: str, *, signed: bool) -> PolicyDocument:
        path, sign = f"/v1/services/{split_service_id(service_id)[1]}/policy.jwt", self._sign_reading

        def authorization(asked: str) -> Mapping[str, str]:
            return {"Authorization": f"Bearer {sign(self._reader.fetcher.target(asked))}"} if sign and signed else {}

        def keep(document: PolicyDocument, jws: str) -> None:
            self._reader.keep(_policy_copy(service_id), document, jws, self._clock())

        limit = self._limits.offline_limit
        return self._reader.fetch(PolicyDocument, path, service_id, headers=authorization, max_age=limit, keep=keep)

    def _recall_policy(
        self, service_id: str, newer_than: float, at_least: int
    ) -> CachedDocument[PolicyDocument] | None:
        name = _policy_copy(service_id)
        return self._reader.copy(PolicyDocument, name, service_id, newer_than=newer_than, at_least=at_least)

    def _fetch_settings(self, _: str, __: DomainSettings | None) -> DomainDocument:
        def keep(document: DomainDocument, jws: str) -> None:
            self._reader.keep(_SETTINGS_COPY, document, jws, self._clock())

        limit = self._limits.offline_limit
        return self._reader.fetch(DomainDocument, "/v1/domain.jwt", self.domain, max_age=limit, keep=keep)

    def _recall_settings(self, _: str, newer_than: float, at_least: int) -> CachedDocument[DomainDocument] | None:
        return self._reader.copy(DomainDocument, _SETTINGS_COPY, self.domain, newer_than=newer_than, at_least=at_least)

    def _fetch_statement(self, kid: str) -> KeyStatement:
        def check(statement: KeyStatement) -> None:
            if statement.kid != kid:
                raise DocumentRefused("document_wrong_subject", "a statement about another key")

        owner, thumbprint = split_kid(kid)
        path = f"/v1/services/{split_service_id(owner)[1]}/keys/{thumbprint}.jwt"
        return self._reader.fetch(KeyStatement, path, owner, max_age=self._limits.offline_limit, check=check)

    def _registry_key(self, kid: str) -> TrustedKey:
        """One of the registry's signing keys, which the root names: for tokens that the registry issues in exchange.
        Raises UnknownKey or TrustUnavailable."""
        self.settings()  # held from now on, so that the changes are followed, which tell when the root drops a key
        for root in (self._reader.registry_keys, self._reader.load_registry_keys):
            for key in root().signing_keys:
                if make_kid(registry_id(self.domain), key.thumbprint) == kid:
                    return TrustedKey(kid, registry_id(self.domain), key, 0, LATEST_TIME)
        raise UnknownKey("the root names no such key")


def _policy_copy(service_id: str) -> str:
    return f"policy-{split_service_id(service_id)[1]}.jwt"


def _folder_name(registry: str | Sequence[str], pin: str | None) -> str:
    """One registry's: by its root key, or, where that is believed on first use, by its URLs."""
    if pin is None:
        urls = registry if isinstance(registry, str) else ",".join(registry)
        return f"documents-{hashlib.sha256(urls.encode()).hexdigest()[:32]}"
    return f"documents-{pin}"


def _check_options(
    registry: object, pin: object, limits: object, clock: object, cache_dir: object, uptime: object
) -> None:
    """Raises ConfigurationError for what a trust store cannot be made of."""
    check_text_or_texts("registry", registry)
    if pin is not None:
        check_pin(pin)
    check_is("limits", TrustLimits() if limits is None else limits, TrustLimits, "a TrustLimits")
    check_callable("clock", clock)
    check_callable("uptime", uptime)
    if cache_dir is not None:
        check_path("cache_dir", cache_dir)


def _http_fetcher(registry: str | Sequence[str], pin: str | None) -> HttpFetcher:
    urls = registry.split(",") if isinstance(registry, str) else registry
    fetcher = HttpFetcher([url.strip() for url in urls])
    if pin is None and not fetcher.loopback_only:
        raise ConfigurationError("a registry that is not on loopback needs a pin: its root key's thumbprint")
    return fetcher
