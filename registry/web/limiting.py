"""How often one address may be refused.

Writing calls that are refused, or left pending, are counted by address. Beyond `Limits.refusals_per_minute` the address
has to wait. Calls that succeed are not counted, because they proved their right. Reading calls are not counted either:
memory answers them.
"""

import logging
import time
from collections.abc import Callable

from flask import Flask, Response, request
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage, Storage, storage_from_string
from limits.strategies import FixedWindowRateLimiter
from werkzeug.exceptions import TooManyRequests

from peerseal.errors import ConfigurationError
from peerseal.runtime.backoff import backoff
from registry.services.bounded_cache import BoundedCache
from registry.settings import Settings
from registry.web.client_address import Accounts, calling_account
from registry.web.wire import WRITING

log = logging.getLogger(__name__)

WINDOW = 60
"""Seconds after which refusals are forgotten."""
STORAGE_TIMEOUT = 1
"""Seconds to wait for a Redis; after that each process counts for itself until Redis answers again."""
LONGEST_PAUSE = 32
"""Seconds between two attempts to reach a storage that does not answer: one at first, then doubled up to this."""
REMEMBERED = 10_000
"""Accounts refused within the last minute that a process remembers."""
SCOPE = "global"
"""Part of the counter's name in the storage: one counter for all calls of an account."""


class RefusalLimit:
    """Counts refusals by account in a storage that nodes may share, and in memory while the storage does not answer.

    `exceeded` asks the storage only about accounts that this process refused within the last minute, so that calls of
    others cost no round trip. Where several nodes share a storage, each node refuses such an account once by itself
    before it asks.
    """

    def __init__(self, storage: Storage, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = RateLimitItemPerMinute(per_minute)
        self._shared = FixedWindowRateLimiter(storage)
        self._own = FixedWindowRateLimiter(MemoryStorage())
        self._clock = clock
        self._refused_until: BoundedCache[str, float] = BoundedCache(REMEMBERED)
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
        if self._clock() >= self._asks_again_at:
            self._asks_again_at = self._clock() + self._pause()  # one thread asks; the others do not wait for it
            try:
                answer = question(self._shared)
            except Exception as error:  # each kind of storage has its own errors, and a counter must not fail a call
                self._shared_failed(error)
            else:
                self._failures, self._asks_again_at = 0, 0.0
                return answer
        try:
            return question(self._own)
        except RuntimeError:  # its clean-up needs a thread, and the process may have no more
            log.exception("a refusal could not be counted")
            return True

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
        if request.method in WRITING and request.endpoint and limit.exceeded(account := calling_account()):
            log.info("more than %d refusals per minute: account=%s", settings.limits.refusals_per_minute, account)
            raise TooManyRequests(retry_after=WINDOW)

    def count(response: Response) -> Response:
        if request.method in WRITING and request.endpoint and _is_refusal(response):
            limit.add(calling_account())
        return response

    app.before_request(refuse)
    app.after_request(count)


def _is_refusal(response: Response) -> bool:
    """Refused, or left pending. What failed on our side is not the caller's refusal."""
    return response.status_code == 202 or 400 <= response.status_code < 500


def _storage(url: str) -> Storage:
    timeouts = {"socket_connect_timeout": STORAGE_TIMEOUT, "socket_timeout": STORAGE_TIMEOUT}
    try:
        found = storage_from_string(url, **timeouts if url.startswith("redis") else {})
    except Exception:  # each kind has its own: a wrong URL, a missing library, a cluster that cannot be reached
        found = None
    if not isinstance(found, Storage):  # `limits` has storages for asyncio, too
        message = "REGISTRY_RATE_LIMIT_STORAGE names no storage that can be used; it looks like redis://host:6379/0"
        raise ConfigurationError(message)  # without the cause, which may quote the URL and its password
    return found
