"""The places for what peers told: who gives one up where all are taken."""

from peerseal.protocol.encoding import b64url
from peerseal.trust.heard_notes import HeardNote, HeardNotes


def told(service: str, number: int = 0, *, kept: bool = False, cp: str = "cp") -> HeardNote:
    """What that key of the service told."""
    return HeardNote(cp, f"test.internal/{service}/{b64url(bytes([number]) * 32)}", at=0.0, kept=kept)


def full(*notes: HeardNote) -> HeardNotes:
    """All places are taken."""
    places = HeardNotes(len(notes))
    for note in notes:
        places.put(note)
    return places


def test_a_key_has_two_places_and_a_later_note_takes_the_earlier_ones() -> None:
    places = HeardNotes(4)
    for note in (told("a"), told("a", kept=True), told("a", cp="later")):
        places.put(note)
    assert [(note.cp, note.kept) for note in places] == [("later", False), ("cp", True)]


def test_the_service_with_the_most_places_gives_up_its_youngest() -> None:
    places = full(told("a"), told("many", 1), told("many", 2))
    places.put(told("late"))
    assert set(places) == {told("a"), told("many", 1), told("late")}
    places.put(told("a", 5))
    assert set(places) == {told("a"), told("many", 1), told("late")}, "the newcomer's own service has the most"


def test_among_equals_the_one_that_was_heard_of_last_gives_up() -> None:
    places = full(told("a"), told("b"))
    places.put(told("c"))
    assert set(places) == {told("a"), told("b")}
    assert places.remove(told("a")) is False, "another note that is equal"
    assert places.remove(next(iter(places)))
    places.put(told("c"))
    places.put(told("a"))
    assert set(places) == {told("a"), told("b")}, "it was known before"


def test_what_is_kept_goes_last() -> None:
    places = full(told("a"), told("many", 1, kept=True), told("many", 1), told("many", 2, kept=True))
    for name in ("late", "later"):
        places.put(told(name))
    assert told("many", 1, kept=True) in set(places)
    assert told("many", 1) not in set(places)


def test_those_who_were_heard_of_first_come_first() -> None:
    places = HeardNotes(9)
    for name in ("b", "a", "c"):
        places.put(told(name))
    first = next(iter(places))
    assert places.remove(first)
    places.put(first)
    assert [note.service for note in places] == ["test.internal/b", "test.internal/a", "test.internal/c"]
