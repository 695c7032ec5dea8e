"""A raw HTTP/1 request, as ``peerseal verify --http`` reads it."""

import time

import pytest

from peerseal.commands.raw_request import MAX_HEAD, RawRequest, headers_of
from peerseal.errors import ConfigurationError


def test_a_request_is_read_to_its_last_byte() -> None:
    raw = b"POST /a?b=%20 HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain \r\nContent-Length: 6\r\n\r\n\r\n\r\n\x00\xff"
    request = RawRequest.parse(raw)
    assert (request.method, request.target, request.body) == ("POST", "/a?b=%20", b"\r\n\r\n\x00\xff")
    assert request.headers == {"host": "x", "content-type": "text/plain", "content-length": "6"}
    assert "text/plain" not in repr(request), "a header may hold a secret"


def test_an_editor_may_end_lines_with_a_line_feed_alone() -> None:
    assert RawRequest.parse(b"GET / HTTP/1.0\nA: b\n\n") == RawRequest("GET", "/", {"a": "b"}, b"")
    assert RawRequest.parse(b"GET / HTTP/1.1\n\n").headers == {}


def test_a_repeated_header_is_joined_as_servers_do() -> None:
    assert headers_of(["A: 1", "a:2", "B:"]) == {"a": "1, 2", "b": ""}


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "no empty line"),
        (b"GET / HTTP/1.1\r\nA: b\r\n", "no empty line"),
        (b"GET / HTTP/1.1\r\nA: " + b"b" * MAX_HEAD + b"\r\n\r\n", "no empty line"),
        (b"GET /\r\n\r\n", "line 1"),
        (b"GET / HTTP/2\r\n\r\n", "line 1"),
        (b"GET /a b HTTP/1.1\r\n\r\n", "line 1"),
        (b"secret\r\n\r\n", "line 1"),
        (b"GET / HTTP/1.1\r\nA: b\r\n secret\r\n\r\n", "line 3"),
        (b"GET / HTTP/1.1\r\nA : secret\r\n\r\n", "line 2"),
        (b"GET / HTTP/1.1\r\nA: sec\rret\r\n\r\n", "line 2"),
        (b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "Transfer-Encoding"),
        (b"GET / HTTP/1.1\r\nContent-Length: +1\r\n\r\na", "Content-Length is '+1'"),
        (b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na", "Content-Length is '1, 1'"),
        (b"GET / HTTP/1.1\r\nContent-Length: 3\r\n\r\nab", "Content-Length is 3, and 2 bytes follow"),
        (b"GET / HTTP/1.1\r\n\r\nab", "Content-Length is 0, and 2 bytes follow"),
    ],
)
def test_what_is_no_request_names_the_part_and_quotes_no_secret(raw: bytes, says: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        RawRequest.parse(raw)
    assert says in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_value_with_many_spaces_takes_no_longer_than_another() -> None:
    """60,000 spaces before the last character took minutes."""
    began = time.perf_counter()
    assert headers_of([f"X-Long: a{' ' * 60_000}b"])["x-long"].endswith(" b")
    assert time.perf_counter() - began < 5
