"""Services' own calls to the registry, verified by the same code as at every callee."""

import time
from collections.abc import Callable

from peerseal.errors import RevokedKey, TrustUnavailable, UnknownKey
from peerseal.protocol.names import REGISTRY, service_id, split_kid
from peerseal.protocol.policies import DomainSettings
from peerseal.trust.beliefs import TrustedKey
from peerseal.verify.replay.guards import ReplayGuard
from peerseal.verify.request import Verifier
from registry.domain.errors import StorageUnavailable, Unavailable
from registry.services.authority.authority import AuthoritySource
from registry.storage.queries import keys
from registry.storage.unit import Store


class DatabaseKeys:
    """A `peerseal.trust.beliefs.KeySource` over the registry's own database."""

    def __init__(self, store: Store, authority: AuthoritySource) -> None:
        self.store = store
        self.authority = authority

    @property
    def domain(self) -> str:
        """The trust domain. Raises TrustUnavailable."""
        try:
            return self.authority.current().domain
        except Unavailable as error:
            raise TrustUnavailable(str(error), error.retry_after) from error

    def key(self, kid: str) -> TrustedKey:
        """See KeySource."""
        owner, thumbprint = split_kid(kid)
        try:
            with self.store.look() as connection:
                record = keys.find(connection, thumbprint)
        except StorageUnavailable as error:
            raise TrustUnavailable(str(error), error.retry_after) from error
        if record is None or service_id(self.domain, record.service) != owner:
            raise UnknownKey("no such key of that service")
        if record.revoked_at is not None:
            raise RevokedKey("the key is revoked")
        return TrustedKey(kid, owner, record.public, record.active_from, record.active_until)

    def recorded_key(self, kid: str) -> TrustedKey:
        """See KeySource: every key is on record here."""
        return self.key(kid)

    def settings(self) -> DomainSettings:
        """See KeySource: no user stands behind a service's own calls to the registry, and nobody mints for them."""
        return DomainSettings()

    def policy(self, service_id: str) -> None:
        """See KeySource: what services may do at the registry itself, its code says and no operator."""


def caller_verifier(keys: DatabaseKeys, guard: ReplayGuard, clock: Callable[[], float] = time.time) -> Verifier:
    """The registry's verifier: audience ``<domain>/registry``, open to every service of the domain; what each may do
    is decided by the use case."""
    return Verifier(keys, audience=REGISTRY, allow={"*": ()}, replay=guard, clock=clock)
