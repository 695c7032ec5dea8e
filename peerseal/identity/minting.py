"""Transactions made here: at the edge for a user, and by a consumer for an event that it handles.

Whoever mints vouches for the user, so only services that the domain's settings list are believed; this looks there
first, and says so at once.
"""

import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from peerseal.errors import CallerNotAllowed, Expired, InsufficientScope, MessageRefused, UnsignableRequest
from peerseal.identity.key_folder import HeldKey
from peerseal.identity.signing import TokenSigner
from peerseal.protocol.names import qualify, service_id
from peerseal.protocol.policies import DERIVED_FROM
from peerseal.protocol.tokens.claims import LEEWAY, new_jti
from peerseal.protocol.tokens.transaction import TRANSACTION_LIFETIME, TransactionToken
from peerseal.trust.store import TrustStore
from peerseal.verify.context import Transaction
from peerseal.verify.derivation import derived_context
from peerseal.verify.event import Event
from peerseal.verify.transaction import transaction_of
from peerseal.verify.users.verifier import User

_RENEWED_BEFORE_END = 60
"""Seconds before the end of an event's transaction token at which the next one is minted."""


class Minter:
    """Mints in the name of ``service``. ``signing_key`` gives the key that signs now, or raises TrustUnavailable."""

    def __init__(
        self,
        service: str,
        trust: TrustStore,
        signing_key: Callable[[], HeldKey],
        signer: TokenSigner,
        clock: Callable[[], float],
    ) -> None:
        self._service = service
        self._trust = trust
        self._signing_key = signing_key
        self._signer = signer
        self._clock = clock

    def for_user(
        self,
        user: User,
        scopes: frozenset[str],
        facts: Mapping[str, Any] | None,
        transaction_id: str | None,
        workload: str | None,
        lifetime: int,
    ) -> Transaction:
        """See `Identity.mint_transaction`."""
        domain, us = self._trust.domain, self._us()
        if us not in self._trust.settings().minters:
            raise CallerNotAllowed(f"{us} is not among the domain's minters")
        if self._clock() >= user.expires_at + LEEWAY:  # who keeps a User in a session of its own must ask anew
            raise Expired("the user's token has ended")
        if not scopes <= user.scopes:
            raise InsufficientScope(f"the user's token does not allow {' '.join(sorted(scopes - user.scopes))}")
        token = self._token(
            lifetime,
            user=user.name,
            id=new_jti() if transaction_id is None else transaction_id,
            scopes=scopes,
            workload=us if workload is None else qualify(workload, domain),
            facts={} if facts is None else facts,
            authentication=user.authentication,
        )
        return transaction_of(token, self._signer.transaction(self._signing_key(), token))

    def event_context(self, current: Transaction, scope: str) -> Mapping[str, Any]:
        """``rctx`` of an event for that scope that is signed in the current transaction: the scope is one of the
        transaction's, or derived from one by the domain's settings while the transaction lasts, where this service
        minted it: another's may be of an event that its user published long ago. Raises UnsignableRequest or
        TrustUnavailable."""
        if DERIVED_FROM in current.authentication:
            raise UnsignableRequest("the current transaction is for a derived scope, which is good for one event only")
        if scope in current.scopes:
            return current.authentication
        if current.minter != self._us():
            raise UnsignableRequest(
                f"the current transaction does not allow {scope}, and scopes are derived by its minter only: "
                f"{current.minter}"
            )
        settings = self._trust.settings()
        context = derived_context(settings, self._us(), scope, current.scopes, current.authentication)
        if context is None:
            raise UnsignableRequest(
                f"the current transaction does not allow {scope}, and the domain's settings derive it for {self._us()} "
                "from none of its scopes"
            )
        if current.expires_at is None or self._clock() >= current.expires_at + LEEWAY:
            raise UnsignableRequest(f"{scope} is derived in a user's transaction before it ends, and at no other time")
        return context

    def for_event(self, event: Event) -> Transaction | None:
        """See `Identity.transaction_for_event`."""
        us = self._us()
        if us not in self._trust.settings().minters:
            return None
        return Transaction(
            id=event.transaction_id,
            user=event.user,
            scopes=frozenset((event.scope,)),
            facts=MappingProxyType({"event_id": event.id}),
            authentication=event.authentication,
            minter=us,
            workload=event.issuer,
            carry=_Renewed(lambda: self._for_event(event), self._clock),
        )

    def _for_event(self, event: Event) -> str:
        token = self._token(
            TRANSACTION_LIFETIME,
            user=event.user,
            id=event.transaction_id,
            scopes=frozenset((event.scope,)),
            workload=event.issuer,
            facts={"event_id": event.id},
            authentication=event.authentication,
        )
        try:
            return self._signer.transaction(self._signing_key(), token)
        except UnsignableRequest as error:  # no later attempt would do better
            raise MessageRefused("event_unmintable", str(error)) from error

    def _token(self, lifetime: int, **claims: Any) -> TransactionToken:
        """Ours, from now on, for ``lifetime`` seconds."""
        now = int(self._clock())
        return TransactionToken(
            issuer=self._us(), audience=self._trust.domain, issued_at=now, expires_at=now + lifetime, **claims
        )

    def _us(self) -> str:
        return service_id(self._trust.domain, self._service)


class _Renewed:
    """A transaction token that is minted when it is first needed, and again before it ends: work on an event may take
    longer than any token lives, and most events need none."""

    def __init__(self, mint: Callable[[], str], clock: Callable[[], float]) -> None:
        self._mint = mint
        self._clock = clock
        self._token = ""
        self._renew_at = 0.0
        self._lock = threading.Lock()

    def __call__(self) -> str:
        with self._lock:
            now = self._clock()
            if now >= self._renew_at:
                self._token = self._mint()
                self._renew_at = now + TRANSACTION_LIFETIME - _RENEWED_BEFORE_END
            return self._token
