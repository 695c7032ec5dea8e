"""Admission by a platform's token on every database: each test runs on SQLite and on PostgreSQL."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import TestResponse

from peerseal.protocol.keys import KeyPair
from registry.domain.rebuild import rebuild
from registry.limits import Limits
from registry.services.keys.rights import subject_hash
from tests.registry.driver import DOMAIN, Clock, Driver, entries_of, evidence_of, tables_of
from tests.support.issuer import JWKS, Issuer, running_issuer
from tests.support.keys import key

AUDIENCE = f"{DOMAIN}/registry"
KUBERNETES = "system:serviceaccount:shop:billing"
CI = "repo:acme/billing:ref:refs/heads/main"


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with running_issuer() as issuer:
        yield issuer


@pytest.fixture
def rules(tmp_path: Path, issuer: Issuer) -> Path:
    services = {KUBERNETES: "billing", CI: "billing", "system:serviceaccount:shop:orders": "orders"}
    file = tmp_path / "oidc.json"
    file.write_text(json.dumps([{"issuer": issuer.url, "services": services}]))
    return file


@pytest.fixture
def registry(registry_database: str, tmp_path: Path, clock: Clock, rules: Path) -> Iterator[Driver]:
    driver = Driver(registry_database, tmp_path / "home", clock, oidc_file=rules, limits=Limits(joined_keys=3))
    yield driver
    driver.close()


def register(registry: Driver, mine: KeyPair, token: str, service: str = "billing") -> TestResponse:
    return registry.post_key(service, {"proof": registry.proof(mine, service), "oidc": token})


def code(answer: TestResponse) -> tuple[int, Any]:
    return answer.status_code, json.loads(answer.text)["code"]


def test_a_platforms_token_admits_a_key_and_its_statement_comes_back(
    registry: Driver, issuer: Issuer, clock: Clock
) -> None:
    mine = key()
    answer = register(registry, mine, issuer.token(KUBERNETES, AUDIENCE, now=clock.now))
    assert answer.status_code == 201
    assert answer.headers["Location"] == f"/v1/services/billing/keys/{mine.public.thumbprint}"
    statement = registry.statement("billing", mine)
    assert registry.read(type(statement), answer.text) == statement
    assert (statement.state, statement.active_from) == ("active", int(clock.now))


def test_the_entry_names_the_issuer_and_a_hash_and_the_token_is_kept_nowhere(
    registry: Driver, issuer: Issuer, clock: Clock
) -> None:
    token = issuer.token(KUBERNETES, AUDIENCE, now=clock.now)
    register(registry, key(), token)
    entry = entries_of(registry.store)[-1]
    assert entry.by == {"oidc": issuer.url, "subject": subject_hash(KUBERNETES)}
    assert evidence_of(registry.store, entry).keys() == {"proof"}
    with registry.store.read() as connection:
        everything = b"".join(
            bytes(part)
            for row in connection.exec_driver_sql("SELECT body, evidence FROM entries")
            for part in row
            if part is not None
        )
    assert KUBERNETES.encode() not in everything
    assert token.encode() not in everything


def test_the_tables_say_what_the_entries_say(registry: Driver, issuer: Issuer, clock: Clock) -> None:
    for subject in (KUBERNETES, CI):
        assert register(registry, key(), issuer.token(subject, AUDIENCE, now=clock.now)).status_code == 201
    assert rebuild(entries_of(registry.store)) == tables_of(registry.store)


def test_the_same_key_again_is_unchanged(registry: Driver, issuer: Issuer, clock: Clock) -> None:
    mine, token = key(), issuer.token(CI, AUDIENCE, now=clock.now)
    first, again = register(registry, mine, token), register(registry, mine, token)
    assert [first.status_code, again.status_code] == [201, 200]
    assert sum(entry.type == "key_admitted" for entry in entries_of(registry.store)) == 1


def test_keys_admitted_so_vouch_for_the_next_ones(registry: Driver, issuer: Issuer, clock: Clock) -> None:
    mine = key()
    register(registry, mine, issuer.token(KUBERNETES, AUDIENCE, now=clock.now))
    assert registry.rotate(mine, key(), "billing").status_code == 201


@pytest.mark.parametrize(
    "subject", ["system:serviceaccount:shop:orders", "system:serviceaccount:shop:nobody", CI + "2"]
)
def test_another_subject_admits_nothing(registry: Driver, issuer: Issuer, clock: Clock, subject: str) -> None:
    size = len(entries_of(registry.store))
    assert code(register(registry, key(), issuer.token(subject, AUDIENCE, now=clock.now))) == (401, "oidc_refused")
    assert len(entries_of(registry.store)) == size


def test_another_audience_admits_nothing(registry: Driver, issuer: Issuer, clock: Clock) -> None:
    token = issuer.token(KUBERNETES, "https://kubernetes.default.svc", now=clock.now)
    assert code(register(registry, key(), token)) == (401, "oidc_refused")


def test_an_expired_token_admits_nothing(registry: Driver, issuer: Issuer, clock: Clock) -> None:
    token = issuer.token(KUBERNETES, AUDIENCE, now=clock.now)
    clock.forward(629)
    assert register(registry, key(), token).status_code == 201
    clock.forward(1)
    assert code(register(registry, key(), token)) == (401, "oidc_refused")


def test_a_proof_of_another_key_with_a_valid_token_admits_nothing(
    registry: Driver, issuer: Issuer, clock: Clock
) -> None:
    token, staging = issuer.token(KUBERNETES, AUDIENCE, now=clock.now), "staging.internal/registry"
    body = {"proof": registry.proof(key(), "billing", audience=staging), "oidc": token}
    assert code(registry.post_key("billing", body)) == (401, "wrong_audience")
    body["proof"] = registry.proof(key(), "orders")
    assert code(registry.post_key("billing", body)) == (401, "wrong_issuer")


def test_a_token_without_a_proof_admits_nothing(registry: Driver, issuer: Issuer, clock: Clock) -> None:
    token = issuer.token(KUBERNETES, AUDIENCE, now=clock.now)
    assert code(registry.post_key("billing", {"oidc": token})) == (400, "malformed_body")


def test_one_token_admits_keys_up_to_the_cap_also_at_once(registry: Driver, issuer: Issuer, clock: Clock) -> None:
    token = issuer.token(KUBERNETES, AUDIENCE, now=clock.now)
    assert register(registry, key(), token).status_code == 201  # its issuer's keys are known from now on
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda mine: register(registry, mine, token), [key() for _ in range(6)]))
    assert sorted(answer.status_code for answer in answers) == [201, 201, 409, 409, 409, 409]
    assert {code(answer)[1] for answer in answers if answer.status_code == 409} == {"too_many_keys"}
    orders = issuer.token("system:serviceaccount:shop:orders", AUDIENCE, now=clock.now)
    assert register(registry, key(), orders, "orders").status_code == 201


def test_a_revoked_key_does_not_come_back_by_a_platforms_token(registry: Driver, issuer: Issuer, clock: Clock) -> None:
    mine, token = key(), issuer.token(KUBERNETES, AUDIENCE, now=clock.now)
    register(registry, mine, token)
    registry.operator_ends(mine, "billing")
    assert code(register(registry, mine, token)) == (409, "key_revoked")


def test_a_key_belongs_to_one_service_with_any_voucher(registry: Driver, issuer: Issuer, clock: Clock) -> None:
    mine = key()
    register(registry, mine, issuer.token(KUBERNETES, AUDIENCE, now=clock.now))
    orders = issuer.token("system:serviceaccount:shop:orders", AUDIENCE, now=clock.now)
    assert code(register(registry, mine, orders, "orders")) == (409, "key_of_another_service")


def test_an_issuer_that_is_down_is_no_refusal_and_known_keys_go_on(
    registry: Driver, issuer: Issuer, clock: Clock
) -> None:
    issuer.down = True
    answer = register(registry, key(), issuer.token(KUBERNETES, AUDIENCE, now=clock.now))
    assert code(answer) == (503, "trust_unavailable")
    assert int(answer.headers["Retry-After"]) == 10
    issuer.down = False
    clock.forward(10)
    assert register(registry, key(), issuer.token(KUBERNETES, AUDIENCE, now=clock.now)).status_code == 201
    issuer.down = True
    clock.forward(3000)
    assert register(registry, key(), issuer.token(KUBERNETES, AUDIENCE, now=clock.now)).status_code == 201


def test_an_issuer_that_rotates_its_keys_is_followed(registry: Driver, issuer: Issuer, clock: Clock) -> None:
    old = issuer.token(KUBERNETES, AUDIENCE, now=clock.now)
    assert register(registry, key(), old).status_code == 201
    issuer.rotate(keep=0)
    new = issuer.token(KUBERNETES, AUDIENCE, now=clock.now)
    assert register(registry, key(), new).status_code == 503
    clock.forward(10)
    assert register(registry, key(), new).status_code == 201
    assert code(register(registry, key(), old)) == (503, "trust_unavailable")
    clock.forward(10)
    assert code(register(registry, key(), old)) == (401, "oidc_refused")
    assert issuer.fetched[JWKS] == 3
