"""Policies and the domain's settings over HTTP: who may write and read them, and that the registry signs what was laid
down. Each test runs on SQLite and on PostgreSQL."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, insert, text, update
from werkzeug.test import TestResponse

from peerseal.protocol.documents.domain import DomainDocument
from peerseal.protocol.documents.policy import PolicyDocument
from peerseal.protocol.encoding import canonical_json
from peerseal.protocol.issuer_trust import keys_from_jwks
from peerseal.protocol.keys import KeyPair, PublicKey
from peerseal.protocol.policies import CallPolicy, DomainSettings, UserIssuer
from registry.domain.errors import BadRequest
from registry.domain.policy import settings_from
from registry.domain.rebuild import rebuild
from registry.limits import Limits
from registry.services.access.operators import Role
from registry.services.recovery.verify import verify
from registry.storage.queries import audit
from registry.storage.tables import domain_settings, policies, services
from registry.web.routes.openapi import document
from tests.registry.driver import BY, DOMAIN, JSON, Clock, Driver, entries_of, fail_revisions, outcome, tables_of
from tests.support.certificates import Authority
from tests.support.issuer import Issuer
from tests.support.keys import key
from tests.support.weak_keys import with_close_primes

BILLING = "/v1/services/billing/policy"
SIGNED = f"{BILLING}.jwt"
CLIENT = f"{DOMAIN}/client"
ALLOW = {CLIENT: ["invoices:read"], "*": []}
DERIVED = {"minter": "edge", "from": "a", "to": ["b"]}
ISSUER = {"issuer": "https://idp.example.com", "audience": "edge", "jwks_url": None}


def put(registry: Driver, path: str, body: Any, seen: str | None = '"0"', **headers: str) -> TestResponse:
    data = body if isinstance(body, bytes) else canonical_json(body)
    named = {} if seen is None else {"If-Match": seen}
    return registry.client.put(path, data=data, headers={**registry.operator, **JSON, **named, **headers})


def signed_policy(registry: Driver, service: str = "billing", query: str = "") -> PolicyDocument:
    return registry.read(PolicyDocument, registry.got(f"/v1/services/{service}/policy.jwt{query}"))


def signed_domain(registry: Driver) -> DomainDocument:
    return registry.read(DomainDocument, registry.got("/v1/domain.jwt"))


def head(registry: Driver) -> int:
    return len(entries_of(registry.store))


def operator_of(registry: Driver, role: Role) -> dict[str, str]:
    return {"Authorization": f"Bearer {registry.registry.operators.create(role, 600)[1]}"}


def node_of(registry: Driver, **changes: Any) -> Driver:
    """Another node, which knows the same operator."""
    other = registry.node(**changes)
    other.operator = registry.operator
    return other


@pytest.fixture
def patient(registry: Driver) -> Iterator[Driver]:
    """A node that refuses one address as often as it takes."""
    node = node_of(registry, limits=Limits(refusals_per_minute=1_000_000))
    yield node
    node.close()


# what is written, and what comes back


def test_a_policy_is_laid_down_signed_entered_and_noted(registry: Driver, clock: Clock) -> None:
    registry.joined(key(), "billing")
    done = put(registry, BILLING, {"allow": {"client": ["invoices:read"], "*": []}})
    assert (done.status_code, done.headers["ETag"]) == (200, f'"{head(registry)}"')
    assert done.get_json() == {"allow": ALLOW, "restricted": False, "entry": head(registry)}
    shown = registry.client.get(BILLING, headers=registry.operator)
    assert (shown.get_json(), shown.headers["ETag"]) == (done.get_json(), done.headers["ETag"])
    assert shown.headers["Cache-Control"] == "no-store, no-transform"
    document = signed_policy(registry)
    assert document.policy == CallPolicy({CLIENT: frozenset(("invoices:read",)), "*": frozenset()})
    assert (document.subject, document.seq, document.head) == (f"{DOMAIN}/billing", head(registry), head(registry))
    entry = entries_of(registry.store)[-1]
    assert (entry.type, entry.service, entry.data) == (
        "policy_set",
        "billing",
        {"policy": {"allow": ALLOW, "restricted": False}},
    )
    with registry.store.look() as connection:
        last = audit.page(connection, 0, 1000)[-1]
    assert (last.act, last.subject, last.seq, last.by) == ("policy_set", "billing", entry.seq, entry.by)
    assert rebuild(entries_of(registry.store)) == tables_of(registry.store)
    assert registry.changes(entry.seq - 1).services == (f"{DOMAIN}/billing",)


def test_the_domain_s_settings_are_laid_down_likewise(registry: Driver) -> None:
    assert signed_domain(registry).settings == DomainSettings()
    assert signed_domain(registry).seq == 1  # the registry was created
    body = {"minters": ["edge"], "issuers": [ISSUER]}
    done = put(registry, "/v1/domain", body)
    assert (done.status_code, done.headers["ETag"]) == (200, f'"{head(registry)}"')
    document = signed_domain(registry)
    issuer = UserIssuer("https://idp.example.com", "edge")
    assert document.settings == DomainSettings(frozenset((f"{DOMAIN}/edge",)), (issuer,))
    assert (document.subject, document.seq) == (DOMAIN, head(registry))
    assert registry.client.get("/v1/domain", headers=registry.operator).headers["ETag"] == done.headers["ETag"]
    assert rebuild(entries_of(registry.store)) == tables_of(registry.store)
    assert registry.changes(document.seq - 1).services == (f"{DOMAIN}/registry",)


def test_where_an_issuer_answers_about_opaque_tokens_is_signed_and_in_the_ledger(registry: Driver) -> None:
    said = {"introspection_url": "https://idp.example.com/introspect", "introspection_signed": True}
    assert put(registry, "/v1/domain", {"minters": [], "issuers": [{**ISSUER, **said}]}).status_code == 200
    (issuer,) = signed_domain(registry).settings.issuers
    assert (issuer.introspection_url, issuer.introspection_signed, issuer.introspect_jwts) == (*said.values(), False)
    assert rebuild(entries_of(registry.store)) == tables_of(registry.store)
    for secret in ({"introspection_secret": "x"}, {"introspection_url": "http://idp.example.com/introspect"}):
        refused = put(registry, "/v1/domain", {"minters": [], "issuers": [{**ISSUER, **secret}]}, f'"{head(registry)}"')
        assert outcome(refused) == (400, "malformed_body")


def test_derived_scopes_keys_and_certificates_are_laid_down_signed_entered_and_rebuilt(
    registry: Driver, tmp_path: Path
) -> None:
    ca, keys = Authority.make(tmp_path, "ca").file.read_text(), Issuer("https://idp.example.com").jwks
    issuer = {**ISSUER, "jwks": keys, "ca": f"# of the company\n{ca}"}
    derived = {"minter": "edge", "from": "orders:write", "to": ["trigger_shipping", "trigger_invoicing"]}
    done = put(registry, "/v1/domain", {"minters": ["edge"], "issuers": [issuer], "derived_scopes": [derived]})
    assert done.status_code == 200, done.data
    held = {**derived, "minter": f"{DOMAIN}/edge", "to": ["trigger_invoicing", "trigger_shipping"]}
    assert (done.get_json()["derived_scopes"], done.get_json()["issuers"][0]["ca"]) == ([held], ca)
    assert jsonschema_rs.is_valid(document()["components"]["schemas"]["Domain"], done.get_json())
    settings = signed_domain(registry).settings
    assert settings.sources(f"{DOMAIN}/edge", "trigger_invoicing") == {"orders:write"}
    assert [*keys_from_jwks(settings.issuers[0].jwks or "")] == [keys["keys"][0]["kid"]]
    assert entries_of(registry.store)[-1].data == {"settings": settings.to_json()}
    assert rebuild(entries_of(registry.store)) == tables_of(registry.store)
    assert verify(registry.store, registry.settings.limits, clock=registry.clock).whole
    again = put(registry, "/v1/domain", done.get_json(), done.headers["ETag"])
    assert (again.get_json(), again.headers["ETag"]) == (done.get_json(), done.headers["ETag"]), "no further entry"


def test_a_derivation_that_was_written_into_the_database_derives_nothing_and_is_named(registry: Driver) -> None:
    body = {"minters": ["edge"], "issuers": [], "derived_scopes": [DERIVED]}
    assert put(registry, "/v1/domain", body).status_code == 200
    held = entries_of(registry.store)[-1].data["settings"]
    altered = {**held, "derived_scopes": [{"minter": f"{DOMAIN}/edge", "from": "a", "to": ["admin", "b"]}]}
    with registry.store.write() as connection:
        connection.execute(update(domain_settings).values(body=canonical_json(altered).decode()))
        connection.execute(update(services).where(services.c.name == "registry").values(seq=head(registry) + 1))
    assert outcome(registry.client.get("/v1/domain.jwt")) == (503, "ledger_contradicted")
    found = verify(registry.store, registry.settings.limits, clock=registry.clock).differences
    assert ("domain_settings", "body") in [(difference.table, difference.column) for difference in found]


def test_a_service_without_a_policy_has_a_signed_answer_that_says_so(registry: Driver) -> None:
    """A mirror that answers 404 hides a policy; there is no such answer."""
    unknown = signed_policy(registry, "nobody")
    assert (unknown.policy, unknown.seq, unknown.head) == (None, 0, head(registry))
    registry.joined(key(), "billing")
    assert (signed_policy(registry).policy, signed_policy(registry).seq) == (None, head(registry))
    shown = registry.client.get(BILLING, headers=registry.operator)
    assert (shown.get_json(), shown.headers["ETag"]) == ({"allow": None, "entry": 0}, '"0"')
    assert outcome(registry.client.get("/v1/services/Not-A-Name/policy.jwt")) == (400, "invalid_name")


def test_a_removed_policy_may_be_set_again(registry: Driver) -> None:
    tag = put(registry, BILLING, {"allow": ALLOW}).headers["ETag"]
    removed = put(registry, BILLING, {"allow": None}, tag)
    assert (removed.status_code, removed.headers["ETag"], removed.get_json()) == (
        200,
        '"0"',
        {"allow": None, "entry": 0},
    )
    assert signed_policy(registry).policy is None
    assert signed_policy(registry).seq == head(registry)
    assert put(registry, BILLING, {"allow": {}}).status_code == 200
    assert signed_policy(registry).policy == CallPolicy({})
    assert rebuild(entries_of(registry.store)) == tables_of(registry.store)


def test_a_policy_names_services_of_foreign_domains_by_their_ids(registry: Driver) -> None:
    allow = {"partner.example/client": ["invoices:read"], "client": ["invoices:write"], "*": []}
    assert put(registry, BILLING, {"allow": allow}).status_code == 200
    policy = signed_policy(registry).policy
    assert policy is not None
    assert policy.allow == {
        "partner.example/client": {"invoices:read"},
        CLIENT: {"invoices:write"},
        "*": frozenset(),
    }
    graph = registry.registry.trust_graphs.current().graph
    assert [call.caller for call in graph.calls_of("billing")] == ["*", "client", "partner.example/client"]
    assert [call.callee for call in graph.calls_by("partner.example/client")] == ["billing"]


def test_a_policy_that_names_a_domain_which_is_not_believed_is_answered_with_a_warning(registry: Driver) -> None:
    registry.joined(key(), "billing")
    answer = put(registry, BILLING, {"allow": {"partner.example/client": [], "client": []}})
    assert "none of their services may call: partner.example" in answer.get_json()["warning"]
    root = "BH-WksFyk6HqY8cwiW_Mi5KLfDPApQ8urKiMMPE0SOQ"
    partner = {"domain": "partner.example", "urls": ["https://r.partner.example"], "root": root}
    assert put(registry, "/v1/federation", {"domains": [partner]}).status_code == 200
    assert (
        "warning"
        not in put(
            registry, BILLING, {"allow": ALLOW | {"partner.example/client": []}}, answer.headers["ETag"]
        ).get_json()
    )


def test_anyone_never_means_a_service_of_a_foreign_domain(registry: Driver) -> None:
    put(registry, BILLING, {"allow": {"*": ["read"], "partner.example/client": []}})
    put(registry, "/v1/services/shop/policy", {"allow": {"*": ["read"]}})
    graph = registry.registry.trust_graphs.current().graph
    assert [call.callee for call in graph.calls_by("partner.example/client")] == ["billing"]
    reached = graph.reached_from("partner.example/client").nearest(9)
    assert [(one.service, one.path) for one in reached] == [
        ("billing", ("partner.example/client", "billing")),
        ("shop", ("partner.example/client", "billing", "*", "shop")),
    ]


def test_what_holds_already_makes_no_entry(registry: Driver) -> None:
    size = head(registry)
    assert put(registry, BILLING, {"allow": None}).headers["ETag"] == '"0"'
    assert head(registry) == size
    tag = put(registry, BILLING, {"allow": ALLOW}).headers["ETag"]
    assert put(registry, BILLING, {"allow": {"client": ["invoices:read"], "*": []}}, tag).headers["ETag"] == tag
    settings_tag = put(registry, "/v1/domain", {"minters": [], "issuers": []}).headers["ETag"]
    assert put(registry, "/v1/domain", {"minters": [], "issuers": []}, settings_tag).headers["ETag"] == settings_tag
    assert head(registry) == size + 2


# right at once, and from memory


def test_an_answer_is_kept_and_right_the_moment_a_change_commits_on_any_node(registry: Driver, clock: Clock) -> None:
    other = node_of(registry)
    before = registry.client.get(SIGNED)
    assert before.headers["Cache-Control"].startswith("public, max-age=")
    assert registry.client.get(SIGNED).data == before.data
    unchanged = registry.client.get(SIGNED, headers={"If-None-Match": before.headers["ETag"]})
    assert (unchanged.status_code, unchanged.data) == (304, b"")
    assert put(other, BILLING, {"allow": ALLOW}).status_code == 200
    assert signed_policy(registry).policy is not None
    settled = registry.client.get("/v1/domain.jwt").data
    assert put(other, "/v1/domain", {"minters": ["edge"], "issuers": []}).status_code == 200
    assert signed_domain(registry).settings.minters
    assert registry.client.get("/v1/domain.jwt").data != settled
    signed_at = signed_policy(registry).issued_at
    clock.forward(registry.settings.limits.signing_period)
    assert signed_policy(registry).issued_at > signed_at
    other.close()


def test_an_entry_that_is_not_there_yet_is_no_answer(registry: Driver) -> None:
    size = head(registry)
    assert signed_policy(registry, query=f"?seq={size}").head == size
    for path in (SIGNED, "/v1/domain.jwt"):
        assert outcome(registry.client.get(f"{path}?seq={size + 1}")) == (503, "behind")
        assert outcome(registry.client.get(f"{path}?seq=-1")) == (400, "invalid_parameter")


def test_what_is_in_memory_is_served_while_the_database_is_down(
    registry: Driver, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(registry, BILLING, {"allow": ALLOW})
    before = signed_policy(registry)

    fail_revisions(monkeypatch, "service")
    clock.forward(3600)
    assert signed_policy(registry) == before
    assert outcome(registry.client.get("/v1/domain.jwt")) == (503, "storage_unavailable")


# who may write, and what


def test_only_operators_write_and_only_admins_the_domain_s_settings(registry: Driver) -> None:
    mine = registry.joined(key(), "billing")
    viewer, operator = operator_of(registry, Role.VIEWER), operator_of(registry, Role.OPERATOR)
    settled = {"minters": [], "issuers": []}
    size = head(registry)
    for path, body in ((BILLING, {"allow": ALLOW}), ("/v1/domain", settled)):
        data = canonical_json(body)
        headers = {**JSON, "If-Match": '"0"'}
        assert outcome(registry.client.put(path, data=data, headers=headers)) == (401, "missing_token")
        forged = {"Authorization": f"Bearer pso1.{'a' * 16}.x"}
        assert outcome(registry.client.put(path, data=data, headers={**headers, **forged})) == (401, "operator_refused")
        token = registry.signed(mine, "billing", "PUT", path, data, {"content-type": "application/json"})
        own = registry.client.put(path, data=data, headers={**headers, **token})
        assert outcome(own) == (403, "caller_not_allowed")
        again = registry.client.put(path, data=data, headers={**headers, **token})
        assert outcome(again) == (401, "replayed")
        assert outcome(put(registry, path, body, **viewer)) == (403, "role_insufficient")
        assert outcome(registry.client.get(path)) == (401, "missing_token")
        assert registry.client.get(path, headers=viewer).status_code == 200
    assert head(registry) == size
    assert outcome(put(registry, "/v1/domain", settled, **operator)) == (403, "role_insufficient")
    assert put(registry, BILLING, {"allow": ALLOW}, **operator).status_code == 200


def test_who_writes_names_what_is_replaced(registry: Driver) -> None:
    settled = {"minters": ["edge"], "issuers": []}
    for path, body, other in (
        (BILLING, {"allow": ALLOW}, {"allow": None}),
        ("/v1/domain", settled, {"minters": [], "issuers": []}),
    ):
        assert outcome(put(registry, path, body, None)) == (428, "precondition_required")
        for wrong in ('"1"', "*", 'W/"1"', '"0-x"', "0", '"x"', '"00"', '"-1"', '"99999999999999999999"'):
            assert outcome(put(registry, path, body, wrong)) == (412, "precondition_failed"), wrong
        tag = put(registry, path, body, 'W/"0"').headers["ETag"]
        assert outcome(put(registry, path, body, '"0"')) == (412, "precondition_failed")
        assert put(registry, path, other, f'"0", {tag}').status_code == 200


@pytest.mark.parametrize(
    "form", ['W/"{}"', '"{}-gzip"', 'W/"{}-gzip"', '"{}--gzip"', '"{};br"', '"7", W/"{}"', ' "{}" ']
)
def test_an_etag_that_a_proxy_changed_still_names_its_entry(registry: Driver, form: str) -> None:
    """nginx makes it weak when it compresses an answer; Apache and others append the coding to it."""
    tag = put(registry, BILLING, {"allow": ALLOW}).headers["ETag"].strip('"')
    assert put(registry, BILLING, {"allow": None}, form.format(tag)).status_code == 200
    document = registry.client.get(f"{BILLING}.jwt")
    known = form.format(document.headers["ETag"].strip('"'))
    assert registry.client.get(f"{BILLING}.jwt", headers={"If-None-Match": known}).status_code == 304


@pytest.mark.parametrize("form", ['x"{}"', '"{}"x', '"{}""7"', '"{}" "7"', "'{}'", 'w/"{}"', '"{}", ?', '"{}'])
def test_a_header_that_is_no_list_of_etags_names_nothing(registry: Driver, form: str) -> None:
    assert outcome(put(registry, BILLING, {"allow": ALLOW}, form.format(0))) == (412, "precondition_failed")
    document = registry.client.get(f"{BILLING}.jwt")
    known = form.format(document.headers["ETag"].strip('"'))
    assert registry.client.get(f"{BILLING}.jwt", headers={"If-None-Match": known}).status_code == 200


def test_a_policy_for_a_service_without_keys_is_answered_with_a_warning(registry: Driver) -> None:
    answer = put(registry, BILLING, {"allow": ALLOW})
    assert "no key of this service" in answer.get_json()["warning"]
    again = put(registry, BILLING, answer.get_json(), answer.headers["ETag"])
    assert (again.status_code, again.headers["ETag"]) == (200, answer.headers["ETag"]), "it can be sent back as it came"
    registry.joined(key(), "billing")
    assert "warning" not in put(registry, BILLING, {"allow": None}, answer.headers["ETag"]).get_json()
    assert "warning" not in registry.client.get(BILLING, headers=registry.operator).get_json()


@pytest.mark.parametrize("warning", [None, 1, [], {}])
def test_a_warning_that_is_no_text_is_refused(registry: Driver, warning: Any) -> None:
    assert outcome(put(registry, BILLING, {"allow": ALLOW, "warning": warning})) == (400, "malformed_body")


def test_an_answer_can_be_sent_back_as_it_came(registry: Driver) -> None:
    for path in (BILLING, "/v1/domain"):
        answer = registry.client.get(path, headers=registry.operator)
        assert put(registry, path, answer.get_json(), answer.headers["ETag"]).status_code == 200
        wrong = {**answer.get_json(), "entry": "1"}
        assert outcome(put(registry, path, wrong)) == (400, "malformed_body")


@pytest.mark.parametrize("path", [BILLING, "/v1/domain"])
def test_of_operators_at_once_exactly_one_wins(registry: Driver, path: str) -> None:
    nodes = [registry, node_of(registry)]
    gate = threading.Barrier(8)

    def write(number: int) -> int:
        name = f"caller-{number}"
        body = {"allow": {name: []}} if path == BILLING else {"minters": [name], "issuers": []}
        gate.wait()
        return put(nodes[number % 2], path, body).status_code

    size = head(registry)
    with ThreadPoolExecutor(8) as pool:
        assert Counter(pool.map(write, range(8))) == {200: 1, 412: 7}
    assert head(registry) == size + 1
    assert rebuild(entries_of(registry.store)) == tables_of(registry.store)
    nodes[1].close()


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "malformed_body"),
        ({"allow": None, "restricted": True}, "malformed_body"),
        ({"allow": []}, "malformed_body"),
        ({"allow": {}, "restricted": 1}, "malformed_body"),
        ({"allow": {}, "more": 1}, "malformed_body"),
        ({"allow": {"client": "read"}}, "malformed_body"),
        ({"allow": {"client": ["read", "read"]}}, "malformed_body"),
        ({"allow": {"client": ["two words"]}}, "malformed_body"),
        ({"allow": {"client": [""]}}, "malformed_body"),
        ({"allow": {"client": [1]}}, "malformed_body"),
        ({"allow": {"Client": []}}, "malformed_body"),
        ({"allow": {"": []}}, "malformed_body"),
        ({"allow": {"client": [], CLIENT: []}}, "malformed_body"),
        ({"allow": {"other.internal/": []}}, "malformed_body"),
        ({"allow": {f"caller-{number}": [] for number in range(1500)}}, "setting_too_large"),
        (b"[]", "malformed_body"),
        (b'{"allow": {}, "allow": {}}', "malformed_body"),
        (b'{"allow": NaN}', "malformed_body"),
    ],
)
def test_a_policy_that_is_none_is_refused(registry: Driver, body: Any, code: str) -> None:
    size = head(registry)
    assert outcome(put(registry, BILLING, body)) == (400, code)
    assert head(registry) == size


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"minters": []}, "malformed_body"),
        ({"minters": [], "issuers": [], "more": 1}, "malformed_body"),
        ({"minters": [1], "issuers": []}, "malformed_body"),
        ({"minters": ["edge", f"{DOMAIN}/edge"], "issuers": []}, "malformed_body"),
        ({"minters": ["other.internal/edge"], "issuers": []}, "foreign_service"),
        ({"minters": [], "issuers": [{**ISSUER, "issuer": "http://idp.example.com"}]}, "malformed_body"),
        ({"minters": [], "issuers": [ISSUER, ISSUER]}, "malformed_body"),
        ({"minters": [], "issuers": [{**ISSUER, "issuer": "https://idp.example.com#"}]}, "malformed_body"),
        ({"minters": [], "issuers": [{**ISSUER, "jwks_url": "https://idp.example.com/keys#"}]}, "malformed_body"),
        ({"minters": [], "issuers": [], "derived_scopes": {}}, "malformed_body"),
        (
            {"minters": [], "issuers": [], "derived_scopes": [DERIVED | {"minter": "other.internal/x"}]},
            "foreign_service",
        ),
    ],
)
def test_settings_that_are_none_are_refused(registry: Driver, body: Any, code: str) -> None:
    assert outcome(put(registry, "/v1/domain", body)) == (400, code)


WEAK = PublicKey.of(rsa.RSAPublicNumbers(65537, with_close_primes()).public_key())


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"derived_scopes": [DERIVED]}, f"derived_scopes[0]: minter is {DOMAIN}/edge, expected a service of minters"),
        (
            {"minters": ["edge"], "derived_scopes": [DERIVED, {**DERIVED, "from": "b", "to": ["c"]}]},
            "b is derived (to) and a source (from)",
        ),
        (
            {"minters": ["edge"], "derived_scopes": [{**DERIVED, "to": []}]},
            "derived_scopes[0]: to has 0 scopes, expected",
        ),
        ({"minters": ["edge"], "derived_scopes": [{**DERIVED, "minter": 7}]}, "a service name is int, it must be text"),
        ({"minters": ["registry"], "derived_scopes": ["a"]}, "derived_scopes[0]: expected an object with exactly"),
        ({"issuers": [{**ISSUER, "issuer": "http://idp.example.com"}]}, "'http://idp.example.com', expected https"),
        (
            {"issuers": [{**ISSUER, "issuer": "https://idp:99999"}]},
            "issuers[0]: 'https://idp:99999' is no URL",
        ),
        ({"issuers": [{**ISSUER, "issuer": "https://idp:0"}]}, "is no URL of a server"),
        ({"issuers": [{**ISSUER, "issuer": "https://a..b"}]}, "is no URL of a server"),
        ({"issuers": [{**ISSUER, "issuer": "https://login.example.com[::1]"}]}, "https://login.example.com[::1]"),
        ({"issuers": [{**ISSUER, "jwks_url": "https://*.example.com/keys"}]}, "is no URL of a server"),
        ({"issuers": [{**ISSUER, "issuer": "https://a\\b"}]}, "is no URL of a server"),
        ({"issuers": [{**ISSUER, "jwks_url": "https://idp/\x00"}]}, "is no URL of a server"),
        ({"issuers": [{**ISSUER, "introspection_url": f"https://{'a' * 64}/"}]}, "is no URL of a server"),
        ({"issuers": [{**ISSUER, "jwks": []}]}, 'issuers[0]: jwks: expected {"keys": [JWK…]}'),
        (
            {"issuers": [ISSUER, {**ISSUER, "issuer": "https://b", "jwks": {"keys": [{**WEAK.jwk, "kid": "w"}]}}]},
            "issuers[1]: jwks: kid 'w' is weak (key_close_primes), expected a sound key",
        ),
        ({"issuers": [{**ISSUER, "ca": "company.pem"}]}, "issuers[0]: ca: expected certificates as PEM"),
    ],
)
def test_a_mistake_in_the_settings_is_told_with_member_value_and_expectation(
    registry: Driver, body: Any, says: str
) -> None:
    before = head(registry)
    refused = put(registry, "/v1/domain", {"minters": [], "issuers": [], **body})
    assert outcome(refused) == (400, "malformed_body")
    with pytest.raises(BadRequest) as told:
        settings_from({"minters": [], "issuers": [], **body}, DOMAIN)
    assert says in str(told.value)
    assert head(registry) == before


def test_the_registry_itself_has_no_policy(registry: Driver) -> None:
    """What services may do at the registry is in its code, and not for an operator to narrow by mistake."""
    assert outcome(put(registry, "/v1/services/registry/policy", {"allow": {}})) == (400, "invalid_name")
    assert signed_policy(registry, "registry").policy is None


def test_a_body_of_another_kind_is_refused(registry: Driver) -> None:
    other = put(registry, BILLING, {"allow": {}}, **{"Content-Type": "text/plain"})
    assert outcome(other) == (415, "unsupported_media_type")
    assert outcome(put(registry, BILLING, b" " * (registry.settings.limits.body + 1))) == (413, "body_too_large")


TEXTS = st.text(st.characters(exclude_categories=()), max_size=120) | st.sampled_from(
    ["\x00", "\ud800", "*", "client", "' OR 1=1 --", "a\r\nSet-Cookie: x", "{}", "é", "𐀀", "a" * 101, f"{DOMAIN}/x"]
)
NEVER_5XX = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def raw(value: Any) -> bytes:
    return json.dumps(value).encode("ascii")  # unpaired surrogates too, as escapes


@NEVER_5XX
@given(TEXTS, TEXTS, TEXTS)
def test_no_text_in_a_policy_makes_the_registry_fail(patient: Driver, name: str, caller: str, scope: str) -> None:
    body = raw({"allow": {caller: [scope]}, name: True})
    assert put(patient, BILLING, body).status_code in (200, 400, 412)
    assert put(patient, BILLING, raw({"allow": {caller: [scope], "x": []}})).status_code in (200, 400, 412)
    assert patient.client.get(SIGNED).status_code == 200


@NEVER_5XX
@given(TEXTS, TEXTS, TEXTS, TEXTS)
def test_no_text_in_the_settings_makes_the_registry_fail(
    patient: Driver, minter: str, issuer: str, audience: str, jwks_url: str
) -> None:
    one = {"issuer": "https://idp.example.com", "audience": audience, "jwks_url": None}
    for body in (
        {"minters": [minter], "issuers": []},
        {"minters": [], "issuers": [one]},
        {"minters": [], "issuers": [{**one, "issuer": issuer}]},
        {"minters": [], "issuers": [{**one, "jwks_url": jwks_url}]},
    ):
        tag = patient.client.get("/v1/domain", headers=patient.operator).headers["ETag"]
        assert put(patient, "/v1/domain", raw(body), tag).status_code in (200, 400)
    assert patient.client.get("/v1/domain.jwt").status_code == 200


HEADERS = st.text(st.characters(codec="latin-1", exclude_characters="\r\n"), max_size=60)


@NEVER_5XX
@given(HEADERS, TEXTS)
def test_no_precondition_and_no_name_makes_the_registry_fail(patient: Driver, seen: str, name: str) -> None:
    assert put(patient, BILLING, {"allow": {}}, seen).status_code in (200, 412, 428)
    for method in ("GET", "PUT"):
        path = f"/v1/services/{name.encode('utf-8', 'replace').decode()}/policy"
        response = patient.client.open(path, method=method, headers={**patient.operator, "If-Match": '"0"', **JSON})
        assert response.status_code < 500


# restricted policies


@pytest.fixture
def restricted(registry: Driver) -> dict[str, KeyPair]:
    """A restricted policy of billing that names client; the keys of the services."""
    keys = {name: registry.joined(key(), name) for name in ("billing", "client", "stranger")}
    body = {"allow": {"client": ["invoices:read"]}, "restricted": True}
    assert put(registry, BILLING, body).status_code == 200
    return keys


def test_a_restricted_policy_is_told_to_those_it_concerns(registry: Driver, restricted: dict[str, KeyPair]) -> None:
    def asked(headers: dict[str, str] | None = None) -> TestResponse:
        return registry.client.get(SIGNED, headers=headers)

    assert outcome(asked()) == (401, "missing_token")
    assert outcome(asked({"Authorization": "Bearer nonsense"})) == (401, "malformed_token")
    assert outcome(asked({"Authorization": f"Bearer pso1.{'a' * 16}.x"})) == (401, "operator_refused")
    for name, keys in restricted.items():
        own = registry.signed(keys, name, "GET", SIGNED)
        answer = asked(own)
        if name == "stranger":
            assert outcome(answer) == (403, "caller_not_allowed")
            continue
        assert answer.status_code == 200
        assert answer.headers["Cache-Control"] == "private, no-store, no-transform"
        assert registry.read(PolicyDocument, answer.text).policy == CallPolicy(
            {CLIENT: frozenset(("invoices:read",))}, restricted=True
        )
        assert outcome(asked(own)) == (401, "replayed")
        for_another = registry.signed(keys, name, "GET", "/v1/services/client/policy.jwt")
        assert outcome(asked(for_another)) == (401, "wrong_binding")
    assert asked(operator_of(registry, Role.VIEWER)).status_code == 200


def test_a_restricted_policy_for_anyone_is_told_to_every_service(registry: Driver) -> None:
    stranger = registry.joined(key(), "stranger")
    put(registry, BILLING, {"allow": {"*": []}, "restricted": True})
    assert registry.client.get(SIGNED, headers=registry.signed(stranger, "stranger", "GET", SIGNED)).status_code == 200


def test_the_ledger_does_not_reveal_a_restricted_policy(registry: Driver, restricted: dict[str, KeyPair]) -> None:
    """Entries are public, so the entry commits to it by a salted digest; the same policy twice looks different."""
    entry = entries_of(registry.store)[-1]
    assert entry.data == {"policy": {"restricted": True}}
    assert b"invoices" not in registry.client.get(f"/ledger/tile/entries/000.p/{head(registry)}").data
    tag = put(registry, BILLING, {"allow": None}, f'"{entry.seq}"').headers["ETag"]
    assert put(registry, BILLING, {"allow": {"client": ["invoices:read"]}, "restricted": True}, tag).status_code == 200
    assert entries_of(registry.store)[-1].evidence not in (None, entry.evidence)
    assert rebuild(entries_of(registry.store)) == tables_of(registry.store)
    assert verify(registry.store, registry.settings.limits, clock=registry.clock).whole


# a database that was edited


def edits() -> dict[str, Callable[[int], list[Any]]]:
    """By name, what an attacker with access to the database does to a policy that entry ``seq`` set."""
    wide = '{"allow":{"*":["invoices:read"]},"restricted":false}'
    narrow = '{"allow":{},"restricted":false}'
    of_billing = policies.c.service == "billing"
    own = "UPDATE entries SET body = :body WHERE seq = :seq"
    return {
        "altered": lambda seq: [update(policies).where(of_billing).values(body=wide)],
        "removed": lambda seq: [delete(policies)],
        "an older one brought back": lambda seq: [update(policies).where(of_billing).values(body=narrow, seq=seq - 1)],
        "said of another entry": lambda seq: [update(policies).where(of_billing).values(seq=seq + 1)],
        "no JSON": lambda seq: [update(policies).where(of_billing).values(body="{")],
        "with an entry that is none": lambda seq: [text(own).bindparams(body=b"{}", seq=seq)],
    }


@pytest.mark.parametrize("edit", edits())
def test_a_policy_that_was_edited_in_the_database_gets_no_signature(registry: Driver, edit: str) -> None:
    put(registry, BILLING, {"allow": {}})
    tag = put(registry, BILLING, {"allow": {"client": []}}, f'"{head(registry)}"').headers["ETag"]
    seq = int(tag.strip('"'))
    with registry.store.write() as connection:
        for statement in edits()[edit](seq):
            connection.execute(statement)
        connection.execute(update(services).where(services.c.name == "billing").values(seq=seq + 1))
    assert outcome(registry.client.get(SIGNED)) == (503, "ledger_contradicted")
    assert outcome(registry.client.get(BILLING, headers=registry.operator)) == (503, "ledger_contradicted")
    assert not verify(registry.store, registry.settings.limits, clock=registry.clock).whole
    if "entry" not in edit or "another" in edit:  # then an operator puts it right
        assert put(registry, BILLING, {"allow": {"client": []}}, tag).status_code == 200
        assert signed_policy(registry).policy == CallPolicy({CLIENT: frozenset()})


def test_a_policy_and_its_entry_edited_alike_get_no_signature_either(registry: Driver) -> None:
    """The tree that checkpoints were signed over holds another entry at that place."""
    put(registry, BILLING, {"allow": {"client": ["read"]}})
    entry = entries_of(registry.store)[-1]
    with registry.store.write() as connection:
        body = entry.encode().replace(b'["read"]', b'["rule"]')
        statement = text("UPDATE entries SET body = :body WHERE seq = :seq")
        connection.execute(statement.bindparams(body=body, seq=entry.seq))
        wide = f'{{"allow":{{"{CLIENT}":["rule"]}},"restricted":false}}'
        connection.execute(update(policies).values(body=wide))
    assert outcome(registry.client.get(SIGNED)) == (503, "ledger_contradicted")


def test_an_altered_restricted_policy_gets_no_signature(registry: Driver, restricted: dict[str, KeyPair]) -> None:
    seq = head(registry)
    with registry.store.write() as connection:
        statement = text("UPDATE entries SET evidence = :evidence WHERE seq = :seq")
        evidence = canonical_json({"policy": '{"allow":{},"restricted":true}', "salt": "x"})
        connection.execute(statement.bindparams(evidence=evidence, seq=seq))
    assert outcome(registry.client.get(SIGNED, headers=registry.operator)) == (503, "ledger_contradicted")
    with registry.store.write() as connection:
        connection.execute(update(policies).values(body='{"allow":{"*":[]},"restricted":false}'))
    assert outcome(registry.client.get(SIGNED, headers=registry.operator)) == (503, "ledger_contradicted")
    named = verify(registry.store, registry.settings.limits, clock=registry.clock).differences
    assert {difference.table for difference in named} == {"entries", "policies"}


def test_settings_that_were_edited_in_the_database_get_no_signature(registry: Driver) -> None:
    with registry.store.write() as connection:
        connection.execute(insert(domain_settings).values(id=1, seq=1, body='{"issuers":[],"minters":[]}'))
    assert outcome(registry.client.get("/v1/domain.jwt")) == (503, "ledger_contradicted")
    assert put(registry, "/v1/domain", {"minters": ["edge"], "issuers": []}).status_code == 200
    assert signed_domain(registry).settings.minters == {f"{DOMAIN}/edge"}
    with registry.store.write() as connection:
        connection.execute(delete(domain_settings))
        connection.execute(update(services).where(services.c.name == "registry").values(seq=head(registry) + 1))
    assert outcome(registry.client.get("/v1/domain.jwt")) == (503, "ledger_contradicted")


def test_an_operator_s_own_database_writes_like_any_other(registry: Driver) -> None:
    done = registry.registry.policies.set_policy("billing", {"allow": {"client": []}}, {0}, BY)
    assert done.seq == head(registry)
    assert registry.registry.policies.policy("billing") == done
