"""ASGI: a whole application closed to all but proven, allowed callers. No framework is needed, and any will do.

::

    app = PeerAuth(
        Starlette(routes=[…]),
        identity,
        allow={"client-service": {"profiles:read"}},
        needs={"/profiles": Need("profiles:read"), "/healthz": PUBLIC},
    )

One check runs before the application sees anything of a request: the caller, this very request, its body. A path that
``needs`` does not name is open to nobody; without ``needs`` every path is open to any allowed caller. WebSockets are
refused unless public: a request token binds one request, and not what follows it.
"""

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from peerseal.asgi_routes import is_below, own_roots, route_path, route_pattern
from peerseal.asynchronous import AsyncVerifier
from peerseal.errors import (
    ConfigurationError,
    ContentTooLarge,
    ContentUnreadable,
    InsufficientScope,
    MissingToken,
    PeersealError,
    Replayed,
    WrongBinding,
)
from peerseal.protocol.numbers import natural
from peerseal.protocol.tokens.request import BLANKS
from peerseal.refusals import (
    ANY_ALLOWED,
    ODD,
    PUBLIC,
    REFUSALS,
    Need,
    Record,
    answer,
    audit_log_of,
    check_need,
    check_options,
    check_paths,
    lacking,
    lacking_user,
    verifier_of,
)
from peerseal.verify.audit_log import OnVerified
from peerseal.verify.context import REQUEST_ID, carrying, serving, within
from peerseal.verify.replay.guards import ReplayGuard
from peerseal.verify.request import Peer, Verifier
from peerseal.verify.target import check_external_prefix, routed_target
from peerseal.wsgi import MAX_BODY, bearer_token

if TYPE_CHECKING:
    from peerseal.identity.identity import Identity

__all__ = ["ANY_ALLOWED", "PUBLIC", "Need", "PeerAuth", "current_peer", "require_scope"]

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

log = logging.getLogger("peerseal")

_READ_FIRST = 64 * 1024
"""Bytes of a body that are read before the signature is checked. A longer one is read once that is good, and then all
is verified once more: strangers must not make a service hold megabytes."""
_POLICY_VIOLATION = 1008  # RFC 6455 section 7.4.1
_NOBODY: Final = Need("")  # no caller has it: a scope is not empty


def current_peer() -> Peer:
    """The verified caller of the request that this code serves. Raises RuntimeError where nobody was verified."""
    call = _calls.get()
    if call is None or call.peer is None:
        raise RuntimeError("no verified caller: the path is public, or the check reports only")
    return call.peer


def require_scope(scope: str, *, transaction: bool = False) -> None:
    """For handlers whose need shows late: passes where the caller may use the scope.

    What it raises (MissingToken, InsufficientScope, BadTransactionToken) becomes the answer, whatever the application
    makes of it, unless that has begun to answer. To do less for those who may less, ask ``current_peer().scopes``.
    """
    call = _calls.get()
    if call is None:
        raise MissingToken("not within a request")
    call.require(scope, transaction)


class PeerAuth:
    """Closes ``app`` to all but the callers in ``allow``. It is an ASGI application itself.

    ``needs`` maps paths to what they need, each with everything below it; the longest one counts, and paths that could
    be read in two ways (dot segments, two slashes in a row, backslashes, control characters) are nobody's. Or it is a
    function of method and path. Either way the path is decoded, and below the server's ``root_path``, as frameworks
    route it; what one of them would read otherwise, by a ``root_path`` of its own, is nobody's. ``external_prefix`` is
    the path that a proxy in front strips, if the server's ``root_path`` does not say it; the identity's by default. The
    other options are those of `peerseal.flask.PeerAuth`. Nothing is fetched before the first request.
    """

    def __init__(
        self,
        app: App,
        identity: "Identity | None" = None,
        *,
        allow: Mapping[str, Iterable[str]] | None = None,
        needs: Mapping[str, Need] | Callable[[str, str], Need] | None = None,
        report_only: bool = False,
        header: str = "Authorization",
        max_body: int = MAX_BODY,
        external_prefix: str | None = None,
        verifier: Verifier | None = None,
        replay: ReplayGuard | None = None,
        audit: bool | None = None,
        on_verified: OnVerified | None = None,
    ) -> None:
        check_options(header, max_body, report_only, verifier, identity)
        self._app = app
        self._trunks = [] if callable(needs) else _longest_first({"/": ANY_ALLOWED} if needs is None else needs)
        self._needs = _checked(needs) if callable(needs) else _by_path(self._trunks)
        self._report_only = report_only
        self._header = header.lower()
        self._max_body = max_body
        prefix = external_prefix if external_prefix is not None else identity.external_prefix if identity else ""
        self._external_prefix = check_external_prefix(prefix)
        self._verifier = AsyncVerifier(verifier or verifier_of(identity, allow, replay))
        self._record = Record()
        self._audit = audit_log_of(identity, self._record, audit, on_verified)
        self._read_for: set[str] = set()

    @property
    def refusals(self) -> Counter[str]:
        """How many calls were refused (or, with ``report_only``, would have been) in this process, by code: a copy."""
        return self._record.counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, one WebSocket, or the application's life. Raises RuntimeError for any other kind of connection,
        as ASGI asks of whoever does not know it: nobody could say who calls there."""
        kind = scope["type"]
        if kind == "lifespan":
            return await self._app(scope, receive, send)
        if kind not in ("http", "websocket"):
            raise RuntimeError(f"a connection of the kind {kind!r}: nobody knows who calls")
        call = _Call(_headers(scope), send, self._header, self._record, self._report_only)
        serve = self._http if kind == "http" else self._websocket
        with _outside(), serving(call.headers.get(REQUEST_ID)):
            return await serve(self._need(scope), call, scope, receive)

    def _need(self, scope: Scope) -> Need:
        """What the path needs. One that a framework would read otherwise than it is told here is nobody's: the need of
        another path would be asked for."""
        path: str = scope["path"]
        told = route_path(path, scope.get("root_path", ""))
        for place, root in self._own_roots:
            if is_below(told, place) and route_path(path, root) != route_path(told, place):
                return _NOBODY
        return self._needs(scope.get("method", "GET"), told)

    @cached_property
    def _own_roots(self) -> tuple[tuple[str, str], ...]:
        """Looked for at the first request, when all is mounted."""
        return tuple(own_roots(self._app))

    async def _http(self, need: Need, call: "_Call", scope: Scope, receive: Receive) -> None:
        body = _Body(receive)
        try:
            if not need.public:
                await self._admit(need, call, scope, body)
            with call.within():
                if call.peer is not None:
                    self._note(call.peer, need, scope)
                await self._app(scope, body.again, call.send)
        except Exception as error:
            if call.refused is None and isinstance(error, REFUSALS):
                call.refuse(error)
            if call.began or call.refused is None:
                raise
        if call.refused is not None and not call.began:
            await call.answer(call.refused)

    async def _websocket(self, need: Need, call: "_Call", scope: Scope, receive: Receive) -> None:
        if not need.public:
            error = InsufficientScope("WebSockets are open to nobody, unless they are public")
            if not self._report_only:
                call.refuse(error)
                await receive()
                return await call.send_on({"type": "websocket.close", "code": _POLICY_VIOLATION})
            call.report(error)
        return await self._app(scope, receive, call.send_on)

    async def _admit(self, need: Need, call: "_Call", scope: Scope, body: "_Body") -> None:
        """Let the call in. Raises what refuses it."""
        try:
            call.peer = await self._verified(need, scope, call.headers, body)
        except REFUSALS as error:
            if not self._report_only:
                raise
            call.report(error)

    def _note(self, peer: Peer, need: Need, scope: Scope) -> None:
        """For the audit: a call was let in. Where the framework does not tell the route, ``needs`` says which it is."""
        told = route_path(scope["path"], scope.get("root_path", ""))
        covering = (f"{trunk}/*" if told != trunk else trunk for trunk, _ in self._trunks if is_below(told, trunk))
        self._audit.call(
            peer,
            scope=need.scope,
            method=scope["method"],
            route=lambda: route_pattern(self._app, scope) or next(covering, None),
        )

    async def _verified(self, need: Need, scope: Scope, headers: Mapping[str, str], body: "_Body") -> Peer:
        token = bearer_token(headers.get(self._header))
        declared = headers.get("content-length", "0")
        length = natural(declared.lstrip("0") or "0")
        if length is None or length > self._max_body:
            raise ContentTooLarge(f"the body is longer than {self._max_body} bytes")
        method, target = scope["method"], _target(scope, self._external_prefix)
        if await body.read(min(_READ_FIRST, self._max_body)):
            peer = await self._verifier.verify(
                token, method=method, target=target, body=body.content, headers=headers, scope=need.scope
            )
        else:
            head = await self._verifier.check_head(token, method=method, target=target, headers=headers)
            with self._reading_for(token):
                if not await body.read(self._max_body):
                    raise ContentTooLarge(f"the body is longer than {self._max_body} bytes")
                checked = await self._verifier.check_body(head, body.content, scope=need.scope)
                peer = await self._verifier.claim(checked)
        if need.transaction and (error := lacking_user(peer)):
            raise error
        return peer

    @contextmanager
    def _reading_for(self, token: str) -> Iterator[None]:
        """One body at a time for each token: that one was used shows after its body only, so whoever has read it off
        the wire could fill the memory. It is known by what is signed: an ES256 signature can be written in two ways."""
        signed = token.rpartition(".")[0]
        if signed in self._read_for:
            raise Replayed("another body is being read for the token")
        self._read_for.add(signed)
        try:
            yield
        finally:
            self._read_for.remove(signed)


class _Call:
    """One request or WebSocket on its way: who called, and what became of it.

    Handlers find it in a context variable; what they change here is seen wherever they run, in threads, too.
    """

    def __init__(self, headers: Mapping[str, str], send: Send, header: str, record: Record, report_only: bool) -> None:
        self.headers = headers
        self.send_on = send
        self.peer: Peer | None = None
        self.refused: PeersealError | None = None
        self.began = False
        self._header = header
        self._record = record
        self._report_only = report_only

    @contextmanager
    def within(self) -> Iterator[None]:
        """The block knows this call, and works for its transaction."""
        current = _calls.set(self)
        try:
            with carrying(self.peer.transaction if self.peer else None):
                yield
        finally:
            _calls.reset(current)

    async def send(self, event: Event) -> None:
        """The application's ``send``. What it would answer once a handler has refused is not sent: frameworks make a
        500 of errors that they do not know."""
        if self.refused is None or self.began:
            self.began = True
            with _outside():
                await self.send_on(event)

    def require(self, scope: str, transaction: bool) -> None:
        """See `require_scope`."""
        error = lacking(self.peer, scope, transaction)
        if error is None:
            return
        if not self._report_only:
            self.refuse(error)
            raise error
        if self.peer is not None:  # where there is none, the check has reported it already
            self.report(error)

    def refuse(self, error: PeersealError) -> None:
        """Refused from now on; logged and counted."""
        self.refused = error
        self._add("refused", error)

    def report(self, error: PeersealError) -> None:
        """Log and count what would have been refused."""
        self._add("would refuse", error)

    async def answer(self, error: PeersealError) -> None:
        """Answer a refused request."""
        refused = answer(error)
        headers = [(name.lower().encode(), value.encode()) for name, value in refused.headers.items()]
        headers.append((b"content-length", str(len(refused.body)).encode()))
        await self.send_on({"type": "http.response.start", "status": refused.status, "headers": headers})
        await self.send_on({"type": "http.response.body", "body": refused.body})

    def _add(self, what: str, error: PeersealError) -> None:
        self._record.add(what, error, self.headers.get(self._header))


_calls: ContextVar[_Call | None] = ContextVar("peerseal_call", default=None)


@contextmanager
def _outside() -> Iterator[None]:
    """The block knows no call and no request, and works for nobody. Servers run in it: within ``send`` and ``receive``
    they may start the next request of the connection, to which context variables would go along."""
    current = _calls.set(None)
    try:
        with carrying(None), within(None):
            yield
    finally:
        _calls.reset(current)


class _Body:
    """A request's body, read as far as asked for, and given to the application anew."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._pieces: list[bytes] = []
        self._size = 0
        self._whole = self._given = False

    @property
    def content(self) -> bytes:
        """What was read."""
        return b"".join(self._pieces)

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
            with _outside():
                return await self._receive()
        self._given = True
        return {"type": "http.request", "body": self.content, "more_body": not self._whole}


def _checked(needs: Callable[[str, str], Need]) -> Callable[[str, str], Need]:
    """The application's own function; where it gives no need, it is for no caller."""

    def need_of(method: str, path: str) -> Need:
        try:
            return check_need(needs(method, path), f"what needs gives for {path!r}")
        except ConfigurationError as error:
            log.error("no caller is let in: %s", error)
            return _NOBODY

    return need_of


def _longest_first(needs: Any) -> list[tuple[str, Need]]:
    """What paths need, without a slash at their end, the longest path first. Raises ConfigurationError."""
    needed = sorted(check_paths(needs).items(), key=lambda item: -len(item[0].rstrip("/")))
    return [(path.rstrip("/"), need) for path, need in needed]


def _by_path(trunks: list[tuple[str, Need]]) -> Callable[[str, str], Need]:
    """The need of the longest path that the request's is, or lies below."""

    def need_of(_: str, path: str) -> Need:
        if ODD.search(path):
            return _NOBODY
        return next((need for trunk, need in trunks if is_below(path, trunk)), _NOBODY)

    return need_of


def _headers(scope: Scope) -> dict[str, str]:
    """By lower-case name; of several values of one name, all, with commas: none of those that are checked may have
    two."""
    found: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1").strip(BLANKS)
        found[name] = f"{found[name]},{value}" if name in found else value
    return found


def _target(scope: Scope, external_prefix: str) -> str:
    """The origin-form target that the caller signed. Raises WrongBinding, also where the server does not tell the raw
    path. Of a query that is empty ASGI does not say whether there was a question mark: only without one it is good."""
    raw_path = scope.get("raw_path")
    if raw_path is None:
        raise WrongBinding("the server does not tell the raw request-target: raw_path is not there")
    query = scope.get("query_string", b"")
    raw = (raw_path + (b"?" + query if query else b"")).decode("latin-1")
    path = scope["path"].encode("utf-8", "surrogateescape").decode("latin-1")
    return routed_target(raw, "", path, external_prefix)
