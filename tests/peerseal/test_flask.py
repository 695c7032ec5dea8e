"""PeerAuth closes every route, opens what is marked, and leaves the application its request."""

import functools
import io
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Blueprint, Flask, Response, request
from flask.views import MethodView
from werkzeug.test import TestResponse

from peerseal.errors import ConfigurationError, Forbidden, InsufficientScope, TokenError, TrustUnavailable
from peerseal.flask import PeerAuth, current_peer
from peerseal.trust.beliefs import TrustedKey
from peerseal.verify.request import Verifier
from tests.support.wire import DOMAIN, NOW, Keys, Service

ALLOW = {"caller": {"read", "write"}, "reader": {"read"}}
Call = Callable[..., TestResponse]


@pytest.fixture(scope="module")
def pairs() -> Keys:
    return Keys()


@pytest.fixture(scope="module")
def caller(pairs: Keys) -> Service:
    return Service("caller", pairs, now=NOW)


@pytest.fixture(scope="module")
def reader(pairs: Keys) -> Service:
    return Service("reader", pairs, now=NOW)


@pytest.fixture
def verifier(pairs: Keys) -> Verifier:
    return Verifier(pairs, audience="callee", allow=ALLOW, clock=lambda: NOW)


@pytest.fixture
def app() -> Flask:
    app = Flask(__name__, static_folder=str(Path(__file__).parent), static_url_path="/static")
    app.testing = True
    return app


@pytest.fixture
def auth(app: Flask, verifier: Verifier) -> PeerAuth:
    return PeerAuth(app, verifier=verifier)


@pytest.fixture
def call(app: Flask, caller: Service) -> Call:
    """A signed call; ``by`` another service, with other ``signed`` claims, or with another ``token``."""

    def call(
        target: str,
        method: str = "GET",
        *,
        by: Service | None = caller,
        token: str | None = None,
        headers: dict[str, str] | None = None,
        data: bytes = b"",
        content_type: str | None = None,
        **signed: Any,
    ) -> TestResponse:
        if by is not None and token is None:
            bound = {"content-type": content_type} if content_type else {}
            token = by.sign_request("callee", method=method, target=target, body=data, headers=bound, **signed)
        sent = {"Authorization": f"Bearer {token}"} if token is not None else {}
        return app.test_client().open(
            target, method=method, headers=sent | (headers or {}), data=data, content_type=content_type
        )

    return call


def code(response: TestResponse) -> str:
    assert response.mimetype == "application/problem+json"
    assert response.headers["Cache-Control"] == "no-store"
    members = response.get_json(force=True)
    assert members.keys() == {"type", "title", "status", "code"}
    assert members["status"] == response.status_code
    return str(members["code"])


# ---- closed and open


def test_a_proven_and_allowed_caller_reaches_the_view_and_is_named_there(
    app: Flask, auth: PeerAuth, call: Call, caller: Service
) -> None:
    @app.get("/who")
    def who() -> dict[str, Any]:
        return {"service": current_peer.service, "id": current_peer.id, "kid": current_peer.kid}

    assert call("/who").get_json() == {"service": "caller", "id": f"{DOMAIN}/caller", "kid": caller.kid}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/view"),
        ("HEAD", "/view"),
        ("OPTIONS", "/view"),
        ("DELETE", "/view"),
        ("GET", "/not-there"),
        ("PURGE", "/not-there"),
        ("GET", "/slash"),
        ("GET", "/static/test_flask.py"),
        ("GET", "/late"),
        ("GET", "/blue/print"),
    ],
)
def test_nothing_is_open_that_is_not_marked_so(app: Flask, auth: PeerAuth, call: Call, method: str, path: str) -> None:
    app.add_url_rule("/view", view_func=lambda: "seen", endpoint="view")
    app.add_url_rule("/slash/", view_func=lambda: "seen", endpoint="slash")
    blueprint = Blueprint("blue", __name__, url_prefix="/blue")
    blueprint.add_url_rule("/print", view_func=lambda: "seen", endpoint="print")
    blueprint.before_request(lambda: Response("seen"))
    app.register_blueprint(blueprint)
    app.add_url_rule("/late", view_func=lambda: "seen", endpoint="late")
    response = call(path, method, by=None)
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"
    if method != "HEAD":
        assert code(response) == "missing_token"


def test_a_proven_caller_gets_the_application_s_own_404_405_and_redirect(
    app: Flask, auth: PeerAuth, call: Call
) -> None:
    app.add_url_rule("/slash/", view_func=lambda: "seen", endpoint="slash")
    assert call("/not-there").status_code == 404
    assert call("/slash/", "DELETE").status_code == 405
    assert call("/slash/", "OPTIONS").headers["Allow"]
    assert call("/slash").status_code == 308


def test_the_check_comes_before_functions_that_were_there_first(app: Flask, verifier: Verifier, call: Call) -> None:
    order = []
    app.before_request(lambda: order.append("application"))
    PeerAuth(app, verifier=verifier)
    app.add_url_rule("/", view_func=lambda: "seen", endpoint="view")
    assert call("/", by=None).status_code == 401
    assert order == []
    assert call("/").status_code == 200
    assert order == ["application"]


def test_public_opens_a_view_with_its_head_and_options_and_nobody_is_named_there(
    app: Flask, auth: PeerAuth, call: Call
) -> None:
    @app.get("/open")
    @auth.public
    def opened() -> str:
        return f"peer: {bool(current_peer)}"

    assert call("/open", by=None).text == "peer: False"
    assert call("/open").text == "peer: False"
    assert call("/open", "HEAD", by=None).status_code == 200
    assert call("/open", "OPTIONS", by=None).status_code == 200
    assert call("/open", "POST", by=None).status_code == 401


def test_a_peer_does_not_outlive_its_request_even_inside_one_application_context(
    app: Flask, auth: PeerAuth, call: Call
) -> None:
    @app.get("/open")
    @auth.public
    def opened() -> str:
        return f"peer: {bool(current_peer)}"

    app.add_url_rule("/closed", view_func=lambda: "seen", endpoint="closed")
    with app.app_context():
        assert call("/closed").status_code == 200
        assert call("/open").text == "peer: False"


def test_current_peer_raises_where_nobody_was_verified(app: Flask) -> None:
    with app.test_request_context("/"), pytest.raises(RuntimeError, match="no verified caller"):
        assert current_peer.service


# ---- marks


def test_a_scope_is_needed_on_top_of_being_allowed(app: Flask, auth: PeerAuth, call: Call, reader: Service) -> None:
    @app.post("/thing")
    @auth.require(scope="write")
    def thing() -> str:
        return "written"

    assert call("/thing", "POST").text == "written"
    refused = call("/thing", "POST", by=reader)
    assert (refused.status_code, code(refused)) == (403, "insufficient_scope")
    assert refused.headers["WWW-Authenticate"] == 'Bearer error="insufficient_scope"'


def test_marks_hold_above_and_below_the_route(app: Flask, auth: PeerAuth, call: Call, reader: Service) -> None:
    @auth.require(scope="write")
    @app.get("/above")
    def above() -> str:
        return "seen"

    @auth.public
    @app.get("/open-above")
    def open_above() -> str:
        return "seen"

    assert code(call("/above", by=reader)) == "insufficient_scope"
    assert call("/above").text == "seen"
    assert call("/open-above", by=None).text == "seen"


def plain_wrapper(view: Any) -> Any:
    """A decorator that forgets functools.wraps."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return view(*args, **kwargs)

    return wrapped


def kind_wrapper(view: Any) -> Any:
    return functools.wraps(view)(plain_wrapper(view))


@pytest.mark.parametrize("wrapper", [plain_wrapper, kind_wrapper])
def test_another_decorator_drops_no_scope(
    app: Flask, auth: PeerAuth, call: Call, reader: Service, wrapper: Callable[..., Any]
) -> None:
    app.add_url_rule("/outer", endpoint="outer", view_func=wrapper(auth.require(scope="write")(lambda: "seen")))
    app.add_url_rule("/inner", endpoint="inner", view_func=auth.require(scope="write")(wrapper(lambda: "seen")))
    for path in ("/outer", "/inner"):
        assert code(call(path, by=reader)) == "insufficient_scope"
        assert call(path).text == "seen"


def test_another_decorator_opens_nothing(app: Flask, auth: PeerAuth, call: Call) -> None:
    app.add_url_rule("/lost", endpoint="lost", view_func=plain_wrapper(auth.public(lambda: "seen")))
    hidden = auth.public(plain_wrapper(auth.require(scope="write")(lambda: "seen")))
    app.add_url_rule("/hidden", endpoint="hidden", view_func=hidden)
    assert code(call("/lost", by=None)) == "missing_token"
    assert code(call("/hidden", by=None)) == "missing_token"


def test_two_scopes_are_both_needed(app: Flask, auth: PeerAuth, call: Call, reader: Service) -> None:
    for path, scopes in (("/rw", ("read", "write")), ("/wr", ("write", "read"))):
        view: Any = functools.partial(lambda: "seen")
        functools.update_wrapper(view, lambda: None)
        for scope in scopes:
            view = auth.require(scope=scope)(view)
        app.add_url_rule(path, endpoint=path, view_func=view)
    for path in ("/rw", "/wr"):
        assert code(call(path, by=reader)) == "insufficient_scope"
        assert call(path).text == "seen"


def test_public_and_a_scope_on_one_view_are_a_mistake(auth: PeerAuth) -> None:
    with pytest.raises(ConfigurationError, match="as public and as needing a scope"):
        auth.public(auth.require(scope="read")(lambda: ""))
    with pytest.raises(ConfigurationError, match="as public and as needing a scope"):
        auth.require(scope="read")(auth.public(lambda: ""))


def test_a_function_under_two_rules_has_its_mark_at_both(app: Flask, auth: PeerAuth, call: Call) -> None:
    @app.get("/one", endpoint="one")
    @app.get("/two", endpoint="two")
    @app.get("/three")
    @auth.public
    def view() -> str:
        return "seen"

    assert [call(path, by=None).status_code for path in ("/one", "/two", "/three")] == [200, 200, 200]


def test_class_based_views_are_marked_by_method_or_as_a_whole(
    app: Flask, auth: PeerAuth, call: Call, reader: Service
) -> None:
    class ByMethod(MethodView):
        @auth.public
        def get(self) -> str:
            return "got"

        @auth.require(scope="write")
        def post(self) -> str:
            return "posted"

        def delete(self) -> str:
            return "deleted"

    class Whole(MethodView):
        decorators = [auth.require(scope="write")]  # noqa: RUF012 - as Flask's documentation writes it

        def get(self) -> str:
            return "got"

    app.add_url_rule("/by-method", view_func=ByMethod.as_view("by_method"))
    app.add_url_rule("/whole", view_func=Whole.as_view("whole"))
    assert call("/by-method", by=None).text == "got"
    assert call("/by-method", "HEAD", by=None).status_code == 200
    assert code(call("/by-method", "POST", by=None)) == "missing_token"
    assert code(call("/by-method", "POST", by=reader)) == "insufficient_scope"
    assert call("/by-method", "POST").text == "posted"
    assert code(call("/by-method", "DELETE", by=None)) == "missing_token"
    assert call("/by-method", "DELETE", by=reader).text == "deleted"
    assert code(call("/whole", by=reader)) == "insufficient_scope"
    assert call("/whole").text == "got"


def test_a_class_itself_cannot_be_marked(auth: PeerAuth) -> None:
    class View(MethodView):
        pass

    for mark in (auth.public, auth.require(scope="read")):
        with pytest.raises(ConfigurationError, match="mark a class's methods"):
            mark(View)


def test_a_bound_method_can_need_a_scope_and_cannot_be_opened(
    app: Flask, auth: PeerAuth, call: Call, reader: Service
) -> None:
    class Handlers:
        def view(self) -> str:
            return "seen"

    app.add_url_rule("/bound", endpoint="bound", view_func=auth.require(scope="write")(Handlers().view))
    assert code(call("/bound", by=reader)) == "insufficient_scope"
    assert call("/bound").text == "seen"
    with pytest.raises(ConfigurationError, match="cannot be marked"):
        auth.public(Handlers().view)


def test_a_marked_view_in_an_application_without_peerauth_stays_closed(auth: PeerAuth) -> None:
    other = Flask("other")
    other.testing = True
    other.add_url_rule("/", endpoint="view", view_func=auth.require(scope="read")(lambda: "seen"))
    with pytest.raises(TokenError):
        other.test_client().get("/")


# ---- the token's header


@pytest.mark.parametrize("value", ["", "Basic dXNlcjpwYXNz", "Negotiate abc", "bearertoken"])
def test_another_scheme_is_no_token(auth: PeerAuth, call: Call, value: str) -> None:
    response = call("/", by=None, headers={"Authorization": value})
    assert (code(response), response.headers["WWW-Authenticate"]) == ("missing_token", "Bearer")


@pytest.mark.parametrize(
    "value",
    ["Bearer", "Bearer ", "Bearer a.b", "Bearer a.b.c.d", "Bearer x, Bearer y", "Basic x,Bearer y", "Bearer \xff"],
)
def test_what_is_no_token_is_malformed(auth: PeerAuth, call: Call, value: str) -> None:
    response = call("/", by=None, headers={"Authorization": value})
    assert code(response) == "malformed_token"
    assert response.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'


def test_two_good_tokens_are_one_bad_header(app: Flask, auth: PeerAuth, call: Call, caller: Service) -> None:
    app.add_url_rule("/", view_func=lambda: "seen", endpoint="view")
    good = [caller.sign_request("callee") for _ in range(2)]
    assert code(call("/", token=f"{good[0]},Bearer {good[1]}")) == "malformed_token"
    assert call("/", token=good[0]).text == "seen"


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer "])
def test_the_scheme_is_written_in_any_case(
    app: Flask, auth: PeerAuth, call: Call, caller: Service, scheme: str
) -> None:
    app.add_url_rule("/", view_func=lambda: "seen", endpoint="view")
    header = f"{scheme} {caller.sign_request('callee')}"
    assert call("/", by=None, headers={"Authorization": header}).text == "seen"


def test_the_token_may_travel_in_another_header(app: Flask, verifier: Verifier, call: Call, caller: Service) -> None:
    PeerAuth(app, verifier=verifier, header="X-Peer-Token")
    app.add_url_rule("/", view_func=lambda: request.headers["Authorization"], endpoint="view")
    headers = {"X-Peer-Token": f"Bearer {caller.sign_request('callee')}", "Authorization": "Basic mine"}
    assert call("/", by=None, headers=headers).text == "Basic mine"
    assert code(call("/")) == "missing_token"


# ---- what is bound


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"aud": f"{DOMAIN}/other"}, "wrong_audience"),
        ({"iss": f"{DOMAIN}/reader", "sub": f"{DOMAIN}/reader"}, "wrong_issuer"),
        ({"exp": NOW - 31, "iat": NOW - 60, "nbf": NOW - 60}, "expired"),
        ({"iat": NOW + 31, "nbf": NOW + 31}, "not_yet_valid"),
        ({"exp": NOW + 400}, "lifetime_too_long"),
        ({"content_digest": "sha-256=:AAAA:"}, "wrong_binding"),
        ({"jti": "short"}, "malformed_token"),
    ],
)
def test_every_refusal_has_its_code(auth: PeerAuth, call: Call, change: dict[str, Any], expected: str) -> None:
    assert code(call("/", **change)) == expected


@pytest.mark.parametrize("method", ["HEAD", "POST", "DELETE", "OPTIONS", "get"])
def test_another_method_than_the_signed_one_is_refused(
    auth: PeerAuth, call: Call, caller: Service, method: str
) -> None:
    response = call("/", method, token=caller.sign_request("callee", method="GET"))
    assert response.status_code == 401


@pytest.mark.parametrize("sent", ["/a?y=2&x=1", "/a?x=1&y=2&", "/a/?x=1&y=2", "/%61?x=1&y=2", "/A?x=1&y=2", "/a"])
def test_another_target_than_the_signed_one_is_refused(auth: PeerAuth, call: Call, caller: Service, sent: str) -> None:
    assert code(call(sent, token=caller.sign_request("callee", target="/a?x=1&y=2"))) == "wrong_binding"


def test_a_token_is_good_once(app: Flask, auth: PeerAuth, call: Call, caller: Service) -> None:
    app.add_url_rule("/", view_func=lambda: "seen", endpoint="view")
    token = caller.sign_request("callee")
    assert call("/", token=token).text == "seen"
    assert code(call("/", token=token)) == "replayed"


def test_content_type_and_encoding_are_bound_whether_there_or_not(auth: PeerAuth, call: Call, caller: Service) -> None:
    for bound, sent in [
        ({}, {"Content-Type": "text/plain"}),
        ({}, {"Content-Encoding": "gzip"}),
        ({"content-type": "text/plain"}, {}),
        ({"content-type": "text/plain"}, {"Content-Type": "text/html"}),
        ({"x-tenant": "a"}, {"X-Tenant": "b"}),
        ({"x-tenant": "a"}, {}),
    ]:
        token = caller.sign_request("callee", method="POST", body=b"x", headers=bound)
        assert code(call("/", "POST", token=token, headers=sent, data=b"x")) == "wrong_binding"


def test_an_empty_content_type_is_no_content_type(app: Flask, auth: PeerAuth, caller: Service) -> None:
    app.add_url_rule("/", view_func=lambda: "seen", endpoint="view")
    authorization = f"Bearer {caller.sign_request('callee')}"
    environ = {"CONTENT_TYPE": "", "HTTP_AUTHORIZATION": authorization}
    assert app.test_client().get("/", environ_overrides=environ).text == "seen"


def test_the_external_prefix_stands_before_every_target(
    app: Flask, verifier: Verifier, call: Call, caller: Service
) -> None:
    PeerAuth(app, verifier=verifier, external_prefix="/api")
    app.add_url_rule("/a", view_func=lambda: "seen", endpoint="view")
    assert call("/a", token=caller.sign_request("callee", target="/api/a")).text == "seen"
    assert code(call("/a")) == "wrong_binding"
    assert code(call("/a", headers={"X-Forwarded-Prefix": "/api"})) == "wrong_binding"


# ---- the body


FORM = b"name=Ada&name=Bob&city=K%C3%B6ln"
MULTIPART = (
    b'--b\r\nContent-Disposition: form-data; name="note"\r\n\r\nhello\r\n'
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\ncontent\r\n--b--\r\n'
)


@pytest.mark.parametrize(
    ("content_type", "body", "read", "expected"),
    [
        ("text/plain", b"hello", lambda: request.get_data(as_text=True), "hello"),
        ("text/plain", b"hello", lambda: request.stream.read().decode(), "hello"),
        ("application/json", b'{"a": [1]}', lambda: str(request.get_json()["a"]), "[1]"),
        ("application/x-www-form-urlencoded", FORM, lambda: "+".join(request.form.getlist("name")), "Ada+Bob"),
        ("application/x-www-form-urlencoded", FORM, lambda: request.get_data(as_text=True), FORM.decode()),
        ("application/x-www-form-urlencoded", FORM, lambda: request.values["city"], "Köln"),
        ("multipart/form-data; boundary=b", MULTIPART, lambda: request.form["note"], "hello"),
        ("multipart/form-data; boundary=b", MULTIPART, lambda: request.files["file"].read().decode(), "content"),
    ],
)
def test_a_checked_body_is_there_for_the_view_in_every_way_to_read_it(
    app: Flask, auth: PeerAuth, call: Call, content_type: str, body: bytes, read: Callable[[], str], expected: str
) -> None:
    app.add_url_rule("/", view_func=lambda: read(), endpoint="view", methods=["POST"])
    assert call("/", "POST", data=body, content_type=content_type).text == expected
    signed = call("/", "POST", data=body, content_type=content_type, content_digest="sha-256=:AAAA:")
    assert code(signed) == "wrong_binding"


class Untouchable(io.RawIOBase):
    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        raise AssertionError("the body was read")


@pytest.mark.parametrize("change", [{"iss": "x"}, {"aud": "x"}, {"exp": 1}, {"method": "PUT"}, {"headers": {"a": "b"}}])
def test_the_body_of_a_caller_that_is_refused_anyway_is_not_read(
    app: Flask, auth: PeerAuth, caller: Service, change: dict[str, Any]
) -> None:
    token = caller.sign_request("callee", **{"method": "POST", **change})
    response = app.test_client().post(
        "/",
        headers={"Authorization": f"Bearer {token}"},
        environ_overrides={"wsgi.input": Untouchable(), "wsgi.input_terminated": True},
    )
    assert response.status_code == 401


class Trickle(io.RawIOBase):
    """A chunked body as a server hands it on: without a length, some bytes at a time."""

    def __init__(self, body: bytes) -> None:
        self._body = io.BytesIO(body)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._body.read(min(len(buffer), 7))
        buffer[: len(piece)] = piece
        return len(piece)


def trickled(app: Flask, caller: Service, body: bytes, **environ: Any) -> TestResponse:
    token = caller.sign_request("callee", method="POST", body=body)
    overrides = {"wsgi.input": Trickle(body), "wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}
    return app.test_client().post(
        "/", headers={"Authorization": f"Bearer {token}"}, environ_overrides=overrides | environ
    )


def test_a_body_without_a_length_is_read_to_its_end(app: Flask, auth: PeerAuth, caller: Service) -> None:
    app.add_url_rule("/", view_func=lambda: request.get_data(as_text=True), endpoint="view", methods=["POST"])
    assert trickled(app, caller, b"0123456789" * 10).text == "0123456789" * 10


def test_a_body_beyond_max_body_is_refused_with_413(
    app: Flask, verifier: Verifier, call: Call, caller: Service
) -> None:
    PeerAuth(app, verifier=verifier, max_body=100)
    app.add_url_rule("/", view_func=lambda: request.get_data(as_text=True), endpoint="view", methods=["POST"])
    assert call("/", "POST", data=b"x" * 100).text == "x" * 100
    for response in (call("/", "POST", data=b"x" * 101), trickled(app, caller, b"x" * 101)):
        assert (response.status_code, code(response)) == (413, "content_too_large")


def test_a_body_that_breaks_off_is_refused_with_400(app: Flask, auth: PeerAuth, caller: Service) -> None:
    class Broken(Trickle):
        def readinto(self, buffer: Any) -> int:
            raise ConnectionResetError("gone")

    response = trickled(app, caller, b"", **{"wsgi.input": Broken(b"")})
    assert (response.status_code, code(response)) == (400, "content_unreadable")


def test_a_body_that_is_longer_than_announced_is_not_believed(app: Flask, auth: PeerAuth, caller: Service) -> None:
    app.add_url_rule("/", view_func=lambda: request.get_data(as_text=True), endpoint="view", methods=["POST"])
    token = caller.sign_request("callee", method="POST", body=b"12345")
    environ = {"wsgi.input": io.BytesIO(b"12345678"), "CONTENT_LENGTH": "5", "HTTP_AUTHORIZATION": f"Bearer {token}"}
    assert app.test_client().post("/", environ_overrides=environ).text == "12345"


# ---- report only


def test_report_only_lets_through_names_who_is_proven_and_logs_what_it_would_refuse(
    app: Flask, verifier: Verifier, call: Call, reader: Service, caplog: pytest.LogCaptureFixture
) -> None:
    auth = PeerAuth(app, verifier=verifier, report_only=True)

    @app.get("/")
    @auth.require(scope="write")
    def view() -> str:
        return current_peer.service if current_peer else "nobody"

    assert call("/").text == "caller"
    assert call("/", by=reader).text == "nobody"
    assert call("/", by=None).text == "nobody"
    assert call("/not-there", by=None).status_code == 404
    assert auth.refusals == {"insufficient_scope": 1, "missing_token": 2}
    assert [record.getMessage().partition(";")[0] for record in caplog.records] == [
        "would refuse: insufficient_scope",
        "would refuse: missing_token",
        "would refuse: missing_token",
    ]


def test_report_only_says_so_too_where_a_decorator_hid_the_mark(
    app: Flask, verifier: Verifier, call: Call, reader: Service
) -> None:
    auth = PeerAuth(app, verifier=verifier, report_only=True)
    app.add_url_rule("/", endpoint="view", view_func=plain_wrapper(auth.require(scope="write")(lambda: "seen")))
    assert call("/", by=reader).text == "seen"
    assert auth.refusals == {"insufficient_scope": 1}


def test_report_only_leaves_the_view_its_body_even_where_it_is_too_large_to_check(
    app: Flask, verifier: Verifier, call: Call, caller: Service
) -> None:
    auth = PeerAuth(app, verifier=verifier, report_only=True, max_body=10)
    app.add_url_rule("/", view_func=lambda: request.get_data(as_text=True), endpoint="view", methods=["POST"])
    body = b"0123456789" * 5
    assert call("/", "POST", data=body).text == body.decode()
    assert trickled(app, caller, body).text == body.decode()
    assert auth.refusals == {"content_too_large": 2}


# ---- answers, log, counts


class Unreachable(Keys):
    def key(self, kid: str) -> TrustedKey:
        raise TrustUnavailable("the registry is down", retry_after=7)


def test_a_key_that_cannot_be_had_now_is_503_with_retry_after(app: Flask, call: Call) -> None:
    PeerAuth(app, verifier=Verifier(Unreachable(), audience="callee", allow=ALLOW))
    response = call("/")
    assert (response.status_code, code(response), response.headers["Retry-After"]) == (503, "trust_unavailable", "7")
    assert "WWW-Authenticate" not in response.headers


def test_a_service_that_may_not_call_is_403(app: Flask, auth: PeerAuth, call: Call, pairs: Keys) -> None:
    response = call("/", by=Service("stranger", pairs, now=NOW))
    assert (response.status_code, code(response)) == (403, "caller_not_allowed")


def test_a_refusal_that_a_view_raises_is_answered_in_the_same_way(app: Flask, auth: PeerAuth, call: Call) -> None:
    @app.get("/")
    def view() -> str:
        raise InsufficientScope("only for owners of the moon")

    response = call("/")
    assert (response.status_code, code(response)) == (403, "insufficient_scope")
    assert auth.refusals == {"insufficient_scope": 1}


def test_no_handler_of_a_blueprint_turns_a_refusal_into_something_else(app: Flask, auth: PeerAuth, call: Call) -> None:
    blueprint = Blueprint("blue", __name__)

    @blueprint.errorhandler(Exception)
    @blueprint.errorhandler(Forbidden)
    def hide(error: Exception) -> str:
        return "all is well"

    blueprint.add_url_rule("/", view_func=lambda: "seen", endpoint="view")
    app.register_blueprint(blueprint)
    assert code(call("/", by=None)) == "missing_token"


def test_nothing_of_an_unverified_token_is_echoed(auth: PeerAuth, call: Call) -> None:
    response = call("/", iss="evil-marker", sub="evil-marker", aud="evil-marker", headers={"X-Request-ID": "evil id"})
    assert b"evil" not in response.data
    assert "evil" not in str(response.headers)


def test_a_refusal_is_logged_with_code_claimed_caller_kid_and_request_id_and_never_the_token(
    auth: PeerAuth, call: Call, caller: Service, caplog: pytest.LogCaptureFixture
) -> None:
    token = caller.sign_request("callee", iss="test.internal/some\nbody")
    call("/", token=token, headers={"X-Request-ID": "req-42"})
    (record,) = caplog.records
    assert record.name == "peerseal"
    assert record.levelno == logging.WARNING
    message = record.getMessage()
    assert "wrong_issuer" in message
    assert r"unverified caller 'test.internal/some\nbody'" in message
    assert caller.kid in message
    assert "request req-42" in message
    assert not any(segment in message for segment in token.split("."))


@pytest.mark.parametrize("given", ["a b", "x" * 129, "a\x01", "<script>", ""])
def test_a_request_id_that_could_forge_a_log_line_is_replaced(
    auth: PeerAuth, call: Call, caplog: pytest.LogCaptureFixture, given: str
) -> None:
    call("/", by=None, headers={"X-Request-ID": given})
    request_id = caplog.records[0].getMessage().split("request ")[1].split(";")[0]
    assert len(request_id) == 16
    assert int(request_id, 16) >= 0


def test_refusals_are_counted_by_code_from_many_threads(auth: PeerAuth, call: Call) -> None:
    threads = [threading.Thread(target=lambda: [call("/", by=None) for _ in range(20)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counts = auth.refusals
    assert counts == {"missing_token": 160}
    counts["missing_token"] = 0
    assert auth.refusals["missing_token"] == 160


# ---- making it


def test_the_verifier_is_made_of_the_identity(app: Flask, pairs: Keys) -> None:
    identity: Any = Service("callee", pairs, now=NOW)
    identity.external_prefix = "/api"
    auth = PeerAuth(replay=identity.replay_guard())
    auth.init_app(app, identity, allow={"nobody": ()})
    token = identity.sign_request("callee", target="/api/")
    assert code(app.test_client().get("/", headers={"Authorization": f"Bearer {token}"})) == "caller_not_allowed"


def test_without_allow_nobody_may_call(app: Flask, pairs: Keys, call: Call) -> None:
    identity: Any = Service("callee", pairs, now=NOW)
    PeerAuth(app, identity)
    assert code(call("/")) == "caller_not_allowed"


def test_mistakes_are_told_at_once(app: Flask, verifier: Verifier) -> None:
    with pytest.raises(ConfigurationError, match="identity or a verifier"):
        PeerAuth(app)
    with pytest.raises(ConfigurationError, match="external prefix"):
        PeerAuth(app, verifier=verifier, external_prefix="api/")
    PeerAuth(app, verifier=verifier)
    with pytest.raises(ConfigurationError, match="already"):
        PeerAuth(app, verifier=verifier)


@pytest.fixture(autouse=True)
def captured(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.WARNING, logger="peerseal"):
        yield
