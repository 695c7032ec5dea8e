"""Users' tokens, verified at the edge: of the issuers in the signed domain document (OpenID Connect Core, RFC 9068).

JWTs are checked as strictly as Peerseal's own tokens, in the steps of `peerseal.protocol.tokens.oidc`. The issuer is
asked about opaque tokens (`peerseal.verify.introspection`).
"""

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from peerseal.errors import ConfigurationError, MalformedToken, TrustUnavailable, WrongIssuer
from peerseal.protocol.hosts import is_usable_url
from peerseal.protocol.keys import PublicKey
from peerseal.protocol.names import check_scope
from peerseal.protocol.plain import plain_text, text_like
from peerseal.protocol.policies import UserIssuer
from peerseal.protocol.tokens.introspection import ActiveToken, is_jwt_shaped
from peerseal.protocol.tokens.oidc import UnverifiedToken, VerifiedClaims
from peerseal.protocol.tokens.transaction import check_user
from peerseal.protocol.weak_keys import check_not_weak
from peerseal.runtime.forks import in_each_child, notice_fork
from peerseal.runtime.limits import IssuerLimits
from peerseal.runtime.options import check_callable, check_is, check_path
from peerseal.trust.beliefs import KeySource
from peerseal.verify.introspection import Introspection, IntrospectionClient
from peerseal.verify.issuers import OidcIssuer

_NO_FILES: Mapping[str, str | os.PathLike[str]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class User:
    """A user whose token was verified. ``name`` is ``sub`` at ``issuer``; ``scopes`` is what the token allows;
    ``token_id`` is its ``jti``, if any. ``claims`` are the token's, or the issuer's answer about an opaque token. Times
    are seconds since the epoch."""

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
    """Verifies users' tokens of the issuers in the domain's settings. The settings are read for each token, so the
    tokens of an issuer that an operator removes are refused from then on.

    ``jwks_files`` maps an issuer to a file with its JWK Set, used instead of the keys in the settings; ``ca_file``
    (PEM) verifies the issuers' https, unless the settings hold an issuer's ``ca``; ``check_key`` raises KeyRefused for
    a weak key. ``introspection`` holds this service's credentials, one for each issuer that is asked about tokens. Safe
    to use from threads, before and after a fork. Raises ConfigurationError.
    """

    def __init__(
        self,
        trust: KeySource,
        *,
        jwks_files: Mapping[str, str | os.PathLike[str]] = _NO_FILES,
        ca_file: str | os.PathLike[str] | None = None,
        introspection: IntrospectionClient | Sequence[IntrospectionClient] | None = None,
        check_key: Callable[[PublicKey], None] = check_not_weak,
        limits: IssuerLimits | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        check_callable("trust.settings", getattr(trust, "settings", None))
        check_callable("check_key", check_key)
        check_callable("clock", clock)
        check_is("limits", IssuerLimits() if limits is None else limits, IssuerLimits, "an IssuerLimits")
        check_is("jwks_files", jwks_files, Mapping, "a mapping of issuers to files")
        for file in jwks_files.values():
            check_path("jwks_files", file)
        if ca_file is not None:
            check_path("ca_file", ca_file)
        self._trust = trust
        self._clients = _by_issuer(introspection)
        self._jwks_files = jwks_files
        self._ca_file = ca_file
        self._check_key = check_key
        self._limits = limits or IssuerLimits()
        self._clock = clock
        self._issuers: dict[UserIssuer, _Issuer] = {}
        self._renew_lock()
        in_each_child(self._renew_lock)

    def verify(self, token: str, *, issuer: str | None = None) -> User:
        """The user whom the token proves. ``issuer`` names the issuer that the token must have; it is needed for an
        opaque token where this service has credentials at several issuers. Raises TokenError (WrongIssuer for an issuer
        that is not in the settings, or where none can be chosen) or TrustUnavailable."""
        notice_fork()
        text = plain_text(token)
        if self._clients and text is not None and not is_jwt_shaped(text):
            return self._opaque(text, issuer)
        unverified = UnverifiedToken.parse(token)
        if issuer not in (None, unverified.issuer):
            raise WrongIssuer(f"expected a token of {issuer}, this one has iss {unverified.issuer}")
        found = self._issuer(unverified.issuer)
        verified = found.keys.verify(unverified, audience=found.settings.audience)
        if not found.settings.introspect_jwts:
            return _user(verified, verified.expires_at)
        active = found.ask(token)
        if active.subject != verified.subject:
            raise TrustUnavailable(f"{verified.issuer} answers about the token of another user than the token's own")
        return _user(active, min(verified.expires_at, active.expires_at or verified.expires_at))

    def forget(self, token: str) -> None:
        """Ask the issuers about this token again when it comes next, such as after a logout or a revocation. Other
        processes still use their cached answers for ``IssuerLimits.introspection_ttl``."""
        for issuer in list(self._issuers.values()):
            if issuer.introspection is not None:
                issuer.introspection.forget(token)

    def _opaque(self, token: str, issuer: str | None) -> User:
        if issuer is None:
            issuers = self._trust.settings().issuers
            askable = [one.issuer for one in issuers if one.introspection_url and one.issuer in self._clients]
            if len(askable) != 1:
                raise WrongIssuer(
                    f"an opaque token, and {len(askable)} issuers to ask about it: expected one, or issuer="
                )
            issuer = askable[0]
        active = self._issuer(issuer).ask(token)
        return _user(active, active.expires_at or 0)

    def _issuer(self, name: str) -> "_Issuer":
        """The issuer of that name in the domain's settings, made once for each setting. Raises WrongIssuer or
        TrustUnavailable."""
        issuers = self._trust.settings().issuers
        named = next((one for one in issuers if one.issuer == name), None)
        if named is None:
            raise WrongIssuer(f"the domain's settings name no issuer {text_like(name)} of users' tokens")
        with self._lock:
            found = self._issuers.get(named)
            if found is None:
                found = self._made(named)
                in_force = {one: self._issuers[one] for one in issuers if one in self._issuers}
                self._issuers = in_force | {named: found}
            return found

    def _made(self, named: UserIssuer) -> "_Issuer":
        for url in filter(None, (named.issuer, named.jwks_url, named.introspection_url)):
            if not is_usable_url(url):  # an older registry accepted such settings
                raise TrustUnavailable(f"the domain's settings name {text_like(url)}, which is no URL of a server")
        ca_file, limits, clock = self._ca_file, self._limits, self._clock
        keys = OidcIssuer.configured(
            named.issuer,
            jwks_url=named.jwks_url,
            jwks_file=self._jwks_files.get(named.issuer),
            ca_file=ca_file,
            jwks=named.jwks,
            ca=named.ca,
            check_key=self._check_key,
            limits=limits,
            clock=clock,
        )
        client, introspection = self._clients.get(named.issuer), None
        if client is not None and named.introspection_url is not None:
            introspection = Introspection(named, client, keys.key, ca_file=ca_file, limits=limits, clock=clock)
        return _Issuer(named, keys, introspection)

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class _Issuer:
    """An issuer in the domain's settings; ``introspection`` is None where this service has no credentials for it."""

    settings: UserIssuer
    keys: OidcIssuer
    introspection: Introspection | None

    def ask(self, token: str) -> ActiveToken:
        """The issuer's answer about the token. Raises TokenError or TrustUnavailable."""
        name = self.settings.issuer
        if self.settings.introspection_url is None:
            raise WrongIssuer(f"the domain's settings name no introspection_url of {name}")
        if self.introspection is None:
            raise TrustUnavailable(f"no credentials at {name}: set PEERSEAL_INTROSPECTION_ISSUER and …_CLIENT_ID")
        return self.introspection.verify(token)


def _by_issuer(
    clients: IntrospectionClient | Sequence[IntrospectionClient] | None,
) -> Mapping[str, IntrospectionClient]:
    if clients is None:
        return {}
    several = (clients,) if isinstance(clients, IntrospectionClient) else clients
    check_is("introspection", several, Sequence, "an IntrospectionClient, or several")
    for client in several:
        check_is("introspection", client, IntrospectionClient, "an IntrospectionClient, or several")
    if len({client.issuer for client in several}) != len(several):
        raise ConfigurationError("introspection: two IntrospectionClients for one issuer")
    return {client.issuer: client for client in several}


def _user(proven: VerifiedClaims | ActiveToken, expires_at: int) -> User:
    token_id = proven.claims.get("jti")
    return User(
        check_user(proven.subject),
        proven.issuer,
        scopes_of(proven),
        token_id if type(token_id) is str and len(token_id) <= 200 else None,
        expires_at,
        proven.claims,
    )


def scopes_of(verified: VerifiedClaims | ActiveToken) -> frozenset[str]:
    """The scopes in ``scope`` (RFC 8693 section 4.2) or in ``scp``, which some issuers use; either is a text or a list,
    and none is no scope. Raises MalformedToken for both claims, and for invalid scopes."""
    claims = verified.claims
    if "scope" in claims and "scp" in claims:
        raise MalformedToken("both scope and scp")
    value = claims.get("scope", claims.get("scp", ""))
    scopes = value.split() if type(value) is str else value
    if type(scopes) is not list:
        raise MalformedToken("scope is neither a text nor a list")
    return frozenset(check_scope(scope) for scope in scopes)
