"""How many calls are served at once."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from registry.gate import Gate, step_aside
from tests.support.waiters import until

PLACES = 3


class Inside:
    """An application that notes how many calls are in it at once, each until ``go`` is set."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.go = threading.Event()
        self.aside = threading.Event()
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], _start: Callable[..., Any]) -> Iterable[bytes]:
        if environ.get("waits"):
            step_aside(environ)
            step_aside(environ)
            self.aside.wait(10)
            return []
        if environ.get("fails"):
            raise ValueError
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        self.go.wait(10)
        with self._lock:
            self.now -= 1
        return []


def call(application: Any, **environ: Any) -> object:
    try:
        return application(environ, None)
    except ValueError as error:
        return error


def test_no_more_are_served_at_once_than_there_are_places() -> None:
    inside = Inside()
    gated = Gate(PLACES).before(inside)  # type: ignore[arg-type]
    with ThreadPoolExecutor(20) as pool:
        calls = [pool.submit(call, gated) for _ in range(20)]
        until(lambda: inside.now == PLACES)
        inside.go.set()
        assert [one.result(10) for one in calls] == [[]] * 20
    assert inside.most == PLACES


def test_who_waits_lets_one_other_in_and_gives_no_place_back() -> None:
    inside = Inside()
    gated = Gate(PLACES).before(inside)  # type: ignore[arg-type]
    with ThreadPoolExecutor(60) as pool:
        waiting = [pool.submit(call, gated, waits=True) for _ in range(20)]
        calls = [pool.submit(call, gated) for _ in range(20)]
        until(lambda: inside.now == PLACES)
        inside.aside.set()
        assert [one.result(10) for one in waiting] == [[]] * 20
        more = [pool.submit(call, gated) for _ in range(20)]
        inside.go.set()
        assert [one.result(10) for one in calls + more] == [[]] * 40
    assert inside.most == PLACES


def test_a_call_that_fails_gives_its_place_back() -> None:
    inside = Inside()
    inside.go.set()
    gated = Gate(1).before(inside)  # type: ignore[arg-type]
    assert [type(call(gated, fails=True)) for _ in range(3)] == [ValueError] * 3
    assert call(gated) == []


def test_without_a_gate_there_is_nothing_to_step_aside_from() -> None:
    step_aside({})
