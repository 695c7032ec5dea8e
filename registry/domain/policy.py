"""Policies and the domain's settings: how they are read, how entries hold them, and which rule of a policy decides."""

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from peerseal.errors import InvalidName, KeyRefused, MalformedToken
from peerseal.protocol.documents.federation import Federation
from peerseal.protocol.encoding import b64url, canonical_json, strict_json, strict_json_object
from peerseal.protocol.hosts import is_usable_url
from peerseal.protocol.issuer_trust import keys_from_jwks
from peerseal.protocol.ledger.entries import Entry
from peerseal.protocol.names import qualify, split_service_id
from peerseal.protocol.plain import text_like
from peerseal.protocol.policies import ANYONE, CallPolicy, Derivation, DomainSettings, UserIssuer
from peerseal.protocol.tokens.claims import claim, exactly
from registry.domain.errors import BadRequest
from registry.domain.federation import refusal
from registry.domain.key_quality import check_quality

RESTRICTED: Final[Mapping[str, bool]] = {"restricted": True}
"""The content of a restricted policy's entry, which is public. The policy itself is in the entry's evidence, with a
salt, so its digest does not reveal it to guessing."""

_SALT = 16  # bytes


def policy_from(body: Mapping[str, Any], domain: str) -> CallPolicy | None:
    """The policy in an operator's request, ``{"allow": {caller: [scope…]}, "restricted"?}``, callers by short name, id
    or ``"*"``, those of other trust domains by id; or ``{"allow": null}`` for no policy. Raises BadRequest."""
    if dict(body) == {"allow": None}:
        return None
    try:
        exactly(body, frozenset(("allow",)), frozenset(("restricted",)))
        allow: dict[str, Any] = {}
        for who, scopes in claim(body, "allow", dict).items():
            name = who if who == ANYONE else _qualified(who, domain)
            if name in allow:
                raise BadRequest("malformed_body", f"the caller {name} is given twice")
            allow[name] = scopes
        return CallPolicy.from_json({**body, "allow": allow})
    except (MalformedToken, InvalidName) as error:
        raise BadRequest("malformed_body", str(error)) from error


def settings_from(body: Mapping[str, Any], domain: str) -> DomainSettings:
    """The settings in an operator's request, ``{"minters": […], "issuers": […], "exchange"?: {client: {audience:
    [scope…]}}, "derived_scopes"?: [{"minter", "from", "to"}…], "access_tokens"?: {name: {"audience", "services",
    "scopes", "lifetime"?}}}``, services by short name or id. Raises BadRequest."""
    try:
        members = {**body, "minters": [_own(name, domain) for name in claim(body, "minters", list)]}
        if "exchange" in body:
            granted = claim(body, "exchange", dict)
            members["exchange"] = {_own(client, domain): granted[client] for client in granted}
            if len(members["exchange"]) != len(granted):
                raise BadRequest("malformed_body", "a client of the exchange is given twice")
        if "derived_scopes" in body:
            members["derived_scopes"] = [_of_own(one, domain) for one in claim(body, "derived_scopes", list)]
        if "access_tokens" in body:
            granted = claim(body, "access_tokens", dict)
            members["access_tokens"] = {name: _to_own(granted[name], domain) for name in granted}
        settings = DomainSettings.from_json(members)
        _check_urls(settings)
        _check_given_keys(settings)
        return settings
    except (MalformedToken, InvalidName) as error:
        raise BadRequest("malformed_body", str(error)) from error


def _of_own(derivation: Any, domain: str) -> Any:
    """With the minter's id in the place of a short name. `Derivation.from_json` reports other faults."""
    if type(derivation) is not dict or "minter" not in derivation:
        return derivation
    return {**derivation, "minter": _own(derivation["minter"], domain)}


def _to_own(grant: Any, domain: str) -> Any:
    """The same for the services of a grant. `AccessGrant.from_json` reports other faults."""
    if type(grant) is not dict or type(grant.get("services")) is not list:
        return grant
    return {**grant, "services": [_own(service, domain) for service in grant["services"]]}


def _check_urls(settings: DomainSettings) -> None:
    """Raises MalformedToken for an issuer's URL that is no server's: services would refuse each of its tokens."""
    for number, issuer in enumerate(settings.issuers):
        for url in filter(None, (issuer.issuer, issuer.jwks_url, issuer.introspection_url)):
            if not is_usable_url(url):
                raise MalformedToken(f"issuers[{number}]: {text_like(url)} is no URL of a server")


def _check_given_keys(settings: DomainSettings) -> None:
    """Raises MalformedToken for a weak key: issuers' keys are checked as services' keys are."""
    for number, issuer in enumerate(settings.issuers):
        for kid, key in ({} if issuer.jwks is None else keys_from_jwks(issuer.jwks)).items():
            try:
                check_quality(key)
            except KeyRefused as error:
                weak = f"issuers[{number}]: jwks: kid {text_like(kid)} is weak ({error.code}), expected a sound key"
                raise MalformedToken(weak) from error


def _qualified(name: Any, domain: str) -> str:
    """The id of a service, which a short name leads to in this domain."""
    if type(name) is not str:
        raise MalformedToken(f"a service name is {type(name).__name__}, it must be text")
    return qualify(name, domain)


def _own(name: Any, domain: str) -> str:
    """The id of a service of this domain, as all settings but policies need it."""
    qualified = _qualified(name, domain)
    if split_service_id(qualified)[0] != domain:
        raise BadRequest("foreign_service", f"{qualified} is of another trust domain, expected {domain}")
    return qualified


def said_of(policy: CallPolicy | None) -> tuple[dict[str, Any], dict[str, str] | None]:
    """``data`` and ``evidence`` of the entry that sets a policy."""
    if policy is None or not policy.restricted:
        return {"policy": None if policy is None else policy.to_json()}, None
    evidence = {"policy": text_of(policy), "salt": b64url(secrets.token_bytes(_SALT))}
    return {"policy": dict(RESTRICTED)}, evidence


def policy_in(entry: Entry, evidence: bytes | None) -> CallPolicy | None:
    """The policy that an entry set, if any. Raises MalformedToken or InvalidName, for altered evidence too."""
    said = entry.data["policy"]
    if said is None:
        return None
    if said != RESTRICTED:
        return CallPolicy.from_json(said)
    return CallPolicy.from_json(strict_json(claim(strict_json_object(evidence or b""), "policy", str)))


def text_of(setting: CallPolicy | DomainSettings) -> str:
    """The canonical JSON, in which it is stored."""
    return canonical_json(setting.to_json()).decode("utf-8")


def readers_of(policy: CallPolicy | None, owner: str) -> frozenset[str] | None:
    """The ids of the services that may read a policy, or ``"*"``: the service ``owner`` and those that the policy
    names. None where all may."""
    if policy is None or not policy.restricted:
        return None
    return frozenset((owner, *policy.allow))


@dataclass(frozen=True, slots=True)
class Explanation:
    """Whether the registry lets a caller use a scope, and why. ``rule`` is the caller's id or ``"*"``, None where no
    rule speaks of it; ``entry`` is the one that set the policy, 0 where there is none. ``by_federation`` says that the
    federation refuses the caller, whatever the policy is."""

    allowed: bool
    rule: str | None
    entry: int
    reason: str
    by_federation: bool = False


def explain(
    policy: CallPolicy | None, entry: int, caller: str, callee: str, scope: str, federation: Federation
) -> Explanation:
    """``caller`` and ``callee`` are service ids; ``entry`` set the policy."""
    foreign = split_service_id(caller)[0] != split_service_id(callee)[0]
    if foreign and (refused := refusal(federation, caller, scope)):
        return Explanation(False, None, 0 if policy is None else entry, f"denied because {refused}", by_federation=True)
    if policy is None:
        return Explanation(True, None, 0, f"no policy: what the code of {callee} allows decides")
    rule = next((rule for rule in ((caller,) if foreign else (caller, ANYONE)) if rule in policy.allow), None)
    if rule is None:
        names = f"does not name {caller}, and * means this domain alone" if foreign else f"names neither {caller} nor *"
        return Explanation(False, None, entry, f"denied because entry {entry} {names}")
    said = f'rule "{rule}": [{", ".join(sorted(policy.allow[rule]))}] of entry {entry}'
    if scope not in policy.allow[rule]:
        return Explanation(False, rule, entry, f"denied because {said} has no {scope}")
    return Explanation(True, rule, entry, f"allowed by {said}, where the code of {callee} allows it too")


def explain_domain(settings: DomainSettings, entry: int) -> list[str]:
    """The domain's settings in sentences; ``entry`` set them, 0 where none did."""
    said = [f"entry {entry} laid down these settings" if entry else "no settings were laid down: nothing is allowed"]
    said += [f"{minter} may mint transaction tokens" for minter in sorted(settings.minters)] or ["no service may mint"]
    for issuer in settings.issuers:
        said += _issuer_sentences(issuer)
    if not settings.issuers:
        said.append("no issuer of users' tokens is believed")
    said += list(_exchange_sentences(settings)) or ["the token exchange is off"]
    for derivation in settings.derived_scopes:
        said += _derivation_sentences(derivation, settings)
    if not settings.derived_scopes:
        said.append("no scope is derived from another one")
    return said + (list(_access_sentences(settings)) or ["no service gets access tokens for foreign resource servers"])


def _issuer_sentences(issuer: UserIssuer) -> Iterator[str]:
    keys = "its keys are found by discovery" if issuer.jwks_url is None else f"its keys are at {issuer.jwks_url}"
    if issuer.jwks is not None:
        kids = ", ".join(keys_from_jwks(issuer.jwks))
        keys = f"its keys are in these settings (kid {kids})"
    checked = "" if issuer.ca is None else ", and its https is checked with the certificates in these settings"
    yield f"users' tokens of {issuer.issuer} for audience {issuer.audience} are believed: {keys}{checked}"
    if issuer.introspection_url is not None:
        which = "its opaque tokens, and its JWTs," if issuer.introspect_jwts else "its opaque tokens"
        signed = ": only signed answers are believed" if issuer.introspection_signed else ""
        yield f"{which} are sent to {issuer.introspection_url}, by services with credentials there{signed}"


def _exchange_sentences(settings: DomainSettings) -> Iterator[str]:
    for client, granted in sorted(settings.exchange.items()):
        for audience, scopes in sorted(granted.items()):
            may = f"{client} may exchange a user's token for an event token of one of [{', '.join(sorted(scopes))}]"
            yield f"{may} for {audience}"


def _access_sentences(settings: DomainSettings) -> Iterator[str]:
    for name, grant in sorted(settings.access_tokens.items()):
        services, scopes = ", ".join(sorted(grant.services)), ", ".join(sorted(grant.scopes))
        token = f"access tokens of the registry for {name} ({grant.audience})"
        yield f"{services} may have {token} with [{scopes}], for {grant.lifetime} s each"


def _derivation_sentences(derivation: Derivation, settings: DomainSettings) -> Iterator[str]:
    """The signers of a derived scope's events: the minter itself, or the registry by exchange within the client's
    grants."""
    minter, yields = derivation.minter, ", ".join(sorted(derivation.yields))
    from_users = f"a user's token with {derivation.source} yields an event of {minter}"
    if minter in settings.minters:
        yield f"{from_users} of one of [{yields}] and nothing else, signed by {minter}"
    for audience, scopes in sorted(settings.exchange.get(minter, {}).items()):
        granted = sorted(scopes & derivation.yields)
        if granted:
            yield f"{from_users} of one of [{', '.join(granted)}] for {audience} and nothing else, by the exchange"
    if minter not in settings.minters:
        grants = settings.exchange.get(minter, {}).values()
        for scope in sorted(derivation.yields.difference(*grants)):
            yield f"{scope} is derived for {minter}, and no grant of the exchange has it: it yields nothing"
