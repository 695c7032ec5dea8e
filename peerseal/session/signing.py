"""What each attempt of a request carries: the token, and the headers that it binds. For the adapters of all clients."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, Protocol

from peerseal.errors import UnsignableRequest
from peerseal.protocol.names import check_name_or_id
from peerseal.protocol.tokens.bearer import BLANKS
from peerseal.protocol.tokens.request import ALWAYS_BOUND
from peerseal.protocol.tokens.response import SELECTING, WANT_RESPONSE_HEADER, WANTED
from peerseal.protocol.trace_context import TRACEPARENT
from peerseal.verify.context import REQUEST_ID, current_request_id, current_traceparent, current_transaction
from peerseal.verify.transaction import TRANSACTION_HEADER

BOUND: Final = (*ALWAYS_BOUND, TRANSACTION_HEADER)
"""The headers that are signed where a request has them, in lower case."""

FAILED_FROM: Final = 400
"""The lowest status of an unsigned answer that does not show that the callee accepted the request."""

TRANSACTION: Final = "Txn-Token"
"""The header of transaction tokens, as it is sent."""


class Signer(Protocol):
    """The part of a `peerseal.Identity` that a session uses."""

    def sign_request(
        self,
        audience: str,
        *,
        method: str,
        target: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        ctx: Mapping[str, Any] | None = None,
    ) -> str:
        """A request token for one attempt."""


class AttemptSigner:
    """Signs attempts for one audience. ``bind_headers`` names headers to sign besides content-type, content-encoding
    and the transaction token; ``header`` carries the token. With ``wants_response`` each attempt asks for a signed
    answer, and signs the headers that choose it (`SELECTING`)."""

    def __init__(
        self,
        signer: Signer,
        audience: str,
        bind_headers: Collection[str] = (),
        header: str = "Authorization",
        *,
        wants_response: bool = False,
    ) -> None:
        self._signer = signer
        self._audience = check_name_or_id(audience)
        self.bound = (*BOUND, *(SELECTING if wants_response else ()), *(name.lower() for name in bind_headers))
        self.header = header
        # Only a TrustStore has it: a checkpoint that was told by a call that failed is told again.
        self._not_accepted: Callable[[str], object] | None = getattr(
            getattr(signer, "trust", None), "not_accepted", None
        )
        self._asks = {WANT_RESPONSE_HEADER: WANTED} if wants_response else {}

    def headers(
        self,
        given: Mapping[str, str | bytes],
        *,
        method: str,
        target: str,
        body: bytes,
        ctx: Mapping[str, Any] | None,
    ) -> dict[str, str]:
        """The headers that this attempt adds to the ``given`` ones, or replaces: the token, those of the current
        transaction and request, and bound ones without the blanks around them, which some servers keep. Raises
        UnsignableRequest."""
        found = _as_sent(given)
        if self.header.lower() in found:
            raise UnsignableRequest(f"the request has a value of its own for {self.header}, where the token goes")
        added = _of_the_context(found)
        bound = self._bound_headers(found | {name.lower(): value for name, value in added.items()})
        token = self._signer.sign_request(
            self._audience, method=method, target=target, body=body, headers=bound, ctx=ctx
        )
        changed = {name: value for name, value in bound.items() if found.get(name, value) != value}
        return {**added, **changed, **self._asks, self.header: f"Bearer {token}"}

    def token_in(self, headers: Mapping[str, str | bytes]) -> str:
        """The token in the headers of an attempt that this object signed."""
        value = headers[self.header]
        return (value.decode("latin-1") if isinstance(value, bytes) else value).removeprefix("Bearer ")

    def not_accepted(self, headers: Mapping[str, str | bytes]) -> None:
        """The attempt with these headers has no answer, or one that does not show that the callee accepted it."""
        if self._not_accepted is not None and self.header in headers:  # none is sent to another origin
            self._not_accepted(self.token_in(headers))

    def _bound_headers(self, found: Mapping[str, str]) -> dict[str, str]:
        """The headers to sign as a server will read them (RFC 9110 section 5.5)."""
        bound = {name: found[name].strip(BLANKS) for name in self.bound if name in found}
        if not bound.get("content-type"):
            bound.pop("content-type", None)  # WSGI knows no empty one (PEP 3333)
        return bound


def _of_the_context(found: Collection[str]) -> dict[str, str]:
    """The headers of the current transaction and request, where the request has none of its own."""
    added = {}
    transaction, request_id = current_transaction(), current_request_id()
    if transaction is not None and TRANSACTION_HEADER not in found:
        added[TRANSACTION] = transaction.carry()
    if request_id is not None and REQUEST_ID not in found:
        added[REQUEST_ID] = request_id
    if TRACEPARENT not in found and (traceparent := current_traceparent()):
        added[TRACEPARENT] = traceparent
    return added


def _as_sent(given: Mapping[str, str | bytes]) -> dict[str, str]:
    """The values by lower-case name. Raises UnsignableRequest for a header that cannot be encoded."""
    found = {}
    for name, value in given.items():
        text = value.decode("latin-1") if isinstance(value, bytes) else value
        if not name.isascii() or max(text, default="") > "\xff":
            raise UnsignableRequest(f"the header {name!r} cannot be sent: names are ASCII, values latin-1")
        found[name.lower()] = text
    return found
