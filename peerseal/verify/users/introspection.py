"""Opaque tokens: their issuer is asked (RFC 7662), and what it said is remembered for a short time.

What costs the issuer little: callers with the same token share one call; what is known is not asked again until
``introspection_ttl``, or the token's end, whichever comes first; a refusal is remembered for seconds. Tokens that were
never active, which strangers can make up, have a budget of their own; calls at once are bounded; and an issuer that did
not answer in time is left alone for a moment. Tokens are remembered by their SHA-256.

Two answers differ: `TokenError`, the issuer was asked and does not vouch for the token, and `TrustUnavailable`, it
cannot be asked now, or its answer is none.
"""

import hashlib
import logging
import math
import os
import threading
from collections.abc import Callable, Iterator, MutableMapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, TypeVar
from urllib.parse import urlencode, urlsplit

from peerseal.errors import AnswerTooLarge, DocumentRefused, FetchError, TokenError, TrustUnavailable
from peerseal.protocol.keys import PublicKey
from peerseal.protocol.policies import UserIssuer
from peerseal.protocol.tokens.introspection import (
    MAX_ANSWER,
    SIGNED_CONTENT,
    ActiveToken,
    check_opaque,
    parse_signed,
    plain_answer,
    signed_answer,
)
from peerseal.runtime.forks import in_each_child
from peerseal.runtime.limits import IssuerLimits
from peerseal.transport.deadline import no_longer_than, time_left
from peerseal.transport.fetch import Answer, HttpFetcher, no_larger_than
from peerseal.verify.users.introspection_client import IntrospectionClient

log = logging.getLogger("peerseal.introspection")

V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What the issuer said at ``asked_at``: the active token, or the kind and detail of its refusal. An error itself is
    not kept: its traceback would keep the token."""

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
        self._active: dict[bytes, _Outcome] = {}  # also those to be asked about again; the oldest first
        self._refused: dict[bytes, _Outcome] = {}
        self._credit, self._credited_at = limits.introspection_burst, clock()
        self._rests_until = -math.inf
        self._renew_after_fork()
        in_each_child(self._renew_after_fork)

    def verify(self, token: str) -> ActiveToken:
        """What the issuer says about the token, now or a moment ago. Raises TokenError or TrustUnavailable."""
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
            outcome = self._led(flight, digest, token) if leads else _joined(flight)
        return outcome.result()

    def forget(self, token: str) -> None:
        """Ask again about this token, also where an answer is on its way."""
        digest = _digest(token)
        with self._lock:
            for known in (self._active, self._refused, self._flights):
                known.pop(digest, None)

    # ---- what is known

    def _known(self, digest: bytes) -> _Outcome | None:
        """With the lock held: what may be believed without asking."""
        active, refused, now = self._active.get(digest), self._refused.get(digest), self._clock()
        if active is not None and active.active is not None:
            young = 0 <= now - active.asked_at < self._limits.introspection_ttl  # not after a clock was set back
            return active if young and now < (active.active.expires_at or math.inf) else None
        if refused is not None and 0 <= now - refused.asked_at < self._limits.introspection_negative_ttl:
            return refused
        return None

    def _remember(self, digest: bytes, outcome: _Outcome) -> None:
        """With the lock held."""
        self._active.pop(digest, None)
        self._refused.pop(digest, None)
        if outcome.active is not None:
            _keep(self._active, digest, outcome, self._limits.max_introspected)
        else:
            _keep(self._refused, digest, outcome, self._limits.max_negative)

    # ---- one call for all who ask about the same token

    def _led(self, flight: "Future[_Outcome]", digest: bytes, token: str) -> _Outcome:
        """Asks, for this caller and for those that join it."""
        outcome = None
        try:
            outcome = self._asked(digest, token)
            flight.set_result(outcome)
        except BaseException as error:
            flight.set_exception(_retold(error))
            raise
        finally:
            with self._lock:
                if self._flights.get(digest) is flight:  # else it was forgotten meanwhile
                    del self._flights[digest]
                    if outcome is not None:
                        self._remember(digest, outcome)
        return outcome

    def _asked(self, digest: bytes, token: str) -> _Outcome:
        asked_at = self._clock()  # before the call: a token that is revoked during it is believed no longer than others
        if digest not in self._active:
            self._spend()
        with self._turn():
            answer = self._call(token)
            try:
                active = self._read(answer, token)
            except TokenError as error:
                return _Outcome(asked_at, None, type(error), str(error))
            except DocumentRefused as error:
                raise self._unavailable(f"its answer is refused ({error.code}): {error}") from error
        if active.expires_at is None:  # then the answer is good for as long as it is remembered, and no longer
            active = replace(active, expires_at=int(asked_at + self._limits.introspection_ttl))
        return _Outcome(asked_at, active)

    # ---- budgets

    def _spend(self) -> None:
        """A token that was never active costs one of the budget. Raises TrustUnavailable."""
        limits = self._limits
        with self._lock:
            now = self._clock()
            gained = max(0.0, now - self._credited_at) * limits.introspection_rate
            self._credit, self._credited_at = min(limits.introspection_burst, self._credit + gained), now
            if self._credit < 1:
                raise TrustUnavailable("too many unknown tokens at once", 1)
            self._credit -= 1

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """One of the calls at once. Raises TrustUnavailable where none is free in time, and while the issuer rests."""
        turns = self._turns
        if not turns.acquire(timeout=_time_to_wait()):
            raise TrustUnavailable("too many calls to the issuer at once", 1)
        try:
            if 0 < self._rests_until - self._clock() <= self._limits.introspection_rest:
                raise TrustUnavailable("the issuer did not answer a moment ago", self._pause())
            yield
        finally:
            turns.release()

    # ---- the call

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
            raise self._not_let_in(answer.status)
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
            members = plain_answer(answer.body)
        audience = None if self._client.unsafe_any_audience else named.audience
        active = ActiveToken.read(members, issuer=named.issuer, audience=audience, now=self._clock())
        told = {name: value for name, value in active.claims.items() if value != token}  # some call the token its jti
        return replace(active, claims=MappingProxyType(told))

    def _signed(self, body: bytes) -> dict[str, Any]:
        unverified = parse_signed(body)
        try:
            key = self._key(unverified.kid)
        except TokenError as error:
            raise DocumentRefused("document_unknown_signer", f"a signed answer: {error}") from error
        readers = {self._client.client_id, self._named.audience}
        return signed_answer(unverified, key, issuer=self._named.issuer, readers=readers, now=self._clock())

    # ---- failures

    def _not_let_in(self, status: int) -> TrustUnavailable:
        if status != 403:  # which an issuer may answer about one token
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
        """In a forked child: the threads that would release locks, and bring answers, are gone."""
        self._lock = threading.Lock()
        self._turns = threading.BoundedSemaphore(self._limits.introspections)
        self._flights: dict[bytes, Future[_Outcome]] = {}


def _joined(flight: "Future[_Outcome]") -> _Outcome:
    """What the thread that asks finds out. Raises TrustUnavailable."""
    try:
        return flight.result(timeout=_time_to_wait())
    except TimeoutError as error:
        raise TrustUnavailable("another thread waits for the issuer's answer about this token", 1) from error
    except TrustUnavailable as error:
        raise _retold(error) from None


def _retold(error: BaseException) -> TrustUnavailable:
    """The error for another thread: without the traceback, whose frames hold the token."""
    if isinstance(error, TrustUnavailable):
        return TrustUnavailable(str(error), error.retry_after)
    return TrustUnavailable("the call about this token was broken off", 1)


def _is_invalid_client(body: bytes) -> bool:
    """Whether a refusal is about the client (RFC 6749 section 5.2): of an assertion some issuers say so with 400."""
    try:
        return plain_answer(body).get("error") == "invalid_client"
    except DocumentRefused:
        return False


def _time_to_wait() -> float:
    return min(time_left(), threading.TIMEOUT_MAX)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _keep(known: MutableMapping[bytes, V], digest: bytes, outcome: V, most: int) -> None:
    """The newest last; of more than ``most`` the oldest is forgotten."""
    known[digest] = outcome
    while len(known) > most:
        del known[next(iter(known))]
