"""Issuers of foreign tokens: their keys, which are fetched, cached and renewed, and tokens checked with them.

Until its key is known, a token is unverified text, so it must cause few calls to an issuer. An unknown kid causes at
most one fetch in a cooldown, which begins before the fetch, and one thread fetches while no other waits. A key set is
renewed from time to time; where that fails, the old one is believed until the offline limit. Two errors differ:
`UnknownKey`, the issuer has no such key, and `TrustUnavailable`, the issuer cannot be asked now.
"""

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from peerseal.errors import (
    ConfigurationError,
    DocumentRefused,
    FetchError,
    TrustUnavailable,
    UnknownKey,
    WrongIssuer,
)
from peerseal.protocol.hosts import may_be_other_machine
from peerseal.protocol.keys import PublicKey
from peerseal.protocol.plain import text_like
from peerseal.protocol.tokens.oidc import MAX_DISCOVERY, UnverifiedToken, VerifiedClaims, read_discovery, read_key_set
from peerseal.protocol.weak_keys import check_not_weak
from peerseal.runtime.bounded import AbsentNames
from peerseal.runtime.forks import in_each_child, notice_fork
from peerseal.runtime.limits import FetchLimits, IssuerLimits
from peerseal.transport.fetch import HttpFetcher, is_confidential, is_loopback, no_larger_than

log = logging.getLogger("peerseal.oidc")

DISCOVERY = "/.well-known/openid-configuration"

KeySetReader = Callable[[], bytes]
"""Gives an issuer's present JWK Set. Raises FetchError, DocumentRefused or ConfigurationError."""


class OidcIssuer:
    """One configured issuer, by the exact name in ``iss`` of its tokens."""

    def __init__(self, issuer: str, keys: "IssuerKeys | GivenKeys", clock: Callable[[], float] = time.time) -> None:
        self.issuer = issuer
        self._keys = keys
        self._clock = clock

    @classmethod
    def configured(
        cls,
        issuer: str,
        *,
        jwks_url: str | None = None,
        jwks_file: str | os.PathLike[str] | None = None,
        ca_file: str | os.PathLike[str] | None = None,
        jwks: str | None = None,
        ca: str | None = None,
        check_key: Callable[[PublicKey], None] = check_not_weak,
        limits: IssuerLimits | None = None,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """An issuer whose keys are found by discovery, or at ``jwks_url``, or in ``jwks_file``, which is read again as
        often as the others are fetched. ``ca_file`` or ``ca`` (PEM) verifies its https. ``check_key`` raises KeyRefused
        for a weak key. ``jwks`` is a JWK Set, used where no file is named: nothing is fetched then.

        Nothing is fetched before the first token. Raises ConfigurationError for a URL that is neither https nor on
        loopback.
        """
        limits = limits or IssuerLimits()
        if jwks is not None and jwks_file is None:
            return cls(issuer, GivenKeys(read_key_set(jwks.encode("utf-8"), check_key)), clock)
        web = _Web(limits.fetch, ca_file, ca)
        reader = _reader(issuer, web, jwks_url, None if jwks_file is None else Path(jwks_file))
        return cls(issuer, IssuerKeys(reader, limits, clock, check_key), clock)

    def verify(self, unverified_token: UnverifiedToken, *, audience: str) -> VerifiedClaims:
        """The claims of the token, verified: by this issuer, for that audience, valid now. Raises TokenError or
        TrustUnavailable."""
        if unverified_token.issuer != self.issuer:
            raise WrongIssuer(f"token has iss {unverified_token.issuer}, expected {self.issuer}")
        key = self.key(unverified_token.kid)
        return unverified_token.verified(key, issuer=self.issuer, audience=audience, now=self._clock())

    def key(self, kid: str) -> PublicKey:
        """The issuer's key of that kid. Raises UnknownKey or TrustUnavailable."""
        return self._keys.key(kid)


class GivenKeys:
    """An issuer's keys by kid, without any fetch."""

    def __init__(self, keys: Mapping[str, PublicKey]) -> None:
        self._keys = keys

    def key(self, kid: str) -> PublicKey:
        """The key of that kid. Raises UnknownKey."""
        try:
            return self._keys[kid]
        except KeyError:
            raise UnknownKey(f"the keys configured for the issuer have no kid {text_like(kid)}") from None


class IssuerKeys:
    """An issuer's keys by kid, of this process."""

    def __init__(
        self,
        read: KeySetReader,
        limits: IssuerLimits | None = None,
        clock: Callable[[], float] = time.time,
        check_key: Callable[[PublicKey], None] = check_not_weak,
    ) -> None:
        self._read = read
        self._check_key = check_key
        self._limits = limits or IssuerLimits()
        self._clock = clock
        self._keys: Mapping[str, PublicKey] = {}
        self._read_at = self._tried_at = -math.inf
        self._absent = AbsentNames(self._limits.max_negative, self._limits.negative_ttl)  # changed with the lock held
        self._renew_lock()
        in_each_child(self._renew_lock)

    def key(self, kid: str) -> PublicKey:
        """The key of that kid. Raises UnknownKey or TrustUnavailable."""
        notice_fork()
        found = self._known(kid)
        if found is None:
            if self._absent.has(kid, self._clock()):
                raise UnknownKey(f"the issuer has no key {text_like(kid)}")
            return self._ask(kid)
        if self._age(self._read_at) >= self._limits.refresh_interval and not self._is_cooling():
            with suppress(TrustUnavailable):  # then the old set is still believed
                return self._ask(kid)
        return found

    def _ask(self, kid: str) -> PublicKey:
        if not self._lock.acquire(blocking=False):  # a slow issuer must not block all threads of a worker
            raise TrustUnavailable("another thread is fetching the issuer's keys", 1)
        try:
            return self._in_cooldown(kid) if self._is_cooling() else self._fetched(kid)
        finally:
            self._lock.release()

    def _in_cooldown(self, kid: str) -> PublicKey:
        found = self._known(kid)  # another thread may just have fetched it
        if found is None:
            left = math.ceil(self._limits.cooldown - self._age(self._tried_at))
            raise TrustUnavailable("the issuer was asked for its keys a moment ago", max(left, 1))
        return found

    def _fetched(self, kid: str) -> PublicKey:
        self._fetch()
        if kid not in self._keys:
            self._absent.add(kid, self._clock())
            raise UnknownKey(f"the issuer has no key {text_like(kid)}")
        return self._keys[kid]

    def _fetch(self) -> None:
        self._tried_at = self._clock()  # before the fetch, which may hang
        try:
            keys = read_key_set(self._read(), self._check_key)
        except (FetchError, DocumentRefused, ConfigurationError) as error:
            log.warning("an issuer's keys cannot be had: %s", error)
            pause = math.ceil(self._limits.cooldown)
            raise TrustUnavailable(f"an issuer's keys cannot be had: {error}", pause) from error
        self._keys, self._read_at = keys, self._clock()

    def _known(self, kid: str) -> PublicKey | None:
        return self._keys.get(kid) if self._age(self._read_at) < self._limits.offline_limit else None

    def _is_cooling(self) -> bool:
        return 0 <= self._age(self._tried_at) < self._limits.cooldown  # False after a clock was set back

    def _age(self, since: float) -> float:
        return self._clock() - since

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()


class _Web:
    """Documents of one issuer by URL: one fetcher for the configured server, and one for the server that the issuer
    named last."""

    def __init__(self, limits: FetchLimits, ca_file: str | os.PathLike[str] | None, ca: str | None) -> None:
        self.max_bytes = limits.max_bytes
        self._limits = limits
        self._ca_file = ca_file
        self._ca = ca
        self._fetchers: dict[bool, tuple[str, HttpFetcher]] = {}

    def get(self, url: str, *, elsewhere: bool = False) -> bytes:
        """The document; with ``elsewhere`` not from this machine. Raises FetchError."""
        parts = urlsplit(url)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        answer = self._fetcher(f"{parts.scheme}://{parts.netloc}", elsewhere).call("GET", path)
        if answer.status != 200:
            raise FetchError(f"{url} answered {answer.status}", answer.status)
        return answer.body

    def _fetcher(self, server: str, elsewhere: bool) -> HttpFetcher:
        known, fetcher = self._fetchers.get(elsewhere, (None, None))
        if fetcher is not None and known == server:
            return fetcher
        if fetcher is not None:
            fetcher.close()
        made = HttpFetcher([server], self._limits, ca_file=self._ca_file, ca=self._ca, elsewhere=elsewhere)
        self._fetchers[elsewhere] = server, made
        return made


def check_issuer_url(url: str, what: str) -> str:
    """The URL itself, which must be https or on loopback: else keys from there cannot be believed. Raises
    ConfigurationError."""
    try:
        confidential = is_confidential(url.partition("?")[0])
    except ConfigurationError as error:
        raise ConfigurationError(f"{what} is no URL of a server") from error
    if not confidential:
        raise ConfigurationError(f"{what} must be https, or on loopback")
    if "#" in url:
        raise ConfigurationError(f"{what} must have no fragment")
    return url


def check_jwks_uri(jwks_uri: str, issuer: str) -> str:
    """The URI itself, which the issuer may name in its discovery document: as `check_issuer_url`, and not on this
    machine where the issuer is remote. Raises ConfigurationError."""
    check_issuer_url(jwks_uri, "jwks_uri")
    if not is_loopback(issuer) and not may_be_other_machine(urlsplit(jwks_uri).hostname or ""):
        raise ConfigurationError(f"jwks_uri of a remote issuer is on this machine: {jwks_uri}")
    return jwks_uri


def _reader(issuer: str, web: _Web, jwks_url: str | None, jwks_file: Path | None) -> KeySetReader:
    check_issuer_url(issuer, "issuer")
    if jwks_file is not None:
        return lambda: _file(jwks_file, web.max_bytes)
    if jwks_url is not None:
        checked = check_issuer_url(jwks_url, "jwks_url")
        return lambda: web.get(checked)

    def discover() -> bytes:
        with no_larger_than(MAX_DISCOVERY):
            document = web.get(issuer.rstrip("/") + DISCOVERY)
        jwks_uri = check_jwks_uri(read_discovery(document, issuer=issuer), issuer)
        return web.get(jwks_uri, elsewhere=not (is_loopback(issuer) or _same_server(jwks_uri, issuer)))

    return discover


def _same_server(url: str, other: str) -> bool:
    """Whether the URLs name one server in the same spelling. The configured server may be on this machine."""
    one, two = urlsplit(url), urlsplit(other)
    return (one.scheme, one.netloc) == (two.scheme, two.netloc)


def _file(path: Path, max_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise FetchError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > max_bytes:
        raise FetchError(f"{path} is larger than a set of keys may be")
    return content
