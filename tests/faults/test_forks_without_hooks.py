"""A child that a program in C forked, as uWSGI and mod_wsgi do: Python ran no hooks of `os.register_at_fork` there."""

import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from peerseal import FileReplayGuard, Identity, Peer, RotationSchedule, Verifier
from peerseal.protocol.documents.key_set import ACTIVE
from peerseal.runtime.forks import in_each_child, notice_fork
from peerseal.testing import MemoryRegistry
from tests.peerseal.served import Child, served

pytestmark = pytest.mark.usefixtures("quiet_collector")

LIBC = ctypes.PyDLL(None)
"""It calls with the interpreter's lock held, as a server in C does that forks between two requests."""


class ChildOfC(Child):
    """A child of C's ``fork``, with the interpreter as its parent left it.

    A thread that waits for the interpreter's lock at the fork would leave that lock unusable in the child, whatever
    code runs there. A server in C takes care of it; here the other threads get the time to come to rest first.
    """

    def __init__(self, job: Callable[[], Any]) -> None:
        time.sleep(0.05)
        self._answer, writer = os.pipe()
        self.pid = LIBC.fork()
        if self.pid == 0:
            self._work(job, writer)
        os.close(writer)


@pytest.fixture
def registry() -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as registry:
        yield registry


@pytest.fixture
def url(registry: MemoryRegistry) -> Iterator[str]:
    with served(registry) as url:
        yield url


@pytest.fixture
def identity(registry: MemoryRegistry, url: str, tmp_path: Path) -> Iterator[Identity]:
    """Started before the fork, with threads at work, whose keys are retired by the last process that stops it."""
    identity = Identity(
        "client",
        registry=url,
        join_token=registry.join_token("client"),
        key_dir=tmp_path / "keys",
        alg="ES256",
        rotation=RotationSchedule(every=3600),
        retire_at_exit=True,
    ).start()
    yield identity
    identity.stop()


def verifier(identity: Identity) -> Verifier:
    return Verifier(identity.trust, audience="client", allow={"client": ()}, replay=identity.replay_guard())


def call(identity: Identity, callee: Verifier) -> Peer:
    token = identity.sign_request("client", method="GET", target="/")
    return callee.verify(token, method="GET", target="/")


def test_hooks_run_once_when_the_child_is_first_used() -> None:
    class Noting:
        runs = 0

        def child(self) -> None:
            self.runs += 1
            notice_fork()

    noting = Noting()
    in_each_child(noting.child)

    def job() -> list[int]:
        before = noting.runs
        notice_fork()
        notice_fork()
        return [before, noting.runs]

    assert ChildOfC(job).result() == [0, 1]
    assert noting.runs == 0


def test_many_threads_of_such_a_child_run_the_hooks_once_and_wait_for_them() -> None:
    class Slow:
        lock = threading.Lock()
        runs = 0

        def child(self) -> None:
            self.runs += 1
            self.lock = threading.Lock()

    slow = Slow()
    in_each_child(slow.child)

    def job() -> int:
        def use() -> None:
            notice_fork()
            with slow.lock:
                pass

        workers = [threading.Thread(target=use) for _ in range(8)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(10)
        return slow.runs

    with slow.lock:  # some thread of the parent holds it at the fork
        child = ChildOfC(job)
    assert child.result() == 1


def test_it_signs_verifies_and_refuses_replays(identity: Identity) -> None:
    callee = verifier(identity)

    def job() -> list[str]:
        answers = [call(identity, callee).service]
        token = identity.sign_request("client", method="GET", target="/")
        callee.verify(token, method="GET", target="/")
        with pytest.raises(Exception) as refused:  # noqa: PT011
            callee.verify(token, method="GET", target="/")
        return [*answers, type(refused.value).__name__]

    assert ChildOfC(job).result() == ["client", "Replayed"]
    assert call(identity, callee).service == "client"


def test_it_uses_and_ends_nothing_of_its_parents_at_exit(registry: MemoryRegistry, identity: Identity) -> None:
    ChildOfC(identity.stop).result()
    assert [key.state for key in registry.jwk_set("client").keys] == [ACTIVE]


def test_one_that_was_used_ends_without_waiting_for_threads_that_are_not_there(
    registry: MemoryRegistry, identity: Identity
) -> None:
    callee = verifier(identity)

    def job() -> str:
        call(identity, callee)
        identity.stop()
        return "ended"

    assert ChildOfC(job).result() == "ended"
    assert [key.state for key in registry.jwk_set("client").keys] == [ACTIVE]


def test_it_shares_a_replay_guard_that_its_parent_has_open(tmp_path: Path) -> None:
    guard = FileReplayGuard(tmp_path / "replay")
    assert guard.claim("issuer", "1", 2e9)

    def job() -> list[bool]:
        return [guard.claim("issuer", jti, 2e9) for jti in "12"]

    assert ChildOfC(job).result() == [False, True]
    assert [guard.claim("issuer", jti, 2e9) for jti in "123"] == [False, False, True]
    assert ChildOfC(job).result() == [False, False]


def test_it_claims_although_a_thread_of_its_parent_was_in_the_middle_of_a_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard, parent, written, go_on = FileReplayGuard(tmp_path / "replay"), os.getpid(), threading.Event(), os.pipe()
    really = os.write

    def halting(fd: int, data: bytes) -> int:
        size = really(fd, data)
        if os.getpid() == parent:
            written.set()
            os.read(go_on[0], 1)
        return size

    monkeypatch.setattr(os, "write", halting)
    outcome = list[bool]()
    thread = threading.Thread(target=lambda: outcome.append(guard.claim("issuer", "parent", 2e9)))
    thread.start()
    assert written.wait(10)
    child = ChildOfC(lambda: [guard.claim("issuer", jti, 2e9) for jti in ("parent", "child")])
    assert child.result() == [False, True]
    monkeypatch.undo()
    os.write(go_on[1], b".")
    thread.join()
    assert outcome == [True]
    assert not guard.claim("issuer", "child", 2e9)


def test_a_session_opens_connections_of_its_own(registry: MemoryRegistry, identity: Identity, url: str) -> None:
    session = identity.session("registry", url)
    path = "/.well-known/peerseal-registry"
    assert session.get(path).status_code == 200
    assert ChildOfC(lambda: session.get(path).status_code).result() == 200
    assert session.get(path).status_code == 200
