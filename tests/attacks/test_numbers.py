"""Numbers, dates and lengths of others that no machine can hold: what comes out is the answer, or an error that is
documented."""

import argparse
import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from urllib3.exceptions import HTTPError

from peerseal.commands.arguments import seconds, seconds_or_none
from peerseal.errors import ContentTooLarge, DocumentRefused, FetchError, MalformedToken
from peerseal.protocol.encoding import canonical_json
from peerseal.protocol.ledger.checkpoint import parse_checkpoint
from peerseal.protocol.ledger.entries import Entry
from peerseal.requests import MAX_RETRY_AFTER, PeerSession
from peerseal.runtime.limits import CallLimits
from peerseal.transport.fetch import Answer, HttpFetcher, entity_tag
from peerseal.wsgi import read_body
from tests.support.wire import NOW, Keys, RawServer, Service, raw_server

LONG = "9" * 5000
MAX_BODY = 1000

STATUSES = ["200 OK", "302 Found", "401 Unauthorized", "503 Service Unavailable"]
RETRY_AFTER = [
    *(
        LONG,
        "9" * 4000,
        "9" * 19,
        "-5",
        "+5",
        "1e5",
        "inf",
        "nan",
        "\xb2",
        "0x10",
        "1_0",
        ", , ,",
        "Mon, 1, 2, 3 : : :",
    ),
    "Fri, 31 Dec 99999999999 23:59:59 GMT",
    "Fri, 31 Dec 99999 23:59:59 GMT",
    "Fri, 99 Dec 0000 23:59:59 GMT",
    "Fri, 31 Dec 9999 99:99:99 GMT",
    "Fri, 31 Dec -1 23:59:59 GMT",
    f"Fri, 31 Dec {LONG} 23:59:59 GMT",
    f"Fri, 31 Dec 1999 {LONG}:59:59 GMT",
    f"Fri, 31 Dec 1999 23:59:59 +{LONG}",
    "Fri, 31 Dec 1999 23:59:59 +99999999999999999999",
]
HEADERS = [
    *(f"Retry-After: {value}" for value in RETRY_AFTER),
    *(
        f"Content-Length: {value}"
        for value in (LONG, "9" * 4000, "9" * 19, "9" * 15, "-1", "1, 2", "1_0", "+2", "\xb2")
    ),
    *(f"Location: {value}" for value in ("http://[::1/", "//[::1/", f"http://127.0.0.1:{LONG}/", "http://a:99999/")),
    *("Location: http://127.0.0.1:-1/", "Location: /\xff\xfe", "Location: http://\xff/", "Location: http://a:b:c/"),
    *(f"Location: http://{'a' * 70}.localhost/", f"Location: http://{'a.' * 200}localhost/", f"Location: /{LONG}"),
    *(f"{name}: {LONG}" for name in ("Age", "Date", "Keep-Alive", "Expires", "ETag")),
    "Transfer-Encoding: chunked",
]


@pytest.fixture(scope="module")
def server() -> Iterator[RawServer]:
    with raw_server() as server:
        yield server


@pytest.fixture
def session(server: RawServer) -> Iterator[PeerSession]:
    limits = CallLimits(failures=0)  # bad answers follow one another here
    with PeerSession(
        Service("caller", Keys(), now=NOW),
        "callee",
        server.url,
        limits=limits,
        retries=2,
        timeout=5,
        deadline=60.0,
        sleep=lambda _: None,
    ) as session:
        yield session


def answer(status: str, header: str, chunk: str = LONG) -> Any:
    """An answer as it goes out, with one header of interest. A chunk of the body says that it is very long."""

    class Raw:
        def encode(self) -> bytes:
            length = "" if header.startswith(("Content-Length", "Transfer-Encoding")) else "Content-Length: 2\r\n"
            body = f"{chunk}\r\n{{}}" if header.startswith("Transfer") else "{}"
            head = f"HTTP/1.1 {status}\r\n{header}\r\n{length}Connection: close\r\n"
            return f"{head}Content-Type: application/problem+json\r\n\r\n{body}".encode("latin-1")

    return Raw()


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize("header", HEADERS, ids=lambda header: header[:45].encode("ascii", "replace").decode())
class TestAnAnswerWithAHeaderThatNobodyCanHold:
    def test_is_an_answer_of_a_callee_or_an_error_of_requests(
        self, session: PeerSession, server: RawServer, status: str, header: str
    ) -> None:
        server.script[:] = [answer(status, header)] * 3
        with suppress(requests.RequestException):
            assert session.get("/x").status_code in (200, int(status[:3]))

    def test_is_one_when_it_is_streamed(
        self, session: PeerSession, server: RawServer, status: str, header: str
    ) -> None:
        server.script[:] = [answer(status, header)] * 3
        with suppress(requests.RequestException, HTTPError):
            session.get("/x", stream=True, allow_redirects=False).raw.read()

    def test_is_an_answer_of_a_registry_or_a_fetch_error(self, server: RawServer, status: str, header: str) -> None:
        server.script[:] = [answer(status, header)] * 3
        with suppress(FetchError):
            assert HttpFetcher([server.url]).call("GET", "/x").status == int(status[:3])


@pytest.mark.parametrize("chunk", ["f" * 5000, "7fffffffffffffff", "ffffffffffffffff", "10000000000", "-1", "1_0"])
def test_a_chunk_that_says_it_is_longer_than_memory(session: PeerSession, server: RawServer, chunk: str) -> None:
    """It is read as far as it comes."""
    server.script[:] = [answer("200 OK", "Transfer-Encoding: chunked", chunk)] * 6
    with pytest.raises(requests.RequestException):
        session.get("/x")
    with pytest.raises(HTTPError):
        session.get("/x", stream=True).raw.read()
    with pytest.raises(FetchError):
        HttpFetcher([server.url]).call("GET", "/x")


@pytest.mark.parametrize("value", [LONG, "9" * 4000, "9" * 19, str(int(MAX_RETRY_AFTER) + 1), "0" * 50 + "31"])
def test_an_answer_that_asks_to_wait_for_longer_than_agreed_is_the_answer(
    session: PeerSession, server: RawServer, value: str
) -> None:
    server.script[:] = [answer("503 Service Unavailable", f"Retry-After: {value}")] * 3
    assert session.get("/x").status_code == 503
    assert len(server.script) == 2


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=60))
@example("Fri, 31 Dec 99999999999 23:59:59 GMT")
def test_whatever_an_answer_says_about_waiting(session: PeerSession, server: RawServer, value: str) -> None:
    server.script[:] = [answer("503 Service Unavailable", f"Retry-After: {value}")] * 3
    assert session.get("/x").status_code == 503 or not server.script


@pytest.mark.parametrize("size", [LONG, "9" * 19, "-1", "01", "1_0", "١", "+1", " 1"])
def test_the_size_in_a_checkpoint(size: str) -> None:
    with pytest.raises(DocumentRefused):
        parse_checkpoint(f"acme.internal\n{size}\n{'A' * 43}=\n\n— x AAAA\n")


@pytest.mark.parametrize("member", ["seq", "time"])
@pytest.mark.parametrize("number", [-1, 10**18, 10**400, 10**4000])
def test_the_numbers_in_an_entry_of_the_ledger(member: str, number: int) -> None:
    said = json.loads(Entry(1, NOW, "key_admitted").encode()) | {member: number}
    with pytest.raises(MalformedToken):
        Entry.decode(canonical_json(said))


@pytest.mark.parametrize("declared", [LONG, "9" * 19, "0" * 5000 + "1001"])
def test_the_length_of_a_request(declared: str) -> None:
    with pytest.raises(ContentTooLarge):
        read_body({"CONTENT_LENGTH": declared, "wsgi.input": None}, MAX_BODY)


@pytest.mark.parametrize("text", ["1e300", "1e10", "inf", "nan", "0", "-1", "9" * 400, ""])
def test_an_interval_that_no_timer_can_wait_for(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected"):
        seconds(text)


@pytest.mark.parametrize("text", ["1e300", "inf", "nan", "-0", "-1", "9" * 400, ""])
def test_a_wait_that_no_timer_can_keep(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected"):
        seconds_or_none(text)


def test_a_wait_may_be_no_time_at_all() -> None:
    assert seconds_or_none("0") == 0.0


@pytest.mark.parametrize("length", [LONG, "9" * 20, "-1", "+2", "2, 3", "0x2", "", "1_0", "2.0", "\xb2", "2 2", "NaN"])
def test_an_answer_whose_end_is_not_told_is_refused(session: PeerSession, server: RawServer, length: str) -> None:
    """http.client reads on to the end of the connection, and takes for whole what was cut off."""
    server.script[:] = [answer("200 OK", f"Content-Length: {length}")] * 2
    with pytest.raises(requests.ConnectionError):
        session.post("/", data=b"")
    with pytest.raises(FetchError):
        HttpFetcher([server.url]).call("POST", "/")


@pytest.mark.parametrize("length", ["2", "02", "2, 2", "2\r\nContent-Length: 2"])
def test_a_length_that_is_said_twice_is_one(session: PeerSession, server: RawServer, length: str) -> None:
    server.script[:] = [answer("200 OK", f"Content-Length: {length}")]
    assert session.get("/").content == b"{}"


@pytest.mark.parametrize("size", ["-2", "-7fffffff", "f" * 16, "7" + "f" * 15, "g", "", "0_2"])
def test_a_chunk_whose_size_is_none_is_an_error_of_requests(session: PeerSession, server: RawServer, size: str) -> None:
    server.script[:] = [answer("200 OK", "Transfer-Encoding: chunked", size)] * 2
    with suppress(requests.RequestException):
        session.post("/", data=b"")
    with suppress(requests.RequestException):
        list(session.post("/", data=b"", stream=True).iter_content(7))
    assert server.script == []


@pytest.mark.parametrize("tag", ["", "\xa0x", LONG, f'"{LONG}"', '"a b"', '"\x7f"', 'w/"3"', '"', '""3"', '"\xe4"'])
def test_an_etag_that_no_request_can_carry_is_none(tag: str) -> None:
    """The next request for the document would fail for it, and so would each one after that."""
    assert entity_tag(Answer(200, b"", {"etag": tag})) is None
    assert entity_tag(Answer(200, b"", {"etag": 'W/"3-gzip"'})) == 'W/"3-gzip"'
