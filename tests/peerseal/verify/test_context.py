"""Whose transaction code works for: it goes where the work goes, and nowhere else, and ends with it."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import flask
import pytest

import peerseal
from peerseal import Identity, Transaction, User, carrying, current_transaction, propagate
from peerseal.flask import PeerAuth
from peerseal.protocol import jose
from peerseal.protocol.encoding import strict_json_object
from peerseal.protocol.tokens.transaction import transaction_hash
from peerseal.testing import MemoryRegistry


def transaction(user: str) -> Transaction:
    return Transaction(f"t-{user}", user, frozenset(("read",)), {}, {}, "d/edge", "d/edge", lambda: f"token of {user}")


def user() -> str | None:
    current = current_transaction()
    return current and current.user


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    assert user() is None
    yield
    assert user() is None


def test_blocks_nest_and_give_back_what_was_before() -> None:
    with carrying(transaction("ada")):
        with carrying(transaction("grace")):
            assert user() == "grace"
        assert user() == "ada"
        with carrying(None):
            assert user() is None
        assert user() == "ada"


def test_an_exception_ends_a_block_as_well() -> None:
    with pytest.raises(KeyError), carrying(transaction("ada")):
        raise KeyError
    assert user() is None


def test_a_pool_works_for_whoever_gave_the_work_and_keeps_nobody() -> None:
    with ThreadPoolExecutor(1) as pool:
        ours = propagate(pool)
        with carrying(transaction("ada")):
            assert ours.submit(user).result() == "ada"
            assert list(ours.map(lambda _: user(), range(3))) == ["ada"] * 3
        with carrying(transaction("grace")):
            assert ours.submit(user).result() == "grace"
        assert ours.submit(user).result() is None
        assert pool.submit(user).result() is None, "and the thread itself knows nobody"


def test_work_that_fails_leaves_nobody_in_its_thread() -> None:
    def fails() -> None:
        raise KeyError(user())

    with ThreadPoolExecutor(1) as pool:
        with carrying(transaction("ada")), pytest.raises(KeyError, match="ada"):
            propagate(pool).submit(fails).result()
        assert propagate(pool).submit(user).result() is None
        assert pool.submit(user).result() is None


def test_work_in_a_pool_cannot_change_whom_its_giver_works_for() -> None:
    with ThreadPoolExecutor(1) as pool, carrying(transaction("ada")):

        def meddle() -> None:
            peerseal.verify.context.begin(transaction("grace"))  # type: ignore[attr-defined]

        propagate(pool).submit(meddle).result()
        assert user() == "ada"
        assert propagate(pool).submit(user).result() == "ada"


def test_a_bare_thread_inherits_nobody() -> None:
    seen: list[str | None] = []
    with carrying(transaction("ada")):
        thread = threading.Thread(target=lambda: seen.append(user()))
        thread.start()
        thread.join()
    assert seen == [None]


def test_shutting_down_is_the_pools() -> None:
    pool = ThreadPoolExecutor(1)
    with propagate(pool) as ours:
        ours.submit(user).result()
    with pytest.raises(RuntimeError):
        pool.submit(user)


def test_tasks_inherit_and_keep_apart() -> None:
    async def work(name: str) -> list[str | None]:
        with carrying(transaction(name)):
            await asyncio.sleep(0)
            inner = await asyncio.gather(asyncio.to_thread(user), asyncio.create_task(ask()))
            await asyncio.sleep(0)
            return [user(), *inner]

    async def ask() -> str | None:
        await asyncio.sleep(0)
        return user()

    async def main() -> None:
        names = [f"user-{number}" for number in range(10)] * 10
        assert await asyncio.gather(*map(work, names)) == [[name] * 3 for name in names]
        assert user() is None

    asyncio.run(main())


# ---- Flask


@pytest.fixture
def registry() -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as registry:
        registry.set_domain(minters=["edge"])
        yield registry


@pytest.fixture
def edge(registry: MemoryRegistry) -> Identity:
    return registry.identity("edge")


class Callee:
    """A Flask service; ``after`` is what the thread works for once each request has ended."""

    def __init__(self, registry: MemoryRegistry) -> None:
        self.app = flask.Flask(__name__)
        auth = PeerAuth(self.app, registry.identity("callee"), allow={"edge": {"read"}})

        @self.app.get("/user")
        @auth.require(scope="read")
        def show() -> dict[str, Any]:
            return {"user": user()}

        @self.app.get("/mine")
        @auth.require(scope="read", transaction=True)
        def mine() -> dict[str, Any]:
            return {"user": user()}

        @self.app.get("/fails")
        @auth.require(scope="read")
        def fails() -> dict[str, Any]:
            raise ZeroDivisionError(user())

        @self.app.get("/stream")
        @auth.require(scope="read")
        def stream() -> flask.Response:
            return flask.Response(flask.stream_with_context(str(user()) for _ in range(3)))

        @self.app.get("/public")
        @auth.public
        def public() -> dict[str, Any]:
            return {"user": user()}

    def get(self, edge: Identity, target: str, token: str | None = None) -> Any:
        headers = {} if token is None else {"Txn-Token": token}
        request = edge.sign_request("callee", method="GET", target=target, headers=headers)
        environ = {"RAW_URI": target}
        return self.app.test_client().get(
            target, headers={**headers, "Authorization": f"Bearer {request}"}, environ_overrides=environ
        )


def minted(edge: Identity, name: str) -> Transaction:
    proven = User(name, "https://login.example.com", frozenset(("read",)), "u", 2**40, {})
    return edge.mint_transaction(proven, scope=["read"])


@pytest.fixture
def callee(registry: MemoryRegistry) -> Callee:
    return Callee(registry)


def test_a_request_is_for_its_user_and_the_next_one_is_not(callee: Callee, edge: Identity) -> None:
    ada = minted(edge, "ada").carry()
    assert callee.get(edge, "/user", ada).json == {"user": "ada"}
    assert user() is None
    assert callee.get(edge, "/user").json == {"user": None}
    assert callee.get(edge, "/mine", ada).json == {"user": "ada"}
    refused = callee.get(edge, "/mine")
    assert (refused.status_code, refused.json["code"]) == (401, "bad_transaction_token")


@pytest.mark.parametrize("target", ["/fails", "/nowhere", "/stream", "/public"])
def test_however_a_request_ends_its_user_is_gone(callee: Callee, edge: Identity, target: str) -> None:
    answer = callee.get(edge, target, minted(edge, "ada").carry())
    assert answer.data
    assert user() is None
    if target == "/stream":
        assert answer.data == b"adaadaada", "what is streamed comes after the request, and is of it"
    if target == "/public":
        assert answer.json == {"user": None}, "nobody was verified"


def test_a_refused_request_is_for_nobody(callee: Callee, edge: Identity) -> None:
    seen: list[str | None] = []
    callee.app.teardown_request(lambda _: seen.append(user()))
    with carrying(minted(edge, "ada")):  # as a thread might that another framework left so
        answer = callee.app.test_client().get("/user", environ_overrides={"RAW_URI": "/user"})
        assert answer.status_code == 401
        assert callee.get(edge, "/user").json == {"user": None}
        assert seen == [None, None]
        assert user() == "ada", "which is that framework's own to end"


# ---- outgoing calls


@pytest.fixture
def calls() -> Iterator[list[Any]]:
    """What a server on loopback was sent: headers, each call; its URL comes first. ``/away`` redirects to the same
    server under another name, which is another origin."""
    seen: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(dict(self.headers))
            away = self.path == "/away"
            self.send_response(302 if away else 200)
            if away:
                self.send_header("Location", f"http://localhost:{server.server_port}/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    seen.append(f"http://127.0.0.1:{server.server_port}")
    yield seen
    server.shutdown()
    server.server_close()


def bound(headers: dict[str, str]) -> Any:
    token = jose.parse(headers["Authorization"].removeprefix("Bearer "))
    return strict_json_object(token.payload).get("tth")


def test_a_session_takes_the_transaction_along_and_binds_it(edge: Identity, calls: list[Any]) -> None:
    session, ada = edge.session("callee", calls[0]), minted(edge, "ada")
    with carrying(ada):
        session.get("/x")
    session.get("/x")
    with_it, without = calls[1:]
    assert with_it["Txn-Token"] == ada.carry()
    assert bound(with_it) == transaction_hash(ada.carry())
    assert "Txn-Token" not in without
    assert bound(without) is None


def test_a_transaction_goes_to_no_other_origin(edge: Identity, calls: list[Any]) -> None:
    session = edge.session("callee", calls[0])
    with carrying(minted(edge, "ada")):
        session.get("/away")
        session.get(calls[0].replace("127.0.0.1", "localhost") + "/direct")
    first, redirected, direct = calls[1:]
    assert "Txn-Token" in first
    for elsewhere in (redirected, direct):
        assert "Txn-Token" not in elsewhere
        assert "Authorization" not in elsewhere


def test_a_token_that_the_application_chose_itself_is_the_one_that_is_bound(edge: Identity, calls: list[Any]) -> None:
    grace = minted(edge, "grace").carry()
    with carrying(minted(edge, "ada")):
        edge.session("callee", calls[0]).get("/x", headers={"Txn-Token": grace})
    assert calls[1]["Txn-Token"] == grace
    assert bound(calls[1]) == transaction_hash(grace)


def test_a_transaction_is_minted_when_a_call_needs_its_token_and_not_before(edge: Identity, calls: list[Any]) -> None:
    asked: list[str] = []

    def carry() -> str:
        asked.append("once more")
        return token

    token = minted(edge, "ada").carry()
    lazy = Transaction("t", "ada", frozenset(("read",)), {}, {}, "d/edge", "d/edge", carry)
    session = edge.session("callee", calls[0])
    with carrying(lazy):
        session.get(calls[0].replace("127.0.0.1", "localhost") + "/elsewhere")
        assert asked == []
        session.get("/x")
    assert asked == ["once more"]
    assert calls[2]["Txn-Token"] == token
