"""Token exchange (RFC 8693): an event token for a user's token, for programs without the SDK.

Off unless an operator wrote into the domain's settings who may exchange what. The client proves itself by an assertion
of its registered key, once; the token is the registry's, names the client as actor, and is no wider than the user's
token and what the settings give the client, or of one scope that the settings derive from the user's.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Mapping

from peerseal.errors import MalformedToken, TokenError
from peerseal.protocol import jose
from peerseal.protocol.encoding import canonical_json
from peerseal.protocol.names import make_kid
from peerseal.protocol.policies import DERIVED_FROM, DomainSettings
from peerseal.protocol.policies import Exchange as Grants
from peerseal.protocol.tokens.event import EVENT_TYP, EventToken
from peerseal.protocol.tokens.request import new_jti
from peerseal.verify.derivation import derived_context
from peerseal.verify.users.verifier import User, UserVerifier
from registry.domain.exchange import ExchangeRefused, Issued, Wanted
from registry.domain.key_quality import check_quality
from registry.services.access.callers import DatabaseKeys
from registry.services.access.clients import Clients
from registry.services.authority.authority import Authority, AuthoritySource
from registry.services.documents.policies import Policies
from registry.settings import Limits

log = logging.getLogger(__name__)


class _Trust(DatabaseKeys):
    """The registry's own keys, with the domain's settings as users' issuers are looked up in them."""

    def __init__(self, keys: DatabaseKeys, policies: Policies) -> None:
        super().__init__(keys.store, keys.authority)
        self._policies = policies

    def settings(self) -> DomainSettings:
        """See KeySource. Raises StorageUnavailable."""
        return self._policies.domain().value


class TokenExchange:
    """The use case."""

    def __init__(
        self,
        keys: DatabaseKeys,
        authority: AuthoritySource,
        policies: Policies,
        clients: Clients,
        limits: Limits,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._trust = _Trust(keys, policies)
        self._users = UserVerifier(self._trust, check_key=check_quality, clock=clock)
        self._authority = authority
        self._clients = clients
        self._lifetime = limits.exchanged_token_lifetime
        self._clock = clock

    def exchange(self, wanted: Wanted, grants: Grants) -> Issued:
        """The token that is asked for, if it is among the ``grants``. Raises ExchangeRefused, TrustUnavailable or
        StorageUnavailable."""
        client = self._clients.proven(wanted.assertion, wanted.client_id)
        scopes = grants.get(client, {}).get(wanted.audience)
        if scopes is None:
            raise ExchangeRefused("invalid_target", f"{client} has no grant for that audience")
        user = self._user(wanted)
        context = self._context(wanted.scope, client, user) if wanted.scope in scopes else None
        if context is None:
            raise ExchangeRefused("invalid_scope", f"wider than what {client} or the user's token may")
        exchanged = self._issue(self._authority.current(), wanted, client, user, context)
        hashed = hashlib.sha256(user.name.encode()).hexdigest()
        source = f" derived_from={context[DERIVED_FROM]}" if DERIVED_FROM in context else ""
        told = client, wanted.audience, wanted.scope, source, hashed
        log.info("exchanged client=%s audience=%s scope=%s%s user=%s", *told)
        return exchanged

    def _user(self, wanted: Wanted) -> User:
        try:
            return self._users.verify(wanted.subject_token)
        except TokenError as error:
            raise ExchangeRefused("invalid_grant", f"subject_token: {error.code}: {error}") from error

    def _context(self, scope: str, client: str, user: User) -> Mapping[str, str] | None:
        """``rctx`` of the event: how the user was authenticated, and which of the user's scopes the scope is derived
        from, if it is. None where the user has no such scope, and the settings derive it from none for the client."""
        if scope in user.scopes:
            return user.authentication
        return derived_context(self._trust.settings(), client, scope, user.scopes, user.authentication)

    def _issue(
        self, authority: Authority, wanted: Wanted, client: str, user: User, context: Mapping[str, str]
    ) -> Issued:
        now, key = int(self._clock()), authority.signing_key
        token = EventToken(
            issuer=authority.id,
            user=user.name,
            audience=wanted.audience,
            scope=wanted.scope,
            event_id=wanted.event_id,
            transaction_id=wanted.transaction_id,
            topic=wanted.topic,
            payload_hash=wanted.payload_hash,
            issued_at=now,
            expires_at=now + self._lifetime,
            jti=new_jti(),
            authentication=context,
            actor=client,
        )
        header = jose.Header(key.public.alg, make_kid(authority.id, key.public.thumbprint), EVENT_TYP)
        jws = jose.compact(jose.encode_header(header), _payload(token), key.sign)
        if len(jws) > jose.MAX_TOKEN:
            raise ExchangeRefused("invalid_grant", "with what the user's token says, longer than a token may be")
        return Issued(jws, self._lifetime, wanted.scope)


def _payload(token: EventToken) -> bytes:
    """Raises ExchangeRefused for what no consumer would read. The form was checked; a user's token may say more."""
    try:
        return canonical_json(token.claims())
    except MalformedToken as error:
        raise ExchangeRefused("invalid_grant", f"what the user's token says fits into no event's: {error}") from error
