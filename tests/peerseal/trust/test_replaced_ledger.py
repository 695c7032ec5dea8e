"""What a client believes of statements that the ledger goes on from another head, and what of the registry that shows
them."""

from binascii import a2b_base64
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from peerseal import TrustLimits, TrustStore
from peerseal.errors import DocumentRefused, MalformedToken, PeersealError
from peerseal.protocol import jose
from peerseal.protocol.documents.history_statement import (
    HISTORY_TYP,
    Head,
    HistoryStatement,
    encode_statements,
    excused_by,
    read_history,
    sign_history,
)
from peerseal.protocol.encoding import b64url, canonical_json
from peerseal.protocol.keys import KeyPair
from peerseal.runtime.files import Folder
from peerseal.testing import Answer, Clock, MemoryLedger, MemoryRegistry

QUIET = TrustLimits(poll_interval=3600.0, wait=0.0, refresh_interval=10 * 24 * 3600.0)
HISTORY = "/v1/history"
COMMON = 4
"""Entries that the lost history and the new one have in common."""


class World:
    """A registry that lost entries which ``client`` has seen, and goes on; the root has said nothing yet."""

    def __init__(
        self, registry: MemoryRegistry, clock: Clock, cache: Path, end: str = "revoke", ahead: float = 0.0
    ) -> None:
        self.registry = registry
        self.clock = clock
        self.cache = cache
        self.billing = registry.identity("billing").credentials.key_id
        self.ended = registry.identity("shop").credentials.key_id
        registry.set_policy("billing", {"shop": ()})
        assert len(registry.ledger.entries) == COMMON
        clock.advance(ahead)
        early = self.new_client()
        assert self.says(self.billing, early) == "good"
        early.stop()
        clock.advance(-ahead)
        self.common = self.head()
        getattr(registry, end)(self.ended)
        self.late = registry.identity("late").credentials.key_id
        self.lost = self.head()
        self.client = self.new_client()
        assert self.says(self.billing) == self.says(self.late) == "good"
        assert self.says(self.ended) == ("revoked_key" if end == "revoke" else "good")
        assert self.client.policy("test.internal/billing") is not None
        clock.advance(60)
        self.lose(self.common)
        self.newcomer = self.registry.identity("newcomer").credentials.key_id
        self.new = self.head()

    def lose(self, common: Head) -> None:
        """The entries after that head are gone."""
        kept, before = self.registry.ledger.entries[: common.size], self.registry.ledger
        self.registry.ledger = MemoryLedger(self.registry.domain)
        self.registry.ledger.key = before.key
        for entry in kept:
            self.registry.ledger.append(entry)
        for key in list(self.registry.keys.values()):
            if key.admission.index >= common.size:
                del self.registry.keys[key.public.thumbprint]
            elif key.revoked_seq > common.size:
                key.revoked_at, key.revoked_seq = None, 0

    def head(self) -> Head:
        size, root = self.registry.ledger.checkpoint().split("\n")[1:3]
        return Head(int(size), a2b_base64(root))

    def new_client(self) -> TrustStore:
        return self.registry.trust_store(limits=QUIET, cache_dir=self.cache)

    def statement(self, **changes: Any) -> HistoryStatement:
        found = HistoryStatement(self.registry.domain, int(self.clock.now), self.common, self.lost, self.new)
        return replace(found, **changes)

    def show(self, *statements: HistoryStatement, signer: KeyPair | None = None) -> None:
        jws = [sign_history(statement, signer or self.registry.root) for statement in statements]
        self.registry.answers[HISTORY] = Answer(200, encode_statements(jws))

    def pass_time(self) -> None:
        """In which the client works in the background."""
        for _ in range(2):
            self.clock.advance(QUIET.cooldown + 1)
            self.client.refresh()

    def says(self, kid: str, client: TrustStore | None = None) -> str:
        try:
            (client or self.client).key(kid)
        except PeersealError as error:
            return error.code
        return "good"

    def believes_the_new_history(self) -> bool:
        self.pass_time()
        return self.says(self.newcomer) == "good"


@pytest.fixture(params=[500, 0], ids=["whole sets", "sets in parts"])
def world(request: pytest.FixtureRequest, clock: Clock, tmp_path: Path) -> Iterator[World]:
    with MemoryRegistry(clock=clock) as registry:
        registry.keys_in_set = request.param
        yield World(registry, clock, tmp_path / "cache")


def test_a_client_goes_on_where_the_root_says_so(world: World) -> None:
    assert not world.believes_the_new_history()
    world.show(world.statement())
    assert world.believes_the_new_history()
    assert world.says(world.billing) == "good"


def test_a_new_history_that_has_grown_past_the_lost_one_is_taken_too(world: World) -> None:
    for number in range(5):
        world.registry.identity(f"more{number}")
    assert not world.believes_the_new_history()
    world.show(world.statement())
    assert world.believes_the_new_history()


def test_a_key_that_was_known_as_revoked_stays_so_in_this_process_and_the_next(world: World) -> None:
    world.show(world.statement())
    assert world.believes_the_new_history()
    assert world.says(world.ended) == "revoked_key"
    assert world.says(world.ended, world.new_client()) == "revoked_key"
    assert world.says(world.ended, world.registry.trust_store(limits=QUIET)) == "good", "this one never knew"


def test_so_does_one_that_a_copy_on_disk_alone_knows(world: World) -> None:
    world.client.stop()
    world.show(world.statement())
    again = world.new_client()
    assert world.says(world.newcomer, again) == "good"
    assert world.says(world.ended, again) == "revoked_key"


def test_a_key_that_was_known_as_retired_is_good_for_nothing_later(clock: Clock, tmp_path: Path) -> None:
    with MemoryRegistry(clock=clock) as registry:
        world = World(registry, clock, tmp_path, "retire")
        retired = world.client.key(world.ended).active_until
        key = registry.found(world.ended)
        key.active_until = key.admission.expires_at  # as if it had never been retired
        world.show(world.statement())
        assert world.believes_the_new_history()
        assert world.client.key(world.ended).active_until == retired < key.active_until


def test_processes_of_one_host_go_on_each_for_itself(world: World) -> None:
    second = world.new_client()
    world.show(world.statement())
    assert world.believes_the_new_history()
    for _ in range(2):
        world.clock.advance(QUIET.cooldown + 1)
        second.refresh()
    assert world.says(world.newcomer, second) == "good"
    assert world.says(world.ended, second) == "revoked_key"


def test_a_service_whose_registration_was_lost_is_forgotten(world: World) -> None:
    assert world.says(world.late) == "good"
    world.show(world.statement())
    assert world.believes_the_new_history()
    assert world.says(world.late) == "unknown_key"


def test_a_process_that_is_killed_on_the_way_leaves_no_copy_of_the_lost_history(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        world.registry.identity(f"more{number}")
    world.show(world.statement())

    def killed(*_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "remove", killed)
        with pytest.raises(SystemExit):
            world.pass_time()
    again = world.new_client()
    assert world.says(world.late, again) != "good"
    world.clock.advance(QUIET.cooldown + 1)
    again.refresh()
    assert world.says(world.newcomer, again) == "good"
    assert world.says(world.late, again) == "unknown_key"
    assert world.says(world.ended, again) == "revoked_key"


def test_a_clock_that_was_ahead_for_a_moment_keeps_no_client_from_a_new_history(clock: Clock, tmp_path: Path) -> None:
    with MemoryRegistry(clock=clock) as registry:
        world = World(registry, clock, tmp_path, ahead=7200.0)
        world.show(world.statement())
        assert world.believes_the_new_history()


def test_policies_are_fetched_again(world: World) -> None:
    world.show(world.statement())
    assert world.believes_the_new_history()
    world.registry.set_policy("billing", {"newcomer": ()})
    world.pass_time()
    policy = world.client.policy("test.internal/billing")
    assert policy is not None
    assert set(policy.allow) == {"test.internal/newcomer"}


def test_the_question_is_asked_once_a_cooldown_and_of_no_registry_that_is_sound(world: World) -> None:
    asked = world.registry.calls
    with MemoryRegistry(clock=world.clock) as sound:
        trust = sound.trust_store(limits=QUIET)
        trust.key(sound.identity("client").credentials.key_id)
        trust.refresh()
        assert sound.calls[f"GET {HISTORY}"] == 0
    world.clock.advance(QUIET.cooldown + 1)
    before = asked[f"GET {HISTORY}"]
    for _ in range(20):
        world.client.refresh()
        world.says(world.newcomer)
    assert asked[f"GET {HISTORY}"] == before + 1


# attacks


def refused(world: World) -> bool:
    return not world.believes_the_new_history() and world.says(world.newcomer) == "trust_unavailable"


def test_a_statement_of_another_key_is_refused(world: World) -> None:
    """The registry's signing key above all: a holder of it who lacks the root's cannot rewrite history."""
    for signer in (world.registry.signing_key, KeyPair.generate("ES256")):
        world.show(world.statement(), signer=signer)
        assert refused(world)


def test_a_statement_for_another_domain_is_refused(world: World) -> None:
    world.show(world.statement(domain="other.internal"))
    assert refused(world)


def altered(head: Head) -> Head:
    return replace(head, root=bytes(32))


def test_a_statement_about_a_head_that_the_client_did_not_see_is_refused(world: World) -> None:
    heads = {
        "another lost head": {"lost": altered(world.lost)},
        "a lost head before": {"lost": Head(world.lost.size - 1, bytes(32)), "new": world.common},
        "all of it was common": {"common": world.lost, "lost": Head(world.lost.size + 9, bytes(32)), "new": world.lost},
    }
    for changes in heads.values():
        world.show(world.statement(**changes))
        assert refused(world)


def test_a_registry_that_does_not_hold_the_heads_it_names_is_refused(world: World) -> None:
    for changes in ({"new": altered(world.new)}, {"common": altered(world.common)}):
        world.show(world.statement(**changes))
        assert refused(world)


def test_an_old_statement_excuses_no_other_history(world: World) -> None:
    """It is replayed, when the registry has forked again after the head that it names."""
    first = world.statement()
    world.show(first)
    assert world.believes_the_new_history()
    world.registry.identity("seen")
    world.pass_time()
    seen = world.head()
    world.clock.advance(60)
    world.client.refresh()
    world.lose(world.new)
    world.newcomer = world.registry.identity("second").credentials.key_id
    world.show(first)
    assert refused(world)
    world.show(first, world.statement(common=world.new, lost=seen, new=world.head()))
    assert world.believes_the_new_history()


def test_nor_for_a_client_that_never_saw_what_it_is_about(world: World, tmp_path: Path) -> None:
    first = world.statement()
    world.show(first)
    world.clock.advance(60)
    world.cache = tmp_path / "young"
    world.client = world.new_client()
    assert world.says(world.newcomer) == "good"
    assert world.common.size < world.new.size <= world.lost.size, "by its size the statement could be about that"
    world.clock.advance(60)
    world.lose(world.common)
    world.newcomer = world.registry.identity("second").credentials.key_id
    world.show(first)
    assert refused(world)
    again = world.new_client()
    assert world.says(world.newcomer, again) == "trust_unavailable", "nor after a restart"


def test_answers_that_are_no_statements_change_nothing(world: World) -> None:
    bodies = (
        b"",
        b"[]",
        b'{"statements": [1]}',
        b'{"statements": ["x.y.z"]}',
        b"<html>",
        b"x" * 10**6,
    )
    for body in bodies:
        world.registry.answers[HISTORY] = Answer(200, body)
        assert refused(world)
    world.registry.answers[HISTORY] = Answer(200, canonical_json({"statements": ["a"] * 1000}))
    assert refused(world)
    world.show(world.statement())
    assert world.believes_the_new_history()


# the statement itself


def test_it_says_what_it_says(world: World) -> None:
    statement = world.statement()
    jws = sign_history(statement, world.registry.root)
    assert read_history(jws, world.registry.root.public, domain="test.internal", now=world.clock.now) == statement
    assert HistoryStatement.from_claims(statement.claims()) == statement
    assert jose.parse(jws).header.typ == HISTORY_TYP == "peerseal-history+jwt"


MALFORMED: dict[str, dict[str, Any]] = {
    "nothing lost": {"lost": {"size": 3, "root": b64url(bytes(32))}},
    "nothing in common": {"common": {"size": 0, "root": b64url(bytes(32))}},
    "a new head before the common one": {"new": {"size": 1, "root": b64url(bytes(32))}},
    "a root that is none": {"new": {"size": 9, "root": "AA"}},
    "a size that is none": {"new": {"size": "9", "root": b64url(bytes(32))}},
    "another issuer": {"iss": "test.internal/shop"},
    "no time": {"iat": None},
    "a head that is none": {"lost": []},
}


@pytest.mark.parametrize("changes", MALFORMED.values(), ids=MALFORMED)
def test_claims_that_make_no_sense_are_refused(world: World, changes: dict[str, Any]) -> None:
    with pytest.raises(MalformedToken):
        HistoryStatement.from_claims(world.statement().claims() | changes)


def test_a_statement_from_the_future_is_refused(world: World) -> None:
    jws = sign_history(world.statement(issued_at=int(world.clock.now) + 3600), world.registry.root)
    with pytest.raises(DocumentRefused) as caught:
        read_history(jws, world.registry.root.public, domain="test.internal", now=world.clock.now)
    assert caught.value.code == "document_from_future"


def test_several_statements_lead_from_one_head_to_the_next_whatever_their_order(world: World) -> None:
    third = Head(90, bytes(31) + b"\3")
    first = world.statement()
    second = world.statement(
        issued_at=first.issued_at + 100, common=Head(4, bytes(32)), lost=Head(80, bytes(32)), new=third
    )
    for order in ([first, second], [second, first]):
        excused = excused_by(order, world.lost, 0.0)
        assert excused is not None
        assert excused.new == third
    assert excused_by([first], world.lost, first.issued_at + 3600.0) is None
    assert excused_by([first], world.common, 0.0) is None
