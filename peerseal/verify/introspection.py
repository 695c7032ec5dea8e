"""Opaque tokens of users: their issuer is asked about them (RFC 7662), and its answer is cached for a short time.

Calls to an issuer are limited: threads with the same token share one call; a cached answer is not asked for again until
``introspection_ttl`` or the token's end; a refusal is cached for seconds. Tokens that were never active, which anyone
can make up, have a budget of their own. The number of concurrent calls is limited, and an issuer that did not answer in
time is not asked for a moment. Tokens are cached by their SHA-256.

Two errors differ: `TokenError`, the issuer says that the token is not good, and `TrustUnavailable`, the issuer cannot
be asked now or its answer is not valid. Where the issuer answers is in the domain's signed settings, which are public;
this service's credentials at the issuer (`IntrospectionClient`) are local.
"""

import hashlib
import logging
import math
import os
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Protocol, Self, TypeVar
from urllib.parse import quote, urlencode, urlsplit

from peerseal.errors import (
    AnswerTooLarge,
    ConfigurationError,
    DocumentRefused,
    FetchError,
    MalformedToken,
    TokenError,
    TrustUnavailable,
)
from peerseal.protocol.keys import PublicKey
from peerseal.protocol.policies import UserIssuer, check_url_in_settings
from peerseal.protocol.tokens.assertion import CLIENT_ASSERTION_TYPE
from peerseal.protocol.tokens.introspection import (
    MAX_ANSWER,
    SIGNED_CONTENT,
    ActiveToken,
    check_opaque,
    parse_signed,
    signed_answer,
    unsigned_answer,
)
from peerseal.runtime.forks import in_each_child
from peerseal.runtime.limits import IssuerLimits
from peerseal.runtime.options import check_callable, check_flag, check_unicode
from peerseal.runtime.settings import SettingsReader
from peerseal.runtime.token_bucket import TokenBucket
from peerseal.transport.deadline import no_longer_than, time_left
from peerseal.transport.fetch import Answer, HttpFetcher, no_larger_than

log = logging.getLogger("peerseal.introspection")

V = TypeVar("V")


class AssertionSigner(Protocol):
    """Signs a client assertion (RFC 7523), as `peerseal.Identity.sign_assertion` does."""

    def __call__(self, *, audience: str, client_id: str) -> str:
        """A fresh assertion by ``client_id`` for the issuer ``audience``. Raises TrustUnavailable."""


class SignsAssertions(Protocol):
    """A `peerseal.Identity`."""

    def sign_assertion(self, *, audience: str | None = None, client_id: str | None = None) -> str:
        """See `peerseal.Identity`."""


@dataclass(frozen=True, slots=True)
class IntrospectionClient:
    """This service as the client ``client_id`` of ``issuer``, whose name is spelled as in the domain's settings.

    It is authenticated by ``secret`` (``client_secret_basic``) or by ``private_key_jwt``, such as
    ``identity.sign_assertion``: exactly one of them. A secret is sent to the URL in the settings; an assertion is good
    at that issuer only. ``unsafe_any_audience`` accepts tokens without an audience and tokens for another service: then
    each token of the issuer is good here. Raises ConfigurationError.
    """

    issuer: str
    client_id: str
    secret: str | None = field(default=None, repr=False)
    private_key_jwt: AssertionSigner | None = field(default=None, repr=False)
    unsafe_any_audience: bool = False

    def __post_init__(self) -> None:
        """Raises ConfigurationError."""
        for name in ("issuer", "client_id"):
            check_unicode(f"IntrospectionClient.{name}", getattr(self, name))
        try:
            check_url_in_settings(self.issuer)
        except MalformedToken as error:  # no domain's settings can name it
            raise ConfigurationError(f"IntrospectionClient.issuer: {error}") from error
        check_flag("IntrospectionClient.unsafe_any_audience", self.unsafe_any_audience)
        if (self.secret is None) == (self.private_key_jwt is None):
            raise ConfigurationError("IntrospectionClient: expected either secret or private_key_jwt")
        if self.private_key_jwt is not None:
            check_callable("IntrospectionClient.private_key_jwt", self.private_key_jwt)
        else:
            check_unicode("IntrospectionClient.secret", self.secret)

    @classmethod
    def from_env(cls, identity: SignsAssertions, environ: Mapping[str, str] | None = None) -> Self | None:
        """From ``PEERSEAL_INTROSPECTION_ISSUER``, ``PEERSEAL_INTROSPECTION_CLIENT_ID`` and
        ``PEERSEAL_INTROSPECTION_SECRET`` or ``…_FILE``; without a secret the key of ``identity`` signs
        (``private_key_jwt``). None where none of them is set. Raises ConfigurationError, which names the variable."""
        settings = SettingsReader(os.environ if environ is None else environ)
        secret = settings.secret("PEERSEAL_INTROSPECTION_SECRET")
        names = ("PEERSEAL_INTROSPECTION_ISSUER", "PEERSEAL_INTROSPECTION_CLIENT_ID")
        if secret is None and not any(map(settings.text, names)):
            return None
        issuer, client_id = map(settings.required, names)
        return cls(issuer, client_id, secret, None if secret else identity.sign_assertion)

    def authentication(self) -> tuple[dict[str, str], dict[str, str]]:
        """Headers and form parameters that authenticate the client. Raises TrustUnavailable."""
        if self.private_key_jwt is not None:
            assertion = self.private_key_jwt(audience=self.issuer, client_id=self.client_id)
            return {}, {"client_assertion_type": CLIENT_ASSERTION_TYPE, "client_assertion": assertion}
        # form-encoded (RFC 6749 section 2.3.1), with %20 for a blank: some issuers do not read + as one
        client_id, secret = (quote(text or "", safe="") for text in (self.client_id, self.secret))
        encoded = b64encode(f"{client_id}:{secret}".encode("ascii")).decode("ascii")
        return {"authorization": f"Basic {encoded}"}, {}


@dataclass(frozen=True, slots=True)
class _Outcome:
    """The issuer's answer at ``asked_at``: the active token, or class and detail of the refusal. No error is kept: its
    traceback would keep the token."""

    asked_at: float
    active: ActiveToken | None
    refusal: type[TokenError] = TokenError
    detail: str = ""

    def result(self) -> ActiveToken:
        """The active token. Raises TokenError."""
        if self.active is None:
            raise self.refusal(self.detail)
        return self.active


class Introspection:
    """Asks the issuer ``named`` about tokens, as ``client``. ``key`` gives the issuer's key by kid, for signed answers.

    Safe to use from threads, before and after a fork. Raises ConfigurationError.
    """

    def __init__(
        self,
        named: UserIssuer,
        client: IntrospectionClient,
        key: Callable[[str], PublicKey],
        *,
        ca_file: str | os.PathLike[str] | None,
        limits: IssuerLimits,
        clock: Callable[[], float],
    ) -> None:
        self._named = named
        self._client = client
        self._key = key
        self._limits = limits
        self._clock = clock
        parts = urlsplit(named.introspection_url or "")
        self._path = parts.path or "/"
        self._fetcher = HttpFetcher([f"{parts.scheme}://{parts.netloc}"], limits.fetch, ca_file=ca_file, ca=named.ca)
        self._active: dict[bytes, _Outcome] = {}  # also outdated ones; the oldest first
        self._refused: dict[bytes, _Outcome] = {}
        self._unknown_tokens = TokenBucket(limits.introspection_burst, limits.introspection_rate, clock)
        self._rests_until = -math.inf
        self._renew_after_fork()
        in_each_child(self._renew_after_fork)

    def verify(self, token: str) -> ActiveToken:
        """The issuer's answer about the token, which may be cached. Raises TokenError or TrustUnavailable."""
        digest = _digest(check_opaque(token))
        with self._lock:
            known = self._known(digest)
            if known is not None:
                return known.result()
            flight = self._flights.get(digest)
            leads = flight is None
            if flight is None:
                flight = self._flights[digest] = Future()
        with no_longer_than(self._limits.introspection_patience):
            outcome = self._ask(flight, digest, token) if leads else _result_of(flight)
        return outcome.result()

    def forget(self, token: str) -> None:
        """Ask again about this token next time, even if a call about it is under way."""
        digest = _digest(token)
        with self._lock:
            for known in (self._active, self._refused, self._flights):
                known.pop(digest, None)

    def _known(self, digest: bytes) -> _Outcome | None:
        """The cached answer, where it is recent enough. Called with the lock held."""
        active, refused, now = self._active.get(digest), self._refused.get(digest), self._clock()
        if active is not None and active.active is not None:
            recent = 0 <= now - active.asked_at < self._limits.introspection_ttl  # False after a clock was set back
            return active if recent and now < (active.active.expires_at or math.inf) else None
        if refused is not None and 0 <= now - refused.asked_at < self._limits.introspection_negative_ttl:
            return refused
        return None

    def _remember(self, digest: bytes, outcome: _Outcome) -> None:
        """Called with the lock held."""
        self._active.pop(digest, None)
        self._refused.pop(digest, None)
        if outcome.active is not None:
            _keep(self._active, digest, outcome, self._limits.max_introspected)
        else:
            _keep(self._refused, digest, outcome, self._limits.max_negative)

    def _ask(self, flight: "Future[_Outcome]", digest: bytes, token: str) -> _Outcome:
        """Ask the issuer, for this thread and for those that wait for ``flight``."""
        outcome = None
        try:
            outcome = self._asked(digest, token)
            flight.set_result(outcome)
        except BaseException as error:
            flight.set_exception(_without_traceback(error))
            raise
        finally:
            with self._lock:
                if self._flights.get(digest) is flight:  # else `forget` was called meanwhile
                    del self._flights[digest]
                    if outcome is not None:
                        self._remember(digest, outcome)
        return outcome

    def _asked(self, digest: bytes, token: str) -> _Outcome:
        asked_at = self._clock()  # before the call, during which the token may be revoked
        if digest not in self._active and not self._unknown_tokens.take():
            raise TrustUnavailable("too many unknown tokens at once", 1)
        with self._turn():
            answer = self._call(token)
            try:
                active = self._read(answer, token)
            except TokenError as error:
                return _Outcome(asked_at, None, type(error), str(error))
            except DocumentRefused as error:
                raise self._unavailable(f"its answer is refused ({error.code}): {error}") from error
        if active.expires_at is None:  # then the answer is good for as long as it is cached
            active = replace(active, expires_at=int(asked_at + self._limits.introspection_ttl))
        return _Outcome(asked_at, active)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One of the concurrent calls. Raises TrustUnavailable if none is free in time, or while the issuer rests."""
        turns = self._turns
        if not turns.acquire(timeout=_time_to_wait()):
            raise TrustUnavailable("too many calls to the issuer at once", 1)
        try:
            if 0 < self._rests_until - self._clock() <= self._limits.introspection_rest:
                raise TrustUnavailable("the issuer did not answer a moment ago", self._pause())
            yield
        finally:
            turns.release()

    def _call(self, token: str) -> Answer:
        """Raises TrustUnavailable."""
        headers, form = self._client.authentication()
        plain = () if self._named.introspection_signed else ("application/json",)
        headers |= {
            "accept": ", ".join((*plain, SIGNED_CONTENT)),
            "content-type": "application/x-www-form-urlencoded",
        }
        body = urlencode({"token": token, "token_type_hint": "access_token", **form}).encode("ascii")
        try:
            with no_larger_than(MAX_ANSWER):
                answer = self._fetcher.call("POST", self._path, body=body, headers=headers)
        except FetchError as error:
            if error.http_status is None and not isinstance(error, AnswerTooLarge):
                self._rest()
            raise self._unavailable(str(error)) from error
        if answer.status in (401, 403) or (answer.status == 400 and _is_invalid_client(answer.body)):
            raise self._client_refused(answer.status)
        if answer.status != 200:
            raise self._unavailable(f"it answered {answer.status}")
        return answer

    def _read(self, answer: Answer, token: str) -> ActiveToken:
        """Raises TokenError, DocumentRefused or TrustUnavailable."""
        named = self._named
        kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == SIGNED_CONTENT:
            members = self._signed(answer.body)
        elif named.introspection_signed:
            raise DocumentRefused("document_wrong_type", f"expected {SIGNED_CONTENT}, as introspection_signed says")
        else:
            members = unsigned_answer(answer.body)
        audience = None if self._client.unsafe_any_audience else named.audience
        active = ActiveToken.read(members, issuer=named.issuer, audience=audience, now=self._clock())
        others = {name: value for name, value in active.claims.items() if value != token}  # ``jti`` may be the token
        return replace(active, claims=MappingProxyType(others))

    def _signed(self, body: bytes) -> dict[str, Any]:
        unverified = parse_signed(body)
        try:
            key = self._key(unverified.kid)
        except TokenError as error:
            raise DocumentRefused("document_unknown_signer", f"a signed answer: {error}") from error
        readers = {self._client.client_id, self._named.audience}
        return signed_answer(unverified, key, issuer=self._named.issuer, readers=readers, now=self._clock())

    def _client_refused(self, status: int) -> TrustUnavailable:
        if status != 403:  # 403 may be about this token only
            self._rest()
        log.error(
            "the issuer %s refuses this service's credentials as client %s (%d): check PEERSEAL_INTROSPECTION_CLIENT_ID"
            " and …_SECRET, or that the issuer has this service's current keys; and that the client may introspect",
            *(self._named.issuer, self._client.client_id, status),
        )
        return TrustUnavailable(f"{self._named.issuer} refuses this service's credentials", self._pause())

    def _unavailable(self, why: str) -> TrustUnavailable:
        log.warning("the issuer %s cannot be asked about a token: %s", self._named.issuer, why)
        return TrustUnavailable(f"the issuer {self._named.issuer} cannot be asked about a token: {why}", self._pause())

    def _rest(self) -> None:
        self._rests_until = self._clock() + self._limits.introspection_rest

    def _pause(self) -> int:
        return max(1, math.ceil(self._limits.introspection_rest))

    def _renew_after_fork(self) -> None:
        """A forked child has none of the threads that would release these locks and bring these answers."""
        self._lock = threading.Lock()
        self._turns = threading.BoundedSemaphore(self._limits.introspections)
        self._flights: dict[bytes, Future[_Outcome]] = {}


def _result_of(flight: "Future[_Outcome]") -> _Outcome:
    """The outcome of another thread's call. Raises TrustUnavailable."""
    try:
        return flight.result(timeout=_time_to_wait())
    except TimeoutError as error:
        raise TrustUnavailable("another thread waits for the issuer's answer about this token", 1) from error
    except TrustUnavailable as error:
        raise _without_traceback(error) from None


def _without_traceback(error: BaseException) -> TrustUnavailable:
    """The error for another thread. The frames of its traceback hold the token."""
    if isinstance(error, TrustUnavailable):
        return TrustUnavailable(str(error), error.retry_after)
    return TrustUnavailable("the call about this token was broken off", 1)


def _is_invalid_client(body: bytes) -> bool:
    """Whether a 400 is about the client (RFC 6749 section 5.2): so some issuers answer to an assertion."""
    try:
        return unsigned_answer(body).get("error") == "invalid_client"
    except DocumentRefused:
        return False


def _time_to_wait() -> float:
    return min(time_left(), threading.TIMEOUT_MAX)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _keep(known: MutableMapping[bytes, V], digest: bytes, outcome: V, most: int) -> None:
    """Add the newest; of more than ``most`` drop the oldest."""
    known[digest] = outcome
    while len(known) > most:
        del known[next(iter(known))]
