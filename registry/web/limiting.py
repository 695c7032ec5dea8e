"""How often one address may be refused.

Writing calls that are refused, or left pending, are counted by address, and beyond `Limits.refusals_per_minute` the
address has to wait. Calls that succeed cost nothing: they proved themselves. Reading is not limited here; it is
answered from memory.
"""

import time
from contextlib import suppress

from flask import Flask, Response, current_app, request
from flask_limiter import Limiter, RateLimitExceeded

from peerseal.errors import ConfigurationError
from registry.settings import Settings
from registry.web.client_address import Accounts
from registry.web.problems import REFUSALS_FORGOTTEN
from registry.web.wire import WRITING

STORAGE_TIMEOUT = 1
"""Seconds to wait for a Redis; then each process counts for itself until it answers again."""
ACCOUNTS = "peerseal-accounts"
REMEMBERED = 10_000
"""Networks refused lately that a process remembers."""


class RefusalsLimiter(Limiter):
    """Flask-Limiter, asked only where there is something to ask.

    By its own hooks it would take 19 µs of every request, when a warm answer takes 75, and 135 µs of a registration;
    by these it takes 4 and 15. A call is looked at before it is served only where this process refused its network
    within the last minute, and every refusal is counted when it is answered. So of several nodes that share a storage,
    each lets a network that the others have had enough of be refused once more.
    """

    def init_app(self, app: Flask) -> None:
        """See Limiter; its hooks are run by ours."""
        super().init_app(app)
        app.before_request_funcs[None].remove(self._check_request_limit)
        self._deduct = app.after_request_funcs[None].pop()
        app.teardown_request_funcs[None].pop()  # it cleans up what ends with the request anyway
        self._lately: dict[str, float] = {}
        app.before_request(self._refuse)
        app.after_request(self._count)

    def _refuse(self) -> None:
        if request.method in WRITING and self._lately.get(network(), 0.0) > time.monotonic():
            self._check_request_limit()

    def _count(self, response: Response) -> Response:
        if request.method in WRITING and _counts(response):
            self._remember(network())
            if not self.context.conditional_deductions:
                with suppress(RateLimitExceeded):  # it was refused already
                    self._check_request_limit()
            self._deduct(response)
        return response

    def _remember(self, refused: str) -> None:
        self._lately.pop(refused, None)
        self._lately[refused] = time.monotonic() + REFUSALS_FORGOTTEN
        while len(self._lately) > REMEMBERED:
            with suppress(KeyError, RuntimeError, StopIteration):  # another thread was faster
                del self._lately[next(iter(self._lately))]


def limit_refusals(app: Flask, settings: Settings) -> None:
    """Has the application count refusals. Raises ConfigurationError for a storage that is none."""
    app.extensions[ACCOUNTS] = Accounts(settings.proxies)
    limiter = RefusalsLimiter(
        key_func=network,
        application_limits=[f"{settings.limits.refusals_per_minute} per minute"],
        application_limits_deduct_when=_counts,
        storage_uri=settings.rate_limit_storage,
        storage_options=_options(settings.rate_limit_storage),
        in_memory_fallback_enabled=True,
        swallow_errors=True,  # a Redis that goes away between two questions refuses nobody
    )
    try:
        limiter.init_app(app)
    except Exception:  # each storage has its own: of a wrong URL, and of a cluster that cannot be reached
        message = "REGISTRY_RATE_LIMIT_STORAGE names no storage that can be used; it looks like redis://host:6379/0"
        raise ConfigurationError(message) from None  # the cause may quote it, and with it a password


def network() -> str:
    """Whom a call counts for, as `registry.web.client_address.Accounts` says."""
    accounts: Accounts = current_app.extensions[ACCOUNTS]
    return accounts.of(request.remote_addr or "", request.environ.get("HTTP_X_FORWARDED_FOR", ""))


def _counts(response: Response) -> bool:
    """Refused, or left pending; not what failed on our side."""
    return response.status_code == 202 or 400 <= response.status_code < 500


def _options(storage: str) -> dict[str, str | int]:
    if not storage.startswith("redis"):
        return {}
    return {"socket_connect_timeout": STORAGE_TIMEOUT, "socket_timeout": STORAGE_TIMEOUT}
