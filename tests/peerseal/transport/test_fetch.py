"""The network seam on real sockets: what goes out, what comes back. Its faults are in tests/faults."""

import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from peerseal.errors import ConfigurationError, FetchError
from peerseal.runtime.limits import FetchLimits
from peerseal.testing import MemoryRegistry
from peerseal.transport.fetch import HttpFetcher
from tests.peerseal.served import Child, in_children, served
from tests.support.wire import Answer, raw_server


def test_a_call_is_sent_as_it_was_given() -> None:
    with raw_server(Answer(201, {"ETag": '"x"', "Content-Type": "application/jwt"}, b"body")) as server:
        fetcher = HttpFetcher([server.url])
        answer = fetcher.call("POST", "/v1/x?a=%2F&b=", body=b"{}", headers={"Authorization": "Bearer t", "X-A": "b"})
    (seen,) = server.seen
    assert (seen.line, seen.body) == ("POST /v1/x?a=%2F&b= HTTP/1.1", b"{}")
    assert (seen.headers["authorization"], seen.headers["x-a"]) == (["Bearer t"], ["b"])
    assert (answer.status, answer.body) == (201, b"body")
    assert (answer.headers["etag"], answer.headers["content-type"]) == ('"x"', "application/jwt")


def test_what_is_signed_is_the_target_that_leaves_the_socket() -> None:
    with raw_server() as server:
        fetcher = HttpFetcher([f"{server.url}/registry/"])
        fetcher.call("DELETE", "/v1/x?reason=retired")
    assert server.seen[0].target == fetcher.target("/v1/x?reason=retired") == "/registry/v1/x?reason=retired"


def test_a_netrc_file_does_not_replace_our_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login somebody password else\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    with raw_server() as server:
        HttpFetcher([server.url]).call("GET", "/", headers={"Authorization": "Bearer ours"})
        HttpFetcher([server.url]).call("GET", "/")
    assert [seen.authorization for seen in server.seen] == ["Bearer ours", None]


@pytest.mark.parametrize(("wait", "answers_after"), [(0.0, 0.6), (5.0, 1.5)])
def test_an_answer_may_take_longer_than_a_connection(wait: float, answers_after: float) -> None:
    limits = FetchLimits(connect_timeout=0.3, read_timeout=1.0)

    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            time.sleep(answers_after)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer)
        thread.start()
        fetcher = HttpFetcher([f"http://127.0.0.1:{listener.getsockname()[1]}"], limits)
        assert fetcher.ask("/", lambda found: found.body, wait=wait) == b"ok"
        thread.join()


def test_a_given_header_replaces_the_usual_one() -> None:
    with raw_server() as server:
        HttpFetcher([server.url]).call("GET", "/", headers={"accept": "application/jwt", "User-agent": "mine"})
    (seen,) = server.seen
    assert (seen.headers["accept"], seen.headers["user-agent"]) == (["application/jwt"], ["mine"])


@pytest.mark.parametrize("value", ["a\r\nX-B: c", "a\r\n b", "a\nb", "a\0b", " a", "\ta"])
def test_a_header_of_several_lines_is_not_sent(value: str) -> None:
    with raw_server() as server:
        with pytest.raises(FetchError):
            HttpFetcher([server.url]).call("GET", "/", headers={"X-A": value})
        assert server.seen == []


def test_the_environment_is_read_again_after_a_failure_and_after_a_suspension(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = FetchLimits(connect_timeout=0.2, read_timeout=1.0)
    with raw_server() as proxy:
        fetcher = HttpFetcher(["http://192.0.2.1"], limits)  # of RFC 5737: no host has it
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        for no_proxy, through_proxy in (("*", 0), ("", 1), ("*", 2)):  # it failed, and worked, before the change
            monkeypatch.setenv("NO_PROXY", no_proxy)
            with suppress(FetchError):
                fetcher.call("GET", "/")
            assert len(proxy.seen) == through_proxy
        fetcher.reconnect()
        with pytest.raises(FetchError):
            fetcher.call("GET", "/")
        assert len(proxy.seen) == 2


def test_a_fetcher_that_is_closed_has_no_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        fetcher = HttpFetcher([f"http://127.0.0.1:{listener.getsockname()[1]}"])
        thread = threading.Thread(target=fetcher.call, args=("GET", "/"))
        thread.start()
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            thread.join()
            connection.settimeout(5)
            fetcher.close()
            assert connection.recv(1) == b""


@pytest.mark.parametrize("status", [301, 302, 303])
def test_a_redirect_is_no_answer(status: int) -> None:
    with raw_server() as elsewhere, raw_server(Answer(status, {"Location": elsewhere.url})) as server:
        with pytest.raises(FetchError) as caught:
            HttpFetcher([server.url]).call("GET", "/")
        assert elsewhere.seen == []
    assert caught.value.http_status == status


def test_an_answer_as_long_as_agreed_is_taken_and_a_longer_one_is_not() -> None:
    limits = FetchLimits(max_bytes=1000)
    with raw_server(Answer(body=b"x" * 1000), Answer(body=b"x" * 1001)) as server:
        fetcher = HttpFetcher([server.url], limits)
        assert len(fetcher.call("GET", "/").body) == 1000
        with pytest.raises(FetchError, match="larger"):
            fetcher.call("GET", "/")


def test_a_token_is_in_no_error() -> None:
    with raw_server("reset") as server, pytest.raises(FetchError) as caught:
        HttpFetcher([server.url]).call("POST", "/", headers={"Authorization": "Bearer secret"}, body=b"secret")
    assert "secret" not in f"{caught.value!r} {caught.value.__cause__!r}"


@pytest.mark.parametrize(
    "url",
    ["", "registry", "registry:8080", "ftp://registry", "file:///etc/passwd", "http://", "http:///x", "http://u:p@h",
     "http://h?x=1", "http://h#x", "//h"],
)  # fmt: skip
def test_a_url_that_is_none_is_a_mistake(url: str) -> None:
    with pytest.raises(ConfigurationError):
        HttpFetcher([url])


def test_no_url_is_a_mistake() -> None:
    with pytest.raises(ConfigurationError):
        HttpFetcher([])


@pytest.mark.parametrize(
    ("urls", "loopback"),
    [
        (["http://localhost:1"], True),
        (["http://127.0.0.1", "http://[::1]:8"], True),
        (["http://127.0.0.1", "http://192.0.2.1"], False),
        (["http://localhost.example.com"], False),
        (["http://127.0.0.1.example.com"], False),
    ],
)
def test_loopback_is_known_by_its_names_only(urls: list[str], loopback: bool) -> None:
    assert HttpFetcher(urls).loopback_only is loopback


def test_threads_share_a_fetcher() -> None:
    with MemoryRegistry() as registry, served(registry) as url:
        fetcher = HttpFetcher([url])
        statuses: list[int] = []
        threads = [
            threading.Thread(
                target=lambda: statuses.extend(fetcher.call("GET", "/v1/changes?since=0").status for _ in range(10))
            )
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert statuses == [200] * 80


@pytest.mark.usefixtures("quiet_collector")
def test_connections_do_not_cross_a_fork() -> None:
    """Two processes on one connection would read each other's answers."""
    with MemoryRegistry() as registry, served(registry) as url:
        fetcher = HttpFetcher([url])

        def answers(since: int) -> list[bool]:
            found = [fetcher.call("GET", f"/v1/changes?since={since}").status for _ in range(20)]
            return [status == 200 for status in found]

        assert all(answers(0))
        assert all(map(all, in_children(4, answers)))
        assert all(answers(0))


@pytest.mark.usefixtures("quiet_collector")
def test_a_child_forked_while_a_call_is_under_way_can_call_too() -> None:
    with MemoryRegistry() as registry, served(registry) as url:
        fetcher = HttpFetcher([url])
        with fetcher._lock:  # as another thread of the parent may hold it at that moment
            child = Child(lambda: fetcher.call("GET", "/v1/changes?since=0").status)
        assert child.result() == 200
        assert os.getpid() != child.pid
