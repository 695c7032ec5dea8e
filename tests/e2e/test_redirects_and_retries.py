"""On real sockets: what a redirect and a retry bring to the server that answers.

The callee is a real server that verifies; the strangers are servers that keep what they are sent.
"""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from wsgiref.types import StartResponse

import pytest
import requests
from flask import Flask, Response, redirect, request
from werkzeug.serving import make_server
from werkzeug.wrappers import Response as WsgiResponse

from peerseal.errors import UnsignableRequest
from peerseal.flask import PeerAuth, current_peer
from peerseal.requests import PeerSession
from peerseal.verify.replay.guards import FileReplayGuard, ReplayGuard
from peerseal.verify.request import Verifier
from tests.support.wire import RESET, Answer, Keys, RawServer, Seen, Service, raw_request, raw_server

pytestmark = pytest.mark.e2e


class KeptGuard:
    """A replay guard that remembers its answers for the test."""

    def __init__(self, guard: ReplayGuard) -> None:
        self._guard = guard
        self.claims: list[tuple[str, bool]] = []

    def claim(self, issuer: str, jti: str, until: float) -> bool:
        accepted = self._guard.claim(issuer, jti, until)
        self.claims.append((jti, accepted))
        return accepted


@pytest.fixture
def keys() -> Keys:
    return Keys()


@pytest.fixture
def caller(keys: Keys) -> Service:
    return Service("caller", keys, now=int(time.time()))


@pytest.fixture
def guard(tmp_path: Any) -> KeptGuard:
    return KeptGuard(FileReplayGuard(tmp_path / "replay"))


@pytest.fixture
def app(keys: Keys, guard: KeptGuard) -> Flask:
    """The callee. ``/to`` redirects to wherever the query says."""
    app = Flask("callee")
    PeerAuth(app, verifier=Verifier(keys, audience="callee", allow={"caller": ()}, replay=guard))

    @app.route("/to", methods=["GET", "POST", "PUT"])
    def to() -> WsgiResponse:
        return redirect(request.args["url"], int(request.args.get("code", "302")))

    @app.route("/<path:path>", methods=["GET", "POST", "PUT"])
    def seen(path: str) -> dict[str, Any]:
        return {
            "method": request.method,
            "path": path,
            "body": request.get_data(as_text=True),
            "caller": current_peer.service,
            "token": request.headers["Authorization"].removeprefix("Bearer "),
        }

    return app


@pytest.fixture
def callee(app: Flask) -> Iterator[str]:
    """The callee's URL on a real socket."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def session(caller: Service, callee: str) -> Iterator[PeerSession]:
    with PeerSession(caller, "callee", callee, sleep=lambda _: None) as session:
        session.trust_env = False
        yield session


def address(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").partition(":")
    return host, int(port)


# ---- redirects


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2"], ids=["another port", "another host"])
def test_a_redirect_elsewhere_brings_no_token_there(session: PeerSession, code: int, host: str) -> None:
    with raw_server(host=host) as stranger:
        session.post("/to", params={"url": f"{stranger.url}/steal", "code": str(code)}, data="x")
        (seen,) = stranger.seen
        assert seen.target == "/steal"
        assert "authorization" not in seen.headers


def test_a_redirect_elsewhere_brings_no_transaction_token_there(caller: Service) -> None:
    with raw_server() as stranger, raw_server(Answer(307, {"Location": stranger.url})) as server:
        with PeerSession(caller, "callee", server.url) as session:
            session.trust_env = False
            session.get("/", headers={"Txn-Token": "theirs"})
        assert [seen.headers["txn-token"] for seen in server.seen] == [["theirs"]]
        assert [seen.headers.get("txn-token") for seen in stranger.seen] == [None]


def test_the_same_host_under_another_name_is_elsewhere(session: PeerSession, callee: str) -> None:
    response = session.get("/to", params={"url": callee.replace("127.0.0.1", "localhost") + "/there"})
    assert response.status_code == 401
    assert response.json()["code"] == "missing_token"


@pytest.mark.parametrize(
    ("code", "method", "body"), [(302, "GET", ""), (303, "GET", ""), (307, "POST", "body"), (308, "POST", "body")]
)
def test_a_redirect_within_the_callee_is_signed_anew_for_its_target(
    session: PeerSession, guard: KeptGuard, code: int, method: str, body: str
) -> None:
    there = session.post("/to", params={"url": "/there?x=1", "code": str(code)}, data="body").json()
    assert (there["method"], there["path"], there["body"], there["caller"]) == (method, "there", body, "caller")
    assert [accepted for _, accepted in guard.claims] == [True, True]
    assert len({jti for jti, _ in guard.claims}) == 2


def test_the_token_after_a_redirect_is_good_for_nothing_else(
    session: PeerSession, callee: str, keys: Keys, app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The callee takes the fresh token for a path of its own before the caller used it, and tries it elsewhere."""
    stolen: list[str] = []

    def keep(environ: dict[str, Any], start_response: StartResponse) -> Any:
        if environ["PATH_INFO"] == "/there":
            stolen.append(environ["HTTP_AUTHORIZATION"])
            return Response("kept")(environ, start_response)
        return inner(environ, start_response)

    inner = app.wsgi_app
    monkeypatch.setattr(app, "wsgi_app", keep)
    session.get("/to", params={"url": "/there"})
    monkeypatch.setattr(app, "wsgi_app", inner)

    def tried(target: str, method: str = "GET", at: tuple[str, int] = address(callee)) -> str | None:
        return raw_request(at, target, method=method, headers={"Authorization": stolen[0]}).code

    assert tried("/elsewhere") == "wrong_binding"
    assert tried("/there?admin=1") == "wrong_binding"
    assert tried("/there", "POST") == "wrong_binding"
    other = Flask("other")
    PeerAuth(other, verifier=Verifier(keys, audience="other", allow={"caller": ()}))
    server = make_server("127.0.0.1", 0, other, threaded=True)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    assert tried("/there", at=("127.0.0.1", server.server_port)) == "wrong_audience"
    server.shutdown()
    assert raw_request(address(callee), "/there", headers={"Authorization": stolen[0]}).status == 200
    assert tried("/there") == "replayed"


def test_a_stranger_cannot_send_us_back_with_a_token(session: PeerSession, callee: str, guard: KeptGuard) -> None:
    with raw_server(Answer(302, {"Location": f"{callee}/admin"}), Answer(302, {"Location": f"{callee}/a"})) as stranger:
        with pytest.raises(UnsignableRequest, match="another origin redirects"):
            session.get(stranger.url)
        with pytest.raises(UnsignableRequest, match="another origin redirects"):
            session.get("/to", params={"url": stranger.url})
    assert len(guard.claims) == 1


def test_whoever_follows_no_redirects_gets_the_stranger_s_answer(session: PeerSession, callee: str) -> None:
    with raw_server(Answer(302, {"Location": f"{callee}/admin"})) as stranger:
        response = session.get(stranger.url, allow_redirects=False)
    assert response.status_code == 302
    assert response.next is not None
    with pytest.raises(UnsignableRequest):
        session.send(response.next)


def test_redirects_without_end_end(session: PeerSession) -> None:
    session.max_redirects = 3
    with raw_server() as stranger:
        stranger.script[:] = [Answer(302, {"Location": stranger.url})] * 9
        with pytest.raises(requests.TooManyRedirects):
            session.get("/to", params={"url": stranger.url})


# ---- retries


class PassOn:
    """Passes a request on to the callee, and its answer back."""

    def __init__(self, callee: str) -> None:
        self._callee = address(callee)

    def __call__(self, seen: Seen) -> Answer:
        method, target, _ = seen.line.split(" ")
        names = ("authorization", "content-type", "content-length")
        headers = tuple((name, value) for name in names for value in seen.headers.get(name, ()))
        answer = raw_request(self._callee, target, method=method, headers=headers, body=seen.body)
        return Answer(answer.status, {"Content-Type": answer.headers["content-type"]}, answer.body)


@pytest.fixture
def in_between(callee: str) -> Iterator[Callable[[list[Any]], tuple[RawServer, PassOn]]]:
    """Something that stands before the callee: it answers as scripted first, and then passes everything on."""
    servers = []

    def make(failures: list[Any]) -> tuple[RawServer, PassOn]:
        pass_on = PassOn(callee)
        server = RawServer("127.0.0.1", [*failures, *[pass_on] * 9])
        servers.append(server)
        return server, pass_on

    yield make
    for server in servers:
        server.close()


@pytest.mark.parametrize("failures", [[RESET], [RESET, RESET], [Answer(502), RESET], [Answer(503), Answer(504)]])
def test_a_retry_after_a_broken_attempt_is_accepted_with_a_token_of_its_own(
    caller: Service, guard: KeptGuard, in_between: Any, failures: list[Any]
) -> None:
    server, _ = in_between(failures)
    with PeerSession(caller, "callee", server.url, sleep=lambda _: None) as session:
        session.trust_env = False
        assert session.put("/thing", data="body").json()["body"] == "body"
    tokens = [seen.claims["jti"] for seen in server.seen]
    assert len(tokens) == len(set(tokens)) == len(failures) + 1
    assert guard.claims == [(tokens[-1], True)]


def test_an_attempt_that_was_accepted_before_the_line_broke_does_not_stand_in_the_retry_s_way(
    caller: Service, guard: KeptGuard, in_between: Any
) -> None:
    server, pass_on = in_between([])

    def accepted_and_lost(seen: Seen) -> Any:
        assert pass_on(seen).status == 200
        return Answer(502)

    server.script[:] = [accepted_and_lost, pass_on]
    with PeerSession(caller, "callee", server.url, sleep=lambda _: None) as session:
        session.trust_env = False
        assert session.put("/thing", data="body").status_code == 200
    assert [accepted for _, accepted in guard.claims] == [True, True]
    assert len({jti for jti, _ in guard.claims}) == 2


@pytest.mark.parametrize(("method", "status"), [("GET", 200), ("PUT", 200), ("POST", 401)])
def test_every_token_is_accepted_once_even_where_something_in_between_sends_it_twice(
    caller: Service, guard: KeptGuard, in_between: Any, method: str, status: int
) -> None:
    """As nginx's proxy_next_upstream does: the callee did the work, and refuses the copy. Where doing it twice does no
    harm, the session signs once more."""
    server, pass_on = in_between([])

    def twice(seen: Seen) -> Any:
        pass_on(seen)
        return pass_on(seen)

    server.script[:] = [twice, pass_on, pass_on]
    with PeerSession(caller, "callee", server.url) as session:
        session.trust_env = False
        response = session.request(method, "/thing")
    assert response.status_code == status
    first, second, *more = guard.claims
    assert (first[0] == second[0], first[1], second[1]) == (True, True, False)
    assert [accepted for _, accepted in more] == [True] * (status == 200)
    assert len(server.seen) == 1 + len(more)


def test_a_post_whose_connection_breaks_is_not_sent_again(caller: Service, guard: KeptGuard, in_between: Any) -> None:
    server, _ = in_between([RESET])
    with PeerSession(caller, "callee", server.url) as session:
        session.trust_env = False
        with pytest.raises(requests.ConnectionError):
            session.post("/thing", data="body")
    assert len(server.seen) == 1
    assert guard.claims == []
