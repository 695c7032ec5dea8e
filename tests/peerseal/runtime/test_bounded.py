"""Memories of bounded size: the oldest is dropped."""

from peerseal.runtime.bounded import AbsentNames, BoundedDict


def test_of_too_many_items_the_oldest_is_dropped() -> None:
    known = BoundedDict[str, int](2, {"first": 1})
    known["second"], known["first"], known["third"] = 2, 3, 4
    assert known == {"second": 2, "third": 4}


def test_there_is_always_room_for_one() -> None:
    known = BoundedDict[str, int](0)
    known["first"], known["second"] = 1, 2
    assert known == {"second": 2}


def test_a_name_is_absent_for_a_while_or_until_it_is_there() -> None:
    absent = AbsentNames(2, 30.0)
    for number, name in enumerate(("first", "second", "third")):
        absent.add(name, 100.0 + number)
    assert [absent.has(name, 110.0) for name in ("first", "second", "third")] == [False, True, True]
    assert [absent.has("third", now) for now in (131.9, 132.0)] == [True, False]
    absent.discard(["second", "unknown"])
    assert not absent.has("second", 110.0)
    absent.clear()
    assert not absent.has("third", 110.0)
