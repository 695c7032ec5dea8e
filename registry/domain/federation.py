"""Which foreign trust domains are believed: how operators write it, and how one is added, changed or removed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from peerseal.errors import InvalidName, MalformedToken
from peerseal.protocol.documents.federation import FederatedDomain, Federation
from peerseal.protocol.encoding import canonical_json
from peerseal.protocol.hosts import is_usable_url
from peerseal.protocol.ledger.entries import MAX_ENTRY
from peerseal.protocol.names import REGISTRY, split_service_id
from peerseal.protocol.plain import text_like
from peerseal.protocol.policies import ANYONE
from registry.domain.errors import BadRequest, NotFound

LARGEST: Final = MAX_ENTRY - 1023
"""Bytes of a federation in canonical JSON: it goes into an entry, whose other members need less than 1 KiB."""


class Version(NamedTuple):
    """The federation as entry ``seq`` of the ledger set it, at ``time`` in seconds since the epoch."""

    seq: int
    time: int
    value: Federation


@dataclass(frozen=True, slots=True)
class Believed:
    """A registry that is believed, the entry ``since`` which it is, and the one since which it is on these terms
    (``set_by``). ``earlier`` says that it may have been believed before ``since``."""

    registry: FederatedDomain
    since: Version
    set_by: Version
    earlier: bool


def believed_since(versions: Sequence[Version], *, complete: bool) -> list[Believed]:
    """The registries that the first of the versions names; the newest version comes first. Not ``complete``: there are
    older versions than these."""
    return [_since(one, versions, complete) for one in versions[0].value.domains] if versions else []


def _since(one: FederatedDomain, versions: Sequence[Version], complete: bool) -> Believed:
    since = set_by = versions[0]
    for version in versions:
        found = next((each for each in version.value.of(one.domain) if each.root == one.root), None)
        if found is None:
            return Believed(one, since, set_by, earlier=False)
        if found == one and set_by is since:
            set_by = version
        since = version
    return Believed(one, since, set_by, earlier=not complete)


def federation_from(body: Mapping[str, Any], own: str, own_root: str) -> Federation:
    """The federation in an operator's request, ``{"domains": [{"domain", "urls", "root", "services"?, "scopes"?,
    "transactions"?}…]}``. ``own`` is the registry's trust domain, ``own_root`` its root. Raises BadRequest, also where
    it is too large for an entry, or names the own root."""
    try:
        federation = Federation.from_json(dict(body), own)
    except (MalformedToken, InvalidName) as error:
        raise BadRequest("malformed_body", str(error)) from error
    for one in federation.domains:
        if one.root == own_root:
            raise BadRequest("malformed_body", f"{one.domain} has the root of this registry, expected its own")
        if one.transactions and not one.scopes:
            raise BadRequest(
                "malformed_body", f"{one.domain}: transactions is true, expected the scopes that may cross"
            )
        if ANYONE in (one.scopes or ()):
            raise BadRequest("malformed_body", f"{one.domain}: scopes names *; leave scopes out for all")
        for url in one.urls:
            if not is_usable_url(url):
                raise BadRequest("malformed_body", f"{one.domain}: {text_like(url)} is no URL of a server")
    _check_urls(federation)
    size = len(canonical_json(federation.to_json()))
    if size > LARGEST:
        raise BadRequest("setting_too_large", f"the federation has {size} bytes, {LARGEST} fit into a ledger entry")
    return federation


def _check_urls(federation: Federation) -> None:
    """Raises BadRequest where a URL stands twice, whatever its spelling: one registry, with one root, answers there."""
    named = dict[tuple[str, str, int | None, str], str]()
    for one in federation.domains:
        for url in one.urls:
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
            place = parts.scheme, (parts.hostname or "").removesuffix("."), port, parts.path.rstrip("/")
            if place in named:
                detail = f"{one.domain}: {text_like(url)} is {text_like(named[place])}, expected each URL once"
                raise BadRequest("malformed_body", detail)
            named[place] = url


def refusal(federation: Federation, caller: str, scope: str) -> str | None:
    """Why the federation lets no call of that foreign service with that scope in; None where it does."""
    if reason := refusal_of_service(federation, caller):
        return reason
    domain, _ = split_service_id(caller)
    scopes = federation.of(domain)[0].scopes
    return None if scopes is None or scope in scopes else f"the federation lets no scope {scope} of {domain} in"


def refusal_of_service(federation: Federation, caller: str) -> str | None:
    """Why the federation lets no call of that foreign service in; None where it does."""
    domain, service = split_service_id(caller)
    believed = federation.of(domain)
    if not believed:
        return f"the trust domain {domain} is not believed"
    if service == REGISTRY:
        return f"the registry of {domain} is no service that may call"
    if believed[0].services is not None and service not in believed[0].services:
        return f"the federation does not name {service} of {domain}"
    return None


def unbelieved(callers: Iterable[str], own: str, read: Callable[[], Federation]) -> list[str]:
    """The foreign domains of these callers that are not believed. A caller is a service id or ``"*"``; the federation
    is read where one of them is foreign."""
    domains = sorted({split_service_id(who)[0] for who in callers if who != ANYONE} - {own})
    federation = read() if domains else Federation()
    return [domain for domain in domains if not federation.of(domain)]


def with_domain(federation: Federation, new: FederatedDomain) -> Federation:
    """With that foreign domain, whose URLs and limits replace those of before. Where a second root of it is believed,
    too, the limits are the same under both. Raises BadRequest where the domain is believed under other roots alone."""
    before = federation.of(new.domain)
    if before and all(one.root != new.root for one in before):
        raise BadRequest(
            "root_differs",
            f"{new.domain} is believed under the root {before[0].root}, not {new.root}: add the new root with "
            "--overlap, or remove the domain first",
        )
    others = (replace(new, urls=one.urls, root=one.root) for one in before if one.root != new.root)
    return _replaced(federation, new.domain, (new, *others))


def with_second_root(federation: Federation, domain: str, urls: tuple[str, ...], root: str) -> Federation:
    """With a second root of a foreign domain that replaces its root, and with the URLs of its second registry. The
    domain may do the same under both. Raises NotFound where the domain is not believed yet."""
    before = _believed(federation, domain)
    others = (one for one in before if one.root != root)
    return _replaced(federation, domain, (*others, replace(before[0], urls=urls, root=root)))


def without(federation: Federation, domain: str, root: str | None = None) -> Federation:
    """Without that foreign domain, or without one of its two roots. Raises NotFound where it is not believed."""
    before = _believed(federation, domain)
    kept = tuple(one for one in before if root is not None and one.root != root)
    if len(kept) == len(before):
        raise NotFound("not_federated", f"{domain} is not believed under the root {root}")
    return _replaced(federation, domain, kept)


def _believed(federation: Federation, domain: str) -> tuple[FederatedDomain, ...]:
    found = federation.of(domain)
    if not found:
        raise NotFound("not_federated", f"the trust domain {domain} is not believed")
    return found


def _replaced(federation: Federation, domain: str, registries: tuple[FederatedDomain, ...]) -> Federation:
    others = (one for one in federation.domains if one.domain != domain)
    return Federation((*others, *registries))
