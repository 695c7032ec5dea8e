"""What `peerseal.testing` promises to tests of services that use it."""

import json
import tempfile
import threading
from pathlib import Path

import pytest
from flask import Flask

from peerseal import Identity
from peerseal.errors import FetchError, RevokedKey
from peerseal.flask import PeerAuth, current_peer
from peerseal.testing import Answer, Clock, MemoryRegistry
from tests.support.keys import signing_key


def create_app(identity: Identity) -> Flask:
    """A service as its author wrote it."""
    app = Flask(__name__)
    auth = PeerAuth(app, identity, allow={"client-service": {"profiles:read"}})

    @app.get("/profiles/<number>")
    @auth.require(scope="profiles:read")
    def profile(number: str) -> dict[str, str]:
        return {"caller": current_peer.service, "number": number}

    return app


def test_a_test_of_a_service_takes_five_lines() -> None:
    with MemoryRegistry() as registry:
        app = create_app(registry.identity("resource-service"))
        client = registry.identity("client-service")
        token = client.sign_request("resource-service", method="GET", target="/profiles/1")
        answer = app.test_client().get("/profiles/1", headers={"Authorization": f"Bearer {token}"})
        assert (answer.status_code, answer.json) == (200, {"caller": "client-service", "number": "1"})


def test_what_would_be_refused_in_production_is_refused() -> None:
    with MemoryRegistry() as registry:
        app = create_app(registry.identity("resource-service"))
        stranger = registry.identity("stranger")
        token = stranger.sign_request("resource-service", method="GET", target="/profiles/1")
        for headers, status in (({}, 401), ({"Authorization": f"Bearer {token}"}, 403)):
            assert app.test_client().get("/profiles/1", headers=headers).status_code == status


def test_a_clock_stands_still_until_it_is_set() -> None:
    clock = Clock(100.0)
    assert clock() == clock() == 100.0
    clock.advance(5)
    assert clock() == 105.0
    clock.now = 7.0
    assert clock() == 7.0


def test_calls_are_counted_by_path_and_kept() -> None:
    with MemoryRegistry() as registry:
        registry.call("GET", "/v1/changes?since=0", headers={"X-A": "b"})
        registry.call("GET", "/v1/changes?since=1")
        assert registry.calls == {"GET /v1/changes": 2}
        assert (registry.log[0].path, registry.log[0].headers) == ("/v1/changes?since=0", {"x-a": "b"})


def test_a_registry_can_be_down_or_answer_something_else() -> None:
    with MemoryRegistry() as registry:
        registry.answers["/v1/changes"] = Answer(500, b"raw \xff bytes")
        assert registry.call("GET", "/v1/changes?since=0").body == b"raw \xff bytes"
        registry.down = True
        with pytest.raises(FetchError):
            registry.call("GET", "/v1/changes?since=0")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/v1/services/nobody/jwks.jwt"),
        ("POST", "/v1/changes"),
    ],
)
def test_what_is_not_there_is_a_problem_document(method: str, path: str) -> None:
    with MemoryRegistry() as registry:
        answer = registry.call(method, path)
        assert (answer.status, answer.headers["content-type"]) == (404, "application/problem+json")
        assert json.loads(answer.body)["status"] == 404


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"proof": 1}', b'{"proof": "a.b.c"}', b'{"proof": "", "join": 1}']
)
def test_a_registration_that_is_none_is_refused(body: bytes) -> None:
    with MemoryRegistry() as registry:
        answer = registry.call("POST", "/v1/services/client/keys", body=body)
        assert answer.status in (400, 401)


def test_a_compromised_key_is_revoked_by_itself_with_what_it_vouched_for(tmp_path: Path) -> None:
    with MemoryRegistry() as registry:
        client = registry.identity("client", key_dir=tmp_path)
        held, second = signing_key(tmp_path, "client"), client.rotate().key_id
        path = f"/v1/services/client/keys/{held.thumbprint}?reason=compromised"
        token = client.sign_request("registry", method="DELETE", target=path)
        assert registry.call("DELETE", path, headers={"Authorization": f"Bearer {token}"}).status == 204
        for kid in (held.kid, second):
            with pytest.raises(RevokedKey):
                registry.key(kid)


def test_what_came_from_a_registry_is_stopped_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with MemoryRegistry() as registry:
        registry.identity("client")
        (folder,) = tmp_path.iterdir()
    assert not folder.exists()
    assert [key.state for key in registry.jwk_set("client").keys] == ["retired"]


def test_no_call_is_answered_in_the_middle_of_a_change() -> None:
    began, goes_on, events = threading.Event(), threading.Event(), []

    def clock() -> float:
        if threading.current_thread() is changing:
            began.set()
            goes_on.wait(10)
        return 1_000_000.0

    def change() -> None:
        registry.set_policy("billing", {"shop": ["read"]})
        events.append("changed")

    def call() -> None:
        registry.call("GET", "/v1/services/billing/policy.jwt")
        events.append("answered")

    changing, calling = threading.Thread(target=change), threading.Thread(target=call)
    with MemoryRegistry(clock=clock) as registry:
        changing.start()
        began.wait(10)
        calling.start()
        calling.join(0.1)
        goes_on.set()
        changing.join()
        calling.join()
    assert events == ["changed", "answered"]
