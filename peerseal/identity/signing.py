"""What a service signs: request tokens, transaction tokens and event tokens, each with the key that signs now."""

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any

from peerseal.errors import UnsignableRequest
from peerseal.identity.key_folder import HeldKey
from peerseal.protocol import jose
from peerseal.protocol.encoding import DIGEST_OF_NOTHING, canonical_json, digest_header
from peerseal.protocol.names import qualify, registry_id, service_id
from peerseal.protocol.plain import kind_of, plain_bytes, plain_text, text_like
from peerseal.protocol.tokens.assertion import ASSERTION_TYP, assertion_claims
from peerseal.protocol.tokens.claims import new_jti
from peerseal.protocol.tokens.event import EVENT_TYP, EventToken, payload_hash
from peerseal.protocol.tokens.request import BLANKS, REQUEST_LIFETIME, REQUEST_TYP, RequestToken
from peerseal.protocol.tokens.transaction import TRANSACTION_TYP, TransactionToken, transaction_hash
from peerseal.runtime.options import shortened
from peerseal.verify.target import is_origin_form
from peerseal.verify.transaction import TRANSACTION_HEADER

_FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FIELD_VALUE = re.compile(r"[\t -~\x80-\xff]*")  # what servers read as latin-1; no line breaks, no control characters


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
        content, verb = _octets(body), plain_text(method)
        if not verb:
            raise UnsignableRequest(f"the method is a text, and this is {text_like(method)}")
        domain, now = self._domain(), int(self._clock())
        bound = _sendable(headers)
        carried = bound.pop(TRANSACTION_HEADER, None)
        token = RequestToken(
            issuer=f"{domain}/{self._service}",
            audience=qualify(audience, domain),
            issued_at=now,
            not_before=now,
            expires_at=now + REQUEST_LIFETIME,
            jti=new_jti(),
            method=verb,
            target_digest=digest_header(target.encode("ascii")),
            content_digest=digest_header(content) if content else DIGEST_OF_NOTHING,
            headers=bound,
            tth=None if carried is None else _checked(lambda: transaction_hash(carried)),
            ctx=ctx,
        )
        return self._compact(held, REQUEST_TYP, lambda: canonical_json(token.claims()))

    def transaction(self, held: HeldKey, token: TransactionToken) -> str:
        """The transaction token, signed."""
        return self._compact(held, TRANSACTION_TYP, lambda: canonical_json(token.claims()))

    def assertion(self, held: HeldKey, audience: str | None, client_id: str | None) -> str:
        """See `Identity.sign_assertion`."""
        domain = self._domain()
        client = plain_text(service_id(domain, self._service) if client_id is None else client_id)
        asked = plain_text(registry_id(domain) if audience is None else audience)
        if not client or not asked:
            raise UnsignableRequest("an assertion's client_id and audience are texts that are not empty")
        claims = assertion_claims(client, asked, int(self._clock()))
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
            payload_hash=payload_hash(_octets(payload)),
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


def whole_seconds(lifetime: object, at_most: int) -> int:
    """The whole seconds of a token's lifetime. Raises UnsignableRequest."""
    seconds = int(lifetime.total_seconds()) if isinstance(lifetime, timedelta) else 0
    if not 0 < seconds <= at_most:
        raise UnsignableRequest(f"lifetime is a timedelta of 1 to {at_most} s")
    return seconds


def scope_set(scope: Any) -> frozenset[str]:
    """The scopes. Raises UnsignableRequest for what is no collection of texts, and for one text: its characters would
    count as scopes."""
    if not isinstance(scope, str | bytes):
        with suppress(Exception):  # no iterable, one that raises, or of what has no hash
            scopes = frozenset(scope)
            if all(isinstance(one, str) for one in scopes):
                return scopes
    raise UnsignableRequest(f"scope is a collection of scopes, and this is {shortened(scope)}")


def _octets(payload: bytes) -> bytes:
    content = plain_bytes(payload)
    if content is None:
        raise UnsignableRequest(f"what is signed is bytes, and this is {kind_of(payload)}")
    return content


def _sendable(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers as a server will read them: by lower-case names, without the blanks around values, and without an
    empty content-type. Raises UnsignableRequest for what no request can hold (RFC 9110 sections 5.1 and 5.5) and for
    two spellings of one name."""
    try:
        items = [(name, value) for name, value in headers.items()]  # pairs, or an error at once
    except Exception as error:  # another mapping's own, or that it is none
        raise UnsignableRequest(f"headers are a mapping of texts, and this is {kind_of(headers)}") from error
    pairs = [(_name(name), _field_value(name, value)) for name, value in items]
    bound = dict(pairs)
    if len(bound) != len(pairs):
        names = ", ".join(sorted(name for name, _ in pairs))
        raise UnsignableRequest(f"one of these headers stands there in two spellings: {names}")
    return {name: value for name, value in bound.items() if value or name != "content-type"}


def _name(name: object) -> str:
    text = plain_text(name)
    if text is None or not _FIELD_NAME.fullmatch(text):
        raise UnsignableRequest(f"not the name of a header (RFC 9110 section 5.1): {text_like(name)}")
    return text.lower()


def _field_value(name: object, value: object) -> str:
    text = plain_text(value)
    stripped = None if text is None else text.strip(BLANKS)
    if stripped is None or not _FIELD_VALUE.fullmatch(stripped):
        shown = f"the header {text_like(name)} cannot be sent with {text_like(value)}"
        raise UnsignableRequest(f"{shown}: values are latin-1 in one line (RFC 9110 section 5.5)")
    return stripped


def _checked(make: "Callable[[], Any]") -> Any:
    """What ``make`` makes. What a verifier would refuse is not signed: raises UnsignableRequest."""
    try:
        return make()
    except Exception as error:  # MalformedToken, InvalidName, what json raises, what a value's own methods raise
        raise UnsignableRequest(str(error)) from error
