"""A real agent, asked by curl alone: it signs and verifies as the SDK does."""

import base64
import json
from typing import Any

import pytest

from peerseal import Identity, Verifier
from peerseal.protocol.encoding import digest_header
from peerseal.protocol.keys import PublicKey
from peerseal.testing import MemoryRegistry
from tests.support.agents import CALLER, SERVICE, AgentProcess

pytestmark = pytest.mark.e2e

BODY = b'{"quantity": 1}'
JSON = {"Content-Type": "application/json"}


def header(caller: Identity, **request: Any) -> str:
    """The value of Authorization with which ``caller`` calls the agent's service."""
    return f"Bearer {caller.sign_request(SERVICE, **{'method': 'GET', 'target': '/a'} | request)}"


class TestSigning:
    @pytest.mark.parametrize(
        "body",
        [
            {"body": BODY.decode()},
            {"body_base64": base64.b64encode(BODY).decode()},
            {"content_digest": digest_header(BODY)},
        ],
        ids=["text", "base64", "digest"],
    )
    def test_a_service_accepts_what_it_signs(
        self, agent: AgentProcess, registry: MemoryRegistry, body: dict[str, str]
    ) -> None:
        signed = agent.sign("billing", method="POST", target="/orders?dry=1", headers=JSON, ctx={"a": 1}, **body)
        verifier = Verifier(registry.trust_store(), audience="billing", allow={SERVICE: ()})
        token = signed.removeprefix("Bearer ")
        peer = verifier.verify(token, method="POST", target="/orders?dry=1", headers=JSON, body=BODY)
        assert (peer.service, peer.ctx) == (SERVICE, {"a": 1})

    @pytest.mark.parametrize(
        ("wrong", "code"),
        [
            ({"audience": "Not A Name"}, "invalid_name"),
            ({"target": "http://billing/a"}, "unsignable_request"),
            ({"headers": {"a": "b\r\nc"}}, "unsignable_request"),
            ({"content_digest": "sha-256=:abc=:"}, "unsignable_request"),
            ({"target": None}, "malformed_body"),
        ],
    )
    def test_a_request_that_cannot_be_signed_is_named(self, agent: AgentProcess, wrong: Any, code: str) -> None:
        answer = agent.ask("POST", "/sign", {"audience": "billing", "method": "GET", "target": "/a"} | wrong)
        assert answer.outcome == (400, code)
        assert answer.json["detail"]

    def test_its_keys_are_the_registered_ones(self, agent: AgentProcess, registry: MemoryRegistry) -> None:
        keys = agent.ask("GET", "/keys").json
        [jwk] = keys["keys"]
        assert registry.key(jwk["kid"]).public == PublicKey.from_jwk(jwk)
        assert keys["credentials"]["keyId"] == jwk["kid"]


class TestVerifying:
    def test_a_caller_is_proven_once(self, agent: AgentProcess, caller: Identity) -> None:
        authorization = header(caller, ctx={"tenant": "7"})
        proven = agent.verify(authorization, scope="orders:read")
        assert proven.status == 200
        assert proven.json == {
            "service": "shop",
            "id": "acme.internal/shop",
            "kid": caller.credentials.key_id,
            "scopes": ["orders:read", "orders:write"],
            "ctx": {"tenant": "7"},
            "transaction": None,
        }
        assert agent.verify(authorization, scope="orders:read").outcome == (401, "replayed")

    @pytest.mark.parametrize(
        "body",
        [
            {"body": BODY.decode()},
            {"body_base64": base64.b64encode(BODY).decode()},
            {"content_digest": digest_header(BODY)},
        ],
        ids=["text", "base64", "digest"],
    )
    def test_the_body_is_compared(self, agent: AgentProcess, caller: Identity, body: dict[str, str]) -> None:
        request: dict[str, Any] = {"method": "POST", "target": "/orders", "headers": JSON}
        signed = header(caller, body=BODY, **request)
        assert agent.verify(header(caller, body=BODY + b" ", **request), **request, **body).outcome == (
            401,
            "wrong_binding",
        )
        assert agent.verify(signed, **request, **body).status == 200

    @pytest.mark.parametrize(
        ("asked", "outcome"),
        [
            ({"target": "/b"}, (401, "wrong_binding")),
            ({"method": "HEAD"}, (401, "wrong_binding")),
            ({"body": "x"}, (401, "wrong_binding")),
            ({"headers": JSON}, (401, "wrong_binding")),
            ({"scope": "orders:delete"}, (403, "insufficient_scope")),
            ({"transaction": True}, (401, "bad_transaction_token")),
        ],
    )
    def test_another_request_than_the_signed_one_is_refused(
        self, agent: AgentProcess, caller: Identity, asked: Any, outcome: tuple[int, str]
    ) -> None:
        answer = agent.verify(header(caller), **asked)
        assert answer.outcome == outcome
        assert "detail" not in answer.json, "a program may pass the answer on to the stranger"
        assert answer.headers["www-authenticate"].startswith("Bearer error=")

    def test_without_a_token_there_is_no_caller(self, agent: AgentProcess) -> None:
        answer = agent.verify(None)
        assert answer.outcome == (401, "missing_token")
        assert answer.headers["www-authenticate"] == "Bearer"

    def test_two_tokens_in_one_header_are_refused(self, agent: AgentProcess, caller: Identity) -> None:
        assert agent.verify(f"{header(caller)}, {header(caller)}").outcome == (401, "malformed_token")

    def test_a_service_that_is_not_listed_is_refused(self, agent: AgentProcess, registry: MemoryRegistry) -> None:
        assert agent.verify(header(registry.identity("other"))).outcome == (403, "caller_not_allowed")

    def test_the_token_may_stand_apart_from_the_headers(self, agent: AgentProcess, caller: Identity) -> None:
        token = caller.sign_request(SERVICE, method="GET", target="/a")
        assert agent.verify(None, token=token).status == 200

    def test_the_log_has_a_json_line_for_each_accepted_request(self, agent: AgentProcess, caller: Identity) -> None:
        assert agent.verify(header(caller), headers={"X-Request-Id": "find-me-6"}, scope="orders:read").status == 200
        [line] = [line for line in agent.output().splitlines() if "find-me-6" in line]
        assert json.loads(line)["caller"] == f"acme.internal/{CALLER}"

    def test_the_log_has_the_reason_and_the_request_s_id(self, agent: AgentProcess, caller: Identity) -> None:
        refused = agent.verify(header(caller), target="/b", headers={"X-Request-Id": "find-me-7"})
        assert refused.headers["x-request-id"] == "find-me-7"
        [line] = [line for line in agent.output().splitlines() if "find-me-7" in line]
        assert "wrong_binding; 'GET' '/b'; unverified caller 'acme.internal/shop'" in line
        assert "token is signed for another target" in line


class TestAProxyThatSendsTheBody:
    """As Envoy's ext_authz asks over HTTP: with the method, the target and the body of the request itself."""

    SENT = "X-Original-Body: sent"

    def ask(self, agent: AgentProcess, signed: str, target: str, *headers: str, body: bytes | None = BODY) -> Any:
        return agent.ask("POST", f"/authz{target}", body, f"Authorization: {signed}", "Content-Type:", *headers)

    def test_the_caller_is_in_the_answer_s_headers(self, agent: AgentProcess, caller: Identity) -> None:
        signed = header(caller, method="POST", target="/orders?a=%2f", body=BODY)
        answer = self.ask(agent, signed, "/orders?a=%2f", self.SENT, "Peerseal-Scope: orders:write")
        assert (answer.status, answer.body) == (200, b"")
        assert answer.headers["peerseal-caller"] == "acme.internal/shop"
        assert answer.headers["peerseal-scopes"] == "orders:read orders:write"
        again = self.ask(agent, signed, "/orders?a=%2f", self.SENT)
        assert again.outcome == (401, "replayed")
        assert again.headers["peerseal-code"] == "replayed"

    def test_another_body_is_refused(self, agent: AgentProcess, caller: Identity) -> None:
        for sent in (BODY + b" ", None):
            signed = header(caller, method="POST", target="/orders", body=BODY)
            assert self.ask(agent, signed, "/orders", self.SENT, body=sent).outcome == (401, "wrong_binding")

    def test_a_scope_that_the_caller_lacks_is_refused(self, agent: AgentProcess, caller: Identity) -> None:
        signed = header(caller, method="POST", target="/orders", body=BODY)
        answer = self.ask(agent, signed, "/orders", self.SENT, "Peerseal-Scope: orders:delete")
        assert answer.outcome == (403, "insufficient_scope")

    @pytest.mark.parametrize("headers", [(), ("X-Original-Method: POST", "X-Original-URI: /orders")])
    def test_a_proxy_that_does_not_say_that_it_sends_the_body_gets_no_answer(
        self, agent: AgentProcess, caller: Identity, headers: tuple[str, ...]
    ) -> None:
        signed = header(caller, method="POST", target="/orders", body=BODY)
        assert self.ask(agent, signed, "/orders", *headers).outcome == (400, "proxy_header_missing")

    @pytest.mark.parametrize("said", ["none", "unknown", "sent, sent"])
    def test_a_body_that_may_not_be_here_is_refused(self, agent: AgentProcess, caller: Identity, said: str) -> None:
        signed = header(caller, method="POST", target="/orders", body=BODY)
        assert self.ask(agent, signed, "/orders", f"X-Original-Body: {said}").outcome == (401, "wrong_binding")

    @pytest.mark.parametrize(
        "path", ["/a/../b", "/a/%2e%2E/b", "/a//b", "/a/..;/b", "/a%5cb", "/a%0a", "/a/.", "/a%ff"]
    )
    def test_a_path_with_two_readings_is_refused(self, agent: AgentProcess, caller: Identity, path: str) -> None:
        signed = header(caller, method="POST", target=path, body=BODY)
        assert self.ask(agent, signed, path, self.SENT).outcome == (403, "insufficient_scope")

    def test_x_original_headers_of_a_stranger_are_not_read(self, agent: AgentProcess, caller: Identity) -> None:
        signed = header(caller, method="POST", target="/other", body=BODY)
        spoofed = ("X-Original-URI: /other", "X-Original-Method: POST")
        assert self.ask(agent, signed, "/orders", self.SENT, *spoofed).outcome == (401, "wrong_binding")


class TestOtherCalls:
    @pytest.mark.parametrize(
        ("method", "path"), [("GET", "/sign"), ("POST", "/keys"), ("GET", "/"), ("GET", "/authzz"), ("GET", "/%61uthz")]
    )
    def test_there_are_no_others(self, agent: AgentProcess, method: str, path: str) -> None:
        assert agent.ask(method, path).outcome == (404, "not_found")

    def test_a_question_has_an_end(self, agent: AgentProcess) -> None:
        assert agent.ask("POST", "/sign", b"x" * (16 * 1024 * 1024 + 1)).outcome == (413, "content_too_large")
