"""The replay guard of a fleet: the hosts of a service share one Redis.

A claim is one atomic command, ``SET key 1 NX PX …``, which succeeds for the first claim only. Three faults could still
accept a token twice:

- *A lost reply.* It is unknown whether Redis executed the command. A second try would fail for the first claimant, or
  succeed for two after a restart of Redis. So no command is sent twice, and a claim without a reply is refused (503).
- *Eviction.* A Redis that evicts keys loses tokens that are still good. Its ``maxmemory-policy`` must be
  ``noeviction``: a full Redis refuses claims.
- *Clocks.* The time to live is a duration: a time (``EXAT``) in the past of a Redis whose clock is fast would succeed
  and store nothing. ``CLOCK_SPREAD`` covers hosts whose clocks differ.
"""

import hashlib
import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from peerseal.errors import ConfigurationError, TrustUnavailable
from peerseal.protocol.encoding import b64url
from peerseal.protocol.hosts import is_valid_host
from peerseal.protocol.names import check_name_or_id
from peerseal.runtime.forks import in_each_child, notice_fork
from peerseal.runtime.limits import LONGEST_TIMEOUT
from peerseal.runtime.options import check_callable, check_flag, check_is
from peerseal.verify.replay.guards import ReplayGuard

if TYPE_CHECKING:
    from redis import Redis, RedisError

log = logging.getLogger("peerseal.replay")

_SAFE_POLICY = "noeviction"


class RedisReplayGuard:
    """For the hosts that use one Redis. Its keys are digests with the prefix ``peerseal:replay:<audience>:``, so that
    several services may share it.

    ``url`` is one of redis-py, with its options: ``redis://``, ``rediss://`` (TLS) or ``unix://``; commands are never
    retried. ``audience`` is the name of the service that accepts the tokens.

    While Redis cannot be asked, no token is accepted (TrustUnavailable, 503). With an ``unsafe_fallback`` that guard
    decides meanwhile, and accepts again what only other hosts accepted; it is asked before each claim, so that it knows
    the tokens of this host. ``assume_noeviction`` is for a Redis that does not tell its policy. Raises
    ConfigurationError for a missing library or an invalid URL.
    """

    CONNECT_TIMEOUT = 0.5
    """Seconds for a connection: a Redis that needs longer is too slow for each request."""
    ANSWER_TIMEOUT = 0.5
    """Seconds for a reply, which normally takes less than a millisecond; then the answer is 503."""
    COOLDOWN = 1.0
    """Seconds for which a Redis that did not reply in time is not asked, so that not all threads of a worker wait."""
    CHECK_EVERY = 60.0
    """Seconds after which the eviction policy is read again, which an operator may have changed."""
    CLOCK_SPREAD = 120.0
    """Seconds for which a token is kept after its end, for hosts with slow clocks. A host whose clock is 30 s slower or
    90 s faster than a caller's refuses all its tokens, so the clocks of working hosts are no further apart."""
    WARN_EVERY = 10.0
    """Seconds between two warnings that the fallback decides."""

    def __init__(
        self,
        url: str,
        audience: str,
        *,
        unsafe_fallback: ReplayGuard | None = None,
        assume_noeviction: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """No connection is made before the first claim."""
        check_is("the replay guard's URL", url, str, "a text such as redis://host:6379/0")
        check_flag("assume_noeviction", assume_noeviction)
        check_callable("clock", clock)
        if unsafe_fallback is not None:
            check_callable("unsafe_fallback.claim", getattr(unsafe_fallback, "claim", None))
        audience = check_name_or_id(audience)
        self._url = url
        self._prefix = f"peerseal:replay:{audience}:"
        self._fallback = unsafe_fallback
        self._assume_noeviction = assume_noeviction
        self._clock = clock
        self._client = self._new_client()
        self._silent_at = self._checked_at = self._warned_at = 0.0
        in_each_child(self._after_fork)
        if unsafe_fallback is not None:
            log.warning("while Redis is down, %s will accept tokens that other hosts have accepted", audience)

    def claim(self, issuer: str, jti: str, until: float) -> bool:
        """See ReplayGuard. Raises TrustUnavailable where Redis cannot be asked or may forget: fail closed."""
        from redis import RedisError

        notice_fork()
        if self._fallback is not None and not self._fallback.claim(issuer, jti, until):
            return False
        digest = hashlib.blake2b(f"{issuer}\0{jti}".encode(), digest_size=16).digest()
        now = self._clock()
        if 0 <= now - self._silent_at < self.COOLDOWN:
            return self._without_redis("gave no reply a moment ago", outage=True)
        try:
            self._check_eviction(now)
            milliseconds = max(math.ceil((until - now + self.CLOCK_SPREAD) * 1000), 1)
            return self._client.set(self._prefix + b64url(digest), 1, nx=True, px=milliseconds) is True
        except RedisError as error:
            return self._after_error(error, now)
        except (ValueError, ArithmeticError) as error:  # of the socket, or of a time that is none
            return self._without_redis(str(error), outage=False, cause=error)

    def check(self) -> None:
        """Passes if Redis answers and keeps what it is given. Nothing is stored. Raises TrustUnavailable."""
        from redis import RedisError

        try:
            self._check_eviction(self._clock())
        except RedisError as error:
            raise TrustUnavailable(f"the replay guard's Redis cannot be used: {error}", retry_after=1) from error

    def close(self) -> None:
        """Give the connections back; the next claim makes new ones."""
        self._client.connection_pool.disconnect()

    def _after_error(self, error: "RedisError", now: float) -> bool:
        """A Redis that is down is an outage. One that is full or refuses the credentials is not."""
        from redis import exceptions as redis

        if isinstance(error, redis.TimeoutError):
            self._silent_at = now
        down = isinstance(error, redis.ConnectionError | redis.TimeoutError | redis.ReadOnlyError)
        stranger = isinstance(error, redis.AuthenticationError | redis.AuthorizationError)
        return self._without_redis(str(error), outage=down and not stranger, cause=error)

    def _without_redis(self, why: str, *, outage: bool, cause: Exception | None = None) -> bool:
        """The answer to a claim that is new to the fallback, if there is one."""
        if self._fallback is None or not outage:
            raise TrustUnavailable(f"the replay guard's Redis cannot be used: {why}", retry_after=1) from cause
        now = self._clock()
        if not 0 <= now - self._warned_at < self.WARN_EVERY:
            self._warned_at = now
            log.error("UNSAFE: Redis is down, tokens that other hosts accepted are accepted again: %s", why)
        return True

    def _check_eviction(self, now: float) -> None:
        if 0 <= now - self._checked_at < self.CHECK_EVERY:
            return
        policy = self._eviction_policy()
        if policy is None and self._assume_noeviction:
            policy = _SAFE_POLICY
        if policy != _SAFE_POLICY:
            raise TrustUnavailable(f"the replay guard's Redis may forget: maxmemory-policy is {policy}, not noeviction")
        self._checked_at = now

    def _eviction_policy(self) -> str | None:
        """From INFO, which managed Redis servers often allow, or CONFIG; None where neither tells."""
        from redis import ResponseError

        client: Any = self._client
        ways = (
            (client.info, "memory", "maxmemory_policy"),
            (client.config_get, "maxmemory-policy", "maxmemory-policy"),
        )
        for ask, what, name in ways:
            with suppress(ResponseError):  # a command that is forbidden or missing
                if policy := ask(what).get(name):
                    return str(policy)
        return None

    def _after_fork(self) -> None:
        """Two processes on one connection would read each other's replies."""
        self._client = self._new_client()

    def _new_client(self) -> "Redis":
        try:
            import redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError as error:
            raise ConfigurationError("a replay guard in Redis needs the library: install peerseal[redis]") from error
        try:
            client = redis.Redis.from_url(
                self._url, socket_connect_timeout=self.CONNECT_TIMEOUT, socket_timeout=self.ANSWER_TIMEOUT
            )
            client.set_retry(Retry(NoBackoff(), 0))  # after the URL, whose own options would win
            pool = client.connection_pool
            pool.connection_class(**pool.connection_kwargs)  # makes no connection; raises for invalid options
            _check_place(pool.connection_kwargs)
        except (ValueError, TypeError, AttributeError, redis.RedisError):
            message = "redis-py refuses the replay guard's URL; expected one such as redis://host:6379/0"
            raise ConfigurationError(message) from None  # the cause may quote the URL with its password
        return client


def _check_place(options: Mapping[str, Any]) -> None:
    """Raises ValueError for an impossible host, and for a timeout that no socket takes."""
    if "host" in options and not is_valid_host(options["host"], options.get("port")):
        raise ValueError("no host")
    for name in ("socket_timeout", "socket_connect_timeout"):
        if options[name] is not None and not 0 < options[name] <= LONGEST_TIMEOUT:
            raise ValueError(name)
