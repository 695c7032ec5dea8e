"""Calls to a registry: every one is made in this module, and raises FetchError and nothing else.

A call has timeouts for connecting, reading and in total, and a limit on the bytes of its answer. It reads no netrc
file, and follows no redirect: an answer from another place is not the one that was asked for. Proxies come from the
environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY), and are not used for loopback. No mirror is trusted: one
after the other is asked until an answer passes the checks of its reader.
"""

import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from socket import SHUT_RDWR, socket
from typing import Protocol, TypeVar
from urllib.parse import urlsplit

from requests.adapters import DEFAULT_POOLSIZE
from urllib3 import BaseHTTPResponse, Timeout
from urllib3.exceptions import HTTPError, ReadTimeoutError

from peerseal.errors import AnswerTooLarge, AnswerTooSlow, ConfigurationError, DocumentRefused, FetchError
from peerseal.protocol.hosts import has_one_host, is_loopback_host, is_valid_host
from peerseal.protocol.trace_context import TRACEPARENT
from peerseal.runtime.forks import in_each_child, notice_fork
from peerseal.runtime.limits import FetchLimits
from peerseal.runtime.tracing import ignored, installed, of_answer, of_call, span
from peerseal.transport.deadline import no_longer_than, time_left
from peerseal.transport.deadline_adapter import Route, TimedAdapter
from peerseal.transport.failure_words import failure_in_words
from peerseal.transport.mirrors import Failures, MirrorHealth
from peerseal.transport.timed_connection import noting_connections

log = logging.getLogger("peerseal.fetch")

T = TypeVar("T")

_CHUNK = 64 * 1024
_LEAST_TIMEOUT = 0.001  # of urllib3, which takes no 0
_EXPECTED = "a registry URL must read http(s)://host[:port][/path]"
_ODD = re.compile(r"[\s\x00-\x1f\x7f\\]")
_ODD_VALUE = re.compile(r"[\r\n\0]|^[ \t]")
_TAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e]{0,200}"')
_NO_ANSWER = frozenset((502, 504, *range(300, 400))) - {304}

_of_this_thread = threading.local()


@contextmanager
def no_larger_than(size: int) -> Iterator[None]:
    """In the block, this thread reads no more than ``size`` bytes of an answer: each kind of document has its own
    limit. Nested limits can only be smaller."""
    before = getattr(_of_this_thread, "max_bytes", math.inf)
    _of_this_thread.max_bytes = min(before, size)
    try:
        yield
    finally:
        _of_this_thread.max_bytes = before


class HungUp(FetchError):
    """`Fetcher.hang_up` ended the call: no fault of the registry."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the registry said. ``headers`` has lower-case names."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


def content(answer: Answer) -> bytes:
    """The body of a 200. Raises FetchError for any other answer."""
    if answer.status != 200:
        raise FetchError(f"the registry answered {answer.status}", answer.status)
    return answer.body


def entity_tag(answer: Answer) -> str | None:
    """The answer's ETag (RFC 9110 section 8.8.3), which may be sent back. None where there is none, or one that a
    request cannot carry: it would keep every later request from being sent."""
    tag = answer.headers.get("etag", "")
    return tag if _TAG.fullmatch(tag) else None


class Fetcher(Protocol):
    """Calls a registry."""

    def call(self, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        """The answer to one call; ``path`` is an origin-form target below the registry's base URL. Each status counts
        as an answer, except those of a broken gateway (502, 504). Raises FetchError."""

    def ask(
        self,
        path: str,
        read: Callable[[Answer], T | None],
        *,
        headers: Mapping[str, str] | None = None,
        wait: float = 0.0,
    ) -> T | None:
        """The result of ``read`` for the first answer to GET, of all mirrors in turn, that it accepts. It refuses an
        answer by a DocumentRefused or FetchError, and returns None for one with nothing new: then the next mirror is
        asked. None where at least one had nothing new, and no other was accepted. The registry may keep the question
        for ``wait`` seconds.

        Where all answers were refused it raises the most important error: that the primary's root is not the pinned
        one; any other DocumentRefused (``by_mirror`` where the primary gave no answer); a 404; another FetchError. Any
        other error that ``read`` raises ends the search.
        """
        return read(self.call("GET", path, headers=headers))

    def target(self, path: str) -> str:
        """The request-target under which the registry receives a call to ``path``: what is signed."""

    def for_registry(self, urls: Sequence[str]) -> "Fetcher":
        """A fetcher of the same kind for the registry of another trust domain. It shares no connection, no count and no
        certificate authority with this one."""
        return HttpFetcher(urls)

    def hang_up(self) -> None:
        """End the calls of other threads whose question the registry keeps: they raise HungUp, or another
        FetchError."""
        return

    def reconnect(self) -> None:
        """Use no connection again that is open now: after a suspension it may lead nowhere."""
        return


class HttpFetcher:
    """A Fetcher over HTTP with `requests` and urllib3, one set of connection pools a process.

    ``urls`` are the primary and its mirrors: reading calls try them in turn, writing calls go to the primary.
    ``ca_file`` holds the certificates (PEM) to check https with, in place of those that `requests` trusts; ``ca`` is
    the PEM itself, and takes precedence over the file. With ``elsewhere`` no connection may lead to this machine, as
    for a URL that a stranger named (see `TimedAdapter`). ``clock`` counts the seconds for which a URL that hung rests.
    """

    def __init__(
        self,
        urls: Sequence[str],
        limits: FetchLimits | None = None,
        *,
        ca_file: str | os.PathLike[str] | None = None,
        ca: str | None = None,
        elsewhere: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._urls = tuple(_base_url(url) for url in urls)
        if not self._urls:
            raise ConfigurationError("no registry URL is given")
        self._limits = limits or FetchLimits()
        self._health = MirrorHealth(self._urls, self._limits, clock)
        self._ca_file = None if ca_file is None else os.fspath(ca_file)
        self._ca = ca
        self._elsewhere = elsewhere
        self._adapter: TimedAdapter | None = None
        self._routes: dict[str, Route] = {}
        self._kept: set[socket] = set()
        self._hang_ups = 0
        self._pid = 0
        self._lock = threading.Lock()
        in_each_child(self._forget_lock)

    @property
    def loopback_only(self) -> bool:
        """Whether every URL is on this machine, so that a root key may be believed on first use."""
        return all(is_loopback(url) for url in self._urls)

    @property
    def has_mirrors(self) -> bool:
        """Whether there is a URL besides the primary."""
        return len(self._urls) > 1

    def target(self, path: str) -> str:
        """See Fetcher: a base URL may have a path of its own."""
        return urlsplit(self._urls[0]).path + path

    def for_registry(self, urls: Sequence[str]) -> "HttpFetcher":
        """See Fetcher: the certificates are those of the environment. The own organisation's authority says nothing of
        a foreign host, which may well have a public certificate."""
        return HttpFetcher(urls, self._limits, elsewhere=self._elsewhere)

    def hang_up(self) -> None:
        """See Fetcher."""
        self._hang_ups += 1
        for connection in list(self._kept):
            with suppress(OSError):
                socket.shutdown(connection, SHUT_RDWR)  # of the plain socket: TLS must not be ended from this thread

    def reconnect(self) -> None:
        """See Fetcher. Calls that are under way keep their connections until they end."""
        with self._lock:
            self._adapter, self._routes = None, {}

    @property
    def confidential(self) -> bool:
        """Whether no network can read what writing calls send: over https, or on loopback."""
        return is_confidential(self._urls[0])

    def close(self) -> None:
        """Close the connections of this process that no call uses. Those of a parent are left alone."""
        with self._lock:
            adapter, self._adapter, self._routes = self._adapter, None, {}
        if adapter is not None and self._pid == os.getpid():
            adapter.close()

    def call(self, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        """See Fetcher."""
        notice_fork()
        if method != "GET":
            return self._call(method, self._urls[0], path, body, headers)
        *urls, last = self._health.in_order()
        for url in urls:
            try:
                answer = self._get(url, path, headers)
            except FetchError:
                continue
            if answer.status < 500 and answer.status != 429:
                return answer
        return self._get(last, path, headers)

    def ask(
        self,
        path: str,
        read: Callable[[Answer], T | None],
        *,
        headers: Mapping[str, str] | None = None,
        wait: float = 0.0,
    ) -> T | None:
        """See Fetcher."""
        nothing_new = False
        try:
            for offer in self.offers(path, headers=headers, wait=wait):
                with offer as answer:
                    found = read(answer)
                    if found is not None:
                        return found
                    nothing_new = True
        except (FetchError, DocumentRefused):
            if not nothing_new:
                raise
        return None

    def offers(self, path: str, *, headers: Mapping[str, str] | None = None, wait: float = 0.0) -> Iterator["Offer"]:
        """The answers to GET of all mirrors, as `offers` gives them. What is wrong with one of several mirrors is
        logged."""
        failures = Failures()
        for url in self._health.in_order():
            try:
                offer = Offer(self._get(url, path, headers, wait))
            except HungUp:
                raise
            except FetchError as error:
                failure: FetchError | DocumentRefused | None = error
            else:
                yield offer
                failure = offer.refusal
            if failure is not None:
                if len(self._urls) > 1:
                    log.warning("%s%s is passed over (%s): %s", url, path, failure.code, failure)
                failures.add(failure, of_primary=url == self._urls[0])
        failures.raise_most_important()

    def _get(self, url: str, path: str, headers: Mapping[str, str] | None, wait: float = 0.0) -> Answer:
        """A reading call, whose outcome is remembered of the URL. Raises FetchError."""
        self._health.check(url)
        began, hang_ups = time.monotonic(), self._hang_ups
        try:
            answer = self._call("GET", url, path, b"", headers, wait)
        except FetchError as error:
            if wait and self._hang_ups > hang_ups:
                raise HungUp(str(error)) from error
            self._health.failed(url, time.monotonic() - began - wait)  # a question that was kept was no hanging
            raise
        self._health.worked(url)
        return answer

    def _call(
        self,
        method: str,
        base: str,
        path: str,
        body: bytes,
        headers: Mapping[str, str] | None,
        wait: float = 0.0,
    ) -> Answer:
        url = base + path  # for messages
        if time_left() <= 0:
            raise AnswerTooSlow(f"{method} {url}: no time is left for it")
        noting = noting_connections(self._kept) if wait else nullcontext()
        try:
            with (
                no_longer_than(self._limits.total_timeout + wait),
                noting,
                nullcontext(ignored)
                if wait
                else span("peerseal.fetch", "client", lambda: of_call(method, base)) as add,
                closing(self._send(method, base, path, body, headers, wait)) as response,
            ):
                add(of_answer(response.status))
                content, given = self._read(response), response.headers
                names = {name.lower(): given[name] for name in given}  # `items` would give several values singly
        except (HTTPError, OSError, ValueError, OverflowError) as error:
            self._routes.pop(base, None)  # the environment may name other certificates or another proxy by now
            kind = AnswerTooSlow if _is_slow(error) else FetchError
            raise kind(f"{method} {url}: {failure_in_words(error)}") from error
        if response.status in _NO_ANSWER:
            raise FetchError(f"{method} {url}: status {response.status}", response.status)
        return Answer(response.status, content, names)

    def _send(
        self, method: str, base: str, path: str, body: bytes, headers: Mapping[str, str] | None, wait: float
    ) -> BaseHTTPResponse:
        """The answer, with its body unread. `requests` only finds the route, because a call by `requests` takes three
        times as long, and hundreds of watching peers may call at once."""
        limits, left, route = self._limits, max(time_left(), _LEAST_TIMEOUT), self._route(base)
        return route.pool.urlopen(
            method,
            route.before_path + path,
            body=None if method == "GET" else body,
            headers=_headers_of(route, _of_the_trace() | dict(headers or {})),
            redirect=False,
            retries=False,
            assert_same_host=False,  # through a proxy the target is a whole URL
            preload_content=False,
            decode_content=False,
            timeout=Timeout(connect=min(limits.connect_timeout, left), read=min(limits.read_timeout + wait, left)),
        )

    def _read(self, response: BaseHTTPResponse) -> bytes:
        """All bytes, as they come: of more than agreed no more is read."""
        parts, size, most = [], 0, min(self._limits.max_bytes, getattr(_of_this_thread, "max_bytes", math.inf))
        while part := response.read1(_CHUNK, decode_content=True):
            size += len(part)
            if size > most:
                raise AnswerTooLarge(f"the answer is larger than {most} bytes")
            parts.append(part)
        return b"".join(parts)

    def _route(self, base: str) -> Route:
        """The way to a URL, over connections of this process: they must not cross a fork. Raises
        OSError; the errors of `requests` are OSErrors."""
        with self._lock:
            if self._adapter is None or self._pid != os.getpid():
                pools = max(DEFAULT_POOLSIZE, len(self._urls))  # a pool beyond that would be closed under its route
                self._adapter = TimedAdapter(elsewhere=self._elsewhere, ca=self._ca, pool_connections=pools)
                self._routes, self._pid = {}, os.getpid()
            adapter, known = self._adapter, self._routes
        route = known.get(base)
        if route is None:
            route = known[base] = adapter.route(base, self._ca_file)
        return route

    def _forget_lock(self) -> None:
        self._lock = threading.Lock()
        self._kept = set()


class Offer:
    """One answer of the registry, as a context for its checks: a DocumentRefused or FetchError in the block refuses the
    answer, and is kept as the ``refusal``."""

    __slots__ = ("_answer", "refusal")

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.refusal: DocumentRefused | FetchError | None = None

    def __enter__(self) -> Answer:
        return self._answer

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        if isinstance(error, DocumentRefused | FetchError):
            self.refusal = error
            return True
        return False


def offers(
    fetcher: Fetcher, path: str, *, most: int, headers: Mapping[str, str] | None = None, wait: float = 0.0
) -> Iterator[Offer]:
    """The answers to GET of all mirrors of a fetcher, one by one, of ``most`` bytes each: the next mirror is asked
    where an answer was refused. After the last it raises as `Fetcher.ask`. No call is under way while an answer is
    checked, so the checks may make calls of their own."""
    ask = getattr(fetcher.ask, "__func__", None)
    if isinstance(fetcher, HttpFetcher) and ask is HttpFetcher.ask:
        each = fetcher.offers(path, headers=headers, wait=wait)
    elif ask is Fetcher.ask:
        each = _only_offer(fetcher, path, headers)
    else:
        each = _offers_by_asking(fetcher, path, headers, wait)
    while True:
        with no_larger_than(most):
            offer = next(each, None)
        if offer is None:
            return
        yield offer


def _only_offer(fetcher: Fetcher, path: str, headers: Mapping[str, str] | None) -> Iterator[Offer]:
    offer = Offer(fetcher.call("GET", path, headers=headers))
    yield offer
    if offer.refusal is not None:
        raise offer.refusal


def _offers_by_asking(fetcher: Fetcher, path: str, headers: Mapping[str, str] | None, wait: float) -> Iterator[Offer]:
    """Of a fetcher that has an `ask` of its own. It is asked again for each further answer, and the answers before that
    are refused as they were."""
    refusals = list[DocumentRefused | FetchError]()
    while (offer := fetcher.ask(path, _read_after(refusals), headers=headers, wait=wait)) is not None:
        yield offer
        if offer.refusal is None:
            return
        refusals.append(offer.refusal)


def _read_after(refusals: Iterable[DocumentRefused | FetchError]) -> Callable[[Answer], Offer]:
    before = iter(refusals)

    def read(answer: Answer) -> Offer:
        refusal = next(before, None)
        if refusal is not None:
            raise refusal
        return Offer(answer)

    return read


def _of_the_trace() -> dict[str, str]:
    """The header that names the current span, if spans are made."""
    traceparent = installed.tracer.traceparent() if installed.tracer is not None else None
    return {TRACEPARENT: traceparent} if traceparent else {}


def _headers_of(route: Route, given: Mapping[str, str]) -> dict[str, str]:
    """The headers of a request: a given one replaces the usual one of that name. Raises ValueError for a value that is
    no single line."""
    for name, value in given.items():
        if _ODD_VALUE.search(value):
            raise ValueError(f"the header {name} cannot be sent")
    names = {name.lower() for name in given}
    return {name: value for name, value in route.headers.items() if name.lower() not in names} | dict(given)


def _is_slow(error: BaseException) -> bool:
    """Whether a connection was there, and no answer on it in time."""
    return isinstance(error, (ReadTimeoutError, TimeoutError))


def is_loopback(url: str) -> bool:
    """Whether the URL's host is this machine's loopback, which no proxy is asked for."""
    return is_loopback_host(urlsplit(url).hostname)


def is_confidential(url: str) -> bool:
    """Whether no network can read what is sent there: over https, or on loopback. Raises ConfigurationError for what is
    no URL of a server."""
    return urlsplit(_base_url(url)).scheme == "https" or is_loopback(url)


def check_urls(text: str) -> str:
    """URLs of a registry and its mirrors, separated by commas, as they are. Raises ConfigurationError."""
    urls = [url.strip() for url in text.split(",")]
    for url in filter(None, urls):
        _base_url(url)
    if not any(urls) or any(not char.isprintable() or char == " " for url in urls for char in url):
        raise ConfigurationError(_EXPECTED)
    return text


def _base_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        reachable = is_valid_host(parts.hostname, parts.port) and has_one_host(parts.netloc)
    except ValueError as error:
        raise ConfigurationError(f"{_EXPECTED}{_hint(url)}") from error
    if _ODD.search(url):  # by which one parser sees another host than the next
        raise ConfigurationError("a registry URL holds white space, a control character or a backslash")
    if parts.scheme not in ("http", "https") or not reachable or set(url) & set("?#") or "@" in parts.netloc:
        raise ConfigurationError(f"{_EXPECTED}{_hint(url)}")
    return url.rstrip("/")


def _hint(url: str) -> str:
    """What is wrong with a URL, if that is known. One with a user's name is not shown: it may hold a password."""
    if "@" in url:
        return "; it must have no user name and no password"
    if "://" not in url and is_valid_host(urlsplit(f"//{url}").hostname, None):
        return f"; {url:.100} has no scheme: is http://{url:.100} meant?"
    return f", and not {url!r:.100}"
