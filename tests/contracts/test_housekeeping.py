"""What goes by itself, and what stays: on both databases."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from registry.domain.errors import StorageUnavailable
from registry.domain.rebuild import rebuild
from registry.limits import Limits
from registry.services.access.operators import Role
from registry.services.housekeeping import EVERY, Housekeeping
from registry.services.setup.initialise import initialise
from registry.storage.tables import metadata
from registry.storage.unit import Store
from tests.registry.driver import DOMAIN, Clock, Driver, entries_of, tables_of
from tests.support.keys import key

LIMITS = Limits(spent_kept=10_000, applicant_ttl=500)


@pytest.fixture
def registry(registry_database: str, tmp_path: Path, clock: Clock) -> Iterator[Driver]:
    driver = Driver(registry_database, tmp_path / "home", clock, applicants=True, limits=LIMITS)
    yield driver
    driver.close()


def sizes(store: Store) -> dict[str, int]:
    """Rows in each table."""
    with store.read() as connection:
        return {name: len(connection.execute(table.select()).all()) for name, table in metadata.tables.items()}


def test_applicants_and_tokens_go_after_their_end_and_entries_stay(registry: Driver, clock: Clock) -> None:
    tidy = registry.registry.housekeeping.tidy
    assert registry.post_key("billing", {"proof": registry.proof(key(), "billing")}).status_code == 202
    mine = registry.joined(key(), "billing")
    registry.rotate(mine, key(), "billing")
    registry.registry.operators.create(Role.VIEWER, 600)
    nothing = {"applicants": 0, "console_sessions": 0, "join_tokens": 0, "operator_tokens": 0, "used_tokens": 0}
    assert tidy() == nothing
    entries, audited = entries_of(registry.store), sizes(registry.store)["audit"]
    clock.forward(500)
    assert tidy() == {**nothing, "applicants": 1, "used_tokens": 1}
    clock.forward(100 + LIMITS.spent_kept - 1)
    assert tidy() == nothing
    clock.forward(1)
    assert tidy() == {**nothing, "join_tokens": 1, "operator_tokens": 1}
    assert (entries_of(registry.store), sizes(registry.store)["audit"]) == (entries, audited)
    before = clock.now - LIMITS.spent_kept
    rebuilt, tables = rebuild(entries), tables_of(registry.store)
    assert rebuilt != tables
    assert rebuilt.without_past_tokens(before) == tables.without_past_tokens(before)
    assert registry.statement("billing", mine).state == "active"


def test_it_happens_by_itself_after_a_change_once_in_a_while(registry: Driver, clock: Clock) -> None:
    registry.join_token("billing", ttl=1)
    clock.forward(LIMITS.spent_kept + EVERY)
    registry.client.get("/v1/services", headers=registry.operator)
    registry.post_key("billing", b"nonsense")
    assert sizes(registry.store)["join_tokens"] == 1, "neither reading nor a refusal tidies up"
    mine = registry.joined(key(), "billing")
    assert sizes(registry.store)["join_tokens"] == 1, "the new one"
    clock.forward(LIMITS.spent_kept)
    for seconds, left in ((EVERY - LIMITS.spent_kept - 1, 1), (LIMITS.spent_kept, 0)):
        clock.forward(seconds)
        registry.rotate(mine, mine := key(), "billing")
        assert sizes(registry.store)["join_tokens"] == left


def test_its_failure_affects_no_caller(registry: Driver, monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    def down(_: Housekeeping) -> None:
        raise StorageUnavailable("down")

    monkeypatch.setattr(Housekeeping, "tidy", down)
    clock.forward(EVERY)
    registry.joined(key(), "billing")


def test_the_first_operator_is_not_made_again_when_all_are_long_past(registry: Driver, clock: Clock) -> None:
    clock.forward(90 * 24 * 3600 + LIMITS.spent_kept)
    assert registry.registry.housekeeping.tidy()["operator_tokens"] == 1
    assert initialise(registry.settings, registry.store, DOMAIN, clock).operator_token is None


def test_restarts_and_further_keys_add_only_entries_and_keys(registry: Driver, clock: Clock) -> None:
    def a_day(number: int) -> None:
        """A restart, a new instance with a token of its own, and its end."""
        node = registry.node(limits=LIMITS, applicants=True)
        mine = node.joined(key(), "billing")
        node.rotate(mine, following := key(), "billing")
        for each in (mine, following):
            node.end(each, "billing", "retired")
        node.post_key(f"s{number}", {"proof": node.proof(key(), f"s{number}")})
        clock.forward(24 * 3600)
        node.registry.housekeeping.tidy()
        node.close()

    a_day(0)
    before, tokens = sizes(registry.store), tables_of(registry.store)
    for number in range(1, 4):
        a_day(number)
    after = sizes(registry.store)
    grown = {name for name in after if after[name] > before[name]}
    assert grown == {"entries", "keys", "audit"}
    assert tables_of(registry.store).documents == tokens.documents
