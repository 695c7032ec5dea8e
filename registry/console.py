"""What the operator commands work on: this host's database, or a registry over HTTP. Both raise PeersealError."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from peerseal.errors import CodedError, MalformedToken
from peerseal.peers.fetch import HttpFetcher
from peerseal.protocol.encoding import canonical_json, strict_json_object
from peerseal.protocol.names import split_kid, split_service_id
from registry.domain.errors import NotFound
from registry.services.end_keys import Reason
from registry.services.join_tokens import public_members
from registry.services.operators import LOCAL
from registry.services.registry import Registry

Json = dict[str, Any]


class Console(Protocol):
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


class LocalConsole:
    """On this host's database."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def create_join_token(self, service: str, ttl: int, uses: int) -> Json:
        """See Console."""
        made = self._registry.join_tokens.create(service, ttl, uses, LOCAL)
        return {"token": made.token, **public_members(made.record)}

    def join_tokens(self) -> Iterator[Json]:
        """See Console."""
        return _every(self._registry.join_tokens.page, "join_tokens", "")

    def withdraw_join_token(self, token_id: str) -> None:
        """See Console."""
        self._registry.join_tokens.withdraw(token_id, LOCAL)

    def services(self) -> Iterator[Json]:
        """See Console."""
        return _every(self._registry.records.services, "services", "")

    def keys(self, service: str) -> Iterator[Json]:
        """See Console."""
        return _every(lambda after: self._registry.records.keys(service, after), "keys", 0)

    def end_key(self, kid: str, reason: Reason) -> None:
        """See Console."""
        owner, thumbprint = split_kid(kid)
        domain, service = split_service_id(owner)
        if domain != self._registry.authority.current().domain:
            raise NotFound("key_not_found", "the kid is of another trust domain")
        self._registry.ending.end(service, thumbprint, reason, LOCAL)


class HttpConsole:
    """On a registry over HTTP, with an operator token."""

    def __init__(self, url: str, token: str) -> None:
        """Raises ConfigurationError for a URL that is none."""
        self._fetcher = HttpFetcher([url])
        self._token = token

    def create_join_token(self, service: str, ttl: int, uses: int) -> Json:
        """See Console."""
        return self._call("POST", "/v1/join-tokens", {"service": service, "ttl": ttl, "uses": uses})

    def join_tokens(self) -> Iterator[Json]:
        """See Console."""
        return _every(lambda after: self._call("GET", f"/v1/join-tokens?after={after}"), "join_tokens", "")

    def withdraw_join_token(self, token_id: str) -> None:
        """See Console."""
        self._call("DELETE", f"/v1/join-tokens/{token_id}")

    def services(self) -> Iterator[Json]:
        """See Console."""
        return _every(lambda after: self._call("GET", f"/v1/services?after={after}"), "services", "")

    def keys(self, service: str) -> Iterator[Json]:
        """See Console."""
        return _every(lambda after: self._call("GET", f"/v1/services/{service}/keys?after={after}"), "keys", 0)

    def end_key(self, kid: str, reason: Reason) -> None:
        """See Console."""
        owner, thumbprint = split_kid(kid)
        service = split_service_id(owner)[1]
        self._call("DELETE", f"/v1/services/{service}/keys/{thumbprint}?reason={reason.value}")

    def _call(self, method: str, path: str, body: Json | None = None) -> Json:
        """The JSON object in the answer. Raises FetchError, or CodedError with the registry's own code."""
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        content = b"" if body is None else canonical_json(body)
        answer = self._fetcher.call(method, path, body=content, headers=headers)
        try:
            members = strict_json_object(answer.body) if answer.body else {}
        except MalformedToken:
            members = {}
        if answer.status >= 300:
            raise CodedError(str(members.get("code", "refused")), f"the registry answered {answer.status}")
        return members


def _every(page: Callable[[Any], Json], member: str, first: Any) -> Iterator[Json]:
    """The rows of all pages."""
    after = first
    while after is not None:
        answer = page(after)
        yield from answer[member]
        after = answer["next"]
