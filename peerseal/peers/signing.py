"""What a service signs: request tokens, transaction tokens and event tokens, each with the key that signs now."""

from collections.abc import Callable, Mapping
from typing import Any

from peerseal.errors import InvalidName, MalformedToken, UnsignableRequest
from peerseal.peers.keyfolder import HeldKey
from peerseal.peers.target import is_origin_form
from peerseal.peers.transactions import TRANSACTION_HEADER
from peerseal.protocol import jose
from peerseal.protocol.assertions import ASSERTION_TYP, assertion_claims
from peerseal.protocol.encoding import DIGEST_OF_NOTHING, canonical_json, digest_header
from peerseal.protocol.events import EVENT_TYP, EventToken, payload_hash
from peerseal.protocol.names import qualify, registry_id, service_id
from peerseal.protocol.tokens import BLANKS, REQUEST_LIFETIME, REQUEST_TYP, RequestToken, new_jti
from peerseal.protocol.transactions import TRANSACTION_TYP, TransactionToken, transaction_hash


class TokenSigner:
    """Makes the tokens of ``service``. ``domain`` gives the trust domain, or raises TrustUnavailable; ``clock`` gives
    seconds since the epoch. What cannot be signed as it stands raises UnsignableRequest."""

    def __init__(self, service: str, domain: Callable[[], str], clock: Callable[[], float]) -> None:
        self._service = service
        self._domain = domain
        self._clock = clock
        self._headers: dict[tuple[str, str], str] = {}

    def request(
        self,
        held: HeldKey,
        audience: str,
        *,
        method: str,
        target: str,
        body: bytes,
        headers: Mapping[str, str],
        ctx: Mapping[str, Any] | None = None,
    ) -> str:
        """See `Identity.sign_request`."""
        if not is_origin_form(target):
            raise UnsignableRequest("the target is not in origin form (RFC 9112 section 3.2.1)")
        domain, now = self._domain(), int(self._clock())
        bound = _checked(lambda: {name.lower(): value.strip(BLANKS) for name, value in headers.items()})
        carried = bound.pop(TRANSACTION_HEADER, None)
        token = RequestToken(
            issuer=f"{domain}/{self._service}",
            audience=qualify(audience, domain),
            issued_at=now,
            not_before=now,
            expires_at=now + REQUEST_LIFETIME,
            jti=new_jti(),
            method=method,
            target_digest=digest_header(target.encode("ascii")),
            content_digest=_checked(lambda: digest_header(body)) if body else DIGEST_OF_NOTHING,
            headers=bound,
            tth=None if carried is None else _checked(lambda: transaction_hash(carried)),
            ctx=ctx,
        )
        return self._compact(held, REQUEST_TYP, lambda: canonical_json(token.claims()))

    def transaction(self, held: HeldKey, token: TransactionToken) -> str:
        """The transaction token, signed."""
        return self._compact(held, TRANSACTION_TYP, lambda: canonical_json(token.claims()))

    def assertion(self, held: HeldKey) -> str:
        """See `Identity.sign_assertion`."""
        domain = self._domain()
        claims = assertion_claims(service_id(domain, self._service), registry_id(domain), int(self._clock()))
        return self._compact(held, ASSERTION_TYP, lambda: canonical_json(claims))

    def event(
        self,
        held: HeldKey,
        payload: bytes,
        *,
        user: str | None,
        audience: str,
        scope: str,
        event_id: str,
        transaction_id: str,
        topic: str,
        lifetime: int,
        authentication: Mapping[str, Any],
    ) -> str:
        """The token of an event with that payload; without a ``user`` it is the service itself that acts. ``lifetime``
        is in seconds."""
        issuer, now = service_id(self._domain(), self._service), int(self._clock())
        token = EventToken(
            issuer=issuer,
            user=issuer if user is None else user,
            audience=audience,
            scope=scope,
            event_id=event_id,
            transaction_id=transaction_id,
            topic=topic,
            payload_hash=_checked(lambda: payload_hash(payload)),
            issued_at=now,
            expires_at=now + lifetime,
            jti=new_jti(),
            authentication=authentication,
        )
        return self._compact(held, EVENT_TYP, lambda: canonical_json(token.claims()))

    def _compact(self, held: HeldKey, typ: str, payload: Callable[[], bytes]) -> str:
        header = self._headers.get((held.kid, typ))
        if header is None:
            header = jose.encode_header(jose.Header(held.pair.public.alg, held.kid, typ))
            kept = {name: value for name, value in self._headers.items() if name[0] == held.kid}
            self._headers = {**kept, (held.kid, typ): header}  # one key signs at a time
        token = jose.compact(header, _checked(payload), held.pair.sign)
        if len(token) > jose.MAX_TOKEN:
            raise UnsignableRequest(f"the token would be longer than {jose.MAX_TOKEN} characters")
        return token


def _checked(make: "Callable[[], Any]") -> Any:
    """What ``make`` makes. What a verifier would refuse is not signed: raises UnsignableRequest."""
    try:
        return make()
    except (ValueError, TypeError, AttributeError, RecursionError, MalformedToken, InvalidName) as error:
        raise UnsignableRequest(str(error)) from error
