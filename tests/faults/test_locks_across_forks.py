"""What a forked child inherits must not hold up anybody: seen to go wrong with recycled gunicorn workers."""

import os
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import text

from peerseal.peers.forks import BackgroundWork
from peerseal.peers.keyfolder import KeyFolder
from peerseal.peers.replay import FileReplayGuard
from registry.storage.engine import create_engine

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


def test_a_fork_waits_for_a_thread_of_ours_that_is_at_work() -> None:
    """It might be inside OpenSSL, whose locks a child would inherit with nobody left to release them."""
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
