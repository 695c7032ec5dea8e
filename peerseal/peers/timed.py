"""Calls that end in time: a transport adapter of `requests` whose connections obey `peerseal.peers.patience`.

A socket's timeout, and so that of `requests`, begins anew with every byte: whoever sends one now and then, or takes
one, holds up a thread for as long as he likes. Here each read from a connection waits no longer than its thread still
may, be it for a head, a proxy's answer or a body, and so does each write. Where nothing bounds the thread, the timeout
of `requests` is all there is.

They also go where they were meant to: a call to loopback goes through no proxy, whatever the environment or the caller
says, and a connection is looked at before a byte is sent on it (`peerseal.peers.addresses`).
"""

import math
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum, auto
from functools import cache
from http.client import HTTPException, HTTPResponse
from io import BufferedReader, RawIOBase
from typing import Any, cast

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, PoolManager
from urllib3.exceptions import LocationParseError, NewConnectionError

from peerseal.peers.addresses import is_loopback, wrong_address
from peerseal.peers.patience import time_left
from peerseal.protocol.numbers import natural

_AT_ONCE = 1 << 20  # bytes read in one piece
_PIECE = 1 << 14  # bytes of a record of TLS, at most


class _Notes(threading.local):
    """Where this thread's connections are noted."""

    sets: tuple[set[socket.socket], ...] = ()


_of_this_thread = _Notes()


class TimedAdapter(HTTPAdapter):
    """An HTTPAdapter whose calls end when the thread's time is over (`no_longer_than`), as does one of a server that
    falls silent: `requests` raises ReadTimeout for a head, and ConnectionError for a body, be it ours or the answer's.

    Each read asks anew how long it may wait: nothing is left of one call on a connection that another one uses again.
    With ``remote_only`` it connects to no address of this machine; through a proxy, the proxy decides that.
    """

    def __init__(self, *arguments: Any, remote_only: bool = False, **options: Any) -> None:
        self._route = _Route.REMOTE if remote_only else _Route.DIRECT
        super().__init__(*arguments, **options)

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        """See HTTPAdapter."""
        super().init_poolmanager(*arguments, **options)
        _time(self.poolmanager, self._route)

    def proxy_manager_for(self, proxy: str, **options: Any) -> PoolManager:
        """See HTTPAdapter."""
        return _time(super().proxy_manager_for(proxy, **options), _Route.PROXY)

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: bool | str = True,
        cert: Any = None,
        proxies: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """See HTTPAdapter: what goes to loopback goes there directly. A proxy would read it."""
        used = {} if is_loopback(request.url or "") else dict(proxies or {})
        try:
            return super().send(request, stream=stream, timeout=timeout, verify=verify, cert=cert, proxies=used)
        except LocationParseError as error:  # a host that no resolver takes, which urllib3 says in its own way
            raise requests.exceptions.InvalidURL(error, request=request) from error


class WrongAddress(NewConnectionError):
    """The host leads where it must not; nothing was sent. ``text`` says where."""

    def __init__(self, connection: Any, text: str) -> None:
        super().__init__(connection, text)
        self.text = text


class _Route(Enum):
    """How a connection reaches its server, and so what its address says."""

    DIRECT = auto()
    REMOTE = auto()
    """Directly, and never to this machine."""
    PROXY = auto()
    """Its address is the proxy's."""


@contextmanager
def noting_connections(open_ones: set[socket.socket]) -> Iterator[None]:
    """Keeps in ``open_ones`` what this thread waits on within, for another thread to shut down."""
    before, mine = _of_this_thread.sets, set[socket.socket]()
    _of_this_thread.sets = (open_ones, mine)
    try:
        yield
    finally:
        _of_this_thread.sets = before
        open_ones.difference_update(mine)


class _TimedReader(RawIOBase):
    """Reads from a connection, with the timeout that it has now, for as long as the thread that reads may wait."""

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


class _Stream(BufferedReader):
    """What `http.client` reads from, by as many bytes as a server says: a chunk of minus two, a body of a petabyte."""

    def read(self, size: int | None = -1, /) -> bytes:
        """As BufferedReader's, with no memory taken for what has not come yet."""
        if size is None or -1 <= size <= _AT_ONCE:
            return super().read(size)
        if size < 0:
            raise HTTPException("a length below zero")
        parts = []
        while size > 0 and (part := super().read(min(size, _AT_ONCE))):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


class _TimedResponse(HTTPResponse):
    def __init__(self, sock: socket.socket, *arguments: Any, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        self.fp = _Stream(_TimedReader(sock, cast(socket.SocketIO, self.fp.detach())))
        for noted in _of_this_thread.sets:
            noted.add(sock)

    def begin(self) -> None:
        """As HTTPResponse's. Raises HTTPException for a Content-Length that is no length: RFC 9112 section 6.3."""
        super().begin()
        said = self.headers.get_all("Content-Length") or []
        lengths = {length.strip() for value in said for length in value.split(",")}
        if lengths and not self.chunked and (len(lengths) > 1 or natural(lengths.pop()) is None):
            self.close()
            raise HTTPException("a Content-Length that is no length")


class _Timed:
    """Mixed into a connection. What is sent leaves it in pieces, since TLS gives each record a timeout of its own."""

    response_class = _TimedResponse
    route = _Route.DIRECT

    def _new_conn(self) -> socket.socket:
        """As urllib3's, which its own SOCKS connections replace too: the one place before TLS begins."""
        connection: Any = self
        made: socket.socket = super()._new_conn()  # type: ignore[misc]
        if self.route is _Route.PROXY:
            return made
        wrong = wrong_address(connection.host, made, remote_only=self.route is _Route.REMOTE)
        if wrong is not None:
            made.close()
            raise WrongAddress(connection, wrong)
        return made

    def send(self, data: Any) -> None:
        connection: Any = self
        send = super().send  # type: ignore[misc]
        for start in range(0, len(data), _PIECE):
            if connection.sock is not None:
                _bound(connection.sock, connection.timeout)
            send(data[start : start + _PIECE])


def _bound(connection: socket.socket, timeout: float | None) -> None:
    """Has the next wait end in time. Raises TimeoutError where that is over."""
    left = time_left()
    if left <= 0:
        raise TimeoutError("the call took longer than agreed")
    connection.settimeout(min(timeout or left, left) if left < math.inf else timeout)


def _time(manager: PoolManager, route: _Route) -> PoolManager:
    """The manager, whose pools of whatever sort (a SOCKS proxy has its own) make timed connections from now on."""
    pools = manager.pool_classes_by_scheme
    manager.pool_classes_by_scheme = {scheme: _timed(pool, route) for scheme, pool in pools.items()}
    return manager


@cache
def _timed(pool: type[HTTPConnectionPool], route: _Route) -> type[HTTPConnectionPool]:
    connection: Any = pool.ConnectionCls
    if connection.response_class is _TimedResponse:
        return pool
    timed = type(f"Timed{connection.__name__}", (_Timed, connection), {"route": route})
    return type(f"Timed{pool.__name__}", (pool,), {"ConnectionCls": timed})
