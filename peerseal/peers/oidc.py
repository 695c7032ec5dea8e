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
from collections.abc import Callable, Mapping, Sequence
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
from peerseal.peers.addresses import is_loopback, literal, local_class
from peerseal.peers.fetch import HttpFetcher, is_confidential, no_larger_than
from peerseal.peers.forks import in_each_child, notice_fork
from peerseal.peers.limits import FetchLimits, IssuerLimits
from peerseal.protocol.keys import PublicKey
from peerseal.protocol.oidc import MAX_DISCOVERY, UnverifiedToken, VerifiedClaims, read_discovery, read_key_set
from peerseal.protocol.weak_keys import check_not_weak

log = logging.getLogger("peerseal.oidc")

DISCOVERY = "/.well-known/openid-configuration"

KeySetReader = Callable[[], bytes]
"""Gives an issuer's JWK Set as it stands now. Raises FetchError, DocumentRefused or ConfigurationError."""


class OidcIssuer:
    """One issuer that somebody here configured, under exactly the name that its tokens' ``iss`` has."""

    def __init__(self, issuer: str, keys: "IssuerKeys", clock: Callable[[], float] = time.time) -> None:
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
        check_key: Callable[[PublicKey], None] = check_not_weak,
        limits: IssuerLimits | None = None,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """An issuer whose keys are found by discovery, or at ``jwks_url``, or in ``jwks_file``, which is read anew like
        the others. ``ca_file`` (PEM) is what its https is checked with. ``check_key`` raises KeyRefused for a weak key.

        Nothing is fetched before the first token. Raises ConfigurationError for a URL that is neither https nor on
        loopback.
        """
        limits = limits or IssuerLimits()
        configured = [check_issuer_url(issuer, "issuer")]
        if jwks_url is not None:
            configured.append(check_issuer_url(jwks_url, "jwks_url"))
        web = _Web(limits.fetch, ca_file, configured, remote=not is_loopback(issuer))
        reader = _reader(issuer, web, jwks_url, None if jwks_file is None else Path(jwks_file))
        return cls(issuer, IssuerKeys(reader, limits, clock, check_key), clock)

    def verify(self, unverified_token: UnverifiedToken, *, audience: str) -> VerifiedClaims:
        """What the token says, said by this issuer to that audience, now. Raises TokenError or TrustUnavailable."""
        if unverified_token.issuer != self.issuer:
            raise WrongIssuer("iss is not this issuer")
        key = self._keys.key(unverified_token.kid)
        return unverified_token.verified(key, issuer=self.issuer, audience=audience, now=self._clock())


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
    """Documents by their URLs, through the one network seam.

    Servers that an operator configured have a fetcher each. All others, which the issuer names, share one that is made
    again for another server: an issuer that names a new one each time opens no more than one pool of connections.
    """

    def __init__(
        self, limits: FetchLimits, ca_file: str | os.PathLike[str] | None, configured: Sequence[str], *, remote: bool
    ) -> None:
        """``remote``: what the issuer names must be on another machine."""
        self.max_bytes = limits.max_bytes
        self._limits = limits
        self._ca_file = ca_file
        self._remote = remote
        servers = {_server(url) for url in configured}
        self._configured = {server: HttpFetcher([server], limits, ca_file=ca_file) for server in servers}
        self._named: tuple[str, HttpFetcher] | None = None

    def get(self, url: str) -> bytes:
        """The document. Raises FetchError. One thread at a time: `IssuerKeys` sees to it."""
        parts = urlsplit(url)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        answer = self._fetcher(_server(url)).call("GET", target)
        if answer.status != 200:
            raise FetchError(f"{url} answered {answer.status}", answer.status)
        return answer.body

    def _fetcher(self, server: str) -> HttpFetcher:
        if server in self._configured:
            return self._configured[server]
        if self._named is None or self._named[0] != server:
            if self._named is not None:
                self._named[1].close()
            made = HttpFetcher([server], self._limits, ca_file=self._ca_file, remote_only=self._remote)
            self._named = server, made
        return self._named[1]


def _server(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


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
    sends nobody to an address of this machine. Where a name leads is checked once it is connected to. Raises
    ConfigurationError."""
    check_issuer_url(jwks_uri, "jwks_uri")
    if is_loopback(issuer):
        return jwks_uri
    address = literal(urlsplit(jwks_uri).hostname or "")
    kind = "loopback" if is_loopback(jwks_uri) else local_class(address) if address is not None else None
    if kind is not None:
        raise ConfigurationError(f"jwks_uri of a remote issuer is a {kind} address")
    return jwks_uri


def _reader(issuer: str, web: _Web, jwks_url: str | None, jwks_file: Path | None) -> KeySetReader:
    if jwks_file is not None:
        return lambda: _file(jwks_file, web.max_bytes)
    if jwks_url is not None:
        return lambda: web.get(jwks_url)

    def discover() -> bytes:
        with no_larger_than(MAX_DISCOVERY):
            document = web.get(issuer.rstrip("/") + DISCOVERY)
        return web.get(check_jwks_uri(read_discovery(document, issuer=issuer), issuer))

    return discover


def _file(path: Path, max_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise FetchError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > max_bytes:
        raise FetchError(f"{path} is larger than a set of keys may be")
    return content
