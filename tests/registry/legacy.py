"""A program with nothing but a JWT library, which exchanges users' tokens at a registry in this process."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import jsonschema_rs
import jwt
import pytest
from werkzeug.test import TestResponse

from peerseal.protocol import jose
from peerseal.protocol.encoding import b64url
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.names import make_kid
from peerseal.protocol.tokens.assertion import CLIENT_ASSERTION_TYPE
from peerseal.protocol.tokens.claims import new_jti
from peerseal.protocol.tokens.event import payload_hash
from registry.domain.exchange import ACCESS_TOKEN, GRANT
from registry.web.routes.openapi import document
from tests.registry.driver import DOMAIN, Clock, Driver
from tests.support.issuer import Issuer

AUDIENCE, SCOPE = "jobs.example.com", "trigger_invoicing"
LEGACY, OTHER, REGISTRY = (f"{DOMAIN}/{service}" for service in ("legacy", "other", "registry"))
KAFKA = "https://kafka.acme.internal"
PAYLOAD = b'{"eventID": "e-1"}'
FORM = "application/x-www-form-urlencoded"
ABSENT: Any = object()


def set_domain(
    registry: Driver,
    exchange: Mapping[str, Any] | None,
    *,
    derived_scopes: Sequence[Any] = (),
    access_tokens: Mapping[str, Any] | None = None,
    **issuer: Any,
) -> None:
    """What an operator lays down: who may exchange, for the users of one issuer, what is derived, and which services
    get access tokens."""
    body: dict[str, Any] = {"minters": [], "issuers": [{"audience": "edge", **issuer}] if issuer else []}
    if access_tokens is not None:
        body["access_tokens"] = access_tokens
    if exchange is not None:
        body["exchange"] = exchange
    if derived_scopes:
        body["derived_scopes"] = list(derived_scopes)
    etag = registry.client.get("/v1/domain", headers=registry.operator).headers["ETag"]
    answer = registry.client.put("/v1/domain", json=body, headers={**registry.operator, "If-Match": etag})
    assert answer.status_code == 200, answer.data


class Client:
    """The service ``legacy``, whose key is registered, and which may exchange; ``other`` is registered and may not."""

    def __init__(self, registry: Driver, issuer: Issuer, clock: Clock) -> None:
        self.registry, self.issuer, self.clock = registry, issuer, clock
        self.key = registry.joined(KeyPair.generate("ES256"), "legacy")
        self.other = registry.joined(KeyPair.generate("ES256"), "other")
        set_domain(registry, {"legacy": {AUDIENCE: [SCOPE, "trigger_refund"]}}, issuer=issuer.url)

    @property
    def now(self) -> int:
        return int(self.clock())

    def claims(self, owner: str = LEGACY) -> dict[str, Any]:
        """Of a good assertion."""
        times = {"iat": self.now, "exp": self.now + 60}
        return {"iss": owner, "sub": owner, "aud": REGISTRY, **times, "jti": new_jti()}

    def kid(self, key: KeyPair | None = None, owner: str = LEGACY) -> str:
        return make_kid(owner, (key or self.key).public.thumbprint)

    def assertion(self, key: KeyPair | None = None, owner: str = LEGACY, **changes: Any) -> str:
        """By PyJWT. ``changes`` alter claims, or, under ``header``, members of the header."""
        key = key or self.key
        header = {"typ": "JWT", "kid": self.kid(key, owner), **changes.pop("header", {})}
        claims = {name: value for name, value in (self.claims(owner) | changes).items() if value is not ABSENT}
        return jwt.encode(claims, key.to_pem(), key.public.alg, header)

    def written(self, payload: bytes | None = None, **header: Any) -> str:
        """Header and payload as they stand, signed by the registered key: what no library would write."""
        members = {"alg": "ES256", "kid": self.kid(), "typ": "JWT", **header}
        members = {name: value for name, value in members.items() if value is not ABSENT}
        segment = b64url(json.dumps(members).encode())
        return jose.compact(segment, payload or json.dumps(self.claims()).encode(), self.key.sign)

    def user(self, **changes: Any) -> str:
        """A user's token, with more scopes than the client is granted."""
        scope = changes.pop("scope", f"{SCOPE} orders:read")
        return self.issuer.token("ada", changes.pop("audience", "edge"), now=self.clock(), scope=scope, **changes)

    def request_token(self) -> str:
        """By the registered key, for another purpose."""
        return self.registry.signed(self.key, "legacy", "GET", "/")["Authorization"].removeprefix("Bearer ")

    def form(self, **changes: Any) -> dict[str, str]:
        """A good form, changed."""
        form = {
            "grant_type": GRANT,
            "client_assertion_type": CLIENT_ASSERTION_TYPE,
            "client_assertion": changes.pop("client_assertion", None) or self.assertion(),
            "subject_token": changes.pop("subject_token", None) or self.user(),
            "subject_token_type": ACCESS_TOKEN,
            "scope": SCOPE,
            "audience": AUDIENCE,
            "transaction_id": "t-1",
            "event_id": "e-1",
            "event_payload_hash": payload_hash(PAYLOAD),
            "topic": "OrderCreated",
        }
        return {name: value for name, value in (form | changes).items() if value is not ABSENT}

    def access_form(self, **changes: Any) -> dict[str, str]:
        """A good form for an access token, changed."""
        form = {
            "grant_type": "client_credentials",
            "client_assertion_type": CLIENT_ASSERTION_TYPE,
            "client_assertion": changes.pop("client_assertion", None) or self.assertion(),
            "resource": KAFKA,
        }
        return {name: value for name, value in (form | changes).items() if value is not ABSENT}

    def post(self, form: Mapping[str, str] | str, **headers: str) -> TestResponse:
        """In a thread's own test client."""
        body = form if isinstance(form, str) else urlencode(form)
        headers = {"Content-Type": FORM, **headers}
        return self.registry.app.test_client().post("/oauth2/token", data=body, headers=headers)

    def exchanged(self, **changes: Any) -> dict[str, Any]:
        """What a good form is answered with."""
        answer = self.post(self.form(**changes))
        assert answer.status_code == 200, answer.data
        found: dict[str, Any] = answer.get_json()
        return found

    def error(self, form: Mapping[str, str] | str, **headers: str) -> tuple[int, str]:
        """The status and OAuth's error."""
        answer = self.post(form, **headers)
        return answer.status_code, answer.get_json()["error"]


def assert_refused(answer: TestResponse, error: str, case: str) -> None:
    """The answer is an OAuth error with that code (RFC 6749 section 5.2), which no cache keeps."""
    assert answer.get_json()["error"] == error, case
    assert answer.status_code == (401 if error == "invalid_client" else 400), case
    assert ("WWW-Authenticate" in answer.headers) == (answer.status_code == 401), case
    assert answer.headers["Cache-Control"] == "no-store", case
    assert jsonschema_rs.is_valid(document()["components"]["schemas"]["OAuthError"], answer.get_json()), case


def assert_all_refused(
    client: Client,
    cases: Mapping[str, tuple[str, Callable[[Client], Any]]],
    secrets: Sequence[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each form of the cases is refused with its error, and logged; no answer has one of the ``secrets``."""
    forms = {name: form(client) for name, (_, form) in cases.items()}
    caplog.set_level(logging.DEBUG)
    answers = {name: client.post(form) for name, form in forms.items()}
    assert {name: answer.get_json()["error"] for name, answer in answers.items()} == {
        name: error for name, (error, _) in cases.items()
    }
    for name, answer in answers.items():
        assert_refused(answer, cases[name][0], name)
        assert f"request_id={answer.headers['X-Request-Id']}" in caplog.text, name
        assert not any(secret in answer.text for secret in secrets), name
    assert "eyJ" not in caplog.text, "no token, nor a part of one"
