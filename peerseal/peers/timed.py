"""Calls that end in time: a transport adapter of `requests` whose connections obey `peerseal.peers.patience`.

A socket's timeout, and so that of `requests`, begins anew with every byte: whoever sends one now and then, or takes
one, holds up a thread for as long as he likes. Here each read from a connection waits no longer than its thread still
may, be it for a head, a proxy's answer or a body, and so does each write. Where nothing bounds the thread, the timeout
of `requests` is all there is.
"""

import math
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from http.client import HTTPResponse
from io import BufferedReader, RawIOBase
from typing import Any, cast

from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, PoolManager

from peerseal.peers.patience import time_left

_PIECE = 1 << 14  # bytes of a record of TLS, at most


class _Notes(threading.local):
    """Where this thread's connections are noted."""

    sets: tuple[set[socket.socket], ...] = ()


_of_this_thread = _Notes()


class TimedAdapter(HTTPAdapter):
    """An HTTPAdapter whose calls end when the thread's time is over (`no_longer_than`), as does one of a server that
    falls silent: `requests` raises ReadTimeout for a head, and ConnectionError for a body, be it ours or the answer's.

    Each read asks anew how long it may wait: nothing is left of one call on a connection that another one uses again.
    """

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        """See HTTPAdapter."""
        super().init_poolmanager(*arguments, **options)
        _time(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **options: Any) -> PoolManager:
        """See HTTPAdapter."""
        return _time(super().proxy_manager_for(proxy, **options))


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


class _TimedResponse(HTTPResponse):
    def __init__(self, sock: socket.socket, *arguments: Any, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        self.fp = BufferedReader(_TimedReader(sock, cast(socket.SocketIO, self.fp.detach())))
        for noted in _of_this_thread.sets:
            noted.add(sock)


class _Timed:
    """Mixed into a connection. What is sent leaves it in pieces, since TLS gives each record a timeout of its own."""

    response_class = _TimedResponse

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


def _time(manager: PoolManager) -> PoolManager:
    """The manager, whose pools of whatever sort (a SOCKS proxy has its own) make timed connections from now on."""
    pools = manager.pool_classes_by_scheme
    manager.pool_classes_by_scheme = {scheme: _timed(pool) for scheme, pool in pools.items()}
    return manager


@cache
def _timed(pool: type[HTTPConnectionPool]) -> type[HTTPConnectionPool]:
    connection: Any = pool.ConnectionCls
    if connection.response_class is _TimedResponse:
        return pool
    timed = type(f"Timed{connection.__name__}", (_Timed, connection), {})
    return type(f"Timed{pool.__name__}", (pool,), {"ConnectionCls": timed})
