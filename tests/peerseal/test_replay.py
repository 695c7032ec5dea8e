"""One suite for every replay guard, and what each does beyond it."""

import os
import signal
import sqlite3
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import pytest

from peerseal import FileReplayGuard, MemoryReplayGuard, ReplayGuard
from peerseal.errors import TrustUnavailable
from peerseal.testing import Clock
from tests.peerseal.served import Child, in_children

START = 1_800_000_000.0
UNTIL = START + 90


class ReplayGuardContract:
    """What every guard must do. A class that inherits it gives the ``guard``."""

    PURGE_EVERY: ClassVar[int]

    @pytest.fixture
    def clock(self) -> Clock:
        return Clock(START)

    @pytest.fixture
    def guard(self, clock: Clock, tmp_path: Path) -> ReplayGuard:
        raise NotImplementedError

    def test_a_token_is_accepted_once(self, guard: ReplayGuard) -> None:
        assert [guard.claim("issuer", "jti", UNTIL) for _ in range(3)] == [True, False, False]

    def test_tokens_of_other_issuers_may_have_the_same_jti(self, guard: ReplayGuard) -> None:
        assert guard.claim("a", "jti", UNTIL)
        assert guard.claim("b", "jti", UNTIL)
        assert guard.claim("a", "other", UNTIL)

    def test_it_is_remembered_until_its_time_has_passed(self, guard: ReplayGuard, clock: Clock) -> None:
        guard.claim("issuer", "jti", UNTIL)
        for _ in range(90):
            clock.advance(1)
            assert not guard.claim("issuer", "jti", UNTIL)

    def test_it_is_forgotten_within_a_purge_or_two_after_that(self, guard: ReplayGuard, clock: Clock) -> None:
        guard.claim("issuer", "jti", UNTIL)
        clock.now = UNTIL
        for number in range(3):
            clock.advance(self.PURGE_EVERY)
            guard.claim("issuer", f"other-{number}", clock.now + 90)
        assert guard.claim("issuer", "jti", clock.now + 90)

    def test_one_that_lives_longer_outlives_the_others(self, guard: ReplayGuard, clock: Clock) -> None:
        guard.claim("issuer", "short", START + 30)
        guard.claim("issuer", "long", START + 330)
        clock.advance(329)
        assert not guard.claim("issuer", "long", START + 330)

    def test_eight_threads_with_the_same_tokens_have_each_accepted_once(self, guard: ReplayGuard) -> None:
        together = threading.Barrier(8)

        def claim_all(_: int) -> int:
            together.wait()
            return sum(guard.claim("issuer", str(number), UNTIL) for number in range(100))

        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(claim_all, range(8))) == 100

    @pytest.mark.usefixtures("quiet_collector")
    def test_a_forked_child_remembers_what_its_parent_accepted(self, guard: ReplayGuard) -> None:
        guard.claim("issuer", "before", UNTIL)

        def claims() -> list[bool]:
            return [guard.claim("issuer", "before", UNTIL), guard.claim("issuer", "child", UNTIL)]

        assert Child(claims).result() == [False, True]

    @pytest.mark.usefixtures("quiet_collector")
    def test_a_child_forked_in_the_middle_of_the_threads_work_can_go_on(self, guard: ReplayGuard) -> None:
        enough = threading.Event()

        def work(name: str) -> None:
            number = 0
            while not enough.is_set():
                number += 1
                assert guard.claim(name, str(number), UNTIL)

        workers = [threading.Thread(target=work, args=(f"thread-{number}",)) for number in range(3)]
        for worker in workers:
            worker.start()
        try:
            for number in range(10):
                assert Child(lambda number=number: guard.claim("child", str(number), UNTIL)).result()
        finally:
            enough.set()
            for worker in workers:
                worker.join()


class TestMemoryReplayGuard(ReplayGuardContract):
    PURGE_EVERY = MemoryReplayGuard.PURGE_EVERY

    @pytest.fixture
    def guard(self, clock: Clock, tmp_path: Path) -> MemoryReplayGuard:
        return MemoryReplayGuard(clock=clock)

    def test_where_it_is_full_it_accepts_nothing_and_forgets_nothing(self, clock: Clock) -> None:
        guard = MemoryReplayGuard(limit=3, clock=clock)
        for jti in "abc":
            assert guard.claim("issuer", jti, UNTIL)
        with pytest.raises(TrustUnavailable) as caught:
            guard.claim("issuer", "d", UNTIL)
        assert caught.value.retry_after > 0
        assert len(guard) == 3
        for jti in "abc":
            with pytest.raises(TrustUnavailable):
                guard.claim("issuer", jti, UNTIL)

    def test_it_accepts_again_once_the_old_ones_have_expired(self, clock: Clock) -> None:
        guard = MemoryReplayGuard(limit=3, clock=clock)
        for jti in "abc":
            guard.claim("issuer", jti, UNTIL)
        clock.now = UNTIL + 2 * self.PURGE_EVERY
        assert guard.claim("issuer", "d", clock.now + 90)
        assert len(guard) == 1

    def test_what_it_holds_is_bounded_by_time_alone(self, clock: Clock) -> None:
        guard = MemoryReplayGuard(clock=clock)
        most = 0
        for second in range(1000):
            clock.advance(1)
            guard.claim("issuer", str(second), clock.now + 90)
            most = max(most, len(guard))
        assert most <= 90 + 2 * self.PURGE_EVERY + 1


class TestFileReplayGuard(ReplayGuardContract):
    PURGE_EVERY = FileReplayGuard.PURGE_EVERY

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return tmp_path / "replay.sqlite3"

    @pytest.fixture
    def guard(self, clock: Clock, path: Path) -> FileReplayGuard:  # type: ignore[override]
        return FileReplayGuard(path, clock=clock)

    def test_nothing_is_made_before_the_first_token(self, guard: FileReplayGuard, path: Path) -> None:
        assert not path.exists()

    def test_the_file_is_its_owners_only_and_nothing_else_is_left_about(
        self, guard: FileReplayGuard, path: Path
    ) -> None:
        guard.claim("issuer", "jti", UNTIL)
        files = list(path.parent.iterdir())
        assert {file.name for file in files} == {path.name, f"{path.name}-wal", f"{path.name}-shm"}
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}

    def test_it_holds_no_name_and_no_jti(self, guard: FileReplayGuard, path: Path) -> None:
        guard.claim("test.internal/client", "a-jti-in-clear", UNTIL)
        held = b"".join(file.read_bytes() for file in path.parent.iterdir())
        assert b"client" not in held
        assert b"a-jti-in-clear" not in held

    @pytest.mark.usefixtures("quiet_collector")
    @pytest.mark.parametrize("round_", range(3))
    def test_eight_processes_that_start_at_once_accept_each_of_200_tokens_once(
        self, guard: FileReplayGuard, round_: int
    ) -> None:
        accepted = in_children(8, lambda _: sum(guard.claim("issuer", str(number), UNTIL) for number in range(200)))
        assert sum(accepted) == 200

    def test_it_survives_a_restart(self, guard: FileReplayGuard, path: Path, clock: Clock) -> None:
        guard.claim("issuer", "jti", UNTIL)
        guard._close()
        assert not FileReplayGuard(path, clock=clock).claim("issuer", "jti", UNTIL)

    def test_it_survives_kill_minus_9(self, guard: FileReplayGuard) -> None:
        def claim_and_die() -> None:
            guard.claim("issuer", "jti", UNTIL)
            os.kill(os.getpid(), 9)

        child = Child(claim_and_die)
        os.waitpid(child.pid, 0)
        assert not guard.claim("issuer", "jti", UNTIL)

    def test_what_has_expired_takes_no_room(self, guard: FileReplayGuard, path: Path, clock: Clock) -> None:
        for number in range(100):
            guard.claim("issuer", str(number), UNTIL)
        clock.now = UNTIL + self.PURGE_EVERY
        guard.claim("issuer", "new", UNTIL + 120)
        with sqlite3.connect(path) as connection:
            assert connection.execute("SELECT count(*) FROM seen").fetchone() == (1,)

    def test_a_file_that_was_removed_is_made_anew_and_shared_again(
        self, guard: FileReplayGuard, path: Path, clock: Clock
    ) -> None:
        guard.claim("issuer", "before", UNTIL)
        for file in path.parent.iterdir():
            file.unlink()
        other = FileReplayGuard(path, clock=clock)
        other.claim("issuer", "jti", UNTIL)
        clock.advance(self.PURGE_EVERY)
        assert not guard.claim("issuer", "jti", UNTIL)


class TestFileReplayGuardFailsClosed:
    def refuses(self, path: Path) -> bool:
        guard = FileReplayGuard(path)
        with pytest.raises(TrustUnavailable):
            guard.claim("issuer", "jti", UNTIL)
        with pytest.raises(TrustUnavailable):
            guard.claim("issuer", "jti", UNTIL)
        return True

    def test_where_the_folder_is_missing(self, tmp_path: Path) -> None:
        assert self.refuses(tmp_path / "missing" / "replay.sqlite3")

    def test_where_the_path_is_a_folder(self, tmp_path: Path) -> None:
        assert self.refuses(tmp_path)

    def test_where_the_file_is_no_database(self, tmp_path: Path) -> None:
        (tmp_path / "replay.sqlite3").write_bytes(b"no database at all" * 100)
        assert self.refuses(tmp_path / "replay.sqlite3")

    def test_where_the_file_is_another_database(self, tmp_path: Path) -> None:
        sqlite3.connect(tmp_path / "replay.sqlite3").execute("CREATE TABLE other (x)").connection.close()
        assert self.refuses(tmp_path / "replay.sqlite3")

    def test_where_the_file_cannot_be_written(self, tmp_path: Path) -> None:
        folder = tmp_path / "cache"
        folder.mkdir()
        FileReplayGuard(folder / "replay.sqlite3").claim("issuer", "jti", UNTIL)
        for file in folder.iterdir():
            file.chmod(0o400)
        folder.chmod(0o500)

        def refuses_an_ordinary_user() -> bool:
            if os.geteuid() == 0:  # to whom modes mean nothing
                os.setuid(65534)
            return self.refuses(folder / "replay.sqlite3")

        assert Child(refuses_an_ordinary_user).result()
        folder.chmod(0o700)

    def test_where_another_process_never_ends_its_insert(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(FileReplayGuard, "BUSY_TIMEOUT", 0.05)
        path = tmp_path / "replay.sqlite3"
        FileReplayGuard(path).claim("issuer", "first", UNTIL)
        stuck = sqlite3.connect(path, isolation_level=None)
        stuck.execute("BEGIN IMMEDIATE")
        assert self.refuses(path)
        stuck.execute("ROLLBACK")
        assert FileReplayGuard(path).claim("issuer", "jti", UNTIL)

    @pytest.mark.usefixtures("quiet_collector")
    def test_of_many_threads_each_waits_once_for_a_process_that_is_stopped_with_the_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Behind one another they would wait for as long as there are more of them."""
        monkeypatch.setattr(FileReplayGuard, "BUSY_TIMEOUT", 0.4)
        path, clock, (told, tell) = tmp_path / "replay.sqlite3", Clock(START), os.pipe()
        waits, outcomes = list[int](), list[type[Exception]]()

        class Counting(FileReplayGuard):
            def _ready(self) -> sqlite3.Connection:
                waits.append(threading.get_ident())
                return super()._ready()

        guard = Counting(path, clock=clock)
        guard.claim("issuer", "first", UNTIL)
        waits.clear()

        def hold() -> None:
            holding = sqlite3.connect(path, isolation_level=None)
            holding.execute("BEGIN IMMEDIATE")
            os.write(tell, b".")
            os.kill(os.getpid(), signal.SIGSTOP)

        def claim(jti: str) -> None:
            try:
                guard.claim("issuer", jti, UNTIL)
            except TrustUnavailable as refused:
                outcomes.append(type(refused))

        stopped = Child(hold)
        os.read(told, 1)
        threads = [threading.Thread(target=claim, args=(str(number),)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stopped.kill()
        assert outcomes == [TrustUnavailable] * 12
        assert len(waits) == 1, "the others waited for that one, and not for the file after it"
        clock.advance(FileReplayGuard.COOLDOWN)
        assert guard.claim("issuer", "0", UNTIL), "nothing was claimed"


class TestFileReplayGuardAcrossForks:
    """SQLite's locks are POSIX's: what breaks here, breaks without a word and lets a token in twice."""

    @pytest.mark.usefixtures("quiet_collector")
    def test_a_child_forked_after_the_first_token_shares_with_those_who_come_later(self, tmp_path: Path) -> None:
        path = tmp_path / "replay.sqlite3"
        guard = FileReplayGuard(path)
        guard.claim("issuer", "before", UNTIL)
        (told, tell), (answer, give) = os.pipe(), os.pipe()

        def claim_twice() -> list[bool]:
            first = guard.claim("issuer", "one", UNTIL)
            os.write(give, b".")
            os.read(told, 1)
            return [first, guard.claim("issuer", "two", UNTIL)]

        child = Child(claim_twice)
        os.read(answer, 1)
        guard._close()  # the parent ends; whoever believes to be the last removes the write-ahead log
        os.write(tell, b".")
        assert child.result() == [True, True]
        later = FileReplayGuard(path)
        assert [later.claim("issuer", jti, UNTIL) for jti in ("before", "one", "two")] == [False, False, False]

    def test_a_second_thread_does_not_drop_the_locks_of_the_first(self, tmp_path: Path) -> None:
        path = tmp_path / "replay.sqlite3"
        guard = FileReplayGuard(path)
        guard.claim("issuer", "main", UNTIL)
        thread = threading.Thread(target=guard.claim, args=("issuer", "thread", UNTIL))
        thread.start()
        thread.join()

        def claim_and_leave(jti: str) -> bool:
            other = FileReplayGuard(path)
            accepted = other.claim("issuer", jti, UNTIL)
            other._close()
            return accepted

        assert Child(lambda: claim_and_leave("worker")).result()
        assert guard.claim("issuer", "again", UNTIL)
        assert not Child(lambda: claim_and_leave("again")).result()
