"""What a forked child inherits must not hold up any process: seen to go wrong with recycled gunicorn workers."""

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from sqlalchemy import text

from peerseal.identity.key_folder import KeyFolder
from peerseal.runtime.forks import BackgroundWork
from peerseal.verify.replay.guards import FileReplayGuard
from registry.storage.engine import create_engine
from tests.peerseal.served import Child

TraceFunction = Callable[[FrameType, str, Any], Any]

pytestmark = pytest.mark.usefixtures("quiet_collector")


def test_a_child_forked_while_the_key_folder_is_locked_does_not_keep_it_locked(tmp_path: Path) -> None:
    folder = KeyFolder(tmp_path)
    with folder.locked():
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
    try:
        with KeyFolder(tmp_path).locked(wait=False) as ours:
            assert ours
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Every path and flags that `os.open` is called with."""
    calls: list[tuple[str, int]] = []
    really = os.open

    def recording(path: str, flags: int, *arguments: int, **options: int) -> int:
        calls.append((str(path), flags))
        return really(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", recording)
    return calls


def test_the_registry_never_opens_an_sqlite_file_that_is_there_but_through_sqlite(
    tmp_path: Path, opened: list[tuple[str, int]]
) -> None:
    """Closing such a descriptor drops SQLite's POSIX locks: databases were corrupted that way."""
    for _ in range(2):
        with create_engine(f"sqlite:///{tmp_path / 'r.sqlite3'}").begin() as connection:
            connection.execute(text("CREATE TABLE IF NOT EXISTS t (x)"))
    assert all(flags & os.O_EXCL for path, flags in opened if path.endswith("r.sqlite3"))
    assert (tmp_path / "r.sqlite3").stat().st_mode & 0o777 == 0o600


def test_a_fork_does_not_wait_for_a_claim_and_the_child_can_claim_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guard, parent = FileReplayGuard(tmp_path / "replay"), os.getpid()
    began, end, really = threading.Event(), threading.Event(), os.pread

    def hanging(fd: int, length: int, offset: int) -> bytes:
        if os.getpid() == parent:
            began.set()
            end.wait(30)
        return really(fd, length, offset)

    monkeypatch.setattr(os, "pread", hanging)
    outcome = list[bool]()
    thread = threading.Thread(target=lambda: outcome.append(guard.claim("caller", "a", 2e9)))
    thread.start()
    assert began.wait(10)
    child = os.fork()
    if child == 0:
        os._exit([guard.claim("caller", jti, 2e9) for jti in "ab"] != [False, True])
    assert os.waitpid(child, 0)[1] == 0
    end.set()
    thread.join()
    assert outcome == [True]
    assert not guard.claim("caller", "b", 2e9)


@pytest.mark.parametrize("others", [0, 3, 10])
def test_of_a_claim_and_a_child_forked_at_any_line_of_it_one_accepts_the_token(tmp_path: Path, others: int) -> None:
    guard, other = FileReplayGuard(tmp_path / "replay"), FileReplayGuard(tmp_path / "replay")
    assert guard.claim("caller", "first", 2e9)
    for line in range(100):
        for number in range(others):
            other.claim("caller", f"{line} {number}", 2e9)
        outcomes = outcomes_with_a_fork_at(line, guard)
        if len(outcomes) == 1:
            break
        assert sorted(outcomes) == [False, True], f"line {line} of the claim"
    assert 15 < line < 99, "each line was tried"


def outcomes_with_a_fork_at(line: int, guard: FileReplayGuard) -> list[bool]:
    """What a claim gives, after what a child gave that was forked at that line of it; the claim alone where it has
    fewer lines."""
    outcomes, passed, before = list[bool](), 0, sys.gettrace()

    def trace(frame: FrameType, event: str, _: object) -> TraceFunction | None:
        nonlocal passed
        if not frame.f_code.co_filename.endswith("replay/file.py"):
            return None
        passed += event == "line"
        if event == "line" and passed == line + 1:
            outcomes.append(Child(lambda: guard.claim("caller", str(line), 2e9)).result())
        return trace

    sys.settrace(trace)
    try:
        outcomes.append(guard.claim("caller", str(line), 2e9))
    finally:
        sys.settrace(before)
    return outcomes


def test_a_fork_waits_for_a_thread_of_ours_that_is_at_work() -> None:
    """It might be inside OpenSSL, whose locks a child would inherit with no thread left to release them."""
    work, began, end = BackgroundWork(), threading.Event(), threading.Event()
    order = []

    def run() -> None:
        with work:
            began.set()
            end.wait(5)
            order.append("work ended")

    thread = threading.Thread(target=run)
    thread.start()
    began.wait(5)
    threading.Timer(0.2, end.set).start()
    child = os.fork()
    if child == 0:
        with work:
            os._exit(0)
    order.append("forked")
    thread.join()
    assert os.waitpid(child, 0)[1] == 0, "the child can work at once"
    assert order == ["work ended", "forked"]
    with work:
        pass


def test_a_fork_waits_once_for_all_threads_that_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as those of forty foreign registries that do not answer: the fork waits for a second, not for forty."""
    monkeypatch.setattr(BackgroundWork, "PATIENCE", 1.0)
    works, end, hanging = [BackgroundWork() for _ in range(40)], threading.Event(), threading.Barrier(41)

    def hang(work: BackgroundWork) -> None:
        with work:
            hanging.wait()
            end.wait()

    threads = [threading.Thread(target=hang, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    hanging.wait()
    before = time.monotonic()
    child = os.fork()
    if child == 0:
        for work in works:
            with work:
                pass
        os._exit(0)
    took = time.monotonic() - before
    end.set()
    for thread in threads:
        thread.join()
    assert os.waitpid(child, 0)[1] == 0, "the child can work at once"
    assert took < 20.0
    for work in works:
        with work:
            pass
