"""Keys of other trust domains, each from its own registry, as the own registry's federation document allows.

The document names the root key and the URLs of each foreign registry. A trust store of its own follows that registry:
with its own documents, limits, budgets, threads and folder, so that a foreign registry that is down, hangs or lies
touches nothing of the own domain. A store is opened at the first question about its domain, and closed as soon as the
document no longer names its root. Under other URLs the same root is the same registry, and its store stays. Its
registry speaks for the one domain in the document, and for no third one: the federation document of a foreign registry
is never read.

While a foreign domain replaces its root, the document names two registries for it. A key is believed if either vouches
for it and neither is known to have revoked it.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol

from peerseal.errors import RevokedKey, TrustUnavailable, UnknownKey
from peerseal.protocol.documents.federation import FederatedDomain, Federation
from peerseal.protocol.names import REGISTRY, split_kid, split_service_id
from peerseal.protocol.policies import CallPolicy, DomainSettings
from peerseal.runtime.forks import in_each_child
from peerseal.transport.fetch import Fetcher
from peerseal.trust.beliefs import KeySource, TrustedKey

if TYPE_CHECKING:
    from peerseal.trust.store import TrustStatus

Place = tuple[str, str]
"""A foreign domain and the thumbprint of a root, which are one registry, whatever its URLs."""

_JOINED_FOR: Final = 1.0
"""Seconds for which `ForeignDomains.stop` waits for the threads of foreign stores, all together."""


class ForeignStore(KeySource, Protocol):
    """The trust store of one foreign registry. It asks by the ``fetcher``, which may be replaced."""

    fetcher: Fetcher

    def known_key(self, kid: str, *, recorded: bool = False) -> TrustedKey | None:
        """See TrustStore."""

    def has_revoked(self, kid: str) -> bool:
        """See TrustStore."""

    def watch(self, services: Iterable[str]) -> None:
        """See TrustStore."""

    def refresh(self) -> None:
        """See TrustStore."""

    def stop(self) -> None:
        """See TrustStore."""

    def status(self, *, start: bool = True) -> "TrustStatus":
        """See TrustStore."""


@dataclass(frozen=True, slots=True)
class FederationSource:
    """Where the federation of the own domain comes from: from memory, where memory has it and it is believed now; or by
    a question that may wait, and raises TrustUnavailable."""

    in_memory: Callable[[], Federation | None]
    ask: Callable[[], Federation]


NO_FEDERATION: Final = FederationSource(Federation, Federation)
"""No other domain is believed."""


class FollowedRegistry:
    """A foreign registry and its store. Only a few threads may wait for it at once: the others are refused, so that a
    registry that hangs does not hold all threads of a server."""

    def __init__(self, entry: FederatedDomain, store: ForeignStore, waits: int) -> None:
        self.entry = entry
        self.store = store
        self._waits = waits
        self.renew_turns()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """A question that may wait. Raises TrustUnavailable where too many others wait, and names the registry in each
        TrustUnavailable of the block."""
        if not self._turns.acquire(blocking=False):
            detail = f"{self._waits} questions to the registry of {self.entry.domain} wait already"
            raise TrustUnavailable(detail, retry_after=1)
        try:
            yield
        except TrustUnavailable as error:
            detail = f"the foreign registry of {self.entry.domain} at {self.entry.urls[0]}: {error}"
            raise TrustUnavailable(detail, retry_after=error.retry_after) from error
        finally:
            self._turns.release()

    def move(self, entry: FederatedDomain, fetcher: Fetcher) -> None:
        """Ask at the other URLs of that entry from now on. Each belief stays: the root vouches for it."""
        before, self.store.fetcher, self.entry = self.store.fetcher, fetcher, entry
        before.hang_up()

    def renew_turns(self) -> None:
        """In a forked child: the threads that waited are gone."""
        self._turns = threading.Semaphore(self._waits)


class ForeignDomains:
    """The foreign trust domains of one trust store. ``open_store`` makes the store of a registry in the federation
    document, and ``fetcher_of`` what asks at its URLs; ``waits`` is how many threads may wait for each registry;
    ``keep_only`` removes the folders of all roots but these. Safe to use from threads, and before and after a fork."""

    def __init__(
        self,
        federation: FederationSource,
        open_store: Callable[[FederatedDomain], ForeignStore],
        fetcher_of: Callable[[FederatedDomain], Fetcher],
        waits: int,
        keep_only: Callable[[Set[str]], object],
    ) -> None:
        self._federation = federation
        self._open_store = open_store
        self._fetcher_of = fetcher_of
        self._waits = waits
        self._keep_only = keep_only
        self._roots = frozenset[str]()
        self._followed: dict[Place, FollowedRegistry] = {}
        self._named: Mapping[Place, FederatedDomain] = {}
        self._stopped = False
        self._renew_locks()
        in_each_child(self._renew_locks)

    # ---- look-ups

    def key(self, kid: str) -> TrustedKey:
        """See KeySource."""
        return self._key(kid, lambda store: store.key(kid))

    def recorded_key(self, kid: str) -> TrustedKey:
        """See KeySource."""
        return self._key(kid, lambda store: store.recorded_key(kid), recorded=True)

    def known_key(self, kid: str) -> TrustedKey | None:
        """The key from memory alone; None where memory lacks it, or where it is not good."""
        federation = self._federation.in_memory() if self._named else None
        if federation is None:
            return None
        try:
            entries = _entries_for(split_kid(kid)[0], federation)
            found = _in_memory(self._following(entries), kid)
            return None if found is None else self._under(entries, found)
        except (UnknownKey, RevokedKey):
            return None

    def settings(self, domain: str) -> DomainSettings:
        """The settings of a foreign domain, from the first of its registries that has them. Raises UnknownKey or
        TrustUnavailable."""
        failure: TrustUnavailable | None = None
        for registry in self._following(self._current().of(domain)):
            try:
                with registry.turn():
                    return registry.store.settings()
            except TrustUnavailable as error:
                failure = error
        raise failure or UnknownKey(f"there is no federation with {domain}")

    def domain(self, name: str) -> "ForeignDomain | None":
        """The source for that domain, where the federation names it. Raises TrustUnavailable."""
        entries = self._current().of(name)
        return ForeignDomain(entries[0], self) if entries else None

    def watch(self, service_id: str) -> None:
        """Fetch the keys of that service now. Raises UnknownKey or TrustUnavailable."""
        for registry in self._following(_entries_for(service_id, self._current())):
            registry.store.watch((service_id,))

    def _current(self) -> Federation:
        return self._federation.in_memory() or self._federation.ask()

    def _key(self, kid: str, look_up: Callable[[ForeignStore], TrustedKey], *, recorded: bool = False) -> TrustedKey:
        entries = _entries_for(split_kid(kid)[0], self._current())
        registries = self._following(entries)
        found = _in_memory(registries, kid, recorded=recorded)
        return self._under(entries, _first_found(registries, look_up) if found is None else found)

    def _under(self, entries: Sequence[FederatedDomain], key: TrustedKey) -> TrustedKey:
        """The key under the limits of the federation, which may have been taken away while it was fetched."""
        if not self._named.keys() >= set(map(_place, entries)):
            raise UnknownKey(f"the federation with {entries[0].domain} was taken away")
        return replace(key, federated=entries[0])

    # ---- the stores

    def take(self, federation: Federation | None) -> None:
        """Close the stores that the federation no longer names, and remove their folders. Those whose URLs changed ask
        at the new ones. Nothing is opened: that waits for a question. None says that no federation is known now: then
        no store is open, and each folder stays."""
        named = {} if federation is None else {_place(entry): entry for entry in federation.domains}
        with self._lock:
            self._named = named
            if federation is not None:
                self._roots = frozenset(entry.root for entry in federation.domains)
            gone = [self._followed.pop(place) for place in tuple(self._followed) if place not in named]
            for place, registry in self._followed.items():
                if registry.entry.urls != named[place].urls:
                    registry.move(named[place], self._fetcher_of(named[place]))
        stopping = _stopping(gone)
        if federation is not None and stopping:
            threading.Thread(target=self._forget, args=(stopping,), name="peerseal-foreign-forget", daemon=True).start()
        elif federation is not None:
            self._keep_only(self._roots)

    def _forget(self, stopping: Iterable[threading.Thread]) -> None:
        """Remove the folders once the stores have stopped: before that they may make them again."""
        for thread in stopping:
            thread.join()
        self._keep_only(self._roots)

    def stop(self) -> None:
        """End the background threads of all stores, for good."""
        with self._lock:
            self._stopped = True
            followed = list(self._followed.values())
        until = time.monotonic() + _JOINED_FOR
        for thread in _stopping(followed):
            thread.join(timeout=max(0.0, until - time.monotonic()))

    def stores(self) -> Mapping[str, ForeignStore]:
        """The open stores, by domain; of a domain with two registries the second one has its root in the name."""
        found: dict[str, ForeignStore] = {}
        followed = list(self._followed.values())
        for registry in sorted(followed, key=lambda one: one.entry.root):
            domain = registry.entry.domain
            found[f"{domain} ({registry.entry.root})" if domain in found else domain] = registry.store
        return found

    def _following(self, entries: Sequence[FederatedDomain]) -> list[FollowedRegistry]:
        """The registries of these entries, followed from now on. Raises UnknownKey for one that was taken away."""
        return [self._followed.get(_place(entry)) or self._opened(entry) for entry in entries]

    def _opened(self, entry: FederatedDomain) -> FollowedRegistry:
        place = _place(entry)
        with self._lock:
            named = self._named.get(place)
            if named is None:
                raise UnknownKey(f"the federation with {entry.domain} was taken away")
            if place not in self._followed:
                self._followed[place] = FollowedRegistry(named, self._open_store(named), self._waits)
                if self._stopped:
                    self._followed[place].store.stop()
            return self._followed[place]

    def _renew_locks(self) -> None:
        self._lock = threading.Lock()
        for registry in self._followed.values():
            registry.renew_turns()


@dataclass(frozen=True, slots=True)
class ForeignDomain:
    """See ForeignKeySource: the keys and settings of one foreign domain."""

    federated: FederatedDomain
    _foreign: ForeignDomains

    @property
    def domain(self) -> str:
        """See KeySource."""
        return self.federated.domain

    def key(self, kid: str) -> TrustedKey:
        """See KeySource. Raises UnknownKey for a key of any other domain too."""
        return self._foreign.key(self._of_domain(kid))

    def recorded_key(self, kid: str) -> TrustedKey:
        """See KeySource."""
        return self._foreign.recorded_key(self._of_domain(kid))

    def settings(self) -> DomainSettings:
        """See KeySource."""
        return self._foreign.settings(self.domain)

    def policy(self, service_id: str) -> CallPolicy | None:
        """See KeySource. The policies of another domain decide nothing here."""
        return None

    def _of_domain(self, kid: str) -> str:
        if split_service_id(split_kid(kid)[0])[0] != self.domain:
            raise UnknownKey(f"{kid} is not of the trust domain {self.domain}")
        return kid


def _entries_for(service_id: str, federation: Federation) -> Sequence[FederatedDomain]:
    """The entries under which that service is believed: two while its domain replaces its root. Raises UnknownKey where
    the federation does not name the service."""
    domain, _, service = service_id.partition("/")
    entries = federation.of(domain)
    if not entries:
        raise UnknownKey(f"{service_id} is of another trust domain, and there is no federation with {domain}")
    services = entries[0].services
    if service == REGISTRY or (services is not None and service not in services):
        raise UnknownKey(f"the federation with {domain} does not name its service {service}")
    return entries


def _in_memory(registries: Sequence[FollowedRegistry], kid: str, *, recorded: bool = False) -> TrustedKey | None:
    """What memory has of the key. Raises RevokedKey where one of two registries is known to have revoked it."""
    if len(registries) > 1 and any(registry.store.has_revoked(kid) for registry in registries):
        raise RevokedKey(f"{kid} was revoked")
    found = (registry.store.known_key(kid, recorded=recorded) for registry in registries)
    return next((key for key in found if key is not None), None)


def _first_found(registries: Sequence[FollowedRegistry], look_up: Callable[[ForeignStore], TrustedKey]) -> TrustedKey:
    """The key that one of the registries vouches for. All are asked, since each may have revoked it: one that does not
    answer says nothing. Raises RevokedKey, UnknownKey or TrustUnavailable."""
    found: TrustedKey | None = None
    failures: list[UnknownKey | TrustUnavailable] = []
    for registry in registries:
        try:
            with registry.turn():
                key = look_up(registry.store)
            found = found or key
        except (UnknownKey, TrustUnavailable) as error:
            failures.append(error)
    if found is not None:
        return found
    raise next((error for error in failures if isinstance(error, TrustUnavailable)), failures[0])


def _place(entry: FederatedDomain) -> Place:
    """What a store is opened for: under another root, another store follows."""
    return entry.domain, entry.root


def _stopping(registries: Sequence[FollowedRegistry]) -> list[threading.Thread]:
    """Stop the stores, in threads that are started: each may wait for a call that is under way."""
    threads = [threading.Thread(target=one.store.stop, name="peerseal-foreign-stop", daemon=True) for one in registries]
    for thread in threads:
        thread.start()
    return threads
