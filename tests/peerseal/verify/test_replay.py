"""One suite for every replay guard, and what each does beyond it."""

import os
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest

from peerseal import FileReplayGuard, MemoryReplayGuard, Metric, ReplayGuard
from peerseal.errors import ConfigurationError, TrustUnavailable
from peerseal.testing import Clock
from tests.peerseal.served import Child, in_children

START = 1_800_000_000.0
UNTIL = START + 90


def values_of(metrics: list[Metric]) -> dict[str, float]:
    """The one value of each metric, by the end of its name."""
    return {metric.name.removeprefix("peerseal_replay_guard_"): metric.samples[0][1] for metric in metrics}


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

    def test_its_metrics_say_how_many_tokens_it_holds_and_how_full_it_is(self, clock: Clock) -> None:
        guard = MemoryReplayGuard(limit=4, clock=clock)
        guard.claim("issuer", "a", UNTIL)
        assert values_of(guard.collect()) == {"tokens": 1, "full_ratio": 0.25}

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
        return tmp_path / "replay"

    @pytest.fixture
    def guard(self, clock: Clock, path: Path) -> FileReplayGuard:  # type: ignore[override]
        return FileReplayGuard(path, clock=clock)

    def test_its_metrics_count_the_tokens_of_all_processes(self, clock: Clock, path: Path) -> None:
        first, second = (FileReplayGuard(path, limit=4, clock=clock) for _ in range(2))
        assert values_of(first.collect()) == {"tokens": 0, "full_ratio": 0}
        first.claim("issuer", "a", UNTIL)
        second.claim("issuer", "b", UNTIL)
        first.claim("issuer", "c", UNTIL + first.WINDOW)
        assert values_of(first.collect()) == values_of(second.collect()) == {"tokens": 3, "full_ratio": 0.5}

    def test_nothing_is_made_before_the_first_token(self, guard: FileReplayGuard, path: Path) -> None:
        assert not list(path.parent.iterdir())

    def test_the_file_is_its_owners_only_and_nothing_else_is_left_about(
        self, guard: FileReplayGuard, path: Path, clock: Clock
    ) -> None:
        guard.claim("issuer", "jti", UNTIL)
        assert modes(path.parent) == {f"replay.{window(UNTIL)}": 0o600}
        clock.advance(1000)
        guard.claim("issuer", "jti", UNTIL + 1000)
        assert modes(path.parent) == {f"replay.{window(UNTIL + 1000)}": 0o600, "replay.over": 0o600}

    def test_it_holds_no_name_and_no_jti(self, guard: FileReplayGuard, path: Path) -> None:
        guard.claim("test.internal/client", "a-jti-in-clear", UNTIL)
        held = b"".join(file.read_bytes() for file in path.parent.iterdir())
        assert len(held) == 32
        assert b"client" not in held
        assert b"a-jti-in-clear" not in held

    def test_guards_in_one_folder_do_not_meet(self, guard: FileReplayGuard, path: Path, clock: Clock) -> None:
        for name in ("other", "replay.1", "replay.over", "replay-1"):
            assert FileReplayGuard(path.with_name(name), clock=clock).claim("issuer", "jti", UNTIL)
        clock.now = UNTIL + 1000
        assert guard.claim("issuer", "jti", UNTIL + 1000)
        assert not FileReplayGuard(path.with_name("other"), clock=Clock(START)).claim("issuer", "jti", UNTIL)

    @pytest.mark.usefixtures("quiet_collector")
    @pytest.mark.parametrize("round_", range(3))
    def test_eight_processes_that_start_at_once_accept_each_of_200_tokens_once(
        self, guard: FileReplayGuard, round_: int
    ) -> None:
        accepted = in_children(8, lambda _: sum(guard.claim("issuer", str(number), UNTIL) for number in range(200)))
        assert sum(accepted) == 200

    def test_it_survives_a_restart(self, guard: FileReplayGuard, path: Path, clock: Clock) -> None:
        guard.claim("issuer", "jti", UNTIL)
        guard.close()
        assert not FileReplayGuard(path, clock=clock).claim("issuer", "jti", UNTIL)
        assert not guard.claim("issuer", "jti", UNTIL)

    def test_it_survives_kill_minus_9(self, guard: FileReplayGuard) -> None:
        def claim_and_die() -> None:
            guard.claim("issuer", "jti", UNTIL)
            os.kill(os.getpid(), 9)

        child = Child(claim_and_die)
        os.waitpid(child.pid, 0)
        assert not guard.claim("issuer", "jti", UNTIL)

    def test_what_has_expired_takes_no_room(self, guard: FileReplayGuard, path: Path, clock: Clock) -> None:
        for second in range(0, 3600, 10):
            clock.now = START + second
            for number in range(10):
                guard.claim("issuer", f"{second} {number}", clock.now + 90)
        assert len(modes(path.parent)) <= 90 / guard.WINDOW + 4
        assert sum(file.stat().st_blocks * 512 for file in path.parent.iterdir()) <= 8 * 4096

    def test_a_file_that_was_removed_is_made_anew_and_shared_again(
        self, guard: FileReplayGuard, path: Path, clock: Clock
    ) -> None:
        guard.claim("issuer", "before", UNTIL)
        for file in path.parent.iterdir():
            file.unlink()
        other = FileReplayGuard(path, clock=clock)
        other.claim("issuer", "jti", UNTIL)
        assert not guard.claim("issuer", "jti", UNTIL), "at once"
        assert not guard.claim("issuer", "before", UNTIL), "and this process forgot nothing"
        assert guard.claim("issuer", "after", UNTIL)
        assert not other.claim("issuer", "after", UNTIL)

    def test_a_replay_writes_nothing(self, guard: FileReplayGuard, path: Path) -> None:
        guard.claim("issuer", "jti", UNTIL)
        for _ in range(1000):
            assert not guard.claim("issuer", "jti", UNTIL)
        assert log_of(path, UNTIL).stat().st_size == 32

    def test_an_idle_worker_reads_what_others_accepted_in_large_parts(
        self, guard: FileReplayGuard, path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert guard.claim("issuer", "first", UNTIL)
        others = os.urandom(32 * 500_000)
        with log_of(path, UNTIL).open("ab") as log:
            log.write(others)
        other = FileReplayGuard(path, clock=clock)
        assert other.claim("issuer", "jti", UNTIL)
        reads = list[int]()
        really = os.pread

        def counting(fd: int, length: int, offset: int) -> bytes:
            reads.append(length)
            return really(fd, length, offset)

        monkeypatch.setattr(os, "pread", counting)
        assert not guard.claim("issuer", "jti", UNTIL), "behind half a million records"
        assert len(reads) < 20
        reads.clear()
        assert guard.claim("issuer", "next", UNTIL)
        assert sum(reads) < 1000, "and only once"

    def test_where_it_is_full_it_accepts_nothing_and_grows_no_further(self, path: Path, clock: Clock) -> None:
        guard = FileReplayGuard(path, limit=3, clock=clock)
        for jti in "abc":
            assert guard.claim("issuer", jti, UNTIL)
        for jti in "defg":
            with pytest.raises(TrustUnavailable, match="full"):
                guard.claim("issuer", jti, UNTIL)
        assert log_of(path, UNTIL).stat().st_size == 3 * 32
        assert not guard.claim("issuer", "a", UNTIL)
        assert guard.claim("issuer", "d", UNTIL + guard.WINDOW), "another window has room"

    @pytest.mark.parametrize("limit", [0, -1, 1.5, True, "many", None])
    def test_a_limit_is_a_whole_number(self, path: Path, limit: Any) -> None:
        with pytest.raises(ConfigurationError, match="limit"):
            FileReplayGuard(path, limit=limit)

    def test_a_token_may_live_for_years(self, guard: FileReplayGuard, path: Path, clock: Clock) -> None:
        years = START + 10 * 365 * 86_400
        assert guard.claim("issuer", "jti", years)
        clock.advance(86_400)
        assert not FileReplayGuard(path, clock=clock).claim("issuer", "jti", years)
        assert not guard.claim("issuer", "jti", years)

    def test_however_many_times_tokens_end_at_it_holds_few_files_open(
        self, path: Path, clock: Clock, guard: FileReplayGuard
    ) -> None:
        def count() -> int:
            return len(os.listdir("/dev/fd"))

        before = count()
        ends = [START + 30 * number for number in range(300)]
        assert all(guard.claim("issuer", str(end), end) for end in ends)
        assert count() <= before + guard.MOST_OPEN + 2
        assert not any(guard.claim("issuer", str(end), end) for end in ends)
        guard.close()
        assert count() <= before + 2
        del guard

    @pytest.mark.parametrize("until", [float("inf"), float("nan"), -1.0, 1e40])
    def test_a_time_that_is_none_is_refused(self, guard: FileReplayGuard, until: float) -> None:
        with pytest.raises(TrustUnavailable):
            guard.claim("issuer", "jti", until)


class TestFileReplayGuardFailsClosed:
    def refuses(self, path: Path) -> bool:
        guard = FileReplayGuard(path)
        with pytest.raises(TrustUnavailable):
            guard.claim("issuer", "jti", UNTIL)
        with pytest.raises(TrustUnavailable):
            guard.claim("issuer", "jti", UNTIL)
        return True

    def test_where_the_folder_is_missing(self, tmp_path: Path) -> None:
        assert self.refuses(tmp_path / "missing" / "replay")

    def test_where_the_path_is_a_folder(self, tmp_path: Path) -> None:
        assert self.refuses(tmp_path)

    def test_where_a_log_is_a_folder(self, tmp_path: Path) -> None:
        log_of(tmp_path / "replay", UNTIL).mkdir()
        assert self.refuses(tmp_path / "replay")

    @pytest.mark.parametrize("size", [1, 31, 33, 1000])
    def test_where_the_log_is_no_row_of_records(self, tmp_path: Path, size: int) -> None:
        log = log_of(tmp_path / "replay", UNTIL)
        log.write_bytes(b"x" * size)
        assert self.refuses(tmp_path / "replay")
        assert log.stat().st_size == size
        assert FileReplayGuard(tmp_path / "replay").claim("issuer", "jti", UNTIL + 30), "the next window is good"

    def test_where_the_log_was_cut(self, tmp_path: Path) -> None:
        guard = FileReplayGuard(tmp_path / "replay")
        for jti in "abc":
            guard.claim("issuer", jti, UNTIL)
        os.truncate(log_of(tmp_path / "replay", UNTIL), 32)
        with pytest.raises(TrustUnavailable, match="cut"):
            guard.claim("issuer", "d", UNTIL)

    def test_where_the_file_cannot_be_written(self, tmp_path: Path) -> None:
        folder = tmp_path / "cache"
        folder.mkdir()
        FileReplayGuard(folder / "replay").claim("issuer", "jti", UNTIL)
        for file in folder.iterdir():
            file.chmod(0o400)
        folder.chmod(0o500)

        def refuses_an_ordinary_user() -> bool:
            if os.geteuid() == 0:  # to whom modes mean nothing
                os.setuid(65534)
            return self.refuses(folder / "replay")

        assert Child(refuses_an_ordinary_user).result()
        folder.chmod(0o700)

    def test_where_another_thread_never_ends_its_write(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A disk that hangs. Twelve threads are refused together, not one after the other."""
        monkeypatch.setattr(FileReplayGuard, "BUSY_TIMEOUT", 0.2)
        guard, began, end = FileReplayGuard(tmp_path / "replay"), threading.Event(), threading.Event()
        assert guard.claim("issuer", "first", UNTIL)
        really = os.write

        def hanging(fd: int, data: bytes) -> int:
            began.set()
            end.wait(30)
            return really(fd, data)

        monkeypatch.setattr(os, "write", hanging)
        outcomes = list[str]()

        def claim(jti: str) -> None:
            try:
                outcomes.append(str(guard.claim("issuer", jti, UNTIL)))
            except TrustUnavailable as refused:
                outcomes.append(str(refused))

        stuck = threading.Thread(target=claim, args=("stuck",))
        stuck.start()
        assert began.wait(10)
        started = time.monotonic()
        threads = [threading.Thread(target=claim, args=(str(number),)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.monotonic() - started < 12 * 0.2
        assert outcomes == ["the replay guard waits for the disk"] * 12
        end.set()
        stuck.join()
        assert outcomes[-1] == "True"
        assert guard.claim("issuer", "0", UNTIL), "nothing was claimed"


class TestFileReplayGuardAcrossForks:
    @pytest.mark.usefixtures("quiet_collector")
    def test_a_child_forked_after_the_first_token_shares_with_those_who_come_later(self, tmp_path: Path) -> None:
        path = tmp_path / "replay"
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
        guard.close()  # the parent ends
        os.write(tell, b".")
        assert child.result() == [True, True]
        later = FileReplayGuard(path)
        assert [later.claim("issuer", jti, UNTIL) for jti in ("before", "one", "two")] == [False, False, False]

    def test_a_worker_that_ends_takes_nothing_from_the_others(self, tmp_path: Path) -> None:
        path = tmp_path / "replay"
        guard = FileReplayGuard(path)
        guard.claim("issuer", "main", UNTIL)
        thread = threading.Thread(target=guard.claim, args=("issuer", "thread", UNTIL))
        thread.start()
        thread.join()

        def claim_and_leave(jti: str) -> bool:
            other = FileReplayGuard(path)
            accepted = other.claim("issuer", jti, UNTIL)
            other.close()
            return accepted

        assert Child(lambda: claim_and_leave("worker")).result()
        assert guard.claim("issuer", "again", UNTIL)
        assert not Child(lambda: claim_and_leave("again")).result()


def window(until: float) -> int:
    return int(until) // FileReplayGuard.WINDOW


def log_of(path: Path, until: float) -> Path:
    return path.with_name(f"{path.name}.{window(until)}")


def modes(folder: Path) -> dict[str, int]:
    return {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}
