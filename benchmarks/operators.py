"""An operator of a stack's registry, over HTTP: quicker than its commands, each of which is a process of its own."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.newcomers import Newcomer
from demo.stack import Stack
from peerseal.protocol.encoding import canonical_json, strict_json_object
from peerseal.protocol.join import JoinToken
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.names import make_kid, service_id, split_kid, split_service_id
from peerseal.transport.fetch import HttpFetcher

_JSON = {"Content-Type": "application/json"}


class Operator:
    """Calls the registry at ``url`` with the first operator's token, which is in the registry's folder ``home``."""

    def __init__(self, domain: str, url: str, home: Path) -> None:
        self._domain = domain
        self._fetcher = HttpFetcher([url])
        token = (home / "operator-token").read_text(encoding="ascii").strip()
        self._authorization = {"Authorization": f"Bearer {token}"}

    @classmethod
    def of(cls, stack: Stack) -> "Operator":
        """Of the registry of a running ``stack``."""
        return cls(stack.domain, stack.registry_url, stack.root / "registry")

    def newcomer(self, service: str, key: KeyPair) -> Newcomer:
        """A join token for that key."""
        body, headers = {"service": service}, self._authorization | _JSON
        made = self._call("POST", "/v1/join-tokens", canonical_json(body), headers, 201)
        return Newcomer(service, key, JoinToken.parse(strict_json_object(made)["token"]))

    def register(self, newcomer: Newcomer) -> str:
        """The kid of the newcomer's key, registered now."""
        body = newcomer.body(self._domain, time.time())
        self._call("POST", f"/v1/services/{newcomer.service}/keys", body, _JSON, 201)
        return make_kid(service_id(self._domain, newcomer.service), newcomer.key.public.thumbprint)

    def revoke(self, kid: str) -> None:
        """Revoke the key as compromised."""
        owner, thumbprint = split_kid(kid)
        path = f"/v1/services/{split_service_id(owner)[1]}/keys/{thumbprint}?reason=compromised"
        self._call("DELETE", path, b"", self._authorization, 204)

    def set_policy(self, service: str) -> None:
        """Let one other service call that service, about which nothing was laid down before."""
        body, headers = canonical_json({"allow": {"caller": ["read"]}}), self._authorization | _JSON
        self._call("PUT", f"/v1/services/{service}/policy", body, headers | {"If-Match": '"0"'}, 200)

    def _call(self, method: str, path: str, body: bytes, headers: Mapping[str, str], status: int) -> Any:
        answer = self._fetcher.call(method, path, body=body, headers=headers)
        assert answer.status == status, answer.body
        return answer.body
