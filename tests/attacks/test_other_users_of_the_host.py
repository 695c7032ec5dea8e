"""Other users of the host: they may rename in a parent folder, plant links and files, and must gain nothing by it."""

import errno
import gc
import os
import stat
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peerseal import FileReplayGuard, Identity, Verifier
from peerseal.audit.monitor_state import MonitorState, load_state, save_state
from peerseal.errors import ConfigurationError, PeersealError, TrustUnavailable
from peerseal.identity.key_folder import KeyFolder, StoredKey, StoredKeys
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.names import make_kid
from peerseal.runtime.files import Access, Folder
from peerseal.testing import Clock, MemoryRegistry
from peerseal.trust.disk.document_cache import CopyFolder
from tests.peerseal.served import Child

pytestmark = pytest.mark.usefixtures("quiet_collector")

STRANGER = 65534
NOW = 1_800_000_000.0
PEM = b"-----BEGIN PRIVATE KEY-----\nof another program\n-----END PRIVATE KEY-----\n"


def as_stranger(job: Callable[[], Any]) -> Any:
    """What the job gives in a process of another user. Only root can start one."""
    if os.geteuid() != 0:
        pytest.skip("only root can start a process of another user")

    def changed() -> Any:
        os.setgroups([])
        os.setgid(STRANGER)
        os.setuid(STRANGER)
        return job()

    return Child(changed).result()


def given_to_a_stranger(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file to another user")
    os.chown(path, STRANGER, STRANGER, follow_symlinks=False)


def held(pair: KeyPair, *, registered_at: float | None = NOW) -> StoredKey:
    kid = make_kid("test.internal/client", pair.public.thumbprint)
    return StoredKey(kid, pair, registered_at, NOW, NOW + 1000)


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """What an emptyDir is: a folder of root's in which every user may make, rename and remove."""
    for folder in (tmp_path, *list(tmp_path.parents)[:3]):
        folder.chmod(folder.stat().st_mode | 0o011)
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume").chmod(0o777)
    return tmp_path / "volume"


class TestKeyFolder:
    def test_a_folder_that_takes_its_place_after_the_start_is_not_vouched_for(
        self, registry: MemoryRegistry, shared: Path
    ) -> None:
        """The candidate in it would be registered at the next look, with a request signed by the key in memory."""
        client = registry.identity("client", key_dir=shared / "keys")
        theirs = KeyPair.generate("ES256")
        KeyFolder(shared / "theirs").save(StoredKeys(registry.domain, None, (held(theirs, registered_at=None),)))
        (shared / "keys" / "client").rename(shared / "keys" / "away")
        (shared / "theirs").rename(shared / "keys" / "client")
        client.look_after_keys()
        client.rotate()
        registered = {kid.rpartition("/")[2] for kid in registry.keys}
        assert theirs.public.thumbprint not in registered
        assert f"{theirs.public.thumbprint}.pem" in names(shared / "keys" / "client"), "nothing of theirs was touched"
        assert len(registered) == 2, "the rotation went on in the folder that was opened"

    def test_other_users_cannot_rename_it_where_the_named_folder_is_ours(self, shared: Path) -> None:
        (shared / "keys").mkdir()
        (shared / "keys").chmod(0o777)
        KeyFolder(shared / "keys" / "client").save(StoredKeys())
        assert (shared / "keys").stat().st_mode & stat.S_ISVTX

        def rename() -> str:
            try:
                (shared / "keys" / "client").rename(shared / "keys" / "away")
            except PermissionError:
                return "refused"
            return "renamed"

        assert as_stranger(rename) == "refused"

    def test_a_running_process_keeps_its_folder_and_a_new_one_refuses_theirs(self, shared: Path) -> None:
        ours = Folder(shared / "client", "PEERSEAL_KEY_DIR", named=shared)
        ours.write("keys.json", b"ours")
        os.chmod(shared, 0o777)  # without the sticky bit that was just set

        def swap() -> None:
            (shared / "client").rename(shared / "away")
            (shared / "client").mkdir()
            (shared / "client" / "keys.json").write_bytes(b"theirs")

        as_stranger(swap)
        assert ours.read("keys.json") == b"ours"
        with pytest.raises(ConfigurationError, match=f"not owned by uid {os.geteuid()} .mode 0755, owner {STRANGER}"):
            Folder(shared / "client").read("keys.json")

    def test_a_link_in_its_place_has_nothing_deleted(self, shared: Path, tmp_path: Path) -> None:
        other = tmp_path / "other-program"
        other.mkdir(mode=0o700)
        (other / "server.pem").write_bytes(PEM)
        (shared / "client").symlink_to(other)
        with pytest.raises(ConfigurationError, match="a symbolic link, not a folder"):
            KeyFolder(shared / "client").save(StoredKeys())
        assert names(other) == {"server.pem"}

    def test_files_of_other_programs_in_it_stay(self, tmp_path: Path) -> None:
        folder, kept = KeyFolder(tmp_path / "client"), KeyPair.generate("ES256")
        folder.save(StoredKeys())
        strange = KeyPair.generate("ES256").public.thumbprint
        others = {"server.pem": PEM, f"{strange}.pem": kept.to_pem(None), f"{'A' * 43}.pem": PEM, "new": b""}
        for name, content in others.items():
            (tmp_path / "client" / name).write_bytes(content)
        folder.save(StoredKeys(keys=(held(kept),)))
        folder.save(StoredKeys())
        assert others.keys() <= names(tmp_path / "client")
        assert f"{kept.public.thumbprint}.pem" not in names(tmp_path / "client")

    def test_a_private_key_of_ours_that_no_list_names_is_destroyed(self, tmp_path: Path) -> None:
        """A process died between the two writes."""
        left = KeyPair.generate("ES256")
        KeyFolder(tmp_path / "client").save(StoredKeys())
        (tmp_path / "client" / f"{left.public.thumbprint}.pem").write_bytes(left.to_pem(None))
        KeyFolder(tmp_path / "client").save(StoredKeys())
        assert not list((tmp_path / "client").glob("*.pem"))

    def test_a_private_key_that_is_not_the_one_of_its_kid_is_refused(self, tmp_path: Path) -> None:
        pair = KeyPair.generate("ES256")
        KeyFolder(tmp_path / "client").save(StoredKeys(keys=(held(pair),)))
        (tmp_path / "client" / f"{pair.public.thumbprint}.pem").write_bytes(KeyPair.generate("ES256").to_pem(None))
        with pytest.raises(ConfigurationError, match="holds another key than its name says"):
            KeyFolder(tmp_path / "client").load()

    @pytest.mark.parametrize("kid", ["", "x", "a/b/../../etc/passwd", "a/b/" + "A" * 42, 5, None, ["a"]])
    def test_a_kid_that_names_no_file_of_ours_is_refused(self, tmp_path: Path, kid: object) -> None:
        folder = Folder(tmp_path / "client")
        key = {"kid": kid, "registered_at": None, "signs_from": 0, "expires_at": 0}
        text = repr({"domain": "d", "pin": "p", "keys": [key]}).replace("'", '"').replace("None", "null")
        folder.write("keys.json", text.encode())
        with pytest.raises(ConfigurationError, match=r"is not a key id|cannot be read"):
            KeyFolder(tmp_path / "client").load()

    @pytest.mark.parametrize("name", ["keys.json", "lock", "holders"])
    @pytest.mark.parametrize("what", ["link", "hard link", "pipe", "another user's file", "folder"])
    def test_what_is_no_file_of_ours_is_refused_and_not_waited_for(self, tmp_path: Path, name: str, what: str) -> None:
        folder, outside = tmp_path / "client", tmp_path / "outside"
        folder.mkdir(mode=0o700)
        outside.write_bytes(b"of another program")
        make: dict[str, Callable[[Path], object]] = {
            "link": lambda path: path.symlink_to(outside),
            "hard link": lambda path: path.hardlink_to(outside),
            "pipe": os.mkfifo,
            "another user's file": lambda path: (path.touch(), given_to_a_stranger(path)),
            "folder": Path.mkdir,
        }
        make[what](folder / name)
        keys = KeyFolder(folder)

        def use() -> None:
            keys.load()
            with keys.locked():
                keys.hold()

        with pytest.raises(ConfigurationError):
            use()
        assert outside.read_bytes() == b"of another program"

    def test_the_keys_of_another_service_are_not_taken_for_ours(self, registry: MemoryRegistry, shared: Path) -> None:
        registry.identity("other", key_dir=shared)
        (shared / "other").rename(shared / "client")
        with pytest.raises(ConfigurationError, match="is no key of client"):
            registry.identity("client", key_dir=shared)


class TestOnTheWay:
    def test_a_link_of_another_user_is_not_followed(self, shared: Path, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir()
        (shared / "link").symlink_to(tmp_path / "elsewhere")
        given_to_a_stranger(shared / "link")
        with pytest.raises(ConfigurationError, match="a symbolic link of another user"):
            Folder(shared / "link" / "client").make()
        assert not names(tmp_path / "elsewhere")

    def test_a_link_of_our_own_is_followed(self, shared: Path, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir()
        (shared / "link").symlink_to("../elsewhere")
        assert Folder(shared / "link" / "client").path == tmp_path / "elsewhere" / "client"

    def test_links_that_lead_in_a_circle_are_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a").symlink_to("b")
        (tmp_path / "b").symlink_to("a")
        with pytest.raises(ConfigurationError, match="not a folder"):
            Folder(tmp_path / "a" / "client").make()

    def test_a_link_that_may_not_be_read_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """As those of other processes in /proc."""

        def refuse(path: str, *, dir_fd: int) -> str:
            raise PermissionError(errno.EACCES, "Permission denied", path)

        (tmp_path / "link").symlink_to("elsewhere")
        monkeypatch.setattr(os, "readlink", refuse)
        with pytest.raises(ConfigurationError, match=f"PEERSEAL_KEY_DIR={tmp_path}/link.*not accessible by uid"):
            Folder(tmp_path / "link" / "client", "PEERSEAL_KEY_DIR", named=tmp_path / "link").make()

    def test_a_folder_of_another_user_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "theirs").mkdir()
        given_to_a_stranger(tmp_path / "theirs")
        with pytest.raises(ConfigurationError, match="its owner may replace what lies in it: chown it to uid"):
            Folder(tmp_path / "theirs" / "client", "PEERSEAL_KEY_DIR", named=tmp_path / "theirs").make()

    def test_a_folder_in_which_others_may_rename_is_warned_of(
        self, shared: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        Folder(shared / "keys" / "client", "PEERSEAL_KEY_DIR", named=shared / "keys").make()
        assert f"{shared}: other users may rename what lies in it (mode 0777" in caplog.text


def exit_code_of_a_child(job: Callable[[], None]) -> int:
    """0 where ``job`` succeeds in a forked process. It needs no pipe, so that the job may close every descriptor."""
    child = os.fork()
    if child == 0:
        try:
            job()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class TestCopies:
    def test_a_folder_that_takes_its_place_is_not_read(self, shared: Path) -> None:
        copies = CopyFolder(shared / "cache", "documents")
        copies.write("keys-a.jwt", "ours", NOW)
        (shared / "cache").rename(shared / "away")
        CopyFolder(shared / "cache", "documents").write("keys-a.jwt", "theirs", NOW)
        copy = copies.read("keys-a.jwt")
        assert copy is not None
        assert copy.jws == "ours"

    @pytest.mark.parametrize("what", ["link", "another user's file"])
    def test_a_copy_that_is_no_file_of_ours_counts_as_none(
        self, tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        copies = CopyFolder(tmp_path / "cache", "documents")
        copies.write("keys-b.jwt", "ours", NOW)
        planted = tmp_path / "cache" / "documents" / "keys-a.jwt"
        if what == "link":
            planted.symlink_to("keys-b.jwt")
        else:
            planted.write_text("theirs")
            given_to_a_stranger(planted)
        assert copies.read("keys-a.jwt") is None
        assert "no copies of documents can be kept" in caplog.text

    def test_in_a_folder_for_all_users_they_lie_in_one_of_our_own(self, tmp_path: Path) -> None:
        (tmp_path / "cache").mkdir()
        (tmp_path / "cache").chmod(0o1777)
        CopyFolder(tmp_path / "cache", "documents").write("keys-a.jwt", "ours", NOW)
        own = tmp_path / "cache" / f"peerseal-{os.geteuid()}"
        assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o1777, "it is not ours alone"
        assert stat.S_IMODE(own.stat().st_mode) == 0o700
        assert names(own) == {"documents"}

    def test_descriptors_that_a_daemon_closed_are_not_taken_for_the_folder(self, tmp_path: Path) -> None:
        copies = CopyFolder(tmp_path / "cache", "documents")
        copies.write("keys-a.jwt", "ours", NOW)

        def daemonised() -> None:
            os.closerange(3, 64)
            (tmp_path / "other").mkdir()
            for _ in range(8):
                os.open(tmp_path / "other", os.O_RDONLY)
            copies.write("keys-b.jwt", "ours too", NOW)
            assert not names(tmp_path / "other")

        assert exit_code_of_a_child(daemonised) == 0
        assert (tmp_path / "cache" / "documents" / "keys-b.jwt").read_text() == "ours too"

    def test_numbers_that_became_files_of_the_application_are_neither_used_nor_closed(
        self, registry: MemoryRegistry, tmp_path: Path
    ) -> None:
        identities = [
            registry.identity(name, cache_dir=tmp_path / "cache" / name, key_dir=tmp_path / "keys" / name)
            for name in ("client", "callee")
        ]
        guard = identities[1].replay_guard()
        guard.claim("a", "b", NOW + 60)

        def daemonised() -> None:
            os.closerange(3, 128)
            (tmp_path / "other").mkdir()
            files = [os.open(tmp_path / "other" / str(n), os.O_CREAT | os.O_RDWR) for n in range(64)]
            before = [os.fstat(file).st_ino for file in files]
            for identity in identities:
                identity.start()
                identity.sign_request("callee", method="GET", target="/")
            assert not guard.claim("a", "b", NOW + 60)
            for identity in identities:
                identity.stop()
            del identity
            identities.clear()
            gc.collect()
            assert [os.fstat(file).st_ino for file in files] == before
            assert not any(os.fstat(file).st_size for file in files)

        assert exit_code_of_a_child(daemonised) == 0

    def test_a_thousand_services_that_callers_make_up_leave_no_file_more(
        self, registry: MemoryRegistry, tmp_path: Path
    ) -> None:
        client = registry.identity("client")
        callee = registry.identity("callee", cache_dir=tmp_path / "cache", key_dir=tmp_path / "keys")
        verifier = Verifier(callee.trust, audience="callee", allow={"*": ()}, clock=registry.clock)
        registry.clock.advance(60)  # type: ignore[attr-defined]
        made_up = client.sign_request("callee", method="GET", target="/")
        verifier.verify(made_up, method="GET", target="/")
        before = sum(len(files) for _, _, files in os.walk(tmp_path))
        thumbprint = client.credentials.key_id.rpartition("/")[2]
        refused = 0
        for number in range(1000):
            registry.clock.advance(1)  # type: ignore[attr-defined]
            try:
                callee.trust.key(f"{registry.domain}/made-up-{number}/{thumbprint}")
            except PeersealError:
                refused += 1
        assert refused == 1000
        names = [name for _, _, files in os.walk(tmp_path) for name in files]
        assert not [name for name in names if "made-up" in name]
        assert len(names) < before + 50  # the background may have made some of its own files meanwhile


class TestReplayGuard:
    def test_a_folder_that_takes_its_place_forgets_no_token(self, shared: Path) -> None:
        clock = Clock(NOW)
        (shared / "cache").mkdir(mode=0o700)
        guard = FileReplayGuard(shared / "cache" / "replay", clock=clock)
        assert guard.claim("client", "jti", NOW + 300)
        (shared / "cache").rename(shared / "away")
        (shared / "cache").mkdir(mode=0o700)
        clock.advance(FileReplayGuard.PURGE_EVERY)
        with pytest.raises(TrustUnavailable, match="another folder lies at"):
            guard.claim("client", "jti", NOW + 300)

    @pytest.mark.parametrize(
        "name",
        [
            "replay",
            f"replay.{int(NOW) // FileReplayGuard.WINDOW}",
            "replay.over",
            "replay.sqlite3",
            "replay.sqlite3-wal",
            "replay.sqlite3-shm",
        ],
    )
    @pytest.mark.parametrize("what", ["link", "another user's file"])
    def test_a_file_that_is_not_ours_is_refused(self, tmp_path: Path, name: str, what: str) -> None:
        cache, outside = tmp_path / "cache", tmp_path / "outside"
        cache.mkdir(mode=0o700)
        outside.touch()
        if what == "link":
            (cache / name).symlink_to(outside)
        else:
            (cache / name).touch()
            given_to_a_stranger(cache / name)
        with pytest.raises(TrustUnavailable, match=r"regular file|not owned|symbolic link"):
            FileReplayGuard(cache / "replay").claim("client", "jti", NOW)
        assert outside.read_bytes() == b""

    def test_a_folder_in_which_every_user_may_write_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "tmp").mkdir()
        (tmp_path / "tmp").chmod(0o1777)
        with pytest.raises(TrustUnavailable, match="every user may write there"):
            FileReplayGuard(tmp_path / "tmp" / "replay").claim("client", "jti", NOW * 2)

    def test_a_race_for_its_path_lets_no_token_in_twice(self, shared: Path) -> None:
        """While the guard opens its files, another folder comes and goes at their path."""
        clock, ended = Clock(NOW), threading.Event()
        (shared / "cache").mkdir(mode=0o700)
        (shared / "theirs").mkdir(mode=0o700)
        FileReplayGuard(shared / "theirs" / "replay", clock=clock).claim("client", "other", NOW + 900)
        guard = FileReplayGuard(shared / "cache" / "replay", clock=clock)
        assert guard.claim("client", "jti", NOW + 900)

        def swap() -> None:
            while not ended.is_set():
                (shared / "cache").rename(shared / "away")
                (shared / "theirs").rename(shared / "cache")
                (shared / "cache").rename(shared / "theirs")
                (shared / "away").rename(shared / "cache")

        thread = threading.Thread(target=swap)
        thread.start()
        try:
            accepted = 0
            for _ in range(300):
                guard.close()
                try:
                    accepted += guard.claim("client", "jti", NOW + 900)
                except TrustUnavailable:
                    clock.advance(0.01)
        finally:
            ended.set()
            thread.join()
        assert accepted == 0
        script = (
            "import sys, peerseal; guard = peerseal.FileReplayGuard(sys.argv[1], clock=lambda: float(sys.argv[2]));"
            "print([guard.claim('client', jti, float(sys.argv[2]) + 900) for jti in ('jti', 'next')])"
        )
        arguments = [str(shared / "cache" / "replay"), str(clock.now)]
        anew = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
        assert anew.stdout == "[False, True]\n", "nor was anything written over"


class TestMonitorState:
    @pytest.mark.parametrize("what", ["link", "another user's file"])
    def test_a_state_that_is_not_ours_is_refused(self, tmp_path: Path, what: str) -> None:
        state, outside = tmp_path / "state", tmp_path / "outside"
        save_state(outside, MonitorState("client"))
        if what == "link":
            state.symlink_to(outside)
        else:
            state.write_bytes(outside.read_bytes())
            given_to_a_stranger(state)
        with pytest.raises(ConfigurationError, match=r"symbolic link|not owned"):
            load_state(state, "client")

    def test_a_state_that_every_user_may_change_is_used_with_a_warning_and_replaced(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        save_state(tmp_path / "state", MonitorState("client"))
        (tmp_path / "state").chmod(0o666)
        state = load_state(tmp_path / "state", "client")
        assert "others may change it (mode 0666" in caplog.text
        assert state == MonitorState("client")
        save_state(tmp_path / "state", state)
        assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o600


def test_a_folder_of_root_may_hold_files_of_ours_but_one_of_others_may_not(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    given_to_a_stranger(tmp_path / "theirs")
    (tmp_path / "theirs").chmod(0o755)

    def other_user() -> str:
        os.setuid(STRANGER - 1)
        try:
            Folder(tmp_path / "theirs", access=Access.COMMON).make()
        except ConfigurationError as error:
            return str(error)
        return "accepted"

    for folder in (tmp_path, *list(tmp_path.parents)[:3]):
        folder.chmod(folder.stat().st_mode | 0o011)
    assert "its owner may replace what lies in it" in Child(other_user).result()


def test_an_identity_with_a_planted_folder_ends_its_start_with_one_error(
    registry: MemoryRegistry, shared: Path
) -> None:
    (shared / "keys" / "client").mkdir(parents=True)
    given_to_a_stranger(shared / "keys" / "client")
    where = {"key_dir": shared / "keys", "pin": registry.pin}
    client = Identity("client", registry="http://registry.test", fetcher=registry, **where)
    with pytest.raises(ConfigurationError, match=f"PEERSEAL_KEY_DIR={shared / 'keys'}: .*not owned by uid"):
        client.start(timeout=0)
