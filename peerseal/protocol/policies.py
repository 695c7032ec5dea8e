"""What operators lay down: who may call a service, and the domain's settings. Strictly read (SPEC 5)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Self
from urllib.parse import urlsplit

from peerseal.errors import MalformedToken
from peerseal.protocol.claims import claim, exactly
from peerseal.protocol.hosts import is_loopback_host
from peerseal.protocol.names import split_service_id

ANYONE: Final = "*"
"""Stands for any service of the own trust domain."""
MAX_SCOPE: Final = 100
"""Characters of a scope (RFC 6749 section 3.3 sets no limit)."""
MAX_AUDIENCE: Final = 200
"""Characters of an audience of consumers."""
SCOPE: Final = re.compile(rf"[\x21\x23-\x5b\x5d-\x7e]{{1,{MAX_SCOPE}}}")
"""One scope token: visible ASCII without quotes and backslashes."""
AUDIENCE: Final = re.compile(rf"[\x21\x23-\x2e\x30-\x5b\x5d-\x7e]{{1,{MAX_AUDIENCE}}}")
"""An audience of consumers: the same, without a slash."""
_INTROSPECTION_FLAGS: Final = ("introspection_signed", "introspect_jwts")
_INTROSPECTION: Final = ("introspection_url", *_INTROSPECTION_FLAGS)


@dataclass(frozen=True, slots=True)
class CallPolicy:
    """Who may call one service, by service id or ``"*"``, each with its scopes.

    A ``restricted`` policy is told only to the service itself and to those that it names.
    """

    allow: Mapping[str, frozenset[str]]
    restricted: bool = False

    def to_json(self) -> dict[str, Any]:
        """``{"allow": {caller: [scope…]}, "restricted": bool}``, in one spelling."""
        return {"allow": {who: sorted(self.allow[who]) for who in sorted(self.allow)}, "restricted": self.restricted}

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Raises MalformedToken or InvalidName."""
        if type(value) is not dict:
            raise MalformedToken("a policy is not an object")
        exactly(value, frozenset(("allow",)), frozenset(("restricted",)))
        allow = {}
        for who, scopes in claim(value, "allow", dict).items():
            if who != ANYONE:
                split_service_id(who)
            allow[who] = scopes_from(scopes)
        return cls(allow, claim({"restricted": False, **value}, "restricted", bool))

    def scopes(self, caller: str) -> frozenset[str] | None:
        """The scopes of the service with id ``caller``, of the own domain; None where it may not call at all."""
        return self.allow.get(caller, self.allow.get(ANYONE))


@dataclass(frozen=True, slots=True)
class UserIssuer:
    """An OIDC issuer whose tokens prove users at the edge. ``jwks_url`` is found by discovery where it is None.

    At ``introspection_url`` the issuer says what its opaque tokens mean (RFC 7662). With ``introspection_signed`` only
    signed answers (RFC 9701) are believed; with ``introspect_jwts`` the issuer is asked about its JWTs, too.
    """

    issuer: str
    audience: str
    jwks_url: str | None = None
    introspection_url: str | None = None
    introspection_signed: bool = False
    introspect_jwts: bool = False

    def to_json(self) -> dict[str, Any]:
        """``{"issuer", "audience", "jwks_url"}``, and the members of introspection that are set."""
        members = {"issuer": self.issuer, "audience": self.audience, "jwks_url": self.jwks_url}
        return members | {name: value for name in _INTROSPECTION if (value := getattr(self, name))}

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Raises MalformedToken."""
        if type(value) is not dict:
            raise MalformedToken("an issuer is not an object")
        exactly(value, frozenset(("issuer", "audience")), frozenset(("jwks_url", *_INTROSPECTION)))
        jwks_url, introspection_url = value.get("jwks_url"), value.get("introspection_url")
        issuer, audience = claim(value, "issuer", str), claim(value, "audience", str)
        for url in (issuer, jwks_url, introspection_url):
            if url is not None:
                _check_url(url)
        if not 0 < len(audience) <= 300:
            raise MalformedToken("an audience of no length, or too long")
        flags = {name: claim({name: False, **value}, name, bool) for name in _INTROSPECTION_FLAGS}
        if any(flags.values()) and introspection_url is None:
            raise MalformedToken("an issuer without introspection_url that is to be asked about tokens")
        return cls(issuer, audience, jwks_url, introspection_url=introspection_url, **flags)


Exchange = Mapping[str, Mapping[str, frozenset[str]]]
"""By service id: for which consumers' audience it may have which scopes of event tokens from the registry."""


@dataclass(frozen=True, slots=True)
class DomainSettings:
    """What holds for the whole trust domain: the services (by id) that may mint transaction tokens, the issuers of
    users' tokens, and who may exchange these for event tokens at the registry: nobody, where ``exchange`` is empty."""

    minters: frozenset[str] = frozenset()
    issuers: tuple[UserIssuer, ...] = field(default=())
    exchange: Exchange = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """``{"minters": […], "issuers": […]}``, and ``"exchange": {client: {audience: [scope…]}}`` where there is one,
        in one spelling."""
        members: dict[str, Any] = {
            "minters": sorted(self.minters),
            "issuers": [issuer.to_json() for issuer in self.issuers],
        }
        if self.exchange:
            members["exchange"] = {
                client: {audience: sorted(granted[audience]) for audience in sorted(granted)}
                for client, granted in sorted(self.exchange.items())
            }
        return members

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Raises MalformedToken or InvalidName."""
        if type(value) is not dict:
            raise MalformedToken("the domain's settings are not an object")
        exactly(value, frozenset(("minters", "issuers")), frozenset(("exchange",)))
        minters = claim(value, "minters", list)
        if any(type(minter) is not str for minter in minters) or len(set(minters)) != len(minters):
            raise MalformedToken("minters are not a list of different names")
        for minter in minters:
            split_service_id(minter)
        issuers = tuple(UserIssuer.from_json(issuer) for issuer in claim(value, "issuers", list))
        if len({issuer.issuer for issuer in issuers}) != len(issuers):
            raise MalformedToken("an issuer stands twice")
        return cls(frozenset(minters), issuers, _exchange_from(claim({"exchange": {}, **value}, "exchange", dict)))


def _exchange_from(value: Mapping[str, Any]) -> Exchange:
    exchange = {}
    for client, granted in value.items():
        split_service_id(client)
        if type(granted) is not dict or not granted:
            raise MalformedToken("what a client may exchange is not an object with an audience")
        exchange[client] = MappingProxyType(
            {check_audience(audience): scopes_from(scopes) for audience, scopes in granted.items()}
        )
    return MappingProxyType(exchange)


def check_audience(audience: Any) -> str:
    """The audience itself if it may name the consumers of events: visible ASCII without a slash, which would make it a
    service id (SPEC section 3). Raises MalformedToken."""
    if type(audience) is not str or not AUDIENCE.fullmatch(audience):
        raise MalformedToken("not an audience of consumers")
    return audience


def scopes_from(scopes: Any) -> frozenset[str]:
    """A set of scopes, from a list in which none stands twice. Raises MalformedToken."""
    if type(scopes) is not list or len(set(scopes := [check_scope(scope) for scope in scopes])) != len(scopes):
        raise MalformedToken("scopes are not a list of different texts")
    return frozenset(scopes)


def check_scope(scope: Any) -> str:
    """The scope itself if it is one token (RFC 6749 section 3.3). Raises MalformedToken."""
    if type(scope) is not str or not SCOPE.fullmatch(scope):
        raise MalformedToken("not a scope")
    return scope


def _check_url(url: Any) -> None:
    """An issuer is asked over https, or on this machine."""
    try:
        parts = urlsplit(url) if type(url) is str and len(url) <= 500 else None
    except ValueError:
        parts = None
    loopback = parts is not None and is_loopback_host(parts.hostname)
    if parts is None or parts.scheme not in ("https", *(("http",) if loopback else ())) or not parts.hostname:
        raise MalformedToken("an issuer's URL must be https")
    if parts.query or "#" in url or parts.username or not url.isascii() or any(c.isspace() for c in url):
        raise MalformedToken("an issuer's URL has more than host and path")
