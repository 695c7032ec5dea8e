"""How the operator commands reach a registry: through this host's database, or over HTTP. Both raise PeersealError."""

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import quote

from peerseal.errors import CodedError, ConfigurationError, FetchError, MalformedToken
from peerseal.protocol.documents.federation import Federation
from peerseal.protocol.documents.registry_keys import REGISTRY_KEYS_PATH, RegistryKeys, read_registry_keys
from peerseal.protocol.encoding import canonical_json, strict_json_object
from peerseal.protocol.names import split_kid, split_service_id
from peerseal.protocol.policies import CallPolicy, DomainSettings
from peerseal.transport.fetch import Answer, HttpFetcher, is_confidential, no_larger_than
from registry.domain.errors import NotFound
from registry.services.access.operators import LOCAL, Role
from registry.services.documents.policies import Setting, setting_members
from registry.services.keys.records import Reason
from registry.services.registry import Registry
from registry.storage.queries.tokens import public_members

Json = dict[str, Any]

_FEDERATION: Final = "/v1/federation"


class Listing(NamedTuple):
    """Rows that are read page by page: their ``member`` in a page, the ``path`` of the pages, the function that makes
    them, and the position before the first row."""

    member: str
    path: str
    pages: Callable[[Registry], Callable[[Any], Json]]
    first: int | str = ""


SERVICES: Final = Listing("services", "/v1/services", lambda registry: registry.records.services)
APPLICANTS: Final = Listing("applicants", "/v1/applicants", lambda registry: registry.applicants.page)
JOIN_TOKENS: Final = Listing("join_tokens", "/v1/join-tokens", lambda registry: registry.join_tokens.page)
OPERATOR_TOKENS: Final = Listing("operator_tokens", "/v1/operator-tokens", lambda registry: registry.operators.page)
AUDIT: Final = Listing("audit", "/v1/audit", lambda registry: registry.audit.page, 0)


def keys_of(service: str) -> Listing:
    """All keys of a service."""
    path = f"/v1/services/{_quoted(service)}/keys"
    return Listing("keys", path, lambda registry: partial(registry.records.keys, service), 0)


class OperatorClient(Protocol):
    """The operations of an operator. They return what ``--json`` prints."""

    def rows(self, listing: Listing, after: int | str | None = None) -> Iterator[Json]:
        """All rows, or those after a position."""

    def create_join_token(self, service: str, ttl: int, uses: int) -> Json:
        """``{"token", "id", "service", "expires_at", "uses", …}``; ``ttl`` is in seconds."""

    def withdraw_join_token(self, token_id: str) -> None:
        """Makes a join token useless."""

    def create_operator_token(self, role: Role, ttl: int) -> Json:
        """``{"token", "id", "role", "created_at", "expires_at", "revoked"}``; ``ttl`` is in seconds."""

    def revoke_operator_token(self, token_id: str) -> None:
        """Makes an operator token useless."""

    def approve(self, kid: str) -> None:
        """Admits a pending key."""

    def end_key(self, kid: str, reason: Reason) -> None:
        """Retires, revokes or rejects a key."""

    def trust_domain(self) -> str:
        """The registry's trust domain."""

    def registry_keys(self) -> str:
        """The root-signed registry keys document, as its JWS."""

    def federation(self) -> Setting[Federation]:
        """The foreign trust domains that are believed, and the entry that set them; 0 for none."""

    def replace_federation(self, new: Federation, seen: int) -> Setting[Federation]:
        """Replaces the federation that the entry ``seen`` set, and returns the new one."""

    def setting(self, service: str | None) -> Json:
        """``{"entry", "setting"}``: the policy of a service, ``{"allow", "restricted"?}``, or the domain's settings,
        and the entry that set it: 0, with ``allow`` null, for none."""

    def change_setting(self, service: str | None, body: Json, seen: int) -> Json:
        """Replaces the setting that the entry ``seen`` set, and returns the new one as `setting` does."""


class LocalOperatorClient:
    """Works on this host's database."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def rows(self, listing: Listing, after: int | str | None = None) -> Iterator[Json]:
        """See OperatorClient."""
        return _all_rows(listing, listing.pages(self._registry), after)

    def create_join_token(self, service: str, ttl: int, uses: int) -> Json:
        """See OperatorClient."""
        made = self._registry.join_tokens.create(service, ttl, uses, LOCAL)
        return {"token": made.token, **public_members(made.record)}

    def withdraw_join_token(self, token_id: str) -> None:
        """See OperatorClient."""
        self._registry.join_tokens.withdraw(token_id, LOCAL)

    def create_operator_token(self, role: Role, ttl: int) -> Json:
        """See OperatorClient."""
        record, token = self._registry.operators.create(role, ttl)
        return {"token": token, **public_members(record)}

    def revoke_operator_token(self, token_id: str) -> None:
        """See OperatorClient."""
        self._registry.operators.revoke(token_id)

    def approve(self, kid: str) -> None:
        """See OperatorClient."""
        self._registry.applicants.approve(*self._own_key(kid), LOCAL)

    def end_key(self, kid: str, reason: Reason) -> None:
        """See OperatorClient."""
        self._registry.ending.end(*self._own_key(kid), reason, LOCAL)

    def trust_domain(self) -> str:
        """See OperatorClient."""
        return self._registry.authority.current().domain

    def registry_keys(self) -> str:
        """See OperatorClient."""
        return self._registry.authority.newest().jws

    def federation(self) -> Setting[Federation]:
        """See OperatorClient."""
        return self._registry.federations.current()

    def replace_federation(self, new: Federation, seen: int) -> Setting[Federation]:
        """See OperatorClient."""
        return self._registry.federations.replace(new.to_json(), {seen}, LOCAL)

    def setting(self, service: str | None) -> Json:
        """See OperatorClient."""
        policies = self._registry.policies
        return _members(policies.domain() if service is None else policies.policy(service))

    def change_setting(self, service: str | None, body: Json, seen: int) -> Json:
        """See OperatorClient."""
        policies = self._registry.policies
        if service is None:
            return _members(policies.set_domain(body, {seen}, LOCAL))
        return _members(policies.set_policy(service, body, {seen}, LOCAL))

    def _own_key(self, kid: str) -> tuple[str, str]:
        """Service and thumbprint. Raises NotFound for a kid of another trust domain."""
        owner, thumbprint = split_kid(kid)
        domain, service = split_service_id(owner)
        if domain != (own := self.trust_domain()):
            raise NotFound("key_not_found", f"the kid is of trust domain {domain}, this registry's is {own}")
        return service, thumbprint


class HttpOperatorClient:
    """Calls a registry over HTTP, with an operator token."""

    def __init__(self, url: str, token: str) -> None:
        """Raises ConfigurationError for an invalid URL, or one over which the token could be read on a network."""
        if not is_confidential(url):
            raise ConfigurationError(f"an operator token is sent over https or loopback only, not to {url}")
        self._fetcher = HttpFetcher([url])
        self._token = token

    def rows(self, listing: Listing, after: int | str | None = None) -> Iterator[Json]:
        """See OperatorClient."""
        return _all_rows(listing, lambda last: self._call("GET", f"{listing.path}?after={_quoted(last)}"), after)

    def create_join_token(self, service: str, ttl: int, uses: int) -> Json:
        """See OperatorClient."""
        return _with_token(self._call("POST", "/v1/join-tokens", {"service": service, "ttl": ttl, "uses": uses}))

    def withdraw_join_token(self, token_id: str) -> None:
        """See OperatorClient."""
        self._call("DELETE", f"/v1/join-tokens/{_quoted(token_id)}")

    def create_operator_token(self, role: Role, ttl: int) -> Json:
        """See OperatorClient."""
        return _with_token(self._call("POST", "/v1/operator-tokens", {"role": role.label, "ttl": ttl}))

    def revoke_operator_token(self, token_id: str) -> None:
        """See OperatorClient."""
        self._call("DELETE", f"/v1/operator-tokens/{_quoted(token_id)}")

    def approve(self, kid: str) -> None:
        """See OperatorClient."""
        self._call("POST", f"{_key_path(kid)}/approve")

    def end_key(self, kid: str, reason: Reason) -> None:
        """See OperatorClient."""
        self._call("DELETE", f"{_key_path(kid)}?reason={reason.value}")

    def trust_domain(self) -> str:
        """See OperatorClient."""
        return read_registry_keys(self.registry_keys(), pin=None, now=time.time()).subject

    def registry_keys(self) -> str:
        """See OperatorClient."""
        return registry_keys_at(self._fetcher)

    def federation(self) -> Setting[Federation]:
        """See OperatorClient."""
        return self._federation(self._setting("GET", _FEDERATION))

    def replace_federation(self, new: Federation, seen: int) -> Setting[Federation]:
        """See OperatorClient."""
        return self._federation(self._setting("PUT", _FEDERATION, new.to_json(), seen))

    def _federation(self, members: Json) -> Setting[Federation]:
        return Setting(members["entry"], Federation.from_json(members["setting"], self.trust_domain()))

    def setting(self, service: str | None) -> Json:
        """See OperatorClient."""
        return self._setting("GET", _setting_path(service))

    def change_setting(self, service: str | None, body: Json, seen: int) -> Json:
        """See OperatorClient."""
        return self._setting("PUT", _setting_path(service), body, seen)

    def _setting(self, method: str, path: str, body: Json | None = None, seen: int | None = None) -> Json:
        headers = {} if seen is None else {"If-Match": f'"{seen}"'}
        members = self._call(method, path, body, headers)
        entry = members.pop("entry", None)
        if type(entry) is not int:
            raise FetchError(f"the registry's answer to {method} {path} has no number in its member entry")
        members.pop("warning", None)  # the command looks itself, also without HTTP
        return {"entry": entry, "setting": members}

    def _call(self, method: str, path: str, body: Json | None = None, more: Mapping[str, str] | None = None) -> Json:
        """The JSON object in the answer. Raises FetchError, or CodedError with the registry's own code."""
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json", **(more or {})}
        content = b"" if body is None else canonical_json(body)
        answer: Answer = self._fetcher.call(method, path, body=content, headers=headers)
        try:
            members = strict_json_object(answer.body) if answer.body else {}
        except MalformedToken:
            members = {}
        if answer.status >= 300:
            raise CodedError(str(members.get("code", "refused")), f"the registry answered {answer.status}")
        return members


def _members(setting: Setting[CallPolicy | None] | Setting[DomainSettings]) -> Json:
    return {"entry": setting.seq, "setting": setting_members(setting.value)}


def registry_keys_at(fetcher: HttpFetcher) -> str:
    """The registry keys document of the registry that the fetcher asks, unverified. Raises FetchError."""
    with no_larger_than(RegistryKeys.MAX_SIZE):
        answer = fetcher.call("GET", REGISTRY_KEYS_PATH)
    if answer.status != 200:
        raise FetchError(f"{fetcher.target(REGISTRY_KEYS_PATH)} answered {answer.status}, expected 200")
    return answer.body.decode("ascii", "replace")


def _setting_path(service: str | None) -> str:
    return "/v1/domain" if service is None else f"/v1/services/{_quoted(service)}/policy"


def _key_path(kid: str) -> str:
    """The path of the key. Raises InvalidName."""
    owner, thumbprint = split_kid(kid)
    return f"/v1/services/{split_service_id(owner)[1]}/keys/{thumbprint}"


def _quoted(text: object) -> str:
    """As a part of a path or a query: a value from a command line or an answer cannot name another target."""
    return quote(str(text), safe="", errors="surrogateescape")


def _with_token(made: Json) -> Json:
    """The answer, which must hold a token. Raises FetchError."""
    if not isinstance(made.get("token"), str):
        raise FetchError("the registry's answer holds no token")
    return made


def _all_rows(listing: Listing, page: Callable[[Any], Json], after: int | str | None) -> Iterator[Json]:
    """The rows of all pages. Raises FetchError."""
    last: Any = listing.first if after is None else after
    while last is not None:
        answer = page(last)
        rows = answer.get(listing.member)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise FetchError(f"the registry's answer holds no page of {listing.member}")
        yield from rows
        if (following := answer.get("next")) == last:
            raise FetchError(f"the registry's pages of {listing.member} have no end: {last!r} is followed by itself")
        last = following
