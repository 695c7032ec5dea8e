"""Access tokens for resource servers outside of Peerseal (RFC 6749 section 4.4, RFC 9068), in a service's own name.

Off unless an operator wrote into the domain's settings which services may have which scopes at which resource server.
"""

import logging
import time
from collections.abc import Callable, Mapping

from peerseal.protocol import jose
from peerseal.protocol.encoding import canonical_json
from peerseal.protocol.names import make_kid
from peerseal.protocol.policies import AccessGrant
from peerseal.protocol.tokens.access_token import ACCESS_TYP, AccessClaims, scope_text
from peerseal.protocol.tokens.claims import new_jti
from registry.domain.client_credentials import AccessWanted
from registry.domain.exchange import ExchangeRefused, Issued
from registry.services.access.clients import Clients
from registry.services.authority.authority import AuthoritySource

log = logging.getLogger(__name__)


class AccessTokens:
    """The use case."""

    def __init__(self, clients: Clients, authority: AuthoritySource, clock: Callable[[], float] = time.time) -> None:
        self._clients = clients
        self._authority = authority
        self._clock = clock

    def issue(self, wanted: AccessWanted, grants: Mapping[str, AccessGrant]) -> Issued:
        """The token that is asked for, if it is among the ``grants``. Raises ExchangeRefused, TrustUnavailable or
        StorageUnavailable."""
        service = self._clients.proven(wanted.assertion, wanted.client_id)
        grant = next((one for one in grants.values() if one.audience == wanted.resource), None)
        if grant is None or service not in grant.services:
            raise ExchangeRefused("invalid_target", f"{service} has no grant for that resource")
        scopes = grant.scopes if wanted.scopes is None else wanted.scopes
        if not scopes <= grant.scopes:
            raise ExchangeRefused("invalid_scope", f"wider than what {service} may")
        authority, now = self._authority.current(), int(self._clock())
        token = AccessClaims(authority.id, service, grant.audience, scopes, now, now + grant.lifetime, new_jti())
        key = authority.signing_key
        header = jose.Header(key.public.alg, make_kid(authority.id, key.public.thumbprint), ACCESS_TYP)
        jws = jose.compact(jose.encode_header(header), canonical_json(token.claims()), key.sign)
        told = service, token.audience, scope_text(scopes), grant.lifetime, token.jti
        log.info("issued access token client=%s audience=%s scope=%s lifetime=%d jti=%s", *told)
        return Issued(jws, grant.lifetime, scope_text(scopes))
