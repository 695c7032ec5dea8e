"""A service that signs its answers, with an attacker or a proxy between it and its callers."""

import asyncio
import gzip
import io
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import httpx
from flask import Flask, Response, redirect, request, send_file
from werkzeug.http import http_date
from werkzeug.serving import WSGIRequestHandler, make_server

from peerseal import Identity
from peerseal.flask import PeerAuth
from peerseal.httpx import AsyncPeerSession, Auth
from peerseal.protocol.tokens.response import RESPONSE_HEADER
from peerseal.testing import Clock, MemoryRegistry

CALLER = "client"
CALLEE = "orders"
BODY = b'{"price": 7}'
ARCHIVE = bytes(range(65, 91))
ARCHIVE_TAG = '"v1"'
PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Without authorities, which take a client long to load; no server here has a certificate."""


@dataclass(frozen=True)
class Sent:
    """An answer on its way, and the request token that it answers."""

    status: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    request_token: str

    @property
    def token(self) -> str:
        """Its response token."""
        return dict(self.headers)[RESPONSE_HEADER]

    def without(self, name: str) -> "Sent":
        """Without that header."""
        return replace(self, headers=tuple(pair for pair in self.headers if pair[0].lower() != name.lower()))

    def plus(self, name: str, value: str) -> "Sent":
        """With one more header."""
        return replace(self, headers=(*self.headers, (name, value)))

    def holding(self, name: str, value: str) -> "Sent":
        """With this value of the header."""
        return self.without(name).plus(name, value)


Between = Callable[[Sent], Sent]


def untouched(sent: Sent) -> Sent:
    """The honest line."""
    return sent


@dataclass
class World:
    """The service, its registry, its caller, and what is done on the way to its answers and, as its server's environ
    shows them, to requests."""

    registry: MemoryRegistry
    clock: Clock
    callee: Identity
    caller: Identity
    url: str = ""
    between: Between = untouched
    towards: Callable[[dict[str, Any]], object] = id
    sent: list[Sent] = field(default_factory=list)


class Got(NamedTuple):
    """What the application got."""

    status: int
    body: bytes
    headers: Any
    history: Sequence[int] = ()
    """The statuses of the answers before it."""


class _Silent(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *_: Any, **__: Any) -> None:
        """Writes nothing."""


@contextmanager
def signing_service(alg: str = "ES256", **options: Any) -> Iterator[World]:
    """It serves as long as the context lasts. ``options`` are those of its PeerAuth."""
    clock = Clock()
    with MemoryRegistry(clock=clock) as registry:
        world = World(registry, clock, registry.identity(CALLEE, alg=alg), registry.identity(CALLER))
        app = _app(world, **{"sign_responses": "on_request", **options})
        server = make_server("127.0.0.1", 0, _on_the_way(world, app), True, request_handler=_Silent)
        serving = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        serving.start()
        world.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield world
        finally:
            server.shutdown()
            serving.join()
            server.server_close()


def _app(world: World, **options: Any) -> Flask:
    app = Flask(__name__)
    auth = PeerAuth(app, world.callee, allow={CALLER: {"read"}}, **options)

    @app.route("/orders", methods=["GET", "POST"])
    @auth.require(scope="read")
    def orders() -> Response:
        """An answer with an ETag."""
        return Response(BODY, content_type="application/json", headers={"ETag": '"1"', "X-Price": "7"})

    @app.get("/invoices")
    @auth.require(scope="invoices")
    def invoices() -> Response:
        """Not for this caller."""
        return Response(b"")

    @app.get("/public")
    @auth.public
    def public() -> Response:
        """For all."""
        return Response(b"public")

    @app.get("/status/<int:status>")
    def status(status: int) -> Response:
        """Any status; without a body where it has none."""
        return Response(b"" if status in (204, 304) else b"text", status)

    @app.get("/<name>")
    def other(name: str) -> Response:
        """One of the others; an error for ``broken``."""
        return _OTHERS[name]() if name in _OTHERS else Response(b"not here", 404)

    return app


def _archive() -> Response:
    """A file that changed on the first day of 1970, whole, in part, or not at all."""
    file = io.BytesIO(ARCHIVE)
    return send_file(file, "application/octet-stream", conditional=True, etag="v1", last_modified=86_000)


_OTHERS: dict[str, Callable[[], Any]] = {
    "stream": lambda: Response((b"piece" for _ in range(3)), content_type="text/plain"),
    "events": lambda: Response((b"data: 1\n\n" for _ in range(3)), content_type="text/event-stream"),
    "moved": lambda: redirect("/orders"),
    "elsewhere": lambda: redirect(request.args["to"]),
    "broken": lambda: 1 // 0,
    "zipped": lambda: Response(gzip.compress(b"text" * 100), headers={"Content-Encoding": "gzip"}),
    "archive": _archive,
    "dated": lambda: Response(BODY, headers={"Last-Modified": http_date(86_000)}).make_conditional(request.environ),
    "cookie": lambda: Response(b"text", headers={"Set-Cookie": "a=1"}),
}


def _on_the_way(world: World, app: Any) -> Any:
    def serve(environ: Any, start_response: Any) -> Iterable[bytes]:
        head: list[Any] = []
        world.towards(environ)
        pieces = app(environ, lambda *given: head.append(given))
        body = b"".join(pieces)
        token = environ.get("HTTP_AUTHORIZATION", "").removeprefix("Bearer ")
        world.sent.append(Sent(head[0][0], tuple(head[0][1]), body, token))
        arrives = world.between(world.sent[-1])
        start_response(arrives.status, list(arrives.headers))
        return [arrives.body]

    return serve


Way = Callable[..., Got]


def by_requests(world: World, path: str = "/orders", method: str = "GET", **options: Any) -> Got:
    """A call of `peerseal.requests`."""
    call = options.pop("call", {})
    sent = options.pop("headers", None)
    wired = {"sleep": lambda _: None, "require_signed_response": True, **options}
    with world.caller.session(CALLEE, world.url, **wired) as session:
        answer = session.request(method, path, headers=sent, **call)
    return Got(answer.status_code, answer.content, answer.headers, [each.status_code for each in answer.history])


def by_httpx(world: World, path: str = "/orders", method: str = "GET", **options: Any) -> Got:
    """A call of an httpx.Client with `Auth`."""
    sent = options.pop("headers", None)
    wired = {"require_signed_response": True, "follow_redirects": True, **options}
    with httpx.Client(auth=Auth(world.caller, CALLEE, world.url, **wired), verify=PLAIN) as client:
        answer = client.request(method, world.url + path, headers=sent)
    return Got(answer.status_code, answer.content, answer.headers, [each.status_code for each in answer.history])


def by_async_session(world: World, path: str = "/orders", method: str = "GET", **options: Any) -> Got:
    """A call of an AsyncPeerSession."""

    async def pause(_: float) -> None:
        """Not at all."""

    sent = options.pop("headers", None)

    async def call() -> Got:
        wired = {"require_signed_response": True, "follow_redirects": True, "verify": PLAIN, "sleep": pause, **options}
        async with AsyncPeerSession(world.caller, CALLEE, world.url, **wired) as session:
            answer = await session.request(method, path, headers=sent)
        return Got(answer.status_code, answer.content, answer.headers, [each.status_code for each in answer.history])

    return asyncio.run(call())


WAYS: tuple[Way, ...] = (by_requests, by_httpx, by_async_session)
