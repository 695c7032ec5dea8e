"""Refused keys: when a belief makes a refusal of its own unnecessary."""

import pytest

from peerseal.protocol.documents.key_set import PARTS, PartName
from peerseal.protocol.keys import KeyPair
from peerseal.trust.beliefs import KnownPart, KnownService, Refusals, TrustedKey

OWNER = "test.internal/client"
PAIR = KeyPair.generate("ES256")
KID = f"{OWNER}/{PAIR.public.thumbprint}"
ENTRY, END = 7, 1000


def believed(*, covered: int = ENTRY, keys: bool = False, revoked: bool = False, parts: bool = False) -> KnownService:
    listed = {KID: TrustedKey(KID, OWNER, PAIR.public, 0, END)} if keys else {}
    names = (PartName(covered, "d" * 43),) * PARTS if parts else ()
    gone = frozenset({KID} if revoked else ())
    return KnownService(listed, gone, covered, covered, 0, END, names, dict[int, KnownPart]())


@pytest.fixture
def refusals() -> Refusals:
    refusals = Refusals()
    refusals.add(KID, ENTRY, END)
    return refusals


@pytest.mark.parametrize(
    ("known", "now", "stays"),
    [
        (believed(revoked=True), 0, False),
        (believed(revoked=True, covered=ENTRY - 1), 0, True),
        (believed(parts=True), END - 1, True),
        (believed(parts=True), END, False),
        (believed(), END - 1, True),
        (believed(), END, False),
        (believed(covered=ENTRY - 1), END, True),
        (believed(keys=True), END + 1, True),
        (believed(keys=True, revoked=True), END + 1, True),
    ],
    ids=[
        "the belief lists it as revoked",
        "an older belief says nothing of that entry",
        "the part that lists it is not held, before its end",
        "the part that lists it is not held, after its end",
        "not listed before its end",
        "not listed after its end",
        "an older belief, after its end",
        "listed as a key",
        "listed as both",
    ],
)
def test_a_refusal_stays_until_the_belief_refuses_the_key_itself(
    refusals: Refusals, known: KnownService, now: float, stays: bool
) -> None:
    refusals.settle(OWNER, known, now)
    assert (KID in refusals) is stays
    assert list(refusals) == ([KID] if stays else [])


def test_a_second_refusal_of_the_same_key_shortens_nothing(refusals: Refusals) -> None:
    refusals.add(KID, ENTRY - 1, 0)
    refusals.settle(OWNER, believed(), END - 1)
    refusals.settle(OWNER, believed(covered=ENTRY - 1, revoked=True), END)
    assert KID in refusals


def test_the_belief_about_another_service_changes_nothing(refusals: Refusals) -> None:
    refusals.settle("test.internal/other", believed(revoked=True), END)
    assert set(refusals.of(OWNER)) == {KID}
    assert set(refusals.of("test.internal/other")) == set()
