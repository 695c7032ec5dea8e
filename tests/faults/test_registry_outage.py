"""A registry that is down in every way that a network knows: each call ends in time, and in a FetchError.

Real sockets, and limits that are small enough to wait for.
"""

import gzip
import socket
import struct
import time

import pytest

from peerseal import TrustLimits, TrustStore, Verifier
from peerseal.errors import FetchError, TrustUnavailable
from peerseal.runtime.limits import FetchLimits
from peerseal.testing import Clock, MemoryRegistry
from peerseal.transport.fetch import HttpFetcher
from tests.peerseal.served import served
from tests.support.misbehaving import FAR_TOO_LONG, IN_TIME, Behaviour, hangs, misbehaving, refused, unreachable
from tests.support.wire import raw_server

LIMITS = FetchLimits(connect_timeout=0.2, read_timeout=0.25, total_timeout=0.5, max_bytes=1000)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/jwt\r\n"


def until_it_is_given_up(connection: socket.socket, piece: bytes, pause: float) -> None:
    """Send the piece again and again until the other side has gone, or far too long after."""
    deadline = time.monotonic() + FAR_TOO_LONG
    while time.monotonic() < deadline:
        connection.sendall(piece)
        time.sleep(pause)


def closes_without_a_word(_: socket.socket) -> None:
    pass


def speaks_another_protocol(connection: socket.socket) -> None:
    connection.sendall(b"220 mail.example.com ESMTP\r\n")


def sends_slow_bytes(connection: socket.socket) -> None:
    connection.sendall(HEAD + b"Content-Length: 900\r\n\r\n")
    until_it_is_given_up(connection, b"x", 0.02)


def sends_slow_chunks(connection: socket.socket) -> None:
    connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    until_it_is_given_up(connection, b"1\r\nx\r\n", 0.02)


def sends_a_slow_head(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
    until_it_is_given_up(connection, b"x", 0.02)


def sends_many_interim_answers(connection: socket.socket) -> None:
    until_it_is_given_up(connection, b"HTTP/1.1 100 Continue\r\n\r\n", 0.02)


def stops_in_the_body(connection: socket.socket) -> None:
    connection.sendall(HEAD + b"Content-Length: 900\r\n\r\nhalf")
    connection.recv(1)


def closes_in_the_body(connection: socket.socket) -> None:
    connection.sendall(HEAD + b"Content-Length: 900\r\n\r\nhalf")


def closes_in_a_chunk(connection: socket.socket) -> None:
    connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n10\r\nhalf")


def resets_in_the_body(connection: socket.socket) -> None:
    connection.sendall(HEAD + b"Content-Length: 900\r\n\r\nhalf")
    time.sleep(0.05)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def sends_an_endless_body(connection: socket.socket) -> None:
    connection.sendall(HEAD + b"\r\n")
    until_it_is_given_up(connection, b"x" * 65536, 0)


def sends_endless_chunks(connection: socket.socket) -> None:
    connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    until_it_is_given_up(connection, b"8000\r\n" + b"x" * 0x8000 + b"\r\n", 0)


def sends_endless_headers(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    until_it_is_given_up(connection, b"X-More: y\r\n" * 100, 0)


def sends_what_unpacks_to_a_gigabyte(connection: socket.socket) -> None:
    bomb = gzip.compress(bytes(64 * 1024 * 1024))
    connection.sendall(HEAD + f"Content-Encoding: gzip\r\nContent-Length: {len(bomb)}\r\n\r\n".encode() + bomb)
    connection.recv(1)


def sends_what_does_not_unpack(connection: socket.socket) -> None:
    connection.sendall(HEAD + b"Content-Encoding: gzip\r\nContent-Length: 9\r\n\r\nnot gzip!")


def redirects_elsewhere(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n")


def is_a_gateway_without_a_registry(connection: socket.socket) -> None:
    page = b"<html>502 Bad Gateway</html>"
    connection.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: %d\r\n\r\n%b" % (len(page), page))


BEHAVIOURS: list[Behaviour] = [
    hangs, closes_without_a_word, speaks_another_protocol, sends_slow_bytes, sends_slow_chunks, sends_a_slow_head,
    sends_many_interim_answers, stops_in_the_body, closes_in_the_body, closes_in_a_chunk, resets_in_the_body,
    sends_an_endless_body, sends_endless_chunks, sends_endless_headers, sends_what_unpacks_to_a_gigabyte,
    sends_what_does_not_unpack, redirects_elsewhere, is_a_gateway_without_a_registry,
]  # fmt: skip


@pytest.mark.parametrize("behave", BEHAVIOURS, ids=lambda behave: behave.__name__)
def test_a_registry_that(behave: Behaviour) -> None:
    with misbehaving(behave) as server:
        began = time.monotonic()
        with pytest.raises(FetchError):
            HttpFetcher([server.url], LIMITS).call("GET", "/v1/changes?since=0")
        assert time.monotonic() - began < IN_TIME


def test_a_registry_that_is_not_there() -> None:
    with pytest.raises(FetchError):
        HttpFetcher([refused()], LIMITS).call("GET", "/")


def test_a_registry_that_cannot_be_reached() -> None:
    with unreachable() as url:
        began = time.monotonic()
        with pytest.raises(FetchError):
            HttpFetcher([url], LIMITS).call("GET", "/")
        assert time.monotonic() - began < IN_TIME


def test_a_name_that_nobody_knows() -> None:
    with pytest.raises(FetchError):
        HttpFetcher(["http://registry.invalid"], LIMITS).call("GET", "/")


@pytest.mark.parametrize("status", [304, 400, 401, 404, 409, 429, 500, 503])
def test_any_other_status_is_an_answer(status: int) -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 %d As Asked\r\nContent-Length: 0\r\n\r\n" % status)

    with misbehaving(answer) as server:
        assert HttpFetcher([server.url], LIMITS).call("GET", "/").status == status


def test_a_status_500_with_a_page_is_a_trust_store_that_cannot_say() -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 500 Oops\r\nContent-Length: 6\r\n\r\n<html>")

    with misbehaving(answer) as server, pytest.raises(TrustUnavailable):
        _ = TrustStore(server.url).domain


class TestMirrors:
    def test_reading_calls_go_on_to_the_next_one(self) -> None:
        with misbehaving(hangs) as slow, raw_server() as mirror:
            answer = HttpFetcher([refused(), slow.url, mirror.url], LIMITS).call("GET", "/v1/x")
            assert (answer.status, [seen.target for seen in mirror.seen]) == (200, ["/v1/x"])

    def test_the_first_that_answers_is_believed_to_have_answered(self) -> None:
        with raw_server() as primary, raw_server() as mirror:
            HttpFetcher([primary.url, mirror.url], LIMITS).call("GET", "/")
            assert (len(primary.seen), len(mirror.seen)) == (1, 0)

    @pytest.mark.parametrize("method", ["POST", "DELETE"])
    def test_writing_calls_go_to_the_primary_alone(self, method: str) -> None:
        with raw_server() as mirror, pytest.raises(FetchError):
            HttpFetcher([refused(), mirror.url], LIMITS).call(method, "/", body=b"{}")
        assert mirror.seen == []


class TestCachedPeers:
    def test_they_verify_on_for_the_offline_limit_and_are_refused_with_503_after_it(self) -> None:
        clock = Clock()
        limits = TrustLimits(poll_interval=3600.0)
        with MemoryRegistry(clock=clock) as registry:
            client = registry.identity("client")
            with served(registry) as url:
                trust = TrustStore(url, pin=registry.pin, limits=limits, clock=clock)
                callee = Verifier(trust, audience="callee", allow={"client": (), "stranger": ()}, clock=clock)

                def call() -> str:
                    token = client.sign_request("callee", method="GET", target="/")
                    return callee.verify(token, method="GET", target="/").service

                assert call() == "client"
                registry.down = True
                clock.advance(limits.offline_limit - 10)
                trust.refresh()
                assert call() == "client"
                clock.advance(20)
                with pytest.raises(TrustUnavailable) as caught:
                    call()
                assert caught.value.status == 503
                assert caught.value.retry_after > 0
                registry.down = False
                clock.advance(limits.cooldown)
                assert call() == "client"
                trust.stop()

    def test_a_caller_never_seen_gets_503_and_not_401(self) -> None:
        with MemoryRegistry() as registry:
            stranger = registry.identity("stranger")
            token = stranger.sign_request("callee", method="GET", target="/")
            callee = Verifier(registry.trust_store(), audience="callee", allow={"stranger": ()})
            registry.down = True
            with pytest.raises(TrustUnavailable):
                callee.verify(token, method="GET", target="/")
