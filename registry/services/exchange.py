"""Token exchange (RFC 8693): an event token for a user's token, for programs without the SDK.

Off unless an operator wrote into the domain's settings who may exchange what. The client proves itself by an assertion
of its registered key, once; the token is the registry's, names the client as actor, and is no wider than the user's
token and what the settings give the client, or of one scope that the settings derive from the user's.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from peerseal.errors import InvalidName, MalformedToken, TokenError
from peerseal.peers.derivation import derived_context
from peerseal.peers.replay import ReplayGuard
from peerseal.peers.trusted import check_window
from peerseal.peers.users import User, UserVerifier
from peerseal.protocol import jose
from peerseal.protocol.assertions import ASSERTION_LIFETIME_CAP, ClientAssertion
from peerseal.protocol.encoding import canonical_json
from peerseal.protocol.events import EVENT_TYP, EventToken
from peerseal.protocol.names import make_kid, qualify
from peerseal.protocol.policies import DERIVED_FROM, DomainSettings
from peerseal.protocol.policies import Exchange as Grants
from peerseal.protocol.tokens import LEEWAY, check_times, new_jti
from registry.domain.errors import NotFound
from registry.domain.exchange import ClientRefused, ExchangeRefused, Wanted
from registry.domain.key_quality import check_quality
from registry.services.authority import Authority, AuthoritySource
from registry.services.callers import DatabaseKeys
from registry.services.policies import Policies
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


@dataclass(frozen=True, slots=True)
class Exchanged:
    """The event token, and what is said of it. ``expires_in`` is in seconds."""

    token: str = field(repr=False)
    expires_in: int
    scope: str


class Exchange:
    """The use case. ``guard`` accepts each assertion once."""

    def __init__(
        self,
        keys: DatabaseKeys,
        authority: AuthoritySource,
        policies: Policies,
        guard: ReplayGuard,
        limits: Limits,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._trust = _Trust(keys, policies)
        self._users = UserVerifier(self._trust, check_key=check_quality, clock=clock)
        self._authority = authority
        self._guard = guard
        self._lifetime = limits.exchanged_token_lifetime
        self._clock = clock

    def grants(self) -> Grants:
        """Who may exchange what, now. Raises NotFound where nobody may: the exchange is off; or StorageUnavailable."""
        grants = self._trust.settings().exchange
        if not grants:
            raise NotFound("exchange_off", "no operator turned the token exchange on")
        return grants

    def exchange(self, wanted: Wanted, grants: Grants) -> Exchanged:
        """The token that is asked for, if it is among the ``grants``. Raises ExchangeRefused, TrustUnavailable or
        StorageUnavailable."""
        client = self._client(wanted)
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

    def _client(self, wanted: Wanted) -> str:
        """The service that the assertion proves, by a key that is active now, whenever it was signed: nothing was begun
        with it that would have to be ended. Raises ClientRefused or TrustUnavailable."""
        try:
            asserted, now = ClientAssertion.parse(wanted.assertion), self._clock()
            key = self._trust.key(asserted.kid)
            if asserted.alg != key.public.alg or not key.public.verify(asserted.signing_input, asserted.signature):
                raise ClientRefused("the signature does not verify")
            if asserted.audience != self._authority.current().id:
                raise ClientRefused("the assertion is for somebody else")
            times = asserted.issued_at, asserted.not_before, asserted.expires_at
            check_times(*times, now=now, leeway=LEEWAY, cap=ASSERTION_LIFETIME_CAP)
            check_window(asserted.issued_at, key, LEEWAY)
            if now >= key.active_until:
                raise ClientRefused("the key is retired")
            if wanted.client_id is not None and qualify(wanted.client_id, self._trust.domain) != asserted.client:
                raise ClientRefused("client_id is another service's")
        except (TokenError, InvalidName) as error:
            raise ClientRefused(f"{error.code}: {error}") from error
        if not self._guard.claim(asserted.client, f"assertion {asserted.jti}", asserted.expires_at + LEEWAY):
            raise ClientRefused("the assertion was used before")
        return asserted.client

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
    ) -> Exchanged:
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
        return Exchanged(jws, self._lifetime, wanted.scope)


def _payload(token: EventToken) -> bytes:
    """Raises ExchangeRefused for what no consumer would read. The form was checked; a user's token may say more."""
    try:
        return canonical_json(token.claims())
    except MalformedToken as error:
        raise ExchangeRefused("invalid_grant", f"what the user's token says fits into no event's: {error}") from error
