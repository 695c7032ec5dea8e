"""ASGI: a whole application closed to all but proven, allowed callers. No framework is needed, and any will do.

::

    app = PeerAuth(
        Starlette(routes=[…]),
        identity,
        allow={"client-service": {"profiles:read"}},
        needs={"/profiles": Need("profiles:read"), "/healthz": PUBLIC},
    )

The check runs before the application sees any part of a request. With ``needs``, a path that it does not name is
always refused; without it, each path is open to each allowed caller. WebSockets are refused unless public, because a
request token binds one request, and not what follows it.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, Unpack

from peerseal.asgi_routes import AppNeeds, Scope
from peerseal.asynchronous import AsyncVerifier
from peerseal.checked_call import CheckedCall, calls, current_peer, require_scope
from peerseal.errors import (
    ContentTooLarge,
    ContentUnreadable,
    InsufficientScope,
    PeersealError,
    Replayed,
    WrongBinding,
)
from peerseal.path_needs import Needs
from peerseal.protocol.encoding import natural
from peerseal.protocol.tokens.bearer import BLANKS, bearer_token
from peerseal.protocol.tokens.response import WANT_RESPONSE_HEADER
from peerseal.protocol.trace_context import TRACEPARENT
from peerseal.refusals import (
    ANY_ALLOWED,
    PUBLIC,
    REFUSALS,
    Gate,
    Need,
    PeerAuthOptions,
    Record,
    check_need,
    check_needed_scope,
    lacking_scope,
    lacking_user,
    refusal_answer,
)
from peerseal.signed_responses import SigningSend
from peerseal.verify.context import (
    REQUEST_ID,
    RequestSpan,
    enter_outside,
    enter_request,
    leave_request,
    reset_transaction,
    set_transaction,
)
from peerseal.verify.request import BODY_LATER, Peer, RequestHeaders
from peerseal.verify.target import routed_target

if TYPE_CHECKING:
    from peerseal.identity.identity import Identity

__all__ = ["ANY_ALLOWED", "PUBLIC", "Need", "PeerAuth", "current_peer", "require_scope", "requires"]

P = ParamSpec("P")
R = TypeVar("R")

Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_READ_FIRST = 64 * 1024
"""Bytes of a body that are read before the token is checked. The rest of a longer body is read after that, so that a
caller without a good token cannot make a service hold megabytes."""
_POLICY_VIOLATION = 1008  # RFC 6455 section 7.4.1
_LAST_OF_WEBSOCKET = ("websocket.close", "websocket.http.response.start")


def requires(scope: str, *, transaction: bool = False) -> Callable[[], Awaitable[Peer | None]]:
    """A dependency for FastAPI: ``peer: Annotated[Peer, Depends(requires("orders:write"))]``.

    The route needs the scope, and with ``transaction`` a user, as `require_scope` says. The value is the caller; None
    if the check reports only. Raises ConfigurationError for a scope that no caller can have.
    """
    check_need(Need(scope, transaction), "requires")
    check_needed_scope(scope, "requires")

    async def dependency() -> Peer | None:
        require_scope(scope, transaction=transaction)
        call = calls.get()
        return None if call is None else call.peer

    return dependency


class PeerAuth:
    """Closes ``app`` to all but the callers in ``allow``. It is an ASGI application itself.

    ``needs`` says what each path needs, as in `peerseal.path_needs.PathNeeds`. Paths are below the server's
    ``root_path``, as frameworks route them; a path that a framework reads as another one, by a ``root_path`` of its
    own, is always refused. ``external_prefix`` is the path that a proxy in front strips, if the server's ``root_path``
    does not say it; the identity's by default. The other options are those of `peerseal.flask.PeerAuth`. Nothing is
    fetched before the first request.
    """

    def __init__(
        self,
        app: App,
        identity: "Identity | None" = None,
        *,
        needs: Needs | None = None,
        **options: Unpack[PeerAuthOptions],
    ) -> None:
        self._app = app
        self._needs = AppNeeds(app, needs)
        self._record = Record()
        self._gate = Gate(identity, self._record, **options)
        self._verifier = AsyncVerifier(self._gate.verifier)
        self._being_read: set[str] = set()

    @property
    def refusals(self) -> Counter[str]:
        """How many calls were refused (or, with ``report_only``, would have been) in this process, by code: a copy."""
        return self._record.counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, one WebSocket, or the application's life. Raises RuntimeError for any other kind of connection,
        as ASGI asks of an application that does not know it."""
        kind = scope["type"]
        if kind == "lifespan":
            return await self._app(scope, receive, send)
        if kind not in ("http", "websocket"):
            raise RuntimeError(f"a connection of the kind {kind!r}: expected http, websocket or lifespan")
        receive, send = _outside(receive), _outside(send)
        call = (_Call if kind == "http" else _WebSocketCall)(scope, headers_of(scope), send, self._gate)
        given = call.headers.get(REQUEST_ID), call.headers.get(TRACEPARENT)
        outer, before = calls.set(None), enter_request(*given, scope.get("method"))
        if self._gate.responses is not None and kind == "http":
            asked = call.headers.get(WANT_RESPONSE_HEADER.lower())
            call.send_on = call.signing = SigningSend(send, self._gate.responses, scope["method"], asked)
        call.send_on = _telling(before[-1], call.send_on, partial(self._needs.pattern, scope))
        try:
            return await self._serve(self._needs.need(scope), call, scope, receive)
        finally:
            if call.signing is not None:
                call.signing.end()
            leave_request(before)
            calls.reset(outer)

    async def _serve(self, need: Need, call: "_Call", scope: Scope, receive: Receive) -> None:
        body = RequestBody(receive)
        try:
            if not need.public:
                await self._admit(need, call, scope, body)
            with call:
                if call.peer is not None:
                    pattern = partial(self._needs.pattern, scope)
                    self._gate.audit.call(call.peer, scope=need.scope, method=scope["method"], route=pattern)
                await self._app(scope, body.again, call.send)
        except Exception as error:
            if call.refused is None and isinstance(error, REFUSALS):
                call.refuse(error)
            if call.began or call.refused is None:
                raise
        if call.refused is not None and not call.began:
            await call.answer(call.refused)

    async def _admit(self, need: Need, call: "_Call", scope: Scope, body: "RequestBody") -> None:
        """Verify the caller. Raises the refusal, unless refusals are reported only."""
        try:
            call.peer = await self._verified(need, scope, call, body)
        except REFUSALS as error:
            if not self._gate.report_only:
                raise
            call.report(error)

    async def _verified(self, need: Need, scope: Scope, call: "_Call", body: "RequestBody") -> Peer:
        headers, signing = call.headers, call.signing if call.signing is not None and call.signing.wanted else None
        if scope["type"] == "websocket":
            raise InsufficientScope("WebSockets are refused unless their path is public")
        token = bearer_token(headers.get(self._gate.header))
        limit = self._gate.max_body
        too_large = ContentTooLarge(f"the body is longer than {limit} bytes")
        declared = natural(headers.get("content-length", "0").lstrip("0") or "0")
        if declared is None or declared > limit:
            raise too_large
        whole = await body.read(min(_READ_FIRST, limit))
        checked = await self._verifier.check(
            token,
            method=scope["method"],
            target=_target(scope, self._gate.external_prefix),
            body=body.content if whole else BODY_LATER,
            headers=headers,
            scope=need.scope if signing is None else None,  # a refusal that is signed spends the token first
        )
        if whole:
            peer = await self._verifier.claim(checked)
        else:
            with self._reading_for(token):
                if not await body.read(limit):
                    raise too_large
                peer = await self._verifier.claim(checked.with_content(body.content))
        if signing is not None:
            signing.prove(token, peer, headers)
            if error := lacking_scope(peer, need.scope):
                raise error
        if need.transaction and (error := lacking_user(peer)):
            raise error
        return peer

    @contextmanager
    def _reading_for(self, token: str) -> Iterator[None]:
        """One body at a time for each token: only after its body it shows that a token was used before, so anyone who
        has a used token could fill the memory. Tokens are compared without their signature, because an ES256 signature
        can be written in two ways."""
        signed = token.rpartition(".")[0]
        if signed in self._being_read:
            raise Replayed("another body is being read for the token")
        self._being_read.add(signed)
        try:
            yield
        finally:
            self._being_read.remove(signed)


def _telling(span: RequestSpan | None, send: Send, pattern: Callable[[], str | None]) -> Send:
    """``send``; where the request has a span, one that adds the status and the route to it."""
    if span is None:
        return send

    async def telling(event: Event) -> None:
        if event["type"] == "http.response.start":
            route = pattern()
            span.add({"http.response.status_code": event["status"]} | ({} if route is None else {"http.route": route}))
        await send(event)

    return telling


class _Call(CheckedCall):
    """One request. The application's head is held until the first byte of its body, so that a handler, and a stream
    before its first piece, can refuse."""

    def __init__(self, scope: Scope, headers: Mapping[str, str], send: Send, gate: Gate) -> None:
        super().__init__(gate)
        self._scope = scope
        self._head: Event | None = None
        self.headers = headers
        self.send_on = send
        self.signing: SigningSend | None = None

    def __enter__(self) -> None:
        """The block knows this call, and works for its transaction."""
        self._before = calls.set(self), set_transaction(self.peer.transaction if self.peer else None)

    def __exit__(self, *_: object) -> None:
        call, transaction = self._before
        reset_transaction(transaction)
        calls.reset(call)

    async def send(self, event: Event) -> None:
        """The application's ``send``. What it would answer once a handler has refused is not sent: frameworks make a
        500 of errors that they do not know."""
        if self.began:
            return await self.send_on(event)
        if self.refused is not None:
            return None
        if event["type"] == "http.response.start":
            self._head = event
        elif self._head is None:  # early hints, and what servers make errors of
            await self.send_on(event)
        elif not _is_empty(event):
            self.began = True
            await self.send_on(self._head)
            await self.send_on(event)
        return None

    def logged(self, error: PeersealError, *, reported: bool = False) -> str:
        """See CheckedCall."""
        scope, authorization = self._scope, self.headers.get(self.gate.header)
        method = scope.get("method", "WebSocket")
        return self.gate.refused(error, method, _received_target(scope), authorization, reported=reported)

    async def answer(self, error: PeersealError) -> None:
        """Answer a refused request."""
        problem = refusal_answer(error, self.request_id)
        headers = [(name.lower().encode(), value.encode()) for name, value in problem.headers.items()]
        headers.append((b"content-length", str(len(problem.body)).encode()))
        await self.send_on({"type": "http.response.start", "status": problem.status, "headers": headers})
        await self.send_on({"type": "http.response.body", "body": problem.body})


class _WebSocketCall(_Call):
    """One WebSocket. A refusal closes it, which a client that is not accepted yet sees as 403. ``began`` says that the
    application has closed it, or denied it with an answer of its own."""

    _closed = False

    async def send(self, event: Event) -> None:
        """See _Call. The application may go on and wait for the client: so the first message after a refusal closes."""
        if self.refused is not None and not self.began:
            await self.answer(self.refused)
        else:
            self.began = self.began or event["type"] in _LAST_OF_WEBSOCKET
            await self.send_on(event)

    async def answer(self, error: PeersealError) -> None:
        """See _Call; once."""
        if not self._closed:
            self._closed = True
            await self.send_on({"type": "websocket.close", "code": _POLICY_VIOLATION})


def _is_empty(event: Event) -> bool:
    """Whether the event is a piece of a body without a byte, and not the last one."""
    return event["type"] == "http.response.body" and not event.get("body") and bool(event.get("more_body"))


def _outside(step: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
    """A server's ``receive`` or ``send``, which runs outside of any call, request and transaction: there the server may
    start the next request of the connection, which would inherit the context variables."""

    async def run(*arguments: P.args, **options: P.kwargs) -> R:
        call, before = calls.set(None), enter_outside()
        try:
            return await step(*arguments, **options)
        finally:
            leave_request(before)
            calls.reset(call)

    return run


class RequestBody:
    """A request's body, read up to a limit, and given to the application from its beginning."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._pieces: list[bytes] = []
        self._size = 0
        self._whole = self._given = False

    @property
    def content(self) -> bytes:
        """What was read."""
        return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)

    async def read(self, limit: int) -> bool:
        """Read on until the body ends, or is longer than ``limit`` bytes: whether it ended. Raises ContentUnreadable
        where it broke off."""
        while not self._whole and self._size <= limit:
            event = await self._receive()
            if event["type"] != "http.request":
                raise ContentUnreadable("the body broke off")
            self._pieces.append(event.get("body", b""))
            self._size += len(self._pieces[-1])
            self._whole = not event.get("more_body", False)
        return self._whole and self._size <= limit

    async def again(self) -> Event:
        """The application's ``receive``: what was read, in one piece, then whatever else comes."""
        if self._given or not self._pieces:
            return await self._receive()
        self._given = True
        return {"type": "http.request", "body": self.content, "more_body": not self._whole}


class _Headers(dict[str, str], RequestHeaders):
    """The headers of a request by lower-case name, each without the blanks around it."""


def headers_of(scope: Scope) -> RequestHeaders:
    """The headers. Several values of one name are joined with commas: a header that is checked may not have two."""
    found = _Headers()
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1").strip(BLANKS)
        found[name] = f"{found[name]},{value}" if name in found else value
    return found


def _received_target(scope: Scope) -> str:
    """The target as the server received it; the routed path where the server does not tell it."""
    raw_path = scope.get("raw_path")
    path = scope["path"].encode("utf-8", "surrogateescape") if raw_path is None else raw_path
    query = scope.get("query_string", b"")
    received: bytes = path + (b"?" + query if query else b"")
    return received.decode("latin-1")


def _target(scope: Scope, external_prefix: str) -> str:
    """The origin-form target that the caller signed. Raises WrongBinding, also where the server does not tell the raw
    path. ASGI cannot tell an empty query from none, so only a target without a question mark is accepted then."""
    if scope.get("raw_path") is None:
        raise WrongBinding("the server does not tell the raw request-target: raw_path is not there")
    raw = _received_target(scope)
    path = scope["path"].encode("utf-8", "surrogateescape").decode("latin-1")
    return routed_target(raw, "", path, external_prefix)
