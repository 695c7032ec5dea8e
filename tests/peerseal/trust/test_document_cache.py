"""Documents on disk, shared by the processes of a host."""

import errno
import fcntl
import math
import os
import stat
import threading
from pathlib import Path

import pytest

from peerseal.protocol.documents.changes import Watched
from peerseal.runtime.limits import TrustLimits
from peerseal.transport.deadline import no_longer_than
from peerseal.trust.disk.document_cache import CopyFolder
from peerseal.trust.disk.shared_changes import SharedChanges, SignedChanges
from tests.peerseal.served import Child

NOW = 1_800_000_000.0
LIMITS = TrustLimits(wait=0.0, poll_interval=0.0, look_interval=0.001, longest_poll_pause=0.0)


@pytest.fixture
def folder(tmp_path: Path) -> CopyFolder:
    return CopyFolder(tmp_path / "cache", "documents-pin")


def another(tmp_path: Path) -> CopyFolder:
    """What another process has in its hands."""
    return CopyFolder(tmp_path / "cache", "documents-pin")


class TestFolder:
    def test_what_one_process_writes_another_reads(self, folder: CopyFolder, tmp_path: Path) -> None:
        folder.write("keys-a.jwt", "a.b.c", NOW)
        copy = another(tmp_path).read("keys-a.jwt")
        assert copy is not None
        assert (copy.jws, copy.fetched_at) == ("a.b.c", NOW)
        assert another(tmp_path).fetched_at("keys-a.jwt") == NOW

    def test_where_nothing_was_written_there_is_nothing(self, folder: CopyFolder) -> None:
        assert folder.read("keys-a.jwt") is None
        assert folder.fetched_at("keys-a.jwt") == 0.0
        assert folder.read_seen("keys-a.jwt") == 0

    def test_all_of_it_is_for_its_owner_only(self, folder: CopyFolder, tmp_path: Path) -> None:
        before = os.umask(0)
        try:
            folder.write("keys-a.jwt", "a.b.c", NOW)
            folder.write_seen("keys-a.jwt", 3)
            with folder.locked("keys-a.jwt"):
                pass
        finally:
            os.umask(before)
        inner = tmp_path / "cache" / "documents-pin"
        assert stat.S_IMODE(inner.stat().st_mode) == 0o700
        assert {stat.S_IMODE(file.stat().st_mode) for file in inner.iterdir()} == {0o600}

    def test_a_registry_that_had_nothing_newer_confirms_a_copy(self, folder: CopyFolder) -> None:
        folder.write("keys-a.jwt", "a.b.c", NOW)
        folder.confirm("keys-a.jwt", NOW + 300)
        assert folder.fetched_at("keys-a.jwt") == NOW + 300
        folder.confirm("keys-b.jwt", NOW)  # not there: nothing to confirm
        assert folder.read("keys-b.jwt") is None

    def test_the_highest_seq_seen_is_remembered_and_never_falls(self, folder: CopyFolder, tmp_path: Path) -> None:
        for seq in (7, 9, 8):
            folder.write_seen("keys-a.jwt", seq)
        folder.write_seen("keys-b.jwt", 2)
        assert [another(tmp_path).read_seen(name) for name in ("keys-a.jwt", "keys-b.jwt")] == [9, 2]

    @pytest.mark.parametrize("spoilt", ["", "-9", "9.0", "nine", "\0", "9" * 100, "٩"])
    def test_a_spoilt_memory_counts_as_none(self, folder: CopyFolder, tmp_path: Path, spoilt: str) -> None:
        folder.write_seen("keys-a.jwt", 9)
        (tmp_path / "cache" / "documents-pin" / "keys-a.jwt.seen").write_text(spoilt)
        assert folder.read_seen("keys-a.jwt") == 0
        folder.write_seen("keys-a.jwt", 9)
        assert folder.read_seen("keys-a.jwt") == 9

    def test_bytes_of_any_sort_are_read_as_a_text_that_nobody_signed(self, folder: CopyFolder, tmp_path: Path) -> None:
        folder.write("keys-a.jwt", "a.b.c", NOW)
        (tmp_path / "cache" / "documents-pin" / "keys-a.jwt").write_bytes(b"\xff\xfe\0")
        copy = folder.read("keys-a.jwt")
        assert copy is not None
        assert not copy.jws.isascii()

    def test_files_that_nobody_renewed_for_long_go(self, folder: CopyFolder, tmp_path: Path) -> None:
        folder.write("keys-a.jwt", "a.b.c", NOW - 10 * 365 * 24 * 3600)
        folder.write_seen("keys-a.jwt", 3)
        folder.write("keys-b.jwt", "a.b.c", NOW + 10 * 365 * 24 * 3600)
        fresh = another(tmp_path)
        fresh.write("keys-c.jwt", "a.b.c", NOW)
        assert fresh.read("keys-a.jwt") is None
        assert fresh.read("keys-b.jwt") is not None
        assert fresh.read_seen("keys-a.jwt") == 3, "which is younger"

    def test_one_process_at_a_time_fetches_a_document(self, folder: CopyFolder, tmp_path: Path) -> None:
        with folder.locked("keys-a.jwt"):
            waiting = Child(lambda: _locks(another(tmp_path), "keys-a.jwt", 0.05))
            others = Child(lambda: _locks(another(tmp_path), "keys-b.jwt", 10))
            assert not waiting.result(), "it went on by itself, once it had waited for long enough"
            assert others.result(), "another document has another lock"
        assert _locks(another(tmp_path), "keys-a.jwt", 10)

    def test_a_full_disk_is_said_once_and_stops_nothing(
        self, folder: CopyFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def full(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "replace", full)
        for _ in range(3):
            folder.write("keys-a.jwt", "a.b.c", NOW)
            folder.write_seen("keys-a.jwt", 3)
        assert caplog.text.count("no copies of documents can be kept") == 1

    def test_a_folder_of_ours_that_others_may_change_is_tightened(
        self, folder: CopyFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache").chmod(0o777)
        folder.write("keys-a.jwt", "a.b.c", NOW)
        assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o755
        assert "others had access (mode 0777, owner" in caplog.text

    def test_a_thousand_names_that_strangers_make_up_leave_one_file(self, folder: CopyFolder, tmp_path: Path) -> None:
        for number in range(1000):
            with folder.locked(f"keys-made-up-{number}.jwt") as alone:
                assert alone
        assert [file.name for file in (tmp_path / "cache" / "documents-pin").iterdir()] == ["locks"]

    def test_a_file_that_is_none_of_ours_stays_however_old_it_is(self, folder: CopyFolder, tmp_path: Path) -> None:
        folder.write("keys-a.jwt", "a.b.c", NOW)
        inner = tmp_path / "cache" / "documents-pin"
        for name in ("notes.txt", "other.pem", "locks", "changes.leads"):
            (inner / name).touch()
            os.utime(inner / name, (0, 0))
        another(tmp_path).write("keys-b.jwt", "a.b.c", NOW)
        assert {"notes.txt", "other.pem", "locks", "changes.leads"} <= {file.name for file in inner.iterdir()}


class TestNews:
    def test_of_all_processes_one_leads(self, folder: CopyFolder, tmp_path: Path) -> None:
        mine = SharedChanges(folder)
        assert mine.lead()
        assert mine.leads
        assert not SharedChanges(another(tmp_path)).lead()
        mine.resign()
        assert SharedChanges(another(tmp_path)).lead()

    def test_a_folder_without_locks_costs_no_descriptor_at_each_attempt(
        self, folder: CopyFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def no_locks(*_: object) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", no_locks)
        mine = SharedChanges(folder)
        mine.lead()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(10):
            assert mine.lead(), "each process asks for itself"
        assert len(os.listdir("/proc/self/fd")) == before

    def test_the_others_hear_each_list_once_in_its_order(self, folder: CopyFolder, tmp_path: Path) -> None:
        mine, other, never = SharedChanges(folder), SharedChanges(another(tmp_path)), threading.Event()
        one, two, three = SignedChanges("one", 1.5), SignedChanges("two", 2.5), SignedChanges("three", 3.5)
        mine.write(one, NOW)
        mine.write(two, NOW + 1)
        assert other.wait_for_new(1, LIMITS, never) == (one, two)
        mine.write(three, NOW + 2)
        assert other.wait_for_new(1, LIMITS, never) == (three,)

    def test_when_another_machine_asked_says_nothing_here(self, folder: CopyFolder, tmp_path: Path) -> None:
        """Nor does what an earlier version wrote, or an earlier start of the machine."""
        lines = ("jws", "another-boot 5.0 jws", f"{SignedChanges('x', 1.0).line().split()[0]} soon jws")
        folder.write("changes.lists", "\n".join(lines), NOW)
        heard = SharedChanges(another(tmp_path)).wait_for_new(1, LIMITS, threading.Event())
        assert heard == tuple(SignedChanges("jws", -math.inf) for _ in lines)

    def test_an_answer_serves_who_woke_before_it_was_asked_for(self, folder: CopyFolder, tmp_path: Path) -> None:
        mine, other = SharedChanges(folder), SharedChanges(another(tmp_path))
        assert other.answer(0.0, 100.0) is None
        mine.write_answer(SignedChanges("jws", 50.0), NOW)
        assert other.answer(49.0, 100.0) == "jws"
        assert other.answer(50.0, 100.0) is other.answer(51.0, 100.0) is None
        assert other.answer(10.0, 49.0) is None, "which is of a time to come"

    def test_each_process_adds_the_services_that_it_watches(self, folder: CopyFolder, tmp_path: Path) -> None:
        mine, other = SharedChanges(folder), SharedChanges(another(tmp_path))
        assert other.watched() == Watched.of([])
        mine.watch(lambda: Watched.of(["a"]))
        other.watch(lambda: Watched.of(["b"]))
        assert mine.watched() == other.watched() == Watched.of(["a", "b"])
        mine.watch(Watched)
        assert other.watched() == Watched(), "all"
        other.watch(lambda: Watched.of(["c"]))
        assert mine.watched() == Watched()

    @pytest.mark.parametrize("text", ["", "A", "a,,b", "a" * 900, "\0"])
    def test_a_damaged_file_of_watched_services_stands_for_all(self, folder: CopyFolder, text: str) -> None:
        folder.write("changes.watched", text, NOW)
        assert SharedChanges(folder).watched() == Watched()

    def test_who_leads_and_hangs_is_not_waited_for(self, folder: CopyFolder) -> None:
        assert SharedChanges(folder).wait_for_new(0.005, LIMITS, threading.Event()) is None

    def test_a_short_silence_is_nothing_to_worry_about(self, folder: CopyFolder) -> None:
        patient = TrustLimits(look_interval=0.001)
        assert SharedChanges(folder).wait_for_new(0.005, patient, threading.Event()) == ()

    def test_no_more_lists_are_kept_than_agreed(self, folder: CopyFolder, tmp_path: Path) -> None:
        mine, many = (
            SharedChanges(folder),
            [SignedChanges(str(number), number / 2) for number in range(SharedChanges.KEPT + 5)],
        )
        for number, word in enumerate(many):
            mine.write(word, NOW + number)
        heard = SharedChanges(another(tmp_path)).wait_for_new(1, LIMITS, threading.Event())
        assert heard == tuple(many[-SharedChanges.KEPT :])

    @pytest.mark.usefixtures("quiet_collector")
    def test_a_forked_child_does_not_lead_and_does_not_end_its_parents_lead(
        self, folder: CopyFolder, tmp_path: Path
    ) -> None:
        mine = SharedChanges(folder)
        assert mine.lead()
        assert Child(lambda: not mine.leads and not mine.lead()).result()
        assert not SharedChanges(another(tmp_path)).lead()

    def test_without_a_folder_each_asks_for_itself(self, folder: CopyFolder, tmp_path: Path) -> None:
        (tmp_path / "cache").touch()
        assert SharedChanges(folder).lead()
        assert not SharedChanges(folder).leads


def _locks(folder: CopyFolder, name: str, patience: float) -> bool:
    """Whether the lock is had before the time is over."""
    with no_longer_than(patience), folder.locked(name) as alone:
        return alone
