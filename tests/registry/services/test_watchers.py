"""Which waiting calls a change concerns."""

from dataclasses import dataclass

import pytest

from peerseal.protocol.names import REGISTRY
from registry.services.documents import watchers
from registry.services.documents.watchers import RecentChanges, Watchers
from registry.storage.queries.services import ServiceRecord


@dataclass(frozen=True)
class Call:
    name: str
    since: int = 0
    address: str = "192.0.2.1"


def changed(**seqs: int) -> list[ServiceRecord]:
    return [ServiceRecord(name, seq) for name, seq in seqs.items()]


def test_a_change_spares_those_who_watch_other_services_or_know_it() -> None:
    recent = RecentChanges(10)
    recent.add(changed(billing=11, shop=12), 12)
    assert recent.ends == 12
    assert recent.spare(10, ["shipping"])
    assert not recent.spare(10, ["shipping", "billing"])
    assert recent.spare(11, ["billing"])
    assert not recent.spare(11, ["shop"])


def test_a_change_of_the_registrys_own_documents_spares_only_those_who_know_it() -> None:
    recent = RecentChanges(10)
    recent.add([ServiceRecord(REGISTRY, 11)], 11)
    assert not recent.spare(10, ["shipping"])
    assert recent.spare(11, ["shipping"])


def test_entries_that_are_not_remembered_spare_none() -> None:
    recent = RecentChanges(10)
    recent.add(changed(a=11, b=12), 12)
    recent.add(changed(a=13, c=14), 15)
    assert not recent.spare(9, ["shipping"])
    assert recent.spare(10, ["shipping"])
    assert not recent.spare(12, ["a"])
    assert recent.spare(12, ["b"])
    assert len(recent) == 3


def test_a_change_concerns_those_who_watch_its_service_and_do_not_know_it() -> None:
    calls: Watchers[Call] = Watchers()
    both, shop, later = Call("both"), Call("shop"), Call("later", since=11)
    calls.add(both, frozenset({"billing", "shop"}))
    calls.add(shop, frozenset({"shop"}))
    calls.add(later, frozenset({"billing"}))
    assert calls.of(changed(billing=11, shipping=12)) == {both}
    assert calls.of(changed(billing=12)) == {both, later}
    assert calls.of([ServiceRecord(REGISTRY, 11)]) == {both, shop}
    calls.discard(both)
    assert calls.of(changed(billing=11, shop=12)) == {shop}
    assert set(calls) == {shop, later}


def test_what_the_index_holds_is_bounded_and_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchers, "MOST_WATCHED", 3)
    calls: Watchers[Call] = Watchers()
    first, second, third = (Call(name, address=name) for name in ("first", "second", "third"))
    for _ in range(3):
        assert calls.add(first, frozenset({"a"}))
        assert calls.add(second, frozenset({"b"}))
        assert not calls.add(third, frozenset({"c", "d"}))
        assert calls.add(third, frozenset({"c"}))
        for call in (third, second, first, first):
            calls.discard(call)
    assert len(calls) == 0
    assert calls.of(changed(a=11, b=12, c=13)) == set()


def test_one_address_leaves_half_of_the_index_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchers, "MOST_WATCHED", 10)
    calls: Watchers[Call] = Watchers()
    crowd = [Call(str(number)) for number in range(4)]
    assert [calls.add(call, frozenset({"a", "b"})) for call in crowd] == [True, True, False, False]
    assert calls.add(Call("other", address="192.0.2.2"), frozenset("abcde"))
    calls.discard(crowd[0])
    assert calls.add(crowd[3], frozenset({"a", "b"}))
