"""The ``ctx`` of a call: what the application says in the token of each attempt, and what the callee reads."""

import functools
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import requests
from flask import Flask

import peerseal.asgi
from peerseal import Identity, Verifier
from peerseal.errors import ConfigurationError, UnsignableRequest
from peerseal.flask import PeerAuth, current_peer
from peerseal.protocol.encoding import MAX_NESTING
from peerseal.protocol.tokens.request import MAX_CTX
from peerseal.requests import PeerSession
from peerseal.testing import MemoryRegistry
from tests.support.asgi import Callee
from tests.support.wire import RESET, Answer, RawServer, Service, raw_server

CTX = {"purpose": "support", "tags": ["a", 1, None]}
TOO_LONG = {"note": "x" * MAX_CTX}
NESTED: dict[str, Any] = functools.reduce(lambda inner, _: {"a": inner}, range(MAX_NESTING), {})


@pytest.fixture
def session(caller: Service, server: RawServer) -> Iterator[PeerSession]:
    with PeerSession(caller, "callee", server.url, sleep=lambda _: None) as session:
        yield session


def told(server: RawServer) -> list[Any]:
    """The ``ctx`` in the token of each request that came, None where there is none."""
    return [seen.claims.get("ctx") for seen in server.seen]


class TestCalls:
    @pytest.mark.parametrize("method", ["delete", "get", "head", "options", "patch", "post", "put"])
    def test_every_method_takes_a_ctx(self, session: PeerSession, server: RawServer, method: str) -> None:
        getattr(session, method)("/a", ctx=CTX)
        assert told(server) == [CTX]

    def test_a_call_without_one_says_nothing(self, session: PeerSession, server: RawServer) -> None:
        session.get("/a", ctx=CTX)
        session.get("/a")
        session.get("/a", ctx={})
        assert told(server) == [CTX, None, None]

    def test_a_session_says_what_it_was_made_with_and_a_call_adds_to_it(
        self, caller: Service, server: RawServer
    ) -> None:
        session = PeerSession(caller, "callee", server.url, ctx={"tenant": "acme", "purpose": "billing"})
        session.get("/a")
        session.get("/a", ctx={"purpose": "support"})
        session.send(session.prepare_request(requests.Request("GET", "/a")))
        billing = {"tenant": "acme", "purpose": "billing"}
        assert told(server) == [billing, {"tenant": "acme", "purpose": "support"}, billing]

    def test_every_attempt_says_the_same(self, session: PeerSession, server: RawServer) -> None:
        server.script[:] = [RESET, Answer(503)]
        assert session.get("/a", ctx=CTX).status_code == 200
        assert told(server) == [CTX] * 3
        assert len({seen.claims["jti"] for seen in server.seen}) == 3

    def test_what_changes_after_the_call_began_does_not_count(self, session: PeerSession, server: RawServer) -> None:
        tags = ["first"]

        def change(_: object) -> Answer:
            tags.append("second")
            return Answer(503)

        server.script[:] = [change]
        session.get("/a", ctx={"tags": tags})
        assert told(server) == [{"tags": ["first"]}] * 2

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_redirects_within_the_origin_say_the_same(
        self, session: PeerSession, server: RawServer, status: int
    ) -> None:
        server.script[:] = [Answer(status, {"Location": "/b"}), Answer(status, {"Location": "/c"})]
        session.post("/a", data=b"body", ctx=CTX)
        assert [seen.target for seen in server.seen] == ["/a", "/b", "/c"]
        assert told(server) == [CTX] * 3

    def test_so_does_a_redirect_that_the_application_follows_itself(
        self, session: PeerSession, server: RawServer
    ) -> None:
        server.script[:] = [Answer(302, {"Location": "/b"})]
        answer = session.get("/a", ctx=CTX, allow_redirects=False)
        assert answer.next is not None
        session.send(answer.next)
        assert told(server) == [CTX] * 2

    def test_what_a_hook_calls_says_nothing_of_it(self, session: PeerSession, server: RawServer) -> None:
        def look(answer: requests.Response, **_: Any) -> None:
            if answer.url.endswith("/a"):
                session.get("/of-a-hook")
                session.send(session.prepare_request(requests.Request("GET", "/of-a-hook")))

        def sign_in(prepared: requests.PreparedRequest) -> requests.PreparedRequest:
            session.get("/of-an-auth")
            return prepared

        session.get("/a", ctx=CTX, hooks={"response": look}, auth=sign_in)
        heard = {seen.target: seen.claims.get("ctx") for seen in server.seen}
        assert heard == {"/of-an-auth": None, "/a": CTX, "/of-a-hook": None}

    def test_threads_that_share_a_session_do_not_mix(self, session: PeerSession, server: RawServer) -> None:
        def call(number: int) -> None:
            for _ in range(5):
                session.get(f"/{number}", ctx={"number": number})

        threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(server.seen) == 20
        assert all(seen.target == f"/{seen.claims['ctx']['number']}" for seen in server.seen)


class TestOtherOrigins:
    def test_a_call_of_another_origin_with_a_ctx_is_refused_and_nothing_is_sent(self, session: PeerSession) -> None:
        with raw_server() as other:
            with pytest.raises(UnsignableRequest, match="another origin"):
                session.get(f"{other.url}/a", ctx=CTX)
            assert other.seen == []

    def test_a_redirect_to_another_origin_takes_nothing_along(self, session: PeerSession, server: RawServer) -> None:
        with raw_server() as other:
            server.script[:] = [Answer(307, {"Location": f"{other.url}/b"})]
            session.get("/a", ctx=CTX)
            [seen] = other.seen
        assert told(server) == [CTX]
        assert seen.authorization is None
        assert "support" not in repr(seen)


class TestWhatDoesNotFit:
    @pytest.mark.parametrize(
        "ctx",
        [TOO_LONG, NESTED, {"x": float("nan")}, {"x": object()}, "text", [("a", 1)], 7],
        ids=["long", "nested", "not a number", "no JSON", "text", "pairs", "number"],
    )
    def test_it_is_refused_before_anything_is_sent(self, session: PeerSession, server: RawServer, ctx: Any) -> None:
        with pytest.raises(UnsignableRequest):
            session.get("/a", ctx=ctx)
        assert server.seen == []

    def test_a_session_and_a_call_fit_together_or_not_at_all(self, caller: Service, server: RawServer) -> None:
        half = "x" * (MAX_CTX // 2)
        session = PeerSession(caller, "callee", server.url, ctx={"a": half})
        with pytest.raises(UnsignableRequest, match="longer than 1024 bytes"):
            session.get("/a", ctx={"b": half})
        session.get("/a", ctx={"a": half})
        assert told(server) == [{"a": half}]

    @pytest.mark.parametrize("ctx", [TOO_LONG, "text", {"x": object()}], ids=["long", "text", "no JSON"])
    def test_a_session_that_could_sign_nothing_is_an_error_when_it_is_made(self, caller: Service, ctx: Any) -> None:
        with pytest.raises(ConfigurationError, match="ctx: "):
            PeerSession(caller, "callee", "http://callee.test", ctx=ctx)


class TestTheCallee:
    @pytest.fixture
    def registry(self) -> Iterator[MemoryRegistry]:
        with MemoryRegistry() as registry:
            yield registry

    @pytest.fixture
    def client(self, registry: MemoryRegistry) -> Identity:
        return registry.identity("client")

    def test_a_flask_view_reads_it(self, registry: MemoryRegistry, client: Identity) -> None:
        app = Flask(__name__)
        PeerAuth(app, registry.identity("callee"), allow={"client": ()})

        @app.get("/")
        def show() -> dict[str, Any]:
            return {"ctx": dict(current_peer.ctx)}

        def call(ctx: Mapping[str, Any] | None) -> Any:
            token = client.sign_request("callee", method="GET", target="/", ctx=ctx)
            return app.test_client().get("/", headers={"Authorization": f"Bearer {token}"}).get_json()["ctx"]

        assert call(CTX) == CTX
        assert call(None) == {}

    def test_an_asgi_application_reads_it(self, registry: MemoryRegistry, client: Identity) -> None:
        seen = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            seen.append(dict(peerseal.asgi.current_peer().ctx))
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        callee = Callee(registry, app)
        for ctx in (CTX, None):
            token = client.sign_request("callee", method="GET", target="/x", ctx=ctx)
            assert callee.call(headers={"authorization": f"Bearer {token}"}).status == 204
        assert seen == [CTX, {}]

    def test_it_cannot_be_changed_and_can_be_said_on(self, registry: MemoryRegistry, client: Identity) -> None:
        callee = registry.identity("callee")
        peer = heard(registry, "callee", client.sign_request("callee", method="GET", target="/", ctx=CTX))
        assert peer.ctx == CTX
        with pytest.raises(TypeError):
            peer.ctx["purpose"] = "another"  # type: ignore[index]
        onward = callee.sign_request("client", method="GET", target="/", ctx=peer.ctx)
        assert heard(registry, "client", onward).ctx == CTX

    def test_it_is_in_no_log_of_a_peer(self, registry: MemoryRegistry, client: Identity) -> None:
        peer = heard(registry, "callee", client.sign_request("callee", method="GET", target="/", ctx=CTX))
        assert "support" not in f"{peer!r} {peer}"


def heard(registry: MemoryRegistry, audience: str, token: str) -> peerseal.Peer:
    """The caller of a signed ``GET /`` as the callee ``audience`` proves it."""
    verifier = Verifier(registry, audience=audience, allow={"*": ()}, clock=registry.clock)
    return verifier.verify(token, method="GET", target="/")
