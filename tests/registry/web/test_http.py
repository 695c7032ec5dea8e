"""The registry's answers on the wire: statuses, codes, headers, and what they must not hold."""

import json
import logging
import re
import secrets
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from werkzeug.test import TestResponse

from peerseal.protocol import jose
from peerseal.protocol.documents.frame import MAX_DOCUMENT, sign_document
from peerseal.protocol.encoding import b64url, canonical_json
from peerseal.protocol.join import JoinToken, join_mac
from peerseal.protocol.keys import KeyPair, PublicKey
from peerseal.protocol.ledger.entries import Admission
from peerseal.protocol.names import make_kid, registry_id
from peerseal.protocol.tokens.request import REQUEST_TYP
from registry.domain.keys import KeyRecord
from registry.domain.publication import AnswerFrame, ProvenKey, key_set_part
from registry.limits import Limits
from registry.services.access.operators import Role
from registry.services.authority.authority import RENEW_BEFORE
from registry.services.bounded_cache import BoundedCache
from registry.web.routes.openapi import document
from tests.registry.driver import DOMAIN, JSON, Clock, Driver, entries_of, evidence_of, fail_revisions
from tests.support.keys import key

ABSENT = ("service_not_found", "key_not_found", "tile_not_found", "block_not_found")
"""Codes of answers that caches keep for a second."""


def outcome(response: TestResponse) -> tuple[int, str]:
    """Status and code of a problem, checked for what every problem has."""
    assert response.content_type == "application/problem+json"
    members = response.get_json()
    assert members.keys() == {"type", "title", "status", "code", "request_id"}
    assert (members["type"], members["status"]) == ("about:blank", response.status_code)
    assert response.headers["X-Request-Id"] == members["request_id"]
    public = members["code"] in ABSENT and response.request.method == "GET" and response.request.authorization is None
    assert response.headers["Cache-Control"] == ("public, max-age=1, no-transform" if public else "no-store")
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    return response.status_code, members["code"]


# registration refused


def test_no_right_at_all(registry: Driver) -> None:
    response = registry.post_key("billing", {"proof": registry.proof(key(), "billing")})
    assert outcome(response) == (401, "missing_token")
    assert response.headers["WWW-Authenticate"] == "Bearer"


def test_every_failing_join_token_looks_the_same(registry: Driver, clock: Clock) -> None:
    good = registry.join_token("billing")
    spent, withdrawn, short = (registry.join_token("billing", ttl=60) for _ in range(3))
    registry.join(key(), "billing", spent)
    registry.registry.join_tokens.withdraw(withdrawn.id, {"local": "test"})
    unknown = JoinToken.generate(registry.pin)
    wrong_secret = JoinToken(good.id, unknown.secret, good.pin)
    clock.forward(61)
    refusals = [registry.join(key(), "billing", each) for each in (spent, withdrawn, short, unknown, wrong_secret)]
    refusals.append(registry.join(key(), "shipping", good))
    shapes = set()
    for response in refusals:
        assert outcome(response) == (401, "join_refused")
        members = {**response.get_json(), "request_id": None}
        headers = {name: value for name, value in response.headers if name != "X-Request-Id"}
        shapes.add(json.dumps([members, headers], sort_keys=True))
    assert len(shapes) == 1
    assert registry.join(key(), "billing", good).status_code == 201


def test_a_mac_moved_to_another_proof(registry: Driver) -> None:
    token = registry.join_token("billing")
    mac = join_mac(token.mac_key, registry.proof(key(), "billing"))
    body = {"proof": registry.proof(key(), "billing"), "join": {"id": token.id, "mac": mac}}
    assert outcome(registry.post_key("billing", body)) == (401, "join_refused")


@pytest.mark.parametrize(
    ("service", "domain", "audience", "code"),
    [
        ("shipping", DOMAIN, None, "wrong_issuer"),
        ("billing", "staging.internal", None, "wrong_issuer"),
        ("billing", DOMAIN, registry_id("staging.internal"), "wrong_audience"),
    ],
)
def test_a_proof_for_another_service_domain_or_registry_is_refused(
    registry: Driver, service: str, domain: str, audience: str | None, code: str
) -> None:
    proof = registry.proof(key(), service, domain=domain, audience=audience)
    assert outcome(registry.post_key("billing", {"proof": proof})) == (401, code)


def test_an_old_proof(registry: Driver, clock: Clock) -> None:
    token, mine = registry.join_token("billing"), key()
    proof = registry.proof(mine, "billing")
    clock.forward(60 + 31)
    body = {"proof": proof, "join": {"id": token.id, "mac": join_mac(token.mac_key, proof)}}
    assert outcome(registry.post_key("billing", body)) == (401, "expired")


def test_a_proof_by_another_key(registry: Driver) -> None:
    header, payload, _ = registry.proof(key(), "billing").split(".")
    signature = b64url(key().sign(f"{header}.{payload}".encode()))
    assert outcome(registry.post_key("billing", {"proof": f"{header}.{payload}.{signature}"})) == (401, "bad_signature")


@pytest.mark.parametrize("name", ["registry", "Billing", "a..b", "x" * 101, "billing.", "bill%0aing"])
def test_names_that_are_none(registry: Driver, name: str) -> None:
    assert outcome(registry.post_key(name, {"proof": "a.b.c"})) == (400, "invalid_name")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'"proof"',
        b'{"proof": 1}',
        b'{"proof": "a.b.c", "proof": "a.b.c"}',
        b'{"proof": "a.b.c", "more": 1}',
        b'{"proof": "a.b.c", "join": []}',
        b'{"proof": "a.b.c", "join": {"id": "x"}}',
        b'{"proof": "a.b.c", "join": {"id": "x", "mac": "y", "z": 1}}',
        b'{"proof": NaN}',
        b"\xff\xfe",
        b"[" * 60_000,
    ],
)
def test_bodies_that_are_none(registry: Driver, body: bytes) -> None:
    assert outcome(registry.post_key("billing", body)) == (400, "malformed_body")


def test_a_join_token_and_a_voucher_at_once(registry: Driver) -> None:
    body = canonical_json({"proof": registry.proof(key(), "billing"), "join": {"id": "x", "mac": "y"}})
    response = registry.post_key("billing", body, {"Authorization": "Bearer a.b.c"})
    assert outcome(response) == (400, "malformed_body")


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/json; charset=latin-1"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ],
)
def test_other_media(registry: Driver, headers: dict[str, str]) -> None:
    response = registry.post_key("billing", {"proof": "a.b.c"}, headers)
    assert outcome(response) == (415, "unsupported_media_type")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit(registry: Driver, chunked: bool) -> None:
    limit = registry.settings.limits.body
    for size, expected in ((limit, (401, "malformed_token")), (limit + 1, (413, "body_too_large"))):
        content = b'{"proof":"' + b"x" * (size - 12) + b'"}'
        assert len(content) == size
        if chunked:
            environ = {"wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}
            response = registry.client.post(
                "/v1/services/billing/keys", data=content, headers=JSON, environ_overrides=environ
            )
        else:
            response = registry.post_key("billing", content)
        assert outcome(response) == expected


def test_a_body_cut_short(registry: Driver) -> None:
    environ = {"wsgi.input_terminated": True, "CONTENT_LENGTH": "5000"}
    path = "/v1/services/billing/keys"
    response = registry.client.post(path, data=b'{"proof":"x"}', headers=JSON, environ_overrides=environ)
    assert outcome(response) == (400, "malformed_body")


# rotation and ending, refused


def test_one_service_cannot_register_retire_or_revoke_for_another(registry: Driver) -> None:
    thief, victim = registry.joined(key(), "shipping"), registry.joined(key(), "billing")
    response = registry.rotate(thief, key(), "billing", voucher_of="shipping")
    assert outcome(response) == (403, "caller_not_allowed")
    assert response.headers["WWW-Authenticate"] == 'Bearer error="insufficient_scope"'
    for reason in ("retired", "compromised"):
        refused = registry.end(victim, "billing", reason, by=thief, by_service="shipping")
        assert outcome(refused) == (403, "caller_not_allowed")
    assert registry.statement("billing", victim).state == "active"


def test_a_key_cannot_end_its_sister(registry: Driver) -> None:
    first, second = registry.joined(key(), "billing"), registry.joined(key(), "billing")
    assert outcome(registry.end(first, "billing", "retired", by=second)) == (403, "caller_not_allowed")


def test_a_replayed_or_moved_call_changes_nothing(registry: Driver) -> None:
    old = registry.joined(key(), "billing")
    path = "/v1/services/billing/keys"
    body = canonical_json({"proof": registry.proof(key(), "billing")})
    headers = registry.signed(old, "billing", "POST", path, body, {"content-type": "application/json"})
    assert registry.post_key("billing", body, headers).status_code == 201
    assert outcome(registry.post_key("billing", body, headers)) == (401, "replayed")
    other = canonical_json({"proof": registry.proof(key(), "billing")})
    headers = registry.signed(old, "billing", "POST", path, body, {"content-type": "application/json"})
    assert outcome(registry.post_key("billing", other, headers)) == (401, "wrong_binding")
    retire = f"{path}/{old.public.thumbprint}?reason=retired"
    moved = registry.client.delete(
        retire.replace("retired", "compromised"), headers=registry.signed(old, "billing", "DELETE", retire)
    )
    assert outcome(moved) == (401, "wrong_binding")
    assert moved.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'


def test_an_unregistered_key_cannot_vouch(registry: Driver) -> None:
    assert outcome(registry.rotate(key(), key(), "billing")) == (401, "unknown_key")


@pytest.mark.parametrize("query", ["", "?reason=", "?reason=bored", "?reason=retired&reason=compromised"])
def test_ending_a_key_needs_a_reason(registry: Driver, query: str) -> None:
    mine = registry.joined(key(), "billing")
    path = f"/v1/services/billing/keys/{mine.public.thumbprint}{query}"
    assert outcome(registry.client.delete(path, headers=registry.operator)) == (400, "invalid_parameter")


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer a b", "Bearer a, Bearer b", "Basic YTpi", "Bearer\ta", "Bearer a,b", "pso1.x.y", "Bearer ü"],
)
def test_authorization_that_is_none(registry: Driver, header: str) -> None:
    response = registry.client.get("/v1/services", headers={"Authorization": header})
    assert outcome(response) == (401, "malformed_token")


# operators


def test_operators_are_told_apart_by_role_end_and_revocation(registry: Driver, clock: Clock) -> None:
    viewer, viewer_token = registry.registry.operators.create(Role.VIEWER, 600)
    _, operator_token = registry.registry.operators.create(Role.OPERATOR, 100)

    def ask(method: str, path: str, token: str, body: object = None) -> TestResponse:
        return registry.client.open(path, method=method, headers={"Authorization": f"Bearer {token}"}, json=body)

    wanted = {"service": "billing"}
    assert ask("GET", "/v1/services", viewer_token).status_code == 200
    assert ask("GET", "/v1/join-tokens", viewer_token).status_code == 200
    assert outcome(ask("POST", "/v1/join-tokens", viewer_token, wanted)) == (403, "role_insufficient")
    made = ask("POST", "/v1/join-tokens", operator_token, wanted)
    assert made.status_code == 201
    assert made.headers["Cache-Control"] == "no-store"
    assert outcome(ask("DELETE", made.headers["Location"], viewer_token)) == (403, "role_insufficient")
    assert ask("DELETE", made.headers["Location"], operator_token).status_code == 204
    assert outcome(ask("DELETE", made.headers["Location"], operator_token)) == (404, "join_token_not_found")
    registry.registry.operators.revoke(viewer.id)
    clock.forward(100)
    forged = f"pso1.{viewer.id}.{'A' * 43}"
    for token in (viewer_token, operator_token, forged, "pso1.x.y", "pso1..", f"pso1.{'0' * 16}.{'A' * 43}", "a.b.c"):
        refused = ask("GET", "/v1/services", token)
        assert outcome(refused) == (401, "operator_refused")
        assert refused.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'
    assert outcome(registry.client.get("/v1/services")) == (401, "missing_token")


@pytest.mark.parametrize(
    "body",
    [
        {"service": "billing", "ttl": 0},
        {"service": "billing", "ttl": 10**9},
        {"service": "billing", "uses": 0},
        {"service": "billing", "uses": 10**9},
        {"service": "billing", "ttl": True},
        {"service": "billing", "ttl": "600"},
        {"service": "billing", "more": 1},
        {},
    ],
)
def test_join_tokens_that_cannot_be_made(registry: Driver, body: dict[str, object]) -> None:
    status, code = outcome(registry.client.post("/v1/join-tokens", json=body, headers=registry.operator))
    assert (status, code in ("invalid_parameter", "malformed_body")) == (400, True)


def test_a_viewer_may_not_end_keys(registry: Driver) -> None:
    mine = registry.joined(key(), "billing")
    _, token = registry.registry.operators.create(Role.VIEWER, 600)
    registry.operator = {"Authorization": f"Bearer {token}"}
    assert outcome(registry.operator_ends(mine, "billing")) == (403, "role_insufficient")


# reading


def test_records(registry: Driver) -> None:
    mine = registry.joined(key(), "billing")
    [record] = registry.client.get("/v1/services/billing/keys").get_json()["keys"]
    alone = registry.client.get(f"/v1/services/billing/keys/{mine.public.thumbprint}").get_json()
    assert alone == {**record, "evidence": {"proof": alone["evidence"]["proof"]}}
    assert record.keys() == {
        *("kid", "alg", "state", "active_from", "active_until", "revoked_at", "admitted_by", "index", "jwk"),
        "publicKey",
    }
    assert record["publicKey"] == b64url(mine.public.spki)
    assert record["jwk"] == mine.public.jwk


def test_pages(registry: Driver) -> None:
    mine = [registry.joined(key(), "billing").public.thumbprint for _ in range(5)]
    seen: list[str] = []
    after: int | None = 0
    while after is not None:
        page = registry.client.get(f"/v1/services/billing/keys?limit=2&after={after}").get_json()
        assert len(page["keys"]) <= 2
        seen += [record["kid"].rpartition("/")[2] for record in page["keys"]]
        after = page["next"]
    assert seen == mine
    for service in ("a", "b", "c"):
        registry.joined(key(), service)
    first = registry.client.get("/v1/services?limit=3", headers=registry.operator).get_json()
    assert [row["service"] for row in first["services"]] == ["a", "b", "billing"]
    rest = registry.client.get(f"/v1/services?after={first['next']}", headers=registry.operator).get_json()
    assert ([row["service"] for row in rest["services"]], rest["next"]) == (["c"], None)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v1/services/nobody/jwks.jwt", (404, "service_not_found")),
        ("/v1/services/nobody/jwks.json", (404, "service_not_found")),
        ("/v1/services/nobody/keys", (404, "service_not_found")),
        (f"/v1/services/billing/keys/{'A' * 43}", (404, "key_not_found")),
        (f"/v1/services/billing/keys/{'A' * 43}.jwt", (404, "key_not_found")),
        (f"/v1/services/billing/keys/{'A' * 42}.jwt", (404, "not_found")),
        ("/v1/services/a%00b/jwks.jwt", (400, "invalid_name")),
        ("/v1/services/a%27b/keys", (400, "invalid_name")),
        ("/v1/services//jwks.jwt", (404, "not_found")),
        ("/v1/services/billing/jwks.jwt?seq=-1", (400, "invalid_parameter")),
        ("/v1/services/billing/jwks.jwt?seq=1&seq=2", (400, "invalid_parameter")),
        ("/v1/services/billing/jwks.jwt?seq=99999999999999999999", (400, "invalid_parameter")),
        ("/v1/changes?since=x", (400, "invalid_parameter")),
        ("/v1/changes?wait=21", (400, "invalid_parameter")),
        ("/nothing", (404, "not_found")),
    ],
)
def test_what_is_not_there(registry: Driver, path: str, expected: tuple[int, str]) -> None:
    registry.joined(key(), "billing")
    assert outcome(registry.client.get(path)) == expected


def test_a_key_is_not_found_under_another_service(registry: Driver) -> None:
    mine = registry.joined(key(), "billing").public.thumbprint
    registry.joined(key(), "shipping")
    for suffix in ("", ".jwt"):
        response = registry.client.get(f"/v1/services/shipping/keys/{mine}{suffix}")
        assert outcome(response) == (404, "key_not_found")


def test_a_proxys_prefix_stands_in_the_location_of_what_was_made(sqlite_url: str, tmp_path: Path) -> None:
    driver = Driver(sqlite_url, tmp_path / "home", external_prefix="/trust")
    mine = key()
    made = driver.join(mine, "billing", driver.join_token("billing"))
    assert made.headers["Location"] == f"/trust/v1/services/billing/keys/{mine.public.thumbprint}"
    token = driver.client.post("/v1/join-tokens", json={"service": "billing"}, headers=driver.operator)
    assert token.headers["Location"] == f"/trust/v1/join-tokens/{token.get_json()['id']}"
    driver.close()


def test_methods_that_are_not_there(registry: Driver) -> None:
    response = registry.client.put("/v1/services/billing/keys")
    assert outcome(response) == (405, "method_not_allowed")
    assert {"GET", "POST"} <= set(response.headers["Allow"].split(", "))


# caching


@pytest.mark.parametrize("name", ["jwks.jwt", "jwks.json", "keys/{thumbprint}.jwt"])
def test_conditional_requests(registry: Driver, clock: Clock, name: str) -> None:
    mine = registry.joined(key(), "billing")
    path = f"/v1/services/billing/{name}".format(thumbprint=mine.public.thumbprint)
    first = registry.client.get(path)
    etag = first.headers["ETag"]
    assert etag.startswith('"')
    assert first.headers["Cache-Control"] == "public, max-age=30, stale-if-error=3600, no-transform"
    for condition in (etag, f"W/{etag}", f'"x", {etag}', "*"):
        again = registry.client.get(path, headers={"If-None-Match": condition})
        assert (again.status_code, again.data, again.headers["ETag"]) == (304, b"", etag)
        assert "Content-Type" not in again.headers
    assert registry.client.get(path, headers={"If-None-Match": '"x"'}).data == first.data
    clock.forward(60)
    assert registry.client.get(path).headers["ETag"] == etag
    clock.forward(registry.settings.limits.signing_period)
    if name != "jwks.json":  # signed again, so that its signed time says how fresh it is
        assert registry.client.get(path).headers["ETag"] != etag
    registry.operator_ends(mine, "billing")
    changed = registry.client.get(path, headers={"If-None-Match": etag})
    assert changed.status_code == 200


def test_head_requests(registry: Driver) -> None:
    registry.joined(key(), "billing")
    answer = registry.client.head("/v1/services/billing/jwks.jwt")
    assert (answer.status_code, answer.data, answer.content_type) == (200, b"", "application/jwt")


def test_the_registrys_own_keys(registry: Driver) -> None:
    document = registry.client.get("/.well-known/peerseal-registry")
    assert document.content_type == "application/jwt"
    [jwk] = registry.client.get("/.well-known/jwks.json").get_json()["keys"]
    signing = registry.registry.authority.current().signing_key.public
    assert jwk == {**signing.jwk, "alg": "ES256", "use": "sig", "kid": f"{DOMAIN}/registry/{signing.thumbprint}"}


# what goes wrong inside


def test_an_unexpected_error_is_opaque(registry: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(type(registry.registry.records), "keys", fail)
    response = registry.client.get("/v1/services/billing/keys")
    assert outcome(response) == (500, "internal_error")
    assert b"secret" not in response.data


def test_signed_answers_go_on_from_memory_while_the_database_is_down(
    registry: Driver, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = registry.joined(key(), "billing")
    before = registry.key_set("billing")

    fail_revisions(monkeypatch, "service")
    clock.forward(3600)
    assert registry.key_set("billing") == before
    asked_for_more = registry.client.get(f"/v1/services/billing/jwks.jwt?seq={before.head + 1}")
    assert outcome(asked_for_more) == (503, "storage_unavailable")
    assert asked_for_more.headers["Retry-After"] == "5"
    never_asked = registry.client.get(f"/v1/services/billing/keys/{mine.public.thumbprint}.jwt")
    assert outcome(never_asked) == (503, "storage_unavailable")
    clock.forward(24 * 3600)
    assert outcome(registry.client.get("/v1/services/billing/jwks.jwt")) == (503, "storage_unavailable")


def test_health_and_readiness(registry: Driver) -> None:
    assert registry.client.get("/healthz").get_json() == {"status": "ok"}
    ready = registry.client.get("/readyz")
    assert (ready.status_code, ready.get_json()["ready"]) == (200, True)
    with registry.store.write() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0000'")
    not_ready = registry.client.get("/readyz")
    assert (not_ready.status_code, not_ready.get_json()["schema"]) == (503, False)


def test_the_end_of_the_root_signed_document_is_announced(
    registry: Driver, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    def warnings() -> int:
        return sum("root-signed document expires" in record.message for record in caplog.records)

    end = registry.registry.authority.current().keys.expires_at
    clock.now = end - RENEW_BEFORE
    assert registry.client.get("/readyz").status_code == 200
    assert warnings() == 0
    for _ in range(3):
        clock.forward(60)
        assert registry.client.get("/readyz").status_code == 200
        assert warnings() == 1
    clock.forward(24 * 3600)
    registry.client.get("/readyz")
    assert warnings() == 2
    clock.now = end
    passed = registry.client.get("/readyz")
    assert (passed.status_code, passed.get_json()["keys"]) == (503, False)


def test_two_threads_may_put_at_once() -> None:
    cache: BoundedCache[int, bytes] = BoundedCache(256)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            for done in [pool.submit(lambda: [cache.put(name, b"") for name in range(20_000)]) for _ in range(8)]:
                done.result()
    finally:
        sys.setswitchinterval(interval)
    assert len(cache) == 256


def test_the_largest_part_of_a_set_is_one_that_clients_read(clock: Clock) -> None:
    """All keys that one part may have, and those that groups in other processes may add at the same moment."""
    modulus = b64url((1 << 8191 | secrets.randbits(8190) | 1).to_bytes(1024))
    spki = PublicKey.from_jwk({"kty": "RSA", "n": modulus, "e": "AQAB"}).spki
    domain, service = ".".join(["d" * 63] * 3 + ["d" * 61]), "s" * 60 + "." + "s" * 39
    now, limits = int(clock()), Limits()
    active, more = limits.keys_in_part // 4, 500
    names = [b64url(number.to_bytes(32)) for number in range(limits.keys_in_part + more)]
    by = {"kid": make_kid(f"{domain}/{service}", names[0])}
    admission, proof = Admission(10**9, now, now, by, names[0]), (bytes(32),) * 30  # of a tree of a thousand million
    listed = [KeyRecord(name, service, spki, 10**9, by, now, now, now) for name in names[: active + more]]
    revoked = [KeyRecord(name, service, b"", 10**9, by, now, now, now, now, 10**9) for name in names[len(listed) :]]
    frame = AnswerFrame(domain, service, now, now, 10**9, 10**9, "c" * 1000)
    document = key_set_part(frame, 0, [ProvenKey(record, admission, proof) for record in listed], revoked)
    assert len(sign_document(document, KeyPair.generate("ES256"))) < MAX_DOCUMENT


# secrets


def test_no_secret_in_logs_answers_entries_or_audit(
    registry: Driver, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    token = registry.join_token("billing")
    mine = registry.joined(key(), "billing")
    answers = [registry.join(key(), "billing", token), registry.join(key(), "billing", token)]
    headers = registry.signed(mine, "billing", "GET", "/v1/services")
    answers.append(registry.client.get("/v1/services", headers=headers))
    answers.append(registry.client.get("/v1/join-tokens", headers=registry.operator))
    answers.append(registry.client.get("/v1/join-tokens", headers={"Authorization": "Bearer hunter2secret"}))
    answers += [registry.rotate(mine, following := key(), "billing"), registry.end(mine, "billing", "retired")]
    assert [answer.status_code for answer in answers[-2:]] == [201, 204]
    answers.append(registry.operator_ends(following, "billing"))
    made = registry.client.post("/v1/operator-tokens", json={"role": "viewer", "ttl": 60}, headers=registry.operator)
    made_secret = made.get_json()["token"].rpartition(".")[2]
    answers += [registry.client.get(path, headers=registry.operator) for path in ("/v1/operator-tokens", "/v1/audit")]
    assert [answer.status_code for answer in answers[-2:]] == [200, 200]
    with registry.store.read() as connection:
        entries = b"".join(connection.exec_driver_sql("SELECT body FROM entries").scalars())
    told = caplog.text + "".join(answer.text for answer in answers) + entries.decode()
    operator_secret = registry.operator["Authorization"].rpartition(".")[2]
    request_token = headers["Authorization"].rpartition(" ")[2]
    kept = (token.secret, b64url(token.mac_key), operator_secret, made_secret, request_token, "hunter2secret")
    for secret in kept:
        assert secret not in told
    found = set(re.findall(r"[\w-]+\.[\w-]+\.[\w-]+", told))
    tokens = {jws for jws in found if jws.startswith("eyJ") and jose.parse(jws).header.typ == REQUEST_TYP}
    assert tokens == set(), "what a service signed is evidence beside the entries, which hold its digest"
    vouched, ended = (entry for entry in entries_of(registry.store) if entry.by.keys() & {"kid", "self"})
    proven, spent = evidence_of(registry.store, vouched), evidence_of(registry.store, ended)
    path = "/v1/services/billing/keys"
    for expected in ("replayed", "expired"):  # of no use to a reader, neither now nor later
        repeated = {"Authorization": f"Bearer {proven['vouch']}"}
        assert outcome(registry.post_key("billing", {"proof": proven["proof"]}, repeated)) == (401, expected)
        repeated = {"Authorization": f"Bearer {spent['token']}"}
        again = registry.client.delete(f"{path}/{mine.public.thumbprint}?reason=retired", headers=repeated)
        assert outcome(again) == (401, expected)
        clock.forward(400)


# laptop mode


def test_first_come_first_served_in_dev_mode_only(registry: Driver) -> None:
    dev = registry.node(dev=True)
    first, second = key(), key()
    assert dev.post_key("billing", {"proof": dev.proof(first, "billing")}).status_code == 201
    refused = dev.post_key("billing", {"proof": dev.proof(second, "billing")})
    assert outcome(refused) == (401, "missing_token")
    assert dev.rotate(first, second, "billing").status_code == 201
    for each in (first, second):
        dev.end(each, "billing", "retired")
    assert dev.post_key("billing", {"proof": dev.proof(key(), "billing")}).status_code == 201
    dev.close()


def test_a_refusal_has_the_callers_request_id_and_logs_it(registry: Driver, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "registry")
    for path in ("/v1/services", "/nothing"):
        refused = registry.client.get(path, headers={"X-Request-Id": "4f1c2a9be0d35e77"})
        assert refused.headers["X-Request-Id"] == refused.get_json()["request_id"] == "4f1c2a9be0d35e77"
    assert caplog.text.count("request_id=4f1c2a9be0d35e77") == 2


def test_the_document_describes_request_ids_as_they_are(registry: Driver) -> None:
    described = document()["components"]["schemas"]["Problem"]["properties"]["request_id"]["pattern"]
    for given in (None, "4f1c2a9be0d35e77", "0af7651916cd43dd8448eb211c80319c", "a.b:c/d+e=f_g-h", "x" * 128):
        headers = {} if given is None else {"X-Request-Id": given}
        told = registry.client.get("/v1/services", headers=headers).get_json()["request_id"]
        assert given in (None, told)
        assert re.fullmatch(described, told)


@pytest.mark.parametrize("given", ["a b", "x" * 129, 'a"b', ""])
def test_a_request_id_that_could_be_misread_in_a_log_is_replaced(registry: Driver, given: str) -> None:
    refused = registry.client.get("/v1/services", headers={"X-Request-Id": given})
    assert re.fullmatch(r"[0-9a-f]{16}", refused.headers["X-Request-Id"])
