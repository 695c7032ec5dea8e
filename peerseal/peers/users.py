"""Users at the edge: tokens of the issuers that the signed domain document names (OpenID Connect Core, RFC 9068).

They are checked as strictly as our own: `peerseal.protocol.oidc` has the steps.
"""

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from peerseal.errors import MalformedToken, WrongIssuer
from peerseal.peers.forks import in_each_child, notice_fork
from peerseal.peers.limits import IssuerLimits
from peerseal.peers.oidc import OidcIssuer
from peerseal.peers.trusted import KeySource
from peerseal.protocol.keys import PublicKey
from peerseal.protocol.oidc import UnverifiedToken, VerifiedClaims
from peerseal.protocol.policies import UserIssuer, check_scope
from peerseal.protocol.transactions import check_user
from peerseal.protocol.weak_keys import check_not_weak

_NO_FILES: Mapping[str, str | os.PathLike[str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class User:
    """A user whose token was verified. ``name`` is ``sub`` at ``issuer``; ``scopes`` is what the token allows;
    ``token_id`` its ``jti``, None where it has none. Times are seconds since the epoch."""

    name: str
    issuer: str
    scopes: frozenset[str]
    token_id: str | None
    expires_at: int
    claims: Mapping[str, Any] = field(repr=False)

    @property
    def authentication(self) -> dict[str, str]:
        """How the user was authenticated, as evidence (``rctx``): issuer and ``jti``."""
        return {"iss": self.issuer} | ({"jti": self.token_id} if self.token_id else {})


class UserVerifier:
    """Verifies users' tokens by the issuers in the domain's settings, which are looked at for each token: one that an
    operator removes is refused from then on.

    ``jwks_files`` maps an issuer to a file with its JWK Set, in the place of what the settings say of its keys;
    ``ca_file`` (PEM) is what the issuers' https is checked with, unless the settings hold an issuer's ``ca``, and
    ``check_key`` raises KeyRefused for a weak key of theirs. Safe to use from threads, before and after a fork.
    """

    def __init__(
        self,
        trust: KeySource,
        *,
        jwks_files: Mapping[str, str | os.PathLike[str]] = _NO_FILES,
        ca_file: str | os.PathLike[str] | None = None,
        check_key: Callable[[PublicKey], None] = check_not_weak,
        limits: IssuerLimits | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._trust = trust
        self._jwks_files = jwks_files
        self._ca_file = ca_file
        self._check_key = check_key
        self._limits = limits
        self._clock = clock
        self._issuers: dict[UserIssuer, OidcIssuer] = {}
        self._renew_lock()
        in_each_child(self._renew_lock)

    def verify(self, token: str) -> User:
        """The user whom the token proves. Raises TokenError (WrongIssuer for an issuer that nobody configured) or
        TrustUnavailable."""
        notice_fork()
        unverified = UnverifiedToken.parse(token)
        issuers = self._trust.settings().issuers
        named = next((issuer for issuer in issuers if issuer.issuer == unverified.issuer), None)
        if named is None:
            raise WrongIssuer("an issuer of users' tokens that nobody configured")
        verified = self._issuer(named, issuers).verify(unverified, audience=named.audience)
        token_id = verified.claims.get("jti")
        return User(
            check_user(verified.subject),
            verified.issuer,
            scopes_of(verified),
            token_id if type(token_id) is str and len(token_id) <= 200 else None,
            verified.expires_at,
            verified.claims,
        )

    def _issuer(self, named: UserIssuer, issuers: tuple[UserIssuer, ...]) -> OidcIssuer:
        """The issuer with its keys, made once for each setting; those of settings that are gone are forgotten."""
        with self._lock:
            found = self._issuers.get(named)
            if found is None:
                found = OidcIssuer.configured(
                    named.issuer,
                    jwks_url=named.jwks_url,
                    jwks_file=self._jwks_files.get(named.issuer),
                    ca_file=self._ca_file,
                    jwks=named.jwks,
                    ca=named.ca,
                    check_key=self._check_key,
                    limits=self._limits,
                    clock=self._clock,
                )
                kept = {issuer: self._issuers[issuer] for issuer in issuers if issuer in self._issuers}
                self._issuers = {**kept, named: found}
            return found

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()


def scopes_of(verified: VerifiedClaims) -> frozenset[str]:
    """What the token allows: ``scope`` as RFC 8693 section 4.2 has it, or ``scp`` as some issuers write it, a text or a
    list. None where it says neither. Raises MalformedToken where it says both, or what are no scopes."""
    claims = verified.claims
    if "scope" in claims and "scp" in claims:
        raise MalformedToken("both scope and scp")
    value = claims.get("scope", claims.get("scp", ""))
    scopes = value.split() if type(value) is str else value
    if type(scopes) is not list:
        raise MalformedToken("scope is neither a text nor a list")
    return frozenset(check_scope(scope) for scope in scopes)
