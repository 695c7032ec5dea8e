"""Calls for changes that wait for the first one, on both databases."""

import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url
from werkzeug.test import TestResponse

from peerseal.protocol.documents.changes import Changes
from registry.domain.errors import StorageUnavailable
from registry.limits import Limits
from registry.services.authority.authority import Authority
from registry.services.documents import changes as changes_module
from registry.services.documents.changes import WaitingCalls
from registry.storage import revisions as revisions_module
from registry.storage.migrate import migrate
from registry.storage.revisions import CHANNEL, commit_listener, revisions
from tests.registry.driver import BY, DOMAIN, Clock, Driver, fail_revisions
from tests.support.keys import key
from tests.support.postgres import running_postgres
from tests.support.waiters import ask, waiters
from tests.support.waiting import until

SOON = 10.0
"""Seconds within which word of a change comes, on a busy machine as well; a call waits for 20."""


def told(registry: Driver, call: "Future[TestResponse]", within: float = SOON) -> Changes:
    """What a waiting call is told, in that time."""
    answer = call.result(within)
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-cache, no-transform"
    return registry.read(Changes, answer.text)


def change(registry: Driver, service: str) -> Callable[[], object]:
    """What admits a key of that service, and is one entry."""
    new, token = key(), registry.join_token(service)
    return lambda: registry.join(new, service, token)


def follows(registry: Driver) -> bool:
    """Whether a thread follows the ledger."""
    return registry.registry.changes.waiting.followed


@pytest.mark.parametrize("registry_database", ["sqlite", "postgres"], indirect=True)  # no word through a pooler
def test_a_change_on_another_node_is_told_without_looking_for_it(
    registry: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revisions_module, "LOOK_AFTER", 60)  # so that PostgreSQL has to say so
    other = registry.node()
    for service in ("billing", "shipping", "billing"):
        admit = change(other, service)
        with waiters(registry, 3) as calls:
            admit()
            assert {told(registry, call).services for call in calls} == {(f"{DOMAIN}/{service}",)}
    other.close()


def test_a_change_of_the_same_process_is_told_without_looking_for_it(
    registry: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(revisions_module, "SQLITE_LOOK_AFTER", 60)
    monkeypatch.setattr(revisions_module, "LOOK_AFTER", 60)
    admit = change(registry, "billing")
    with waiters(registry, 2) as calls:
        admit()
        assert [told(registry, call).services for call in calls] == [(f"{DOMAIN}/billing",)] * 2


def test_what_is_known_already_is_told_at_once(registry: Driver) -> None:
    before = registry.changes(0).seq
    registry.joined(key(), "billing")
    began = time.monotonic()
    assert registry.read(Changes, ask(registry, before).text).services == (f"{DOMAIN}/billing",)
    assert registry.read(Changes, ask(registry, before + 1000).text).reset
    assert ask(registry, before, wait=21).status_code == 400
    assert time.monotonic() - began < 5
    assert len(registry.registry.changes.waiting) == 0


def test_calls_that_come_together_after_a_quiet_time_are_both_told(registry: Driver) -> None:
    feed, other = registry.registry.changes, registry.node()
    with waiters(registry, 1):
        other.join_token("billing")
    head = registry.changes(0).seq
    until(lambda: not feed.waiting.pausing)
    places = [feed.wait(head, "127.0.0.1") for _ in range(2)]
    other.join_token("billing")
    for place in places:
        assert place is not None
        place.wait(20)
        assert place.answer is not None
    other.close()


@pytest.mark.parametrize(
    ("allowed", "held", "wait"), [(None, None, 0), (None, 2, 2), (2, None, 2), (3, 2, 2), (2, 3, 2), (0, 3, 0)]
)
def test_no_more_calls_wait_than_the_server_holds_and_the_operator_allows(
    registry: Driver, allowed: int | None, held: int | None, wait: int
) -> None:
    engine, limits = registry.store.engine, Limits(waiting_calls=allowed)
    waiting = WaitingCalls(
        revisions(engine).head, lambda _: (), registry.registry.changes.since, lambda: commit_listener(engine), limits
    )
    if held is not None:
        waiting.server_holds(held)
    head = registry.changes(0).seq
    places = [waiting.add(head, f"192.0.2.{number}") for number in range(5)]
    assert [place is not None for place in places] == [True] * wait + [False] * (5 - wait)
    waiting.end()


def test_on_a_server_of_one_thread_no_call_waits(registry: Driver) -> None:
    head, began = registry.changes(0).seq, time.monotonic()
    path = f"/v1/changes?since={head}&wait=20"
    assert registry.client.get(path, environ_overrides={"wsgi.multithread": False}).status_code == 200
    assert time.monotonic() - began < 5


def test_who_waits_in_vain_is_told_that_nothing_changed(registry: Driver) -> None:
    head, began = registry.changes(0).seq, time.monotonic()
    changes = registry.read(Changes, ask(registry, head, wait=1).text)
    assert 1 <= time.monotonic() - began < 5
    assert (changes.since, changes.seq, changes.services, changes.reset) == (head, head, (), False)


def test_one_list_is_signed_for_all_who_wait(registry: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    other, signed = registry.node(), []
    sign = Authority.sign
    with waiters(registry, 100) as calls:
        monkeypatch.setattr(Authority, "sign", lambda own, document: signed.append(document) or sign(own, document))
        other.registry.join_tokens.create("billing", 600, 1, BY)
        bodies = {call.result(10).data for call in calls}
    assert len(bodies) == 1
    assert [type(document) for document in signed] == [Changes]
    other.close()


def test_changes_that_come_one_upon_the_other_are_told_together(
    registry: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A peer that was told asks again: each change would be one more call of each peer."""
    monkeypatch.setattr(changes_module, "PAUSE", 0.5)  # for each of ten answers
    monkeypatch.setattr(changes_module, "LONGEST_PAUSE", 5.0)  # ten commits take less, on a busy machine too
    other, signed, sign = registry.node(), [], Authority.sign
    monkeypatch.setattr(Authority, "sign", lambda own, document: signed.append(document) or sign(own, document))
    with waiters(registry, 10) as calls:
        other.join_token("billing")
        [seq] = {told(registry, call).seq for call in calls}
    with ThreadPoolExecutor(10) as pool:
        again = [pool.submit(ask, registry, seq) for _ in range(10)]
        for _ in range(10):
            other.join_token("billing")
        assert {told(registry, call).seq for call in again} == {seq + 10}
    assert [(one.since, one.seq) for one in signed if isinstance(one, Changes)] == [
        (0, seq - 1),
        (seq - 1, seq),
        (seq, seq + 10),
    ]
    other.close()


def test_one_list_is_signed_for_all_who_ask_at_once(registry: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    signed, sign = [], Authority.sign
    monkeypatch.setattr(Authority, "sign", lambda own, document: signed.append(document) or sign(own, document))
    assert len(set(registry.registry.changes.lists([0, 1, 0, 0, 1]))) == 2
    assert len(signed) == 2


def test_beyond_the_limits_calls_are_answered_at_once(registry_database: str, tmp_path: Path, clock: Clock) -> None:
    limits = Limits(waiting_calls=3, waiting_calls_of_address=2)
    registry = Driver(registry_database, tmp_path / "home", clock, limits=limits)
    admit = change(registry, "billing")
    with waiters(registry, 2) as calls:
        head, began = registry.changes(0).seq, time.monotonic()
        assert registry.read(Changes, ask(registry, head).text).services == (), "this address has too many"
        with waiters(registry, 1, address="2001:db8::1") as further:
            assert ask(registry, head, address="192.0.2.1").status_code == 200, "there are too many in all"
            assert time.monotonic() - began < 5
            admit()
            assert all(told(registry, call).services for call in [*calls, *further])
    with waiters(registry, 2):  # the places are free again
        registry.joined(key(), "billing")
    registry.close()


def test_at_the_end_of_the_process_all_calls_are_answered_and_none_waits(registry: Driver) -> None:
    with waiters(registry, 20) as calls:
        registry.registry.changes.waiting.end()
        assert {told(registry, call, 5).services for call in calls} == {()}
    began = time.monotonic()
    assert ask(registry, registry.changes(0).seq).status_code == 200
    assert time.monotonic() - began < 5


def test_the_ledger_is_followed_only_around_the_time_of_a_wait(
    registry: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes_module, "LINGER", 0.01)
    registry.changes(0)
    assert not follows(registry)
    for _ in range(2):
        with waiters(registry, 2):
            assert follows(registry)
            registry.joined(key(), "billing")
        until(lambda: not follows(registry))


@pytest.mark.parametrize(("later", "status"), [(10, 200), (100, 503)], ids=["lately signed", "signed long ago"])
def test_a_database_that_fails_during_waits_delays_no_call(
    registry: Driver, clock: Clock, monkeypatch: pytest.MonkeyPatch, later: int, status: int
) -> None:
    def down(*_: object) -> None:
        raise StorageUnavailable("down")

    head = registry.changes(0).seq
    registry.changes(head)
    with waiters(registry, 3, wait=2) as calls:
        monkeypatch.setattr(registry.registry.store, "read", down)
        fail_revisions(monkeypatch, "head")
        clock.forward(later)
        answers = [call.result(10) for call in calls]
    assert {answer.status_code for answer in answers} == {status}
    if status == 200:
        assert {registry.read(Changes, answer.text).services for answer in answers} == {()}, (
            "its time says how old it is"
        )
    began = time.monotonic()
    assert ask(registry, head).status_code == 503, "and who comes again is told so at once"
    assert time.monotonic() - began < 5


# on PostgreSQL


@pytest.fixture
def node(postgres_url: str, tmp_path: Path) -> Driver:
    return Driver(postgres_url, tmp_path / "home")


def backends(url: str, what: str = "count(*)", where: str = "true") -> int:
    """What PostgreSQL says of the connections to that database."""
    database = make_url(url)
    with psycopg.connect(host=str(database.query["host"]), user="postgres", dbname="postgres", autocommit=True) as own:
        query = f"SELECT {what} FROM pg_stat_activity WHERE datname = %s AND {where}"
        row = own.execute(query.encode(), [database.database]).fetchone()
        assert row is not None
        return int(row[0])


LISTENS = f"query = 'LISTEN {CHANNEL}'"


def test_a_listening_connection_that_was_cut_is_replaced(node: Driver) -> None:
    other = node.node()
    admit = change(other, "billing")
    with waiters(node, 2) as calls:
        until(lambda: backends(node.url, where=LISTENS) == 1)
        time.sleep(1)  # it is not asked for twice in a second
        cut = backends(node.url, "min(pid)", LISTENS)
        backends(node.url, "count(pg_terminate_backend(pid, 5000))", LISTENS)
        until(lambda: backends(node.url, where=f"{LISTENS} AND pid <> {cut}") == 1)
        admit()
        assert all(told(node, call).services for call in calls)
    other.close()
    node.close()


def test_without_a_listener_the_head_is_read_at_intervals(node: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: object) -> None:
        raise StorageUnavailable("no LISTEN through this pooler")

    monkeypatch.setattr(revisions_module, "OwnConnection", refused)
    other = node.node()
    for tells in (other, node):
        admit = change(tells, "billing")
        with waiters(node, 2) as calls:
            admit()
            assert all(told(node, call).services for call in calls)
    other.close()
    node.close()


def test_without_notifications_the_head_is_read_at_intervals(node: Driver, postgres_url: str) -> None:
    """A pooler that gives each transaction another connection takes a LISTEN, and nothing follows."""
    with node.store.write() as connection:
        connection.exec_driver_sql("ALTER TABLE ledger_head DISABLE TRIGGER tell_of_ledger")
    other = node.node()
    admit = change(other, "billing")
    with waiters(node, 2) as calls:
        admit()
        assert all(told(node, call).services for call in calls)
    other.close()
    node.close()


def test_a_transaction_tells_once_of_all_its_entries(node: Driver) -> None:
    old, held = node.joined(key(), "billing"), [key() for _ in range(5)]
    for new in held:
        assert node.rotate(old, new, "billing").status_code == 201
    database = make_url(node.url)
    with psycopg.connect(
        host=str(database.query["host"]), user="postgres", dbname=database.database, autocommit=True
    ) as own:
        own.execute(f"LISTEN {CHANNEL}".encode())
        assert node.operator_ends(old, "billing").status_code == 204  # six entries
        heard = list(own.notifies(timeout=1))
    assert [word.payload for word in heard] == [""]
    node.close()


@pytest.mark.thorough
def test_a_database_that_really_stops_delays_no_call_and_is_found_again(tmp_path: Path) -> None:
    with running_postgres(uuid.uuid4().hex) as own:
        node = Driver(own.new_database(), tmp_path / "home")
        with waiters(node, 20, wait=5) as calls:
            own.stop()
            assert {call.result(15).status_code for call in calls} <= {200, 503}
        assert ask(node, 0).status_code == 503
        own.start()
        until(lambda: ask(node, 0).status_code == 200)
        other = node.node()
        admit = change(other, "billing")
        with waiters(node, 20) as calls:
            admit()
            assert all(told(node, call, 3).services for call in calls)
        other.close()
        node.close()


def test_migrating_again_leaves_one_trigger(node: Driver) -> None:
    migrate(node.store.engine)
    with node.store.read() as connection:
        triggers = connection.exec_driver_sql("SELECT count(*) FROM pg_trigger WHERE tgname = 'tell_of_ledger'")
        assert triggers.scalar_one() == 1
    node.close()
