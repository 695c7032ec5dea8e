"""Operators: what each role may do, their tokens, and what is written down about their acts. On both databases."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import TestResponse

from registry.domain.errors import RoleRefused
from registry.domain.rebuild import rebuild
from registry.limits import Limits
from registry.services.access.operators import Role
from registry.storage.tables import applicants, audit
from tests.registry.driver import BY, DOMAIN, Clock, Driver, entries_of, tables_of
from tests.support.keys import key

Headers = dict[str, str]

JOIN = {"service": "billing"}
TOKEN = {"role": "viewer", "ttl": 600}
POLICY = {"allow": {f"{DOMAIN}/shipping": ["read"]}, "restricted": False}
DOMAIN_SETTINGS = {"minters": [f"{DOMAIN}/edge"], "issuers": []}
PARTNER_ROOT = "BH-WksFyk6HqY8cwiW_Mi5KLfDPApQ8urKiMMPE0SOQ"
FEDERATION = {"domains": [{"domain": "partner.example", "urls": ["https://r.partner.example"], "root": PARTNER_ROOT}]}
ENDPOINTS: list[tuple[str, str, dict[str, Any] | None, Role]] = [
    ("GET", "/v1/services", None, Role.VIEWER),
    ("GET", "/v1/join-tokens", None, Role.VIEWER),
    ("GET", "/v1/applicants", None, Role.VIEWER),
    ("GET", "/v1/audit", None, Role.VIEWER),
    ("POST", "/v1/join-tokens", JOIN, Role.OPERATOR),
    ("DELETE", "/v1/join-tokens/{join_token}", None, Role.OPERATOR),
    ("POST", "/v1/services/billing/keys/{applicant}/approve", None, Role.OPERATOR),
    ("DELETE", "/v1/services/billing/keys/{applicant}?reason=rejected", None, Role.OPERATOR),
    ("DELETE", "/v1/services/billing/keys/{key}?reason=retired", None, Role.OPERATOR),
    ("DELETE", "/v1/services/billing/keys/{key}?reason=compromised", None, Role.OPERATOR),
    ("GET", "/v1/services/billing/policy", None, Role.VIEWER),
    ("PUT", "/v1/services/billing/policy", POLICY, Role.OPERATOR),
    ("GET", "/v1/domain", None, Role.VIEWER),
    ("PUT", "/v1/domain", DOMAIN_SETTINGS, Role.ADMIN),
    ("GET", "/v1/federation", None, Role.VIEWER),
    ("PUT", "/v1/federation", FEDERATION, Role.ADMIN),
    ("GET", "/v1/operator-tokens", None, Role.ADMIN),
    ("POST", "/v1/operator-tokens", TOKEN, Role.ADMIN),
    ("DELETE", "/v1/operator-tokens/{operator_token}", None, Role.ADMIN),
]
"""Every endpoint for operators, and the least role that may use it."""


@pytest.fixture
def registry(registry_database: str, tmp_path: Path, clock: Clock) -> Iterator[Driver]:
    driver = Driver(registry_database, tmp_path / "home", clock, applicants=True)
    yield driver
    driver.close()


def refusal(response: TestResponse) -> tuple[int, str]:
    return response.status_code, response.get_json()["code"]


def of_role(registry: Driver, role: Role, ttl: int = 600) -> Headers:
    return {"Authorization": f"Bearer {registry.registry.operators.create(role, ttl)[1]}"}


def everything(registry: Driver) -> list[Any]:
    """All that operators can change."""
    with registry.store.read() as connection:
        rows = [connection.execute(table.select()).all() for table in (applicants, audit)]
    return [tables_of(registry.store), entries_of(registry.store), *rows]


def trail(registry: Driver, query: str = "") -> list[dict[str, Any]]:
    answer = registry.client.get(f"/v1/audit{query}", headers=registry.operator)
    assert answer.status_code == 200, answer.data
    rows: list[dict[str, Any]] = answer.get_json()["audit"]
    return rows


# roles


@pytest.mark.parametrize(("method", "path", "body", "least"), ENDPOINTS)
def test_a_lesser_role_is_refused_and_changes_nothing(
    registry: Driver, method: str, path: str, body: dict[str, Any] | None, least: Role
) -> None:
    waiting = key()
    assert registry.post_key("billing", {"proof": registry.proof(waiting, "billing")}).status_code == 202
    path = path.format(
        join_token=registry.join_token("billing").id,
        applicant=waiting.public.thumbprint,
        key=registry.joined(key(), "billing").public.thumbprint,
        operator_token=registry.registry.operators.create(Role.OPERATOR, 600)[0].id,
    )
    headers = {role: of_role(registry, role) for role in Role}
    before = everything(registry)

    def call(headers: Headers) -> TestResponse:
        seen = {"If-Match": '"0"'} if method == "PUT" else {}
        return registry.client.open(path, method=method, json=body, headers={**headers, **seen})

    for role in Role:
        if role < least:
            assert refusal(call(headers[role])) == (403, "role_insufficient")
    assert refusal(call({})) == (401, "missing_token")
    assert everything(registry) == before
    assert call(headers[least]).status_code in (200, 201, 204)
    assert (everything(registry) == before) == (method == "GET")
    assert rebuild(entries_of(registry.store)) == tables_of(registry.store)


def test_the_table_names_every_endpoint_that_asks_for_an_operator(registry: Driver) -> None:
    named = {(method, path.partition("?")[0]) for method, path, _, _ in ENDPOINTS}
    shapes = {(method, re.sub(r"\{\w+\}|billing", "*", path)) for method, path in named}
    thumbprint, found = "A" * 43, set()
    for rule in registry.app.url_map.iter_rules():
        shape = re.sub(r"<[^>]+>", "*", rule.rule)
        path = re.sub(r"<thumbprint:[^>]+>", thumbprint, rule.rule)
        path = re.sub(r"<token_id:[^>]+>", "x", re.sub(r"<service>", "billing", path))
        if not shape.startswith("/v1/"):
            continue
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}:
            answer = registry.client.open(f"{path}?reason=retired" if method == "DELETE" else path, method=method)
            if answer.status_code == 401:
                found.add((method, shape))
    assert found == shapes


# operator tokens over HTTP


def test_an_admin_makes_lists_and_revokes_operator_tokens(registry: Driver, clock: Clock) -> None:
    made = registry.client.post("/v1/operator-tokens", json={"role": "operator", "ttl": 600}, headers=registry.operator)
    assert (made.status_code, made.headers["Cache-Control"]) == (201, "no-store")
    members = made.get_json()
    assert members["expires_at"] == int(clock.now) + 600
    headers = {"Authorization": f"Bearer {members.pop('token')}"}
    assert made.headers["Location"] == f"/v1/operator-tokens/{members['id']}"
    assert registry.client.post("/v1/join-tokens", json=JOIN, headers=headers).status_code == 201
    listed = registry.client.get("/v1/operator-tokens", headers=registry.operator).get_json()["operator_tokens"]
    assert members in listed
    assert {name for row in listed for name in row} == {"id", "role", "created_at", "expires_at", "revoked"}
    assert registry.client.delete(made.headers["Location"], headers=registry.operator).status_code == 204
    assert refusal(registry.client.post("/v1/join-tokens", json=JOIN, headers=headers)) == (401, "operator_refused")
    again = registry.client.delete(made.headers["Location"], headers=registry.operator)
    assert refusal(again) == (404, "operator_token_not_found")


def test_pages_of_operator_tokens(registry: Driver) -> None:
    for _ in range(4):
        registry.registry.operators.create(Role.VIEWER, 600)
    seen: list[str] = []
    after: str | None = ""
    while after is not None:
        path = f"/v1/operator-tokens?limit=2&after={after}"
        page = registry.client.get(path, headers=registry.operator).get_json()
        seen += [row["id"] for row in page["operator_tokens"]]
        after = page["next"]
    assert seen == sorted(tables_of(registry.store).operators)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"role": "root", "ttl": 600}, "invalid_parameter"),
        ({"role": "ADMIN", "ttl": 600}, "invalid_parameter"),
        ({"role": "viewer", "ttl": 0}, "invalid_parameter"),
        ({"role": "viewer", "ttl": Limits().operator_ttl + 1}, "invalid_parameter"),
        ({"role": "viewer"}, "malformed_body"),
        ({"ttl": 600}, "malformed_body"),
        ({"role": "viewer", "ttl": True}, "malformed_body"),
        ({"role": "viewer", "ttl": 600, "more": 1}, "malformed_body"),
    ],
)
def test_operator_tokens_that_cannot_be_made(registry: Driver, body: dict[str, Any], code: str) -> None:
    before = everything(registry)
    assert refusal(registry.client.post("/v1/operator-tokens", json=body, headers=registry.operator)) == (400, code)
    assert everything(registry) == before


def test_an_operator_makes_no_token_of_a_higher_role(registry: Driver) -> None:
    before = everything(registry)
    for own in Role:
        for role in Role:
            if role > own:
                with pytest.raises(RoleRefused):
                    registry.registry.operators.create(role, 600, BY, own)
    assert everything(registry) == before


# the audit trail


def test_every_act_of_an_operator_is_in_the_trail_with_who_did_it(registry: Driver, clock: Clock) -> None:
    client, headers = registry.client, of_role(registry, Role.OPERATOR)
    operator = max(registry.registry.operators.page()["operator_tokens"], key=lambda row: row["role"] == "operator")[
        "id"
    ]
    begun = trail(registry)[-1]["id"]
    waiting, rejected = key(), key()
    mine, other = registry.joined(key(), "shipping"), registry.joined(key(), "shipping")
    registry.rotate(mine, key(), "shipping")
    for each in (waiting, rejected):
        registry.post_key("billing", {"proof": registry.proof(each, "billing")})
    clock.forward(5)
    token_id = client.post("/v1/join-tokens", json=JOIN, headers=headers).get_json()["id"]
    client.delete(f"/v1/join-tokens/{token_id}", headers=headers)
    client.post(f"/v1/services/billing/keys/{waiting.public.thumbprint}/approve", headers=headers)
    client.delete(f"/v1/services/billing/keys/{rejected.public.thumbprint}?reason=rejected", headers=headers)
    size = len(entries_of(registry.store))
    for each, reason in ((mine, "retired"), (mine, "compromised"), (other, "compromised"), (other, "compromised")):
        client.delete(f"/v1/services/shipping/keys/{each.public.thumbprint}?reason={reason}", headers=headers)
    rows = [row for row in trail(registry, f"?after={begun}") if row["by"] == {"operator": operator}]
    kid = f"{DOMAIN}/shipping/{mine.public.thumbprint}"
    assert [(row["act"], row["subject"], row["seq"] and row["seq"] - size) for row in rows] == [
        ("join_token_created", token_id, -2),
        ("join_token_withdrawn", token_id, -1),
        ("key_admitted", f"{DOMAIN}/billing/{waiting.public.thumbprint}", 0),
        ("applicant_rejected", f"{DOMAIN}/billing/{rejected.public.thumbprint}", None),
        ("key_retired", kid, 1),
        ("key_revoked", kid, 2),  # and its successor by the next entry
        ("key_revoked", f"{DOMAIN}/shipping/{other.public.thumbprint}", 4),
    ]
    assert {row["time"] for row in rows} == {int(clock.now)}
    entries = {entry.seq: entry for entry in entries_of(registry.store)}
    for row in rows:
        if row["seq"] is not None:
            entry = entries[row["seq"]]
            assert (entry.type, dict(entry.by), entry.time) == (row["act"], row["by"], row["time"])


def test_what_is_done_on_the_database_itself_is_in_the_trail_too(registry: Driver) -> None:
    created, first_operator = trail(registry)
    assert (created["act"], created["subject"], created["seq"]) == ("registry_created", DOMAIN, 1)
    assert (first_operator["act"], first_operator["seq"]) == ("operator_created", 2)
    made = registry.registry.operators.create(Role.VIEWER, 600)[0]
    registry.registry.operators.revoke(made.id)
    acts = [(row["act"], row["subject"]) for row in trail(registry)[2:]]
    assert acts == [("operator_created", made.id), ("operator_revoked", made.id)]
    assert all(row["by"] == {"local": "cli"} for row in trail(registry))


def test_what_services_do_themselves_is_in_the_ledger_and_not_in_the_trail(registry: Driver) -> None:
    mine = registry.joined(key(), "billing")
    before = trail(registry)
    registry.rotate(mine, key(), "billing")
    registry.end(mine, "billing", "retired")
    registry.end(mine, "billing", "compromised")
    assert trail(registry) == before


def test_pages_of_the_trail(registry: Driver) -> None:
    for _ in range(5):
        registry.join_token("billing")
    seen: list[int] = []
    after: int | None = 0
    while after is not None:
        path = f"/v1/audit?limit=2&after={after}"
        page = registry.client.get(path, headers=registry.operator).get_json()
        assert len(page["audit"]) <= 2
        seen += [row["id"] for row in page["audit"]]
        after = page["next"]
    assert seen == [row["id"] for row in trail(registry)] == sorted(seen)
    assert len(seen) == 7


def test_an_act_that_failed_leaves_no_trace(registry: Driver) -> None:
    before = trail(registry)
    registry.client.delete("/v1/join-tokens/nobody", headers=registry.operator)
    registry.client.delete(f"/v1/services/billing/keys/{'A' * 43}?reason=retired", headers=registry.operator)
    registry.client.post(f"/v1/services/billing/keys/{'A' * 43}/approve", headers=registry.operator)
    assert trail(registry) == before
