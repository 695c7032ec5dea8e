"""For whom a Flask view works: to its end, in what it streams, and whatever else happens on its thread."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import copy_context
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, Response, current_app, request, send_file, stream_with_context, url_for
from flask.ctx import RequestContext
from werkzeug.datastructures import Headers
from werkzeug.test import EnvironBuilder

import peerseal
from peerseal import Identity, Transaction, User, Verifier, carrying, current_request_id, current_transaction
from peerseal.flask import PeerAuth
from peerseal.testing import MemoryRegistry

Environ = dict[str, Any]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    assert user() is None
    yield
    assert user() is None


@pytest.fixture
def registry() -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as registry:
        registry.set_domain(minters=["edge"])
        yield registry


@pytest.fixture
def edge(registry: MemoryRegistry) -> Identity:
    return registry.identity("edge")


def user() -> str | None:
    current = current_transaction()
    return None if current is None else current.user


class Callee:
    """A Flask service, which may delete at the service ``third`` but for users, who may only read."""

    def __init__(self, registry: MemoryRegistry, edge: Identity) -> None:
        self.edge = edge
        self.identity = registry.identity("callee")
        self.app = Flask(__name__)
        self.auth = PeerAuth(self.app, self.identity, allow={"edge": {"read", "delete"}})
        allow = {"callee": {"read", "delete"}}
        self.third = Verifier(registry.trust_store(), audience="third", allow=allow, clock=registry.clock)

    def view(self, path: str) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
        """A decorator: a view for users who may read."""
        return lambda view: self.app.get(path, endpoint=path)(self.auth.require(scope="read", transaction=True)(view))

    def onward(self) -> str:
        """What a call onward is answered that would delete: ``done``, or the refusal's code."""
        current = current_transaction()
        headers = {} if current is None else {"txn-token": current.carry()}
        token = self.identity.sign_request("third", method="DELETE", target="/", headers=headers)
        try:
            self.third.verify(token, method="DELETE", target="/", headers=headers, scope="delete")
        except peerseal.PeersealError as refused:
            return refused.code
        return "done"

    def environ(self, path: str, of: str | None = "ada", method: str = "GET") -> Environ:
        """A signed request for that user, as a server gives it."""
        headers = {} if of is None else {"Txn-Token": minted(self.edge, of).carry()}
        token = self.edge.sign_request("callee", method=method, target=path, headers=headers)
        headers |= {"Authorization": f"Bearer {token}"}
        builder = EnvironBuilder(path=path, method=method, headers=Headers(headers))
        return {**builder.get_environ(), "RAW_URI": path}

    def call(self, path: str, of: str | None = "ada", method: str = "GET") -> Any:
        """The answer's pieces, still to be made, as a server gets them."""
        status: list[str] = []
        pieces = self.app(self.environ(path, of, method), lambda said, *_: status.append(said))  # type: ignore[arg-type]
        assert status == ["200 OK"], b"".join(pieces)
        return pieces

    def text(self, path: str, of: str | None = "ada") -> str:
        """The answer, all of it."""
        pieces = self.call(path, of)
        try:
            return b"".join(pieces).decode()
        finally:
            pieces.close()


@pytest.fixture
def callee(registry: MemoryRegistry, edge: Identity) -> Callee:
    return Callee(registry, edge)


def minted(edge: Identity, name: str) -> Transaction:
    proven = User(name, "https://login.example.com", frozenset(("read",)), "u", 2**40, {})
    return edge.mint_transaction(proven, scope=["read"])


# ---- requests within requests


def makes_a_link(_: Callee) -> None:
    with current_app.test_request_context(base_url="https://public.example"):
        url_for("static", filename="x")


def calls_its_own_application(callee: Callee) -> None:
    assert callee.text("/other", "grace") == "grace"
    assert callee.text("/public", None) == "None"
    assert current_app.test_client().get("/other").status_code == 401


def dispatches_by_hand(callee: Callee) -> None:
    for environ in (callee.environ("/other", "grace"), {**request.environ, **callee.environ("/other", "grace")}):
        with callee.app.request_context(environ):
            assert callee.app.full_dispatch_request().data == b"grace"
            assert callee.app.preprocess_request() is not None, "replayed"


def leaves_one_open_and_another_request_begins(callee: Callee) -> None:
    contexts = [RequestContext(callee.app, callee.environ("/other", name)) for name in ("grace", "alan")]
    for context in contexts:
        context.push()
        callee.app.preprocess_request()
    for context in reversed(contexts):
        context.pop()


@pytest.mark.parametrize(
    "happens",
    [makes_a_link, calls_its_own_application, dispatches_by_hand, leaves_one_open_and_another_request_begins],
)
def test_a_request_within_a_view_leaves_the_views_user_and_what_that_user_may(
    callee: Callee, happens: Callable[[Callee], None]
) -> None:
    @callee.view("/x")
    def x() -> dict[str, Any]:
        before = user(), callee.onward()
        happens(callee)
        return {"before": before, "after": (user(), callee.onward())}

    callee.view("/other")(lambda: str(user()))
    callee.app.add_url_rule("/public", view_func=callee.auth.public(lambda: str(user())), endpoint="public")
    assert callee.onward() == "done", "the service itself may"
    answer = callee.app.json.loads(callee.text("/x"))
    assert answer == {"before": ["ada", "insufficient_scope"], "after": ["ada", "insufficient_scope"]}


def test_a_context_that_ends_late_takes_no_other_ones_user_away(callee: Callee) -> None:
    """Flask finds itself in another request then, and cannot go on; but the view is not over."""
    late: list[Any] = []
    seen: list[Any] = []
    callee.view("/stream")(lambda: Response(stream_with_context(str(user()) for _ in range(3))))

    @callee.view("/x")
    def x() -> str:
        with suppress(AssertionError):
            late.pop().close()
        seen.append((user(), callee.onward()))
        return ""

    def both() -> None:
        late.append(callee.call("/stream", "grace"))
        assert next(late[0]) == b"grace"
        with pytest.raises((LookupError, RuntimeError)):
            callee.call("/x")
        seen.append(user())

    copy_context().run(both)
    assert seen == [("ada", "insufficient_scope"), None]


def test_teardown_functions_run_for_the_user_still(callee: Callee) -> None:
    seen: list[str | None] = []
    callee.app.teardown_request(lambda _: seen.append(user()))
    callee.view("/x")(lambda: "")
    callee.text("/x")
    assert seen == ["ada"]


# ---- what a view streams


def plain(pieces: Iterator[str]) -> Response:
    return Response(pieces)


def with_context(pieces: Iterator[str]) -> Response:
    return Response(stream_with_context(f"{request.path} {piece}" for piece in pieces))


STREAMS = pytest.mark.parametrize(("stream", "before"), [(plain, ""), (with_context, "/x ")])


@STREAMS
def test_what_a_view_streams_is_for_its_user_and_held_to_what_the_user_may(
    callee: Callee, stream: Callable[[Iterator[str]], Response], before: str
) -> None:
    @callee.view("/x")
    def x() -> Response:
        return stream(f"{user()} {callee.onward()}" for _ in range(2))

    pieces = callee.call("/x")
    for _ in range(2):
        assert next(pieces) == f"{before}ada insufficient_scope".encode()
        assert (user(), callee.onward()) == (None, "done"), "between two pieces the thread is nobody's"
    assert list(pieces) == []
    pieces.close()


def test_streams_of_two_users_on_one_thread_keep_apart(callee: Callee) -> None:
    callee.view("/x")(lambda: Response(str(user()) for _ in range(3)))
    adas, graces = callee.call("/x", "ada"), callee.call("/x", "grace")
    turns = [adas, graces, graces, adas, graces, adas]
    assert [next(turn) for turn in turns] == [b"ada" if turn is adas else b"grace" for turn in turns]
    adas.close()
    graces.close()


def test_a_stream_that_another_user_s_request_reads_is_for_its_own(callee: Callee) -> None:
    callee.view("/inner")(lambda: Response(str(user()) for _ in range(2)))

    @callee.view("/outer")
    def outer() -> str:
        pieces = callee.call("/inner", "grace")
        return " ".join((next(pieces).decode(), str(user()), next(pieces).decode(), str(user())))

    assert callee.text("/outer") == "grace ada grace ada"


class Body:
    """A body with a ``close`` of its own; who is at work in it is told to ``seen``."""

    def __init__(self, seen: list[Any]) -> None:
        self._seen = seen

    def __iter__(self) -> Iterator[str]:
        try:
            yield str(user())
            yield "never read"
        finally:
            self._seen.append(("iterator", user()))

    def close(self) -> None:
        self._seen.append(("close", user()))


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("pieces_read", [0, 1])
def test_a_stream_that_is_given_up_is_closed_for_its_user_even_if_it_never_began(
    callee: Callee, pieces_read: int, method: str
) -> None:
    seen: list[Any] = []
    callee.view("/x")(lambda: Response(Body(seen)))
    pieces = callee.call("/x", method=method)
    read = 0 if method == "HEAD" else pieces_read
    assert [next(pieces) for _ in range(read)] == [b"ada"] * read
    assert seen == []
    pieces.close()
    assert seen == [("iterator", "ada")] * read + [("close", "ada")]


def test_a_stream_that_fails_leaves_nobody(callee: Callee) -> None:
    def fails() -> Iterator[str]:
        yield str(user())
        raise ZeroDivisionError(user())

    callee.view("/x")(lambda: Response(fails()))
    pieces = callee.call("/x")
    assert next(pieces) == b"ada"
    with pytest.raises(ZeroDivisionError, match="ada"):
        next(pieces)
    assert user() is None
    pieces.close()


def test_a_block_of_another_user_s_in_a_stream_does_not_last_beyond_it(callee: Callee, edge: Identity) -> None:
    grace = minted(edge, "grace")

    def pieces() -> Iterator[str]:
        with carrying(grace):
            yield str(user())
        yield str(user())

    callee.view("/x")(lambda: Response(pieces()))
    streamed = callee.call("/x")
    assert next(streamed) == b"grace"
    assert user() is None
    assert next(streamed) == b"ada"
    streamed.close()


def test_a_body_that_an_after_request_function_puts_in_is_for_the_user_too(callee: Callee) -> None:
    @callee.app.after_request
    def replace(response: Response) -> Response:
        return Response(str(user()) for _ in range(2))

    callee.view("/x")(lambda: "")
    assert callee.text("/x") == "adaada"


@pytest.mark.parametrize("finish", ["finalize_request", "process_response"])
def test_a_stream_of_a_context_that_the_application_pushed_is_for_its_user(callee: Callee, finish: str) -> None:
    callee.view("/x")(lambda: Response(callee.onward() for _ in range(1)))
    with callee.app.request_context(callee.environ("/x")):
        assert callee.app.preprocess_request() is None
        response = callee.app.make_response(callee.app.dispatch_request())
        response = getattr(callee.app, finish)(response)
    assert list(response.response) == ["insufficient_scope"]
    assert user() is None


def test_the_stream_of_an_error_handler_is_for_the_user_too(callee: Callee) -> None:
    @callee.app.errorhandler(ZeroDivisionError)
    def handle(_: ZeroDivisionError) -> Response:
        return Response(callee.onward() for _ in range(1))

    callee.view("/x")(lambda: str(1 // 0))
    assert callee.text("/x") == "insufficient_scope"


def test_pieces_that_a_body_with_a_length_makes_late_are_made_within_the_request(callee: Callee) -> None:
    class Lazy:
        def __len__(self) -> int:
            return 1

        def __iter__(self) -> Iterator[str]:
            yield current_request_id() or "none"

    callee.view("/x")(lambda: _with_body(Lazy()))
    environ = callee.environ("/x") | {"HTTP_X_REQUEST_ID": "r-7"}
    assert b"".join(callee.app(environ, lambda *_: None)) == b"r-7"  # type: ignore[arg-type]


def _with_body(body: Any) -> Response:
    response = Response()
    response.response = body
    return response


def test_files_and_what_is_no_stream_are_left_alone(callee: Callee) -> None:
    seen: list[Any] = []

    def see(response: Response) -> Response:
        seen.append(response.response)
        return response

    callee.app.after_request_funcs[None].insert(0, see)  # they run from the last to the first
    callee.view("/text")(lambda: "text")
    callee.view("/file")(lambda: send_file(__file__))
    callee.app.add_url_rule("/x", view_func=lambda: Response(iter(["x"])), endpoint="x")
    callee.text("/text")
    assert callee.text("/file") == Path(__file__).read_text()
    assert callee.text("/x", None) == "x"
    assert [type(body).__name__ for body in seen] == ["list", "FileWrapper", "list_iterator"]
