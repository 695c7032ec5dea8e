"""Signed answers of applications that are mounted in each other or wrapped by middleware, and when bodies close."""

import asyncio
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import pytest
from flask import Flask, Response
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from peerseal import Identity
from peerseal.asgi import PeerAuth as AsgiAuth
from peerseal.flask import PeerAuth
from peerseal.protocol.encoding import strict_json_object
from peerseal.protocol.jose import parse
from peerseal.protocol.tokens.response import RESPONSE_HEADER
from peerseal.testing import MemoryRegistry
from peerseal.verify.response import ResponseHead, ResponseVerifier
from peerseal.wsgi import PeerAuth as WsgiAuth
from tests.support import wsgi

ALLOW = {"client": {"read"}}


class Domain(NamedTuple):
    """Two services and their caller."""

    orders: Identity
    admin: Identity
    client: Identity


class Got(NamedTuple):
    """An answer, and who signed it."""

    status: int
    body: bytes
    signer: str | None


@pytest.fixture
def domain() -> Iterator[Domain]:
    with MemoryRegistry() as registry:
        yield Domain(registry.identity("orders"), registry.identity("admin"), registry.identity("client"))


def application(identity: Identity, text: str, public: bool = False) -> Flask:
    app = Flask(text)
    auth = PeerAuth(app, identity, allow=ALLOW, sign_responses=True)
    view = auth.public(lambda: text) if public else lambda: text
    app.add_url_rule("/x", "x", view)
    return app


def called(app: Any, client: Identity, audience: str, path: str = "/x") -> Got:
    """The answer of a WSGI application; if it is signed, it is verified as ``audience``'s."""
    token = client.sign_request(audience, method="GET", target=path)
    answer = wsgi.called(app, wsgi.environ_of("GET", path, {"Authorization": f"Bearer {token}"}))
    signed = answer.headers.get(RESPONSE_HEADER.lower())
    if signed is None:
        return Got(answer.status, answer.body, None)
    verifier = ResponseVerifier(client.trust, caller="client", audience=audience)
    verifier.verify(ResponseHead.of(answer.status, answer.headers.items()), request_token=token, body=answer.body)
    return Got(answer.status, answer.body, signer_of(signed))


def signer_of(token: str) -> str:
    issuer: str = strict_json_object(parse(token).payload)["iss"]
    return issuer.partition("/")[2]


def copying(app: Any) -> Any:
    """Middleware that calls the application with a copy of the environ."""
    return lambda environ, start: app(dict(environ), start)


def test_a_mounted_application_of_another_service_signs_its_own_answers(domain: Domain) -> None:
    app = Flask("orders")
    app.add_url_rule("/x", "x", lambda: "orders")
    app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/admin": application(domain.admin, "admin")})  # type: ignore[method-assign]
    PeerAuth(app, domain.orders, allow=ALLOW, sign_responses=True)
    assert called(app, domain.client, "admin", "/admin/x") == (200, b"admin", "admin")
    assert called(app, domain.client, "orders") == (200, b"orders", "orders")


def test_the_outer_of_two_applications_signs_for_what_is_public_in_the_inner_one(domain: Domain) -> None:
    inner = application(domain.orders, "inner", public=True)
    outer = WsgiAuth(inner, domain.orders, allow=ALLOW, sign_responses=True)
    assert called(outer, domain.client, "orders") == (200, b"inner", "orders")
    assert called(inner, domain.client, "orders") == (200, b"inner", None)


def test_an_application_that_is_tried_after_another_one_signs_its_answer(domain: Domain) -> None:
    """A cascade: both applications see one environ."""
    first = application(domain.admin, "admin")
    app = Flask("orders")
    app.add_url_rule("/y", "y", lambda: "orders")
    plain = app.wsgi_app

    def cascade(environ: Any, start: Any) -> Iterable[bytes]:
        list(first(environ, lambda *_: bytes))
        return plain(environ, start)

    app.wsgi_app = cascade  # type: ignore[method-assign, assignment]
    PeerAuth(app, domain.orders, allow=ALLOW, sign_responses=True)
    assert called(app, domain.client, "orders", "/y") == (200, b"orders", "orders")


@pytest.mark.parametrize("outside", [False, True])
def test_middleware_that_copies_the_environ_turns_signing_not_off(domain: Domain, outside: bool) -> None:
    app = Flask("orders")
    app.add_url_rule("/x", "x", lambda: "orders")
    if not outside:
        app.wsgi_app = copying(app.wsgi_app)  # type: ignore[method-assign]
    PeerAuth(app, domain.orders, allow=ALLOW, sign_responses=True)
    served = copying(app) if outside else app
    assert called(served, domain.client, "orders") == (200, b"orders", "orders")


def test_middleware_that_makes_another_environ_is_named_and_counted(
    domain: Domain, caplog: pytest.LogCaptureFixture
) -> None:
    app = Flask("orders")
    app.add_url_rule("/x", "x", lambda: "orders")
    plain = app.wsgi_app
    app.wsgi_app = lambda environ, start: plain(_of_the_server(environ), start)  # type: ignore[method-assign, assignment]
    PeerAuth(app, domain.orders, allow=ALLOW, sign_responses=True)
    assert called(app, domain.client, "orders") == (200, b"orders", None)
    assert "a middleware has made another environ" in caplog.text
    assert 'peerseal_responses_total{outcome="failed"} 1' in domain.orders.metrics()


def _of_the_server(environ: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in environ.items() if not name.startswith("peerseal.")}


@pytest.mark.parametrize("signs", [False, True])
def test_a_body_closes_after_its_answer_is_sent(domain: Domain, signs: bool) -> None:
    order: list[str] = []
    app = Flask("orders")

    @app.get("/x")
    def view() -> Response:
        response = Response("orders")
        response.call_on_close(lambda: order.append("closed"))
        return response

    PeerAuth(app, domain.orders, allow=ALLOW, sign_responses=signs)
    token = domain.client.sign_request("orders", method="GET", target="/x")
    environ = wsgi.environ_of("GET", "/x", {"Authorization": f"Bearer {token}"})
    pieces: Any = app(environ, lambda *_: order.append("head"))  # type: ignore[arg-type]  # it writes nothing
    order.extend("sent" for _ in pieces)
    pieces.close()
    assert order == ["head", "sent", "closed"]


def raises(*_: Any) -> Any:
    raise ValueError("an error of the application")


def raises_within(_: Any, start: Any) -> Iterator[bytes]:
    start("200 OK", [])
    yield b"half"
    raises()


@pytest.mark.parametrize("app", [raises, raises_within])
def test_an_error_of_a_bare_wsgi_application_is_counted_as_unsigned(domain: Domain, app: Any) -> None:
    auth = WsgiAuth(app, domain.orders, allow=ALLOW, sign_responses=True)
    with pytest.raises(ValueError, match="an error of the application"):
        called(auth, domain.client, "orders")
    assert 'peerseal_responses_total{outcome="failed"} 1' in domain.orders.metrics()


async def half(_: Any, __: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"half", "more_body": True})


async def half_and_error(scope: Any, receive: Any, send: Any) -> None:
    await half(scope, receive, send)
    raises()


@pytest.mark.parametrize("app", [half, half_and_error])
def test_an_asgi_application_that_ends_before_its_answer_is_counted_as_unsigned(domain: Domain, app: Any) -> None:
    auth = AsgiAuth(app, domain.orders, allow=ALLOW, sign_responses=True)
    token = domain.client.sign_request("orders", method="GET", target="/x")
    headers = [(b"authorization", f"Bearer {token}".encode())]
    scope = {"type": "http", "method": "GET", "path": "/x", "raw_path": b"/x", "query_string": b"", "headers": headers}
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(event: Any) -> None:
        sent.append(event)

    async def run() -> None:
        try:
            await auth(scope, receive, send)
        except ValueError:
            assert app is half_and_error

    asyncio.run(run())
    assert sent == []
    assert 'peerseal_responses_total{outcome="failed"} 1' in domain.orders.metrics()
