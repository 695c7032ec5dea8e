"""No right admits so many keys of one part of a set that clients could not read the part."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from werkzeug.test import TestResponse

from peerseal.protocol.join import JoinToken
from peerseal.protocol.keys import KeyPair
from registry.domain.rebuild import rebuild
from registry.limits import Limits
from tests.registry.driver import DOMAIN, Clock, Driver, entries_of, joined_at_once, outcome, tables_of
from tests.support.issuer import Issuer
from tests.support.keys import in_part

LIMITS = Limits(keys_in_part=8)
"""Of eight keys of a part two may be in full; of keys by vouchers six and one."""
FULL = 409, "too_many_keys"

Admit = Callable[[KeyPair], TestResponse]


@pytest.fixture
def registry(registry_database: str, tmp_path: Path, clock: Clock, issuer: Issuer) -> Iterator[Driver]:
    rules = tmp_path / "oidc.json"
    rules.write_text(json.dumps([{"issuer": issuer.url, "services": {"workload": "billing"}}]))
    driver = Driver(registry_database, tmp_path / "home", clock, oidc_file=rules, applicants=True, limits=LIMITS)
    yield driver
    driver.close()


@pytest.fixture(params=["a join token", "a platform's token", "an approval"])
def admit(request: pytest.FixtureRequest, registry: Driver, issuer: Issuer, clock: Clock) -> Admit:
    token = registry.join_token("billing", uses=100)
    attested = issuer.token("workload", f"{DOMAIN}/registry", now=clock.now)

    def approve(mine: KeyPair) -> TestResponse:
        assert registry.post_key("billing", {"proof": registry.proof(mine, "billing")}).status_code == 202
        path = f"/v1/services/billing/keys/{mine.public.thumbprint}/approve"
        return registry.client.post(path, headers=registry.operator)

    ways: dict[str, Admit] = {
        "a join token": lambda mine: registry.join(mine, "billing", token),
        "a platform's token": lambda mine: registry.post_key(
            "billing", {"proof": registry.proof(mine, "billing"), "oidc": attested}
        ),
        "an approval": approve,
    }
    return ways[request.param]


def test_each_right_without_a_voucher_fills_a_part_up_to_its_limit(
    registry: Driver, admit: Admit, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "registry")
    made = [in_part(0) for _ in range(LIMITS.keys_in_part)]
    for first, second in zip(made[::2], made[1::2], strict=True):
        assert [admit(first).status_code, admit(second).status_code] == [201, 201]
        assert outcome(admit(in_part(0))) == FULL
        assert "2 of them in full, and may have 8 and 2: make another key" in caplog.text
        for one in (first, second):
            assert registry.operator_ends(one, "billing").status_code == 204
    assert outcome(admit(in_part(0))) == FULL, "revoked keys stay listed"
    assert admit(in_part(1)).status_code == 201, "another part has room"
    assert rebuild(entries_of(registry.store)) == tables_of(registry.store)


def test_a_key_that_is_registered_is_answered_again_although_its_part_is_full(registry: Driver) -> None:
    made, token = [registry.joined(in_part(0), "billing") for _ in range(2)], registry.join_token("billing")
    assert registry.join(made[0], "billing", token).status_code == 200
    assert registry.join(in_part(1), "billing", token).status_code == 201, "the token was not used up"


def test_the_first_comer_of_a_laptop_may_not_fill_a_part_either(registry: Driver, clock: Clock) -> None:
    dev = registry.node(dev=True, limits=LIMITS)

    def comes(part: int) -> tuple[int, str | None]:
        answer = dev.post_key("billing", {"proof": dev.proof(mine := in_part(part), "billing")})
        if answer.status_code == 201:
            assert dev.end(mine, "billing", "retired").status_code == 204
        return outcome(answer)

    assert [comes(0)[0], comes(0)[0], comes(0)] == [201, 201, FULL], "retired keys are listed for some time"
    assert comes(1)[0] == 201
    clock.forward(LIMITS.retired_shown + 1)
    assert comes(0)[0] == 201
    dev.close()


def test_a_key_that_finds_no_room_uses_up_no_join_token(registry: Driver) -> None:
    token = registry.join_token("billing", uses=3)
    outcomes = [outcome(registry.join(in_part(number), "billing", token)) for number in (0, 0, 0, 1, 0)]
    assert [status for status, _ in outcomes] == [201, 201, 409, 201, 401]
    assert (outcomes[2], outcomes[4]) == (FULL, (401, "join_refused")), "of a spent token another key is of no help"


@pytest.mark.parametrize("tokens", [1, 2])
def test_of_two_newcomers_in_one_transaction_one_gets_the_last_place_of_a_part(registry: Driver, tokens: int) -> None:
    made = [registry.join_token("billing", uses=9) for _ in range(tokens)]
    assert registry.join(in_part(0), "billing", made[0]).status_code == 201

    def newcomer(number: int, part: int) -> tuple[KeyPair, str, JoinToken]:
        return in_part(part), "billing", made[number % tokens]

    parts = (1, 0, 0, 1, 2)
    statuses = joined_at_once(registry, *(newcomer(number, part) for number, part in enumerate(parts)))
    assert (statuses[0], sorted(statuses[1:3]), statuses[3:]) == (201, [201, 409], [201, 201])
    assert rebuild(entries_of(registry.store)) == tables_of(registry.store)


def test_newcomers_of_a_full_part_leave_those_of_other_services_alone(registry: Driver) -> None:
    token, other = registry.join_token("billing", uses=9), registry.join_token("shipping", uses=9)
    for _ in range(2):
        registry.joined(in_part(0), "billing")
    newcomers = [("shipping", other), ("billing", token), ("shipping", other), ("billing", token)]
    assert joined_at_once(registry, *((in_part(0), *to) for to in newcomers)) == [201, 409, 201, 409]


def test_a_thief_who_fills_parts_by_vouchers_cannot_keep_the_owner_from_joining(registry: Driver) -> None:
    stolen = registry.joined(in_part(9), "billing")
    assert [registry.rotate(stolen, in_part(0), "billing").status_code for _ in range(2)] == [201, 409]
    mine = registry.joined(in_part(0), "billing")
    assert registry.rotate(mine, in_part(1), "billing").status_code == 201
