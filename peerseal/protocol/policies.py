"""Call policies and domain settings, as operators set them, read strictly (docs/protocol.md)."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Self, TypeVar
from urllib.parse import urlsplit

from peerseal.errors import InvalidName, MalformedToken
from peerseal.protocol.encoding import strict_json
from peerseal.protocol.hosts import is_loopback_host
from peerseal.protocol.issuer_trust import canonical_ca, canonical_jwks
from peerseal.protocol.names import check_audience, check_scope, split_service_id
from peerseal.protocol.plain import text_like
from peerseal.protocol.tokens.claims import claim, exactly

T = TypeVar("T")

ANYONE: Final = "*"
"""Any service of the registry's trust domain."""
_INTROSPECTION_FLAGS: Final = ("introspection_signed", "introspect_jwts")
_INTROSPECTION: Final = ("introspection_url", *_INTROSPECTION_FLAGS)
MAX_DERIVATIONS: Final = 50
"""Derivations of a domain, at most."""
MAX_DERIVED: Final = 20
"""Scopes that one derivation may yield, at most."""
ACCESS_LIFETIME: Final = 300
"""Seconds that an access token for a foreign resource server lives, where its grant says nothing else."""
ACCESS_LIFETIMES: Final = range(10, 3601)
"""Seconds that an access token may live. It cannot be revoked."""
MAX_ACCESS_SCOPES: Final = 20
"""Scopes of one resource server, at most."""
_RESOURCE_NAME: Final = re.compile(r"[a-z0-9][a-z0-9.-]{0,62}")
_RESOURCE: Final = re.compile(r"[a-z][a-z0-9+.-]{1,30}://[A-Za-z0-9\[][!$&-;=?-Z\[\]_a-z~%]{0,160}")
DERIVED_FROM: Final = "derived_from"
"""The member of ``rctx`` with the user's scope from which the event's scope was derived."""


@dataclass(frozen=True, slots=True)
class CallPolicy:
    """The policy of one service: which callers, by service id or ``"*"``, may call it, each with its scopes.

    Only operators, the service and the callers in ``allow`` may read a ``restricted`` policy.
    """

    allow: Mapping[str, frozenset[str]]
    restricted: bool = False

    def to_json(self) -> dict[str, Any]:
        """``{"allow": {caller: [scope…]}, "restricted": bool}``, in one spelling."""
        return {"allow": {who: sorted(self.allow[who]) for who in sorted(self.allow)}, "restricted": self.restricted}

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Reads the JSON. Raises MalformedToken or InvalidName."""
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
        """The scopes of the service with id ``caller``; None where it may not call at all. The caller must be of the
        registry's trust domain, which this method does not check: it applies ``"*"`` to every id."""
        return self.allow.get(caller, self.allow.get(ANYONE))


@dataclass(frozen=True, slots=True)
class UserIssuer:
    """An OIDC issuer whose tokens prove users at the edge. ``jwks_url`` is found by discovery where it is None.

    ``jwks`` holds the issuer's keys as `canonical_jwks` writes them: then none are fetched. ``ca`` holds the
    certificates (PEM) with which the issuer's https is checked, in the place of the public authorities.

    At ``introspection_url`` the issuer says what its opaque tokens mean (RFC 7662). With ``introspection_signed`` only
    signed answers (RFC 9701) are believed; with ``introspect_jwts`` the issuer is asked about its JWTs, too.
    """

    issuer: str
    audience: str
    jwks_url: str | None = None
    jwks: str | None = field(default=None, kw_only=True, repr=False)
    ca: str | None = field(default=None, kw_only=True, repr=False)
    introspection_url: str | None = field(default=None, kw_only=True)
    introspection_signed: bool = field(default=False, kw_only=True)
    introspect_jwts: bool = field(default=False, kw_only=True)

    def to_json(self) -> dict[str, Any]:
        """``{"issuer", "audience", "jwks_url"}``, and the other members where they are set: ``"jwks"`` as a JWK Set."""
        members = {"issuer": self.issuer, "audience": self.audience, "jwks_url": self.jwks_url}
        given = {"jwks": None if self.jwks is None else strict_json(self.jwks.encode()), "ca": self.ca}
        given |= {name: getattr(self, name) for name in _INTROSPECTION}
        return members | {name: value for name, value in given.items() if value}

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Reads the JSON. Raises MalformedToken."""
        if type(value) is not dict:
            raise MalformedToken("an issuer is not an object")
        exactly(value, frozenset(("issuer", "audience")), frozenset(("jwks_url", "jwks", "ca", *_INTROSPECTION)))
        jwks_url, introspection_url = value.get("jwks_url"), value.get("introspection_url")
        jwks = canonical_jwks(value["jwks"]) if "jwks" in value else None
        ca = canonical_ca(value["ca"]) if "ca" in value else None
        if jwks is not None and jwks_url is not None:
            raise MalformedToken("jwks and jwks_url are both set, expected one of them")
        issuer, audience = claim(value, "issuer", str), claim(value, "audience", str)
        for url in (issuer, jwks_url, introspection_url):
            if url is not None:
                check_url_in_settings(url)
        if not 0 < len(audience) <= 300:
            raise MalformedToken(f"audience has {len(audience)} characters, expected 1 to 300")
        flags = {name: claim({name: False, **value}, name, bool) for name in _INTROSPECTION_FLAGS}
        if any(flags.values()) and introspection_url is None:
            raise MalformedToken(f"{' or '.join(_INTROSPECTION_FLAGS)} is set, expected introspection_url, too")
        return cls(issuer, audience, jwks_url, jwks=jwks, ca=ca, introspection_url=introspection_url, **flags)


@dataclass(frozen=True, slots=True)
class Derivation:
    """An event of the service with id ``minter`` may have a scope of ``yields`` if the user's token has the scope
    ``source``."""

    minter: str
    source: str
    yields: frozenset[str]

    def to_json(self) -> dict[str, Any]:
        """``{"minter", "from", "to": [scope…]}``."""
        return {"minter": self.minter, "from": self.source, "to": sorted(self.yields)}

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Reads the JSON. Raises MalformedToken or InvalidName."""
        if type(value) is not dict or value.keys() != {"minter", "from", "to"}:
            raise MalformedToken("expected an object with exactly the members minter, from and to")
        minter = claim(value, "minter", str)
        split_service_id(minter)
        yields = scopes_from(value["to"])
        if not 0 < len(yields) <= MAX_DERIVED:
            raise MalformedToken(f"to has {len(yields)} scopes, expected 1 to {MAX_DERIVED}")
        return cls(minter, check_scope(value["from"]), yields)


@dataclass(frozen=True, slots=True)
class AccessGrant:
    """Which services, by id, get access tokens for a resource server outside of Peerseal, such as a broker.

    ``audience`` names that server in the tokens: an absolute URI. ``scopes`` are what the tokens may have; ``lifetime``
    is in seconds.
    """

    audience: str
    services: frozenset[str]
    scopes: frozenset[str]
    lifetime: int = ACCESS_LIFETIME

    def to_json(self) -> dict[str, Any]:
        """``{"audience", "services": [id…], "scopes": [scope…], "lifetime"}``."""
        members = {"audience": self.audience, "services": sorted(self.services), "scopes": sorted(self.scopes)}
        return {**members, "lifetime": self.lifetime}

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Reads the JSON. Raises MalformedToken or InvalidName."""
        if type(value) is not dict:
            raise MalformedToken("expected an object with audience, services and scopes")
        exactly(value, frozenset(("audience", "services", "scopes")), frozenset(("lifetime",)))
        services, scopes = _service_ids(value, "services"), scopes_from(value["scopes"])
        if not services:
            raise MalformedToken("services is empty, expected one service id at least")
        if not 0 < len(scopes) <= MAX_ACCESS_SCOPES:
            raise MalformedToken(f"scopes has {len(scopes)} members, expected 1 to {MAX_ACCESS_SCOPES}")
        lifetime = claim({"lifetime": ACCESS_LIFETIME, **value}, "lifetime", int)
        if lifetime not in ACCESS_LIFETIMES:
            first, last = ACCESS_LIFETIMES[0], ACCESS_LIFETIMES[-1]
            raise MalformedToken(f"lifetime is {lifetime}, expected {first} to {last} seconds")
        return cls(check_resource(value["audience"]), services, scopes, lifetime)


Exchange = Mapping[str, Mapping[str, frozenset[str]]]
"""``{service id: {audience: scopes}}``: the event tokens that a service may get from the registry."""


@dataclass(frozen=True, slots=True)
class DomainSettings:
    """What holds for the whole trust domain: the services (by id) that may mint transaction tokens, the issuers of
    users' tokens, and in ``exchange`` the services that may exchange users' tokens for event tokens.
    ``derived_scopes`` holds scopes that an event may have although its user's token does not. ``access_tokens`` maps
    each resource server's name to the services that get access tokens for it."""

    minters: frozenset[str] = frozenset()
    issuers: tuple[UserIssuer, ...] = field(default=())
    exchange: Exchange = field(default_factory=dict)
    derived_scopes: tuple[Derivation, ...] = ()
    access_tokens: Mapping[str, AccessGrant] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """``{"minters": […], "issuers": […]}``, and ``"exchange": {client: {audience: [scope…]}}``,
        ``"derived_scopes": [{"minter", "from", "to"}…]`` and ``"access_tokens": {name: {"audience", "services",
        "scopes", "lifetime"}}`` where there are some, in one spelling."""
        members: dict[str, Any] = {
            "minters": sorted(self.minters),
            "issuers": [issuer.to_json() for issuer in self.issuers],
        }
        if self.exchange:
            members["exchange"] = {
                client: {audience: sorted(granted[audience]) for audience in sorted(granted)}
                for client, granted in sorted(self.exchange.items())
            }
        if self.derived_scopes:
            members["derived_scopes"] = [derivation.to_json() for derivation in self.derived_scopes]
        if self.access_tokens:
            members["access_tokens"] = {name: grant.to_json() for name, grant in sorted(self.access_tokens.items())}
        return members

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Reads the JSON. Raises MalformedToken or InvalidName."""
        if type(value) is not dict:
            raise MalformedToken("the domain's settings are not an object")
        exactly(value, frozenset(("minters", "issuers")), frozenset(("exchange", "derived_scopes", "access_tokens")))
        minters = _service_ids(value, "minters")
        issuers = _each("issuers", claim(value, "issuers", list), UserIssuer.from_json)
        if len({issuer.issuer for issuer in issuers}) != len(issuers):
            raise MalformedToken("issuers: two members have the same issuer")
        exchange = _exchange_from(claim({"exchange": {}, **value}, "exchange", dict))
        derived = claim({"derived_scopes": [], **value}, "derived_scopes", list)
        derivations = _derivations_from(derived, {*minters, *exchange})
        grants = _access_grants_from(claim({"access_tokens": {}, **value}, "access_tokens", dict))
        return cls(minters, issuers, exchange, derivations, grants)

    def sources(self, minter: str, scope: str) -> frozenset[str]:
        """The scopes of a user's token from which an event of the service with id ``minter`` may derive ``scope``."""
        return frozenset(
            derivation.source
            for derivation in self.derived_scopes
            if derivation.minter == minter and scope in derivation.yields
        )


def _service_ids(value: Mapping[str, Any], name: str) -> frozenset[str]:
    """The service ids in the list ``name``, none repeated. Raises MalformedToken or InvalidName."""
    ids = claim(value, name, list)
    if any(type(one) is not str for one in ids) or len(set(ids)) != len(ids):
        raise MalformedToken(f"{name} is not a list of different service ids")
    for one in ids:
        split_service_id(one)
    return frozenset(ids)


def _derivations_from(value: list[Any], known: set[str]) -> tuple[Derivation, ...]:
    """``known`` are the ids of minters and of clients of the exchange. In the whole domain, a derived scope
    must not be the source of another one: otherwise one event could cause another with rights the user never gave."""
    if len(value) > MAX_DERIVATIONS:
        raise MalformedToken(f"derived_scopes has {len(value)} members, expected {MAX_DERIVATIONS} at most")
    derivations = _each("derived_scopes", value, Derivation.from_json)
    for number, derivation in enumerate(derivations):
        if derivation.minter not in known:
            expected = "expected a service of minters or a client of exchange"
            raise MalformedToken(f"derived_scopes[{number}]: minter is {derivation.minter}, {expected}")
    if len({(derivation.minter, derivation.source) for derivation in derivations}) != len(derivations):
        raise MalformedToken("derived_scopes: two members have the same minter and from; put all scopes into one")
    sources = {derivation.source for derivation in derivations}
    chained = sources & {scope for derivation in derivations for scope in derivation.yields}
    if chained:
        raise MalformedToken(
            f"derived_scopes: {min(chained)} is derived (to) and a source (from); chains are not allowed"
        )
    return tuple(sorted(derivations, key=lambda derivation: (derivation.minter, derivation.source)))


def _each(name: str, values: Iterable[Any], read: Callable[[Any], T]) -> tuple[T, ...]:
    """What ``read`` makes of each member of the list ``name``. An error names the list and the position."""
    found = []
    for number, value in enumerate(values):
        try:
            found.append(read(value))
        except (MalformedToken, InvalidName) as error:
            raise MalformedToken(f"{name}[{number}]: {error}") from error
    return tuple(found)


def _exchange_from(value: Mapping[str, Any]) -> Exchange:
    exchange = {}
    for client, granted in value.items():
        split_service_id(client)
        if type(granted) is not dict or not granted:
            raise MalformedToken(f"exchange.{client}: expected {{audience: [scope…]}}, one audience at least")
        exchange[client] = MappingProxyType(
            {check_audience(audience): scopes_from(scopes) for audience, scopes in granted.items()}
        )
    return MappingProxyType(exchange)


def _access_grants_from(value: Mapping[str, Any]) -> Mapping[str, AccessGrant]:
    """One name for each resource server. A refusal says which of them is wrong."""
    grants = {}
    for name, members in value.items():
        if not _RESOURCE_NAME.fullmatch(name):
            raise MalformedToken(f"access_tokens: {text_like(name)} is no name of lower-case letters, digits, . and -")
        try:
            grants[name] = AccessGrant.from_json(members)
        except (MalformedToken, InvalidName) as error:
            raise MalformedToken(f"access_tokens.{name}: {error}") from error
    if len({grant.audience for grant in grants.values()}) != len(grants):
        raise MalformedToken("access_tokens: one audience has two names, expected one")
    return MappingProxyType(grants)


def check_resource(resource: Any) -> str:
    """The resource itself if it may name a foreign resource server in an access token: an absolute URI without a
    fragment (RFC 8707). A URI has a colon and slashes, so it is never a service id, a trust domain or an audience of
    events. Raises MalformedToken."""
    if type(resource) is not str or not _RESOURCE.fullmatch(resource):
        raise MalformedToken(f"not an absolute URI such as https://kafka.example.com: {text_like(resource)}")
    return resource


def scopes_from(scopes: Any) -> frozenset[str]:
    """A set of scopes, from a list in which none is repeated. Raises MalformedToken."""
    if type(scopes) is not list or len(set(scopes := [check_scope(scope) for scope in scopes])) != len(scopes):
        raise MalformedToken("scopes are not a list of different texts")
    return frozenset(scopes)


def check_url_in_settings(url: Any, what: str = "an issuer's URL") -> None:
    """Checks that the URL is https, or http on loopback, and has a host and a path only. Raises MalformedToken."""
    try:
        parts = urlsplit(url) if type(url) is str and len(url) <= 500 else None
    except ValueError:
        parts = None
    loopback = parts is not None and is_loopback_host(parts.hostname)
    if parts is None or parts.scheme not in ("https", *(("http",) if loopback else ())) or not parts.hostname:
        raise MalformedToken(f"{what} is {text_like(url)}, expected https, or http on this machine")
    if parts.query or "#" in url or parts.username or not url.isascii() or any(c.isspace() for c in url):
        raise MalformedToken(f"{what} is {text_like(url)}, expected a host and a path only")
