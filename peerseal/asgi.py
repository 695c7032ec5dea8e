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
import re
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from peerseal.asynchronous import AsyncVerifier
from peerseal.errors import (
    BadTransactionToken,
    ConfigurationError,
    ContentTooLarge,
    ContentUnreadable,
    InsufficientScope,
    MissingToken,
    PeersealError,
    WrongBinding,
)
from peerseal.peers.context import begin
from peerseal.peers.replay import ReplayGuard
from peerseal.peers.target import check_external_prefix, routed_target
from peerseal.peers.verify import Peer, Verifier
from peerseal.refusals import LOGGED, REFUSALS, answer, logged
from peerseal.wsgi import MAX_BODY, bearer_token

if TYPE_CHECKING:
    from peerseal.peers.identity import Identity

log = logging.getLogger("peerseal")

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_READ_FIRST = 64 * 1024
"""Bytes of a body that are read before the signature is checked. A longer one is read once that is good, and then all
is verified once more: strangers must not make a service hold megabytes."""
_ODD = re.compile(r"//|/\.\.?(?:/|$)|\\")
"""What applications read as another path than it says."""
_POLICY_VIOLATION = 1008  # RFC 6455 section 7.4.1

_peer: ContextVar[Peer | None] = ContextVar("peerseal_peer", default=None)


@dataclass(frozen=True, slots=True)
class Need:
    """What a path needs: the scope, if any, and with ``transaction`` a user behind the call; or nothing at all."""

    scope: str | None = None
    transaction: bool = False
    public: bool = False


PUBLIC: Final = Need(public=True)
"""Open to everybody; nobody is verified there."""
ANY_ALLOWED: Final = Need()
"""Open to every allowed caller."""
_NOBODY: Final = Need("")  # no caller has it: a scope is not empty


def current_peer() -> Peer:
    """The verified caller of the request that this code serves. Raises RuntimeError where nobody was verified."""
    peer = _peer.get()
    if peer is None:
        raise RuntimeError("no verified caller: the path is public, or the check reports only")
    return peer


def check_scope(scope: str, *, transaction: bool = False) -> None:
    """For handlers whose need shows late: passes where the caller may use the scope. What it raises (MissingToken,
    InsufficientScope, BadTransactionToken) is answered as a refusal, unless the application answers it itself."""
    peer = _peer.get()
    if peer is None:
        raise MissingToken("the handler was reached without a verified caller")
    if scope not in peer.scopes:
        raise InsufficientScope(f"{peer.id} may not use {scope}")
    if transaction and peer.transaction is None:
        raise BadTransactionToken("this is done for users only, and no transaction token came")


class PeerAuth:
    """Closes ``app`` to all but the callers in ``allow``. It is an ASGI application itself.

    ``needs`` maps paths to what they need, each with everything below it; the longest one counts; or it is a function
    of method and path. Paths with dot segments or two slashes in a row are nobody's. ``external_prefix`` is the path
    that a proxy in front strips; the identity's by default. The other options are those of `peerseal.flask.PeerAuth`.
    Nothing is fetched before the first request.
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
    ) -> None:
        self._app = app
        self._needs = needs if callable(needs) else _by_path({"/": ANY_ALLOWED} if needs is None else needs)
        self._report_only = report_only
        self._header = header.lower()
        self._max_body = max_body
        prefix = external_prefix if external_prefix is not None else identity.external_prefix if identity else ""
        self._external_prefix = check_external_prefix(prefix)
        self._verifier = AsyncVerifier(verifier or _verifier_of(identity, allow or {}, replay))
        self._refusals: Counter[str] = Counter()
        self._lock = threading.Lock()

    @property
    def refusals(self) -> Counter[str]:
        """How many calls were refused (or, with ``report_only``, would have been) in this process, by code: a copy."""
        with self._lock:
            return self._refusals.copy()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, one WebSocket, or the application's life."""
        if scope["type"] not in ("http", "websocket"):
            return await self._app(scope, receive, send)
        need = self._needs(scope.get("method", "GET"), scope["path"])
        begin(None)
        token = _peer.set(None)
        try:
            if need.public:
                await self._app(scope, receive, send)
            elif scope["type"] == "websocket":
                await _close(receive, send)
            else:
                await self._guarded(need, scope, receive, send)
        finally:
            _peer.reset(token)
            begin(None)
        return None

    async def _guarded(self, need: Need, scope: Scope, receive: Receive, send: Send) -> None:
        headers, body, began = _headers(scope), _Body(receive), False

        async def sent(event: Event) -> None:
            nonlocal began
            began = True
            await send(event)

        try:
            try:
                peer = await self._verified(need, scope, headers, body)
                _peer.set(peer)
                begin(peer.transaction)
            except REFUSALS as error:
                self._record("would refuse" if self._report_only else "refused", error, headers)
                if not self._report_only:
                    return await _refuse(error, send)
            await self._app(scope, body.again, sent)
        except REFUSALS as error:  # by `check_scope`, deep in the application
            if began:
                raise
            self._record("refused", error, headers)
            await _refuse(error, send)
        return None

    async def _verified(self, need: Need, scope: Scope, headers: Mapping[str, str], body: "_Body") -> Peer:
        request = {
            "token": bearer_token(headers.get(self._header)),
            "method": scope["method"],
            "target": _target(scope, self._external_prefix),
            "headers": headers,
            "scope": need.scope,
        }
        declared = headers.get("content-length", "0")
        if not declared.isdecimal() or int(declared) > self._max_body:
            raise ContentTooLarge(f"the body is longer than {self._max_body} bytes")
        if not await body.read(min(_READ_FIRST, self._max_body)):
            await self._check_signer(request)
            if not await body.read(self._max_body):
                raise ContentTooLarge(f"the body is longer than {self._max_body} bytes")
        peer = await self._verifier.verify(**request, body=body.content)
        if need.transaction and peer.transaction is None:
            raise BadTransactionToken("this is done for users only, and no transaction token came")
        return peer

    async def _check_signer(self, request: dict[str, Any]) -> None:
        """Passes where only the body is left to be compared. Raises as `Verifier.verify` does."""
        try:
            await self._verifier.verify(**request, body=_not_read)
        except _BodyWanted:
            return

    def _record(self, what: str, error: PeersealError, headers: Mapping[str, str]) -> None:
        with self._lock:
            self._refusals[error.code] += 1
        log.warning(LOGGED, *logged(what, error, headers.get(self._header), headers.get("x-request-id", "")))


class _BodyWanted(Exception):
    """Everything before the body is good."""


def _not_read() -> bytes:
    raise _BodyWanted


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
        """The application's ``receive``: what was read in one piece, then whatever else comes."""
        if self._given:
            return await self._receive()
        self._given = True
        return {"type": "http.request", "body": self.content, "more_body": not self._whole}


def _by_path(needs: Mapping[str, Need]) -> Callable[[str, str], Need]:
    """The need of the longest path that the request's is, or lies below. Raises ConfigurationError."""
    if not all(path.startswith("/") for path in needs):
        raise ConfigurationError("paths begin with a slash")
    longest_first = sorted(needs.items(), key=lambda item: -len(item[0].rstrip("/")))
    trunks = [(path.rstrip("/"), need) for path, need in longest_first]

    def need_of(_: str, path: str) -> Need:
        if _ODD.search(path):
            return _NOBODY
        return next((need for trunk, need in trunks if path == trunk or path.startswith(f"{trunk}/")), _NOBODY)

    return need_of


def _verifier_of(
    identity: "Identity | None", allow: Mapping[str, Iterable[str]], replay: ReplayGuard | None
) -> Verifier:
    if identity is None:
        raise ConfigurationError("PeerAuth needs an identity or a verifier")
    guard = replay if replay is not None else identity.replay_guard()
    return Verifier(identity.trust, audience=identity.service, allow=allow, replay=guard, clock=identity.clock)


def _headers(scope: Scope) -> dict[str, str]:
    """By lower-case name; of several values of one name, all, with commas: none of those that are checked may have
    two."""
    found: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        found[name] = f"{found[name]},{value}" if name in found else value
    return found


def _target(scope: Scope, external_prefix: str) -> str:
    """The origin-form target that the caller signed. Raises WrongBinding, also where the server does not tell the raw
    path. Of a query that is empty ASGI does not say whether there was a question mark: only without one it is good."""
    raw_path = scope.get("raw_path")
    if raw_path is None:
        raise WrongBinding("the server does not tell the raw request-target")
    query = scope.get("query_string", b"")
    raw = (raw_path + (b"?" + query if query else b"")).decode("latin-1")
    path = scope["path"].encode("utf-8", "surrogateescape").decode("latin-1")
    return routed_target(raw, "", path, external_prefix)


async def _refuse(error: PeersealError, send: Send) -> None:
    refused = answer(error)
    headers = [(name.lower().encode(), value.encode()) for name, value in refused.headers.items()]
    headers.append((b"content-length", str(len(refused.body)).encode()))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": refused.body})


async def _close(receive: Receive, send: Send) -> None:
    """Refuse a WebSocket before it is one: servers answer the handshake with 403."""
    await receive()
    await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
