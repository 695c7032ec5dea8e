"""Foreign issuers: their keys, fetched, cached and kept fresh, and tokens checked with them.

What a token says is unsigned text until its key is known, so it must cost an issuer little: a kid that nobody knows
brings about one fetch a cooldown at most, which begins before the fetch, and one thread makes it while no other waits.
A set of keys is read anew from time to time; where that fails, the old one is believed until the offline limit. Two
answers differ: `UnknownKey`, the issuer was asked and has no such key, and `TrustUnavailable`, it cannot be asked now.
"""

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
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
from peerseal.protocol.hosts import leads_elsewhere
from peerseal.protocol.keys import PublicKey
from peerseal.protocol.tokens.oidc import MAX_DISCOVERY, UnverifiedToken, VerifiedClaims, read_discovery, read_key_set
from peerseal.protocol.weak_keys import check_not_weak
from peerseal.runtime.forks import in_each_child, notice_fork
from peerseal.runtime.limits import FetchLimits, IssuerLimits
from peerseal.transport.fetch import HttpFetcher, is_confidential, is_loopback, no_larger_than

log = logging.getLogger("peerseal.oidc")

DISCOVERY = "/.well-known/openid-configuration"

KeySetReader = Callable[[], bytes]
"""Gives an issuer's JWK Set as it stands now. Raises FetchError, DocumentRefused or ConfigurationError."""


class OidcIssuer:
    """One issuer that somebody here configured, under exactly the name that its tokens' ``iss`` has."""

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
        """An issuer whose keys are found by discovery, or at ``jwks_url``, or in ``jwks_file``, which is read anew like
        the others. ``ca_file`` (PEM) is what its https is checked with. ``check_key`` raises KeyRefused for a weak key.
        ``jwks`` is a JWK Set itself, where no file is named: nothing is fetched; ``ca`` is PEM in the place of a file.

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
        """What the token says, said by this issuer to that audience, now. Raises TokenError or TrustUnavailable."""
        if unverified_token.issuer != self.issuer:
            raise WrongIssuer("iss is not this issuer")
        key = self.key(unverified_token.kid)
        return unverified_token.verified(key, issuer=self.issuer, audience=audience, now=self._clock())

    def key(self, kid: str) -> PublicKey:
        """The issuer's key of that kid. Raises UnknownKey or TrustUnavailable."""
        return self._keys.key(kid)


class GivenKeys:
    """An issuer's keys by kid, which are known and never fetched."""

    def __init__(self, keys: Mapping[str, PublicKey]) -> None:
        self._keys = keys

    def key(self, kid: str) -> PublicKey:
        """The key of that kid. Raises UnknownKey."""
        try:
            return self._keys[kid]
        except KeyError:
            raise UnknownKey("none of the keys that are given for the issuer") from None


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
        self._absent: dict[str, float] = {}  # kid: until when; written with the lock held, the oldest first
        self._renew_lock()
        in_each_child(self._renew_lock)

    def key(self, kid: str) -> PublicKey:
        """The key of that kid. Raises UnknownKey or TrustUnavailable."""
        notice_fork()
        found = self._known(kid)
        if found is None:
            if self._clock() < self._absent.get(kid, -math.inf):
                raise UnknownKey("the issuer has no such key")
            return self._ask(kid)
        if self._age(self._read_at) >= self._limits.refresh_interval and not self._cooling():
            return self._refreshed(kid, found)
        return found

    def _refreshed(self, kid: str, found: PublicKey) -> PublicKey:
        """The key from a set just read; the old one where another thread is at it, or none can be had now."""
        try:
            return self._ask(kid)
        except TrustUnavailable:
            return found

    def _ask(self, kid: str) -> PublicKey:
        if not self._lock.acquire(blocking=False):  # one slow issuer must not hold every thread of a worker
            raise TrustUnavailable("another thread is fetching the issuer's keys", 1)
        try:
            return self._in_cooldown(kid) if self._cooling() else self._fetched(kid)
        finally:
            self._lock.release()

    def _in_cooldown(self, kid: str) -> PublicKey:
        found = self._known(kid)  # another thread may have brought it a moment ago
        if found is None:
            left = math.ceil(self._limits.cooldown - self._age(self._tried_at))
            raise TrustUnavailable("the issuer was asked for its keys a moment ago", max(left, 1))
        return found

    def _fetched(self, kid: str) -> PublicKey:
        self._fetch()
        if kid not in self._keys:
            self._remember_absent(kid)
            raise UnknownKey("the issuer has no such key")
        return self._keys[kid]

    def _fetch(self) -> None:
        self._tried_at = self._clock()  # before the fetch: one that hangs is no reason for the next
        try:
            keys = read_key_set(self._read(), self._check_key)
        except (FetchError, DocumentRefused, ConfigurationError) as error:
            log.warning("an issuer's keys cannot be had: %s", error)
            pause = math.ceil(self._limits.cooldown)
            raise TrustUnavailable(f"an issuer's keys cannot be had: {error}", pause) from error
        self._keys, self._read_at = keys, self._clock()

    def _known(self, kid: str) -> PublicKey | None:
        return self._keys.get(kid) if self._age(self._read_at) < self._limits.offline_limit else None

    def _cooling(self) -> bool:
        return 0 <= self._age(self._tried_at) < self._limits.cooldown  # a clock set back is no cooldown

    def _age(self, since: float) -> float:
        return self._clock() - since

    def _remember_absent(self, kid: str) -> None:
        self._absent.pop(kid, None)
        while len(self._absent) >= self._limits.max_negative:
            del self._absent[next(iter(self._absent))]
        self._absent[kid] = self._clock() + self._limits.negative_ttl

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()


class _Web:
    """Documents of one issuer by their URLs, through the one network seam: one fetcher for the server that somebody
    here configured, and one for the server that the issuer named last. The one before that is closed."""

    def __init__(self, limits: FetchLimits, ca_file: str | os.PathLike[str] | None, ca: str | None) -> None:
        self.max_bytes = limits.max_bytes
        self._limits = limits
        self._ca_file = ca_file
        self._ca = ca
        self._fetchers: dict[bool, tuple[str, HttpFetcher]] = {}

    def get(self, url: str, *, elsewhere: bool = False) -> bytes:
        """The document; with ``elsewhere`` from another machine only. Raises FetchError."""
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
    """The URL itself if keys fetched from there can be believed: https, or on loopback. Raises ConfigurationError."""
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
    """The URI itself if the issuer may name it in its discovery document: as `check_issuer_url`, and a remote issuer
    sends nobody to this machine. Raises ConfigurationError."""
    check_issuer_url(jwks_uri, "jwks_uri")
    if not is_loopback(issuer) and not leads_elsewhere(urlsplit(jwks_uri).hostname or ""):
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
    """Whether the URLs name one server in the same spelling: one that somebody here configured may be anywhere."""
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
