"""The WSGI adapter, driven as servers do: what gets through, what is refused, and what the application sees."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from io import BytesIO
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from peerseal import Identity, User, carrying, current_request_id, current_transaction
from peerseal.errors import ConfigurationError, InsufficientScope
from peerseal.testing import MemoryRegistry
from peerseal.wsgi import ANY_ALLOWED, PEER, PUBLIC, Need, PeerAuth, current_peer, require_scope
from tests.support.asgi import signed
from tests.support.wsgi import Answer, called, environ_of

NEEDS = {
    "/": ANY_ALLOWED,
    "/healthz": PUBLIC,
    "/orders": {"GET": Need("read"), "POST": Need("write"), "DELETE": Need("admin")},
    "/mine": Need("read", transaction=True),
    "/admin": Need("admin"),
}


class Callee:
    """The service ``callee``; what its application saw is kept."""

    def __init__(self, registry: MemoryRegistry, app: Any = None, **options: Any) -> None:
        self.seen: list[dict[str, Any]] = []
        given: dict[str, Any] = {"allow": {"client": {"read", "write"}}, "needs": NEEDS, **options}
        self.auth = PeerAuth(app or self.app, registry.identity("callee"), **given)

    def app(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        transaction = current_transaction()
        self.seen.append(
            {
                "peer": environ[PEER].service if PEER in environ else None,
                "user": None if transaction is None else transaction.user,
                "body": environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)),
            }
        )
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"done"]

    def call(self, *request: Any, judge: bool = True, **options: Any) -> Answer:
        return called(self.auth, environ_of(*request, **options), judge=judge)


@pytest.fixture
def callee(registry: MemoryRegistry) -> Callee:
    return Callee(registry)


def test_a_good_call_reaches_the_application_with_its_caller(callee: Callee, client: Identity) -> None:
    assert callee.call(headers=signed(client)).status == 200
    assert callee.seen == [{"peer": "client", "user": None, "body": b""}]
    with pytest.raises(RuntimeError):
        current_peer()


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("body", [b"", b"{}", b"x" * 200_000], ids=["none", "small", "big"])
def test_the_application_reads_the_body_that_was_checked(
    callee: Callee, client: Identity, body: bytes, chunked: bool
) -> None:
    headers = signed(client, "POST", "/orders", body)
    assert callee.call("POST", "/orders", headers, body, chunked=chunked).status == 200
    assert callee.seen[0]["body"] == body


def test_a_length_that_contradicts_the_chunks_does_not_cut_the_checked_body(callee: Callee, client: Identity) -> None:
    headers = signed(client, "POST", "/orders", b"0123456789")
    callee.call("POST", "/orders", headers, b"0123456789", chunked=True, CONTENT_LENGTH="3")
    assert callee.seen[0]["body"] == b"0123456789"


def test_a_user_goes_along_and_is_gone_after_it(callee: Callee, client: Identity) -> None:
    user = User("ada", "https://login.example.com", frozenset(("read",)), "u", 2**40, {})
    transaction = client.mint_transaction(user, scope=["read"])
    with carrying(transaction):
        headers = signed(client, target="/mine", txn_token=transaction.carry())
    assert callee.call("GET", "/mine", headers).status == 200
    assert callee.seen == [{"peer": "client", "user": "ada", "body": b""}]
    assert current_transaction() is None
    refused = callee.call("GET", "/mine", signed(client, target="/mine"))
    assert (refused.status, refused.json["code"]) == (401, "bad_transaction_token")


Call = Callable[[Callee, Identity], Answer]

REFUSED: Mapping[str, tuple[Call, int, str]] = {
    "no token": (lambda c, i: c.call(), 401, "missing_token"),
    "another scheme": (lambda c, i: c.call(headers={"authorization": "Basic YTpi"}), 401, "missing_token"),
    "two Authorization headers": (
        lambda c, i: c.call(headers={"authorization": f"{signed(i)['authorization']},{signed(i)['authorization']}"}),
        401,
        "malformed_token",
    ),
    "another path": (lambda c, i: c.call("GET", "/y", signed(i)), 401, "wrong_binding"),
    "another query": (lambda c, i: c.call("GET", "/x?a=2", signed(i, target="/x?a=1")), 401, "wrong_binding"),
    "another method": (lambda c, i: c.call("PUT", "/x", signed(i)), 401, "wrong_binding"),
    "another body": (
        lambda c, i: c.call("POST", "/orders", signed(i, "POST", "/orders", b"a"), b"b"),
        401,
        "wrong_binding",
    ),
    "another spelling of the path": (lambda c, i: c.call("GET", "/%78", signed(i, target="/x")), 401, "wrong_binding"),
    "no raw target": (lambda c, i: c.call(headers=signed(i), RAW_URI=""), 401, "wrong_binding"),
    "a routed path that is not the raw one": (
        lambda c, i: c.call("GET", "/x", signed(i), PATH_INFO="/y"),
        401,
        "wrong_binding",
    ),
    "a prefix that a header shifts": (
        lambda c, i: c.call("GET", "/a/x", signed(i, target="/a/x"), script_name="/a", HTTP_SCRIPT_NAME="/a"),
        401,
        "wrong_binding",
    ),
    "an absolute target": (
        lambda c, i: c.call("GET", "/x", signed(i), RAW_URI="http://callee.test/x"),
        401,
        "wrong_binding",
    ),
    "a scope that the caller lacks": (
        lambda c, i: c.call("GET", "/admin/x", signed(i, target="/admin/x")),
        403,
        "insufficient_scope",
    ),
    "a method that needs another scope": (
        lambda c, i: c.call("DELETE", "/orders", signed(i, "DELETE", "/orders")),
        403,
        "insufficient_scope",
    ),
    "a method that no need names": (
        lambda c, i: c.call("PUT", "/orders", signed(i, "PUT", "/orders")),
        403,
        "insufficient_scope",
    ),
    "two slashes": (lambda c, i: c.call("GET", "//admin", signed(i, target="//admin")), 403, "insufficient_scope"),
    "bytes that are no UTF-8": (
        lambda c, i: c.call("GET", "/adm%ffin", signed(i, target="/adm%ffin")),
        403,
        "insufficient_scope",
    ),
    "dot segments": (
        lambda c, i: c.call("GET", "/x/%2e%2e/admin", signed(i, target="/x/%2e%2e/admin")),
        403,
        "insufficient_scope",
    ),
    "a body that breaks off": (
        lambda c, i: c.call(
            "POST", "/orders", signed(i, "POST", "/orders", b"ab"), **{"wsgi.input": Broken(), "CONTENT_LENGTH": "2"},
            judge=False,
        ),
        400,
        "content_unreadable",
    ),
    "a body beyond the limit": (
        lambda c, i: c.call("POST", "/orders", signed(i, "POST", "/orders"), CONTENT_LENGTH=str(1 << 30)),
        413,
        "content_too_large",
    ),
}  # fmt: skip


class Broken(BytesIO):
    """A body whose connection breaks."""

    def read(self, size: int | None = -1, /) -> bytes:
        raise ConnectionResetError


@pytest.mark.parametrize("name", REFUSED)
def test_every_refusal_has_its_code_and_the_application_sees_nothing(
    callee: Callee, client: Identity, name: str
) -> None:
    call, status, code = REFUSED[name]
    answer = call(callee, client)
    assert (answer.status, answer.json["code"]) == (status, code)
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["content-length"] == str(len(answer.body))
    assert ("www-authenticate" in answer.headers) == (status in {401, 403})
    assert callee.seen == []
    assert callee.auth.refusals == {code: 1}


def test_a_token_is_good_once(callee: Callee, client: Identity) -> None:
    headers = signed(client)
    assert callee.call(headers=headers).status == 200
    assert callee.call(headers=headers).json["code"] == "replayed"


def test_each_method_has_its_need_and_head_has_that_of_get(callee: Callee, client: Identity) -> None:
    for method in ("GET", "HEAD", "POST"):
        assert callee.call(method, "/orders/1", signed(client, method, "/orders/1"), judge=False).status == 200


def test_needs_may_be_a_function_of_method_and_path(registry: MemoryRegistry, client: Identity) -> None:
    asked: list[tuple[str, str]] = []

    def needs(method: str, path: str) -> Need:
        asked.append((method, path))
        return PUBLIC

    Callee(registry, needs=needs).call("GET", "/caf%C3%A9//%FF")
    assert asked == [("GET", "/café//\udcff")]


@pytest.mark.parametrize("needs", [{"x": PUBLIC}, {"/x": "read"}, {"/x": {"get": PUBLIC}}, {"/x": {"GET": 1}}, 5])
def test_needs_that_stand_for_nothing_are_refused_at_once(registry: MemoryRegistry, needs: Any) -> None:
    with pytest.raises(ConfigurationError, match="needs"):
        Callee(registry, needs=needs)


def test_a_public_path_has_no_caller_even_if_a_server_or_a_client_says_so(callee: Callee, client: Identity) -> None:
    assert callee.call("GET", "/healthz", signed(client, target="/healthz"), **{PEER: "forged"}).status == 200
    assert callee.seen[0]["peer"] is None


def test_the_path_below_a_mount_point_counts(callee: Callee, client: Identity) -> None:
    answer = callee.call("GET", "/api/admin", signed(client, target="/api/admin"), script_name="/api")
    assert answer.status == 403
    assert callee.call("GET", "/api/healthz", script_name="/api").status == 200


def test_report_only_serves_without_a_caller_and_counts(registry: MemoryRegistry, client: Identity) -> None:
    callee = Callee(registry, report_only=True)
    assert callee.call("POST", "/orders", None, b"abc").status == 200
    assert callee.seen == [{"peer": None, "user": None, "body": b"abc"}]
    assert callee.auth.refusals == {"missing_token": 1}


anything = st.text(st.characters(codec="latin-1"), max_size=12)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(method=anything, raw=anything, path=anything, authorization=anything, length=anything)
@example(method="GET", raw="/\u20ac", path="/\u20ac", authorization="Bearer \u20ac", length="\u0663")
def test_whatever_a_stranger_sends_is_refused_in_order(
    callee: Callee, method: str, raw: str, path: str, authorization: str, length: str
) -> None:
    given = {"RAW_URI": raw, "PATH_INFO": path, "CONTENT_LENGTH": length}
    answer = callee.call(method, "/x", {"authorization": authorization}, judge=False, **given)
    assert answer.status in {401, 403}
    assert callee.seen == []


# ---- what an application may do


def application(serve: Callable[[Any], Iterable[bytes]]) -> Any:
    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        return serve(lambda: start_response("200 OK", [("Content-Type", "text/plain")]))

    return app


def answer_of(registry: MemoryRegistry, client: Identity, serve: Callable[[Any], Iterable[bytes]]) -> Answer:
    return Callee(registry, application(serve)).call(headers=signed(client) | {"x-request-id": "r1"})


def now() -> bytes:
    """Who calls, in which request."""
    return f"{current_peer().service} {current_request_id()}".encode()


def test_a_stream_keeps_its_caller_and_the_thread_is_without_one_between(
    registry: MemoryRegistry, client: Identity
) -> None:
    closed = []

    def pieces() -> Iterator[bytes]:
        try:
            yield now()
            yield now()
        finally:
            closed.append(now())

    def serve(start: Any) -> Iterable[bytes]:
        start()
        return pieces()

    assert answer_of(registry, client, serve).pieces == [b"client r1"] * 2
    assert closed == [b"client r1"]
    assert current_request_id() is None


def test_an_application_may_begin_with_its_first_piece(registry: MemoryRegistry, client: Identity) -> None:
    def serve(start: Any) -> Iterable[bytes]:
        start()
        yield now()
        yield b"more"

    assert answer_of(registry, client, serve).pieces == [b"client r1", b"more"]


def test_an_application_may_write(registry: MemoryRegistry, client: Identity) -> None:
    def serve(start: Any) -> Iterable[bytes]:
        write = start()
        write(b"one")
        write(b"two")
        return [b"three"]

    assert answer_of(registry, client, serve).pieces == [b"one", b"two", b"three"]


class Closing:
    """A body that tells whether it was closed."""

    def __init__(self) -> None:
        self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        return iter([b"never sent"])

    def close(self) -> None:
        self.closed = True


def test_a_refusal_of_a_handler_replaces_the_answer_of_the_framework(
    registry: MemoryRegistry, client: Identity
) -> None:
    body = Closing()

    def serve(start: Any) -> Iterable[bytes]:
        try:
            require_scope("admin")
        except InsufficientScope:
            start()(b"500, as frameworks answer")
        return body

    answer = answer_of(registry, client, serve)
    assert (answer.status, answer.json["code"]) == (403, "insufficient_scope")
    assert body.closed


def test_a_refusal_that_leaves_the_application_is_the_answer(registry: MemoryRegistry, client: Identity) -> None:
    def at_once(start: Any) -> Iterable[bytes]:
        require_scope("admin")
        return []

    def with_the_first_piece(start: Any) -> Iterable[bytes]:
        require_scope("admin")
        yield b""

    for serve in (at_once, with_the_first_piece):
        assert answer_of(registry, client, serve).json["code"] == "insufficient_scope"


def test_a_stream_may_refuse_before_its_first_byte(registry: MemoryRegistry, client: Identity) -> None:
    def stream(start: Any) -> Iterable[bytes]:
        def pieces() -> Iterator[bytes]:
            yield b""
            require_scope("admin")
            yield b"not reached"

        start()
        return pieces()

    def catching(start: Any) -> Iterable[bytes]:
        def pieces() -> Iterator[bytes]:
            with suppress(InsufficientScope):
                require_scope("admin")
            yield b"not sent"

        start()
        return pieces()

    for serve in (stream, catching):
        answer = answer_of(registry, client, serve)
        assert (answer.status, answer.json["code"]) == (403, "insufficient_scope")


def test_a_stream_that_refuses_after_its_first_byte_breaks_off(registry: MemoryRegistry, client: Identity) -> None:
    def serve(start: Any) -> Iterable[bytes]:
        def pieces() -> Iterator[bytes]:
            yield b"sent"
            require_scope("admin")

        start()
        return pieces()

    with pytest.raises(InsufficientScope):
        answer_of(registry, client, serve)


@pytest.mark.parametrize("pieces", [[], [b"", b""], [b"", b"a", b"", b"b"]])
def test_a_stream_without_a_byte_at_first_or_at_all_is_sent(
    registry: MemoryRegistry, client: Identity, pieces: list[bytes]
) -> None:
    def serve(start: Any) -> Iterable[bytes]:
        start()
        return iter(pieces)

    answer = answer_of(registry, client, serve)
    assert (answer.status, answer.body) == (200, b"".join(pieces))


def test_other_errors_are_the_servers(registry: MemoryRegistry, client: Identity) -> None:
    def serve(start: Any) -> Iterable[bytes]:
        require_scope("read")
        raise LookupError

    with pytest.raises(LookupError):
        answer_of(registry, client, serve)


def test_a_file_is_left_to_the_server(registry: MemoryRegistry, client: Identity) -> None:
    class Wrapper:
        def __init__(self, file: BytesIO) -> None:
            self.file = file

        def __iter__(self) -> Iterator[bytes]:
            return iter([self.file.read()])

    def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        start_response("200 OK", [])
        wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](BytesIO(b"file"))
        return wrapped

    environ = environ_of(headers=signed(client), **{"wsgi.file_wrapper": Wrapper})
    auth = Callee(registry, app).auth
    assert isinstance(auth(environ, lambda *_: None), Wrapper)


def test_what_is_no_application_is_refused(registry: MemoryRegistry) -> None:
    with pytest.raises(ConfigurationError, match="app"):
        PeerAuth("app", registry.identity("callee"))  # type: ignore[arg-type]
