"""The trust store: other services' keys, fetched from the registry, checked, cached and kept fresh.

Trust starts with a pinned root key. The root signs the list of the registry's signing keys, and those sign each
service's JWK Set. A verifier asks for a key by kid, and the key is usually in memory. An unknown kid causes one fetch;
other threads that ask for keys of the same service wait for that fetch. A cooldown begins with the fetch, and ends
early if the fetch finds the key. Until its end, unknown kids of the service cause no other fetch. In each process one
background thread follows the registry's list of changes, and fetches again what the list names. A failed fetch removes
no belief: a document is used until `offline_limit` after its last signed confirmation, or until it expires.

Processes of a host that share a cache folder fetch each document once. Copies on disk, which a cold start uses as well,
are in `peerseal.trust.disk`. Before the store uses a copy, or anything learned before the machine was suspended, it
asks the registry once what changed (`peerseal.trust.confirmation`). `peerseal.trust.documents` and
`peerseal.trust.seen_ledger` fetch and check documents.
"""

import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from peerseal.errors import ConfigurationError, MalformedToken, PeersealError, UnknownKey
from peerseal.protocol.documents.federation import FederatedDomain
from peerseal.protocol.documents.statement import KeyStatement
from peerseal.protocol.ledger.quorum import Quorum
from peerseal.protocol.names import exact_name, make_kid, registry_id, split_kid, split_service_id
from peerseal.protocol.plain import text_like
from peerseal.protocol.policies import CallPolicy, DomainSettings
from peerseal.protocol.tokens.claims import LATEST_TIME
from peerseal.runtime.files import cache_folder
from peerseal.runtime.forks import BackgroundWork, in_each_child, notice_fork
from peerseal.runtime.limits import TrustLimits
from peerseal.runtime.metrics import MOST, OTHER, Metric, counted, metrics
from peerseal.runtime.options import check_callable, check_flag, check_is, check_path, check_pin, check_text_or_texts
from peerseal.transport.deadline import Deadline, waiting
from peerseal.transport.fetch import Fetcher, HttpFetcher
from peerseal.trust.awake import AwakePeriods, uptime
from peerseal.trust.background import BackgroundThread, Renewal, RoundResult
from peerseal.trust.beliefs import ForeignKeySource, KnownService, Recalled, TrustedKey
from peerseal.trust.changes import ChangesFollower
from peerseal.trust.confirmation import Confirmation
from peerseal.trust.current import CurrentLists
from peerseal.trust.disk.document_cache import CopyFolder, NoCopies
from peerseal.trust.disk.foreign_folders import ForeignFolders
from peerseal.trust.disk.shared_changes import SharedChanges
from peerseal.trust.documents import D, DocumentReader, Question, check_age
from peerseal.trust.foreign import NO_FEDERATION, FederationSource, ForeignDomains
from peerseal.trust.peer_checkpoints import PeerCheckpoints, SplitView
from peerseal.trust.shelf import CachedSubject, ShelfContext
from peerseal.trust.shelves import DomainShelf, FederationShelf, KeyShelf, PolicyShelf, StatementShelf

log = logging.getLogger("peerseal.trust")


class TrustStore:
    """Answers a verifier's look-ups of keys, policies and settings (a `KeySource`) from a registry's documents.

    ``registry`` is its URL, or several (the primary and its mirrors), as a sequence or joined by commas. ``pin`` is the
    RFC 7638 thumbprint of the registry's root key; it may be left out only where every URL is on loopback.
    ``cache_dir`` is a folder in which the documents and the newest checkpoint of the ledger outlive this process, and
    which it shares with the other processes of its host. ``sign_reading`` takes a target at the registry and returns a
    request token for a GET of it; the store reads restricted policies with it. ``uptime`` gives the seconds since the
    machine started, including the time for which it was suspended. With ``federation`` a question about a service of
    another trust domain is answered as the registry's federation document says (`peerseal.trust.foreign`); without it
    such a service is unknown. ``on_split_view`` is called when a checkpoint that a peer told of proves that the ledger
    has two histories. ``witnesses`` are the keys of witnesses (``NAME+ID+KEY``). At least ``quorum`` of them must
    cosign each checkpoint, in addition to the quorum that the root names. The attribute ``reader`` fetches and checks
    the documents.

    The constructor makes no call and starts no thread; the methods do. Safe to use from threads, and before and after a
    fork: each look-up first checks whether the process was forked.
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
        federation: bool = True,
        on_split_view: Callable[[SplitView], object] | None = None,
        witnesses: Sequence[str] = (),
        quorum: int | None = None,
    ) -> None:
        _check_options(registry, pin, limits, clock, cache_dir, uptime)
        check_flag("federation", federation)
        limits = self._limits = limits or TrustLimits()
        self._clock, self._uptime = clock, uptime
        # what fetches and checks documents
        folder = None if cache_dir is None else Path(cache_dir)
        copies = NoCopies() if folder is None else CopyFolder(folder, f"documents-{_name_of(registry, pin)}")
        fetcher = _http_fetcher(registry, pin) if fetcher is None else fetcher
        own = quorum_of(witnesses, quorum)
        self.reader = DocumentReader(
            fetcher, pin=pin, limits=limits, clock=clock, cache_dir=folder, copies=copies, quorum=own
        )
        # what follows the changes, and confirms older beliefs by them; lambdas, since the renewal is made below
        self._awake, working = AwakePeriods(limits, uptime), BackgroundWork()
        shared = None if folder is None else SharedChanges(copies)
        self._changes = ChangesFollower(
            self.reader, shared, self._awake, limits, clock, working, lambda: self._renewal.watched()
        )
        confirmation = Confirmation(self._changes, self.reader, self._awake, limits, lambda: self._renewal.followed())
        # what is believed, and the thread that renews it
        current = CurrentLists(self.reader, copies, limits, clock)
        context = ShelfContext(self.reader, copies, confirmation, current, self._awake, limits, clock)
        self._key_shelf, self._policy_shelf = KeyShelf(context), PolicyShelf(context, sign_reading)
        self._domain_shelf, self._statement_shelf = DomainShelf(context), StatementShelf(context)
        federations = FederationShelf(context, lambda found: self._foreign.take(found))  # of the domains made below
        source = FederationSource(federations.value_in_memory, lambda: federations.ask(registry_id(self.domain)))
        self._foreign_folders = ForeignFolders(cache_dir, _name_of(registry, pin))
        self._foreign = ForeignDomains(
            source if federation else NO_FEDERATION,
            self._open_foreign,
            self._fetcher_of_foreign,
            limits.foreign_waits,
            self._foreign_folders.keep_only,
        )
        shelves = self._domain_shelf, federations, self._policy_shelf, self._key_shelf, self._statement_shelf
        evidence = None if folder is None else cache_folder(folder).inner("split-views")
        self._checkpoints = PeerCheckpoints(self.reader, limits, clock, evidence, on_split_view)
        self._refuses = limits.refuse_split_view
        caches = *shelves, confirmation, current, self._checkpoints, self.reader.witnessed
        self.reader.replaced_ledgers.caches = caches
        self._renewal = Renewal(context, self._changes, shelves, working)
        self._thread = BackgroundThread(
            self._round, lambda: self.fetcher.hang_up(), self._changes.outgrown, limits, self._awake
        )
        self._reset_counts()
        in_each_child(self._reset_counts)

    # ---- look-ups, as a KeySource

    def key(self, kid: str) -> TrustedKey:
        """See KeySource."""
        self._begin()
        self._refuse_while_split()
        kid = kid if type(kid) is str else exact_name(kid)
        found = self._key_shelf.in_memory(kid)
        if found is not None:
            self._hits += 1  # without a lock: the counter need not be exact
            return found
        with waiting(self._limits.patience):
            if self._is_foreign(split_kid(kid)[0]):
                return self._foreign.key(kid)
            self._misses += 1
            return self._key_shelf.ask(kid)

    def known_key(self, kid: str, *, recorded: bool = False) -> TrustedKey | None:
        """As `key`, or `recorded_key`, from memory alone, so that an event loop may use it; None where memory lacks the
        key. It never waits and makes no call."""
        self._begin()
        if self._refuses and not self._checkpoints.standing.are_none:
            return None
        found = self._key_shelf.in_memory(kid)
        if found is not None:
            self._hits += 1
            return found
        if recorded and (stated := self._statement_shelf.in_memory(kid)) is not None:
            return stated
        return self._foreign.known_key(kid)

    def has_revoked(self, kid: str) -> bool:
        """Whether memory has it that the key was revoked. Never waits and makes no call."""
        return self._key_shelf.has_revoked(kid)

    def foreign(self, domain: str) -> ForeignKeySource | None:
        """See RemoteKeySource."""
        self._begin()
        with waiting(self._limits.patience):
            return self._foreign.domain(exact_name(domain))

    def policy(self, service_id: str) -> CallPolicy | None:
        """See KeySource."""
        self._begin()
        service_id = exact_name(service_id)
        found = self._policy_shelf.in_memory(service_id)
        if found is not None:
            return found.value
        with waiting(self._limits.patience):
            if split_service_id(service_id)[0] != self.domain:
                return None  # of another trust domain, about which this registry says nothing
            return self._policy_shelf.ask(service_id)

    def settings(self) -> DomainSettings:
        """See KeySource."""
        self._begin()
        found = self._domain_shelf.value_in_memory()
        if found is not None:
            return found
        with waiting(self._limits.patience):
            return self._domain_shelf.ask(registry_id(self.domain))

    def recorded_key(self, kid: str) -> TrustedKey:
        """See KeySource."""
        self._begin()
        self._refuse_while_split()
        kid = exact_name(kid)
        found = self._key_shelf.in_memory(kid) or self._statement_shelf.in_memory(kid)
        if found is not None:
            return found
        with waiting(self._limits.patience):
            owner = split_kid(kid)[0]
            if self._is_foreign(owner):
                return self._foreign.recorded_key(kid)
            return self._registry_key(kid) if owner == registry_id(self.domain) else self._statement_shelf.ask(kid)

    @property
    def domain(self) -> str:
        """The registry's trust domain, from memory, from the copy on disk or from the registry, in this order. Raises
        TrustUnavailable where none of them has it."""
        notice_fork()
        registry_keys = self.reader.registry_keys_in_memory()
        if registry_keys is None:
            with waiting(self._limits.patience):
                registry_keys = self.reader.registry_keys()
        return registry_keys.subject

    def recall(self, kid: str, audience: str, *, recorded_kid: str | None = None) -> Recalled | None:
        """What memory holds now for one verification: the policy of ``audience`` (a service id) and the key ``kid``;
        for a transaction token also the key ``recorded_kid`` of its signer, and the domain's settings.

        None if memory lacks one of them, or a key is not good: then call `key` and the other methods in a thread that
        may wait. This method never waits and makes no call, so an event loop may use it.
        """
        self._begin()
        if self._refuses and not self._checkpoints.standing.are_none:
            return None
        registry_keys, settings = self.reader.registry_keys_in_memory(), self._domain_shelf.value_in_memory()
        if registry_keys is None or (recorded_kid is not None and settings is None):
            return None
        keys = dict[str, TrustedKey]()
        for each in (kid,) if recorded_kid is None else (kid, recorded_kid):
            key = self._key_shelf.in_memory(each)
            if key is None and each != recorded_kid:  # transactions of other domains need their settings too
                key = self._foreign.known_key(each)
            if key is None:
                return None
            keys[each] = key
        policy = self._policy_shelf.in_memory(audience)
        if policy is None and split_service_id(audience)[0] == registry_keys.subject:
            return None
        self._hits += 1
        value = None if policy is None else policy.value
        return Recalled(registry_keys.subject, audience, value, keys, settings)

    def deadline(self) -> Deadline:
        """See RemoteKeySource. All look-ups in the block together may wait for ``TrustLimits.patience`` seconds. A
        look-up outside of such a block may wait that long by itself."""
        return Deadline(self._limits.patience)

    # ---- keeping what is known up to date

    def watch(self, services: Iterable[str]) -> None:
        """Fetch the keys of these services (ids) now, rather than at their first call. Failures are logged only."""
        notice_fork()
        for service_id in services:
            try:
                if split_service_id(service_id)[0] != self.domain:
                    self._foreign.watch(service_id)
                    continue
                item = self._key_shelf.item(service_id)
            except PeersealError as error:
                log.warning("cannot watch %s: %s", text_like(service_id), error)
            else:
                self._key_shelf.fetch_now(item)

    def refresh(self) -> None:
        """Do one round of the background thread's work: ask what changed, without waiting, and renew what is due. Then
        the same at each foreign registry that is followed.

        Raises no PeersealError: a failure is logged, removes no belief, and does not stop the rest of the round.
        """
        notice_fork()
        self._renewal.refresh()
        self._checkpoints.follow()
        for store in self._foreign.stores().values():
            store.refresh()

    def stop(self) -> None:
        """End the background threads of this process, for good."""
        notice_fork()
        self._checkpoints.stop()
        self._thread.stop()
        self._changes.stop()
        self._foreign.stop()

    # ---- peers as witnesses

    def follow_ledger(self) -> None:
        """See the newest checkpoints of the ledger from now on, also if this process verifies no caller. A failure is
        logged only."""
        try:
            self.settings()  # what the store holds is renewed, and every answer brings a checkpoint
        except PeersealError as error:
            log.warning("the registry's ledger cannot be followed yet: %s", error)

    def checkpoint_for(self, peer: str, fits: Callable[[str], bool] = lambda _: True) -> str | None:
        """What to tell this peer in ``cp`` now: the newest checkpoint of the ledger, if it was not told yet and fits.
        The peer is a service id before a call, and the caller's kid in an answer. None most of the time. Makes no
        call."""
        self._begin()
        return self._checkpoints.tellings.checkpoint_for(peer, fits)

    def accepted(self, request_token: str, kid: str) -> None:
        """The call with this token of ours has a verified answer, signed by this key."""
        self._checkpoints.tellings.accepted(request_token, kid)

    def not_accepted(self, request_token: str) -> None:
        """The call with this token of ours failed, or its answer does not show that the callee accepted it: the
        checkpoint in it, if any, is told again."""
        self._checkpoints.tellings.not_accepted(request_token)

    def heard(self, cp: str, from_kid: str) -> None:
        """Compare, later and in another thread, the checkpoint that the key of a verified service told of."""
        self._checkpoints.heard(cp, from_kid)

    # ---- single documents, and the state of the store

    def document(
        self,
        kind: type[D],
        path: str,
        subject: str,
        *,
        headers: Callable[[str], Mapping[str, str]] | None = None,
        max_age: float | None = None,
        witnessed: bool = True,
    ) -> D:
        """The document of that kind about ``subject``, fetched now from the first mirror whose answer passes every
        check: signature, time, subject, its place in the ledger, and that this ledger continues the one seen before.

        It covers all of the ledger that was seen. ``headers`` is a function from the final path, which says how
        much that is (``?seq=``), to the request's headers. ``max_age`` is in seconds since the document was signed.
        ``witnessed`` says that witnesses must have cosigned it, if any are asked for.
        Nothing is cached. The fetch is repeated once if the root declared another ledger. Raises FetchError (with
        ``http_status`` 404 where there is no such document), DocumentRefused or TrustUnavailable.
        """
        notice_fork()

        def check(document: D) -> None:
            if max_age is not None:
                check_age(document, max_age, self._clock())

        seen = self.reader.seen()
        question = Question(kind, path, subject, seen, headers=headers, check=check, witnessed=witnessed)
        return self.reader.retrying_on_new_ledger(lambda: self.reader.fetch_whole(question)).document

    def read_statement(self, jws: str) -> KeyStatement:
        """The registry's statement about a key of this process, which needs no witness. Raises DocumentRefused,
        FetchError or TrustUnavailable."""
        return self.reader.read(KeyStatement, jws, witnessed=False)

    def status(self, *, start: bool = True) -> "TrustStatus":
        """The state of this process's store, for readiness checks and for metrics. Makes no call itself; with ``start``
        it starts the background thread, which fetches the registry's keys where they are not known yet."""
        if start:
            self._begin()
        now, root = self._clock(), self.reader.registry_keys_in_memory()
        items = list(self._key_shelf.items.items())
        services = {name: ServiceStatus.of(item, now) for name, item in items if item.known}
        fetches, failed = dict(self.reader.fetches), dict(self.reader.failed)
        cosigned_entries, uncosigned_for = self.reader.witnessed.state() or (None, None)
        return TrustStatus(
            *(root is not None, self._changes.leads, self._hits, self._misses, fetches, services, failed),
            refused=dict(self.reader.refused),
            root_good_for=None if root is None else root.expires_at - now,
            clock_offset=self.reader.clock_offset,
            cosigned_entries=cosigned_entries,
            uncosigned_for=uncosigned_for,
            foreign={domain: store.status(start=False) for domain, store in self._foreign.stores().items()},
        )

    def collect_checkpoints(self) -> list[Metric]:
        """The metrics of the checkpoints that peers told each other."""
        return self._checkpoints.collect()

    @property
    def fetcher(self) -> Fetcher:
        """The HTTP client for the registry."""
        return self.reader.fetcher

    @fetcher.setter
    def fetcher(self, fetcher: Fetcher) -> None:
        self.reader.fetcher = fetcher

    # ---- parts of the above

    def _round(self, stopping: threading.Event) -> RoundResult:
        result = self._renewal.round(stopping)
        self._checkpoints.follow()
        return result

    def _begin(self) -> None:
        """Called first in each look-up: start the background thread, if this process has none."""
        notice_fork()
        if self._thread.idle:
            self._thread.start()

    def _refuse_while_split(self) -> None:
        """Where the limits say so, raises SplitViewFound while the ledger has two histories. Raises TrustUnavailable
        where that is not known."""
        if self._refuses and not self._checkpoints.standing.are_none:
            with waiting(self._limits.patience):
                self._checkpoints.standing.check()

    def _is_foreign(self, service_id: str) -> bool:
        """Whether the service is of another trust domain than this registry's. Raises TrustUnavailable."""
        return split_service_id(service_id)[0] != self.domain

    def _open_foreign(self, entry: FederatedDomain) -> "TrustStore":
        """A store for a foreign registry: with its own documents, limits, threads and folder, and without foreign
        domains of its own."""
        store = TrustStore(
            entry.urls,
            pin=entry.root,
            limits=self._limits,
            clock=self._clock,
            fetcher=self._fetcher_of_foreign(entry),
            cache_dir=self._foreign_folders.of(entry.root),
            uptime=self._uptime,
            federation=False,
        )
        store.reader.hints = False
        return store

    def _fetcher_of_foreign(self, entry: FederatedDomain) -> Fetcher:
        for_registry: Callable[[Sequence[str]], Fetcher] = getattr(self.fetcher, "for_registry", HttpFetcher)
        return for_registry(entry.urls)

    def _registry_key(self, kid: str) -> TrustedKey:
        """The registry's signing key with that kid: such a key signs the tokens that the registry issues in exchange.
        Raises UnknownKey if the root names no such key, or TrustUnavailable."""
        self.settings()  # caching them makes the store follow the changes, and so learn when the root removes a key
        for load in (self.reader.registry_keys, self.reader.load_registry_keys):
            for key in load().signing_keys:
                if make_kid(registry_id(self.domain), key.thumbprint) == kid:
                    return TrustedKey(kid, registry_id(self.domain), key, 0, LATEST_TIME)
        raise UnknownKey(f"the root does not name {kid}")

    def _reset_counts(self) -> None:
        """Called at the start and in each forked child, since each process counts for itself."""
        self._hits = self._misses = 0


def quorum_of(witnesses: Sequence[str], quorum: int | None) -> Quorum | None:
    """The witnesses that a client asks for itself; None where it asks for none. Raises ConfigurationError."""
    if witnesses != ():
        check_text_or_texts("witnesses", witnesses)
    keys = (witnesses,) if isinstance(witnesses, str) else tuple(witnesses)
    if quorum is None and not keys:
        return None
    if quorum is None or not keys:
        raise ConfigurationError("witnesses and quorum belong together: name the keys, and how many of them are needed")
    try:
        return Quorum.of(keys, quorum)
    except MalformedToken as error:
        raise ConfigurationError(f"witnesses: {error}") from error


def _name_of(registry: str | Sequence[str], pin: str | None) -> str:
    """The name of one registry in a cache folder: its pin, or a hash of its URLs if there is no pin."""
    if pin is not None:
        return pin
    urls = registry if isinstance(registry, str) else ",".join(registry)
    return hashlib.sha256(urls.encode()).hexdigest()[:32]


def _check_options(
    registry: object, pin: object, limits: object, clock: object, cache_dir: object, uptime: object
) -> None:
    """Raises ConfigurationError for invalid options."""
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
        raise ConfigurationError(
            "PEERSEAL_REGISTRY_PIN is not set: a registry that is not on loopback needs a pin, its root key's"
            " thumbprint; `peerseal-registry init` prints it"
        )
    return fetcher


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """What is held about one service: how many ``keys``, how many seconds ago they were confirmed (``age``), for how
    many more seconds they are believed (``good_for``), and how many renewals in a row failed."""

    keys: int
    age: float
    good_for: float
    failures: int

    @classmethod
    def of(cls, item: CachedSubject[KnownService], now: float) -> Self:
        """As of that time."""
        keys, confirmed_at = (len(item.known.keys), item.known.confirmed_at) if item.known else (0, 0)
        return cls(keys, now - confirmed_at, item.good_until - now, item.failures)


@dataclass(frozen=True, slots=True)
class TrustStatus:
    """One process's trust store. ``ready`` is true if the registry's keys are known, so that callers can be verified.
    ``leads`` is true if this process, not another one on the host, asks the registry for changes. ``hits`` counts the
    keys that memory had, and ``misses`` the others. ``fetches`` counts the attempts to fetch a document from the
    registry, by kind, and ``failed`` the attempts that failed, except for 404, which is an answer. ``refused`` counts
    refused documents by code. ``root_good_for`` is the time in seconds until the root's document ends; ``clock_offset``
    the seconds by which this host's clock is ahead of the registry's. Both are None where they are not known.
    ``cosigned_entries`` are the entries of the ledger that enough witnesses have cosigned, and ``uncosigned_for`` the
    seconds for which others have been known; both are None where no cosignatures are asked for.
    ``foreign`` has the status of the store of each foreign trust domain that was asked about."""

    ready: bool
    leads: bool
    hits: int
    misses: int
    fetches: Mapping[str, int]
    services: Mapping[str, ServiceStatus] = field(default_factory=dict)
    failed: Mapping[str, int] = field(default_factory=dict)
    refused: Mapping[str, int] = field(default_factory=dict)
    root_good_for: float | None = None
    clock_offset: float | None = None
    cosigned_entries: int | None = None
    uncosigned_for: float | None = None
    foreign: Mapping[str, "TrustStatus"] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The status as a JSON object, with ``foreign`` where there are foreign domains."""
        members = asdict(self)
        if not self.foreign:
            del members["foreign"]
        return members

    def metrics(self) -> str:
        """The same in Prometheus' text format (version 0.0.4)."""
        return metrics(self.collect)

    def collect(self) -> list[Metric]:
        """The same as Metric objects. After the first 100 services in alphabetical order, the others are together as
        ``other``: the sum of their keys, and of anything else the worst value."""
        return list(self._collected())

    def _collected(self) -> Iterator[Metric]:
        yield _gauge("ready", "1 if the registry's keys are known, else 0.", int(self.ready))
        yield _gauge("leads", "1 if this process asks the registry for changes, else 0.", int(self.leads))
        yield Metric("peerseal_trust_hits_total", "counter", "Keys that were in memory.", (({}, self.hits),))
        yield Metric("peerseal_trust_misses_total", "counter", "Keys that were not in memory.", (({}, self.misses),))
        fetches, failed = dict(sorted(self.fetches.items())), dict(sorted(self.failed.items()))
        yield counted("peerseal_trust_fetches_total", "Documents asked of the registry.", "document", fetches)
        failures = "Documents that could not be fetched, or were refused."
        yield counted("peerseal_trust_fetch_failures_total", failures, "document", failed)
        refused = dict(sorted(self.refused.items()))
        yield counted("peerseal_trust_documents_refused_total", "Refused documents, by code.", "code", refused)
        if self.root_good_for is not None:
            yield _gauge("root_good_for_seconds", "Until the root's document ends.", self.root_good_for)
        if self.clock_offset is not None:
            ahead = "Seconds by which this host's clock is ahead of the registry's."
            yield _gauge("clock_offset_seconds", ahead, self.clock_offset)
        if self.cosigned_entries is not None:
            yield _gauge("cosigned_entries", "Entries that enough witnesses have cosigned.", self.cosigned_entries)
        if self.uncosigned_for is not None:
            yield _gauge("uncosigned_seconds", "For how long others have been known.", self.uncosigned_for)
        yield from self._of_foreign_domains()
        services = sorted({**self.services, **dict(_foreign_services(self.foreign))}.items())
        for name, (metric, help, together) in _OF_SERVICES.items():
            values = {service: float(getattr(status, name)) for service, status in services[:MOST]}
            if beyond := [float(getattr(status, name)) for _, status in services[MOST:]]:
                values[OTHER] = together(beyond)
            samples = tuple(({"service": service}, value) for service, value in values.items())
            yield Metric(f"peerseal_trust_{metric}", "gauge", help, samples)

    def _of_foreign_domains(self) -> Iterator[Metric]:
        if self.foreign:
            samples = tuple(({"domain": domain}, int(status.ready)) for domain, status in self.foreign.items())
            known = "1 if the keys of the foreign domain's registry are known, else 0."
            yield Metric("peerseal_trust_foreign_ready", "gauge", known, samples)
            failed = {domain: sum(status.failed.values()) for domain, status in self.foreign.items()}
            failures = "Documents of foreign registries that could not be fetched, or were refused."
            yield counted("peerseal_trust_foreign_fetch_failures_total", failures, "domain", failed)


def _foreign_services(foreign: Mapping[str, TrustStatus]) -> Iterator[tuple[str, ServiceStatus]]:
    for status in foreign.values():
        yield from status.services.items()


_OF_SERVICES: Final[dict[str, tuple[str, str, Callable[[Iterable[float]], float]]]] = {
    "keys": ("keys", "Keys of a service that are in memory.", sum),
    "age": ("age_seconds", "Seconds since the keys of a service were confirmed.", max),
    "good_for": ("good_for_seconds", "Seconds for which the keys of a service are still believed.", min),
    "failures": ("renewal_failures", "Failed renewals in a row of a service's keys.", max),
}
"""By the name in `ServiceStatus`: the metric's name and help, and what the services after the first hundred become
together: alerts compare the worst value."""


def _gauge(name: str, help: str, value: float) -> Metric:
    return Metric(f"peerseal_trust_{name}", "gauge", help, (({}, value),))
