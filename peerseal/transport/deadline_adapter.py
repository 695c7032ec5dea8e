"""Calls that end in time: a transport adapter of `requests` whose connections obey `peerseal.transport.deadline`.

A socket's timeout, and so that of `requests`, begins anew with every byte: whoever sends one now and then, or takes
one, holds up a thread for as long as he likes. Here each read from a connection waits no longer than its thread still
may, be it for a head, a proxy's answer or a body, and so does each write. Where nothing bounds the thread, the timeout
of `requests` is all there is.

This is also where it is decided whom a call of ours connects to, whatever session makes it: a URL on loopback is never
proxied and leads to this machine or nowhere, and a URL that a stranger named may have to lead elsewhere.
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

import requests
from requests.adapters import HTTPAdapter
from requests.utils import select_proxy
from urllib3 import HTTPConnectionPool, PoolManager
from urllib3.connection import HTTPConnection
from urllib3.exceptions import HTTPError, LocationParseError, NewConnectionError
from urllib3.util import parse_url

from peerseal.protocol.hosts import is_loopback_host, is_this_machine, leads_elsewhere
from peerseal.protocol.numbers import natural
from peerseal.runtime.limits import LONGEST_TIMEOUT
from peerseal.transport.deadline import time_left

_PIECE = 1 << 14  # bytes of a record of TLS, at most
_MOST = 1 << 20  # bytes read at once


class WrongAddress(NewConnectionError):
    """The connection led to a machine that it must not lead to. ``why`` says to which."""

    def __init__(self, connection: HTTPConnection, why: str) -> None:
        super().__init__(connection, why)
        self.why = why


class _Notes(threading.local):
    """Where this thread's connections are noted."""

    sets: tuple[set[socket.socket], ...] = ()


_of_this_thread = _Notes()


class TimedAdapter(HTTPAdapter):
    """An HTTPAdapter whose calls end when the thread's time is over (`no_longer_than`), as does one of a server that
    falls silent: `requests` raises ReadTimeout for a head, and ConnectionError for a body, be it ours or the answer's.

    Each read asks anew how long it may wait: nothing is left of one call on a connection that another one uses again.

    With ``elsewhere`` no connection of its own leads to this machine, by whatever name: to loopback, a link-local,
    unspecified or multicast address, or an address of one of the machine's own interfaces. That is checked once it is
    made, before anything is sent. Where a proxy makes it, only the URL can be looked at.

    ``ca`` holds the certificates (PEM) that https is checked with, and no others, whatever ``verify`` says.
    """

    __attrs__ = [*HTTPAdapter.__attrs__, "_elsewhere", "_ca"]  # noqa: RUF012 - as HTTPAdapter declares it

    def __init__(self, *, elsewhere: bool = False, ca: str | None = None, **options: Any) -> None:
        self._elsewhere = elsewhere
        self._ca = ca
        super().__init__(**options)

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        """See HTTPAdapter."""
        super().init_poolmanager(*arguments, ca_cert_data=self._ca, **options)
        _time(self.poolmanager, self._elsewhere)

    def proxy_manager_for(self, proxy: str, **options: Any) -> PoolManager:
        """See HTTPAdapter."""
        return _time(super().proxy_manager_for(proxy, ca_cert_data=self._ca, **options))

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """See HTTPAdapter, which adds the public authorities to those of ``ca``."""
        if self._ca is None:
            super().cert_verify(conn, url, verify, cert)
        else:
            conn.cert_reqs, conn.ca_certs, conn.ca_cert_dir = "CERT_REQUIRED", None, None

    def send(
        self,
        request: requests.PreparedRequest,
        stream: bool = False,
        timeout: Any = None,
        verify: bool | str = True,
        cert: Any = None,
        proxies: dict[str, str] | None = None,
    ) -> requests.Response:
        """See HTTPAdapter. To a URL on loopback through no proxy, whoever named one."""
        host = _host(request)
        if "%" in host and ":" not in host:  # http.client asserts that it is the zone of an IPv6 address
            raise requests.exceptions.InvalidURL("a name of a host holds a percent sign", request=request)
        if self._elsewhere and not leads_elsewhere(host):
            raise requests.exceptions.InvalidURL(f"{host} is this machine", request=request)
        if is_this_machine(host) and select_proxy(str(request.url), proxies):
            proxies, request = None, request.copy()
            request.headers.pop("Proxy-Authorization", None)  # a redirect brings it along
        return super().send(request, stream=stream, timeout=timeout, verify=verify, cert=cert, proxies=proxies)


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


class _Reader(BufferedReader):
    """Reads as much as there is, however long the other side says that it will be: no more is reserved before."""

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
        """See HTTPResponse, which takes a Content-Length that is none for no Content-Length. That cannot be recovered
        from (RFC 9112 section 6.3): where the answer ends is not known. Raises HTTPException."""
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
    """Has the next wait end in time. Raises TimeoutError where that is over."""
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
    if elsewhere and (address == own or not leads_elsewhere(address)):
        raise WrongAddress(connection, f"{connection.host} leads to {address}, and may not lead to this machine")


def _host(request: requests.PreparedRequest) -> str:
    """The host as urllib3 reads it, which makes the connection; empty where it reads none."""
    try:
        return parse_url(str(request.url)).host or ""
    except HTTPError:
        return ""


def _time(manager: PoolManager, elsewhere: bool = False) -> PoolManager:
    """The manager, whose pools of whatever sort (a SOCKS proxy has its own) make timed connections from now on."""
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
