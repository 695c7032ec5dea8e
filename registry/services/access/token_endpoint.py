"""The tokens that the registry issues to services: event tokens in exchange for users' tokens (RFC 8693), for programs
without the SDK, and access tokens for resource servers outside of Peerseal (RFC 6749 section 4.4, RFC 9068).

Both are off until an operator sets in the domain's settings which service may have what. The client proves itself once
by an assertion of its registered key. The registry signs the token. An exchanged token names the client as actor, and
its scope is one that both the user's token and the settings allow, or that the settings derive from the user's scopes.
"""

import hashlib
import logging
from collections.abc import Mapping

from peerseal.errors import MalformedToken, TokenError
from peerseal.protocol import jose
from peerseal.protocol.encoding import canonical_json
from peerseal.protocol.policies import DERIVED_FROM, AccessGrant, DomainSettings, Exchange
from peerseal.protocol.tokens.assertion import ACCESS_TYP, AccessTokenClaims, scope_text
from peerseal.protocol.tokens.claims import new_jti
from peerseal.protocol.tokens.event import EVENT_TYP, EventToken
from peerseal.verify.derivation import derived_context
from peerseal.verify.users import User, UserVerifier
from registry.domain.exchange import AccessWanted, ExchangeRefused, ExchangeWanted, Issued
from registry.domain.key_quality import check_quality
from registry.services.access.callers import Clients, DatabaseKeys
from registry.services.documents.policies import Policies
from registry.services.use_case import Node, UseCase

log = logging.getLogger(__name__)


class AccessTokens(UseCase):
    """Issues access tokens in a service's own name."""

    def __init__(self, node: Node, clients: Clients) -> None:
        super().__init__(node)
        self._clients = clients

    def issue(self, wanted: AccessWanted, grants: Mapping[str, AccessGrant]) -> Issued:
        """The requested token, if the ``grants`` allow it. Raises ExchangeRefused, TrustUnavailable or
        StorageUnavailable."""
        service = self._clients.proven(wanted.assertion, wanted.client_id)
        grant = next((one for one in grants.values() if one.audience == wanted.resource), None)
        if grant is None or service not in grant.services:
            raise ExchangeRefused("invalid_target", f"{service} has no grant for {wanted.resource}")
        scopes = grant.scopes if wanted.scopes is None else wanted.scopes
        if not scopes <= grant.scopes:
            raise ExchangeRefused(
                "invalid_scope",
                f"{scope_text(scopes)} is wider than the grant of {service}: {scope_text(grant.scopes)}",
            )
        authority, now = self._authority.current(), self._now()
        token = AccessTokenClaims(authority.id, service, grant.audience, scopes, now, now + grant.lifetime, new_jti())
        jws = authority.sign_token(ACCESS_TYP, canonical_json(token.claims()))
        fields = service, token.audience, scope_text(scopes), grant.lifetime, token.jti
        log.info("issued access token client=%s audience=%s scope=%s lifetime=%d jti=%s", *fields)
        return Issued(jws, grant.lifetime, scope_text(scopes))


class _UserTrust(DatabaseKeys):
    """The registry's own keys, with the domain's settings, which name the issuers of users' tokens."""

    def __init__(self, keys: DatabaseKeys, policies: Policies) -> None:
        super().__init__(keys.store, keys.authority)
        self._policies = policies

    def settings(self) -> DomainSettings:
        """See KeySource. Raises StorageUnavailable."""
        return self._policies.domain().value


class TokenExchange(UseCase):
    """Exchanges a user's token for an event token."""

    def __init__(self, node: Node, keys: DatabaseKeys, policies: Policies, clients: Clients) -> None:
        super().__init__(node)
        self._trust = _UserTrust(keys, policies)
        self._users = UserVerifier(self._trust, check_key=check_quality, clock=node.clock)
        self._clients = clients

    def exchange(self, wanted: ExchangeWanted, grants: Exchange) -> Issued:
        """The requested token, if the ``grants`` allow it. Raises ExchangeRefused, TrustUnavailable or
        StorageUnavailable."""
        client = self._clients.proven(wanted.assertion, wanted.client_id)
        scopes = grants.get(client, {}).get(wanted.audience)
        if scopes is None:
            raise ExchangeRefused("invalid_target", f"{client} has no grant for {wanted.audience}")
        try:
            user = self._users.verify(wanted.subject_token)
        except TokenError as error:
            raise ExchangeRefused("invalid_grant", f"subject_token: {error.code}: {error}") from error
        context = self._context(wanted.scope, client, user) if wanted.scope in scopes else None
        if context is None:
            raise ExchangeRefused(
                "invalid_scope", f"{wanted.scope} is wider than the grant of {client} or the user's token"
            )
        issued = self._issue(wanted, client, user, context)
        hashed = hashlib.sha256(user.name.encode()).hexdigest()
        source = f" derived_from={context[DERIVED_FROM]}" if DERIVED_FROM in context else ""
        fields = client, wanted.audience, wanted.scope, source, hashed
        log.info("exchanged client=%s audience=%s scope=%s%s user=%s", *fields)
        return issued

    def _context(self, scope: str, client: str, user: User) -> Mapping[str, str] | None:
        """``rctx`` of the event: how the user was authenticated, and the user's scope from which ``scope`` is derived,
        if it is. None where the user's token neither has the scope nor one from which the settings derive it."""
        if scope in user.scopes:
            return user.authentication
        return derived_context(self._trust.settings(), client, scope, user.scopes, user.authentication)

    def _issue(self, wanted: ExchangeWanted, client: str, user: User, context: Mapping[str, str]) -> Issued:
        authority, now, lifetime = self._authority.current(), self._now(), self._limits.exchanged_token_lifetime
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
            expires_at=now + lifetime,
            jti=new_jti(),
            authentication=context,
            actor=client,
        )
        try:
            jws = authority.sign_token(EVENT_TYP, canonical_json(token.claims()))
        except MalformedToken as error:  # the form was checked; a user's token may hold what no consumer reads
            raise ExchangeRefused("invalid_grant", f"the user's claims fit no event token: {error}") from error
        if len(jws) > jose.MAX_TOKEN:
            raise ExchangeRefused(
                "invalid_grant", f"with the user's claims it has {len(jws)} characters, at most {jose.MAX_TOKEN}"
            )
        return Issued(jws, lifetime, wanted.scope)
