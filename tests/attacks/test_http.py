"""Attacks in HTTP's own terms, over raw sockets, on a real gunicorn: headers twice, targets in other forms, bodies that
come otherwise than they were signed.

Every refusal has its code, echoes nothing and records nothing: the token of a refused call is still good for the call
that it was made for.
"""

import contextlib
import gzip
import json
import os
import socket
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.support.processes import LOOPBACK, Server, free_port, gunicorn
from tests.support.wire import Keys, RawAnswer, Service, raw_request
from tests.support.wire_app import CALLEE, CALLER

pytestmark = pytest.mark.e2e

JSON = ("Content-Type", "application/json")
BODY = b'{"item": 7}'


class Site(NamedTuple):
    """The server under attack, and a caller that may call it."""

    server: Server
    caller: Service

    @property
    def address(self) -> tuple[str, int]:
        return LOOPBACK, int(self.server.url.rpartition(":")[2])

    def token(self, target: str = "/echo", *, method: str = "GET", body: bytes = b"", **claims: object) -> str:
        headers = {"content-type": "application/json"} if body else {}
        return self.caller.sign_request(CALLEE, method=method, target=target, body=body, headers=headers, **claims)

    def send(
        self, token: str | None, *more: tuple[str, str], target: str = "/echo", method: str = "GET", body: bytes = b""
    ) -> RawAnswer:
        """One request with the token; ``more`` are headers, Content-Length among them."""
        pairs = (("Authorization", f"Bearer {token}"), *more) if token is not None else more
        return raw_request(self.address, target, method=method, headers=pairs, body=body)

    def post(self, token: str, *more: tuple[str, str], body: bytes = BODY, target: str = "/echo") -> RawAnswer:
        """One POST of the body as it is."""
        length = ("Content-Length", str(len(body)))
        return self.send(token, *(more or (JSON,)), length, target=target, method="POST", body=body)

    def raw(self, data: bytes) -> bytes:
        """All that comes back for these bytes."""
        with socket.create_connection(self.address, timeout=10) as connection:
            connection.sendall(data)
            with contextlib.suppress(TimeoutError):
                return b"".join(iter(lambda: connection.recv(65536), b""))
        raise AssertionError("the server keeps the connection")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder, port = tmp_path_factory.mktemp("attacked"), free_port()
    caller = Service(CALLER, Keys(), now=int(time.time()))
    server = gunicorn(
        "attacked",
        "tests.support.wire_app:create_app()",
        port=port,
        log=folder / "log",
        settings={"WIRE_CALLER": json.dumps(dict(caller.pair.public.jwk)), "PYTHONPATH": os.curdir},
        workers=1,
    )
    with server:
        yield Site(server.wait_until_answers(f"{server.url}/health"), caller)
        log = server.output()
        assert "Traceback" not in log
        assert "eyJ" not in log, "a token, or a part of one, is in the log"


def assert_refused(answer: RawAnswer, code: str, token: str = "") -> None:
    assert (answer.status, answer.code) == (401, code)
    expected = "Bearer" if code == "missing_token" else 'Bearer error="invalid_token"'
    assert answer.headers["www-authenticate"] == expected
    assert answer.headers["cache-control"] == "no-store"
    assert set(json.loads(answer.body)) == {"type", "title", "status", "code"}
    for part in token.split("."):
        assert not part or part.encode() not in answer.body


def assert_refused_by_the_server(answer: RawAnswer) -> None:
    """By gunicorn itself, which saw no request in it."""
    assert answer.status in (400, 414, 431, 501)
    assert answer.code is None


def test_the_honest_calls_are_accepted(site: Site) -> None:
    assert json.loads(site.send(site.token()).body)["caller"] == CALLER
    answer = site.post(site.token(method="POST", body=BODY))
    assert (answer.status, json.loads(answer.body)["body"]) == (200, BODY.decode())


# ---- where the token stands


def test_no_token(site: Site) -> None:
    assert_refused(site.send(None), "missing_token")
    assert site.send(None, target="/health").status == 200


@pytest.mark.parametrize("scheme", ["Basic", "Digest", "DPoP", "Token", "BearerX", "Bearer\t", "", "JWT"])
def test_other_scheme(site: Site, scheme: str) -> None:
    token = site.token()
    assert_refused(site.send(None, ("Authorization", f"{scheme} {token}".strip())), "missing_token", token)


def test_token_in_other_places(site: Site) -> None:
    token = site.token()
    elsewhere = [
        *(("Proxy-Authorization", f"Bearer {token}"), ("X-Forwarded-Authorization", f"Bearer {token}")),
        *(("Cookie", f"Authorization=Bearer {token}; access_token={token}"), ("X-Authorization", f"Bearer {token}")),
        *(("HTTP_AUTHORIZATION", f"Bearer {token}"), ("Authorization_", f"Bearer {token}"), ("Txn-Token", token)),
    ]
    for pair in elsewhere:
        assert_refused(site.send(None, pair), "missing_token", token)
    in_the_query = f"/echo?access_token={token}"
    assert_refused(site.send(None, target=in_the_query), "missing_token", token)
    assert site.send(token).status == 200


@pytest.mark.parametrize("empty", ["Bearer", "Bearer ", "Bearer  ", "bearer"])
def test_scheme_without_a_token(site: Site, empty: str) -> None:
    assert_refused(site.send(None, ("Authorization", empty)), "malformed_token")


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "Bearer "])
def test_scheme_is_read_as_rfc_6750_says(site: Site, scheme: str) -> None:
    assert site.send(None, ("authorization", f"{scheme} {site.token()}")).status == 200


def test_two_authorization_headers(site: Site) -> None:
    one, two = site.token(), site.token()
    basic = ("Authorization", "Basic YTpi")
    for first, second in ((one, one), (one, two), (one, ""), ("", one), (one, f"{two[:-8]}AAAAAAAA")):
        pairs = [("Authorization", f"Bearer {token}") for token in (first, second)]
        assert_refused(site.send(None, *pairs), "malformed_token", one)
    for pairs in ([("Authorization", f"Bearer {one}"), basic], [basic, ("Authorization", f"Bearer {one}")]):
        assert_refused(site.send(None, *pairs), "malformed_token", one)
    assert [site.send(token).status for token in (one, two)] == [200, 200]


@pytest.mark.parametrize("between", [",", ", ", " ", ", Bearer ", ";", "\t", ",,"])
def test_two_tokens_in_one_header(site: Site, between: str) -> None:
    one, two = site.token(), site.token()
    assert_refused(site.send(f"{one}{between}{two}"), "malformed_token", one)
    assert site.send(two).status == 200


def test_comma_after_the_token(site: Site) -> None:
    token = site.token()
    assert_refused(site.send(f"{token},"), "malformed_token", token)
    assert site.send(token).status == 200


def test_long_tokens(site: Site) -> None:
    """8 kB reach the verifier; what is longer, up to 1 MB, is refused by the server."""
    assert_refused(site.send("A" * 8000), "malformed_token")
    assert_refused(site.send(site.token() + "A" * 6000), "malformed_token")
    for size in (8200, 100_000):
        assert_refused_by_the_server(site.send("A" * size))
    with contextlib.suppress(OSError):  # the server hangs up before all of it is sent
        assert_refused_by_the_server(site.send("A" * 1_000_000))
    assert site.send(site.token()).status == 200


@pytest.mark.parametrize("odd", ["\xe9", "\xff", "%00", '"', "\\", "\x80"])
def test_odd_characters_in_the_token(site: Site, odd: str) -> None:
    token = site.token()
    assert_refused(site.send(f"{token[:20]}{odd}{token[20:]}"), "malformed_token")


@pytest.mark.parametrize("odd", ["\0", "\r", "\n ", "\r\n ", "\r\nX: y\r\n "])
def test_control_characters_in_the_header(site: Site, odd: str) -> None:
    """Folded lines, bare CR and LF, and NUL (RFC 9112 sections 2.2 and 5.2)."""
    token = site.token()
    assert_refused_by_the_server(site.send(f"{token[:20]}{odd}{token[20:]}"))
    assert site.send(token).status == 200


def test_blank_before_the_colon(site: Site) -> None:
    token = site.token()
    assert_refused_by_the_server(site.send(None, ("Authorization ", f"Bearer {token}")))
    assert_refused_by_the_server(site.send(None, ("X: y\r\n Authorization", f"Bearer {token}")))


# ---- the target


def test_other_spellings_of_the_target(site: Site) -> None:
    token = site.token("/a/b?x=1&y=2")
    for target in (
        *(
            "/a/c?x=1&y=2",
            "/a/b?x=1",
            "/a/b?y=2&x=1",
            "/a/b?x=1&y=2&",
            "/a//b?x=1&y=2",
            "//a/b?x=1&y=2",
            "/a/b/?x=1&y=2",
        ),
        *("/%61/b?x=1&y=2", "/a%2fb?x=1&y=2", "/a%2Fb?x=1&y=2", "/a/./b?x=1&y=2", "/a/x/../b?x=1&y=2", "/A/b?x=1&y=2"),
        *("/a/%2e%2e/a/b?x=1&y=2", "/a;v=1/b?x=1&y=2", "/a/b?x=%31&y=2", "/a/b%3fx=1&y=2", "/a/b?x=1&y=2%20"),
    ):
        assert_refused(site.send(token, target=target), "wrong_binding", token)
    assert site.send(token, target="/a/b?x=1&y=2").status == 200


@pytest.mark.parametrize(
    "path",
    ["/a%2fb", "/a%2Fb", "/%7ea", "/a//b", "//a", "/a/../b", "/a/%2e%2e/b", "/a;v=1", "/%C3%A9", "/%ff", "/a%252fb"],
)
def test_odd_target_is_good_as_it_was_signed(site: Site, path: str) -> None:
    answer = site.send(site.token(path), target=path)
    assert (answer.status, json.loads(answer.body)["raw"]) == (200, path)


def test_absolute_form(site: Site) -> None:
    token = site.token()
    host, port = site.address
    for origin in (f"http://{host}:{port}", "http://evil.test", "https://wire.test", "http://"):
        assert site.send(token, target=f"{origin}/echo").status in (400, 401)
        signed = site.token(f"{origin}/echo")
        assert_refused(site.send(signed, target=f"{origin}/echo"), "wrong_binding", signed)
    assert site.send(token).status == 200


def test_fragment_in_the_target(site: Site) -> None:
    token = site.token()
    for target in ("/echo#a", "/echo#", "/echo?#a", "/other#/echo"):
        assert_refused(site.send(token, target=target), "wrong_binding", token)
        signed = site.token(target)
        assert_refused(site.send(signed, target=target), "wrong_binding", signed)
    assert site.send(token).status == 200


@pytest.mark.parametrize("target", ["*", "wire.test:443", "echo", "\\echo", "?", "/ec ho", "/echo\x01", "/\xe9"])
def test_target_that_is_none(site: Site, target: str) -> None:
    token = site.token()
    for method in ("GET", "OPTIONS", "CONNECT"):
        assert site.send(token, target=target, method=method).status in (400, 401)
    assert site.send(token).status == 200


def test_script_name_header_that_shifts_the_routing(site: Site) -> None:
    """gunicorn obeys it from loopback: the view of ``/b`` would run for a token made for ``/a/b``."""
    token = site.token("/a/b")
    for name in ("SCRIPT_NAME", "Script_Name", "script_name"):
        assert_refused(site.send(token, (name, "/a"), target="/a/b"), "wrong_binding", token)
    # One that does not fit the target gunicorn refuses itself, with a 500 that no application of ours ever saw.
    assert b"does not start with SCRIPT_NAME" in site.send(token, ("SCRIPT_NAME", "/x"), target="/a/b").body
    assert site.send(token, target="/a/b").status == 200


@pytest.mark.parametrize(
    "name",
    [
        *("PATH_INFO", "RAW_URI", "REQUEST_URI", "REQUEST_METHOD", "HTTP_HOST", "X-Original-URL", "X-Rewrite-URL"),
        *(
            "X-Forwarded-Prefix",
            "X-Forwarded-Path",
            "X-Script-Name",
            "X-HTTP-Method-Override",
            "Forwarded",
            "wsgi.input",
        ),
    ],
)
def test_other_headers_that_might_shift_the_routing(site: Site, name: str) -> None:
    """They move neither what runs nor what is compared."""
    token = site.token("/a/b")
    assert_refused(site.send(token, (name, "/a/b"), target="/b"), "wrong_binding", token)
    answer = site.send(token, (name, "/b"), target="/a/b")
    assert (answer.status, json.loads(answer.body)["path"]) == (200, "/a/b")


def test_host_names_no_audience(site: Site) -> None:
    token = site.token(aud="test.internal/other")
    for name in ("Host", "X-Forwarded-Host", "Forwarded"):
        answer = site.send(token, (name, "other"))
        assert answer.status == 400 or answer.code == "wrong_audience"
    good = site.token()
    assert site.send(good, ("X-Forwarded-Host", "other"), ("X-Forwarded-Proto", "https")).status == 200


@pytest.mark.parametrize("method", ["HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "FOO"])
def test_other_method(site: Site, method: str) -> None:
    token = site.token()
    answer = site.send(token, method=method)
    assert answer.status == 401
    if method != "HEAD":
        assert answer.code == "wrong_binding"
    assert site.send(token).status == 200


def test_routes_that_are_not_there_say_nothing(site: Site) -> None:
    """404, 405 and redirects are for those who may call."""
    for target, method in (("/no/such", "GET"), ("/echo", "TRACE"), ("/echo/", "GET"), ("/static/x", "GET")):
        assert_refused(site.send(None, target=target, method=method), "missing_token")


# ---- the body


def test_body_changed_on_the_way(site: Site) -> None:
    token = site.token(method="POST", body=BODY)
    for body in (BODY.replace(b"7", b"8"), BODY + b" ", BODY[:-1], b"", BODY * 2):
        assert_refused(site.post(token, body=body), "wrong_binding", token)
    assert site.post(token).status == 200


def test_body_added_to_a_get(site: Site) -> None:
    token = site.token()
    assert_refused(site.send(token, ("Content-Length", "2"), body=b"{}"), "wrong_binding", token)
    chunks = b"2\r\n{}\r\n0\r\n\r\n"
    assert_refused(site.send(token, ("Transfer-Encoding", "chunked"), body=chunks), "wrong_binding", token)
    assert site.send(token, ("Content-Length", "0")).status == 200


def test_chunked_body(site: Site) -> None:
    """The same bytes in chunks are the same body; other bytes are not."""
    token = site.token(method="POST", body=BODY)
    chunked = ("Transfer-Encoding", "chunked")

    def in_chunks(body: bytes, size: int) -> bytes:
        pieces = [body[start : start + size] for start in range(0, len(body), size)]
        return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in [*pieces, b""])

    for body in (BODY + b"!", BODY[:-1], b"", BODY.replace(b"7", b"8")):
        answer = site.send(token, JSON, chunked, method="POST", body=in_chunks(body, 3))
        assert_refused(answer, "wrong_binding", token)
    answer = site.send(token, JSON, chunked, method="POST", body=in_chunks(BODY, 3))
    assert (answer.status, json.loads(answer.body)["body"]) == (200, BODY.decode())


@pytest.mark.parametrize(
    "chunks", [b"zz\r\n{}\r\n0\r\n\r\n", b"-2\r\n{}\r\n0\r\n\r\n", b"2 \r\n{}", b"fffffffffff\r\n{}", b"2\r\n{"]
)
def test_chunked_body_that_is_none(site: Site, chunks: bytes) -> None:
    token = site.token(method="POST", body=b"{}")
    with socket.create_connection(site.address, timeout=10) as connection:
        head = f"POST /echo HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n"
        connection.sendall(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert not answer or answer.split(b" ")[1] in (b"400", b"401"), answer
    assert site.post(token, body=b"{}").status == 200


def test_compressed_body(site: Site) -> None:
    """Neither compressing what was signed, nor saying that it is compressed, goes unseen."""
    token, small = site.token(method="POST", body=BODY), gzip.compress(BODY)
    gzipped = ("Content-Encoding", "gzip")
    for more, body in (((JSON, gzipped), small), ((JSON,), small), ((JSON, gzipped), BODY)):
        assert_refused(site.post(token, *more, body=body), "wrong_binding", token)
    assert site.post(token).status == 200


def test_other_content_type(site: Site) -> None:
    token = site.token(method="POST", body=BODY)
    for kind in (
        "application/x-www-form-urlencoded",
        "application/json; charset=utf-7",
        "APPLICATION/JSON",
        "text/plain",
        "",
    ):
        assert_refused(site.post(token, ("Content-Type", kind)), "wrong_binding", token)
    assert_refused(site.post(token, ("X-None", "1")), "wrong_binding", token)
    assert site.post(token).status == 200


def test_two_content_types(site: Site) -> None:
    form = ("Content-Type", "application/x-www-form-urlencoded")
    body = b"a=b"
    token = site.caller.sign_request(
        CALLEE, method="POST", target="/echo", body=body, headers={"content-type": "application/json"}
    )
    for more in ((form, JSON), (JSON, form)):
        assert_refused_by_the_server(site.post(token, *more, body=body))


def test_body_that_is_too_long_is_not_read(site: Site) -> None:
    body = b"x" * 100_001
    answer = site.post(site.token(method="POST", body=body), body=body)
    assert (answer.status, answer.code) == (413, "content_too_large")


def test_two_lengths(site: Site) -> None:
    token = site.token(method="POST", body=BODY)
    length, chunked = ("Content-Length", "11"), ("Transfer-Encoding", "chunked")
    for more in ((length, ("Content-Length", "12")), (length, chunked), (("Content-Length", "+11"),)):
        assert_refused_by_the_server(site.send(token, JSON, *more, method="POST", body=BODY))
    assert site.post(token).status == 200


@pytest.mark.parametrize("honest", [False, True])
def test_request_hidden_in_a_body(site: Site, honest: bool) -> None:
    """A refused call's body, which was not read, must not be taken for the next request on its connection."""
    hidden = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
    token = site.token(method="POST", body=hidden if honest else b"other")
    head = f"POST /echo HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n"
    last = b"GET /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    answers = site.raw(head.encode() + b"Content-Length: %d\r\n\r\n" % len(hidden) + hidden + last)
    assert b"well" not in answers
    assert answers.count(b"HTTP/1.1 ") <= 2
    assert answers.startswith(b"HTTP/1.1 200" if honest else b"HTTP/1.1 401")


def test_forged_call_behind_an_honest_one_on_the_same_connection(site: Site) -> None:
    """A connection proves nothing: every request stands for itself."""
    good, used = site.token(), site.token()
    assert site.send(used).status == 200
    lines = [
        f"GET /echo HTTP/1.1\r\nHost: a\r\n{rest}\r\n"
        for rest in (f"Authorization: Bearer {good}\r\n", "", f"Authorization: Bearer {used}\r\nConnection: close\r\n")
    ]
    answers = site.raw("".join(lines).encode())
    assert [answer.split(b" ")[0] for answer in answers.split(b"HTTP/1.1 ")[1:]] == [b"200", b"401", b"401"]
    assert answers.count(b'"code":"missing_token"') == answers.count(b'"code":"replayed"') == 1


def test_same_token_twice_on_the_wire(site: Site) -> None:
    token = site.token()
    assert site.send(token).status == 200
    assert_refused(site.send(token), "replayed", token)
