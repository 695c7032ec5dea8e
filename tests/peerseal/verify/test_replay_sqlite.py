"""Claims in the SQLite file of the release before, while its workers end one by one."""

import os
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from peerseal import FileReplayGuard
from peerseal.errors import TrustUnavailable
from peerseal.testing import Clock
from peerseal.verify.replay.file import ClaimsInSqlite
from tests.peerseal.served import Child

pytestmark = pytest.mark.usefixtures("quiet_collector")

START = 1_800_000_000.0
UNTIL = START + 90


class WorkerBefore:
    """What a worker of the release before does."""

    def __init__(self, path: Path) -> None:
        new = not path.exists()
        self.connection = sqlite3.connect(path, isolation_level=None)
        if new:
            self.connection.execute("PRAGMA journal_mode = WAL")
            self.connection.execute("CREATE TABLE seen (token BLOB PRIMARY KEY, until INTEGER) WITHOUT ROWID")
        self.connection.execute("SELECT 1 FROM seen LIMIT 1").fetchone()

    def claim(self, issuer: str, jti: str, until: float) -> bool:
        token = blake2b(f"{issuer}\0{jti}".encode(), digest_size=16).digest()
        query = "INSERT OR IGNORE INTO seen VALUES (?, ?)"
        return self.connection.execute(query, (token, int(until) + 1)).rowcount == 1

    def purge(self, now: float) -> None:
        self.connection.execute("DELETE FROM seen WHERE until < ?", (int(now),))


@pytest.fixture
def clock() -> Clock:
    return Clock(START)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "replay.sqlite3"


@pytest.fixture
def before(file: Path) -> Iterator[WorkerBefore]:
    worker = WorkerBefore(file)
    with closing(worker.connection):
        yield worker


@pytest.mark.parametrize("name", ["replay", "replay.sqlite3"])
def test_workers_of_both_releases_accept_a_token_once(
    before: WorkerBefore, tmp_path: Path, clock: Clock, name: str
) -> None:
    assert before.claim("issuer", "accepted before", UNTIL)
    guard = FileReplayGuard(tmp_path / name, clock=clock)
    assert not guard.claim("issuer", "accepted before", UNTIL)
    for number in range(20):
        workers = [before, guard] if number % 2 else [guard, before]
        assert [one.claim("issuer", str(number), UNTIL) for one in workers] == [True, False]  # type: ignore[attr-defined]
    assert not FileReplayGuard(tmp_path / "replay", clock=clock).claim("issuer", "0", UNTIL)


def test_the_file_is_removed_ten_minutes_after_what_the_release_before_accepted_has_expired(
    before: WorkerBefore, file: Path, tmp_path: Path, clock: Clock
) -> None:
    assert before.claim("issuer", "last", UNTIL)
    before.connection.close()
    guard = FileReplayGuard(tmp_path / "replay", clock=clock)
    while clock.now < UNTIL + ClaimsInSqlite.QUIET:
        assert guard.claim("issuer", str(clock.now), clock.now + 90)
        assert file.exists()
        clock.advance(30)
    clock.advance(30)
    assert guard.claim("issuer", "after", clock.now + 90)
    assert not [name for name in os.listdir(tmp_path) if "sqlite3" in name]
    assert not guard.claim("issuer", "after", clock.now + 90)


def test_a_worker_of_the_release_before_that_begins_late_is_seen(file: Path, tmp_path: Path, clock: Clock) -> None:
    guard = FileReplayGuard(tmp_path / "replay", clock=clock)
    assert guard.claim("issuer", "first", UNTIL)
    late = WorkerBefore(file)
    with closing(late.connection):
        assert late.claim("issuer", "of it", UNTIL)
        clock.advance(FileReplayGuard.PURGE_EVERY)
        assert not guard.claim("issuer", "of it", UNTIL)
        assert guard.claim("issuer", "of ours", UNTIL)
        assert not late.claim("issuer", "of ours", UNTIL)


def test_its_purge_takes_ours_as_well(before: WorkerBefore, tmp_path: Path, clock: Clock) -> None:
    before.claim("issuer", "jti", UNTIL)
    FileReplayGuard(tmp_path / "replay", clock=clock).claim("issuer", "ours", UNTIL)
    before.purge(UNTIL + 10)
    assert before.connection.execute("SELECT count(*) FROM seen").fetchone() == (0,)


def test_a_child_forked_in_between_claims_there_as_well(before: WorkerBefore, tmp_path: Path, clock: Clock) -> None:
    before.claim("issuer", "jti", UNTIL)
    guard = FileReplayGuard(tmp_path / "replay", clock=clock)
    assert guard.claim("issuer", "parent", UNTIL)
    assert Child(lambda: [guard.claim("issuer", jti, UNTIL) for jti in ("jti", "parent", "child")]).result() == [
        False,
        False,
        True,
    ]
    assert not before.claim("issuer", "child", UNTIL)


@pytest.mark.parametrize("content", [b"no database at all" * 100, None], ids=["garbage", "another database"])
def test_a_file_that_is_none_of_ours_lets_nobody_in(
    tmp_path: Path, file: Path, clock: Clock, content: bytes | None
) -> None:
    if content is not None:
        file.write_bytes(content)
    else:
        sqlite3.connect(file).execute("CREATE TABLE other (x)").connection.close()
    guard = FileReplayGuard(file, clock=clock)
    for _ in range(2):
        with pytest.raises(TrustUnavailable, match=r"replay\.sqlite3, of the release before"):
            guard.claim("issuer", "jti", UNTIL)


def test_a_worker_that_stops_in_its_insert_is_waited_for_so_long(
    before: WorkerBefore, file: Path, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClaimsInSqlite, "BUSY_TIMEOUT", 0.05)
    assert before.claim("issuer", "jti", UNTIL)
    guard = FileReplayGuard(tmp_path / "replay", clock=clock)
    assert guard.claim("issuer", "first", UNTIL)

    def stop() -> None:
        holding = sqlite3.connect(file, isolation_level=None)
        holding.execute("BEGIN IMMEDIATE")
        os.kill(os.getpid(), signal.SIGSTOP)

    stopped = Child(stop)
    os.waitpid(stopped.pid, os.WUNTRACED)
    with pytest.raises(TrustUnavailable, match="locked"):
        guard.claim("issuer", "second", UNTIL)
    stopped.kill()
    assert guard.claim("issuer", "third", UNTIL)


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="there is no tmpfs")
def test_a_guard_in_a_tmpfs_may_wait_as_long_as_the_file_is_in_use(clock: Clock) -> None:
    with TemporaryDirectory(dir="/dev/shm") as folder:
        guard = FileReplayGuard(Path(folder) / "replay", clock=clock)
        worker = WorkerBefore(Path(folder) / "replay.sqlite3")
        with closing(worker.connection):
            assert worker.claim("issuer", "last", UNTIL)
            assert guard.claim("issuer", "jti", UNTIL)
            assert not guard.in_memory
        clock.advance(90 + ClaimsInSqlite.QUIET + 30)
        assert guard.claim("issuer", "after", clock() + 60)
        assert guard.in_memory
