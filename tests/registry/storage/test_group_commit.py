"""Concurrent requests share one transaction, and none fails for another's sake."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from registry.domain.errors import StorageUnavailable
from registry.storage.group_commit import GroupCommit


class Doubling:
    """Doubles numbers. The first go waits until it is let on, so that further work piles up after it."""

    def __init__(self, fail: Callable[[Sequence[int]], Exception | None] = lambda _: None) -> None:
        self.goes: list[list[int]] = []
        self.busy, self.go_on = threading.Event(), threading.Event()
        self.group_commit: GroupCommit[int, int] = GroupCommit(self._double)
        self._fail = fail

    def _double(self, numbers: Sequence[int]) -> Sequence[int | Exception]:
        self.goes.append(list(numbers))
        self.busy.set()
        assert self.go_on.wait(10)
        error = self._fail(numbers)
        if error is not None:
            raise error
        return [ValueError(str(number)) if number < 0 else 2 * number for number in numbers]

    def all_at_once(self, first: int, *others: int) -> list[int | Exception]:
        """What becomes of the first, which is under way when the others come, and of these."""
        with ThreadPoolExecutor(1 + len(others)) as pool:
            under_way = pool.submit(self.group_commit.do, first)
            assert self.busy.wait(10)
            waiting = [pool.submit(self.group_commit.do, number) for number in others]
            while self.group_commit.waiting < len(others):
                threading.Event().wait(0.001)
            self.go_on.set()
            return [outcome_of(future) for future in (under_way, *waiting)]


def outcome_of(future: "Future[int]") -> int | Exception:
    error = future.exception(10)
    assert error is None or isinstance(error, Exception)
    return error or future.result()


def test_requests_that_arrive_during_a_group_form_the_next_one() -> None:
    doubling = Doubling()
    assert doubling.all_at_once(1, 2, 3, 4) == [2, 4, 6, 8]
    assert [sorted(go) for go in doubling.goes] == [[1], [2, 3, 4]]


def test_a_single_request_does_not_wait_for_others() -> None:
    doubling = Doubling()
    doubling.go_on.set()
    assert [doubling.group_commit.do(number) for number in (1, 2)] == [2, 4]
    assert doubling.goes == [[1], [2]]


def test_each_request_has_its_own_error() -> None:
    [first, good, bad] = Doubling().all_at_once(1, 2, -3)
    assert (first, good) == (2, 4)
    assert isinstance(bad, ValueError)


def test_if_one_fails_the_whole_group_its_requests_are_executed_one_by_one() -> None:
    doubling = Doubling(lambda numbers: KeyError(3) if 3 in numbers else None)
    [first, two, three, four] = doubling.all_at_once(1, 2, 3, 4)
    assert (first, two, four) == (2, 4, 8)
    assert isinstance(three, KeyError)
    assert sorted(map(len, doubling.goes)) == [1, 1, 1, 1, 3]


def test_an_unavailable_database_is_not_asked_for_each_request() -> None:
    doubling = Doubling(lambda numbers: StorageUnavailable("away") if numbers != [1] else None)
    [first, *others] = doubling.all_at_once(1, 2, 3, 4)
    assert first == 2
    assert [type(other) for other in others] == [StorageUnavailable] * 3
    assert len(doubling.goes) == 2


def test_a_group_has_at_most_the_agreed_number_of_requests() -> None:
    doubling, many = Doubling(), range(2, GroupCommit.MOST + 10)
    assert doubling.all_at_once(1, *many) == [2 * number for number in (1, *many)]
    assert [len(go) for go in doubling.goes] == [1, GroupCommit.MOST, len(many) - GroupCommit.MOST]


def test_an_exit_in_the_middle_leaves_no_request_waiting() -> None:
    def leave(_: Sequence[int]) -> Exception | None:
        raise SystemExit

    doubling = Doubling(leave)
    with ThreadPoolExecutor(2) as pool:
        leaving = pool.submit(doubling.group_commit.do, 1)
        assert doubling.busy.wait(10)
        doubling.go_on.set()
        with pytest.raises(SystemExit):
            leaving.result(10)
    with pytest.raises(SystemExit):  # the turn was given back
        doubling.group_commit.do(2)


def test_a_request_that_waits_for_too_long_is_refused_and_not_executed() -> None:
    busy, go_on, done = threading.Event(), threading.Event(), list[int]()

    def execute(numbers: Sequence[int]) -> Sequence[int]:
        busy.set()
        assert go_on.wait(10)
        done.extend(numbers)
        return numbers

    group_commit = GroupCommit[int, int](execute, 0.01)
    with ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(group_commit.do, 1)
        assert busy.wait(10)
        with pytest.raises(StorageUnavailable):
            group_commit.do(2)
        go_on.set()
        assert under_way.result() == 1
    assert group_commit.do(3) == 3
    assert done == [1, 3]
