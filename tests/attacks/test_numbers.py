"""Numbers, dates and lengths from outside: whatever they say, an answer or an error with a name comes of it."""

import math
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import requests
from hypothesis import example, given
from hypothesis import strategies as st

from peerseal.errors import FetchError, MalformedToken, PeersealError
from peerseal.peers.fetch import Answer, HttpFetcher, entity_tag
from peerseal.peers.limits import FetchLimits
from peerseal.protocol.encoding import strict_json
from peerseal.protocol.numbers import natural, retry_after
from peerseal.requests import MAX_RETRY_AFTER, PeerSession
from tests.support.misbehaving import Misbehaving, misbehaving
from tests.support.wire import NOW, Keys, Service

LONG = "9" * 5000
LENGTHS = (LONG, "9" * 20, "-1", "+2", "2, 3", "0x2", "", "1_0", "2.0", "\xd9\xa2", "2 2", "NaN")
WAITS = (LONG, "9" * 18, "9" * 20, "-5", "+5", "nan", "inf", "1e3", "5.5", "\xd9\xa5", "x" * 5000, "",
         "Fri, 31 Dec 99999999999 23:59:59 GMT", "Fri, 31 Dec 99999 23:59:59 GMT", "Fri, 31 Dec 0000 23:59:59 GMT",
         "Fri, 31 Dec 2026 9999999999:59:59 GMT", "Fri, 31 Dec 2026 23:59:59 +99999999999999999999",
         "Fri, 99 Foo 2026 99:99:99 GMT", f"Fri, {LONG} Dec 2026 23:59:59 GMT")  # fmt: skip
OVER = ("Fri, 31 Dec 0000 23:59:59 GMT", "Fri, 31 Dec 2026 23:59:59 +99999999999999999999")
"""Those of them that are dates, which are over."""
CHUNKS = ("f" * 5000, "f" * 16, "7" + "f" * 15, "f" * 10, "-2", "-7fffffff", "", "0_2", "g")
COOKIES = ("expires=Fri, 31-Dec-99999999 23:59:59 GMT", f"expires={LONG}", f"Max-Age={LONG}",
           f"Max-Age={'9' * 25}", "Max-Age=-" + "9" * 400,
           "expires=Fri, 99-Dec-2026 99:99:99 GMT", f"Version={LONG}", f'Port="{LONG}"')  # fmt: skip
PLACES = ("http://[::1", "http://[127.0.0.1]/", "http://127.0.0.1:99999999", f"http://127.0.0.1:{LONG}", "http://.../",
          "http://127.0.0.1/\xff", "http://" + "\xe4" * 300, "http://" + "a" * 70 + ".test/", "http://a b/", "ftp://x",
          "http://xn--" + "a" * 60 + "/", "http://*/", "http://@/", "http://[fe80::1%25lo]/",
          "http://127.0.0.1/%zz")  # fmt: skip
STATUSES = ("99999999999999 OK", f"{LONG} OK", "-1 OK", "0 OK", "\xd9\xa2\xd9\xa0\xd9\xa0 OK", "")
ODD_HEADERS = (f"Age: {LONG}", f"Date: {LONG}", f"Keep-Alive: timeout={LONG}", f"Cache-Control: max-age={LONG}",
               "Date: Fri, 31 Dec 99999999999 23:59:59 GMT", f"ETag: \"{LONG}\"", "ETag: \xa0x")  # fmt: skip


@contextmanager
def answering(status: str, *headers: str, body: str = "{}") -> Iterator[Misbehaving]:
    answer = "\r\n".join((f"HTTP/1.1 {status}", *headers, "", body)).encode("latin-1")

    def behave(connection: socket.socket) -> None:
        connection.sendall(answer)

    with misbehaving(behave) as server:
        yield server


def session(url: str) -> PeerSession:
    slept: list[float] = []
    return PeerSession(Service("caller", Keys(), now=NOW), "callee", url, sleep=slept.append, timeout=1, deadline=5)


def ask_in_every_way(server: Misbehaving) -> None:
    """Only errors of requests' and ours come out of a session, read at once, by pieces or raw, and out of a fetcher."""
    fetcher = HttpFetcher([server.url], FetchLimits(1.0, 1.0, 2.0))
    with suppress(PeersealError, requests.RequestException):
        fetcher.call("GET", "/")
    with suppress(PeersealError, requests.RequestException):
        session(server.url).get("/")
    with suppress(PeersealError, requests.RequestException):
        list(session(server.url).get("/", stream=True).iter_content(7))
    assert server.asked


@pytest.mark.parametrize("length", LENGTHS)
def test_an_answer_whose_length_is_none_is_refused(length: str) -> None:
    with answering("200 OK", f"Content-Length: {length}") as server:
        with pytest.raises(requests.ConnectionError):
            session(server.url).get("/")
        with pytest.raises(FetchError):
            HttpFetcher([server.url], FetchLimits(1.0, 1.0, 2.0)).call("GET", "/")


def test_a_length_that_is_said_twice_is_one() -> None:
    with answering("200 OK", "Content-Length: 2", "Content-Length: 2, 2") as server:
        assert session(server.url).get("/").content == b"{}"
        assert HttpFetcher([server.url]).call("GET", "/").body == b"{}"


def test_a_body_that_is_said_to_be_a_petabyte_takes_no_memory_before_it_comes() -> None:
    with answering("200 OK", f"Content-Length: {10**15}") as server:
        answer = session(server.url).get("/", stream=True)
        with pytest.raises(Exception, match="IncompleteRead"):
            answer.raw.read()


@pytest.mark.parametrize("size", CHUNKS)
def test_a_chunk_whose_size_is_none_raises_nothing_of_pythons_own(size: str) -> None:
    with answering("200 OK", "Transfer-Encoding: chunked", body=f"{size}\r\n{{}}\r\n0\r\n\r\n") as server:
        ask_in_every_way(server)


@pytest.mark.parametrize("header", [f"Set-Cookie: a=b; {attribute}" for attribute in COOKIES] + list(ODD_HEADERS))
def test_numbers_and_dates_that_do_not_matter_spoil_no_answer(header: str) -> None:
    with answering("200 OK", header, "Content-Length: 2") as server:
        assert session(server.url).get("/").content == b"{}"
        assert HttpFetcher([server.url]).call("GET", "/").body == b"{}"


@pytest.mark.parametrize("status", STATUSES)
def test_a_status_that_is_none_raises_nothing_of_pythons_own(status: str) -> None:
    with answering(status, "Content-Length: 2") as server:
        ask_in_every_way(server)


@pytest.mark.parametrize("place", PLACES)
def test_a_redirect_to_what_is_no_url_is_an_error_of_requests(place: str) -> None:
    with answering("302 Found", f"Location: {place}", "Content-Length: 2") as server:
        with pytest.raises(requests.RequestException):
            session(server.url).get("/")
        ask_in_every_way(server)


@pytest.mark.parametrize("tag", ["", "\xa0x", LONG, f'"{LONG}"', '"a b"', '"\x7f"', 'w/"3"', '"', '""3"', '"\xe4"'])
def test_an_etag_that_no_request_can_carry_is_none(tag: str) -> None:
    """The next request for the document would fail for it, and so would each one after that."""
    assert entity_tag(Answer(200, b"", {"etag": tag})) is None
    assert entity_tag(Answer(200, b"", {"etag": 'W/"3-gzip"'})) == 'W/"3-gzip"'


# Retry-After


@pytest.mark.parametrize("wait", WAITS)
def test_a_wait_that_is_none_or_longer_than_agreed_makes_it_the_answer(wait: str) -> None:
    with answering("503 Busy", f"Retry-After: {wait}", "Content-Length: 2") as server:
        answer = session(server.url).get("/")
    assert (answer.status_code, answer.content) == (503, b"{}")
    assert server.asked == (4 if wait in OVER else 1)


@given(
    st.one_of(
        st.text(), st.text("0123456789 -+.:,GMTFriDec"), st.datetimes().map(lambda at: f"{at:%a, %d %b %Y %T} GMT")
    )
)
@example("0")
@example(LONG)
def test_a_wait_is_a_finite_number_of_seconds_or_none(text: str) -> None:
    seconds = retry_after(text, NOW)
    assert seconds is None or 0 <= seconds < math.inf


def test_a_wait_is_in_seconds_or_until_a_date() -> None:
    assert retry_after(" 7\t", 0) == 7
    assert retry_after("Thu, 01 Jan 1970 00:01:00 GMT", 10) == 50
    assert retry_after("Thu, 01 Jan 1970 00:01:00 GMT", 100) == 0
    assert retry_after("Thursday, 01-Jan-70 00:01:00 GMT", 10) == 50, "RFC 850"
    assert retry_after("Thu Jan  1 00:01:00 1970", 10) == 50, "asctime"
    assert MAX_RETRY_AFTER < 7e9


# texts and JSON


@given(st.one_of(st.text(max_size=30), st.text("0123456789", max_size=30), st.binary(max_size=30)), st.integers(1, 30))
@example("٣", 18)
@example("²", 18)
@example("1_0", 18)
@example(" 1", 18)
@example("1\n", 18)
@example("+1", 18)
def test_a_natural_number_is_ascii_digits_and_as_many_as_agreed(text: Any, digits: int) -> None:
    found = natural(text, digits)
    said = text.decode("latin-1") if isinstance(text, bytes) else text
    is_number = 0 < len(said) <= digits and set(said) <= set("0123456789")
    assert (found is not None) is is_number
    assert found is None or f"{found:0{len(said)}d}" == said


@pytest.mark.parametrize(
    "text", [LONG, f"-{LONG}", "9" * 41, '{"exp": ' + "1" * 4000 + "}", "[1e999]", f"{LONG}.5", "-"]
)
def test_a_number_in_json_that_no_clock_and_no_database_takes_is_malformed(text: str) -> None:
    with pytest.raises(MalformedToken):
        strict_json(text)


@given(st.integers(-(2**127), 2**128 - 1))
def test_every_integer_of_128_bits_is_read(number: int) -> None:
    assert strict_json(str(number)) == number
