"""Faults under the replay guard of a host: killed and stopped workers, clocks, disks, and files that vanish."""

import logging
import mmap
import os
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from peerseal import FileReplayGuard
from peerseal.errors import TrustUnavailable
from peerseal.testing import Clock
from peerseal.verify.replay import file as replay_file
from peerseal.verify.replay.file import file_system, file_system_kind, is_network
from tests.peerseal.served import Child

pytestmark = pytest.mark.usefixtures("quiet_collector")

START = 1_800_000_000.0
UNTIL = START + 90
WORKERS = 4


@pytest.fixture
def clock() -> Clock:
    return Clock(START)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "replay"


@pytest.fixture
def guard(path: Path, clock: Clock) -> FileReplayGuard:
    return FileReplayGuard(path, clock=clock)


def log_of(path: Path, until: float) -> Path:
    return path.with_name(f"{path.name}.{int(until) // FileReplayGuard.WINDOW}")


def refusal(guard: FileReplayGuard, jti: str, until: float = UNTIL) -> str:
    with pytest.raises(TrustUnavailable) as refused:
        guard.claim("issuer", jti, until)
    return str(refused.value)


class TestKilledWorkers:
    @pytest.mark.parametrize(
        ("tokens", "kills"),
        [(2000, 20), pytest.param(20_000, 200, marks=pytest.mark.thorough)],
    )
    def test_four_processes_accept_each_token_once_whatever_is_killed(
        self, path: Path, tmp_path: Path, clock: Clock, tokens: int, kills: int
    ) -> None:
        """Four workers race for each token. A worker tells what it accepted right after the claim, so one that is
        killed in between leaves at most one token that no caller was told of."""
        allowed, told = mmap.mmap(-1, 8), os.open(tmp_path / "told", os.O_CREAT | os.O_WRONLY | os.O_APPEND)

        def work() -> None:
            guard = FileReplayGuard(path, clock=clock)
            for number in range(tokens):
                while number >= struct.unpack("q", allowed[:8])[0]:
                    time.sleep(0)
                if guard.claim("issuer", str(number), UNTIL + number % 90):
                    os.write(told, struct.pack("q", number))

        workers = [Child(work) for _ in range(WORKERS)]
        choice = random.Random(5)
        for kill in range(kills):
            allowed[:8] = struct.pack("q", tokens * (kill + 1) // kills)
            time.sleep(choice.uniform(0, 0.02))
            workers.pop(choice.randrange(WORKERS)).kill()
            workers.append(Child(work))
        for worker in workers:
            worker.result()
        accepted = [number for (number,) in struct.iter_unpack("q", (tmp_path / "told").read_bytes())]
        assert len(accepted) == len(set(accepted)), "none twice"
        assert tokens - kills <= len(accepted) <= tokens
        later = FileReplayGuard(path, clock=clock)
        assert not any(later.claim("issuer", str(number), UNTIL + number % 90) for number in range(tokens))

    def test_a_stopped_worker_holds_up_nobody_wherever_it_stops(
        self, guard: FileReplayGuard, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Before and after each of a claim's calls to the system."""
        for name in ("fstat", "write", "pread"):
            for after in (False, True):
                jti = f"{name} {after}"

                def stop_inside(name: str = name, after: bool = after, jti: str = jti) -> bool:
                    really = getattr(os, name)

                    def stopping(*arguments: object) -> object:
                        monkeypatch.undo()
                        value = really(*arguments) if after else None
                        os.kill(os.getpid(), signal.SIGSTOP)
                        return value if after else really(*arguments)

                    guard.claim("issuer", f"warm {jti}", UNTIL)
                    monkeypatch.setattr(os, name, stopping)
                    return guard.claim("issuer", jti, UNTIL)

                stopped = Child(stop_inside)
                os.waitpid(stopped.pid, os.WUNTRACED)
                started = time.monotonic()
                here = guard.claim("issuer", jti, UNTIL)
                assert time.monotonic() - started < 10, "the process that is stopped holds no lock"
                os.kill(stopped.pid, signal.SIGCONT)
                assert [here, stopped.result()].count(True) == 1


class TestDisk:
    def limited(self, size: int) -> None:
        """No file of this process can grow beyond that size: a write up to it is short, one beyond it an error."""
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    def test_on_a_full_disk_nothing_is_accepted_and_no_token_used_up(self, guard: FileReplayGuard) -> None:
        def job() -> list[bool]:
            assert guard.claim("issuer", "first", UNTIL)
            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            self.limited(32)
            assert "File too large" in refusal(guard, "second")
            assert not guard.claim("issuer", "first", UNTIL)
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            return [guard.claim("issuer", jti, UNTIL) for jti in ("first", "second")]

        assert Child(job).result() == [False, True]

    def test_a_record_written_in_part_closes_its_window_for_all_and_no_other(
        self, guard: FileReplayGuard, path: Path, clock: Clock
    ) -> None:
        assert guard.claim("issuer", "first", UNTIL)

        def job() -> str:
            self.limited(40)
            return refusal(guard, "second")

        assert "in part" in Child(job).result()
        for other in (guard, FileReplayGuard(path, clock=clock)):
            assert "cut" in refusal(other, "third")
            assert "cut" in refusal(other, "second")
        assert not guard.claim("issuer", "first", UNTIL), "it is known to have been accepted"
        assert guard.claim("issuer", "fourth", UNTIL + FileReplayGuard.WINDOW)

    def test_two_parts_that_make_up_a_record_let_no_token_in_twice(self, path: Path, clock: Clock) -> None:
        guards = [FileReplayGuard(path, clock=clock) for _ in range(2)]
        assert guards[0].claim("issuer", "first", UNTIL)
        with log_of(path, UNTIL).open("ab") as log:
            log.write(b"x" * 8)
        assert refusal(guards[0], "second")
        with log_of(path, UNTIL).open("ab") as log:
            log.write(b"x" * 24)
        assert not guards[1].claim("issuer", "first", UNTIL)
        assert [guard.claim("issuer", "third", UNTIL) for guard in guards] == [True, False]

    @pytest.mark.parametrize("others", [1, 2, 3, 4])
    def test_a_log_that_was_emptied_and_grew_again_is_no_less_closed_to_who_read_more_of_it(
        self, path: Path, clock: Clock, others: int
    ) -> None:
        """As by a program that rotates logs and cuts them where they are."""
        reader, other = (FileReplayGuard(path, clock=clock) for _ in range(2))
        for jti in ("first", "second"):
            assert reader.claim("issuer", jti, UNTIL)
        os.truncate(log_of(path, UNTIL), 0)
        for number in range(others):
            assert other.claim("issuer", f"after {number}", UNTIL)
        assert "cut" in refusal(reader, "after 0")
        assert "cut" in refusal(reader, "third")
        assert not reader.claim("issuer", "first", UNTIL)

    @pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="only root can mount a file system")
    def test_a_disk_that_the_logs_alone_have_filled_has_room_again_when_they_are_over(self, tmp_path: Path) -> None:
        script = """
import sys, peerseal
from peerseal.errors import TrustUnavailable
clock = [float(sys.argv[2])]
guard = peerseal.FileReplayGuard(sys.argv[1], clock=lambda: clock[0])
accepted = refused = 0
while refused < 3:
    try:
        accepted += guard.claim("issuer", f"{accepted} {refused}", clock[0] + 90)
    except TrustUnavailable as error:
        assert "No space left" in str(error), error
        refused += 1
clock[0] += 300
try:  # this one makes the room
    guard.claim("issuer", "room", clock[0] + 90)
except TrustUnavailable:
    clock[0] += guard.PURGE_EVERY
print(accepted, guard.claim("issuer", "after", clock[0] + 90), guard.claim("issuer", "after", clock[0] + 90))
"""
        mount = 'mount -t tmpfs -o size=64k,mode=0700 tmpfs "$0" && exec "$@"'
        inside = [sys.executable, "-c", script, str(tmp_path / "replay"), str(START)]
        command = ["unshare", "--mount", "sh", "-c", mount, str(tmp_path), *inside]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if "mount:" in ended.stderr or "unshare:" in ended.stderr:
            pytest.skip(ended.stderr)
        assert ended.stderr == ""
        assert ended.stdout == "2048 True False\n"

    def test_a_log_that_cannot_be_removed_is_said_and_stops_no_claim(
        self, guard: FileReplayGuard, path: Path, clock: Clock, caplog: pytest.LogCaptureFixture
    ) -> None:
        log_of(path, START).mkdir()
        clock.advance(1000)
        with caplog.at_level(logging.WARNING, "peerseal.replay"):
            assert guard.claim("issuer", "jti", UNTIL + 1000)
        assert "stays after its time" in caplog.text


class TestClocks:
    def test_a_window_that_was_removed_takes_no_claim_of_a_worker_that_slept(
        self, guard: FileReplayGuard, path: Path, clock: Clock
    ) -> None:
        late, anew = FileReplayGuard(path, clock=Clock(START)), FileReplayGuard(path, clock=Clock(START))
        assert guard.claim("issuer", "jti", UNTIL)
        late.claim("issuer", "other", UNTIL)
        clock.now = UNTIL + 3 * FileReplayGuard.WINDOW
        assert guard.claim("issuer", "next", clock.now + 90)
        assert not log_of(path, UNTIL).exists()
        for one in (late, anew):
            assert not accepts(one, "jti", UNTIL)
            assert "clock wrong" in refusal(one, "never seen")
            assert "clock wrong" in refusal(one, "never seen")

    def test_a_clock_that_steps_back_brings_no_token_back(
        self, guard: FileReplayGuard, path: Path, clock: Clock
    ) -> None:
        accepted = []
        for _ in range(120):  # an hour
            accepted.append((str(clock.now), clock.now + 90))
            assert guard.claim("issuer", *accepted[-1])
            clock.advance(30)
        for step in (10, 100, 1000, 3600):
            clock.now = START + 3600 - step
            for one in (guard, FileReplayGuard(path, clock=clock)):
                for jti, until in accepted:
                    assert not accepts(one, jti, until)

    def test_a_small_step_back_refuses_no_new_token(self, guard: FileReplayGuard, clock: Clock) -> None:
        for number in range(100):
            clock.advance(20 if number % 2 else -10)
            assert guard.claim("issuer", str(number), clock.now + 60)

    def test_a_clock_that_stepped_a_year_ahead_by_mistake_refuses_for_as_long_as_what_it_forgot_is_good(
        self, guard: FileReplayGuard, path: Path, clock: Clock
    ) -> None:
        for number in range(4):
            assert guard.claim("issuer", f"before {number}", UNTIL + 30 * number)
        clock.now = year = START + 365 * 86_400
        for number in range(100):  # the callers' clocks are as wrong, and logs of that year are removed
            clock.advance(30)
            assert guard.claim("issuer", f"ahead {number}", clock.now + 90)
        clock.now = START
        for one in (guard, FileReplayGuard(path, clock=clock)):
            for number in range(4):
                assert not accepts(one, f"before {number}", UNTIL + 30 * number)
            assert not accepts(one, "ahead 0", year + 120)
        clock.advance(120)
        assert guard.claim("issuer", "after", clock.now + 90), "healed, two minutes later"

    def test_what_keeps_the_removed_windows_takes_little_room(self, guard: FileReplayGuard, path: Path) -> None:
        clock = Clock(START)
        guard = FileReplayGuard(path, clock=clock)
        for _ in range(200):
            guard.claim("issuer", str(clock.now), clock.now + 60)
            clock.advance(600)
        assert path.with_name("replay.over").stat().st_blocks * 512 <= 3 * 4096


def accepts(guard: FileReplayGuard, jti: str, until: float) -> bool:
    try:
        return guard.claim("issuer", jti, until)
    except TrustUnavailable:
        return False


class TestFiles:
    def test_a_process_keeps_no_log_open_that_another_one_removed(
        self, guard: FileReplayGuard, path: Path, clock: Clock
    ) -> None:
        other, before = FileReplayGuard(path, clock=clock), len(os.listdir("/dev/fd"))
        for number in range(200):
            clock.advance(FileReplayGuard.PURGE_EVERY)
            for one in (guard, other):
                assert one.claim("issuer", f"{number} {id(one)}", clock.now + 90)
        assert len(os.listdir("/dev/fd")) <= before + 2 * 6

    def test_a_log_removed_in_the_middle_of_claims_is_made_anew_for_all(
        self, guard: FileReplayGuard, path: Path, clock: Clock
    ) -> None:
        other, ended = FileReplayGuard(path, clock=clock), threading.Event()

        def remove() -> None:
            while not ended.is_set():
                log_of(path, UNTIL).unlink(missing_ok=True)

        remover = threading.Thread(target=remove)
        remover.start()
        try:
            for number in range(500):
                first, second = (accepts(guard, str(number), UNTIL) for _ in range(2))  # refused, if removed meanwhile
                assert not (first and second), "one process forgets nothing"
        finally:
            ended.set()
            remover.join()
        assert guard.claim("issuer", "after", UNTIL)
        assert not other.claim("issuer", "after", UNTIL)

    def test_a_network_file_system_is_refused_with_the_remedy(
        self, guard: FileReplayGuard, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        device = tmp_path.stat().st_dev
        mounts = tmp_path / "mountinfo"
        mounts.write_text(f"29 1 {os.major(device)}:{os.minor(device)} / / rw - nfs4 server:/export rw\n")
        monkeypatch.setattr(replay_file, "_MOUNTS", mounts)
        said = refusal(guard, "jti")
        assert "nfs4" in said
        assert "PEERSEAL_REPLAY_DIR" in said
        assert "PEERSEAL_REPLAY_URL" in said
        assert not log_of(path, UNTIL).exists()
        monkeypatch.undo()
        assert guard.claim("issuer", "jti", UNTIL)

    def test_the_kind_of_a_file_system_is_that_of_its_device(self) -> None:
        mounts = (
            "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"
            "30 22 0:45 / /srv/with\\040space rw - nfs4 server:/a rw\n"
            "31 22 0:46 /sub /mnt rw master:3 propagate_from:2 - fuse.sshfs user@host: rw\n"
            "a line that is none\n"
        )
        devices = [os.makedev(*numbers) for numbers in ((254, 0), (0, 45), (0, 46), (0, 47))]
        assert [file_system_kind(mounts, device) for device in devices] == ["ext4", "nfs4", "fuse.sshfs", None]

    @pytest.mark.parametrize("kind", ["nfs", "cifs", "smb3", "9p", "ceph", "fuse.glusterfs", "lustre", "afs"])
    def test_kinds_that_several_hosts_mount(self, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        mounts = tmp_path / "mountinfo"
        mounts.write_text(f"1 0 8:1 / / rw - {kind} x rw\n1 0 8:2 / / rw - {kind}x x rw\n2 0 8:3 / / rw - tmpfs x rw\n")
        monkeypatch.setattr(replay_file, "_MOUNTS", mounts)
        kinds = [file_system(os.makedev(8, minor)) for minor in (1, 2, 3, 4)]
        assert kinds == [kind, f"{kind}x", "tmpfs", None]
        assert [is_network(known) for known in kinds if known] == [True, False, False]
        monkeypatch.setattr(replay_file, "_MOUNTS", tmp_path / "missing")
        assert file_system(os.makedev(8, 1)) is None
