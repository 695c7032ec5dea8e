"""How long a thread may be held up by the registry, all told."""

import math
import threading
import time

import pytest

from peerseal.transport.deadline import Deadline, acquired_in_time, no_longer_than, time_left, waiting


def test_without_a_limit_a_thread_may_wait_for_ever() -> None:
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
    with Deadline(5):
        with waiting(5):
            time.sleep(0.02)
        with waiting(5):
            assert time_left() < 4.985
    with Deadline(5), waiting(5):
        assert time_left() > 4.985, "another verification"


def test_a_wait_in_vain_takes_no_time_from_the_next_verification() -> None:
    for _ in range(3):
        with pytest.raises(TimeoutError), Deadline(5), waiting(5):
            _in_vain()
        with Deadline(5), waiting(5):
            assert time_left() > 4.985


def test_what_a_verification_does_between_two_waits_takes_none_of_their_time() -> None:
    with Deadline(5):
        with waiting(5):
            pass
        assert time_left() == math.inf, "the body of a slow client, for one"
        time.sleep(0.02)
        with waiting(5):
            assert time_left() > 4.985


def test_a_wait_within_another_is_counted_once() -> None:
    with Deadline(5) as deadline:
        with waiting(5), waiting(5):
            time.sleep(0.02)
        assert 4.5 < deadline.left < 4.985
        with waiting(5):
            with waiting(5):
                time.sleep(0.02)
            time.sleep(0.02)
        assert 4.5 < deadline.left < 4.945


def test_a_deadline_within_another_can_only_be_shorter_and_uses_its_time() -> None:
    with Deadline(1) as outer:
        with Deadline(60), waiting(60):
            assert time_left() <= 1
            time.sleep(0.02)
        assert outer.left < 0.985
        with Deadline(0.5), waiting(60):
            assert time_left() <= 0.5
        assert outer.left > 0.5


def test_a_wait_outside_of_a_deadline_has_a_bound_of_its_own() -> None:
    for _ in range(2):
        with waiting(5):
            time.sleep(0.02)
    with waiting(5):
        assert 4.985 < time_left() <= 5


def test_a_deadline_is_of_one_thread() -> None:
    seen: list[float] = []

    def wait() -> None:
        with waiting(5):
            seen.append(time_left())

    with Deadline(0.0):
        other = threading.Thread(target=wait)
        other.start()
        other.join()
    assert seen[0] > 4


def _in_vain() -> None:
    time.sleep(0.02)
    raise TimeoutError
