"""What the operator commands work on: this host's database, or a registry over HTTP. Both raise PeersealError."""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol
from urllib.parse import quote

from peerseal.errors import CodedError, ConfigurationError, FetchError, MalformedToken
from peerseal.protocol.documents.signed_documents import read_registry_keys
from peerseal.protocol.encoding import canonical_json, strict_json_object
from peerseal.protocol.names import split_kid, split_service_id
from peerseal.protocol.policies import CallPolicy, DomainSettings
from peerseal.transport.fetch import Answer, HttpFetcher, is_confidential
from registry.domain.errors import NotFound
from registry.services.access import operators
from registry.services.access.operators import LOCAL, Role
from registry.services.documents.policies import Setting, setting_members
from registry.services.keys.end_keys import Reason
from registry.services.keys.join_tokens import public_members
from registry.services.registry import Registry

Json = dict[str, Any]


class OperatorClient(Protocol):
    """The operator commands. What they return is what ``--json`` prints."""

    def create_join_token(self, service: str, ttl: int, uses: int) -> Json:
        """``{"token", "id", "service", "expires_at", "uses", …}``; ``ttl`` is in seconds."""

    def join_tokens(self) -> Iterator[Json]:
        """All join tokens, without their secrets."""

    def withdraw_join_token(self, token_id: str) -> None:
        """Makes a join token useless."""

    def services(self) -> Iterator[Json]:
        """All services."""

    def keys(self, service: str) -> Iterator[Json]:
        """All keys of a service."""

    def end_key(self, kid: str, reason: Reason) -> None:
        """Retires or revokes a key."""

    def applicants(self) -> Iterator[Json]:
        """All keys that wait for an operator."""

    def approve(self, kid: str) -> None:
        """Admits a key that waits."""

    def create_operator_token(self, role: Role, ttl: int) -> Json:
        """``{"token", "id", "role", "created_at", "expires_at", "revoked"}``; ``ttl`` is in seconds."""

    def operator_tokens(self) -> Iterator[Json]:
        """All operator tokens, without their secrets."""

    def revoke_operator_token(self, token_id: str) -> None:
        """Makes an operator token useless."""

    def audit(self, after: int = 0) -> Iterator[Json]:
        """What operators did, behind that row."""

    def trust_domain(self) -> str:
        """The registry's trust domain."""

    def policy(self, service: str) -> Json:
        """``{"entry", "setting": {"allow", "restricted"?}}``: the policy, and the entry that set it; 0 and ``allow``
        null for none."""

    def set_policy(self, service: str, body: Json, seen: int) -> Json:
        """Replaces the policy that the entry ``seen`` set. What then holds, as of `policy`."""

    def domain_settings(self) -> Json:
        """``{"entry", "setting": {"minters", "issuers"}}``: the domain's settings, and the entry that set them."""

    def set_domain_settings(self, body: Json, seen: int) -> Json:
        """Replaces the settings that the entry ``seen`` set. What then holds, as of `domain_settings`."""


class LocalOperatorClient:
    """On this host's database."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def create_join_token(self, service: str, ttl: int, uses: int) -> Json:
        """See OperatorClient."""
        made = self._registry.join_tokens.create(service, ttl, uses, LOCAL)
        return {"token": made.token, **public_members(made.record)}

    def join_tokens(self) -> Iterator[Json]:
        """See OperatorClient."""
        return _every(self._registry.join_tokens.page, "join_tokens", "")

    def withdraw_join_token(self, token_id: str) -> None:
        """See OperatorClient."""
        self._registry.join_tokens.withdraw(token_id, LOCAL)

    def services(self) -> Iterator[Json]:
        """See OperatorClient."""
        return _every(self._registry.records.services, "services", "")

    def keys(self, service: str) -> Iterator[Json]:
        """See OperatorClient."""
        return _every(lambda after: self._registry.records.keys(service, after), "keys", 0)

    def end_key(self, kid: str, reason: Reason) -> None:
        """See OperatorClient."""
        service, thumbprint = self._named(kid)
        self._registry.ending.end(service, thumbprint, reason, LOCAL)

    def applicants(self) -> Iterator[Json]:
        """See OperatorClient."""
        return _every(self._registry.applicants.page, "applicants", "")

    def approve(self, kid: str) -> None:
        """See OperatorClient."""
        service, thumbprint = self._named(kid)
        self._registry.applicants.approve(service, thumbprint, LOCAL)

    def create_operator_token(self, role: Role, ttl: int) -> Json:
        """See OperatorClient."""
        record, token = self._registry.operators.create(role, ttl)
        return {"token": token, **operators.public_members(record)}

    def operator_tokens(self) -> Iterator[Json]:
        """See OperatorClient."""
        return _every(self._registry.operators.page, "operator_tokens", "")

    def revoke_operator_token(self, token_id: str) -> None:
        """See OperatorClient."""
        self._registry.operators.revoke(token_id)

    def audit(self, after: int = 0) -> Iterator[Json]:
        """See OperatorClient."""
        return _every(self._registry.audit.page, "audit", after)

    def trust_domain(self) -> str:
        """See OperatorClient."""
        return self._registry.authority.current().domain

    def policy(self, service: str) -> Json:
        """See OperatorClient."""
        return _held(self._registry.policies.policy(service))

    def set_policy(self, service: str, body: Json, seen: int) -> Json:
        """See OperatorClient."""
        return _held(self._registry.policies.set_policy(service, body, {seen}, LOCAL))

    def domain_settings(self) -> Json:
        """See OperatorClient."""
        return _held(self._registry.policies.domain())

    def set_domain_settings(self, body: Json, seen: int) -> Json:
        """See OperatorClient."""
        return _held(self._registry.policies.set_domain(body, {seen}, LOCAL))

    def _named(self, kid: str) -> tuple[str, str]:
        """Service and thumbprint. Raises NotFound for a kid of another trust domain."""
        owner, thumbprint = split_kid(kid)
        domain, service = split_service_id(owner)
        if domain != self._registry.authority.current().domain:
            raise NotFound("key_not_found", "the kid is of another trust domain")
        return service, thumbprint


class HttpOperatorClient:
    """On a registry over HTTP, with an operator token."""

    def __init__(self, url: str, token: str) -> None:
        """Raises ConfigurationError for a URL that is none, or over which the token could be read on a network."""
        if not is_confidential(url):
            raise ConfigurationError(f"an operator's token is sent over https or loopback only, not to {url}")
        self._fetcher = HttpFetcher([url])
        self._token = token

    def create_join_token(self, service: str, ttl: int, uses: int) -> Json:
        """See OperatorClient."""
        return _token_in(self._call("POST", "/v1/join-tokens", {"service": service, "ttl": ttl, "uses": uses}))

    def join_tokens(self) -> Iterator[Json]:
        """See OperatorClient."""
        return _every(lambda after: self._call("GET", f"/v1/join-tokens?after={_quoted(after)}"), "join_tokens", "")

    def withdraw_join_token(self, token_id: str) -> None:
        """See OperatorClient."""
        self._call("DELETE", f"/v1/join-tokens/{_quoted(token_id)}")

    def services(self) -> Iterator[Json]:
        """See OperatorClient."""
        return _every(lambda after: self._call("GET", f"/v1/services?after={_quoted(after)}"), "services", "")

    def keys(self, service: str) -> Iterator[Json]:
        """See OperatorClient."""
        return _every(
            lambda after: self._call("GET", f"/v1/services/{_quoted(service)}/keys?after={_quoted(after)}"), "keys", 0
        )

    def end_key(self, kid: str, reason: Reason) -> None:
        """See OperatorClient."""
        self._call("DELETE", f"{_path(kid)}?reason={reason.value}")

    def applicants(self) -> Iterator[Json]:
        """See OperatorClient."""
        return _every(lambda after: self._call("GET", f"/v1/applicants?after={_quoted(after)}"), "applicants", "")

    def approve(self, kid: str) -> None:
        """See OperatorClient."""
        self._call("POST", f"{_path(kid)}/approve")

    def create_operator_token(self, role: Role, ttl: int) -> Json:
        """See OperatorClient."""
        return _token_in(self._call("POST", "/v1/operator-tokens", {"role": role.label, "ttl": ttl}))

    def operator_tokens(self) -> Iterator[Json]:
        """See OperatorClient."""
        return _every(
            lambda after: self._call("GET", f"/v1/operator-tokens?after={_quoted(after)}"), "operator_tokens", ""
        )

    def revoke_operator_token(self, token_id: str) -> None:
        """See OperatorClient."""
        self._call("DELETE", f"/v1/operator-tokens/{_quoted(token_id)}")

    def audit(self, after: int = 0) -> Iterator[Json]:
        """See OperatorClient."""
        return _every(lambda row: self._call("GET", f"/v1/audit?after={_quoted(row)}"), "audit", after)

    def trust_domain(self) -> str:
        """See OperatorClient."""
        answer = self._fetcher.call("GET", "/.well-known/peerseal-registry")
        return read_registry_keys(answer.body.decode("ascii", "replace"), pin=None, now=time.time()).subject

    def policy(self, service: str) -> Json:
        """See OperatorClient."""
        return self._setting("GET", f"/v1/services/{_quoted(service)}/policy")

    def set_policy(self, service: str, body: Json, seen: int) -> Json:
        """See OperatorClient."""
        return self._setting("PUT", f"/v1/services/{_quoted(service)}/policy", body, seen)

    def domain_settings(self) -> Json:
        """See OperatorClient."""
        return self._setting("GET", "/v1/domain")

    def set_domain_settings(self, body: Json, seen: int) -> Json:
        """See OperatorClient."""
        return self._setting("PUT", "/v1/domain", body, seen)

    def _setting(self, method: str, path: str, body: Json | None = None, seen: int | None = None) -> Json:
        headers = {} if seen is None else {"If-Match": f'"{seen}"'}
        _, members = self._answer(method, path, body, headers)
        entry = members.pop("entry", None)
        if type(entry) is not int:
            raise FetchError("the registry's answer does not say which entry set what holds")
        members.pop("warning", None)  # the command looks itself, also without HTTP
        return {"entry": entry, "setting": members}

    def _call(self, method: str, path: str, body: Json | None = None) -> Json:
        """The JSON object in the answer. Raises FetchError, or CodedError with the registry's own code."""
        return self._answer(method, path, body, {})[1]

    def _answer(self, method: str, path: str, body: Json | None, more: Mapping[str, str]) -> tuple[Answer, Json]:
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json", **more}
        content = b"" if body is None else canonical_json(body)
        answer = self._fetcher.call(method, path, body=content, headers=headers)
        try:
            members = strict_json_object(answer.body) if answer.body else {}
        except MalformedToken:
            members = {}
        if answer.status >= 300:
            raise CodedError(str(members.get("code", "refused")), f"the registry answered {answer.status}")
        return answer, members


def _held(setting: Setting[CallPolicy | None] | Setting[DomainSettings]) -> Json:
    """A setting as the commands show it."""
    return {"entry": setting.seq, "setting": setting_members(setting.value)}


def _path(kid: str) -> str:
    """The path of the key. Raises InvalidName."""
    owner, thumbprint = split_kid(kid)
    return f"/v1/services/{split_service_id(owner)[1]}/keys/{thumbprint}"


def _quoted(text: object) -> str:
    """As a part of a path or a query: what a command line or another answer says is no other target."""
    return quote(str(text), safe="", errors="surrogateescape")


def _token_in(made: Json) -> Json:
    """The answer, which holds a token. Raises FetchError."""
    if not isinstance(made.get("token"), str):
        raise FetchError("the registry's answer holds no token")
    return made


def _every(page: Callable[[Any], Json], member: str, first: Any) -> Iterator[Json]:
    """The rows of all pages."""
    after = first
    while after is not None:
        answer = page(after)
        rows = answer.get(member)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise FetchError(f"the registry's answer holds no page of {member}")
        yield from rows
        if (following := answer.get("next")) == after:
            raise FetchError(f"the registry's pages of {member} have no end: {after!r} is followed by itself")
        after = following
