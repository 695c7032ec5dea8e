"""Newcomers without any right who wait for an operator, on both databases."""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gmpy2
import pytest
from werkzeug.test import TestResponse

from peerseal.protocol.documents.statement import KeyStatement
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.names import make_kid, service_id
from registry.domain.rebuild import rebuild
from registry.limits import Limits
from registry.services.access.operators import Role
from registry.services.recovery.verify import verify
from tests.registry.domain.test_key_quality import pair, prime
from tests.registry.driver import DOMAIN, Clock, Driver, entries_of, evidence_of, tables_of
from tests.support.keys import key

LIMITS = Limits(applicants_kept=5, applicants_of_service=3, joined_keys=4)


@pytest.fixture
def registry(registry_database: str, tmp_path: Path, clock: Clock) -> Iterator[Driver]:
    driver = Driver(registry_database, tmp_path / "home", clock, applicants=True, limits=LIMITS)
    yield driver
    driver.close()


def kid_of(mine: KeyPair, service: str = "billing") -> str:
    return make_kid(service_id(DOMAIN, service), mine.public.thumbprint)


def apply(registry: Driver, mine: KeyPair, service: str = "billing") -> TestResponse:
    return registry.post_key(service, {"proof": registry.proof(mine, service)})


def applied(registry: Driver, service: str = "billing") -> KeyPair:
    mine = key()
    assert apply(registry, mine, service).status_code == 202
    return mine


def approve(
    registry: Driver, mine: KeyPair, service: str = "billing", headers: dict[str, str] | None = None
) -> TestResponse:
    path = f"/v1/services/{service}/keys/{mine.public.thumbprint}/approve"
    return registry.client.post(path, headers=registry.operator if headers is None else headers)


def waiting(registry: Driver) -> list[str]:
    answer = registry.client.get("/v1/applicants", headers=registry.operator)
    assert answer.status_code == 200, answer.data
    return [row["kid"] for row in answer.get_json()["applicants"]]


def audited(registry: Driver) -> list[tuple[str, str]]:
    answer = registry.client.get("/v1/audit", headers=registry.operator)
    return [(row["act"], row["subject"]) for row in answer.get_json()["audit"]]


def refusal(response: TestResponse) -> tuple[int, str]:
    return response.status_code, response.get_json()["code"]


# the way in


def test_an_applicant_waits_unsigned_and_in_no_entry(registry: Driver, clock: Clock) -> None:
    mine, size = key(), len(entries_of(registry.store))
    answer = apply(registry, mine)
    assert (answer.status_code, answer.content_type) == (202, "application/json")
    expires_at = int(clock.now) + LIMITS.applicant_ttl
    assert answer.get_json() == {"kid": kid_of(mine), "state": "pending", "expires_at": expires_at}
    assert len(entries_of(registry.store)) == size
    assert registry.client.get("/v1/services/billing/jwks.jwt").status_code == 404
    for suffix in ("", ".jwt"):
        path = f"/v1/services/billing/keys/{mine.public.thumbprint}{suffix}"
        assert refusal(registry.client.get(path)) == (404, "key_not_found" if not suffix else "service_not_found")
    [row] = registry.client.get("/v1/applicants", headers=registry.operator).get_json()["applicants"]
    times = {"created_at": int(clock.now), "expires_at": expires_at}
    shown = {"kid": kid_of(mine), "service": "billing", "alg": "ES256", "jwk": dict(mine.public.jwk)}
    assert row == {**shown, "state": "pending", **times}


def test_an_operator_approves_by_one_entry(registry: Driver, clock: Clock) -> None:
    mine, size = applied(registry), len(entries_of(registry.store))
    clock.forward(3600)  # the proof is long past; it was good when it came
    answer = approve(registry, mine)
    assert (answer.status_code, answer.content_type) == (201, "application/jwt")
    statement = registry.read(KeyStatement, answer.text)
    assert (statement.kid, statement.state, statement.active_from) == (kid_of(mine), "active", int(clock.now))
    [entry] = entries_of(registry.store)[size:]
    operator = registry.registry.operators.page()["operator_tokens"][0]["id"]
    assert (entry.type, dict(entry.by)) == ("key_admitted", {"operator": operator})
    assert set(evidence_of(registry.store, entry)) == {"proof"}
    assert ("key_admitted", kid_of(mine)) in audited(registry)
    assert waiting(registry) == []
    assert registry.rotate(mine, key(), "billing").status_code == 201, "it is a key like any other"
    assert verify(registry.store, LIMITS, clock=clock).whole
    assert rebuild(entries_of(registry.store)) == tables_of(registry.store)


def test_approving_again_changes_nothing(registry: Driver) -> None:
    mine = applied(registry)
    assert approve(registry, mine).status_code == 201
    size, acts = len(entries_of(registry.store)), audited(registry)
    assert approve(registry, mine).status_code == 200
    assert (len(entries_of(registry.store)), audited(registry)) == (size, acts)


def test_ten_operators_at_once_admit_it_once(registry: Driver) -> None:
    mine, size = applied(registry), len(entries_of(registry.store))
    with ThreadPoolExecutor(10) as pool:
        statuses = [answer.status_code for answer in pool.map(lambda _: approve(registry, mine), range(10))]
    assert sorted(statuses) == [200] * 9 + [201]
    assert len(entries_of(registry.store)) == size + 1
    assert audited(registry).count(("key_admitted", kid_of(mine))) == 1


def test_the_same_key_again_keeps_its_place_and_its_end(registry: Driver, clock: Clock) -> None:
    mine = key()
    first = apply(registry, mine).get_json()
    clock.forward(1000)
    assert apply(registry, mine).get_json() == first
    assert waiting(registry) == [kid_of(mine)]
    approve(registry, mine)
    again = apply(registry, mine)
    assert (again.status_code, registry.read(KeyStatement, again.text).state) == (200, "active")


def test_the_same_key_for_two_names_waits_for_the_last(registry: Driver) -> None:
    mine = applied(registry)
    assert apply(registry, mine, "shipping").status_code == 202
    assert waiting(registry) == [kid_of(mine, "shipping")]
    assert refusal(approve(registry, mine)) == (404, "applicant_not_found")


def test_a_join_token_gets_a_waiting_key_in(registry: Driver) -> None:
    mine = applied(registry)
    assert registry.join(mine, "billing", registry.join_token("billing")).status_code == 201
    assert waiting(registry) == []
    assert approve(registry, mine).status_code == 200


# refused


def test_applicants_are_refused_unless_they_are_turned_on(registry: Driver) -> None:
    off = registry.node(applicants=False)
    assert refusal(apply(off, key())) == (401, "missing_token")
    assert waiting(registry) == []
    off.close()


@pytest.mark.parametrize(("reason", "code"), [("retired", "key_retired"), ("compromised", "key_revoked")])
def test_a_key_that_ended_cannot_apply(registry: Driver, reason: str, code: str) -> None:
    mine = registry.joined(key(), "billing")
    registry.operator_ends(mine, "billing", reason)
    assert refusal(apply(registry, mine)) == (409, code)
    assert refusal(approve(registry, mine)) == (409, code)


def test_a_key_of_another_service_cannot_apply(registry: Driver) -> None:
    mine = registry.joined(key(), "billing")
    assert refusal(apply(registry, mine, "shipping")) == (409, "key_of_another_service")


def test_a_key_that_was_taken_meanwhile_cannot_be_approved(registry: Driver) -> None:
    mine = applied(registry, "shipping")
    registry.joined(mine, "billing")
    assert refusal(approve(registry, mine, "shipping")) == (409, "key_of_another_service")


def test_a_weak_key_cannot_apply(registry: Driver) -> None:
    p = prime(1024)
    assert refusal(apply(registry, pair(p, int(gmpy2.next_prime(p))))) == (400, "key_close_primes")
    assert waiting(registry) == []


def test_an_applicant_with_a_bad_proof_is_refused(registry: Driver, clock: Clock) -> None:
    proof = registry.proof(key(), "billing")
    assert refusal(registry.post_key("shipping", {"proof": proof})) == (401, "wrong_issuer")
    clock.forward(100)
    assert refusal(registry.post_key("billing", {"proof": proof})) == (401, "expired")
    assert refusal(registry.post_key("registry", {"proof": proof})) == (400, "invalid_name")
    assert waiting(registry) == []


def test_a_wrong_right_is_refused_and_does_not_wait(registry: Driver) -> None:
    token = registry.join_token("shipping")
    assert refusal(registry.join(key(), "billing", token)) == (401, "join_refused")
    assert refusal(registry.rotate(key(), key(), "billing")) == (401, "unknown_key")
    assert waiting(registry) == []


def test_approved_keys_count_among_those_without_a_voucher(registry: Driver) -> None:
    for _ in range(LIMITS.joined_keys):
        registry.joined(key(), "billing")
    mine = applied(registry)
    assert refusal(approve(registry, mine)) == (409, "too_many_keys")
    assert waiting(registry) == [kid_of(mine)]


# rejected, expired


@pytest.mark.parametrize("reason", ["rejected", "retired", "compromised"])
def test_an_operator_turns_an_applicant_away_without_an_entry(registry: Driver, reason: str) -> None:
    mine, size = applied(registry), len(entries_of(registry.store))
    assert registry.operator_ends(mine, "billing", reason).status_code == 204
    assert waiting(registry) == []
    assert len(entries_of(registry.store)) == size
    assert audited(registry)[-1] == ("applicant_rejected", kid_of(mine))
    assert refusal(approve(registry, mine)) == (404, "applicant_not_found")
    assert refusal(registry.operator_ends(mine, "billing", reason)) == (404, "key_not_found")
    assert apply(registry, mine).status_code == 202, "it may ask again"


def test_rejecting_ends_no_key(registry: Driver) -> None:
    mine = registry.joined(key(), "billing")
    assert refusal(registry.operator_ends(mine, "billing", "rejected")) == (404, "key_not_found")
    assert refusal(registry.end(mine, "billing", "rejected")) == (404, "key_not_found")
    assert registry.statement("billing", mine).state == "active"


def test_an_applicant_cannot_end_itself_or_vouch(registry: Driver) -> None:
    mine = applied(registry)
    assert refusal(registry.end(mine, "billing", "retired")) == (401, "unknown_key")
    assert refusal(registry.rotate(mine, key(), "billing")) == (401, "unknown_key")
    assert waiting(registry) == [kid_of(mine)]


def test_an_applicant_waits_only_so_long(registry: Driver, clock: Clock) -> None:
    mine = applied(registry)
    clock.forward(LIMITS.applicant_ttl)
    assert waiting(registry) == []
    assert refusal(approve(registry, mine)) == (404, "applicant_not_found")
    assert apply(registry, mine).get_json()["expires_at"] == int(clock.now) + LIMITS.applicant_ttl
    assert approve(registry, mine).status_code == 201


# who may


def test_viewers_look_operators_decide_and_strangers_do_neither(registry: Driver) -> None:
    mine = applied(registry)
    viewer = {"Authorization": f"Bearer {registry.registry.operators.create(Role.VIEWER, 600)[1]}"}
    assert registry.client.get("/v1/applicants", headers=viewer).status_code == 200
    assert refusal(approve(registry, mine, headers=viewer)) == (403, "role_insufficient")
    assert refusal(approve(registry, mine, headers={})) == (401, "missing_token")
    assert refusal(registry.client.get("/v1/applicants")) == (401, "missing_token")
    assert waiting(registry) == [kid_of(mine)]


# floods


def test_no_more_wait_for_a_service_than_its_cap(registry: Driver, clock: Clock) -> None:
    first = [applied(registry) for _ in range(LIMITS.applicants_of_service)]
    refused = apply(registry, key())
    assert refusal(refused) == (429, "too_many_applicants")
    assert refused.headers["Retry-After"] == "60"
    assert apply(registry, first[0]).status_code == 202, "who waits already is told so"
    assert apply(registry, key(), "shipping").status_code == 202, "other services have room of their own"
    registry.operator_ends(first[0], "billing", "rejected")
    assert apply(registry, key()).status_code == 202
    clock.forward(LIMITS.applicant_ttl)
    assert apply(registry, key()).status_code == 202


def test_a_flood_of_applicants_for_all_names_fills_no_more_than_the_cap(registry: Driver) -> None:
    pairs = [key() for _ in range(40)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: apply(registry, pairs[number], f"s{number}"), range(40)))
    statuses = [answer.status_code for answer in answers]
    assert sorted(statuses) == [202] * LIMITS.applicants_kept + [429] * (40 - LIMITS.applicants_kept)
    assert len(waiting(registry)) == LIMITS.applicants_kept
    assert registry.joined(key(), "billing"), "who has a right gets in as ever"


def test_each_left_pending_counts_against_the_address(registry: Driver) -> None:
    limits = Limits(refusals_per_minute=3)
    strict = registry.node(limits=limits, applicants=True)
    statuses = [apply(strict, key(), f"s{number}").status_code for number in range(6)]
    assert statuses == [202] * 3 + [429] * 3
    strict.close()


def test_no_proof_of_an_applicant_is_logged_or_shown(registry: Driver, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    mine = key()
    proof = registry.proof(mine, "billing")
    told = registry.post_key("billing", {"proof": proof}).text
    told += registry.client.get("/v1/applicants", headers=registry.operator).text
    told += approve(registry, mine).text
    told += registry.client.get("/v1/audit", headers=registry.operator).text
    assert proof not in told + caplog.text
    assert registry.operator["Authorization"].rpartition(".")[2] not in told + caplog.text
