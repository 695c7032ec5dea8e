"""Access tokens for resource servers outside of Peerseal, such as a broker. The registry issues them to a service as
the domain's settings say (RFC 6749 section 4.4 with ``private_key_jwt``, RFC 9068).

After three quarters of a token's life one thread asks for the next token while the others use the old one. So a short
outage of the registry has no effect.
"""

import logging
import threading
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlencode

from peerseal.errors import AccessTokenRefused, ConfigurationError, FetchError, MalformedToken, TrustUnavailable
from peerseal.identity.signing import assertion
from peerseal.identity.signing_keys import SigningKeys
from peerseal.protocol.encoding import strict_json_object
from peerseal.protocol.jose import MAX_TOKEN
from peerseal.protocol.policies import ACCESS_LIFETIMES
from peerseal.protocol.tokens.assertion import CLIENT_ASSERTION_TYPE
from peerseal.protocol.tokens.claims import claim
from peerseal.runtime.forks import in_each_child, notice_fork
from peerseal.transport.deadline import no_longer_than
from peerseal.transport.fetch import Answer, no_larger_than
from peerseal.trust.store import TrustStore

log = logging.getLogger("peerseal.access_tokens")

TIMEOUT: Final = 10.0
"""Seconds for which a caller waits at most."""
COOLDOWN: Final = 2.0
"""Seconds after a failure during which the registry is not asked again."""

_PATH = "/oauth2/token"
_FORM = {"content-type": "application/x-www-form-urlencoded", "accept": "application/json"}
_RENEW_AT, _LAST_AT = 0.75, 0.95  # of a token's life; librdkafka, which renews at 0.8, then gets the next one
_MAX_ANSWER = MAX_TOKEN + 4096


@dataclass(frozen=True, slots=True)
class AccessToken:
    """``text`` is sent as ``Authorization: Bearer …``, or as the resource server's protocol says. ``expires_at`` is in
    seconds since the epoch."""

    text: str = field(repr=False)
    expires_at: float
    scopes: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Cached:
    """A token that was asked for at ``asked_at`` and is good for ``lifetime`` seconds from then on, by our clock."""

    token: AccessToken
    asked_at: float
    lifetime: int

    def is_good(self, now: float, part: float) -> bool:
        """Whether at most that part of its life is over. False also if the clock was set back."""
        return 0 <= now - self.asked_at < self.lifetime * part


@dataclass(frozen=True, slots=True)
class _Failure:
    """When a call failed, and the code if the registry refused it."""

    at: float
    refusal: str | None = None


class AccessTokens:
    """The access tokens of one service, whose ``keys`` sign the assertions. Safe to use from threads, and before and
    after a fork."""

    def __init__(self, trust: TrustStore, keys: SigningKeys) -> None:
        self._trust = trust
        self._keys = keys
        self._clock = keys.clock
        self._cached: dict[str, _Cached] = {}
        self._failures: dict[str, _Failure] = {}
        self._renew_after_fork()
        in_each_child(self._renew_after_fork)

    def get(self, name: str) -> AccessToken:
        """See `peerseal.Identity.access_token`."""
        notice_fork()
        fresh = self._known(name, _RENEW_AT)
        if fresh is not None:
            return fresh
        left = self._known(name, _LAST_AT)
        turn = self._turns.setdefault(name, threading.Lock())
        if not (turn.acquire(timeout=TIMEOUT) if left is None else turn.acquire(blocking=False)):
            if left is None:
                raise TrustUnavailable("another thread waits for the registry's access token", 1)
            return left
        try:
            return self._known(name, _RENEW_AT) or self._renewed(name)
        finally:
            turn.release()

    def _known(self, name: str, part: float) -> AccessToken | None:
        cached = self._cached.get(name)
        return cached.token if cached is not None and cached.is_good(self._clock(), part) else None

    def _renewed(self, name: str) -> AccessToken:
        """The next token; or the old one if the registry does not answer and the old one has not ended. Called by one
        thread at a time. Raises AccessTokenRefused, TrustUnavailable or ConfigurationError."""
        try:
            self._check_cooldown(name)
            return self._asked(name)
        except TrustUnavailable as error:
            left = self._known(name, _LAST_AT)
            if left is None:
                raise
            log.warning("the next access token for %s cannot be had yet: %s", name, error)
            return left

    def _asked(self, name: str) -> AccessToken:
        asked_at = self._clock()
        try:
            with no_longer_than(TIMEOUT):
                cached = self._read(self._call(name), asked_at)
        except AccessTokenRefused as error:
            self._cached.pop(name, None)
            self._failures[name] = _Failure(self._clock(), error.code)
            raise
        except TrustUnavailable:
            self._failures[name] = _Failure(self._clock())
            raise
        self._failures.pop(name, None)
        self._cached[name] = cached
        return cached.token

    def _check_cooldown(self, name: str) -> None:
        failure = self._failures.get(name)
        if failure is None or not 0 <= self._clock() - failure.at < COOLDOWN:
            return
        if failure.refusal is not None:
            raise AccessTokenRefused(failure.refusal, "the registry refused it a moment ago")
        raise TrustUnavailable("the registry could not be asked for an access token a moment ago", 1)

    # ---- the call

    def _call(self, name: str) -> Answer:
        fetcher = self._trust.fetcher
        if not getattr(fetcher, "confidential", True):
            raise ConfigurationError(
                "PEERSEAL_REGISTRY_URL must begin with https: an access token is not sent over http"
            )
        grants = self._trust.settings().access_tokens
        if name not in grants:
            raise AccessTokenRefused("invalid_target", f"the domain's settings name {sorted(grants)}, and no {name!r}")
        form = {
            "grant_type": "client_credentials",
            "client_assertion_type": CLIENT_ASSERTION_TYPE,
            "client_assertion": assertion(self._keys.current(), now=self._clock()),
            "resource": grants[name].audience,
        }
        try:
            with no_larger_than(_MAX_ANSWER):
                return fetcher.call("POST", _PATH, body=urlencode(form).encode("ascii"), headers=_FORM)
        except FetchError as error:
            raise TrustUnavailable(f"the registry cannot be asked for an access token: {error}") from error

    def _read(self, answer: Answer, asked_at: float) -> _Cached:
        """Reads the answer, but not the token: that is for the resource server (RFC 9068 section 6)."""
        try:
            members = strict_json_object(answer.body)
            if answer.status in (400, 401, 404):
                code = claim(members, "code" if answer.status == 404 else "error", str)
                raise AccessTokenRefused(code, f"the registry answered {answer.status}")
            if answer.status != 200:
                raise TrustUnavailable(f"the registry answered {answer.status}")
            text, lifetime = claim(members, "access_token", str), claim(members, "expires_in", int)
            scopes = frozenset(claim(members, "scope", str).split(" "))
            if claim(members, "token_type", str) != "Bearer" or lifetime not in ACCESS_LIFETIMES or not _is_token(text):
                raise MalformedToken("the answer holds no bearer token with a lifetime")
        except MalformedToken as error:
            raise TrustUnavailable(f"the registry answered {answer.status}: {error}") from error
        return _Cached(AccessToken(text, asked_at + lifetime, scopes), asked_at, lifetime)

    def _renew_after_fork(self) -> None:
        """A forked child has none of the threads that hold these locks."""
        self._turns: dict[str, threading.Lock] = {}


def _is_token(text: str) -> bool:
    return 0 < len(text) <= MAX_TOKEN and text.isascii() and text.isprintable() and " " not in text
