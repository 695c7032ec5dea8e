"""Calls that wait for a change of the services that they watch, on both databases."""

from collections.abc import Iterator
from concurrent.futures import Future

import pytest
from werkzeug.test import TestResponse

from peerseal.protocol.documents.changes import MAX_WATCHED, Changes, Watched
from registry.domain.errors import StorageUnavailable
from registry.limits import Limits
from registry.services.documents import watchers as watchers_module
from registry.services.documents.answer_cache import PublicAnswer
from registry.services.documents.changes import WaitingCall, WaitingCalls
from registry.storage.queries.services import ServiceRecord
from registry.storage.revisions import commit_listener
from tests.registry.driver import DOMAIN, Driver
from tests.support.federation import PARTNER
from tests.support.keys import key
from tests.support.waiters import ask, waiters
from tests.support.waiting import until

ADDRESS = "127.0.0.1"
BILLING = Watched.of(["billing"])


def told(registry: Driver, call: "Future[TestResponse]") -> Changes:
    """What a waiting call is told. A call that is not told says so after its 20 seconds, and names no change."""
    answer = call.result(30)
    assert answer.status_code == 200
    return registry.read(Changes, answer.text)


def names(changes: Changes) -> set[str]:
    return {name.removeprefix(f"{DOMAIN}/") for name in changes.services}


def wait_for(registry: Driver, since: int, watched: Watched = BILLING) -> WaitingCall:
    """A call that waits."""
    until(lambda: not registry.registry.changes.waiting.pausing)
    call = registry.registry.changes.wait(since, ADDRESS, watched)
    assert call is not None
    return call


def answer_to(registry: Driver, call: WaitingCall) -> Changes:
    """What the call is told."""
    call.wait(20)
    assert call.answer is not None, "it was told nothing"
    return registry.read(Changes, call.answer.body.decode("ascii"))


def followed_up_to(registry: Driver) -> int:
    """Makes the thread that follows the ledger see all of it: the entry up to which it has."""
    seen = wait_for(registry, registry.changes(0).seq, Watched())
    registry.join_token("any")  # an entry that changes no service
    return answer_to(registry, seen).seq


def test_a_change_is_told_only_to_those_who_watch_its_service(registry: Driver) -> None:
    waiting = registry.registry.changes.waiting
    with (
        waiters(registry, 2, services="billing,shop") as billing,
        waiters(registry, 2, services="shipping") as shipping,
    ):
        registry.joined(key(), "shipping")
        assert [names(told(registry, call)) for call in shipping] == [{"shipping"}] * 2
        assert len(waiting) == 2
        assert not any(call.done() for call in billing)
        registry.joined(key(), "billing")
        assert [names(told(registry, call)) for call in billing] == [{"billing", "shipping"}] * 2, (
            "the list is complete"
        )


def test_a_change_on_another_node_is_told_to_those_who_watch_its_service(registry: Driver) -> None:
    other = registry.node()
    with waiters(registry, 2, services="billing") as calls:
        other.joined(key(), "shipping")
        other.joined(key(), "billing")
        assert [names(told(registry, call)) for call in calls] == [{"billing", "shipping"}] * 2
    other.close()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/domain", {"minters": ["edge"], "issuers": []}),
        ("/v1/federation", {"domains": [PARTNER]}),
        ("/v1/services/billing/policy", {"allow": {"shop": ["read"]}}),
    ],
    ids=["the domain's settings", "the federation", "the policy of a service that is watched"],
)
def test_all_that_concerns_a_watcher_is_told(registry: Driver, path: str, body: object) -> None:
    registry.joined(key(), "billing")
    with waiters(registry, 2, services="billing") as calls:
        tag = registry.client.get(path, headers=registry.operator).headers["ETag"]
        assert registry.client.put(path, json=body, headers={**registry.operator, "If-Match": tag}).status_code == 200
        assert all(told(registry, call).services for call in calls)


def test_a_revocation_is_told_to_those_who_watch_its_service(registry: Driver) -> None:
    lost = registry.joined(key(), "billing")
    with waiters(registry, 2, services="billing") as calls:
        registry.operator_ends(lost, "billing")
        assert [len(told(registry, call).revoked) for call in calls] == [1, 1]


def test_a_call_from_before_changes_that_do_not_concern_it_waits(registry: Driver) -> None:
    held = wait_for(registry, since := registry.changes(0).seq, BILLING)
    registry.joined(key(), "shipping")
    followed_up_to(registry)
    call = wait_for(registry, since)
    registry.joined(key(), "billing")
    for each in (held, call):
        assert names(answer_to(registry, each)) == {"billing", "shipping"}


def test_a_call_from_before_a_change_that_concerns_it_is_answered_at_once(registry: Driver) -> None:
    held = wait_for(registry, since := registry.changes(0).seq, Watched.of(["nothing"]))
    registry.joined(key(), "billing")
    followed_up_to(registry)
    assert registry.registry.changes.wait(since, ADDRESS, BILLING) is None
    held.leave()


def test_a_call_from_before_what_is_remembered_is_answered_at_once(registry: Driver) -> None:
    since = registry.changes(0).seq
    registry.join_token("billing")
    held = wait_for(registry, registry.changes(0).seq, Watched.of(["nothing"]))
    assert registry.registry.changes.wait(since, ADDRESS, BILLING) is None
    held.leave()


def test_a_call_from_beyond_the_ledger_is_answered_at_once(registry: Driver) -> None:
    assert registry.registry.changes.wait(registry.changes(0).seq + 1, ADDRESS, BILLING) is None


def test_at_the_end_of_its_wait_a_call_gets_the_complete_list(registry: Driver) -> None:
    with waiters(registry, 1, wait=2, services="billing") as [call]:
        registry.joined(key(), "shipping")
        changes = told(registry, call)
    assert names(changes) == {"shipping"}
    assert changes.seq == registry.changes(0).seq


def test_those_who_watch_and_those_who_do_not_get_the_same_bytes(registry: Driver) -> None:
    with waiters(registry, 2, services="billing") as some, waiters(registry, 2) as all_of_them:
        registry.joined(key(), "billing")  # the join token's entry tells those who watch everything
        assert len({call.result(30).data for call in all_of_them}) == 1
        [one] = {call.result(30).data for call in some}
    since = registry.read(Changes, one.decode("ascii")).since
    assert registry.got(f"/v1/changes?since={since}").encode("ascii") == one


def test_all_are_told_before_their_lists_become_too_long(registry: Driver) -> None:
    """Else the end of their waits would have them fetch again all that they hold."""
    small = registry.node(limits=Limits(changes_listed=4))
    call = wait_for(small, small.changes(0).seq)
    for service in ("shipping", "shop", "stock"):
        assert call.answer is None
        small.joined(key(), service)
        followed_up_to(small)
    changes = answer_to(small, call)
    assert names(changes) == {"shipping", "shop", "stock"}
    assert not changes.reset
    small.close()


def test_more_changes_at_once_than_a_list_has_are_told_to_all(registry: Driver) -> None:
    small, since = registry.node(limits=Limits(changes_listed=1)), registry.changes(0).seq
    for service in ("shipping", "shop"):
        registry.joined(key(), service)
    assert answer_to(small, wait_for(small, since)).reset
    small.close()


def test_where_the_index_has_no_room_a_call_is_told_of_any_change(
    registry: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchers_module, "MOST_WATCHED", 2)
    with waiters(registry, 2, services="billing") as _, waiters(registry, 1, services="shop") as [further]:
        registry.joined(key(), "shipping")
        assert told(registry, further).seq > 0
        registry.joined(key(), "billing")


class Followed:
    """Calls that wait for the changes of a ledger of ``entries``, of which each one changes billing."""

    def __init__(self, registry: Driver) -> None:
        self.entries = 3
        self.made: list[int] = []
        self.failures = list[StorageUnavailable]()
        self._answer = registry.registry.changes.since(0)
        engine = registry.store.engine
        self.calls = WaitingCalls(
            lambda: self.entries, self._changed, self._make, lambda: commit_listener(engine), Limits()
        )
        self.calls.server_holds(10)

    def waiting(self, *sinces: int) -> list[WaitingCall]:
        """Calls that watch billing."""
        calls = [self.calls.add(since, ADDRESS, BILLING) for since in sinces]
        return [call for call in calls if call is not None]

    def _changed(self, since: int) -> list[ServiceRecord]:
        return [ServiceRecord("billing", self.entries)] if since < self.entries else []

    def _make(self, since: int) -> PublicAnswer:
        if self.failures:
            raise self.failures.pop()
        self.made.append(since)
        return self._answer


@pytest.fixture
def followed(registry: Driver) -> Iterator[Followed]:
    followed = Followed(registry)
    yield followed
    followed.calls.end()


def test_a_call_whose_list_could_not_be_made_is_told_at_the_next_look(followed: Followed) -> None:
    [call] = followed.waiting(3)
    followed.failures.append(StorageUnavailable("down"))
    followed.entries = 4
    call.wait(20)
    assert call.answer is not None
    assert not followed.failures


def test_calls_that_wait_from_the_newest_entries_are_told_first(followed: Followed) -> None:
    """So a client that waits from hundreds of old entries delays no other."""
    calls = followed.waiting(3, 5, 4)
    followed.entries = 6
    for call in calls:
        call.wait(20)
    assert followed.made == [5, 4, 3]


def test_a_ledger_that_became_shorter_is_told_to_all(followed: Followed) -> None:
    [call] = followed.waiting(3)
    followed.entries = 2
    call.wait(20)
    assert call.answer is not None


def test_a_new_process_remembers_from_the_first_call_on(registry: Driver) -> None:
    since = registry.changes(0).seq
    registry.joined(key(), "shipping")
    call = wait_for(registry, since)
    registry.joined(key(), "billing")
    assert names(answer_to(registry, call)) == {"billing", "shipping"}


@pytest.mark.parametrize(
    "services",
    [
        "",
        ",",
        "billing,",
        "Billing",
        "a b",
        "a/b",
        f"{DOMAIN}/billing",
        "*",
        "%00",
        "a" * (MAX_WATCHED + 1),
        "b&services=c",
    ],
)
def test_other_text_than_names_of_services_is_refused(registry: Driver, services: str) -> None:
    answer = ask(registry, registry.changes(0).seq, services=services)
    assert answer.status_code == 400
    assert answer.get_json()["code"] == "invalid_parameter"
    assert len(registry.registry.changes.waiting) == 0
