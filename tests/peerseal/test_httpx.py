"""What httpx clients sign is what leaves the socket: at each attempt, at each redirect, and for one origin only."""

import asyncio
import io
import re
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import peerseal
from peerseal.errors import ConfigurationError, UnsignableRequest
from peerseal.httpx import CTX, AsyncPeerSession, Auth, PeerRefusal, refusal_of
from peerseal.protocol.encoding import digest_header
from peerseal.testing import MemoryRegistry
from peerseal.verify.context import Transaction, carrying, serving
from tests.support.wire import RESET, Answer, RawServer, Service, assert_signed_as_seen, only, raw_server

pytestmark = pytest.mark.usefixtures("no_proxies")

PAGE = "docs/how-to/httpx.md"
Options = dict[str, Any]
PLAIN = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Without authorities, which take a client long to load; no server here has a certificate."""
PROBLEM = {"Content-Type": "application/problem+json"}
REPLAYED = Answer(401, PROBLEM, b'{"code": "replayed"}')
TRANSACTION = Transaction("t1", "u1", frozenset(), {}, {}, "d/m", "d/w", carry=lambda: "the.users.token")


class Calls:
    """One way to make signed calls; ``signing`` are the options of `Auth` and of the session."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def __call__(self, url: str, method: str = "GET", signing: Options | None = None, **request: Any) -> httpx.Response:
        raise NotImplementedError


class Synchronous(Calls):
    """`Auth` in an httpx.Client."""

    def __call__(self, url: str, method: str = "GET", signing: Options | None = None, **request: Any) -> httpx.Response:
        with httpx.Client(auth=Auth(self.service, "callee", url, **signing or {}), verify=PLAIN) as client:
            return client.request(method, url + request.pop("path", "/"), **request)


class Asynchronous(Calls):
    """`Auth` in an httpx.AsyncClient."""

    def __call__(self, url: str, method: str = "GET", signing: Options | None = None, **request: Any) -> httpx.Response:
        async def call() -> httpx.Response:
            async with httpx.AsyncClient(
                auth=Auth(self.service, "callee", url, **signing or {}), verify=PLAIN
            ) as client:
                return await client.request(method, url + request.pop("path", "/"), **request)

        return asyncio.run(call())


class InSession(Calls):
    """An AsyncPeerSession, which makes no second attempt unless asked to."""

    def __call__(self, url: str, method: str = "GET", signing: Options | None = None, **request: Any) -> httpx.Response:
        async def call() -> httpx.Response:
            options = {"retries": 0, "verify": PLAIN, **(signing or {})}
            async with AsyncPeerSession(self.service, "callee", url, **options) as session:
                return await session.request(method, request.pop("path", "/"), **request)

        return asyncio.run(call())


WAYS: list[type[Calls]] = [Synchronous, Asynchronous, InSession]


@pytest.fixture(params=WAYS)
def call(request: pytest.FixtureRequest, caller: Service) -> Calls:
    way: type[Calls] = request.param
    return way(caller)


@pytest.fixture(params=[Asynchronous, InSession])
def async_call(request: pytest.FixtureRequest, caller: Service) -> Calls:
    way: type[Calls] = request.param
    return way(caller)


# ---- the target on the wire

ODD = "/%~;?&=+.:@!$'()*,[]{}|\\^`<>\" aZ0é\u20ac\U0001f600"
escapes = st.sampled_from(["%2f", "%2F", "%2e%2e", "..", ".", "//", "%7e", "%c3%A9", "%", "%zz", "%25", "%3f", "%23"])
odd_path = st.lists(st.one_of(st.text(alphabet=ODD, max_size=10), escapes), max_size=6).map("".join)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=odd_path, query=st.one_of(st.none(), odd_path), params=st.one_of(st.none(), st.just({"ä b": "/?%"})))
@example(path="/a/%2e%2e/b", query=None, params=None)
@example(path="/a/../../b", query="x=%2f&&", params=None)
@example(path="/%E2%zz%41", query="%", params=None)
@example(path="//%2fa", query="?", params=None)
def test_the_target_that_is_signed_is_the_one_that_leaves_the_socket(
    caller: Service, server: RawServer, path: str, query: str | None, params: dict[str, str] | None
) -> None:
    server.seen.clear()
    Synchronous(caller)(server.url, path=f"/{path}" if query is None else f"/{path}?{query}", params=params)
    assert_signed_as_seen(only(server))


def test_a_target_that_the_application_names_itself_is_the_one_that_is_signed(call: Calls, server: RawServer) -> None:
    call(server.url, path="/a", extensions={"target": b"/b//c?"})
    assert only(server).target == "/b//c?"
    assert_signed_as_seen(only(server))


def test_a_target_in_another_form_is_not_signed(call: Calls, server: RawServer) -> None:
    with pytest.raises(UnsignableRequest, match="request-target"):
        call(server.url, "OPTIONS", extensions={"target": b"*"})
    assert server.seen == []


def test_through_an_http_proxy_the_origin_form_of_the_same_target_is_signed(caller: Service, server: RawServer) -> None:
    base = "http://callee.test:8080"
    with httpx.Client(auth=Auth(caller, "callee", base), proxy=server.url) as client:
        client.get(f"{base}/a//b?c=%2f")
    assert only(server).target == f"{base}/a//b?c=%2f"
    assert only(server).claims["target_digest"] == digest_header(b"/a//b?c=%2f")


# ---- where a request goes


def test_another_origin_gets_no_token_and_no_transaction_token(caller: Service, server: RawServer) -> None:
    with raw_server() as other, carrying(TRANSACTION), serving("r1"):
        auth = Auth(caller, "callee", server.url)
        with httpx.Client(auth=auth, headers={"Txn-Token": "secret", "X-Own": "1"}) as client:
            client.get(f"{other.url}/x")
    assert only(other).authorization is None
    assert "txn-token" not in only(other).headers
    assert "x-request-id" not in only(other).headers
    assert only(other).headers["x-own"] == ["1"]


@pytest.mark.parametrize(
    "url",
    ["https://callee.test/", "http://callee.test:81/", "http://callee.test.evil.example/", "http://callee.test./"],
)
def test_what_is_not_exactly_the_origin_is_not_signed(caller: Service, url: str) -> None:
    assert not Auth(caller, "callee", "http://callee.test").signs(httpx.Request("GET", url))


@pytest.mark.parametrize("url", ["http://callee.test/a", "http://callee.test:80/a", "HTTP://CALLEE.test/a#b"])
def test_the_origin_is_signed_in_every_spelling(caller: Service, url: str) -> None:
    assert Auth(caller, "callee", "http://Callee.Test:80/base").signs(httpx.Request("GET", url))


def test_a_url_with_a_user_name_is_not_signed(caller: Service, server: RawServer) -> None:
    with pytest.raises(UnsignableRequest, match="user name"):
        httpx.get(f"http://u:p@127.0.0.1:{server.port}/", auth=Auth(caller, "callee", server.url))
    assert server.seen == []


@pytest.mark.parametrize("base", ["", "callee", "ftp://callee", "http://u:p@callee", "http://c/?q", "http://c:99999"])
def test_a_base_url_is_an_origin_with_perhaps_a_path(caller: Service, base: str) -> None:
    with pytest.raises(ConfigurationError):
        Auth(caller, "callee", base)


# ---- bodies


@pytest.mark.parametrize(
    ("options", "body", "content_type"),
    [
        ({}, b"", None),
        ({"content": b"\x00\xff"}, b"\x00\xff", None),
        ({"content": "Köln €"}, "Köln €".encode(), None),
        ({"json": {"a": [1, "ü"]}}, '{"a":[1,"ü"]}'.encode(), "application/json"),
        ({"data": {"a": "1 ü", "b": ["x", "y"]}}, b"a=1+%C3%BC&b=x&b=y", "application/x-www-form-urlencoded"),
        ({"content": b"x", "headers": {"Content-Type": "text/plain; x=1"}}, b"x", "text/plain; x=1"),
        ({"content": b"x", "headers": {"Content-Encoding": "gzip"}}, b"x", None),
    ],
)
def test_every_sort_of_body_is_signed_as_it_is_sent(
    call: Calls, server: RawServer, options: dict[str, Any], body: bytes, content_type: str | None
) -> None:
    call(server.url, "POST", **options)
    seen = only(server)
    assert seen.body == body
    assert seen.headers.get("content-type", [None]) == [content_type]
    assert_signed_as_seen(seen)


def test_multipart_files_are_signed_as_they_are_sent(call: Calls, server: RawServer) -> None:
    call(server.url, "POST", data={"note": "ü"}, files={"file": ("a.bin", io.BytesIO(b"\x00content"))})
    seen = only(server)
    assert b"\x00content" in seen.body
    assert seen.claims["headers"]["content-type"].startswith("multipart/form-data; boundary=")
    assert_signed_as_seen(seen)


def test_a_file_is_sent_from_where_it_stood_at_every_attempt(call: Calls, server: RawServer, tmp_path: Path) -> None:
    path = tmp_path / "upload"
    path.write_bytes(b"0123456789" * 10_000)
    server.script[:] = [REPLAYED]
    with path.open("rb") as file:
        file.seek(5)
        call(server.url, "PUT", content=file)
    assert len(server.seen) == 2
    for seen in server.seen:
        assert seen.body == path.read_bytes()[5:]
        assert_signed_as_seen(seen)


def pieces() -> Iterator[bytes]:
    yield from (b"one ", b"two")


async def asynchronous_pieces() -> AsyncIterator[bytes]:
    for piece in pieces():
        yield piece


def test_what_can_be_read_only_once_is_refused_and_nothing_is_sent(call: Calls, server: RawServer) -> None:
    with pytest.raises(UnsignableRequest, match="read only once"):
        call(server.url, "POST", content=pieces())
    assert server.seen == []


def test_an_asynchronous_stream_is_refused_and_nothing_is_sent(async_call: Calls, server: RawServer) -> None:
    with pytest.raises(UnsignableRequest, match="read only once"):
        async_call(server.url, "POST", content=asynchronous_pieces())
    assert server.seen == []


def test_a_synchronous_client_says_that_it_cannot_send_an_asynchronous_stream(
    caller: Service, server: RawServer
) -> None:
    with pytest.raises(UnsignableRequest, match="AsyncClient"):
        Synchronous(caller)(server.url, "POST", {"buffer": True}, content=asynchronous_pieces())


@pytest.mark.parametrize("stream", [pieces, asynchronous_pieces])
def test_a_stream_is_kept_in_memory_where_that_is_asked_for(
    async_call: Calls, server: RawServer, stream: Callable[[], Any]
) -> None:
    server.script[:] = [REPLAYED]
    async_call(server.url, "PUT", {"buffer": True}, content=stream())
    assert [seen.body for seen in server.seen] == [b"one two"] * 2
    for seen in server.seen:
        assert "transfer-encoding" not in seen.headers
        assert_signed_as_seen(seen)


def test_a_body_is_kept_up_to_a_limit(call: Calls, server: RawServer) -> None:
    limited = {"buffer": True, "max_buffer": 1000}
    call(server.url, "PUT", limited, content=(b"x" for _ in range(1000)))
    for too_long in ((b"x" for _ in iter(int, 1)), io.BytesIO(b"x" * 1001)):
        with pytest.raises(UnsignableRequest, match="max_buffer, 1000 bytes"):
            call(server.url, "PUT", limited, content=too_long)
    call(server.url, "PUT", limited, content=b"x" * 2000)
    assert [len(seen.body) for seen in server.seen] == [1000, 2000]


# ---- headers


def test_the_transaction_and_the_request_id_go_along(call: Calls, server: RawServer) -> None:
    with carrying(TRANSACTION), serving("request-1"):
        call(server.url)
    assert only(server).headers["txn-token"] == ["the.users.token"]
    assert only(server).claims["headers"] == {"txn-token": "the.users.token"}
    assert only(server).headers["x-request-id"] == ["request-1"]


def test_headers_that_the_application_lists_are_bound_as_they_are_read(call: Calls, server: RawServer) -> None:
    headers = {"X-Tenant": "k\u00f6ln".encode("latin-1")}
    call(server.url, signing={"bind_headers": ("X-Tenant", "Accept", "X-Absent")}, headers=headers)
    assert only(server).claims["headers"] == {"x-tenant": "köln", "accept": "*/*"}
    assert only(server).headers["x-tenant"] == ["köln"]


def test_blanks_around_a_bound_value_are_neither_signed_nor_sent(call: Calls, server: RawServer) -> None:
    call(server.url, "POST", content=b"{}", headers={"Content-Type": "application/json "})
    assert only(server).headers["content-type"] == ["application/json"]
    assert_signed_as_seen(only(server))


def test_a_bound_header_with_two_values_is_not_sent(call: Calls, server: RawServer) -> None:
    with pytest.raises(UnsignableRequest, match="two values"):
        call(server.url, signing={"bind_headers": ("x-a",)}, headers=[("X-A", "1"), ("X-A", "2")])
    assert server.seen == []


def test_a_value_of_the_applications_own_is_not_replaced(call: Calls, server: RawServer) -> None:
    with pytest.raises(UnsignableRequest, match="of its own for Authorization"):
        call(server.url, headers={"Authorization": "Basic dTpw"})
    assert server.seen == []


def test_the_token_may_travel_in_another_header(call: Calls, server: RawServer) -> None:
    call(server.url, signing={"header": "X-Peer-Token"}, headers={"Authorization": "Basic dTpw"})
    assert only(server).authorization == "Basic dTpw"
    assert only(server).headers["x-peer-token"][0].startswith("Bearer ey")


def test_ctx_of_the_client_and_of_a_call_is_signed(call: Calls, server: RawServer) -> None:
    call(server.url, signing={"ctx": {"a": 1, "b": 2}})
    call(server.url, signing={"ctx": {"a": 1, "b": 2}}, extensions={CTX: {"b": 3}})
    assert [seen.claims["ctx"] for seen in server.seen] == [{"a": 1, "b": 2}, {"a": 1, "b": 3}]


@pytest.mark.parametrize("ctx", [{"a": "x" * 2000}, [], {"a": object()}])
def test_ctx_that_does_not_fit_a_token_is_refused(call: Calls, server: RawServer, ctx: Any) -> None:
    with pytest.raises(UnsignableRequest):
        call(server.url, extensions={CTX: ctx})
    assert server.seen == []


def test_ctx_for_another_origin_is_refused(caller: Service, server: RawServer) -> None:
    with raw_server() as other, httpx.Client(auth=Auth(caller, "callee", server.url), verify=PLAIN) as client:
        with pytest.raises(UnsignableRequest, match="another origin"):
            client.get(other.url, extensions={CTX: {"a": 1}})
        assert other.seen == []


# ---- attempts and redirects


def test_a_request_that_a_proxy_sent_twice_is_signed_and_sent_once_more(call: Calls, server: RawServer) -> None:
    server.script[:] = [REPLAYED]
    assert call(server.url).status_code == 200
    first, second = server.seen
    assert first.claims["jti"] != second.claims["jti"]


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("POST", REPLAYED),
        ("GET", Answer(401, PROBLEM, b'{"code": "expired"}')),
        ("GET", Answer(401, PROBLEM, b'{"code": "replayed"' + b" " * 5000 + b"}")),
        ("GET", Answer(401, {}, b'{"code": "replayed"}')),
        ("GET", Answer(401, PROBLEM, b"[" * 4000)),
        ("GET", Answer(403, PROBLEM, b'{"code": "replayed"}')),
    ],
)
def test_other_refusals_are_the_answer(call: Calls, server: RawServer, method: str, answer: Answer) -> None:
    server.script[:] = [answer]
    response = call(server.url, method)
    assert (response.status_code, response.content) == (answer.status, answer.body)
    assert len(server.seen) == 1


def test_a_redirect_is_not_followed_unless_asked_for_and_names_no_token(call: Calls, server: RawServer) -> None:
    server.script[:] = [Answer(302, {"Location": "/there"})]
    with carrying(TRANSACTION):
        response = call(server.url)
    assert response.status_code == 302
    for request in (response.request, response.next_request):
        assert request is not None
        assert not {"authorization", "txn-token"} & request.headers.keys()
    assert len(server.seen) == 1


@pytest.mark.parametrize(("status", "method"), [(302, "GET"), (307, "PUT")])
def test_each_redirect_within_the_origin_is_signed(call: Calls, server: RawServer, status: int, method: str) -> None:
    server.script[:] = [Answer(status, {"Location": "/a"}), Answer(status, {"Location": f"{server.url}/b?c"})]
    response = call(server.url, "PUT", {"follow_redirects": True}, content=b"x", extensions={CTX: {"a": 1}})
    assert [seen.target for seen in server.seen] == ["/", "/a", "/b?c"]
    assert [seen.line.split()[0] for seen in server.seen] == ["PUT", method, method]
    assert len({seen.claims["jti"] for seen in server.seen}) == 3
    for seen in server.seen:
        assert_signed_as_seen(seen)
        assert seen.claims["ctx"] == {"a": 1}
    assert [old.status_code for old in response.history] == [status, status]


def test_a_redirect_to_another_origin_takes_no_proof_along(call: Calls, server: RawServer) -> None:
    with raw_server() as other, carrying(TRANSACTION), serving("r1"):
        server.script[:] = [Answer(307, {"Location": f"{other.url}/x"})]
        call(server.url, "PUT", {"follow_redirects": True, "header": "X-Peer-Token"}, content=b"x")
        assert only(other).body == b"x"
        assert not {"x-peer-token", "authorization", "txn-token", "x-request-id"} & only(other).headers.keys()


def test_another_origin_cannot_choose_what_is_signed(call: Calls, server: RawServer) -> None:
    with raw_server(Answer(302, {"Location": f"{server.url}/admin"})) as other:
        server.script[:] = [Answer(302, {"Location": other.url})]
        with pytest.raises(UnsignableRequest, match="another origin redirects"):
            call(server.url, signing={"follow_redirects": True})
    assert [seen.target for seen in server.seen] == ["/"]


def test_redirects_end(call: Calls, server: RawServer) -> None:
    server.script[:] = [Answer(302, {"Location": "/"})] * 30
    with pytest.raises(httpx.TooManyRedirects):
        call(server.url, signing={"follow_redirects": True})
    assert len(server.seen) == 21


def test_a_client_that_follows_redirects_itself_is_told_to_leave_that(caller: Service, server: RawServer) -> None:
    server.script[:] = [Answer(302, {"Location": "/there"})]
    with pytest.raises(UnsignableRequest, match="leave follow_redirects of the client off"):
        httpx.get(server.url, auth=Auth(caller, "callee", server.url), follow_redirects=True)


class FollowsItself(Synchronous):
    """`Auth` in an httpx.Client that follows redirects."""

    def __call__(self, url: str, method: str = "GET", signing: Options | None = None, **request: Any) -> httpx.Response:
        return super().__call__(url, method, signing, follow_redirects=True, **request)


class FollowsItselfAsync(Asynchronous):
    """`Auth` in an httpx.AsyncClient that follows redirects."""

    def __call__(self, url: str, method: str = "GET", signing: Options | None = None, **request: Any) -> httpx.Response:
        return super().__call__(url, method, signing, follow_redirects=True, **request)


@pytest.mark.parametrize("way", [FollowsItself, FollowsItselfAsync])
@pytest.mark.parametrize("status", [302, 307])
def test_a_client_that_follows_redirects_itself_sends_nothing_to_another_origin(
    caller: Service, server: RawServer, way: type[Calls], status: int
) -> None:
    with raw_server() as other, carrying(TRANSACTION), serving("r1"):
        server.script[:] = [Answer(status, {"Location": f"{other.url}/x"})]
        with pytest.raises(UnsignableRequest, match="leave follow_redirects of the client off"):
            way(caller)(server.url, "PUT", {"header": "X-Peer-Token"}, content=b"x")
        assert other.seen == []
    assert {"x-peer-token", "txn-token", "x-request-id"} <= only(server).headers.keys()


def test_the_trace_of_an_application_goes_on(caller: Service, server: RawServer) -> None:
    events = list[str]()

    async def trace(event: str, _: Any) -> None:
        events.append(event)

    server.script[:] = [Answer(200), Answer(200)]
    Synchronous(caller)(server.url, extensions={"trace": lambda event, _: events.append(event)})
    InSession(caller)(server.url, extensions={"trace": trace})
    assert events.count("http11.send_request_headers.started") == 2


def test_a_signed_request_goes_through_a_proxy(caller: Service, server: RawServer) -> None:
    """The proxy of http gets the whole URL."""
    server.script[:] = [Answer(200), Answer(302, {"Location": "http://other.test/"})]
    auth = Auth(caller, "callee", "http://callee.test:8080")
    with httpx.Client(auth=auth, proxy=server.url, verify=PLAIN) as client:
        assert client.get("http://callee.test:8080/a").status_code == 200
        with pytest.raises(UnsignableRequest):
            client.get("http://callee.test:8080/a", follow_redirects=True)
    assert [seen.target for seen in server.seen] == ["http://callee.test:8080/a"] * 2


# ---- refusals

FORBIDDEN = b'{"type":"about:blank","title":"Forbidden","status":403,"code":"insufficient_scope"}'
REFUSED = Answer(403, PROBLEM | {"X-Request-Id": "req-42"}, FORBIDDEN)


def test_a_refusal_is_a_typed_value(call: Calls, server: RawServer) -> None:
    server.script[:] = [REFUSED]
    response = call(server.url)
    assert refusal_of(response) == PeerRefusal(403, "insufficient_scope", "Forbidden", None, "req-42")
    assert response.content == FORBIDDEN


def test_a_refusal_of_a_stream_is_a_typed_value_and_the_body_can_still_be_read(
    caller: Service, server: RawServer
) -> None:
    server.script[:] = [REFUSED]
    client = httpx.Client(auth=Auth(caller, "callee", server.url), verify=PLAIN)
    with client, client.stream("GET", server.url) as response:
        refusal = refusal_of(response)
        assert b"".join(response.iter_bytes()) == FORBIDDEN
    assert refusal is not None
    assert refusal.code == "insufficient_scope"


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, PROBLEM, FORBIDDEN),
        Answer(403, {"Content-Type": "application/json"}, FORBIDDEN),
        Answer(404, PROBLEM, b'{"title":"Not Found"}'),
        Answer(404, PROBLEM, b'{"code":"x","code":"y"}'),
        Answer(404, PROBLEM, b'{"code":"x","detail":"' + b"x" * 5000 + b'"}'),
    ],
    ids=["no error", "no problem", "no code", "two codes", "too long"],
)
def test_every_other_answer_is_no_refusal(call: Calls, server: RawServer, answer: Answer) -> None:
    server.script[:] = [answer]
    response = call(server.url)
    assert refusal_of(response) is None
    assert response.content == answer.body


def test_another_origin_refuses_nothing_in_the_name_of_the_callee(call: Calls, server: RawServer) -> None:
    with raw_server(REFUSED) as other:
        server.script[:] = [Answer(302, {"Location": other.url})]
        response = call(server.url, signing={"follow_redirects": True})
    assert response.status_code == 403
    assert refusal_of(response) is None
    assert refusal_of(httpx.Response(403, headers=PROBLEM, content=FORBIDDEN)) is None


# ---- broken connections


def test_a_broken_connection_is_an_error_of_httpx(call: Calls, server: RawServer) -> None:
    server.script[:] = [RESET]
    with pytest.raises(httpx.ReadError):
        call(server.url)


# ---- with a real callee


def test_a_protected_application_accepts_the_calls() -> None:
    async def echo(scope: Any, receive: Any, send: Any) -> None:
        body = (await receive())["body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body + peerseal.asgi.current_peer().service.encode()})

    async def calls(client: peerseal.Identity, transport: httpx.ASGITransport) -> list[httpx.Response]:
        async with client.async_session("resource-service", "http://callee.test/api", transport=transport) as session:
            return [
                await session.get("/a b?q=ü%2f"),
                await session.post("c", json={"a": 1}),
                await session.put("/d", content=b"\x00", headers={"Content-Type": "text/plain"}),
            ]

    with MemoryRegistry() as registry:
        callee, client = registry.identity("resource-service"), registry.identity("client-service")
        app = peerseal.asgi.PeerAuth(echo, callee, allow={"client-service": ()})
        answers = asyncio.run(calls(client, httpx.ASGITransport(app)))
    assert [answer.status_code for answer in answers] == [200, 200, 200]
    assert [answer.content for answer in answers] == [b"client-service", b'{"a":1}client-service', b"\0client-service"]


def test_the_page_runs_and_each_of_its_calls_is_signed(server: RawServer) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (Path(peerseal.__file__).parents[1] / PAGE).read_text(), re.DOTALL)
    with MemoryRegistry() as registry:
        names = {"identity": registry.identity("client-service")}
        for block in blocks:
            exec(block.replace("http://resource-service:8080", server.url), names)
    assert [seen.target for seen in server.seen] == [
        "/profiles/42",
        "/orders",
        "/export",
        "/profiles/42",
        "/profiles/42",
    ]
    assert [seen.claims.get("ctx") for seen in server.seen] == [None, {"purpose": "support"}, None, None, None]
    assert [seen.claims["headers"].get("x-tenant") for seen in server.seen] == [None, None, None, "acme", None]
