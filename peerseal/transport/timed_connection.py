"""Connections of urllib3 whose reads and writes end in time (`peerseal.transport.deadline`).

A socket's timeout, and so that of urllib3, starts again with every byte: a peer that drips bytes, or takes them one
by one, resets it for ever. Here each read and write asks how long its thread may still wait, be it for a head, a
proxy's answer or a body. Where nothing limits the thread, only urllib3's timeout holds.

This module alone uses two things that urllib3 and http.client do not document. It overrides `HTTPConnection._new_conn`,
because no public method runs between the connection and the TLS handshake, and a wrong address must be refused before
anything is sent. It replaces the buffered reader ``fp`` of a response, because nothing else sees each read of a head.
"""

import math
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.client import HTTPException, HTTPResponse
from io import BufferedReader, RawIOBase
from typing import Any, cast

from urllib3 import HTTPConnectionPool, PoolManager
from urllib3.connection import HTTPConnection
from urllib3.exceptions import LocationParseError, NewConnectionError

from peerseal.protocol.encoding import natural
from peerseal.protocol.hosts import is_loopback_host, may_be_other_machine
from peerseal.runtime.limits import LONGEST_TIMEOUT
from peerseal.transport.deadline import time_left

_PIECE = 1 << 14  # bytes of a record of TLS, at most
_MOST = 1 << 20  # bytes read at once


def with_timed_connections(manager: PoolManager, elsewhere: bool = False) -> PoolManager:
    """The manager, whose pools of each sort (a SOCKS proxy has its own) make timed connections from now on."""
    pools = manager.pool_classes_by_scheme
    manager.pool_classes_by_scheme = {scheme: _timed(pool, elsewhere) for scheme, pool in pools.items()}
    return manager


@cache
def _timed(pool: type[HTTPConnectionPool], elsewhere: bool) -> type[HTTPConnectionPool]:
    connection: Any = pool.ConnectionCls
    if connection.response_class is _TimedResponse:
        return pool
    timed = type(f"Timed{connection.__name__}", (_Timed, connection), {"elsewhere": elsewhere})
    return type(f"Timed{pool.__name__}", (pool,), {"ConnectionCls": timed})


class WrongAddress(NewConnectionError):
    """The connection led to a machine that it must not lead to. ``why`` says to which."""

    def __init__(self, connection: HTTPConnection, why: str) -> None:
        super().__init__(connection, why)
        self.why = why


class _OfThisThread(threading.local):
    """The sets in which this thread's connections are noted."""

    sets: tuple[set[socket.socket], ...] = ()


_of_this_thread = _OfThisThread()


@contextmanager
def noting_connections(open_ones: set[socket.socket]) -> Iterator[None]:
    """Keeps in ``open_ones`` the connections on which this thread waits within, so that another thread can shut them
    down."""
    before, mine = _of_this_thread.sets, set[socket.socket]()
    _of_this_thread.sets = (open_ones, mine)
    try:
        yield
    finally:
        _of_this_thread.sets = before
        open_ones.difference_update(mine)


class _TimedReader(RawIOBase):
    """Reads from a connection, with its present timeout, for as long as the thread that reads may wait. So nothing is
    left of one call on a connection that another call uses again."""

    def __init__(self, connection: socket.socket, raw: socket.SocketIO) -> None:
        self._connection = connection
        self._raw = raw
        self._timeout = connection.gettimeout()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        _bound(self._connection, self._timeout)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Reader(BufferedReader):
    """Reads in pieces: memory is taken for what has come, not for the length that the other side announces."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or -1 <= size <= _MOST:
            return super().read(size)
        if size < 0:
            raise HTTPException(f"a chunk of {size} bytes")
        pieces = []
        while size and (piece := super().read(min(size, _MOST))):
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)


class _TimedResponse(HTTPResponse):
    def __init__(self, sock: socket.socket, *arguments: Any, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        self.fp = _Reader(_TimedReader(sock, cast(socket.SocketIO, self.fp.detach())))
        for noted in _of_this_thread.sets:
            noted.add(sock)

    def begin(self) -> None:
        """See HTTPResponse, which ignores a Content-Length that is no number. There is no recovery from that (RFC 9112
        section 6.3): where the answer ends is not known. Raises HTTPException."""
        super().begin()
        values = self.headers.get_all("Content-Length") or []
        lengths = {length.strip(" \t") for value in values for length in value.split(",")}
        if lengths and not self.chunked and (len(lengths) > 1 or natural(_shortest(lengths.pop())) is None):
            self.close()
            raise HTTPException("a Content-Length that is none")


class _Timed:
    """Mixed into a connection. What is sent leaves it in pieces, since TLS gives each record a timeout of its own."""

    response_class = _TimedResponse
    elsewhere = False

    def _new_conn(self) -> socket.socket:
        connection: Any = self
        try:
            made: socket.socket = super()._new_conn()  # type: ignore[misc]
        except LocationParseError as error:  # which requests lets pass: a label of a name that is too long
            raise NewConnectionError(connection, f"no name of a host: {error}") from error
        try:
            _check_address(connection, made, self.elsewhere)
        except BaseException:
            made.close()
            raise
        return made

    def send(self, data: Any) -> None:
        connection: Any = self
        send = super().send  # type: ignore[misc]
        for start in range(0, len(data), _PIECE):
            if connection.sock is not None:
                _bound(connection.sock, connection.timeout)
            send(data[start : start + _PIECE])


def _shortest(number: str) -> str:
    return number.lstrip("0") or number[:1]


def _bound(connection: socket.socket, timeout: float | None) -> None:
    """Has the next wait end in time. Raises TimeoutError where the time is over."""
    left = time_left()
    if left <= 0:
        raise TimeoutError("the call took longer than agreed")
    connection.settimeout(min(timeout or left, left, LONGEST_TIMEOUT) if left < math.inf else timeout)


def _check_address(connection: HTTPConnection, made: socket.socket, elsewhere: bool) -> None:
    """A name on loopback must lead there, since it is believed as loopback is; with ``elsewhere``, no name may lead to
    this machine. Raises NewConnectionError."""
    here = is_loopback_host(connection.host)
    if not (here or elsewhere):
        return
    try:
        address, own = made.getpeername()[0], made.getsockname()[0]
    except OSError as error:  # it was closed again
        raise NewConnectionError(connection, f"the connection broke: {error}") from error
    if here and not is_loopback_host(address):
        raise WrongAddress(connection, f"{connection.host} leads to {address}, which is not on loopback")
    if elsewhere and (address == own or not may_be_other_machine(address)):
        raise WrongAddress(connection, f"{connection.host} leads to {address}, and may not lead to this machine")
