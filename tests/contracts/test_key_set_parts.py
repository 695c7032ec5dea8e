"""Key sets of services with many keys: signed in parts, each made again only where its own keys change."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import request_started
from sqlalchemy import update

from peerseal import Identity, RotationSchedule, TrustLimits, TrustStore
from peerseal.errors import EnrolmentRefused, RevokedKey, UnknownKey
from peerseal.protocol.documents.key_set import PARTS, KeySetPart, part_of
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.names import make_kid, service_id
from registry.limits import Limits
from registry.services.documents.key_set_parts import KeySetParts
from registry.storage.queries import services
from registry.storage.tables import keys
from tests.registry.driver import DOMAIN, Clock, Driver, fail_revisions, outcome
from tests.registry.in_process import InProcess
from tests.support.keys import in_part, key

SET = "/v1/services/billing/jwks.jwt"
LIMITS = Limits(keys_in_set=3)


@pytest.fixture
def registry(registry_database: str, tmp_path: Path, clock: Clock) -> Iterator[Driver]:
    driver = Driver(registry_database, tmp_path / "home", clock, limits=LIMITS)
    yield driver
    driver.close()


def joined(registry: Driver, *parts: int) -> list[KeyPair]:
    """Keys of ``billing`` in these parts."""
    token = registry.join_token("billing", uses=len(parts))
    made = [in_part(number) for number in parts]
    assert [registry.join(one, "billing", token).status_code for one in made] == [201] * len(parts)
    return made


def path(number: int) -> str:
    return f"/v1/services/billing/jwks/{number}.jwt"


def part(registry: Driver, number: int) -> KeySetPart:
    return registry.read(KeySetPart, registry.got(path(number)))


def all_of(registry: Driver) -> dict[str, bytes]:
    """The bytes of the set and of all its parts, by path."""
    named = [number for number, name in enumerate(registry.key_set("billing").parts) if name is not None]
    return {each: registry.got(each).encode() for each in (SET, *map(path, named))}


def test_a_set_within_the_limit_lists_its_keys_itself(registry: Driver) -> None:
    joined(registry, 0, 1, 2)
    document = registry.key_set("billing")
    assert (len(document.keys), document.parts) == (3, ())
    assert '"parts"' not in registry.got(SET)
    assert outcome(registry.client.get(path(0))) == (404, "part_not_found")


def test_a_larger_set_names_parts_that_list_the_same_keys(registry: Driver) -> None:
    made = joined(registry, 0, 1, 1, 63)
    document = registry.key_set("billing")
    assert (document.keys, document.revoked, len(document.parts)) == ((), (), PARTS)
    assert [number for number, name in enumerate(document.parts) if name is not None] == [0, 1, 63]
    for number in (0, 1, 63):
        found, name = part(registry, number), document.parts[number]
        assert name is not None
        assert (found.part, found.digest, found.seq) == (number, name.digest, name.seq)
        thumbprints = {one.public.thumbprint for one in made if part_of(one.public.thumbprint) == number}
        assert {one.public.thumbprint for one in found.keys} == thumbprints


def test_a_change_leaves_the_other_parts_as_they_are(registry: Driver, clock: Clock) -> None:
    [first, *_] = joined(registry, 0, 1, 2, 3)
    before = {number: registry.client.get(path(number)) for number in range(4)}
    clock.forward(60)
    assert registry.end(first, "billing", "retired").status_code == 204
    after = {number: registry.client.get(path(number)) for number in range(4)}
    assert [number for number in range(4) if before[number].data != after[number].data] == [0]
    assert [number for number in range(4) if before[number].headers["ETag"] != after[number].headers["ETag"]] == [0]
    assert part(registry, 0).keys[0].state == "retired"


def test_all_nodes_make_the_same_bytes_whatever_they_have_seen(registry: Driver, clock: Clock) -> None:
    """One node follows each change, another begins at the end."""
    follower = registry.node(limits=LIMITS)
    made = joined(registry, 0, 1, 2, 3, 3)
    all_of(follower)
    for seconds, change in (
        (100, lambda: registry.end(made[0], "billing", "retired")),
        (2_000, lambda: registry.rotate(made[1], in_part(4), "billing")),
        (50, lambda: registry.operator_ends(made[4], "billing")),
        (5, lambda: registry.joined(key(), "shipping")),
        (5, lambda: joined(registry, 5, 0)),
    ):
        clock.forward(seconds)
        change()
        seen = all_of(follower)
        fresh = registry.node(limits=LIMITS)
        try:
            assert all_of(fresh) == all_of(registry) == seen
        finally:
            fresh.close()
    follower.close()


def test_a_transaction_that_began_earlier_names_the_parts_as_of_its_moment(registry: Driver) -> None:
    """Another thread has read of a later moment meanwhile."""
    made, owner = joined(registry, 0, 0, 1, 2), service_id(DOMAIN, "billing")
    parts = KeySetParts(LIMITS.retired_shown)
    with registry.store.read() as earlier:
        before = services.seq_of(earlier, "billing") or 0
        registry.end(made[0], "billing", "retired")
        joined(registry, 1, 3)
        with registry.store.read() as later:
            after = services.seq_of(later, "billing") or 0
            newest = parts.names(later, owner, after, 1)
            assert newest == KeySetParts(LIMITS.retired_shown).names(later, owner, after, 1)
        then = parts.names(earlier, owner, before, 1)
        assert then == KeySetParts(LIMITS.retired_shown).names(earlier, owner, before, 1)
        assert [number for number in range(PARTS) if then[number] != newest[number]] == [0, 1, 3]
    with registry.store.read() as later:
        assert parts.names(later, owner, after, 1) == newest


def test_an_unchanged_part_is_signed_again_in_the_next_period(registry: Driver, clock: Clock) -> None:
    joined(registry, 0, 1, 2, 3)
    before, signed = part(registry, 0), registry.got(path(0))
    clock.forward(LIMITS.signing_period)
    after = part(registry, 0)
    assert registry.got(path(0)) != signed
    assert (after.digest, after.seq) == (before.digest, before.seq)
    assert 0 <= clock() - after.issued_at < LIMITS.signing_period


def test_a_key_that_ended_by_itself_leaves_its_part_with_the_next_change(registry: Driver, clock: Clock) -> None:
    joined(registry, 0, 0)
    clock.forward(LIMITS.key_lifetime - 100)
    joined(registry, 1, 2, 3)
    clock.forward(200)
    joined(registry, 4)
    assert [one.state for one in part(registry, 0).keys] == ["active", "active"]
    clock.forward(2_000)
    joined(registry, 0)
    assert len(part(registry, 0).keys) == 1


def test_a_set_becomes_small_again(registry: Driver, clock: Clock) -> None:
    made = joined(registry, 0, 1, 2, 3)
    assert registry.key_set("billing").parts
    registry.end(made[0], "billing", "retired")
    clock.forward(LIMITS.retired_shown + 1)
    registry.end(made[1], "billing", "compromised")
    document = registry.key_set("billing")
    assert (document.parts, len(document.keys), len(document.revoked)) == ((), 2, 1)
    assert outcome(registry.client.get(path(2))) == (404, "part_not_found")
    joined(registry, 4)
    assert [n for n, name in enumerate(registry.key_set("billing").parts) if name] == [0, 1, 2, 3, 4]
    assert [one.state for one in part(registry, 0).keys] == ["retired"], "as of the last change of the part"


def test_a_part_covers_as_many_entries_as_a_client_asks_for(registry: Driver) -> None:
    joined(registry, 0, 1, 2, 3)
    registry.joined(key(), "shipping")
    head = registry.key_set("shipping").seq
    assert registry.read(KeySetPart, registry.got(f"{path(0)}?seq={head}")).head == head
    assert outcome(registry.client.get(f"{path(0)}?seq={head + 1}"))[0] == 503


def test_a_warm_part_is_answered_before_flask_also_while_the_database_is_down(
    registry: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined(registry, 0, 1, 2, 3)
    cold = registry.client.get(path(0))
    dispatched: list[object] = []

    def note(_app: object, **_: object) -> None:
        dispatched.append(1)

    with request_started.connected_to(note, registry.app):
        assert registry.client.get(path(0)).data == cold.data
        assert registry.client.get(path(0), headers={"If-None-Match": cold.headers["ETag"]}).status_code == 304
        fail_revisions(monkeypatch, "service")
        assert registry.client.get(path(0)).data == cold.data
    assert dispatched == []


@pytest.mark.parametrize("name", ["64", "00", "-1", "x", "100", "0x1", "%30%30"])
def test_there_is_no_other_part(registry: Driver, name: str) -> None:
    joined(registry, 0, 1, 2, 3)
    answer = registry.client.get(f"/v1/services/billing/jwks/{name}.jwt")
    assert outcome(answer) == (404, "part_not_found")


def test_a_part_without_keys_is_not_found(registry: Driver) -> None:
    joined(registry, 0, 1, 2, 3)
    assert outcome(registry.client.get(path(9))) == (404, "part_not_found")
    assert outcome(registry.client.get("/v1/services/unknown/jwks/9.jwt")) == (404, "service_not_found")


def test_an_altered_row_gets_no_signature(registry: Driver) -> None:
    made = joined(registry, 0, 1, 2, 3)
    registry.end(made[0], "billing", "retired")
    with registry.store.write() as connection:
        revived = update(keys).where(keys.c.thumbprint == made[0].public.thumbprint)
        connection.execute(revived.values(active_until=keys.c.expires_at))
    assert outcome(registry.client.get(SET)) == (503, "ledger_contradicted")
    assert outcome(registry.client.get(path(0))) == (503, "ledger_contradicted")


def test_a_thief_cannot_make_one_part_too_large(registry_database: str, tmp_path: Path, clock: Clock) -> None:
    limits = Limits(keys_in_set=3, keys_in_part=12)
    registry = Driver(registry_database, tmp_path / "home", clock, limits=limits)
    stolen, mine = registry.joined(in_part(1), "billing"), joined(registry, 2)[0]

    def thieves(number: int, times: int) -> list[int]:
        return [registry.rotate(stolen, in_part(number), "billing").status_code for _ in range(times)]

    assert thieves(0, 3) == [201, 201, 409], "a quarter may be active, and three quarters of these by vouchers"
    assert thieves(3, 1) == [201], "another part has room"
    for admitted in ([201, 201], [201, 201], [201, 201], [201, 409]):
        for one in part(registry, 0).keys:
            ended = f"/v1/services/billing/keys/{one.public.thumbprint}?reason=compromised"
            assert registry.client.delete(ended, headers=registry.operator).status_code == 204
        assert thieves(0, 2) == admitted
    assert outcome(registry.rotate(stolen, in_part(0), "billing")) == (409, "too_many_keys")
    assert registry.operator_ends(stolen, "billing").status_code == 204
    assert len(part(registry, 0).revoked) == 9
    assert registry.rotate(mine, in_part(4), "billing").status_code == 201
    registry.close()


def test_a_host_whose_next_key_belongs_to_a_full_part_rotates_to_another_key(
    registry_database: str, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(keys_in_part=8)  # one of them active and with a voucher
    registry = Driver(registry_database, tmp_path / "home", clock, limits=limits)
    stolen, schedule = registry.joined(in_part(1), "billing"), RotationSchedule(every=43_200.0)
    thiefs, *made = [in_part(number) for number in (0, 3, 0, 2)]
    monkeypatch.setattr(KeyPair, "generate", lambda _: made.pop(0))
    host = Identity(
        "billing",
        registry="http://registry.test",
        join_token=registry.join_token("billing").encode(),
        rotation=schedule,
        limits=TrustLimits(poll_interval=3600.0, wait=0.0),
        alg="ES256",
        clock=clock,
        fetcher=InProcess(registry),
    ).start()
    try:
        first = host.credentials.key_id
        clock.forward(schedule.every)
        assert registry.rotate(stolen, thiefs, "billing").status_code == 201
        with pytest.raises(EnrolmentRefused) as refused:
            host.look_after_keys()
        assert isinstance(refused.value.__cause__, EnrolmentRefused)
        assert refused.value.__cause__.code == "too_many_keys"
        host.look_after_keys()
        clock.forward(schedule.lead)
        assert host.credentials.key_id != first
        assert not made
    finally:
        host.stop()
        registry.close()


def test_a_trust_store_finds_refuses_and_forgets_as_with_a_small_set(registry: Driver, clock: Clock) -> None:
    made = joined(registry, 0, 1, 2, 3, 4)
    owner = service_id(DOMAIN, "billing")
    kids = [make_kid(owner, one.public.thumbprint) for one in made]
    limits = TrustLimits(poll_interval=3600.0, wait=0.0)
    trust = TrustStore(
        "http://registry.test", pin=registry.pin, limits=limits, clock=clock, fetcher=InProcess(registry)
    )
    try:
        assert [trust.key(kid).kid for kid in kids] == kids
        registry.operator_ends(made[0], "billing")
        registry.rotate(made[1], new := in_part(5), "billing")
        trust.refresh()
        with pytest.raises(RevokedKey):
            trust.key(kids[0])
        assert trust.key(make_kid(owner, new.public.thumbprint)).public.thumbprint == new.public.thumbprint
        with pytest.raises(UnknownKey):
            trust.key(make_kid(owner, in_part(1).public.thumbprint))
    finally:
        trust.stop()
