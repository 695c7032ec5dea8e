"""The callee signs its responses: what it signs, for which callers, and the wrappers for WSGI and ASGI.

Only an answer to a verified caller is signed, and only once that caller's token is spent: so a stranger, or a copy of a
request, gets no signature. The wrappers stand outside of the check before the application, and see the answer as the
server will send it. They hold it in memory until its end, because a token says what the whole
body is.
"""

import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, MutableMapping
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from peerseal.errors import ConfigurationError, PeersealError
from peerseal.protocol.plain import plain_text
from peerseal.protocol.tokens.response import (
    ALWAYS_SIGNED,
    LENGTH,
    RESPONSE_HEADER,
    SELECTING,
    UNSIGNABLE_HEADERS,
    WANT_RESPONSE_HEADER,
    WANTED,
    signed_headers,
)
from peerseal.runtime.metrics import Tally
from peerseal.runtime.options import check_header_names, check_whole, shortened
from peerseal.wsgi_environ import EnvironHeaders, environ_key

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from peerseal.identity.identity import Identity
    from peerseal.verify.request import Peer

log = logging.getLogger("peerseal")

SignResponses = bool | Literal["on_request"]

MAX_SIGNED_BODY: Final = 16 * 1024 * 1024
"""Bytes of the longest answer that is held in memory to be signed, by default."""

_WANT_KEY: Final = environ_key(WANT_RESPONSE_HEADER)
_ON_REQUEST: Final = "on_request"
_HELP: Final = "Answers to sign for verified callers, by outcome: signed, too_long, stream, unbound, failed."
_WITHOUT_BODY: Final = (204, 304)  # RFC 9110 section 6.4.1
_EVENT_STREAM: Final = "text/event-stream"
_NOT_SIGNED: Final = UNSIGNABLE_HEADERS | {"set-cookie"}  # whose values cannot be joined by a comma


class ProvenCall(NamedTuple):
    """A request that was accepted: its compact request token, and the service id of its caller."""

    request_token: str
    caller: str


class ResponseSigning:
    """What one application signs of its answers: the checked options of its ``PeerAuth``. Raises ConfigurationError."""

    def __init__(
        self,
        identity: "Identity | None",
        mode: SignResponses,
        bound: Collection[str] = (),
        max_body: int = MAX_SIGNED_BODY,
    ) -> None:
        check_signing(mode, bound, max_body)
        if identity is None:
            raise ConfigurationError("sign_responses needs an identity, whose key signs; a verifier is not enough")
        self._identity = identity
        self._always = mode is True
        self._names = frozenset((*ALWAYS_SIGNED, *(name.lower() for name in bound)))
        self.max_body = max_body
        self.key = f"peerseal.answer.{id(self)}"  # of its own, since applications may be mounted in each other
        self._tally = Tally("peerseal_responses_total", _HELP, "outcome")
        identity.add_metrics(lambda: [self._tally.metric()])

    def wants(self, asked: str | None) -> bool:
        """Whether an answer is signed for a caller that sends this value of `WANT_RESPONSE_HEADER`, if any."""
        return self._always or asked == WANTED

    def proven(self, token: str, peer: "Peer", headers: Mapping[str, str]) -> ProvenCall | None:
        """The call with this request token, which was accepted; None where its answer is not signed, because a header
        that chooses the answer may have been added on the way. ``headers`` are the request's, by lower-case names."""
        call, bound = ProvenCall(token, peer.id), peer.claims["headers"]
        unbound = [name for name in SELECTING if name not in bound and headers.get(name) is not None]
        if not unbound:
            return call
        # No warning: it is an ordinary request of a caller that does not look for a signature.
        why = f"the request has {', '.join(unbound)}, which its token does not bind"
        self._unsigned("unbound", call, why, level=logging.INFO)
        return None

    def header(
        self, call: ProvenCall, method: str, status: int, headers: Iterable[tuple[str, str]], body: bytes
    ) -> str | None:
        """The value of `RESPONSE_HEADER`; None where the answer cannot be signed, which is logged."""
        head = method == "HEAD"
        empty, names = head or status in _WITHOUT_BODY, self._names | {LENGTH} if head else self._names
        try:
            token = self._identity.sign_response(
                call.request_token,
                caller=call.caller,
                status=status,
                body=b"" if empty else body,
                headers=signed_headers(headers, names),
            )
        except PeersealError as error:
            self._unsigned("failed", call, str(error))
            return None
        self._tally.add("signed")
        return token

    def is_stream(self, call: ProvenCall, headers: Iterable[tuple[str, str]]) -> bool:
        """Whether the answer is a stream of events, which may have no end. It is sent unsigned."""
        kind = signed_headers(headers, ("content-type",)).get("content-type", "")
        found = kind.partition(";")[0].strip().lower() == _EVENT_STREAM
        if found:
            self._unsigned("stream", call, f"its type is {_EVENT_STREAM}")
        return found

    def report_too_long(self, call: ProvenCall) -> None:
        """The body is longer than the bound, so the answer is sent unsigned."""
        self._unsigned("too_long", call, f"its body is longer than max_signed_body, {self.max_body} bytes")

    def report_other_body(self, call: ProvenCall, kind: str) -> None:
        """The body goes to the server in another way than as bytes, so the answer is sent unsigned."""
        self._unsigned("stream", call, f"its body is sent by {kind}")

    def report_no_answer(self, call: ProvenCall) -> None:
        """The application ended before its answer did. The server may answer in its place, unsigned."""
        self._unsigned("failed", call, "the application ended before its answer did")

    def report_other_environ(self, call: ProvenCall) -> None:
        """The application was called with another environ than its `SigningApplication`."""
        self._unsigned("failed", call, "a middleware has made another environ: copy the environ that it gets")

    def _unsigned(self, outcome: str, call: ProvenCall, why: str, level: int = logging.WARNING) -> None:
        self._tally.add(outcome)
        log.log(level, "an answer to %s is not signed: %s", call.caller, why)


def check_signing(mode: object, bound: Any, max_body: object) -> None:
    """Raises ConfigurationError for invalid options."""
    if not (isinstance(mode, bool) or plain_text(mode) == _ON_REQUEST):
        raise ConfigurationError(f"sign_responses={shortened(mode)}: expected True, False or {_ON_REQUEST!r}")
    check_header_names("bind_response_headers", bound)
    if wrong := _NOT_SIGNED.intersection(name.lower() for name in bound):
        raise ConfigurationError(f"bind_response_headers: these headers cannot be signed: {', '.join(sorted(wrong))}")
    check_whole("max_signed_body", max_body)


# ---- WSGI


class SigningApplication:
    """A WSGI application whose answers to calls are signed once ``app`` calls `prove`, with its environ or a copy."""

    def __init__(self, app: "WSGIApplication", signing: ResponseSigning) -> None:
        self._app = app
        self._signing = signing

    def __call__(self, environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        """One request."""
        held = environ[self._signing.key] = _HeldAnswer(environ["REQUEST_METHOD"], start_response, self._signing)
        try:
            return held.whole(self._app(environ, held.start))
        except Exception:
            held.application_failed()
            raise


def wanted_signing(environ: "WSGIEnvironment", signing: ResponseSigning | None) -> ResponseSigning | None:
    """The signing, if the answer to this request is signed once its caller is verified."""
    return signing if signing is not None and signing.wants(environ.get(_WANT_KEY)) else None


def prove(environ: "WSGIEnvironment", signing: ResponseSigning, token: str, peer: "Peer") -> None:
    """The call is accepted: from now on its answer is signed. See `ResponseSigning.proven`."""
    call, held = signing.proven(token, peer, EnvironHeaders(environ)), environ.get(signing.key)
    if held is not None:
        held.prove(call)
    elif call is not None:
        signing.report_other_environ(call)


class _HeldAnswer:
    """One answer, held until its end; or passed on as it comes, where it is not signed."""

    def __init__(self, method: str, start_response: "StartResponse", signing: ResponseSigning) -> None:
        self._call_is_known = False
        self._call: ProvenCall | None = None
        self._method = method
        self._start_response = start_response
        self._signing = signing
        self._head: tuple[str, list[tuple[str, str]]] | None = None  # while the answer is held
        self._pieces: list[bytes] = []
        self._size = 0
        self._passes = False

    def prove(self, call: ProvenCall | None) -> None:
        """The call to which it is the answer. A later one is of a copy of the environ, which has another answer."""
        if not self._call_is_known:
            self._call_is_known, self._call = True, call

    def start(self, status: str, headers: list[tuple[str, str]], *error: Any) -> Callable[[bytes], object]:
        """The application's ``start_response`` (PEP 3333)."""
        if not self._passes and self._call is not None and not self._signing.is_stream(self._call, headers):
            self._head = status, headers
            self._pieces, self._size = [], 0  # an error replaces what was not sent
            return self._write
        self._passes, self._head = True, None
        return self._start_response(status, headers, *error)

    def whole(self, body: Iterable[bytes]) -> Iterable[bytes]:
        """The body to send, after the application has returned ``body``."""
        if self._passes:
            return body
        rest = _Rest(body)
        try:
            for piece in rest:
                if self._head is None:  # it began with the first piece, and is not signed
                    return rest.after([piece])
                self._add(piece)
                if self._size > self._signing.max_body:
                    self._pass_on()
                    held, self._pieces = self._pieces, []
                    return rest.after(held)
            if self._call is None or self._head is None:
                return rest
            return _Whole(self._signed(self._call, *self._head), rest)
        except BaseException:
            rest.close()
            raise

    def application_failed(self) -> None:
        """The application raised an error."""
        if self._call is not None and not self._passes:
            self._signing.report_no_answer(self._call)

    def _signed(self, call: ProvenCall, status: str, headers: list[tuple[str, str]]) -> list[bytes]:
        pieces, self._pieces = self._pieces, []  # not held twice while a slow client reads
        body = b"".join(pieces)
        token = self._signing.header(call, self._method, int(status[:3]), headers, body)
        kept = [pair for pair in headers if pair[0].lower() != RESPONSE_HEADER.lower()]
        self._start_response(status, kept if token is None else [*kept, (RESPONSE_HEADER, token)])
        return [body] if body else []

    def _add(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._size += len(piece)

    def _write(self, piece: bytes) -> None:
        """What an imperative application writes (PEP 3333)."""
        self._add(piece)
        if self._head is not None and self._size > self._signing.max_body:
            self._write_on = self._pass_on()
        if self._passes:
            for held in self._pieces:
                self._write_on(held)
            self._pieces = []

    def _pass_on(self) -> Callable[[bytes], object]:
        """The answer is too long: its head is sent unsigned, and what is held must follow."""
        if self._call is not None:
            self._signing.report_too_long(self._call)
        status, headers = self._head or ("", [])
        self._passes, self._head = True, None
        return self._start_response(status, headers)


class _Rest(Iterator[bytes]):
    """The pieces of a body that are still to come."""

    def __init__(self, body: Iterable[bytes]) -> None:
        self._body = body
        self._pieces = iter(body)

    def __next__(self) -> bytes:
        return next(self._pieces)

    def after(self, read: list[bytes]) -> "_Rest":
        """The same, once more from the pieces that were read."""
        self._pieces = chain(read, self._pieces)
        return self

    def close(self) -> None:
        """Close the body (PEP 3333)."""
        getattr(self._body, "close", lambda: None)()


class _Whole(list[bytes]):
    """The pieces of an answer that is signed. The server closes the application's body once it has sent them (PEP
    3333)."""

    def __init__(self, pieces: Iterable[bytes], body: _Rest) -> None:
        super().__init__(pieces)
        self.close = body.close


# ---- ASGI

Event = MutableMapping[str, Any]
Send = Callable[[Event], Awaitable[None]]


class SigningSend:
    """A server's ``send`` of one request, which holds the answer to a proven call until its end."""

    def __init__(self, send: Send, signing: ResponseSigning, method: str, asked: str | None) -> None:
        self._send = send
        self._signing = signing
        self._method = method
        self._call: ProvenCall | None = None
        self._head: Event | None = None
        self._pieces: list[bytes] = []
        self._size = 0
        self.wanted = signing.wants(asked)

    def prove(self, token: str, peer: "Peer", headers: Mapping[str, str]) -> None:
        """The call is accepted: from now on its answer is signed. See `ResponseSigning.proven`."""
        self._call = self._signing.proven(token, peer, headers)

    def end(self) -> None:
        """The application has ended. What is held is not the whole answer, and not sent."""
        if self._call is not None:
            self._signing.report_no_answer(self._call)

    async def __call__(self, event: Event) -> None:
        """See the specification of ASGI. Trailers, and files that the server reads itself, are not signed."""
        call, kind = self._call, event["type"]
        if call is None:
            await self._send(event)
        elif kind == "http.response.start":
            await self._begin(call, {**event, "headers": list(event.get("headers", ()))})
        elif self._head is None or kind in _ASIDE:
            await self._send(event)
        elif kind == "http.response.body":
            await self._hold(call, event)
        else:
            self._signing.report_other_body(call, kind)
            await self._pass_on(event)

    async def _begin(self, call: ProvenCall, event: Event) -> None:
        if self._head is not None:
            raise RuntimeError("http.response.start was sent twice")
        if self._signing.is_stream(call, _texts(event)):
            await self._pass_on(event)
        else:
            self._head = event

    async def _hold(self, call: ProvenCall, event: Event) -> None:
        piece = bytes(event.get("body", b""))
        self._size += len(piece)
        if self._size > self._signing.max_body:
            self._signing.report_too_long(call)
            await self._pass_on(event)
            return
        self._pieces.append(piece)
        if not event.get("more_body"):
            await self._sign(call)

    async def _pass_on(self, event: Event) -> None:
        """Send what is held, and from this event on the answer as it comes."""
        (head, self._head), (pieces, self._pieces) = (self._head, None), (self._pieces, [])
        self._call = None
        if head is not None:
            await self._send(head)
        if pieces:
            await self._send({"type": "http.response.body", "body": b"".join(pieces), "more_body": True})
        await self._send(event)

    async def _sign(self, call: ProvenCall) -> None:
        head, body = self._head or {}, b"".join(self._pieces)
        self._pieces = []
        token = self._signing.header(call, self._method, head["status"], _texts(head), body)
        kept = [pair for pair in head.get("headers", ()) if pair[0].lower() != _HEADER]
        added = [] if token is None else [(_HEADER, token.encode("ascii"))]
        self._head = {**head, "headers": [*kept, *added]}
        await self._pass_on({"type": "http.response.body", "body": body, "more_body": False})


_HEADER: Final = RESPONSE_HEADER.lower().encode("ascii")
_ASIDE: Final = ("http.response.early_hint", "http.response.push", "http.response.debug")
"""Events that stand aside of the answer, and may come before or within it."""


def _texts(head: Event) -> list[tuple[str, str]]:
    """The headers of an answer's head as texts."""
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in head.get("headers", ())]
