"""Who asks at the token endpoint: the service that an assertion proves (``private_key_jwt``), each assertion once."""

from collections.abc import Callable

from peerseal.errors import InvalidName, TokenError
from peerseal.protocol.names import qualify
from peerseal.protocol.tokens.assertion import ASSERTION_LIFETIME_CAP, ClientAssertion
from peerseal.protocol.tokens.claims import LEEWAY, check_parties, check_times
from peerseal.trust.beliefs import check_window
from peerseal.verify.replay.guards import ReplayGuard
from registry.domain.exchange import ClientRefused
from registry.services.access.callers import DatabaseKeys
from registry.services.authority.authority import AuthoritySource


class Clients:
    """Proves clients by their registered keys. ``guard`` accepts each assertion once."""

    def __init__(
        self, keys: DatabaseKeys, authority: AuthoritySource, guard: ReplayGuard, clock: Callable[[], float]
    ) -> None:
        self._keys = keys
        self._authority = authority
        self._guard = guard
        self._clock = clock

    def proven(self, assertion: str, client_id: str | None) -> str:
        """The id of the service that the assertion proves, by a key that is active now, whenever it was signed: nothing
        was begun with it that would have to be ended. Raises ClientRefused or TrustUnavailable."""
        try:
            asserted, now = ClientAssertion.parse(assertion), self._clock()
            key = self._keys.key(asserted.kid)
            key.public.check_signature(asserted.alg, asserted.signing_input, asserted.signature)
            check_parties(asserted.client, key.service_id, asserted.audience, self._authority.current().id)
            times = asserted.issued_at, asserted.not_before, asserted.expires_at
            check_times(*times, now=now, leeway=LEEWAY, cap=ASSERTION_LIFETIME_CAP)
            check_window(asserted.issued_at, key, LEEWAY)
            if now >= key.active_until:
                raise ClientRefused("the key is retired")
            if client_id is not None and qualify(client_id, self._keys.domain) != asserted.client:
                raise ClientRefused("client_id is another service's")
        except (TokenError, InvalidName) as error:
            raise ClientRefused(f"{error.code}: {error}") from error
        if not self._guard.claim(asserted.client, f"assertion {asserted.jti}", asserted.expires_at + LEEWAY):
            raise ClientRefused("the assertion was used before")
        return asserted.client
