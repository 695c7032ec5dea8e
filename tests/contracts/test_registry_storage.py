"""What the registry promises on every database it runs on: each test runs on SQLite and on PostgreSQL."""

import fcntl
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, insert, make_url, update

from peerseal.errors import PeersealError
from peerseal.protocol import jose
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.ledger.checkpoint import TILE_WIDTH
from peerseal.protocol.ledger.merkle import Frontier, check_consistency
from peerseal.protocol.names import service_id
from registry.domain.errors import StorageUnavailable
from registry.domain.rebuild import rebuild
from registry.limits import Limits
from registry.services.access.operators import Role
from registry.storage.engine import create_engine
from registry.storage.migrate import SCHEMA_REVISION, current_revision, migrate, newest_revision
from registry.storage.queries import ledger
from registry.storage.queries.used_tokens import PURGE_EVERY, DatabaseReplayGuard
from registry.storage.tables import entries, keys, metadata
from tests.registry.driver import BY, DOMAIN, Clock, Driver, entries_of, evidence_of, joined_at_once, tables_of
from tests.support.keys import key

ROOT = Path(__file__).parents[2]


def at_once(count: int, action: Callable[[int], int]) -> list[int]:
    """The action in that many threads, all let go at the same moment."""
    gate = threading.Barrier(count)

    def run(number: int) -> int:
        gate.wait()
        return action(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


# the life of a key


def test_a_join_token_admits_a_key_and_its_statement_comes_back(registry: Driver, clock: Clock) -> None:
    mine = key()
    response = registry.join(mine, "billing", registry.join_token("billing"))
    assert response.status_code == 201
    assert response.content_type == "application/jwt"
    assert response.headers["Location"] == f"/v1/services/billing/keys/{mine.public.thumbprint}"
    statement = registry.read(type(registry.statement("billing", mine)), response.text)
    assert statement == registry.statement("billing", mine)
    assert statement.subject == service_id(DOMAIN, "billing")
    assert (statement.state, statement.active_from) == ("active", int(clock.now))
    assert statement.active_until == int(clock.now) + 7 * 24 * 3600
    assert statement.admission.index == statement.seq - 1


def test_the_same_key_again_is_unchanged_and_spends_nothing(registry: Driver) -> None:
    mine, token = key(), registry.join_token("billing", uses=2)
    first = registry.join(mine, "billing", token)
    size = len(entries_of(registry.store))
    again = registry.join(mine, "billing", token)
    bare = registry.post_key("billing", {"proof": registry.proof(mine, "billing")})
    assert [first.status_code, again.status_code, bare.status_code] == [201, 200, 200]
    assert len(entries_of(registry.store)) == size
    assert registry.join(key(), "billing", token).status_code == 201  # the second use is still there


def test_rotation_is_vouched_by_the_old_key_and_recorded(registry: Driver) -> None:
    old, new = registry.joined(key(), "billing"), key()
    assert registry.rotate(old, new, "billing").status_code == 201
    kids = [entry.kid for entry in registry.key_set("billing").keys]
    assert [kid.rpartition("/")[2] for kid in kids] == [old.public.thumbprint, new.public.thumbprint]
    record = registry.client.get(f"/v1/services/billing/keys/{new.public.thumbprint}").get_json()
    assert record["admitted_by"] == {"kid": kids[0]}
    entry = entries_of(registry.store)[-1]
    evidence = evidence_of(registry.store, entry)
    vouch, proof = jose.parse(evidence["vouch"]), jose.parse(evidence["proof"])
    assert old.public.verify(vouch.signing_input, vouch.signature), "the entry commits to the old key's own signature"
    assert new.public.verify(proof.signing_input, proof.signature), "and so is the new one's"


def test_retiring_ends_the_window_and_leaves_the_set_later(registry: Driver, clock: Clock) -> None:
    old = registry.joined(key(), "billing")
    registry.rotate(old, new := key(), "billing")
    clock.forward(100)
    assert registry.end(old, "billing", "retired").status_code == 204
    evidence = jose.parse(evidence_of(registry.store, entries_of(registry.store)[-1])["token"])
    assert old.public.verify(evidence.signing_input, evidence.signature), "a key ends itself in its own name"
    shown = registry.key_set("billing").keys
    assert [entry.state for entry in shown] == ["retired", "active"]
    assert shown[0].active_until == int(clock.now)
    plain = registry.client.get("/v1/services/billing/jwks.json").get_json()["keys"]
    assert [jwk["kid"].rpartition("/")[2] for jwk in plain] == [new.public.thumbprint]
    clock.forward(registry.settings.limits.signing_period)
    assert [entry.state for entry in registry.key_set("billing").keys] == ["active"]
    assert registry.statement("billing", old).state == "retired"  # past keys stay


def test_a_key_past_its_natural_end_counts_as_retired(registry: Driver, clock: Clock) -> None:
    mine = registry.joined(key(), "billing")
    clock.forward(7 * 24 * 3600 - 1)
    assert registry.statement("billing", mine).state == "active"
    clock.forward(1)
    assert registry.statement("billing", mine).state == "retired"
    assert [entry.state for entry in registry.key_set("billing").keys] == ["retired"]
    response = registry.join(mine, "billing", registry.join_token("billing"))
    assert (response.status_code, response.get_json()["code"]) == (409, "key_retired")


def test_revocation_takes_every_descendant_with_it_one_entry_each(registry: Driver) -> None:
    root, child, grandchild, other = registry.joined(key(), "billing"), key(), key(), registry.joined(key(), "billing")
    registry.rotate(root, child, "billing")
    registry.rotate(child, grandchild, "billing")
    size = len(entries_of(registry.store))
    assert registry.operator_ends(root, "billing").status_code == 204
    revoked = [entry.kid for entry in entries_of(registry.store)[size:]]
    expected = [root, child, grandchild]
    assert revoked == [f"{DOMAIN}/billing/{each.public.thumbprint}" for each in expected]
    shown = registry.key_set("billing")
    assert [entry.kid.rpartition("/")[2] for entry in shown.keys] == [other.public.thumbprint]
    assert [entry.kid for entry in shown.revoked] == revoked
    assert [entry.index for entry in shown.revoked] == [size, size + 1, size + 2]
    assert registry.operator_ends(root, "billing").status_code == 204  # again: nothing left to do
    assert len(entries_of(registry.store)) == size + 3


def test_the_changes_name_the_revoked_keys_of_the_services_that_changed(registry: Driver) -> None:
    root, child, other = registry.joined(key(), "billing"), key(), registry.joined(key(), "shop")
    registry.rotate(root, child, "billing")
    registry.operator_ends(other, "shop")
    size = len(entries_of(registry.store))
    assert registry.changes(size).revoked == ()
    assert registry.operator_ends(root, "billing").status_code == 204
    changes = registry.changes(size)
    assert changes.services == (f"{DOMAIN}/billing",)
    assert set(changes.revoked) == {f"{DOMAIN}/billing/{each.public.thumbprint}" for each in (root, child)}
    assert set(registry.changes(0).revoked) == {*changes.revoked, f"{DOMAIN}/shop/{other.public.thumbprint}"}


def test_a_revoked_key_never_comes_back_and_vouches_for_nothing(registry: Driver) -> None:
    mine = registry.joined(key(), "billing")
    assert registry.end(mine, "billing", "compromised").status_code == 204
    again = registry.join(mine, "billing", registry.join_token("billing"))
    assert (again.status_code, again.get_json()["code"]) == (409, "key_revoked")
    rotation = registry.rotate(mine, key(), "billing")
    assert (rotation.status_code, rotation.get_json()["code"]) == (401, "revoked_key")


def test_a_retired_key_vouches_for_nothing(registry: Driver) -> None:
    mine = registry.joined(key(), "billing")
    assert registry.end(mine, "billing", "retired").status_code == 204
    rotation = registry.rotate(mine, key(), "billing")  # signed within leeway of its end: the use case has to look
    assert (rotation.status_code, rotation.get_json()["code"]) == (403, "caller_not_allowed")


def test_a_key_is_of_one_service_for_ever(registry: Driver) -> None:
    mine = registry.joined(key(), "billing")
    response = registry.join(mine, "shipping", registry.join_token("shipping"))
    assert (response.status_code, response.get_json()["code"]) == (409, "key_of_another_service")


# what is served from memory is never older than the last commit of any node


def test_a_change_on_another_node_is_seen_at_once(registry: Driver) -> None:
    other = registry.node()
    mine = registry.joined(key(), "billing")
    for _ in range(5):
        before = other.key_set("billing")
        assert before == registry.key_set("billing")
        registry.rotate(mine, following := key(), "billing")
        after = other.key_set("billing")
        assert after.seq == after.head == before.seq + 1
        assert after == registry.key_set("billing")
        mine = following
    other.close()


def test_an_answer_as_of_an_entry(registry: Driver) -> None:
    registry.joined(key(), "billing")
    seq = registry.key_set("billing").seq
    registry.joined(key(), "shipping")
    head = registry.key_set("shipping").head
    assert head > seq
    assert registry.key_set("billing").head == seq  # unchanged, from memory
    assert registry.key_set("billing", f"?seq={head}").head == head
    response = registry.client.get(f"/v1/services/billing/jwks.jwt?seq={head + 1}")
    assert (response.status_code, response.get_json()["code"]) == (503, "behind")
    assert response.headers["Retry-After"] == "1"


def test_changes_name_the_services_that_changed(registry: Driver) -> None:
    start = registry.changes(0).seq
    registry.joined(key(), "billing")
    middle = registry.changes(start)
    registry.joined(key(), "shipping")
    assert middle.services == (f"{DOMAIN}/billing",)
    assert registry.changes(start).services == (f"{DOMAIN}/billing", f"{DOMAIN}/shipping")
    latest = registry.changes(middle.seq)
    assert (latest.services, latest.reset) == ((f"{DOMAIN}/shipping",), False)
    assert registry.changes(latest.seq).services == ()
    beyond = registry.changes(latest.seq + 1)
    assert (beyond.services, beyond.reset) == ((), True)


# limits


def test_changes_bring_the_proof_that_the_ledger_continues(registry: Driver) -> None:
    for name in ("billing", "shipping", "orders"):
        registry.joined(key(), name)
    leaves = [entry.leaf for entry in entries_of(registry.store)]

    def root(size: int) -> bytes:
        return reduce(Frontier.appended, leaves[:size], Frontier()).root

    for since in range(1, len(leaves) + 1):
        changes = registry.changes(since)
        assert changes.proof is not None
        check_consistency(since, root(since), changes.seq, root(changes.seq), changes.proof)
    assert registry.changes(0).proof is None
    assert registry.changes(len(leaves) + 1).proof is None


def test_a_stolen_key_cannot_make_the_signed_set_too_large(
    registry_database: str, tmp_path: Path, clock: Clock
) -> None:
    registry = Driver(registry_database, tmp_path / "home", clock, limits=Limits(vouched_keys=6, joined_keys=3))
    stolen, token = registry.joined(key(), "billing"), registry.join_token("billing", uses=9, ttl=7200)
    for _ in range(3):  # whatever becomes of the keys that it vouched for, they count
        assert registry.rotate(stolen, new := key(), "billing").status_code == 201
        assert registry.end(new, "billing", "retired").status_code == 204
    assert registry.rotate(stolen, new := key(), "billing").status_code == 201
    assert registry.end(new, "billing", "compromised").status_code == 204
    clock.forward(1000)
    statuses = at_once(4, lambda _: registry.rotate(stolen, key(), "billing").status_code)
    assert sorted(statuses) == [201, 201, 409, 409], "counted under the lock"
    refused = registry.rotate(stolen, key(), "billing")
    assert (refused.status_code, refused.get_json()["code"]) == (409, "too_many_keys")
    assert registry.join(mine := key(), "billing", token).status_code == 201, "the owner can still join"
    assert registry.operator_ends(stolen, "billing").status_code == 204
    listed = registry.key_set("billing")
    assert (len(listed.keys), len(listed.revoked)) == (1, 7)
    assert registry.rotate(mine, key(), "billing").status_code == 409
    assert [registry.join(key(), "billing", token).status_code for _ in range(3)] == [201, 201, 409]
    clock.forward(7 * 24 * 3600 - 1000 + registry.settings.limits.retired_shown - 1)
    assert registry.rotate(mine, key(), "billing").status_code == 409, "what the thief made first is still listed"
    clock.forward(1)
    assert registry.rotate(mine, key(), "billing").status_code == 201
    registry.close()


# what is no text to a database


@pytest.mark.parametrize("join_id", ["\0", "a\0b", "\n", "\u00fc", "x" * 33, ""])
def test_a_join_id_of_any_characters_is_refused_as_every_other(registry: Driver, join_id: str) -> None:
    body = {"proof": registry.proof(key(), "billing"), "join": {"id": join_id, "mac": "x"}}
    response = registry.post_key("billing", body)
    assert (response.status_code, response.get_json()["code"]) == (401, "join_refused")


@pytest.mark.parametrize("path", ["/v1/services?after=%00", "/v1/join-tokens?after=a%00b", "/v1/services?limit=%00"])
def test_control_characters_in_a_query(registry: Driver, path: str) -> None:
    response = registry.client.get(path, headers=registry.operator)
    assert (response.status_code, response.get_json()["code"]) == (400, "invalid_parameter")


@pytest.mark.parametrize("token_id", ["%00", "a%0a", "%C3%BC", "x" * 33])
def test_ids_in_a_path_that_are_none(registry: Driver, token_id: str) -> None:
    response = registry.client.delete(f"/v1/join-tokens/{token_id}", headers=registry.operator)
    assert response.status_code == 404


def test_an_error_of_the_database_is_logged_without_parameters(
    registry: Driver, caplog: pytest.LogCaptureFixture
) -> None:
    mine = registry.joined(key(), "billing")
    with registry.store.write() as connection:
        newest = connection.execute(entries.select().order_by(entries.c.seq.desc()).limit(1)).mappings().one()
        connection.execute(insert(entries).values({**newest, "seq": newest["seq"] + 1}))  # so the next number is taken
    assert registry.rotate(mine, key(), "billing").status_code == 500
    assert "IntegrityError" in caplog.text
    assert "[parameters:" not in caplog.text


# writers at once


def test_a_single_use_join_token_admits_one_of_ten(registry: Driver) -> None:
    token = registry.join_token("billing")
    statuses = at_once(10, lambda _: registry.join(key(), "billing", token).status_code)
    assert sorted(statuses) == [201] + [401] * 9
    assert rebuild(entries_of(registry.store)) == tables_of(registry.store)


def test_one_key_registered_ten_times_at_once_is_one_key(registry: Driver) -> None:
    token, mine = registry.join_token("billing"), key()
    statuses = at_once(10, lambda _: registry.join(mine, "billing", token).status_code)
    assert sorted(statuses) == [200] * 9 + [201], statuses
    assert rebuild(entries_of(registry.store)) == tables_of(registry.store)


def test_newcomers_of_several_services_in_one_transaction(registry: Driver) -> None:
    tokens = {name: registry.join_token(name, uses=9) for name in ("shipping", "billing")}
    newcomers = [(key(), name, tokens[name]) for name in ("billing", "shipping", "billing", "shipping", "billing")]
    assert joined_at_once(registry, *newcomers) == [201] * 5
    assert rebuild(entries_of(registry.store)) == tables_of(registry.store)
    for mine, name, _ in newcomers:
        assert registry.statement(name, mine).state == "active"


def test_in_one_transaction_a_token_admits_as_many_as_it_has_uses(registry: Driver) -> None:
    token, other = registry.join_token("billing", uses=3), registry.join_token("shipping")
    newcomers = [(key(), "billing", token) for _ in range(6)]
    statuses = joined_at_once(registry, *newcomers, (key(), "shipping", other))
    assert (sorted(statuses[:6]), statuses[6]) == ([201] * 3 + [401] * 3, 201)
    assert rebuild(entries_of(registry.store)) == tables_of(registry.store)


def test_in_one_transaction_the_cap_on_a_services_keys_holds(
    registry_database: str, tmp_path: Path, clock: Clock
) -> None:
    registry = Driver(registry_database, tmp_path / "home", clock, limits=Limits(joined_keys=3))
    tokens = [registry.join_token("billing", uses=9) for _ in range(2)]
    statuses = joined_at_once(registry, *((key(), "billing", tokens[number % 2]) for number in range(6)))
    assert sorted(statuses) == [201] * 3 + [409] * 3
    assert rebuild(entries_of(registry.store)) == tables_of(registry.store)
    registry.close()


def test_one_key_twice_in_one_transaction_fails_no_other_key(registry: Driver) -> None:
    token, twice = registry.join_token("billing", uses=9), key()
    newcomers = [(one, "billing", token) for one in (key(), twice, key(), twice)]
    statuses = joined_at_once(registry, *newcomers)
    assert (statuses[0], statuses[2], sorted([statuses[1], statuses[3]])) == (201, 201, [200, 201])
    assert rebuild(entries_of(registry.store)) == tables_of(registry.store)


def test_a_transaction_of_many_completes_the_tiles_on_its_way(registry: Driver) -> None:
    fill(registry, 253)
    token = registry.join_token("billing", uses=9)
    assert joined_at_once(registry, *((key(), "billing", token) for _ in range(6))) == [201] * 6
    assert len(entries_of(registry.store)) > TILE_WIDTH
    assert registry.client.get("/ledger/tile/0/000").status_code == 200
    with registry.store.look() as connection:
        hashes = [entry.leaf for entry in entries_of(registry.store)[:TILE_WIDTH]]
        assert ledger.tile(connection, 0, 0) == b"".join(hashes)


def fill(registry: Driver, size: int) -> None:
    """Entries up to that many, of which no table knows."""
    with registry.store.write() as connection:
        missing = size - ledger.head(connection)
        ledger.append(connection, int(registry.clock()), *(ledger.Change("filler", data={}) for _ in range(missing)))


def test_one_key_for_ten_services_at_once_is_of_one(registry: Driver) -> None:
    mine = key()
    tokens = [registry.join_token(f"service{number}") for number in range(10)]
    statuses = at_once(10, lambda number: registry.join(mine, f"service{number}", tokens[number]).status_code)
    assert sorted(statuses) == [201] + [409] * 9
    assert rebuild(entries_of(registry.store)) == tables_of(registry.store)


def test_no_successor_outlives_a_concurrent_revocation(registry: Driver) -> None:
    for _ in range(10):
        mine = registry.joined(key(), "billing")
        successors = [key() for _ in range(3)]

        def act(number: int, mine: KeyPair = mine, successors: list[KeyPair] = successors) -> int:
            if number == 3:
                return registry.operator_ends(mine, "billing").status_code
            return registry.rotate(mine, successors[number], "billing").status_code

        at_once(4, act)
        assert not registry.key_set("billing").keys


WRITER = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from peerseal.protocol.join import JoinToken
from peerseal.protocol.keys import KeyPair
from tests.registry.driver import Driver
from tests.support.waiting import until

url, home, token, service = sys.argv[1:]
registry = Driver(url, Path(home))

def write(number):
    mine = KeyPair.generate("ES256")
    statuses = [registry.join(mine, service, JoinToken.parse(token)).status_code]
    for _ in range(4):
        following = KeyPair.generate("ES256")
        statuses.append(registry.rotate(mine, following, service).status_code)
        if number % 2:
            statuses.append(registry.end(mine, service, "retired").status_code)
        mine = following
    if number == 0:
        statuses.append(registry.end(mine, service, "compromised").status_code)
    return statuses

with ThreadPoolExecutor(8) as pool:
    print(*(status for statuses in pool.map(write, range(8)) for status in statuses))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "services",
    [
        pytest.param(("billing", "billing"), id="one"),
        pytest.param(("billing", "shipping"), id="two", marks=pytest.mark.thorough),
    ],
)
def test_two_processes_of_eight_threads_leave_a_gapless_ledger(
    registry_database: str, tmp_path: Path, services: tuple[str, str]
) -> None:
    registry = Driver(registry_database, tmp_path / "home")
    size = len(entries_of(registry.store))
    tokens = [registry.join_token(service, uses=8).encode() for service in services]
    commands = [
        [sys.executable, "-c", WRITER, registry_database, str(registry.home), token, service]
        for token, service in zip(tokens, services, strict=True)
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [subprocess.Popen(each, stdout=subprocess.PIPE, text=True, env=environment) for each in commands]
    statuses = [status for process in processes for status in process.communicate()[0].split()]
    assert [process.returncode for process in processes] == [0, 0]
    assert sorted(set(statuses)) == ["201", "204"]
    entries = entries_of(registry.store)
    assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
    assert len(entries) == size + 2 + len(statuses)
    assert rebuild(entries) == tables_of(registry.store)
    registry.close()


# the tables are what the entries say


TOKENS = ("token", "withdraw", "operator", "dismiss")
ACTIONS = (*TOKENS, "join", "join", "rotate", "rotate", "apply", "approve", "retire", "revoke", "wait", "tidy")


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], print_blob=True)
@given(actions=st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 10_000)), min_size=5, max_size=40))
def test_entries_alone_rebuild_the_tables(registry: Driver, clock: Clock, actions: list[tuple[str, int]]) -> None:
    """Each example goes on where the one before stopped, so the history grows long."""
    history = _History(registry, clock)
    for action, number in actions:
        history.act(action, random.Random(number))
    remembered = clock.now - registry.settings.limits.spent_kept
    rebuilt, tables = rebuild(entries_of(registry.store)), tables_of(registry.store)
    assert rebuilt.without_past_tokens(remembered) == tables.without_past_tokens(remembered)
    assert tables.join_tokens.items() <= rebuilt.join_tokens.items()
    assert tables.operators.items() <= rebuilt.operators.items()


class _History:
    """Random changes by the use cases; what they refuse must leave no trace."""

    SERVICES = ("billing", "shipping", "a.b")

    def __init__(self, registry: Driver, clock: Clock) -> None:
        self._registry, self._clock = registry, clock
        self._tokens = [(registry.join_token("billing", uses=3), "billing")]
        self._keys = [(registry.joined(key(), "billing"), "billing")]
        self._operators = [registry.registry.operators.create(Role.VIEWER, 600)[0].id]
        self._applicants: list[tuple[KeyPair, str]] = []

    def act(self, action: str, chance: random.Random) -> None:  # noqa: C901, PLR0912 - a branch for each action
        registry, (mine, service) = self._registry, chance.choice(self._keys)
        token, token_service = chance.choice(self._tokens)
        try:
            if action == "token":
                name = chance.choice(self.SERVICES)
                self._tokens.append((registry.join_token(name, uses=chance.randint(1, 3), ttl=1000), name))
            elif action == "withdraw":
                registry.registry.join_tokens.withdraw(token.id, BY)
            elif action == "join":
                new = chance.choice([key(), mine])
                if registry.join(new, token_service, token).status_code == 201:
                    self._keys.append((new, token_service))
            elif action == "rotate":
                if registry.rotate(mine, new := key(), service).status_code == 201:
                    self._keys.append((new, service))
            elif action == "retire":
                registry.end(mine, service, "retired")
            elif action == "revoke":
                registry.operator_ends(mine, service)
            elif action == "operator":
                self._operators.append(registry.registry.operators.create(Role.OPERATOR, 600)[0].id)
            elif action == "dismiss":
                registry.registry.operators.revoke(chance.choice(self._operators))
            elif action == "apply":
                self._applicants.append((new := key(), service))
                registry.registry.applicants.apply(service, registry.proof(new, service))
            elif action == "approve" and self._applicants:
                applicant = chance.choice(self._applicants)
                registry.registry.applicants.approve(applicant[1], applicant[0].public.thumbprint, BY)
                self._keys.append(applicant)
            elif action == "tidy":
                registry.registry.housekeeping.tidy()
            elif action == "wait":
                self._clock.forward(chance.choice([1, 400, 2 * 24 * 3600]))
        except PeersealError:
            pass


def test_an_altered_row_is_told_from_what_the_entries_say(registry: Driver) -> None:
    mine = registry.joined(key(), "billing")
    registry.operator_ends(mine, "billing")
    with registry.store.write() as connection:
        connection.execute(update(keys).values(revoked_at=None, revoked_seq=None))
    assert rebuild(entries_of(registry.store)) != tables_of(registry.store)
    with registry.store.write() as connection:
        connection.execute(delete(keys))
    assert rebuild(entries_of(registry.store)) != tables_of(registry.store)


# replay guard


def test_the_replay_guard_lets_one_of_twenty_pass(registry: Driver, clock: Clock) -> None:
    guards = [DatabaseReplayGuard(registry.store, clock), DatabaseReplayGuard(registry.node().store, clock)]
    claims = at_once(20, lambda number: guards[number % 2].claim("a/b", "jti", clock.now + 60))
    assert sorted(claims) == [False] * 19 + [True]
    assert guards[0].claim("a/c", "jti", clock.now + 60)
    assert guards[1].claim("a/b", "jti2", clock.now + 60)


def test_the_replay_guard_forgets_what_is_past(registry: Driver, clock: Clock) -> None:
    guard = DatabaseReplayGuard(registry.store, clock)
    assert guard.claim("a/b", "jti", clock.now + 60)
    clock.forward(PURGE_EVERY + 10)
    assert guard.claim("a/b", "other", clock.now + 60)
    assert guard.claim("a/b", "jti", clock.now + 60)


# schema


def test_migrations_and_tables_say_the_same(registry_database: str) -> None:
    engine = create_engine(registry_database)
    assert migrate(engine) == newest_revision() == SCHEMA_REVISION
    with engine.connect() as connection:
        assert current_revision(connection) == SCHEMA_REVISION
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


def test_a_migration_waits_for_another_only_so_long(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry.storage.migrate.LOCK_WAIT", 0.3)
    engine = create_engine(sqlite_url)
    with open(f"{make_url(sqlite_url).database}.migrate-lock", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(StorageUnavailable, match="another node"):
            migrate(engine)
    assert migrate(engine) == SCHEMA_REVISION
    engine.dispose()


def test_many_nodes_migrate_at_once(registry_database: str) -> None:
    engines = [create_engine(registry_database) for _ in range(6)]
    assert at_once(6, lambda number: migrate(engines[number]) == SCHEMA_REVISION) == [True] * 6
    for engine in engines:
        engine.dispose()


def test_many_nodes_open_a_new_sqlite_file_at_once(tmp_path: Path) -> None:
    """Of those that turn one file to write-ahead logging SQLite refuses all but one, whatever wait it was given."""
    for number in range(100):
        engines = [create_engine(f"sqlite:///{tmp_path}/{number}.db") for _ in range(6)]
        opened = at_once(6, lambda node, engines=engines: engines[node].connect().close() is None)
        assert opened == [True] * 6
        for engine in engines:
            engine.dispose()


# forks


@pytest.mark.usefixtures("quiet_collector")
def test_a_forked_child_has_connections_of_its_own(registry: Driver) -> None:
    registry.joined(key(), "billing")
    registry.key_set("billing")
    child = os.fork()
    if child == 0:  # the parent's connections are open at this moment, and must be neither used nor closed here
        status = 1
        try:
            registry.joined(key(), "billing")
            status = int(len(registry.key_set("billing").keys) != 2)
        finally:
            os._exit(status)
    for _ in range(20):
        registry.joined(key(), "shipping")
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(registry.key_set("billing").keys) == 2
    assert rebuild(entries_of(registry.store)) == tables_of(registry.store)
