"""The key sets of services: the shelf from which the trust store answers for a kid.

Where the whole domain may call, anyone can make kids up. So a fetch for an unknown kid of a known service, and one for
an unknown service, have budgets, and what the registry does not know is remembered for a while.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from peerseal.errors import RevokedKey, TrustUnavailable, UnknownKey
from peerseal.protocol.documents.key_set import JwkSetDocument
from peerseal.protocol.names import split_kid, split_service_id
from peerseal.runtime.token_bucket import TokenBucket
from peerseal.trust.beliefs import KnownService, TrustedKey
from peerseal.trust.replaced_ledger import REVOKED_FOR_GOOD
from peerseal.trust.shelf import Environment, Item, Shelf


class KeyShelf(Shelf[JwkSetDocument, KnownService, TrustedKey]):
    """The key sets of the services that were asked about. ``held`` maps each kid to its key and the item of its owner,
    which says until when it is believed."""

    document = JwkSetDocument
    what = "keys"
    path = "/v1/services/{}/jwks.jwt"
    file = "keys-{}.jwt"
    may_be_absent = True

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        limits = environment.limits
        self.held: dict[str, tuple[TrustedKey, Item[KnownService]]] = {}
        self._strangers = TokenBucket(limits.stranger_fetches, limits.stranger_rate, environment.clock)
        self._doubtful = threading.Semaphore(limits.doubtful_fetches)

    def ask(self, kid: str) -> TrustedKey:
        """The key with that kid, which memory did not have: looked for again, and fetched once where that may help.

        Raises UnknownKey, RevokedKey or TrustUnavailable.
        """
        service_id = split_kid(kid)[0]
        domain = self._reader.registry_keys().subject
        if split_service_id(service_id)[0] != domain:
            raise UnknownKey(f"{service_id} is not of the trust domain {domain}")
        return self._ask(self.item(service_id), kid)

    def item(self, service_id: str) -> Item[KnownService]:
        """What is held about that service. Raises TrustUnavailable where there is no room for one more."""
        item = self.items.get(service_id)
        if item is None:
            if len(self.items) >= self._limits.max_services:
                self._forget_strangers()
            if len(self.items) >= self._limits.max_services:
                raise TrustUnavailable(f"no room for {service_id}: {self._limits.max_services} services are remembered")
            item = self.items.setdefault(service_id, self._new_item(service_id))
        return item

    def endings(self) -> Mapping[str, int]:
        """See LedgerFollower."""
        ends: dict[str, int] = {}
        for known in filter(None, (item.known for item in self._all())):
            ends |= {kid: key.active_until for kid, key in known.keys.items()}
            ends |= dict.fromkeys(known.revoked, REVOKED_FOR_GOOD)
        return ends

    def renew_locks(self) -> None:
        """See Shelf."""
        super().renew_locks()
        self._doubtful = threading.Semaphore(self._limits.doubtful_fetches)

    def _belief(self, document: JwkSetDocument, known: KnownService | None) -> KnownService:
        return KnownService.of(document) if known is None else known.updated(document)

    def _find(self, known: KnownService, name: str) -> TrustedKey | None:
        if name in known.revoked:
            raise RevokedKey(f"{name} was revoked")
        return known.keys.get(name)

    def _lists(self, known: KnownService, name: str) -> bool:
        return known.lists(name)

    @contextmanager
    def _budget(self, item: Item[KnownService]) -> Iterator[None]:
        """Known services have their own cooldowns, and are not held up by what strangers use."""
        if item.known is None and not self._strangers.take():
            raise TrustUnavailable(f"too many unknown services: {item.subject} is not fetched now", retry_after=1)
        if item.known is None or not self.is_believed(item):
            yield
        elif self._doubtful.acquire(blocking=False):
            try:
                yield
            finally:
                self._doubtful.release()
        else:
            raise TrustUnavailable(f"too many unknown kids: {item.subject} is not fetched now", retry_after=1)

    def _index(self, item: Item[KnownService], known: KnownService | None) -> None:
        """New keys go in before old ones go out."""
        before, after = item.known.keys if item.known else {}, known.keys if known else {}
        item.absent.discard(after)
        self.held.update({kid: (key, item) for kid, key in after.items()})
        for kid in before.keys() - after.keys():
            self.held.pop(kid, None)

    def _forget_strangers(self) -> None:
        """Make room: remove names that are not registered."""
        for item in self._all():
            if item.known is None and item.lock.acquire(blocking=False):  # not being fetched now
                try:
                    if item.known is None:
                        self.items.pop(item.subject, None)
                finally:
                    item.lock.release()
