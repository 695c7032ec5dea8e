"""Which of a registry's URLs is asked first, and which is not asked for a while."""

import pytest

from peerseal.errors import FetchError
from peerseal.runtime.limits import FetchLimits
from peerseal.transport.mirrors import MirrorHealth
from tests.registry.driver import Clock

LIMITS = FetchLimits(slow=0.5, shortest_rest=1.0, longest_rest=10.0)
ONE, TWO, THREE = (f"https://{name}.example" for name in ("one", "two", "three"))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> MirrorHealth:
    return MirrorHealth((ONE, TWO, THREE), LIMITS, clock)


def rests(health: MirrorHealth, url: str) -> bool:
    try:
        health.check(url)
    except FetchError:
        return True
    return False


def test_all_are_asked_in_their_order(health: MirrorHealth) -> None:
    assert list(health.in_order()) == [ONE, TWO, THREE]
    assert not any(rests(health, url) for url in (ONE, TWO, THREE))


def test_one_that_failed_is_asked_last_until_it_works_again(health: MirrorHealth, clock: Clock) -> None:
    health.failed(ONE, 0.01)
    assert list(health.in_order()) == [TWO, THREE, ONE]
    clock.forward(1)
    health.failed(TWO, 0.01)
    assert list(health.in_order()) == [THREE, ONE, TWO], "the one that failed longest ago first"
    health.worked(ONE)
    assert list(health.in_order()) == [ONE, THREE, TWO]


def test_one_that_refuses_at_once_costs_nothing_and_does_not_rest(health: MirrorHealth) -> None:
    for _ in range(5):
        health.failed(ONE, 0.01)
        assert not rests(health, ONE)


def test_one_that_hangs_rests_for_longer_each_time(health: MirrorHealth, clock: Clock) -> None:
    for rest in (1, 2, 4, 8, 10, 10):
        health.failed(ONE, 2.0)
        clock.forward(rest - 0.001)
        assert rests(health, ONE)
        clock.forward(0.002)
        assert not rests(health, ONE)


def test_after_its_rest_one_call_finds_out_for_all(health: MirrorHealth, clock: Clock) -> None:
    health.failed(ONE, 2.0)
    clock.forward(1.1)
    assert [rests(health, ONE) for _ in range(4)] == [False, True, True, True]
    health.worked(ONE)
    assert not rests(health, ONE)


def test_where_other_calls_were_answered_meanwhile_it_does_not_rest(health: MirrorHealth, clock: Clock) -> None:
    clock.forward(5)
    health.worked(ONE)
    clock.forward(1)
    health.failed(ONE, 2.0)
    assert not rests(health, ONE)
    health.failed(ONE, 0.9)
    assert rests(health, ONE), "nothing worked while this one was under way"


def test_a_lone_url_rests_too(clock: Clock) -> None:
    health = MirrorHealth((ONE,), LIMITS, clock)
    health.failed(ONE, 5.0)
    assert list(health.in_order()) == [ONE]
    assert rests(health, ONE)
