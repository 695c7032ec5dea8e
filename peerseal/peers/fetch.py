"""The one network seam: every call to a registry is made here, and only FetchError leaves.

Timeouts for connecting, reading and in total, a cap on bytes, no redirects, nothing from a netrc file. Redirects are
not followed because an answer from somewhere else is not the answer that was asked for.
"""

import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPResponse
from io import BufferedReader, RawIOBase
from socket import SocketIO, socket
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError

from peerseal.errors import ConfigurationError, FetchError
from peerseal.peers.forks import in_each_child
from peerseal.peers.limits import FetchLimits

_CHUNK = 64 * 1024
_NO_ANSWER = frozenset((502, 504, *range(300, 400))) - {304}
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Answer:
    """What the registry said. ``headers`` has lower-case names."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


class Fetcher(Protocol):
    """Calls a registry."""

    def call(self, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        """The answer to one call; ``path`` is an origin-form target below the registry's base URL. Any status counts
        as an answer but those of a broken gateway (502, 504). Raises FetchError."""

    def target(self, path: str) -> str:
        """The request-target under which the registry receives a call to ``path``: what is signed."""


class HttpFetcher:
    """A Fetcher over HTTP with `requests`, one connection pool a process.

    ``urls`` are the primary and its mirrors: reading calls try them in turn, writing calls go to the primary.
    """

    def __init__(self, urls: Sequence[str], limits: FetchLimits | None = None) -> None:
        self._urls = tuple(_base_url(url) for url in urls)
        if not self._urls:
            raise ConfigurationError("no registry URL is given")
        self._limits = limits or FetchLimits()
        self._session: requests.Session | None = None
        self._pid = 0
        self._lock = threading.Lock()
        in_each_child(self._forget_lock)

    @property
    def loopback_only(self) -> bool:
        """Whether every URL is on this machine, so that a root key may be believed on first use."""
        return all(urlsplit(url).hostname in _LOOPBACK for url in self._urls)

    def target(self, path: str) -> str:
        """See Fetcher: a base URL may have a path of its own."""
        return urlsplit(self._urls[0]).path + path

    def call(self, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        """See Fetcher."""
        urls = self._urls if method == "GET" else self._urls[:1]
        for url in urls[:-1]:
            try:
                answer = self._call(method, url + path, body, headers)
            except FetchError:
                continue
            if answer.status < 500 and answer.status != 429:
                return answer
        return self._call(method, urls[-1] + path, body, headers)

    def _call(self, method: str, url: str, body: bytes, headers: Mapping[str, str] | None) -> Answer:
        limits = self._limits
        deadline = _call_of_this_thread.deadline = time.monotonic() + limits.total_timeout
        try:
            with self._pool().request(
                method,
                url,
                data=body,
                headers=dict(headers or {}),
                timeout=(limits.connect_timeout, limits.read_timeout),
                allow_redirects=False,
                stream=True,
            ) as response:
                content = self._read(response, deadline)
                names = {name.lower(): value for name, value in response.headers.items()}
        except (requests.RequestException, HTTPError, OSError, ValueError) as error:
            raise FetchError(f"{method} {url}: {type(error).__name__}") from error
        if response.status_code in _NO_ANSWER:
            raise FetchError(f"{method} {url}: status {response.status_code}", response.status_code)
        return Answer(response.status_code, content, names)

    def _read(self, response: requests.Response, deadline: float) -> bytes:
        """All bytes, as they come: a read of a fixed size would wait for slow ones past the deadline."""
        parts, size = [], 0
        while part := response.raw.read1(_CHUNK, decode_content=True):
            size += len(part)
            if size > self._limits.max_bytes:
                raise FetchError("the answer is larger than agreed")
            if time.monotonic() > deadline:
                raise FetchError("the answer took longer than agreed")
            parts.append(part)
        return b"".join(parts)

    def _pool(self) -> requests.Session:
        """This process's session: connections must not cross a fork."""
        with self._lock:
            if self._session is None or self._pid != os.getpid():
                self._session, self._pid = requests.Session(), os.getpid()
                self._session.auth = _no_auth
                for scheme in ("http://", "https://"):
                    self._session.mount(scheme, _TimedAdapter())
            return self._session

    def _forget_lock(self) -> None:
        self._lock = threading.Lock()


def _no_auth(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Keeps `requests` from looking into a netrc file, whose password would replace our token."""
    return request


def _base_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or parts.username:
        raise ConfigurationError("a registry URL must read http(s)://host[:port][/path]")
    return url.rstrip("/")


# What follows bounds the head of an answer in time: a socket's timeout, and so that of `requests`, begins anew with
# every byte.

_call_of_this_thread = threading.local()


class _TimedReader(RawIOBase):
    """Reads from a connection until the deadline of this thread's call."""

    def __init__(self, connection: socket, raw: SocketIO) -> None:
        self._connection = connection
        self._raw = raw
        self._deadline: float = _call_of_this_thread.deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the answer took longer than agreed")
        self._connection.settimeout(min(left, self._connection.gettimeout() or left))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _TimedResponse(HTTPResponse):
    def __init__(self, sock: socket, *arguments: Any, **options: Any) -> None:
        super().__init__(sock, *arguments, **options)
        self.fp = BufferedReader(_TimedReader(sock, cast(SocketIO, self.fp.detach())))


class _TimedHTTPConnection(HTTPConnection):
    response_class = _TimedResponse


class _TimedHTTPSConnection(HTTPSConnection):
    response_class = _TimedResponse


class _TimedHTTPPool(HTTPConnectionPool):
    ConnectionCls = _TimedHTTPConnection


class _TimedHTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _TimedHTTPSConnection


class _TimedAdapter(HTTPAdapter):
    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, **options)
        self.poolmanager.pool_classes_by_scheme = {"http": _TimedHTTPPool, "https": _TimedHTTPSPool}
