"""Signed answers of WSGI and ASGI applications without a framework: which are signed, and which are passed on."""

import asyncio
import io
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from peerseal import Identity
from peerseal.asgi import Need
from peerseal.asgi import PeerAuth as AsgiAuth
from peerseal.protocol.tokens.response import RESPONSE_HEADER
from peerseal.testing import MemoryRegistry
from peerseal.verify.response import ResponseHead, ResponseVerifier
from peerseal.wsgi import PeerAuth as WsgiAuth
from peerseal.wsgi import require_scope
from tests.support.signed_answers import CALLEE


@pytest.fixture
def pair() -> Iterator[tuple[Identity, Identity]]:
    with MemoryRegistry() as registry:
        yield registry.identity(CALLEE), registry.identity("client")


def verified(pair: tuple[Identity, Identity], token: str, status: int, headers: Any, body: bytes) -> bool:
    """Whether the answer is one that the caller accepts. Raises ResponseRefused, but for an answer without a token."""
    _, caller = pair
    verifier = ResponseVerifier(caller.trust, caller="client", audience=CALLEE)
    head = ResponseHead.of(status, headers)
    if head.token is None:
        return False
    verifier.verify(head, request_token=token, body=body)
    return True


def wsgi_call(pair: tuple[Identity, Identity], app: Any, method: str = "GET", **options: Any) -> tuple[Any, ...]:
    """Status, body, and whether the answer is signed."""
    callee, caller = pair
    auth = WsgiAuth(app, callee, allow={"client": {"read"}}, **{"sign_responses": True, **options})
    token = caller.sign_request(CALLEE, method=method, target="/x")
    written: list[bytes] = []
    heads: list[Any] = []

    def start(status: str, headers: Any, error: Any = None) -> Callable[[bytes], object]:
        heads.append((int(status[:3]), headers))
        return written.append

    environ = {
        "REQUEST_METHOD": method,
        "RAW_URI": "/x",
        "PATH_INFO": "/x",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.input": io.BytesIO(),
        "HTTP_AUTHORIZATION": f"Bearer {token}",
    }
    pieces = auth(environ, start)
    rest = b"".join(pieces)
    body = b"".join(written) + rest
    getattr(pieces, "close", lambda: None)()
    ((status, headers),) = heads
    return status, body, verified(pair, token, status, headers, b"" if method == "HEAD" else body)


def as_list(_: Any, start: Any) -> Iterable[bytes]:
    start("200 OK", [("Content-Type", "text/plain")])
    return [b"one", b"two"]


def as_generator(_: Any, start: Any) -> Iterator[bytes]:
    start("200 OK", [("Content-Type", "text/plain"), (RESPONSE_HEADER, "an application's own")])
    yield b"one"
    yield b"two"


def as_written(_: Any, start: Any) -> Iterable[bytes]:
    write = start("200 OK", [])
    write(b"one")
    return [b"two"]


def as_refusal(_: Any, __: Any) -> Iterable[bytes]:
    require_scope("admin")
    raise AssertionError


def as_event_stream(_: Any, start: Any) -> Iterator[bytes]:
    start("200 OK", [("Content-Type", "text/event-stream; charset=utf-8")])
    yield b"onetwo"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("app", [as_list, as_generator, as_written])
def test_any_wsgi_application_is_signed(pair: tuple[Identity, Identity], app: Any, method: str) -> None:
    assert wsgi_call(pair, app, method) == (200, b"onetwo", True)


@pytest.mark.parametrize("app", [as_list, as_generator, as_written])
@pytest.mark.parametrize("bound", [0, 3, 5])
def test_a_long_answer_of_any_wsgi_application_is_passed_on(
    pair: tuple[Identity, Identity], app: Any, bound: int
) -> None:
    assert wsgi_call(pair, _plain(app), max_signed_body=bound) == (200, b"onetwo", False)


def _plain(app: Any) -> Any:
    """The application, without a response header of its own."""

    def serve(environ: Any, start: Any) -> Iterable[bytes]:
        def start_plain(status: str, headers: Any, *error: Any) -> Any:
            return start(status, [pair for pair in headers if pair[0] != RESPONSE_HEADER], *error)

        pieces: Iterable[bytes] = app(environ, start_plain)
        return pieces

    return serve


def test_late_refusals_are_signed_and_event_streams_are_not(pair: tuple[Identity, Identity]) -> None:
    status, _, signed = wsgi_call(pair, as_refusal)
    assert (status, signed) == (403, True)
    assert wsgi_call(pair, as_event_stream) == (200, b"onetwo", False)


def asgi_app(*pieces: bytes, status: int = 200, kind: bytes = b"text/plain") -> Any:
    """An application that sends these pieces."""

    async def app(_: Any, __: Any, send: Any) -> None:
        if status == 403:
            require_scope("admin")
        headers = [(b"content-type", kind)]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    return app


def asgi_call(
    pair: tuple[Identity, Identity], app: Any, *, method: str = "GET", wanted: bool = True, **options: Any
) -> tuple[Any, ...]:
    """Status, body, and whether the answer is signed."""
    callee, caller = pair
    auth = AsgiAuth(app, callee, **{"allow": {"client": {"read"}}, "sign_responses": "on_request", **options})
    token = caller.sign_request(CALLEE, method=method, target="/x")
    given = [(b"authorization", f"Bearer {token}".encode())]
    given += [(b"peerseal-want-response", b"1")] if wanted else []
    scope = {"type": "http", "method": method, "path": "/x", "raw_path": b"/x", "query_string": b"", "headers": given}
    events: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(event: Any) -> None:
        events.append(event)

    asyncio.run(auth(scope, receive, send))
    (head,) = [event for event in events if event["type"] == "http.response.start"]
    headers = [(name.decode(), value.decode()) for name, value in head["headers"]]
    body = b"".join(event.get("body", b"") for event in events)
    return head["status"], body, verified(pair, token, head["status"], headers, b"" if method == "HEAD" else body)


@pytest.mark.parametrize("pieces", [(), (b"onetwo",), (b"one", b"", b"two")])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_any_asgi_application_is_signed(pair: tuple[Identity, Identity], pieces: Any, method: str) -> None:
    assert asgi_call(pair, asgi_app(*pieces), method=method) == (200, b"".join(pieces), True)


def test_asgi_signs_refusals_and_passes_long_and_unasked_answers_on(pair: tuple[Identity, Identity]) -> None:
    assert asgi_call(pair, asgi_app(status=403))[::2] == (403, True)
    assert asgi_call(pair, asgi_app(), needs={"/x": Need("admin")})[::2] == (403, True)
    assert asgi_call(pair, asgi_app(), allow={})[::2] == (403, False)
    assert asgi_call(pair, asgi_app(b"one", b"two"), max_signed_body=4) == (200, b"onetwo", False)
    assert asgi_call(pair, asgi_app(b"one"), wanted=False) == (200, b"one", False)
    assert asgi_call(pair, asgi_app(b"one", kind=b"text/event-stream")) == (200, b"one", False)


START = {"type": "http.response.start", "status": 200, "headers": []}
ONE, TWO = (
    {"type": "http.response.body", "body": piece, "more_body": more}
    for piece, more in ((b"one", True), (b"two", False))
)


def sends(*events: dict[str, Any]) -> Any:
    """An application that sends these events."""

    async def app(_: Any, __: Any, send: Any) -> None:
        for event in events:
            await send(event)

    return app


@pytest.mark.parametrize("kind", ["http.response.early_hint", "http.response.push", "http.response.debug"])
def test_events_aside_of_an_asgi_answer_neither_end_its_signing_nor_cost_a_byte(
    pair: tuple[Identity, Identity], kind: str
) -> None:
    aside = {"type": kind}
    assert asgi_call(pair, sends(aside, START, aside, ONE, aside, TWO)) == (200, b"onetwo", True)


def test_a_body_that_the_server_reads_itself_is_passed_on_after_what_was_held(pair: tuple[Identity, Identity]) -> None:
    from_file = {"type": "http.response.zerocopysend", "file": 3, "more_body": False}
    assert asgi_call(pair, sends(START, ONE, from_file)) == (200, b"one", False)


def test_headers_of_an_asgi_answer_may_be_read_once(pair: tuple[Identity, Identity]) -> None:
    start = {**START, "headers": iter([(b"content-type", b"text/plain"), (b"x-frame-options", b"DENY")])}
    assert asgi_call(pair, sends(start, TWO)) == (200, b"two", True)


def test_an_asgi_answer_that_begins_twice_is_an_error_of_the_application(pair: tuple[Identity, Identity]) -> None:
    with pytest.raises(RuntimeError, match="twice"):
        asgi_call(pair, sends(START, ONE, START, TWO))
