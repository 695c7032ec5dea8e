"""The ASGI adapter under real uvicorn, with either of its parsers: attacks in HTTP's own terms, over raw sockets.

Each refusal has its code and records nothing: the token of a refused call is still good for the call that it was made
for.
"""

import contextlib
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pytest
import uvicorn

from peerseal import Identity, User
from peerseal.asgi import PUBLIC, Need, PeerAuth, current_peer
from peerseal.testing import MemoryRegistry
from tests.support.asgi import user
from tests.support.wire import RawAnswer, raw_request

pytestmark = pytest.mark.e2e

LOOPBACK = "127.0.0.1"
BODY = b'{"item": 7}'
BIG = b"x" * 99_000
JSON = ("Content-Type", "application/json")
CHUNKED = ("Transfer-Encoding", "chunked")
NEEDS = {"/": Need("use"), "/health": PUBLIC, "/admin": Need("admin")}


def known() -> str | None:
    """The caller, where there is one."""
    try:
        return current_peer().service
    except RuntimeError:
        return None


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Says what it was asked for, by whom and for whom."""
    body, more = b"", True
    while more:
        event = await receive()
        body, more = body + event.get("body", b""), event.get("more_body", False)
    said = {"path": scope["path"], "body": body.decode(), "user": user(), "caller": known()}
    answer = json.dumps(said).encode()
    headers = [(b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


class Site:
    """The service ``callee`` on a socket, and a caller that may use it."""

    def __init__(self, registry: MemoryRegistry, parser: str, root_path: str = "") -> None:
        self.caller = registry.identity("client")
        self.outside: list[tuple[str | None, str | None]] = []
        self.auth = PeerAuth(
            echo, registry.identity("callee"), allow={"client": {"use"}}, needs=NEEDS, max_body=100_000
        )
        config = uvicorn.Config(
            self.outermost, http=parser, root_path=root_path, interface="asgi3", log_level="critical"
        )
        self._server = uvicorn.Server(config)
        self._listener = socket.create_server((LOOPBACK, 0))
        self.address: tuple[str, int] = self._listener.getsockname()
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],), daemon=True)
        self._thread.start()

    async def outermost(self, scope: Any, receive: Any, send: Any) -> None:
        """What stands before the gate must not meet the user or the caller of another request."""
        self.outside.append((user(), known()))
        await self.auth(scope, receive, send)
        self.outside.append((user(), known()))

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)

    def token(
        self, target: str = "/echo", *, method: str = "GET", body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> str:
        bound = {"content-type": "application/json"} if body and headers is None else dict(headers or {})
        return self.caller.sign_request("callee", method=method, target=target, body=body, headers=bound)

    def send(
        self, token: str | None, *more: tuple[str, str], target: str = "/echo", method: str = "GET", body: bytes = b""
    ) -> RawAnswer:
        """One request with the token; ``more`` are headers, Content-Length among them."""
        pairs = (("Authorization", f"Bearer {token}"), *more) if token is not None else more
        return raw_request(self.address, target, method=method, headers=pairs, body=body)

    def raw(self, data: bytes) -> bytes:
        """All that comes back for these bytes."""
        with socket.create_connection(self.address, timeout=10) as connection:
            connection.sendall(data)
            with contextlib.suppress(ConnectionError):
                return b"".join(iter(lambda: connection.recv(65536), b""))
        return b""


@pytest.fixture(scope="module")
def registry() -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as registry:
        registry.set_domain(minters=["client"])
        yield registry


@pytest.fixture(scope="module", params=["h11", "httptools"])
def site(request: pytest.FixtureRequest, registry: MemoryRegistry) -> Iterator[Site]:
    site = Site(registry, request.param)
    with contextlib.closing(site):
        yield site
    assert set(site.outside) == {(None, None)}


def length(body: bytes) -> tuple[str, str]:
    return "Content-Length", str(len(body))


def in_chunks(body: bytes, size: int = 3) -> bytes:
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in [*pieces, b""])


class Sent(NamedTuple):
    """What is put onto the wire with a token that was made for something else; ``code`` None: the server refuses it."""

    target: str = "/a/b?x=1&y=2"
    method: str = "POST"
    headers: tuple[tuple[str, str], ...] = (JSON, length(BODY))
    body: bytes = BODY
    code: str | None = "wrong_binding"


HONEST = Sent(code="")

ATTACKS: Mapping[str, Sent] = {
    **{
        f"target {target}": Sent(target)
        for target in (
            *("/a/c?x=1&y=2", "/a/b", "/a/b?x=1", "/a/b?y=2&x=1", "/a/b?x=1&y=2&", "/a/b/?x=1&y=2", "/A/b?x=1&y=2"),
            *("/a//b?x=1&y=2", "//a/b?x=1&y=2", "/a/./b?x=1&y=2", "/a/x/../b?x=1&y=2", "/a/%2e%2e/a/b?x=1&y=2"),
            *("/%61/b?x=1&y=2", "/a%2fb?x=1&y=2", "/a%2Fb?x=1&y=2", "/a;v=1/b?x=1&y=2", "/a/b?x=%31&y=2"),
            *("/a/b%3fx=1&y=2", "/a/b?x=1&y=2%20", "/a/b?x=1&y=2?", "/a/b%00?x=1&y=2", "/a/b%0A?x=1&y=2"),
        )
    },
    **{f"method {method}": Sent(method=method) for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS")},
    "a target beyond ASCII": Sent("/\xe9", code=None),
    "a blank in the target": Sent("/a /b", code=None),
    "one byte of the body": Sent(body=BODY.replace(b"7", b"8")),
    "no body": Sent(headers=(JSON, length(b"")), body=b""),
    "a longer body": Sent(headers=(JSON, length(BODY * 2)), body=BODY * 2),
    "another body in chunks": Sent(headers=(JSON, CHUNKED), body=in_chunks(BODY + b"!")),
    "chunks that are none": Sent(headers=(JSON, CHUNKED), body=b"zz\r\n{}\r\n0\r\n\r\n", code=None),
    "two lengths": Sent(headers=(JSON, length(BODY), ("Content-Length", "12")), code=None),
    "a body over the limit": Sent(headers=(JSON, length(BIG * 2)), body=b"", code="content_too_large"),
    "another content type": Sent(headers=(("Content-Type", "text/plain"), length(BODY))),
    "no content type": Sent(headers=(length(BODY),)),
    "two content types": Sent(headers=(JSON, JSON, length(BODY))),
    "a content coding": Sent(headers=(JSON, ("Content-Encoding", "gzip"), length(BODY))),
    "a second Authorization": Sent(headers=(JSON, length(BODY), ("Authorization", "Bearer x")), code="malformed_token"),
    "and an empty one": Sent(headers=(JSON, length(BODY), ("Authorization", "")), code="malformed_token"),
    "a transaction token that is not bound": Sent(
        headers=(JSON, length(BODY), ("Txn-Token", "x.y.z")), code="bad_transaction_token"
    ),
    "a line that is folded": Sent(headers=(JSON, ("X-A", "b\r\nX c"), length(BODY)), code=None),
    "a blank before the colon": Sent(headers=(JSON, ("X-A ", "b"), length(BODY)), code=None),
}


@pytest.mark.parametrize("sent", ATTACKS.values(), ids=ATTACKS)
def test_another_request_than_was_signed_is_refused_and_records_nothing(site: Site, sent: Sent) -> None:
    token = site.token(HONEST.target, method=HONEST.method, body=HONEST.body)
    answer = site.send(token, *sent.headers, target=sent.target, method=sent.method, body=sent.body)
    if sent.code is None:
        assert (answer.status, answer.code) == (400, None), "by the server itself"
    else:
        assert answer.code == sent.code
        assert token.split(".")[2].encode() not in answer.body
    good = site.send(token, *HONEST.headers, target=HONEST.target, method=HONEST.method, body=HONEST.body)
    assert (good.status, json.loads(good.body)["body"]) == (200, BODY.decode())


@pytest.mark.parametrize("target", ["/a%2fb", "/%7ea", "/a;v=1", "/%C3%A9", "/a%252fb", "/a|b", "/a?b?c", "/a?%ff"])
def test_odd_target_is_good_as_it_was_signed(site: Site, target: str) -> None:
    assert site.send(site.token(target), target=target).status == 200


@pytest.mark.parametrize("target", ["/%ff", "/%C3"])
def test_a_path_that_is_no_text_is_refused_even_as_it_was_signed(site: Site, target: str) -> None:
    """ASGI's paths are text, so the adapter cannot tell what was routed."""
    assert site.send(site.token(target), target=target).code == "wrong_binding"


@pytest.mark.parametrize("target", ["http://evil.test/echo", "https://callee/echo", "/echo#x", "/echo?#x", "/echo?"])
def test_what_a_parser_leaves_out_of_a_target_leads_nowhere_else(site: Site, target: str) -> None:
    """httptools tells neither the origin nor the fragment, and ASGI no lone question mark. No one routes by them."""
    answer = site.send(site.token("/echo"), target=target)
    assert answer.code == "wrong_binding" or json.loads(answer.body)["path"] == "/echo"
    for elsewhere in (target.replace("/echo", "/other"), "*", "/other#/echo"):
        assert site.send(site.token("/echo"), target=elsewhere).code == "wrong_binding"


def test_public_paths_are_open_and_everything_else_says_nothing(site: Site) -> None:
    assert site.send(None, target="/health").status == 200
    for target in ("/echo", "/no/such", "/health/../echo", "/healthz", "/health%0A", "//health", "/health%2f..%2fecho"):
        assert site.send(None, target=target).code == "missing_token"


@pytest.mark.parametrize("body", [BODY, BIG], ids=["small", "big"])
@pytest.mark.parametrize("chunked", [False, True])
def test_the_body_arrives_as_it_was_signed(site: Site, body: bytes, chunked: bool) -> None:
    token = site.token(method="POST", body=body)
    how, wire = (CHUNKED, in_chunks(body, 7_000)) if chunked else (length(body), body)
    answer = site.send(token, JSON, how, method="POST", body=wire)
    assert json.loads(answer.body)["body"].encode() == body


def test_a_length_beside_chunks_is_no_way_to_another_body(site: Site) -> None:
    token = site.token(method="POST", body=BODY)
    answer = site.send(token, JSON, length(BODY), CHUNKED, method="POST", body=in_chunks(BODY + b"!"))
    assert answer.status in (400, 401)


def test_chunks_over_the_limit_are_not_read_to_their_end(site: Site) -> None:
    before = site.auth.refusals["content_too_large"]
    with contextlib.suppress(ConnectionResetError):  # hung up on while it still sends
        site.send(
            site.token(method="POST", body=BIG * 9), JSON, CHUNKED, method="POST", body=in_chunks(BIG * 9, 50_000)
        )
    assert site.auth.refusals["content_too_large"] == before + 1


def test_a_token_is_good_once(site: Site) -> None:
    token = site.token()
    assert [site.send(token).status for _ in range(2)] == [200, 401]


def test_a_scope_that_the_caller_has_not(site: Site) -> None:
    for target in ("/admin", "/admin/x", "/admin%0A", "/a/../admin"):
        answer = site.send(site.token(target), target=target)
        assert (answer.status, answer.code) == (403, "insufficient_scope")
        assert answer.headers["www-authenticate"] == 'Bearer error="insufficient_scope"'


def test_a_request_hidden_in_a_refused_body(site: Site) -> None:
    """A refused call's body, which was not read, must not be taken for the next request on its connection."""
    hidden = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
    head = b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(hidden)
    last = b"GET /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    answers = site.raw(head + hidden + last)
    assert answers.startswith(b"HTTP/1.1 401")
    assert b"HTTP/1.1 200" not in answers


def minted(client: Identity, name: str) -> str:
    proven = User(name, "https://login.example.com", frozenset(("use",)), "u", 2**40, {})
    return client.mint_transaction(proven, scope=["use"]).carry()


def test_users_on_one_connection_do_not_mix(site: Site) -> None:
    """Pipelined, uvicorn starts each request within the one before: context variables go along."""
    tokens = [minted(site.caller, "ada"), None, minted(site.caller, "grace"), None, None]
    lines = []
    for at, transaction in enumerate(tokens):
        headers = {} if transaction is None else {"txn-token": transaction}
        authorization = f"Bearer {site.token(headers=headers)}" if at < 4 else "Basic YTpi"
        more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        end = "Connection: close\r\n" if at == len(tokens) - 1 else ""
        path = "/health" if at == 4 else "/echo"
        lines.append(f"GET {path} HTTP/1.1\r\nHost: a\r\nAuthorization: {authorization}\r\n{more}{end}\r\n")
    answers = site.raw("".join(lines).encode()).split(b"HTTP/1.1 200")[1:]
    users = [json.loads(answer.partition(b"\r\n\r\n")[2])["user"] for answer in answers]
    assert users == ["ada", None, "grace", None, None]


@pytest.mark.parametrize("parser", ["h11", "httptools"])
def test_a_root_path_is_the_prefix_that_callers_sign(registry: MemoryRegistry, parser: str) -> None:
    with contextlib.closing(Site(registry, parser, root_path="/api")) as site:
        assert site.send(site.token("/api/echo"), target="/echo").status == 200
        assert site.send(site.token("/echo"), target="/echo").code == "wrong_binding"
        assert site.send(site.token("/api/admin"), target="/admin").code == "insufficient_scope"
        assert site.send(None, target="/health").status == 200
