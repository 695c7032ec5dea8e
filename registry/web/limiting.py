"""Who calls, and how often one address may be refused.

Writing calls that are refused, or left pending, are counted by address, and so is each sign-in of a person
(`SIGN_INS`). Beyond `Limits.refusals_per_minute` the address has to wait. Other calls that succeed are not counted,
because they proved their right. Other reading calls are not counted either. Memory answers most of them; some, such as
proofs and documents that no cache holds, read the database.

`calling_account` finds the address that a call comes from, also through proxies, and the account that the call counts
for. ``REGISTRY_PROXIES`` is the number of proxies that add to ``X-Forwarded-For``. The address stands in that place
from the right; the client may have written everything to the left of it, quotation marks too. The header ``Forwarded``
(RFC 7239) is not read. Addresses in the form of its nodes are, since some proxies write them into X-Forwarded-For.
"""

import hashlib
import ipaddress
import logging
import re
import threading
import time
from collections.abc import Callable
from functools import lru_cache
from urllib.parse import urlsplit

from flask import Flask, Response, current_app, request
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage, Storage, storage_from_string
from limits.strategies import FixedWindowRateLimiter
from werkzeug.exceptions import TooManyRequests

from peerseal.errors import ConfigurationError
from peerseal.protocol.hosts import inner_address
from peerseal.runtime.backoff import backoff
from registry.services.bounded_cache import BoundedCache
from registry.settings import Settings
from registry.web.wire import WRITING, is_navigation

log = logging.getLogger(__name__)

WINDOW = 60
"""Seconds after which refusals are forgotten."""
STORAGE_TIMEOUT = 1
"""Seconds to wait for a Redis; after that each process counts for itself until Redis answers again."""
LONGEST_PAUSE = 32
"""Seconds between two attempts to reach a storage that does not answer: one at first, then doubled up to this."""
REFUSED_REMEMBERED = 10_000
"""Accounts refused within the last minute that a process remembers."""
SCOPE = "global"
"""Part of the counter's name in the storage: one counter for all calls of an account."""
_TEXTS_REMEMBERED = 10_000
"""Texts whose address a process remembers."""
_LONGEST_ADDRESS = 100
"""Characters of a text that are read: an address with zone, port and quotation marks has fewer."""
UNREADABLE_ACCOUNTS = 256
"""Accounts of one proxy for clients whose address cannot be read. A flooder whose text stays the same blocks few other
clients; a flooder whose text changes with each call gets this many times the limit, and no more."""

_EXTENSION = "peerseal-accounts"

_PORT = r":(?:[0-9]{0,5}|_[A-Za-z0-9._-]+)"
_BRACKETED = re.compile(rf"\[([^\[\]]+)\](?:{_PORT})?")
_IPV6_AND_PORT = re.compile(r"([0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*):[0-9]{1,5}")
"""Without brackets, as some proxies write it. The end is a port only where the whole text is no address."""
_WITH_PORT = re.compile(rf"([0-9]{{1,3}}(?:\.[0-9]{{1,3}}){{3}}){_PORT}")


class RefusalLimit:
    """Counts refusals by account in a ``storage`` that nodes may share, and in memory while the storage does not answer
    or is None.

    `exceeded` asks the storage only about accounts that this process refused within the last minute, so that calls of
    others cost no round trip. Where several nodes share a storage, each node refuses such an account once by itself
    before it asks.
    """

    def __init__(self, storage: Storage | None, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = RateLimitItemPerMinute(per_minute)
        self._shared = None if storage is None else FixedWindowRateLimiter(storage)
        self._in_memory: FixedWindowRateLimiter | None = None
        self._making = threading.Lock()
        self._clock = clock
        self._refused_until: BoundedCache[str, float] = BoundedCache(REFUSED_REMEMBERED)
        self._failures = 0
        self._asks_again_at = 0.0

    def add(self, account: str) -> None:
        """Counts one refusal."""
        self._refused_until.put(account, self._clock() + WINDOW)
        self._ask(lambda limiter: limiter.hit(self._limit, account, SCOPE))

    def exceeded(self, account: str) -> bool:
        """Whether the account has to wait."""
        if (self._refused_until.get(account) or 0.0) <= self._clock():
            return False
        return not self._ask(lambda limiter: limiter.test(self._limit, account, SCOPE))

    def _ask(self, question: Callable[[FixedWindowRateLimiter], bool]) -> bool:
        """The answer from the storage, or from memory while the storage does not answer."""
        if self._shared is not None and self._clock() >= self._asks_again_at:
            self._asks_again_at = self._clock() + self._pause()  # one thread asks; the others do not wait for it
            try:
                answer = question(self._shared)
            except Exception as error:  # each kind of storage has its own errors, and a counter must not fail a call
                self._shared_failed(error)
            else:
                self._failures, self._asks_again_at = 0, 0.0
                return answer
        try:
            return question(self._own())
        except RuntimeError:  # its clean-up needs a thread, and the process may have no more
            log.exception("a refusal could not be counted")
            return True

    def _own(self) -> FixedWindowRateLimiter:
        """The counter in memory. It is made when it is needed first, since it starts a thread: uWSGI forks its workers
        after the application is made, and one that is forked while a thread runs may hang for ever."""
        with self._making:
            if self._in_memory is None:
                self._in_memory = FixedWindowRateLimiter(MemoryStorage())
            return self._in_memory

    def _shared_failed(self, error: Exception) -> None:
        if not self._failures:  # without the error's text, which may quote the URL and its password
            log.warning(
                "REGISTRY_RATE_LIMIT_STORAGE does not answer (%s): this process counts refusals in memory meanwhile",
                type(error).__name__,
            )
        self._failures += 1
        self._asks_again_at = self._clock() + self._pause()

    def _pause(self) -> float:
        return backoff(self._failures, first=1, longest=LONGEST_PAUSE) if self._failures else 0.0


def limit_refusals(app: Flask, settings: Settings) -> None:
    """Has the application count refusals. Raises ConfigurationError for a storage that cannot be used."""
    Accounts.install(app, settings.proxies)
    limit = RefusalLimit(_storage(settings.rate_limit_storage), settings.limits.refusals_per_minute)

    def refuse() -> None:
        if _is_counted() and limit.exceeded(account := calling_account()):
            log.info("more than %d refusals per minute: account=%s", settings.limits.refusals_per_minute, account)
            raise TooManyRequests(retry_after=WINDOW)
        if _is_sign_in():
            limit.add(calling_account())

    def count(response: Response) -> Response:
        if _is_counted() and not _is_sign_in() and _is_refusal(response):
            limit.add(calling_account())
        return response

    app.before_request(refuse)
    app.after_request(count)


SIGN_INS = frozenset(("console.sign_in.begin", "console.issuer_sign_in.finish"))
"""The endpoints whose calls all count, since each that succeeds adds a row to the audit trail, which keeps it. They
count before they are answered: of many at once, all would ask the issuer before the first is refused."""


def _is_sign_in() -> bool:
    """Whether a person signs in. A picture or a frame in a page of another site spends no refusals: it is refused
    before anything is read."""
    return request.endpoint in SIGN_INS and (request.method in WRITING or is_navigation())


def _is_counted() -> bool:
    """Whether the call may be refused for its account: it writes, or a person signs in."""
    return bool(request.endpoint) and (request.method in WRITING or _is_sign_in())


def _is_refusal(response: Response) -> bool:
    """Refused, or left pending. What failed on our side is not the caller's refusal."""
    return response.status_code == 202 or 400 <= response.status_code < 500


def _storage(url: str) -> Storage | None:
    """The storage of that URL; None for memory. Raises ConfigurationError."""
    timeouts = {"socket_connect_timeout": STORAGE_TIMEOUT, "socket_timeout": STORAGE_TIMEOUT}
    try:
        if urlsplit(url).scheme in MemoryStorage.STORAGE_SCHEME:
            return None
        found = storage_from_string(url, **timeouts if url.startswith("redis") else {})
    except Exception:  # each kind has its own: a wrong URL, a missing library, a cluster that cannot be reached
        found = None
    if not isinstance(found, Storage):  # `limits` has storages for asyncio, too
        message = "REGISTRY_RATE_LIMIT_STORAGE names no storage that can be used; it looks like redis://host:6379/0"
        raise ConfigurationError(message)  # without the cause, which may quote the URL and its password
    return found


# ---- who calls


class Accounts:
    """The accounts that calls count for: an IPv4 address, or the /64 of an IPv6 address, since one host can use all of
    it."""

    def __init__(self, proxies: int) -> None:
        self._proxies = proxies
        self._warned = False

    @classmethod
    def install(cls, app: Flask, proxies: int) -> None:
        """Has `calling_account` work in this application."""
        app.extensions[_EXTENSION] = cls(proxies)

    def of(self, peer: str, forwarded_for: str) -> str:
        """The account of a call: ``peer`` is the address of its connection, ``forwarded_for`` the header.

        Where the header names fewer clients than there are proxies, the call did not pass all of them, and counts for
        its peer. A call whose address cannot be read counts for one of UNREADABLE_ACCOUNTS of its peer.
        """
        own = _network_of(peer[:_LONGEST_ADDRESS]) or "unknown"  # the peer of a Unix socket has no address
        members = [member for member in map(str.strip, forwarded_for.split(",")) if member]  # RFC 9110 section 5.6.1
        if not self._proxies or len(members) < self._proxies:
            return own
        text = members[-self._proxies][:_LONGEST_ADDRESS]
        return _network_of(text) or self._unreadable(text, own)

    def _unreadable(self, text: str, own: str) -> str:
        """Also for ``unknown``, and for names that a proxy invents, perhaps a new one for each call (RFC 7239 section
        6.3)."""
        if not self._warned:  # once, because strangers may choose the texts
            self._warned = True
            log.warning(
                "X-Forwarded-For: %r, from %s, is no address, and its calls are limited as one of %d accounts; "
                "expected is an address in place %d from the right (REGISTRY_PROXIES)",
                *(text, own, UNREADABLE_ACCOUNTS, self._proxies),
            )
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        return f"unreadable {int.from_bytes(digest[:4]) % UNREADABLE_ACCOUNTS} of {own}"


def calling_account() -> str:
    """The account that the current call counts for."""
    accounts: Accounts = current_app.extensions[_EXTENSION]
    return accounts.of(request.remote_addr or "", request.environ.get("HTTP_X_FORWARDED_FOR", ""))


@lru_cache(_TEXTS_REMEMBERED)
def _network_of(text: str) -> str | None:
    """An IPv4 address, also one that an IPv6 address translates, or the network of an IPv6 address; None where the text
    is no address."""
    address = _address_in(text)
    if address is None:
        return None
    address = inner_address(address)
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(ipaddress.ip_network((address, 64), strict=False))


def _address_in(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address in a text as proxies write it: alone, with a port, in brackets, in quotation marks, with a zone
    (X-Forwarded-For, and a node of RFC 7239 section 6). None for any other text."""
    text = text.strip().strip('"').strip()
    match = _BRACKETED.fullmatch(text) or _WITH_PORT.fullmatch(text)
    found = _address(match[1] if match else text)
    if found is None and (match := _IPV6_AND_PORT.fullmatch(text)):
        found = _address(match[1])
    return found


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
