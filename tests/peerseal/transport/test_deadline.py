"""How long a thread may be held up by the registry, all told."""

import math
import threading
import time

import pytest

from peerseal.transport.deadline import acquired_in_time, no_longer_in_all, no_longer_than, time_left


def test_nothing_bounds_a_thread_that_nobody_bounded() -> None:
    assert time_left() == math.inf
    assert acquired_in_time(threading.Lock())


def test_the_time_runs_out_and_the_limit_ends_with_its_block() -> None:
    with no_longer_than(0.0):
        assert time_left() == 0.0
    assert time_left() == math.inf


def test_a_limit_within_another_can_only_be_shorter() -> None:
    with no_longer_than(5):
        with no_longer_than(60):
            assert time_left() <= 5
        with no_longer_than(1):
            assert time_left() <= 1
        assert 1 < time_left() <= 5


def test_a_lock_that_another_holds_is_waited_for_no_longer() -> None:
    lock = threading.Lock()
    lock.acquire()
    began = time.monotonic()
    with no_longer_than(0.02):
        assert not acquired_in_time(lock)
    assert time.monotonic() - began < 5
    lock.release()
    with no_longer_than(0.02):
        assert acquired_in_time(lock)


def test_another_thread_has_a_limit_of_its_own() -> None:
    seen: list[float] = []
    with no_longer_than(1):
        other = threading.Thread(target=lambda: seen.append(time_left()))
        other.start()
        other.join()
    assert seen == [math.inf]


def test_waits_of_one_verification_share_its_time() -> None:
    with no_longer_in_all(5, last=False):
        time.sleep(0.02)
    with no_longer_in_all(5, last=True):
        assert time_left() < 4.985
    with no_longer_in_all(5, last=False):
        assert time_left() > 4.985, "another verification"


def test_a_wait_in_vain_takes_no_time_from_the_next_verification() -> None:
    for _ in range(3):
        with pytest.raises(TimeoutError), no_longer_in_all(5, last=False):
            _in_vain()
        with no_longer_in_all(5, last=True):
            assert time_left() > 4.985


def _in_vain() -> None:
    time.sleep(0.02)
    raise TimeoutError
