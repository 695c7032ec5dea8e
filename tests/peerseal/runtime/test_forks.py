"""What is done at a fork, for what lives; and that nothing stays of what does not."""

import gc
import subprocess
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from peerseal import Identity
from peerseal.runtime.forks import around_each_fork, in_each_child
from peerseal.testing import MemoryRegistry
from tests.peerseal.served import Child

pytestmark = pytest.mark.usefixtures("quiet_collector")


@pytest.fixture
def identity() -> Iterator[Identity]:
    with MemoryRegistry() as registry:
        yield registry.identity("client")


def sessions(identity: Identity, count: int) -> None:
    """One for each request, closed again."""
    for _ in range(count):
        with identity.session("callee", "http://callee"):
            pass
    gc.collect()


def calls_at_a_fork() -> int:
    """How many functions of Python's are called by a fork, in the child."""
    called: list[int] = [0]

    def count(_: FrameType, event: str, __: Any) -> None:
        called[0] += event == "call"

    sys.setprofile(count)
    try:
        child = Child(lambda: called[0])
    finally:
        sys.setprofile(None)
    return int(child.result())


def test_nothing_stays_of_sessions_that_are_gone(identity: Identity) -> None:
    sessions(identity, 20)
    before = len(gc.get_objects())
    sessions(identity, 200)
    assert len(gc.get_objects()) - before < 50


def test_a_fork_has_no_more_to_do_after_a_thousand_sessions(identity: Identity) -> None:
    sessions(identity, 20)
    before = calls_at_a_fork()
    sessions(identity, 1000)
    assert calls_at_a_fork() - before < 50


FIRST_HOOK_IN_A_CHILD = """
import os
from peerseal.runtime import forks

class Work:
    def start_again(self):
        print("started again")

if os.fork():
    os.wait()
else:
    work = Work()
    forks.in_each_child(work.start_again)
    forks.notice_fork()
"""


def test_a_child_that_adds_the_first_hook_of_all_has_nothing_to_start_again() -> None:
    done = subprocess.run([sys.executable, "-c", FIRST_HOOK_IN_A_CHILD], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


class Noting:
    """Notes in ``done`` what is called, and fails where it is told to."""

    def __init__(self, name: str, done: list[str], *, fails: bool = False) -> None:
        self.name, self.done, self.fails = name, done, fails

    def child(self) -> None:
        self.done.append(f"{self.name} child")
        if self.fails:
            raise ZeroDivisionError

    def before(self) -> None:
        self.done.append(f"{self.name} before")

    def after(self) -> None:
        self.done.append(f"{self.name} after")


@pytest.fixture
def done() -> list[str]:
    return []


def test_what_lives_is_called_in_order_and_before_a_fork_the_last_one_first(done: list[str]) -> None:
    first, second, gone = Noting("first", done), Noting("second", done), Noting("gone", done)
    for noting in (first, gone, second):
        around_each_fork(noting.before, noting.after, noting.after)
        in_each_child(noting.child)
    del noting, gone
    in_child = Child(lambda: list(done)).result()
    before = ["second before", "first before"]
    assert in_child == [*before, "first after", "first child", "second after", "second child"]
    assert done == [*before, "first after", "second after"]


def test_a_hook_that_fails_keeps_no_other_from_its_work(done: list[str]) -> None:
    failing, other = Noting("failing", done, fails=True), Noting("other", done)
    for noting in (failing, other):
        in_each_child(noting.child)
    assert Child(lambda: list(done)).result() == ["failing child", "other child"]
