"""What a session signs is what leaves the socket, and nothing is signed for another service."""

import gzip
import io
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from urllib3 import Retry

from peerseal.errors import ConfigurationError, UnsignableRequest
from peerseal.protocol.encoding import digest_header
from peerseal.requests import MAX_BUFFER, RETRIES, TIMEOUT, PeerSession
from peerseal.runtime.limits import CallLimits
from peerseal.session.origin import Origin
from peerseal.session.problem import MAX_PROBLEM
from tests.support.wire import RESET, Answer, RawServer, Seen, Service, assert_signed_as_seen, only, raw_server

pytestmark = pytest.mark.usefixtures("no_proxies")

SessionFor = Callable[..., PeerSession]


@pytest.fixture
def session_for(caller: Service) -> Iterator[SessionFor]:
    """A session with a server, that never really sleeps."""
    made = []

    def session_for(server: RawServer, path: str = "", **options: Any) -> PeerSession:
        session = PeerSession(caller, "callee", server.url + path, **{"sleep": lambda _: None} | options)
        made.append(session)
        return session

    yield session_for
    for session in made:
        session.close()


@pytest.fixture
def session(session_for: SessionFor, server: RawServer) -> PeerSession:
    return session_for(server)


# ---- where a request goes


@pytest.mark.parametrize(
    ("base", "url", "target"),
    [
        ("", "/profiles/42", "/profiles/42"),
        ("", "profiles/42", "/profiles/42"),
        ("", "", "/"),
        ("/", "/a", "/a"),
        ("/api", "/profiles/42", "/api/profiles/42"),
        ("/api/", "profiles/42", "/api/profiles/42"),
        ("/api", "", "/api/"),
        ("/api", "?q=1", "/api/?q=1"),
        ("/api", "//other.host/x", "/api//other.host/x"),
        ("", "//other.host/x", "/other.host/x"),
        ("", "a:b", "/a:b"),
        ("", "/a?x=http://other.host/", "/a?x=http://other.host/"),
        ("", " http://other.host/", "/%20http://other.host/"),
    ],
)
def test_a_path_is_taken_below_the_base_url_and_never_leads_away(
    session_for: SessionFor, server: RawServer, base: str, url: str, target: str
) -> None:
    session_for(server, base).get(url)
    assert only(server).target == target
    assert_signed_as_seen(only(server))


@pytest.mark.parametrize("url", ["/../admin", "../admin", "/a/../../admin", "/%2e%2e/admin", "/.%2E/admin", "/.."])
def test_a_path_that_leads_out_of_the_base_url_is_refused(session_for: SessionFor, server: RawServer, url: str) -> None:
    session = session_for(server, "/api")
    with pytest.raises(UnsignableRequest, match="leads out"):
        session.get(url)
    assert server.seen == []
    session.get("/a/../b")
    session.get(f"{server.url}/admin")
    assert [seen.target for seen in server.seen] == ["/api/b", "/admin"]


def test_an_absolute_url_of_the_same_origin_is_signed(session_for: SessionFor, server: RawServer) -> None:
    session_for(server, "/api").get(f"HTTP://127.0.0.1:{server.port}/elsewhere", params={"q": "ü"})
    assert only(server).target == "/elsewhere?q=%C3%BC"
    assert_signed_as_seen(only(server))


def test_another_host_or_port_gets_no_token_and_no_transaction_token(session: PeerSession) -> None:
    session.headers["Txn-Token"] = "secret"
    with raw_server() as other_port, raw_server(host="127.0.0.2") as other_host:
        for other in (other_port, other_host):
            session.get(other.url + "/x", headers={"X-Own": "1"})
            assert only(other).authorization is None
            assert "txn-token" not in only(other).headers
            assert only(other).headers["x-own"] == ["1"]


@pytest.mark.parametrize(
    "url",
    [
        "https://callee.test/",
        "http://callee.test:81/",
        "http://callee.test.evil.example/",
        "http://callee.tes/",
        "http://callee.test./",
        "http://callee.test:80@evil.example/",
        "http://evil.example\\@callee.test/",
        "http://evil.example#@callee.test/",
        "http://evil.example?@callee.test/",
        "http://[::1]/",
        "not a url",
    ],
)
def test_what_is_not_exactly_our_origin_has_no_target(url: str) -> None:
    assert Origin("http://callee.test").target(url) is None


@pytest.mark.parametrize("url", ["http://callee.test/a", "http://callee.test:80/a", "HTTP://CALLEE.test/a#b"])
def test_our_origin_is_ours_in_every_spelling(url: str) -> None:
    assert Origin("http://callee.test").target(url) == "/a"
    assert Origin("http://Callee.Test:80/base").target(url) == "/a"


@pytest.mark.parametrize(
    "base",
    [
        "",
        "callee",
        "//callee",
        "ftp://callee",
        "http://",
        "http://u:p@callee",
        "http://c/?q",
        "http://c/?q=1",
        "http://c/#f",
        "http://c:99999",
    ],
)
def test_a_base_url_is_an_origin_with_perhaps_a_path(base: str) -> None:
    with pytest.raises(ConfigurationError):
        Origin(base)


# ---- the target on the wire

ODD = "/%~;?&=+#.:@!$'()*,[]{}|\\^`<>\" aZ0é\u20ac\U0001f600"
odd_text = st.text(alphabet=ODD, max_size=20)
escapes = st.sampled_from(
    ["%2f", "%2F", "%2e", "%2E%2e", "..", ".", "//", "%7e", "%c3%A9", "%", "%zz", "%25", "%3f", "%23"]
)
odd_path = st.lists(st.one_of(odd_text, escapes, st.just("/")), max_size=8).map("".join)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=odd_path, query=st.one_of(st.none(), odd_path), params=st.one_of(st.none(), st.just({"ä b": "/?%"})))
@example(path="/a/%2e%2e/b", query=None, params=None)
@example(path="/a/../../b", query="x=%2f&&", params=None)
@example(path="/%2E%2E/%zz%41", query="%", params=None)
@example(path="//%2fa", query="?", params=None)
@example(path="/a%2f;x=%7e?", query="", params={"ä b": "/?%"})
def test_the_target_that_is_signed_is_the_one_that_leaves_the_socket(
    session: PeerSession, server: RawServer, path: str, query: str | None, params: dict[str, str] | None
) -> None:
    server.seen.clear()
    session.get(f"/{path}" if query is None else f"/{path}?{query}", params=params)
    assert_signed_as_seen(only(server))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=odd_path, query=odd_path)
def test_through_an_http_proxy_the_origin_form_of_the_same_target_is_signed(
    caller: Service, server: RawServer, path: str, query: str
) -> None:
    """The RawServer plays the proxy here: it sees the absolute form."""
    server.seen.clear()
    with PeerSession(caller, "callee", "http://callee.test:8080") as session:
        session.get(f"/{path}?{query}", proxies={"http": server.url})
    absolute = only(server).target
    assert absolute.startswith("http://callee.test:8080/")
    target = absolute.removeprefix("http://callee.test:8080")
    assert only(server).claims["target_digest"] == digest_header(target.encode("ascii"))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=odd_path)
def test_the_target_after_a_redirect_is_the_one_that_is_signed(
    session: PeerSession, server: RawServer, path: str
) -> None:
    server.seen.clear()
    location = f"{server.url}/{path}".encode().decode("latin-1")
    server.script[:] = [Answer(302, {"Location": location})]
    session.get("/first")
    for seen in server.seen:
        assert_signed_as_seen(seen)
    assert len(server.seen) == 2


# ---- bodies


class Unseekable(io.RawIOBase):
    """A pipe: it can be read once."""

    def __init__(self, body: bytes) -> None:
        self._body = io.BytesIO(body)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._body.readinto(buffer)


@pytest.mark.parametrize(
    ("options", "body", "content_type"),
    [
        ({}, b"", None),
        ({"data": b"\x00\xff"}, b"\x00\xff", None),
        ({"data": "Köln €"}, "Köln €".encode(), None),
        ({"data": bytearray(b"abc")}, b"abc", None),
        ({"data": memoryview(b"abc")}, b"abc", None),
        ({"json": {"a": [1, "ü"]}}, b'{"a": [1, "\\u00fc"]}', "application/json"),
        ({"data": {"a": "1 ü", "b": ["x", "y"]}}, b"a=1+%C3%BC&b=x&b=y", "application/x-www-form-urlencoded"),
        ({"data": b"x", "headers": {"Content-Type": "text/plain; x=1  "}}, b"x", "text/plain; x=1"),
        ({"data": b"x", "headers": {"Content-Type": b"text/plain"}}, b"x", "text/plain"),
        ({"data": b"x", "headers": {"Content-Encoding": "gzip"}}, b"x", None),
        ({"data": io.BytesIO(b"file")}, b"file", None),
        ({"data": io.BytesIO(b"")}, b"", None),
        ({"data": io.StringIO("Köln\n€")}, "Köln\n€".encode(), None),
    ],
)
def test_every_sort_of_body_is_signed_as_it_is_sent(
    session: PeerSession, server: RawServer, options: dict[str, Any], body: bytes, content_type: str | None
) -> None:
    session.post("/", **options)
    seen = only(server)
    assert seen.body == body
    assert seen.headers.get("content-type", [None]) == [content_type]
    assert_signed_as_seen(seen)


def test_multipart_files_are_signed_as_they_are_sent(session: PeerSession, server: RawServer) -> None:
    session.post("/", data={"note": "ü"}, files={"file": ("a.bin", io.BytesIO(b"\x00content"))})
    seen = only(server)
    assert b"\x00content" in seen.body
    assert seen.claims["headers"]["content-type"].startswith("multipart/form-data; boundary=")
    assert_signed_as_seen(seen)


def test_a_body_may_go_with_a_get(session: PeerSession, server: RawServer) -> None:
    session.get("/", data=b"x")
    assert only(server).body == b"x"
    assert_signed_as_seen(only(server))


@pytest.mark.parametrize("script", [[], [RESET], [Answer(307, {"Location": "/there"})], [Answer(503), RESET]])
def test_a_file_is_sent_from_where_it_stood_at_every_attempt(
    session: PeerSession, server: RawServer, tmp_path: Path, script: list[Any]
) -> None:
    path = tmp_path / "upload"
    path.write_bytes(b"0123456789" * 10_000)
    server.script[:] = list(script)
    with path.open("rb") as file:
        file.seek(5)
        session.put("/", data=file)
    assert len(server.seen) == len(script) + 1
    for seen in server.seen:
        assert seen.body == path.read_bytes()[5:]
        assert_signed_as_seen(seen)


def test_a_file_that_changes_between_attempts_is_sent_as_it_was(
    session: PeerSession, server: RawServer, tmp_path: Path
) -> None:
    path = tmp_path / "upload"
    path.write_bytes(b"before")

    def change(seen: Seen) -> Answer:
        path.write_bytes(b"after!!")
        return Answer(503)

    server.script[:] = [change]
    with path.open("rb") as file:
        session.put("/", data=file)
    assert [seen.body for seen in server.seen] == [b"before", b"before"]


def pipe_with(body: bytes) -> Any:
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as end:
        end.write(body)
    return os.fdopen(reading, "rb")


def streams() -> dict[str, Callable[[], Any]]:
    return {
        "generator": lambda: (piece for piece in (b"one ", b"two")),
        "iterator": lambda: iter([b"one ", b"two"]),
        "text generator": lambda: (piece for piece in ("one ", "two")),
        "unseekable file": lambda: Unseekable(b"one two"),
        "pipe": lambda: pipe_with(b"one two"),
    }


@pytest.mark.parametrize("kind", streams())
def test_what_can_be_read_only_once_is_refused_and_nothing_is_sent(
    session: PeerSession, server: RawServer, kind: str
) -> None:
    with pytest.raises(UnsignableRequest, match="read only once"):
        session.post("/", data=streams()[kind]())
    assert server.seen == []


@pytest.mark.parametrize("kind", streams())
def test_what_can_be_read_only_once_is_kept_where_that_is_asked_for(
    session_for: SessionFor, server: RawServer, kind: str
) -> None:
    server.script[:] = [Answer(307, {"Location": "/there"}), RESET]
    session_for(server, buffer=True).put("/", data=streams()[kind]())
    assert [seen.body for seen in server.seen] == [b"one two"] * 3
    for seen in server.seen:
        assert "transfer-encoding" not in seen.headers
        assert_signed_as_seen(seen)


def test_a_stream_is_kept_up_to_a_limit(session_for: SessionFor, server: RawServer) -> None:
    session = session_for(server, buffer=True, max_buffer=1000)
    session.put("/", data=(b"x" for _ in range(1000)))
    with pytest.raises(UnsignableRequest, match="max_buffer, 1000 bytes"):
        session.put("/", data=(b"x" for _ in iter(int, 1)))
    with pytest.raises(UnsignableRequest, match="max_buffer"):
        session.put("/", data=io.BytesIO(b"x" * 1001))
    session.put("/", data=b"x" * 2000)
    assert [len(seen.body) for seen in server.seen] == [1000, 2000]
    assert MAX_BUFFER == 16 * 1024 * 1024


# ---- headers


def test_headers_that_the_application_lists_are_bound_where_they_are_set(
    session_for: SessionFor, server: RawServer
) -> None:
    session = session_for(server, bind_headers=("X-Tenant", "Accept", "X-Absent"))
    session.get("/", headers={"X-Tenant": " acme ".strip()})
    assert only(server).claims["headers"] == {"x-tenant": "acme", "accept": "*/*"}


@pytest.mark.parametrize("value", ["acme ", "acme\t", b"acme \t"])
def test_what_is_sent_is_what_was_signed_without_blanks(
    session_for: SessionFor, server: RawServer, value: str | bytes
) -> None:
    session = session_for(server, bind_headers=("x-tenant",))
    session.post("/", data=b"{}", headers={"X-Tenant": value, "Content-Type": "application/json "})
    seen = only(server)
    assert seen.claims["headers"] == {"x-tenant": "acme", "content-type": "application/json"}
    assert seen.headers["x-tenant"] == ["acme"]
    assert_signed_as_seen(seen)


@pytest.mark.parametrize("headers", [{"X-Tenant": "\u20ac"}, {"X-Other": "\u20ac"}, {"X-T\xe9": "a"}])
def test_a_header_that_cannot_be_encoded_is_not_sent(
    session_for: SessionFor, server: RawServer, headers: dict[str, str]
) -> None:
    session = session_for(server, bind_headers=("x-tenant",))
    with pytest.raises(UnsignableRequest, match="latin-1"):
        session.get("/", headers=headers)
    assert server.seen == []


@pytest.mark.parametrize("names", [("Host",), ("content-length",), ("X-A", "Authorization")])
def test_a_header_that_the_transport_makes_cannot_be_bound(
    session_for: SessionFor, server: RawServer, names: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigurationError, match="cannot be bound"):
        session_for(server, bind_headers=names)


def test_bind_headers_given_as_one_string_are_a_mistake(session_for: SessionFor, server: RawServer) -> None:
    with pytest.raises(ConfigurationError, match="one string"):
        session_for(server, bind_headers="x-tenant")


def test_the_token_may_travel_in_another_header(session_for: SessionFor, server: RawServer) -> None:
    session_for(server, header="X-Peer-Token").get("/", auth=("user", "password"))
    assert only(server).authorization == "Basic dXNlcjpwYXNzd29yZA=="
    assert only(server).headers["x-peer-token"][0].startswith("Bearer ey")


# ---- credentials of others


@pytest.mark.parametrize(
    "options", [{"headers": {"authorization": "Bearer mine"}}, {"auth": ("user", "password")}], ids=["header", "auth"]
)
def test_an_authorization_of_the_caller_s_own_is_refused_and_nothing_is_sent(
    session: PeerSession, server: RawServer, options: dict[str, Any]
) -> None:
    with pytest.raises(UnsignableRequest, match="Authorization, where the token goes"):
        session.get("/", **options)
    assert server.seen == []


def test_so_it_is_on_the_session_and_in_the_url(session: PeerSession, server: RawServer) -> None:
    with pytest.raises(UnsignableRequest, match="user name"):
        session.get(f"http://user:password@127.0.0.1:{server.port}/")
    session.auth = ("user", "password")
    with pytest.raises(UnsignableRequest, match="where the token goes"):
        session.get("/")
    assert server.seen == []


def test_other_origins_may_have_an_authorization(session: PeerSession, server: RawServer) -> None:
    with raw_server() as other:
        session.get(other.url, headers={"Authorization": "Bearer mine"})
        assert only(other).authorization == "Bearer mine"


def test_netrc_says_nothing_about_our_callee(
    session: PeerSession, server: RawServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login user password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    server.script[:] = [Answer(302, {"Location": "/there"})]
    session.get("/")
    assert [seen.authorization[:9] for seen in server.seen if seen.authorization] == ["Bearer ey"] * 2


# ---- what stays after a call


def test_the_token_stays_in_the_socket(session: PeerSession, server: RawServer) -> None:
    response = session.get("/a")
    assert "Authorization" not in response.request.headers
    assert response.url == f"{server.url}/a"
    server.script[:] = [RESET] * 9
    with pytest.raises(requests.ConnectionError) as raised:
        session.get("/a")
    assert raised.value.request is not None
    assert "Authorization" not in raised.value.request.headers


def test_a_prepared_request_is_sent_twice_with_two_tokens(session: PeerSession, server: RawServer) -> None:
    prepared = session.prepare_request(requests.Request("POST", "/a", data="ü"))
    session.send(prepared)
    session.send(prepared)
    assert len({seen.claims["jti"] for seen in server.seen}) == 2
    for seen in server.seen:
        assert_signed_as_seen(seen)


def test_a_request_object_is_not_changed(session: PeerSession) -> None:
    request = requests.Request("GET", "/a")
    session.prepare_request(request)
    assert (request.url, request.auth) == ("/a", None)


def test_every_call_has_a_timeout(session_for: SessionFor, server: RawServer, monkeypatch: pytest.MonkeyPatch) -> None:
    session, timeouts = session_for(server), []
    send = requests.adapters.HTTPAdapter.send

    def note(self: Any, request: Any, **kwargs: Any) -> Any:
        timeouts.append(kwargs["timeout"])
        return send(self, request, **kwargs)

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", note)
    session.get("/")
    session.get("/", timeout=None)
    session.get("/", timeout=1)
    session.send(session.prepare_request(requests.Request("GET", "/")))
    assert timeouts == [TIMEOUT, TIMEOUT, (1, 1), TIMEOUT]


# ---- attempts


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("failure", [RESET, Answer(502), Answer(503), Answer(504)], ids=str)
def test_an_idempotent_request_is_tried_again_with_another_token(
    session: PeerSession, server: RawServer, method: str, failure: Any
) -> None:
    server.script[:] = [failure, failure]
    assert session.request(method, "/a", data=b"body").status_code == 200
    assert len({seen.claims["jti"] for seen in server.seen}) == 3
    for seen in server.seen:
        assert_signed_as_seen(seen)


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_a_request_that_may_have_done_its_work_is_not_tried_again(
    session: PeerSession, server: RawServer, method: str
) -> None:
    server.script[:] = [RESET, Answer(503)]
    with pytest.raises(requests.ConnectionError):
        session.request(method, "/a")
    assert session.request(method, "/a").status_code == 503
    assert len(server.seen) == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 429, 500, 501])
def test_other_answers_are_the_answer(session: PeerSession, server: RawServer, status: int) -> None:
    server.script[:] = [Answer(status, {"Retry-After": "1"})]
    assert session.get("/a").status_code == status
    assert len(server.seen) == 1


def test_a_connection_that_was_not_made_is_tried_again_for_every_method(session_for: SessionFor) -> None:
    with raw_server() as gone:
        pass
    slept: list[float] = []
    session = session_for(gone, sleep=slept.append)
    with pytest.raises(requests.ConnectionError):
        session.post("/a")
    assert len(slept) == 3
    assert slept[0] == 0
    assert 0 < slept[1] < slept[2] < 1


def test_when_attempts_run_out_the_last_answer_is_the_answer(session_for: SessionFor, server: RawServer) -> None:
    server.script[:] = [Answer(503)] * 9
    assert session_for(server).get("/a").status_code == 503
    assert len(server.seen) == 4
    assert session_for(server, retries=0).get("/a").status_code == 503
    assert len(server.seen) == 5
    assert session_for(server, retries=Retry(1, status_forcelist=[503])).get("/a").status_code == 503
    assert len(server.seen) == 7


def test_retry_after_is_waited_for_up_to_a_bound(session_for: SessionFor, server: RawServer) -> None:
    slept: list[float] = []
    session = session_for(server, deadline=60.0, limits=CallLimits(failures=0), sleep=slept.append)
    server.script[:] = [Answer(503, {"Retry-After": "7"}), Answer(503, {"Retry-After": "31"})]
    assert session.get("/a").status_code == 503
    assert slept == [7]
    server.script[:] = [Answer(503, {"Retry-After": "soon"})]
    assert session.get("/a").status_code == 503
    server.script[:] = [Answer(503, {"Retry-After": "0"}), Answer(200)]
    assert session.get("/a").status_code == 200
    assert slept[1:] == [0]


def test_a_timeout_of_the_answer_is_tried_again_only_where_that_is_safe(
    session_for: SessionFor, server: RawServer
) -> None:
    def late(seen: Seen) -> Answer:
        time.sleep(0.3)
        return Answer()

    session = session_for(server, timeout=0.1)
    server.script[:] = [late]
    with pytest.raises(requests.ReadTimeout):
        session.post("/a")
    time.sleep(0.4)
    server.script[:] = [late]
    assert session.get("/a", timeout=(1, 0.2)).status_code == 200


def test_no_attempt_begins_after_the_deadline_of_the_call(session_for: SessionFor, server: RawServer) -> None:
    def late(seen: Seen) -> Answer:
        time.sleep(0.1)
        return Answer(503)

    session = session_for(server, deadline=0.25, retries=Retry(9, status_forcelist=[503]))
    server.script[:] = [late] * 9
    with pytest.raises(requests.ReadTimeout):
        session.get("/a")
    assert len(server.seen) <= 3


def test_no_pause_leads_beyond_the_deadline_of_the_call(session_for: SessionFor, server: RawServer) -> None:
    slept: list[float] = []
    session = session_for(server, deadline=5.0, sleep=slept.append)
    server.script[:] = [Answer(503, {"Retry-After": "7"}), Answer(200)]
    assert session.get("/a").status_code == 503
    assert slept == []


def test_an_answer_is_waited_for_no_longer_than_the_deadline(session_for: SessionFor, server: RawServer) -> None:
    def late(seen: Seen) -> Answer:
        time.sleep(0.4)
        return Answer()

    session = session_for(server, deadline=0.1, timeout=None)
    server.script[:] = [late]
    with pytest.raises(requests.ReadTimeout):
        session.get("/a", timeout=(1, 30))
    assert len(server.seen) == 1


# ---- refused as a copy of what was accepted before


def problem(code: object, **headers: str) -> Answer:
    body = json.dumps({"type": "about:blank", "title": "Unauthorized", "status": 401, "code": code}).encode()
    return Answer(401, {"Content-Type": "application/problem+json"} | headers, body)


class Verbatim(NamedTuple):
    """An answer that is sent byte for byte."""

    raw: bytes

    def encode(self) -> bytes:
        return self.raw


REPLAYED = problem("replayed")
PROBLEM_HEAD = b"HTTP/1.1 401 No\r\nConnection: close\r\nContent-Type: application/problem+json\r\n"
IN_CHUNKS = Verbatim(PROBLEM_HEAD + b'Transfer-Encoding: chunked\r\n\r\n14\r\n{"code": "replayed"}\r\n0\r\n\r\n')
CUT_OFF = Verbatim(PROBLEM_HEAD + b'Content-Length: 99\r\n\r\n{"code": "replayed"}')
ZIPPED = Answer(401, REPLAYED.headers | {"Content-Encoding": "gzip"}, gzip.compress(REPLAYED.body))
LONG = Answer(401, REPLAYED.headers, b'{"code": "replayed", "detail": "' + b"x" * 100_000 + b'"}')


@pytest.mark.parametrize("method", ["GET", "OPTIONS", "PUT", "DELETE", "TRACE"])
@pytest.mark.parametrize("retries", [RETRIES, 0])
def test_an_idempotent_request_that_was_refused_as_a_copy_is_signed_once_more(
    session_for: SessionFor, server: RawServer, method: str, retries: Any
) -> None:
    server.script[:] = [REPLAYED]
    assert session_for(server, retries=retries).request(method, "/a?b=c", data=b"body").status_code == 200
    assert len(server.seen) == len({seen.claims["jti"] for seen in server.seen}) == 2
    for seen in server.seen:
        assert seen.body == b"body"
        assert_signed_as_seen(seen)


@pytest.mark.parametrize("answer", [IN_CHUNKS, ZIPPED, problem("replayed", Server="nginx", Via="1.1 somebody")])
def test_so_it_is_however_the_refusal_is_sent(session: PeerSession, server: RawServer, answer: Any) -> None:
    server.script[:] = [answer]
    assert session.get("/a").status_code == 200
    assert len(server.seen) == 2


def test_it_is_signed_once_more_and_no_third_time(session: PeerSession, server: RawServer) -> None:
    server.script[:] = [REPLAYED] * 9
    response = session.get("/a")
    assert response.status_code == 401
    assert response.json()["code"] == "replayed"
    assert len(server.seen) == 2


def test_each_attempt_may_be_signed_once_more(session: PeerSession, server: RawServer) -> None:
    server.script[:] = [REPLAYED, Answer(503), REPLAYED, RESET, REPLAYED]
    assert session.get("/a").status_code == 200
    assert len(server.seen) == len({seen.claims["jti"] for seen in server.seen}) == 6


@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_a_request_that_must_not_be_done_twice_is_never_signed_once_more(
    session_for: SessionFor, server: RawServer, method: str
) -> None:
    server.script[:] = [REPLAYED]
    response = session_for(server, retries=Retry(3, allowed_methods=None)).request(method, "/a", data=b"body")
    assert (response.status_code, response.json()["code"]) == (401, "replayed")
    assert len(server.seen) == 1


def test_nor_is_one_whose_method_the_application_does_not_repeat(session_for: SessionFor, server: RawServer) -> None:
    session = session_for(server, retries=Retry(3, allowed_methods={"GET"}))
    server.script[:] = [REPLAYED]
    assert session.put("/a").status_code == 401
    server.script[:] = [REPLAYED]
    assert session.get("/a").status_code == 200
    assert len(server.seen) == 3


@pytest.mark.parametrize(
    "answer",
    [
        *(problem(code) for code in ("expired", "wrong_binding", "Replayed", "replayed ", "", None, ["replayed"], 1)),
        replace(REPLAYED, status=400),
        replace(REPLAYED, status=403),
        replace(REPLAYED, status=409),
        replace(REPLAYED, headers={"Content-Type": "application/json"}),
        replace(REPLAYED, headers={"Content-Type": "text/html"}),
        replace(REPLAYED, headers={}),
        replace(REPLAYED, body=b""),
        replace(REPLAYED, body=b"replayed"),
        replace(REPLAYED, body=b'"replayed"'),
        replace(REPLAYED, body=b"[" * 4000),
        replace(REPLAYED, body=b"\xff\xfe"),
        replace(REPLAYED, headers=REPLAYED.headers | {"Content-Encoding": "unheard-of"}, body=b"\x00"),
        LONG,
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_any_other_refusal_is_the_answer_and_can_be_read(
    session: PeerSession, server: RawServer, answer: Answer, stream: bool
) -> None:
    server.script[:] = [answer]
    response = session.get("/a", stream=stream)
    assert response.status_code == answer.status
    assert b"".join(response.iter_content(1000)) == answer.body
    assert len(server.seen) == 1


@pytest.mark.parametrize("answer", [LONG, problem("expired"), IN_CHUNKS, ZIPPED], ids=["long", "short", "chunks", "gz"])
def test_a_refusal_that_was_looked_at_can_be_read_in_every_way(
    session: PeerSession, server: RawServer, answer: Any
) -> None:
    whole = answer.body if isinstance(answer, Answer) else b'{"code": "replayed"}'
    body = gzip.decompress(whole) if answer is ZIPPED else whole

    def refused() -> requests.Response:
        server.script[:] = [answer] * 2
        return session.get("/a", stream=True)

    assert refused().content == body
    assert refused().json() == json.loads(body)
    assert b"".join(refused().iter_lines()) == body
    assert refused().raw.read(decode_content=True) == body
    assert refused().raw.read() == whole
    assert b"".join(refused().raw.stream(100, decode_content=True)) == body
    with refused() as response:
        assert response.raw.read(5) == whole[:5]


def test_of_an_endless_refusal_only_the_beginning_is_read(session: PeerSession, server: RawServer) -> None:
    chunk = b"%x\r\n" % (2 * MAX_PROBLEM) + b" " * 2 * MAX_PROBLEM + b"\r\n"
    server.script[:] = [Verbatim(PROBLEM_HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk)]
    with session.get("/a", stream=True) as response:
        assert response.status_code == 401
        assert len(response.raw.read(100)) == 100
    assert len(server.seen) == 1


def test_a_refusal_of_which_nothing_comes_is_a_connection_that_broke(session: PeerSession, server: RawServer) -> None:
    nothing = Verbatim(PROBLEM_HEAD + b"Content-Length: 99\r\n\r\n")
    server.script[:] = [nothing, nothing]
    assert session.get("/a").status_code == 200
    assert len(server.seen) == 3
    server.script[:] = [nothing] * 9
    with pytest.raises(requests.ConnectionError) as raised:
        session.get("/a")
    assert raised.value.request is not None
    assert "Authorization" not in raised.value.request.headers
    assert len(server.seen) == 7


def test_a_refusal_that_breaks_off_breaks_off_for_its_reader_too(session: PeerSession, server: RawServer) -> None:
    server.script[:] = [CUT_OFF]
    with pytest.raises(requests.exceptions.ChunkedEncodingError):
        session.get("/a")
    assert len(server.seen) == 1


def test_an_answer_to_head_says_no_code_and_is_the_answer(session: PeerSession, server: RawServer) -> None:
    server.script[:] = [Verbatim(PROBLEM_HEAD + b"Content-Length: 20\r\n\r\n")]
    response = session.head("/a")
    assert (response.status_code, response.content) == (401, b"")
    assert len(server.seen) == 1


def test_another_origin_can_say_what_it_likes(session: PeerSession, server: RawServer) -> None:
    with raw_server(REPLAYED) as other:
        assert session.get(other.url).status_code == 401
        server.script[:] = [Answer(302, {"Location": f"{other.url}/there"})]
        other.script[:] = [REPLAYED]
        assert session.get("/a").status_code == 401
        assert len(other.seen) == 2
    assert len(server.seen) == 1


def test_cookies_of_the_answer_are_kept_and_the_connection_is_given_back(
    session: PeerSession, server: RawServer
) -> None:
    server.script[:] = [problem("expired", **{"Set-Cookie": "a=b"})]
    response = session.get("/a")
    assert (response.cookies["a"], session.cookies["a"]) == ("b", "b")
    assert "Authorization" not in response.request.headers
