"""A load of prepared HTTP requests from one thread, as fast as the server answers.

It sends bytes and counts answers, so that it takes a few hundredths of a server's time; `Window.busy` says how much.
"""

import re
import selectors
import socket
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import urlsplit

CONNECTIONS = 8

_STATUS = re.compile(rb"HTTP/1\.1 ([0-9]{3}) ")
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)\r\n", re.IGNORECASE)
TIMEOUT = 30.0
"""Seconds without any answer after which the load gives up."""


@dataclass(frozen=True, slots=True)
class Window:
    """The result of one run: requests per second, and the share of a core that the load itself took."""

    per_second: float
    busy: float


def drive(url: str, requests: Sequence[bytes], *, statuses: Collection[int] = (200,), kept: bool = True) -> Window:
    """Send all ``requests`` to the server at ``url``, CONNECTIONS at a time: over connections that are ``kept``, or
    each over one of its own. Raises AssertionError for an answer of any other status, OSError where a connection
    breaks."""
    pending = iter(requests)
    with selectors.DefaultSelector() as waiting:
        connections = [Connection(url, statuses) for _ in range(min(CONNECTIONS, len(requests)))]
        cpu, started = time.thread_time(), time.perf_counter()
        for connection in connections:
            if connection.send_next(pending):
                waiting.register(connection.socket, selectors.EVENT_READ, connection)
        while waiting.get_map():
            ready = waiting.select(TIMEOUT)
            assert ready, "no answer"
            for key, _ in ready:
                connection = key.data
                if not connection.has_answered():
                    continue
                if not kept:
                    waiting.unregister(connection.socket)
                    connection.reconnect()
                    waiting.register(connection.socket, selectors.EVENT_READ, connection)
                if not connection.send_next(pending):
                    waiting.unregister(connection.socket)
        elapsed = time.perf_counter() - started
        busy = (time.thread_time() - cpu) / elapsed
    for connection in connections:
        connection.socket.close()
    return Window(len(requests) / elapsed, busy)


def get(path: str, *headers: str) -> bytes:
    """The bytes of one GET request."""
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: 127.0.0.1", "Accept: */*", *headers, "", ""]).encode("ascii")


class Connection:
    """One connection with one request at a time."""

    def __init__(self, url: str, statuses: Collection[int]) -> None:
        parts = urlsplit(url)
        self._address = parts.hostname, parts.port
        self._statuses = statuses
        self._received = b""
        self.socket = self._connected()

    def reconnect(self) -> None:
        """Replace the connection."""
        self.socket.close()
        self.socket = self._connected()

    def _connected(self) -> socket.socket:
        connection = socket.create_connection(self._address)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def send_next(self, pending: Iterator[bytes]) -> bool:
        """False if nothing is left to send."""
        request = next(pending, None)
        if request is None:
            return False
        self.socket.sendall(request)
        self._received = b""
        return True

    def has_answered(self) -> bool:
        """Read the available bytes; whether the answer is complete."""
        piece = self.socket.recv(65536)
        if not piece:
            raise ConnectionError("the server closed the connection")
        self._received += piece
        head, end, body = self._received.partition(b"\r\n\r\n")
        return bool(end) and len(body) >= self._body_length(head + b"\r\n")

    def _body_length(self, head: bytes) -> int:
        status = _STATUS.match(head)
        assert status is not None, head.decode("latin-1")
        assert int(status[1]) in self._statuses, head.decode("latin-1")
        if int(status[1]) == HTTPStatus.NOT_MODIFIED:
            return 0
        length = _LENGTH.search(head)
        assert length is not None, head.decode("latin-1")
        return int(length[1])
