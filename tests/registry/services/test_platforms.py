"""Admission by a platform's token: the operator's rules, and what comes of a token that does not fit them."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from werkzeug.test import TestResponse

from peerseal.errors import ConfigurationError
from peerseal.protocol import jose
from peerseal.protocol.encoding import b64url, canonical_json
from peerseal.protocol.keys import KeyPair
from registry.services.keys.rights import read_rules, subject_hash
from tests.registry.driver import DOMAIN, Clock, Driver
from tests.support.issuer import DISCOVERY, ENDLESS, JWKS, Issuer, public_jwk, running_issuer
from tests.support.waiting import until
from tests.support.weak_keys import pair, public, roca_prime, with_roca, with_sparse_primes

AUDIENCE = f"{DOMAIN}/registry"
BILLING = "system:serviceaccount:shop:billing"
CI = "repo:acme/billing:ref:refs/heads/main"
ORDERS = "system:serviceaccount:shop:orders"
RULES = {BILLING: "billing", CI: "billing", ORDERS: "orders"}


@pytest.fixture(scope="module")
def new_key() -> KeyPair:
    """A key that is registered nowhere yet."""
    return KeyPair.generate("ES256")


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with running_issuer(alg="ES256") as issuer:
        yield issuer


@pytest.fixture
def registry(sqlite_url: str, tmp_path: Path, clock: Clock, issuer: Issuer) -> Iterator[Driver]:
    """A registry that believes the issuer."""
    file = tmp_path / "oidc.json"
    file.write_text(json.dumps([{"issuer": issuer.url, "services": RULES}]))
    driver = Driver(sqlite_url, tmp_path / "home", clock, oidc_file=file)
    yield driver
    driver.close()


def register(registry: Driver, key: KeyPair, token: Any, service: str = "billing", **more: Any) -> TestResponse:
    return registry.post_key(service, {"proof": registry.proof(key, service), "oidc": token, **more})


def code(answer: TestResponse) -> tuple[int, str]:
    return answer.status_code, json.loads(answer.text)["code"]


# every failure of the token is one answer


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "https://kubernetes.default.svc"},
        {"aud": "staging.internal/registry"},
        {"aud": f"{DOMAIN}/registry/"},
        {"aud": None},
        {"sub": "system:serviceaccount:shop:billing2"},
        {"sub": "system:serviceaccount:shop:billin"},
        {"sub": "system:serviceaccount:shop:Billing"},
        {"sub": "system:serviceaccount:shop:billing "},
        {"sub": "repo:acme/billing:ref:refs/heads/main2"},
        {"sub": "repo:acme/billing:*"},
        {"sub": ORDERS},
        {"sub": ""},
        {"sub": None},
        {"iss": "https://token.ci.example"},
        {"iss": "http://127.0.0.1:1"},
        {"exp": 1_000_000_000, "iat": 999_999_000, "nbf": None},
        {"iat": 4_000_000_000, "exp": 4_000_000_600, "nbf": None},
        {"nbf": 4_000_000_000},
        {"exp": 4_000_000_000},
        {"exp": None},
        {"iat": 1.5},
    ],
    ids=str,
)
def test_claims_that_do_not_fit_are_refused_alike(
    registry: Driver, issuer: Issuer, clock: Clock, new_key: KeyPair, changes: dict[str, Any]
) -> None:
    token = issuer.token(BILLING, AUDIENCE, now=clock.now, **changes)
    assert code(register(registry, new_key, token)) == (401, "oidc_refused")


@pytest.mark.parametrize("text", ["", "a.b.c", "x" * 17_000, "é", "eyJhbGciOiJub25lIn0.e30."])
def test_what_is_no_token_is_refused_alike(registry: Driver, new_key: KeyPair, text: str) -> None:
    answer = register(registry, new_key, text)
    assert code(answer) == (401, "oidc_refused")
    assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_alg_none_and_a_mac_with_the_public_key_are_refused_alike(
    registry: Driver, issuer: Issuer, clock: Clock, new_key: KeyPair
) -> None:
    claims = issuer.claims(BILLING, AUDIENCE, now=clock.now)
    unsigned = jwt.encode(claims, None, "none", headers={"kid": issuer.kid})
    public = public_jwk(issuer.keys[issuer.kid], issuer.kid)["x"]
    mac = jwt.encode(claims, public, "HS256", headers={"kid": issuer.kid})
    for token in (unsigned, mac):
        assert code(register(registry, new_key, token)) == (401, "oidc_refused")
    assert issuer.fetched == {}


def test_another_issuers_signature_is_refused_alike(
    registry: Driver, issuer: Issuer, clock: Clock, new_key: KeyPair
) -> None:
    other = Issuer(issuer.url, alg="ES256")
    forged = other.sign(other.claims(BILLING, AUDIENCE, now=clock.now), headers={"kid": issuer.kid})
    assert code(register(registry, new_key, forged)) == (401, "oidc_refused")


def test_a_kid_that_is_unknown_missing_or_two_keys_is_refused_alike(
    registry: Driver, issuer: Issuer, clock: Clock, new_key: KeyPair
) -> None:
    claims = issuer.claims(BILLING, AUDIENCE, now=clock.now)
    nameless = jwt.encode(claims, issuer.keys[issuer.kid], "ES256")
    assert code(register(registry, new_key, nameless)) == (401, "oidc_refused")
    unknown = issuer.sign(claims, headers={"kid": "nobody's"})
    assert code(register(registry, new_key, unknown)) == (401, "oidc_refused")
    clock.forward(300)  # the set is read again
    twin = public_jwk(Issuer(issuer.url, alg="ES256").keys.popitem()[1], issuer.kid)
    issuer.answers[JWKS] = {"keys": [*issuer.jwks["keys"], twin]}
    assert code(register(registry, new_key, issuer.sign(claims))) == (401, "oidc_refused")


def test_a_subject_of_one_service_registers_for_no_other(
    registry: Driver, issuer: Issuer, clock: Clock, new_key: KeyPair
) -> None:
    token = issuer.token(BILLING, AUDIENCE, now=clock.now)
    for service in ("orders", "unheard-of", "billing.more", "registry"):
        answer = register(registry, new_key, token, service)
        assert code(answer) == (401, "oidc_refused")
    assert register(registry, new_key, token).status_code == 201


def test_a_registry_without_rules_believes_no_platform(
    sqlite_url: str, tmp_path: Path, clock: Clock, issuer: Issuer, new_key: KeyPair
) -> None:
    driver = Driver(sqlite_url, tmp_path / "home", clock)
    token = issuer.token(BILLING, AUDIENCE, now=clock.now)
    assert code(register(driver, new_key, token)) == (401, "oidc_refused")
    assert issuer.fetched == {}
    driver.close()


@pytest.mark.parametrize("token", [7, {}, ["a"], True])
def test_a_token_that_is_no_text_is_a_malformed_body(registry: Driver, new_key: KeyPair, token: Any) -> None:
    assert code(register(registry, new_key, token)) == (400, "malformed_body")


def test_two_rights_at_once_are_a_malformed_body(
    registry: Driver, issuer: Issuer, clock: Clock, new_key: KeyPair
) -> None:
    token = issuer.token(BILLING, AUDIENCE, now=clock.now)
    join = {"join": {"id": "a", "mac": "b"}}
    assert code(register(registry, new_key, token, **join)) == (400, "malformed_body")
    body = {"proof": registry.proof(new_key, "billing"), "oidc": token}
    assert code(registry.post_key("billing", body, {"Authorization": "Bearer a.b.c"})) == (400, "malformed_body")


def test_neither_token_nor_subject_is_in_the_log_or_the_answer(
    registry: Driver, issuer: Issuer, clock: Clock, new_key: KeyPair, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    stranger = "system:serviceaccount:shop:stranger"
    tokens = [
        issuer.token(stranger, AUDIENCE, now=clock.now),
        issuer.token(BILLING, "elsewhere", now=clock.now),
        issuer.token(BILLING, AUDIENCE, now=clock.now, iss="https://other.test"),
        issuer.token(BILLING, AUDIENCE, now=clock.now),
    ]
    answers = [register(registry, new_key, token) for token in tokens]
    assert [answer.status_code for answer in answers] == [401, 401, 401, 201]
    told = caplog.text + "".join(answer.text for answer in answers)
    for secret in (stranger, BILLING, *tokens, *(token.split(".")[2] for token in tokens)):
        assert secret not in told
    for known in (subject_hash(stranger), subject_hash(BILLING), issuer.url, "https://other.test", "wrong_audience"):
        assert known in caplog.text


# an issuer that is not there


@pytest.mark.parametrize("path", [DISCOVERY, JWKS])
@pytest.mark.parametrize(
    "answer",
    [(302, {"Location": "/keys"}), (500, {}), ENDLESS, {}],
    ids=["a redirect", "a failure", "endless", "empty"],
)
def test_an_issuer_that_does_not_answer_as_agreed_is_asked_later(
    registry: Driver, issuer: Issuer, clock: Clock, new_key: KeyPair, path: str, answer: Any
) -> None:
    issuer.answers = {path: answer, "/keys": issuer.jwks}
    refused = register(registry, new_key, issuer.token(BILLING, AUDIENCE, now=clock.now))
    assert code(refused) == (503, "trust_unavailable")
    assert refused.headers["Retry-After"] == "10"
    issuer.answers = {}
    clock.forward(10)

    def admitted() -> bool:
        return register(registry, new_key, issuer.token(BILLING, AUDIENCE, now=clock.now)).status_code == 201

    until(admitted)  # at once, or after a second where a busy machine had it take the issuer for one that hangs


def test_1000_unknown_kids_cost_an_issuer_one_fetch(
    registry: Driver, issuer: Issuer, clock: Clock, new_key: KeyPair
) -> None:
    claims = issuer.claims(BILLING, AUDIENCE, now=clock.now)
    platforms = registry.registry.platforms
    for number in range(1000):
        with pytest.raises(Exception, match=r"unknown_key|a moment ago"):
            platforms.attest("billing", issuer.sign(claims, headers={"kid": f"made-up-{number}"}))
    assert issuer.fetched == {DISCOVERY: 1, JWKS: 1}
    assert register(registry, new_key, issuer.sign(claims)).status_code == 201
    assert issuer.fetched == {DISCOVERY: 1, JWKS: 1}


# the operator's rules


def rules_file(folder: Path, value: Any) -> Path:
    file = folder / "oidc.json"
    file.write_text(value if isinstance(value, str) else json.dumps(value))
    return file


def rule(**changes: Any) -> dict[str, Any]:
    members = {"issuer": "https://token.ci.example", "services": {CI: "billing"}} | changes
    return {name: value for name, value in members.items() if value is not None}


def test_rules_say_who_is_believed_and_for_what(tmp_path: Path) -> None:
    (tmp_path / "jwks.json").write_text(json.dumps(Issuer("https://x").jwks))
    file = rules_file(
        tmp_path, [rule(audience="acme-registry"), rule(issuer="http://127.0.0.1:8080/id", jwks_file="jwks.json")]
    )
    first, second = read_rules(file)
    assert (first.issuer, first.audience, first.services) == (
        "https://token.ci.example",
        "acme-registry",
        {CI: "billing"},
    )
    assert (second.audience, second.jwks_file) == (None, tmp_path / "jwks.json")
    assert read_rules(None) == []


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("", "strict JSON"),
        ("[", "strict JSON"),
        ('[{"issuer": "https://a", "issuer": "https://b", "services": {"a": "b"}}]', "strict JSON"),
        ({}, "must hold a JSON list"),
        (["a"], "element 0"),
        ([{}], "issuer is missing"),
        ([rule(issuer=7)], "issuer is missing, empty or not a text"),
        ([rule(issuer="")], "issuer is missing, empty or not a text"),
        ([rule(issuer="http://token.ci.example")], "issuer must be https, or on loopback"),
        ([rule(issuer="token.ci.example")], "issuer is no URL"),
        ([rule(issuer="https://user:password@ci.example")], "issuer is no URL"),
        ([rule(), rule()], "twice"),
        ([rule(service={})], "is not an object with only the members"),
        ([rule(services=None)], "services must be an object"),
        ([rule(services={})], "services must be an object"),
        ([rule(services=["billing"])], "services must be an object"),
        ([rule(services={"": "billing"})], "a subject that is empty"),
        ([rule(services={"s" * 513: "billing"})], "longer than 512"),
        ([rule(services={CI: 7})], "to a value that is not a text"),
        ([rule(services={CI: ["billing", "orders"]})], "to a value that is not a text"),
        ([rule(services={CI: "Billing"})], "to 'Billing'"),
        ([rule(services={CI: "registry"})], "to 'registry'"),
        ([rule(services={CI: "acme.internal/billing"})], "to 'acme.internal/billing'"),
        ([rule(audience="")], "audience is missing, empty or not a text"),
        ([rule(audience=["a"])], "audience is missing, empty or not a text"),
        ([rule(jwks_url="http://token.ci.example/keys")], "jwks_url must be https"),
        ([rule(jwks_url="https://ci.example/keys", jwks_file="jwks.json")], "leave one out"),
        ([rule(jwks_file="not-there.json")], "cannot be read: No such file"),
        ([rule(jwks_file="oidc.json")], "document_malformed"),
        ([rule(ca_file="not-there.pem")], "cannot be read: No such file"),
        ([rule(ca_file="oidc.json")], "ca_file .* cannot be read"),
    ],
)
def test_an_invalid_rule_ends_the_start_with_its_fault(tmp_path: Path, value: Any, problem: str) -> None:
    file = rules_file(tmp_path, value)
    with pytest.raises(ConfigurationError, match=problem) as caught:
        read_rules(file)
    assert str(file) in str(caught.value)
    assert CI not in str(caught.value)


def test_a_set_of_keys_that_are_all_weak_ends_the_start(tmp_path: Path) -> None:
    """By the registry's own check, which knows more weaknesses than a service's."""
    for modulus in (with_roca, with_sparse_primes):
        (tmp_path / "jwks.json").write_text(json.dumps({"keys": [{**public(modulus()).jwk, "kid": "a"}]}))
        with pytest.raises(ConfigurationError, match="holds no usable key"):
            read_rules(rules_file(tmp_path, [rule(jwks_file="jwks.json")]))


def test_rules_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = rules_file(tmp_path, [rule()])
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert len(read_rules(file)) == 1


def test_a_platforms_token_by_a_weak_key_is_refused(registry: Driver, issuer: Issuer, new_key: KeyPair) -> None:
    weak = pair(roca_prime(), roca_prime())
    issuer.answers[JWKS] = {"keys": [*issuer.jwks["keys"], {**weak.public.jwk, "kid": "weak"}]}
    claims = canonical_json(issuer.claims(BILLING, AUDIENCE, now=registry.clock.now))
    header = b64url(canonical_json({"alg": "RS256", "kid": "weak"}))
    assert code(register(registry, new_key, jose.compact(header, claims, weak.sign))) == (401, "oidc_refused")


def test_a_set_of_keys_without_any_that_can_be_used_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "jwks.json").write_text('{"keys": [{"kty": "oct", "k": "AAAA", "kid": "a"}]}')
    with pytest.raises(ConfigurationError, match="no usable key"):
        read_rules(rules_file(tmp_path, [rule(jwks_file="jwks.json")]))


def test_a_file_that_is_not_there_ends_the_start(sqlite_url: str, tmp_path: Path, clock: Clock) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        Driver(sqlite_url, tmp_path / "home", clock, oidc_file=tmp_path / "not-there.json")
