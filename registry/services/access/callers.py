"""Who calls the registry: services, by a request token or a client assertion, checked as every callee checks them."""

import time
from collections.abc import Callable

from peerseal.errors import InvalidName, RevokedKey, TokenError, TrustUnavailable, UnknownKey
from peerseal.protocol.names import REGISTRY, qualify, service_id, split_kid
from peerseal.protocol.policies import DomainSettings
from peerseal.protocol.tokens.assertion import ASSERTION_LIFETIME_CAP, ClientAssertion
from peerseal.protocol.tokens.claims import LEEWAY, check_parties, check_times
from peerseal.trust.beliefs import TrustedKey, check_window
from peerseal.verify.replay.guards import ReplayGuard
from peerseal.verify.request import Verifier
from registry.domain.errors import StorageUnavailable, Unavailable
from registry.domain.exchange import ClientRefused
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
            raise UnknownKey(f"{owner} has no key {thumbprint}")
        if record.revoked_at is not None:
            raise RevokedKey(f"the key {kid} is revoked")
        return TrustedKey(kid, owner, record.public, record.active_from, record.active_until)

    def recorded_key(self, kid: str) -> TrustedKey:
        """See KeySource: the database holds every key."""
        return self.key(kid)

    def settings(self) -> DomainSettings:
        """See KeySource: a service calls the registry for itself, never for a user."""
        return DomainSettings()

    def policy(self, service_id: str) -> None:
        """See KeySource: the use cases decide what a service may do at the registry, not an operator."""


def caller_verifier(keys: DatabaseKeys, guard: ReplayGuard, clock: Callable[[], float] = time.time) -> Verifier:
    """The registry's verifier of request tokens: audience ``<domain>/registry``, open to every service of the domain.
    The use case decides what each may do."""
    return Verifier(keys, audience=REGISTRY, allow={"*": ()}, replay=guard, clock=clock)


class Clients:
    """Identifies the client of the token endpoint by its assertion (``private_key_jwt``). ``guard`` accepts each
    assertion once."""

    def __init__(self, keys: DatabaseKeys, guard: ReplayGuard, clock: Callable[[], float]) -> None:
        self._keys = keys
        self._guard = guard
        self._clock = clock

    def proven(self, assertion: str, client_id: str | None) -> str:
        """The id of the service that made the assertion. Its key must be active now: no work in progress would suffer
        from a refusal. Raises ClientRefused or TrustUnavailable."""
        try:
            asserted, now = ClientAssertion.parse(assertion), self._clock()
            key = self._keys.key(asserted.kid)
            key.public.check_signature(asserted.alg, asserted.signing_input, asserted.signature)
            check_parties(asserted.client, key.service_id, asserted.audience, self._keys.authority.current().id)
            times = asserted.issued_at, asserted.not_before, asserted.expires_at
            check_times(*times, now=now, leeway=LEEWAY, cap=ASSERTION_LIFETIME_CAP)
            check_window(asserted.issued_at, key, LEEWAY)
            if now >= key.active_until:
                raise ClientRefused(f"the key {asserted.kid} is retired")
            if client_id is not None and qualify(client_id, self._keys.domain) != asserted.client:
                raise ClientRefused(f"client_id names another service than the assertion of {asserted.client}")
        except (TokenError, InvalidName) as error:
            raise ClientRefused(f"{error.code}: {error}") from error
        if not self._guard.claim(asserted.client, f"assertion {asserted.jti}", asserted.expires_at + LEEWAY):
            raise ClientRefused("the assertion was used before")
        return asserted.client
