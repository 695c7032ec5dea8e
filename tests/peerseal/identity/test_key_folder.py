"""The key folder: one lock, one set of holders, and files that are whole at any moment."""

import fcntl
import os
import re
import stat
import threading
from pathlib import Path

import pytest

from peerseal.errors import ConfigurationError, KeyRefused
from peerseal.identity.key_folder import KeyFolder, StoredKey, StoredKeys
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.names import make_kid
from tests.peerseal.served import Child, in_children
from tests.support.waiting import until

PAIRS = [KeyPair.generate("ES256") for _ in range(3)]


def held(number: int = 0, **times: float) -> StoredKey:
    pair = PAIRS[number]
    registered = {"registered_at": 100.0, "signs_from": 100.0, "expires_at": 1000.0}
    return StoredKey(make_kid("test.internal/client", pair.public.thumbprint), pair, **registered | times)


def of(*keys: StoredKey) -> StoredKeys:
    return StoredKeys("test.internal", "pin", keys)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys" / "client"


class TestFiles:
    def test_what_is_saved_is_what_another_process_loads(self, path: Path) -> None:
        KeyFolder(path).save(of(held(0), held(1, registered_at=None)))
        loaded = KeyFolder(path).load()
        assert loaded == of(held(0), held(1, registered_at=None))
        message = b"signed by the key that was read"
        assert loaded.keys[0].pair.public.verify(message, loaded.keys[0].pair.sign(message))

    def test_a_folder_that_is_not_there_holds_nothing(self, path: Path) -> None:
        assert KeyFolder(path).load() == StoredKeys()
        assert KeyFolder(path).pin() is None
        assert KeyFolder(path).stamp() is None

    def test_files_and_folder_are_their_owners_only_whatever_the_umask(self, path: Path) -> None:
        before = os.umask(0)
        try:
            folder = KeyFolder(path)
            folder.hold()
            with folder.locked():
                folder.save(of(held()))
        finally:
            os.umask(before)
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o600}
        assert {file.name for file in path.iterdir()} == {"lock", "holders", "keys.json", f"{held().thumbprint}.pem"}

    def test_a_folder_of_ours_that_others_can_reach_into_is_tightened(
        self, path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        path.mkdir(parents=True)
        path.chmod(0o2770)
        KeyFolder(path).save(of(held()))
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert "others had access (mode 2770, owner" in caplog.text

    def test_a_key_that_is_no_longer_named_is_destroyed(self, path: Path) -> None:
        folder = KeyFolder(path)
        folder.save(of(held(0), held(1)))
        folder.save(of(held(1)))
        assert [file.name for file in path.glob("*.pem")] == [f"{held(1).thumbprint}.pem"]

    def test_the_stamp_changes_with_every_save(self, path: Path) -> None:
        folder = KeyFolder(path)
        stamps = set()
        for _ in range(5):
            folder.save(of(held()))
            stamps.add(folder.stamp())
        assert len(stamps) == 5

    def test_private_keys_are_read_once_each(self, path: Path) -> None:
        KeyFolder(path).save(of(held(0)))
        folder = KeyFolder(path)
        first = folder.load().keys[0].pair
        KeyFolder(path).save(of(held(0), held(1)))
        assert folder.load().keys[0].pair is first

    def test_a_reader_sees_the_old_state_or_the_new_one_and_nothing_in_between(self, path: Path) -> None:
        """Keys come and go under the reader: files that it was about to open are gone."""
        states = [of(held(0)), of(held(0), held(1)), of(held(1)), of(held(1), held(2)), of(held(2), held(0))]
        KeyFolder(path).save(states[0])
        done = threading.Event()

        def write() -> None:
            folder = KeyFolder(path)
            for number in range(150):
                folder.save(states[number % len(states)])
            done.set()

        writer = threading.Thread(target=write)
        writer.start()
        while not done.is_set():
            assert KeyFolder(path).load() in states
        writer.join()

    def test_a_named_key_that_is_missing_is_said_so(self, path: Path) -> None:
        KeyFolder(path).save(of(held()))
        (path / f"{held().thumbprint}.pem").unlink()
        with pytest.raises(ConfigurationError, match="not there"):
            KeyFolder(path).load()

    @pytest.mark.parametrize("member", ["registered_at", "signs_from", "expires_at", "domain", "pin"])
    @pytest.mark.parametrize("value", [b'"soon"', b"true", b"[]"])
    def test_a_list_of_which_a_member_is_bent_is_said_so(self, path: Path, member: str, value: bytes) -> None:
        KeyFolder(path).save(StoredKeys("d", "p", (held(),)))
        bent = b"7" if member in ("domain", "pin") else value
        text = re.sub(
            rf'"{member}":[^,}}]+'.encode(), f'"{member}":'.encode() + bent, (path / "keys.json").read_bytes()
        )
        (path / "keys.json").write_bytes(text)
        with pytest.raises(ConfigurationError, match="cannot be read"):
            KeyFolder(path).load()

    @pytest.mark.parametrize("text", [b"", b"{", b"[]", b"{}", b'{"domain":"d","pin":"p","keys":[{}]}'])
    def test_a_list_that_cannot_be_read_is_said_so(self, path: Path, text: bytes) -> None:
        KeyFolder(path).save(of())
        (path / "keys.json").write_bytes(text)
        with pytest.raises(ConfigurationError, match="cannot be read"):
            KeyFolder(path).load()

    def test_a_private_key_that_cannot_be_read_is_said_so(self, path: Path) -> None:
        KeyFolder(path).save(of(held()))
        (path / f"{held().thumbprint}.pem").write_bytes(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----")
        with pytest.raises(KeyRefused):
            KeyFolder(path).load()

    def test_the_pin_of_the_first_enrolment_is_kept(self, path: Path) -> None:
        KeyFolder(path).save(of(held()))
        assert KeyFolder(path).pin() == "pin"


class TestWithoutAPath:
    def test_private_keys_are_encrypted_and_readable_here_only(self) -> None:
        folder = KeyFolder(None)
        folder.save(of(held()))
        (pem,) = folder.path.glob("*.pem")
        assert b"ENCRYPTED" in pem.read_bytes()
        with pytest.raises(ConfigurationError, match="is encrypted, and PEERSEAL_KEY_PASSPHRASE is not set"):
            KeyFolder(folder.path).load()
        assert folder.load() == of(held())
        folder.discard()

    @pytest.mark.usefixtures("quiet_collector")
    def test_a_forked_child_can_read_them_too(self) -> None:
        folder = KeyFolder(None)
        folder.save(of(held(0)))

        def read() -> bool:
            """Whether it reads the key that its parent saves after the fork."""
            until(lambda: folder.load() == of(held(1)))
            return True

        child = Child(read)
        folder.save(of(held(1)))
        assert child.result()
        folder.discard()

    def test_it_is_removed_at_the_end_and_a_named_one_is_not(self, path: Path) -> None:
        ephemeral, named = KeyFolder(None), KeyFolder(path)
        made = ephemeral.path, named.path
        ephemeral.discard()
        named.discard()
        assert [folder.exists() for folder in made] == [False, True]


class TestLock:
    def test_one_at_a_time(self, path: Path) -> None:
        with KeyFolder(path).locked() as ours:
            assert ours
            with KeyFolder(path).locked(wait=False) as theirs:
                assert not theirs
        with KeyFolder(path).locked(wait=False) as theirs:
            assert theirs

    def test_one_at_a_time_also_among_the_threads_of_one_folder(self, path: Path) -> None:
        folder = KeyFolder(path)
        with folder.locked(), folder.locked(wait=False) as again:
            assert not again

    @pytest.mark.usefixtures("quiet_collector")
    def test_eight_processes_that_count_lose_no_step(self, path: Path) -> None:
        KeyFolder(path).path.joinpath("count").write_text("0")

        def count(_: int) -> None:
            for _ in range(20):
                with KeyFolder(path).locked():
                    before = int((path / "count").read_text())
                    (path / "count").write_text(str(before + 1))

        in_children(8, count)
        assert (path / "count").read_text() == "160"


class TestHolders:
    def test_only_the_last_one_is_told_that_it_is(self, path: Path) -> None:
        folders = [KeyFolder(path) for _ in range(3)]
        for folder in folders:
            folder.hold()
        assert [folder.release() for folder in folders] == [False, False, True]

    def test_who_holds_nothing_is_not_the_last(self, path: Path) -> None:
        assert not KeyFolder(path).release()

    @pytest.mark.usefixtures("quiet_collector")
    def test_a_forked_child_that_took_a_share_outlives_its_parents(self, path: Path) -> None:
        folder = KeyFolder(path)
        folder.hold()
        (held_now, tell_held), (go, tell_go) = os.pipe(), os.pipe()

        def hold() -> bool:
            folder.hold()
            os.write(tell_held, b".")
            os.read(go, 1)
            return folder.release()

        child = Child(hold)
        os.read(held_now, 1)
        assert not folder.release()
        os.write(tell_go, b".")
        assert child.result()

    @pytest.mark.usefixtures("quiet_collector")
    def test_a_forked_child_without_a_share_delays_no_other_process(self, path: Path) -> None:
        folder = KeyFolder(path)
        folder.hold()
        go, tell = os.pipe()
        child = Child(lambda: os.read(go, 1))
        assert folder.release()
        with open(path / "holders") as other:
            fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        os.write(tell, b".")
        child.result()


class TestWhichKeySigns:
    def test_the_newest_whose_lead_is_over(self) -> None:
        keys = of(held(0), held(1, registered_at=200.0, signs_from=230.0))
        assert keys.signing(229.0) == keys.keys[0]
        assert keys.signing(230.0) == keys.keys[1]

    def test_a_candidate_never(self) -> None:
        assert of(held(0, registered_at=None)).signing(500.0) is None

    def test_one_whose_end_has_come_never(self) -> None:
        assert of(held(0)).signing(999.0) is not None
        assert of(held(0)).signing(1000.0) is None

    def test_the_only_one_also_before_its_lead_is_over(self) -> None:
        keys = of(held(0, signs_from=900.0))
        assert keys.signing(500.0) == keys.keys[0]


def test_who_holds_a_file_that_was_tidied_away_does_not_take_itself_for_the_last(path: Path) -> None:
    first, second = KeyFolder(path), KeyFolder(path)
    first.hold()
    (path / "holders").unlink()
    second.hold()
    assert not first.release()
    assert second.release()
