"""What a service signs: request tokens, assertions, transaction tokens and event tokens.

Each function takes the key that signs. What a verifier would refuse is not signed: it raises UnsignableRequest.
"""

import re
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from functools import lru_cache
from types import MappingProxyType
from typing import Any

from peerseal.errors import CallerNotAllowed, Expired, InsufficientScope, MessageRefused, UnsignableRequest
from peerseal.identity.key_folder import StoredKey
from peerseal.identity.signing_keys import SigningKeys
from peerseal.protocol import jose
from peerseal.protocol.encoding import DIGEST_OF_NOTHING, canonical_json, digest_header, target_digest
from peerseal.protocol.names import qualify, registry_id, service_id, split_service_id
from peerseal.protocol.plain import kind_of, plain_bytes, plain_text, text_like
from peerseal.protocol.policies import DERIVED_FROM
from peerseal.protocol.tokens.assertion import ASSERTION_TYP, assertion_claims
from peerseal.protocol.tokens.bearer import BLANKS
from peerseal.protocol.tokens.claims import LEEWAY, new_jti
from peerseal.protocol.tokens.event import EVENT_LIFETIME_CAP, EVENT_TYP, EventToken, payload_hash
from peerseal.protocol.tokens.request import REQUEST_LIFETIME, REQUEST_TYP, RequestToken
from peerseal.protocol.tokens.response import RESPONSE_TYP, ResponseToken, request_hash
from peerseal.protocol.tokens.transaction import (
    TRANSACTION_LIFETIME,
    TRANSACTION_TYP,
    TransactionToken,
    transaction_hash,
)
from peerseal.protocol.trace_context import TRACEPARENT
from peerseal.runtime.options import shortened
from peerseal.trust.store import TrustStore
from peerseal.verify.context import (
    REQUEST_ID,
    Transaction,
    current_request_id,
    current_traceparent,
    current_transaction,
)
from peerseal.verify.derivation import derived_context
from peerseal.verify.event import Event
from peerseal.verify.target import is_origin_form
from peerseal.verify.transaction import TRANSACTION_HEADER, transaction_domain, transaction_of
from peerseal.verify.users import User

_FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FIELD_VALUE = re.compile(r"[\t -~\x80-\xff]*")  # latin-1 without line breaks and control characters
_CONTENT_DIGEST = re.compile(r"sha-256=:[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=:")
_MOST_WITH_CP = 3_000
"""Bytes of the claims of a token that tells a checkpoint, at most: a request must not become too long by it."""
_RENEWED_BEFORE_END = 60
"""Seconds before the end of an event's transaction token at which the next one is minted."""


CheckpointFor = Callable[[str, Callable[[str], bool]], str | None]
"""See `TrustStore.checkpoint_for`."""


def request_token(
    key: StoredKey,
    audience: str,
    *,
    method: str,
    target: str,
    body: bytes = b"",
    content_digest: str | None = None,
    headers: Mapping[str, str] = MappingProxyType({}),
    ctx: Mapping[str, Any] | None = None,
    checkpoint_for: CheckpointFor | None = None,
    now: float,
) -> str:
    """A request token for one request; see `Identity.sign_request`. ``checkpoint_for`` gives the ``cp`` to tell."""
    if not is_origin_form(target):
        raise UnsignableRequest("the target is not in origin form, such as /path?query (RFC 9112 section 3.2.1)")
    digest, verb = _digest_of(_octets(body), content_digest), plain_text(method)
    if not verb:
        raise UnsignableRequest(f"the method is {text_like(method)}; expected a text such as GET")
    bound, issued_at = _sendable(headers), int(now)
    transaction = bound.pop(TRANSACTION_HEADER, None)
    callee = qualify(audience, key.domain)
    token = RequestToken(
        issuer=key.owner,
        audience=callee,
        issued_at=issued_at,
        not_before=issued_at,
        expires_at=issued_at + REQUEST_LIFETIME,
        jti=new_jti(),
        method=verb,
        target_digest=target_digest(target),
        content_digest=digest,
        headers=bound,
        tth=None if transaction is None else _checked(lambda: transaction_hash(transaction)),
        ctx=ctx,
    )
    if checkpoint_for is not None:
        cp = checkpoint_for(callee, lambda cp: _fits(replace(token, cp=cp).payload))
        token = token if cp is None else replace(token, cp=cp)
    return _compact(key, REQUEST_TYP, token.payload)


def check_may_leave(trust: TrustStore, own: str, audience: str, headers: Mapping[str, str]) -> None:
    """Passes if the transaction in the headers of a request to ``audience`` (a service id) may go there.

    It may stay in the domain ``own``, and return to its own domain. It may leave ``own`` for a domain whose entry in
    the federation allows transactions. Raises UnsignableRequest or TrustUnavailable."""
    domain, minted = split_service_id(audience)[0], transaction_domain(headers)
    if domain == own or minted in (None, domain):
        return
    foreign = trust.foreign(domain) if minted == own else None
    if foreign is None or not foreign.federated.transactions:
        raise UnsignableRequest(
            f"the transaction of {minted} may not cross to {domain}: the federation of {own} does not allow it. Call"
            " without it, in `with peerseal.carrying(None)`, or have an operator allow transactions"
        )


def response_token(
    key: StoredKey,
    request_token: str,
    *,
    caller: str,
    status: int,
    body: bytes = b"",
    headers: Mapping[str, str] = MappingProxyType({}),
    checkpoint_for: CheckpointFor | None = None,
    now: float,
) -> str:
    """A response token for one answer; see `Identity.sign_response`. ``checkpoint_for`` as of `request_token`."""
    audience = qualify(caller, key.domain)
    token = ResponseToken(
        issuer=key.owner,
        audience=audience,
        issued_at=int(now),
        request=_checked(lambda: request_hash(request_token)),
        status=status,
        content_digest=_digest_of(_octets(body), None),
        headers=_sendable(headers),
    )
    if checkpoint_for is not None:
        caller_kid = _checked(lambda: _kid_in(request_token.partition(".")[0]))
        cp = checkpoint_for(caller_kid, lambda cp: _fits(replace(token, checkpoint=cp).payload))
        token = token if cp is None else replace(token, checkpoint=cp)
    return _compact(key, RESPONSE_TYP, token.payload)


def _fits(payload: Callable[[], bytes]) -> bool:
    """Whether a token with this payload is short enough to tell a checkpoint."""
    return len(_checked(payload)) <= _MOST_WITH_CP


@lru_cache(1_000)
def _kid_in(header_segment: str) -> str:
    """The kid in the header of a token that was verified. Raises MalformedToken."""
    return jose.parse_header(header_segment.encode("ascii")).kid


def _digest_of(content: bytes, given: str | None) -> str:
    """The digest to sign: of the content, or the one that the application computed. Raises UnsignableRequest."""
    if given is None:
        return digest_header(content) if content else DIGEST_OF_NOTHING
    if content:
        raise UnsignableRequest("a body and a content_digest are given; expected one of them")
    text = plain_text(given)
    if text is None or not _CONTENT_DIGEST.fullmatch(text):
        raise UnsignableRequest(f"content_digest is {text_like(given)}; expected sha-256=:…: (RFC 9530 section 2)")
    return text


def assertion(key: StoredKey, *, audience: str | None = None, client_id: str | None = None, now: float) -> str:
    """A client assertion; see `Identity.sign_assertion`."""
    client = plain_text(key.owner if client_id is None else client_id)
    asked = plain_text(registry_id(key.domain) if audience is None else audience)
    if not client or not asked:
        raise UnsignableRequest("an assertion needs a client_id and an audience: texts that are not empty")
    return _compact(key, ASSERTION_TYP, lambda: canonical_json(assertion_claims(client, asked, int(now))))


def whole_seconds(lifetime: object, at_most: int) -> int:
    """The whole seconds of a token's lifetime. Raises UnsignableRequest."""
    seconds = int(lifetime.total_seconds()) if isinstance(lifetime, timedelta) else 0
    if not 0 < seconds <= at_most:
        raise UnsignableRequest(f"lifetime is {shortened(lifetime)}; expected a timedelta of 1 to {at_most} seconds")
    return seconds


def scope_set(scope: Any) -> frozenset[str]:
    """The scopes. Raises UnsignableRequest for what is no collection of texts, and for one text: its characters would
    count as scopes."""
    if not isinstance(scope, str | bytes):
        with suppress(Exception):  # not iterable, or an iterable that raises, or values that cannot be hashed
            scopes = frozenset(scope)
            if all(isinstance(one, str) for one in scopes):
                return scopes
    raise UnsignableRequest(f"scope is a collection of scopes, and this is {shortened(scope)}")


class Minter:
    """Signs transactions and events: at the edge for a user, and in a consumer for the event that it handles.

    A transaction token is accepted only from a service that the domain's settings list as a minter. The minter reads
    the settings first and raises an error at once if it is not listed.
    """

    def __init__(self, trust: TrustStore, keys: SigningKeys) -> None:
        self._trust = trust
        self._keys = keys
        self._clock = keys.clock

    def for_user(
        self,
        user: User,
        scopes: frozenset[str],
        facts: Mapping[str, Any] | None,
        transaction_id: str | None,
        workload: str | None,
        lifetime: int,
    ) -> Transaction:
        """See `Identity.mint_transaction`. ``lifetime`` is in seconds."""
        domain, issuer = self._trust.domain, self._issuer()
        if issuer not in self._trust.settings().minters:
            raise CallerNotAllowed(f"{issuer} is not among the domain's minters")
        if self._clock() >= user.expires_at + LEEWAY:  # an application that keeps a User must verify the token again
            raise Expired("the user's token has ended")
        if not scopes <= user.scopes:
            raise InsufficientScope(f"the user's token does not allow {' '.join(sorted(scopes - user.scopes))}")
        token = self._token(
            lifetime,
            user=user.name,
            id=new_jti() if transaction_id is None else transaction_id,
            scopes=scopes,
            workload=issuer if workload is None else qualify(workload, domain),
            facts={} if facts is None else facts,
            authentication=user.authentication,
        )
        return transaction_of(token, self._signed(token))

    def for_event(self, event: Event) -> Transaction | None:
        """See `Identity.transaction_for_event`."""
        issuer = self._issuer()
        if issuer not in self._trust.settings().minters:
            return None
        return Transaction(
            id=event.transaction_id,
            user=event.user,
            scopes=frozenset((event.scope,)),
            facts=MappingProxyType({"event_id": event.id}),
            authentication=event.authentication,
            minter=issuer,
            workload=event.issuer,
            carry=_Renewed(lambda: self._event_transaction(event), self._clock),
        )

    def event_headers(
        self,
        payload: bytes,
        *,
        topic: str,
        audience: str,
        scope: str,
        event_id: str,
        transaction_id: str | None,
        subject: str | None,
        lifetime: timedelta,
    ) -> dict[str, str]:
        """See `Identity.sign_event`."""
        current = current_transaction()
        user, transaction_id = _user_and_transaction(current, subject, transaction_id)
        key, now, seconds = self._keys.current(), int(self._clock()), whole_seconds(lifetime, EVENT_LIFETIME_CAP)
        token = EventToken(
            issuer=key.owner,
            user=key.owner if user is None else user,
            audience=audience,
            scope=scope,
            event_id=event_id,
            transaction_id=transaction_id,
            topic=topic,
            payload_hash=payload_hash(_octets(payload)),
            issued_at=now,
            expires_at=now + seconds,
            jti=new_jti(),
            authentication=self._event_context(current, scope) if current else {},
        )
        context = {REQUEST_ID: current_request_id(), TRACEPARENT: current_traceparent()}
        headers = {"authorization": f"Bearer {_compact(key, EVENT_TYP, lambda: canonical_json(token.claims()))}"}
        return headers | {name: value for name, value in context.items() if value}

    def _event_context(self, current: Transaction, scope: str) -> Mapping[str, Any]:
        """``rctx`` of an event that is signed in the current transaction.

        The scope is one of the transaction's, or the domain's settings derive it from one of them. Only the service
        that minted the transaction derives scopes, and only before it ends: the transaction of another minter may
        belong to an event that its user published long ago. Raises UnsignableRequest or TrustUnavailable.
        """
        if DERIVED_FROM in current.authentication:
            raise UnsignableRequest("the current transaction is for a derived scope, which allows one event only")
        if scope in current.scopes:
            return current.authentication
        not_allowed = f"the current transaction does not allow {scope}"
        issuer = self._issuer()
        if current.minter != issuer:
            raise UnsignableRequest(f"{not_allowed}, and scopes are derived by its minter only: {current.minter}")
        context = derived_context(self._trust.settings(), issuer, scope, current.scopes, current.authentication)
        if context is None:
            raise UnsignableRequest(
                f"{not_allowed}, and the domain's settings derive it for {issuer} from none of its scopes"
            )
        if current.expires_at is None or self._clock() >= current.expires_at + LEEWAY:
            raise UnsignableRequest(f"{scope} is derived only in a user's transaction that has not ended")
        return context

    def _event_transaction(self, event: Event) -> str:
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
            return self._signed(token)
        except UnsignableRequest as error:  # a later attempt would fail as well
            raise MessageRefused("event_unmintable", str(error)) from error

    def _token(self, lifetime: int, **claims: Any) -> TransactionToken:
        """A token of this service, which begins now and ends ``lifetime`` seconds later."""
        now = int(self._clock())
        return TransactionToken(
            issuer=self._issuer(), audience=self._trust.domain, issued_at=now, expires_at=now + lifetime, **claims
        )

    def _signed(self, token: TransactionToken) -> str:
        return _compact(self._keys.current(), TRANSACTION_TYP, lambda: canonical_json(token.claims()))

    def _issuer(self) -> str:
        return service_id(self._trust.domain, self._keys.service)


def _user_and_transaction(
    current: Transaction | None, subject: str | None, transaction_id: str | None
) -> tuple[str | None, str]:
    """The user and the transaction id of an event: those of the current transaction, or the given ones where there is
    no current transaction. Raises UnsignableRequest."""
    if current and (subject not in (None, current.user) or transaction_id not in (None, current.id)):
        raise UnsignableRequest("subject or transaction_id differs from the current transaction: leave them out")
    if current is not None:
        return current.user, current.id
    if transaction_id is None:
        raise UnsignableRequest("there is no current transaction: give a transaction_id")
    return subject, transaction_id


class _Renewed:
    """A transaction token that is minted when a call needs it, and again before it ends. The work on an event may take
    longer than a token lives; for most events no token is needed."""

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


def _compact(key: StoredKey, typ: str, payload: Callable[[], bytes]) -> str:
    header = _header(key.pair.public.alg, key.kid, typ)
    token = jose.compact(header, _checked(payload), key.pair.sign)
    if len(token) > jose.MAX_TOKEN:
        raise UnsignableRequest(f"the token would be longer than {jose.MAX_TOKEN} characters: {len(token)}")
    return token


@lru_cache(maxsize=64)
def _header(alg: str, kid: str, typ: str) -> str:
    return jose.encode_header(jose.Header(alg, kid, typ))


def _octets(payload: bytes) -> bytes:
    content = plain_bytes(payload)
    if content is None:
        raise UnsignableRequest(f"the body or payload is {kind_of(payload)}; expected bytes")
    return content


def _sendable(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers as a server reads them: with lower-case names, without blanks around values, and without an empty
    content-type. Raises UnsignableRequest for what no request can hold (RFC 9110 sections 5.1 and 5.5) and for two
    spellings of one name."""
    try:
        items = [(name, value) for name, value in headers.items()]  # pairs, or an error at once
    except Exception as error:  # headers is no mapping, or its methods raise
        raise UnsignableRequest(f"headers are {kind_of(headers)}; expected a mapping of texts") from error
    pairs = [(_name(name), _field_value(name, value)) for name, value in items]
    bound = dict(pairs)
    if len(bound) != len(pairs):
        names = ", ".join(sorted(name for name, _ in pairs))
        raise UnsignableRequest(f"one of these headers occurs in two spellings: {names}")
    return {name: value for name, value in bound.items() if value or name != "content-type"}


def _name(name: object) -> str:
    text = plain_text(name)
    if text is None or not _FIELD_NAME.fullmatch(text):
        raise UnsignableRequest(f"{text_like(name)} is not the name of a header (RFC 9110 section 5.1)")
    return text.lower()


def _field_value(name: object, value: object) -> str:
    text = plain_text(value)
    stripped = None if text is None else text.strip(BLANKS)
    if stripped is None or not _FIELD_VALUE.fullmatch(stripped):
        shown = f"the header {text_like(name)} cannot be sent with {text_like(value)}"
        raise UnsignableRequest(f"{shown}: values are latin-1 in one line (RFC 9110 section 5.5)")
    return stripped


def _checked(make: "Callable[[], Any]") -> Any:
    """What ``make`` returns. Raises UnsignableRequest for any error of it."""
    try:
        return make()
    except Exception as error:  # MalformedToken, InvalidName, errors of json and of a value's own methods
        raise UnsignableRequest(str(error)) from error
