"""Folders as containers have them: widened by fsGroup, of another user, read-only, or no temporary folder at all. Each
start goes on, or ends with one error that names the setting, the path, its mode and owner, and what to do."""

import encodings.ascii  # noqa: F401 - another user may not be able to read where Python is installed
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peerseal import Identity
from peerseal.audit.mirror import LedgerMirror
from peerseal.errors import ConfigurationError
from peerseal.testing import MemoryRegistry
from registry.domain.errors import LedgerUnconfirmed
from registry.services.authority.ledger_memory import LedgerMemory
from registry.services.setup.initialise import initialise
from registry.services.setup.keyfiles import read, write_new
from registry.settings import Settings
from registry.storage.engine import create_engine
from registry.storage.unit import Store
from tests.peerseal.served import Child

pytestmark = pytest.mark.usefixtures("quiet_collector")

UID, GROUP = 10001, 2000
NOW = 1_800_000_000.0


def as_container(job: Callable[[], Any], *, uid: int = UID, groups: tuple[int, ...] = (GROUP,)) -> Any:
    """What the job gives in a process with that user id, which no file names, and these groups."""
    if os.geteuid() != 0:
        pytest.skip("only root can start a process of another user")

    def changed() -> Any:
        os.setgroups(list(groups))
        os.setgid(uid)
        os.setuid(uid)
        return job()

    return Child(changed).result()


def complaint(job: Callable[[], object]) -> str:
    """The error of a job, which must end with a ConfigurationError, or with LedgerUnconfirmed."""
    try:
        job()
    except (ConfigurationError, LedgerUnconfirmed) as error:
        return str(error)
    raise AssertionError("it was accepted")


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    for folder in (tmp_path, *list(tmp_path.parents)[:3]):
        folder.chmod(folder.stat().st_mode | 0o011)
    (tmp_path / "volume").mkdir()
    return tmp_path / "volume"


def started(registry: MemoryRegistry, **options: Any) -> Identity:
    return registry.identity("client", retire_at_exit=False, **options)


def widen(folder: Path) -> None:
    """What the kubelet does at each mount of a volume where the pod has an fsGroup."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, -1, GROUP)
        path.chmod(stat.S_IMODE(path.stat().st_mode) | (0o2770 if path.is_dir() else 0o660))


class TestFsGroup:
    @pytest.mark.parametrize("mode", [0o2777, 0o2775, 0o777])
    def test_a_pod_starts_again_on_a_volume_that_was_widened(
        self, registry: MemoryRegistry, volume: Path, mode: int
    ) -> None:
        def start_twice() -> set[int]:
            first = started(registry, key_dir=volume)
            assert first.replay_guard().claim("client", "jti", NOW + 60)
            first.stop()
            widen(volume / "client")
            again = started(registry, key_dir=volume, join_token=None)
            assert again.credentials == first.credentials
            assert not again.replay_guard().claim("client", "jti", NOW + 60)
            files = [volume / "client", *(volume / "client").glob("*.pem"), *(volume / "client").glob("replay-*")]
            return {stat.S_IMODE(file.stat().st_mode) & 0o077 for file in files}

        if os.geteuid() == 0:
            os.chown(volume, 0, GROUP)
        volume.chmod(mode)
        assert as_container(start_twice) == {0}

    def test_a_cache_folder_that_is_the_volume_itself_is_used(self, registry: MemoryRegistry, volume: Path) -> None:
        if os.geteuid() == 0:
            os.chown(volume, 0, GROUP)
        volume.chmod(0o2777)

        def start() -> list[str]:
            identity = started(registry, cache_dir=volume)
            identity.replay_guard().claim("client", "jti", NOW + 60)
            return sorted(path.name for path in volume.iterdir())

        assert as_container(start) == [f"peerseal-{UID}"]


class TestAnotherUser:
    def test_a_folder_that_cannot_be_written_is_named(self, registry: MemoryRegistry, volume: Path) -> None:
        volume.chmod(0o755)
        said = as_container(lambda: complaint(lambda: started(registry, key_dir=volume)))
        assert said.startswith(f"PEERSEAL_KEY_DIR={volume}: not writable by uid {UID} (mode 0755, owner 0): ")

    def test_a_folder_of_the_user_before_is_named(self, registry: MemoryRegistry, volume: Path) -> None:
        """OpenShift gives each project user ids of its own."""
        volume.chmod(0o777)
        as_container(lambda: started(registry, key_dir=volume).id)
        said = as_container(lambda: complaint(lambda: started(registry, key_dir=volume)), uid=UID + 1)
        assert said.startswith(f"PEERSEAL_KEY_DIR={volume}: {volume / 'client'}: not ")
        assert f"by uid {UID + 1} (mode 0700, owner {UID})" in said

    def test_a_cache_folder_of_another_user_is_named(self, registry: MemoryRegistry, volume: Path) -> None:
        if os.geteuid() == 0:
            os.chown(volume, UID + 1, UID + 1)

        def guard() -> None:
            started(registry, cache_dir=volume).replay_guard()

        said = as_container(lambda: complaint(guard))
        assert said.startswith(f"PEERSEAL_CACHE_DIR={volume}: not owned by uid {UID} (mode 0755, owner {UID + 1})")

    def test_a_constructor_raises_nothing_else(self, registry: MemoryRegistry, volume: Path) -> None:
        (volume / "client").mkdir(mode=0o700)
        (volume / "client" / "keys.json").touch(mode=0o600)

        def made() -> None:
            Identity("client", registry="http://registry.test", fetcher=registry, key_dir=volume)

        said = as_container(lambda: complaint(made))
        assert said.startswith(f"PEERSEAL_KEY_DIR={volume}: {volume / 'client'}: not accessible by uid {UID}")

    @pytest.mark.parametrize("path", ["/proc/keys-of-mine", "/dev/null", "/dev/null/keys"])
    def test_a_place_that_cannot_hold_files_is_named(self, registry: MemoryRegistry, path: str) -> None:
        said = complaint(lambda: started(registry, key_dir=Path(path)))
        assert said.startswith(f"PEERSEAL_KEY_DIR={path}: ")


class TestNoTemporaryFolder:
    @pytest.fixture
    def none(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))

    @pytest.mark.usefixtures("none")
    def test_keys_without_a_folder_end_the_start_with_a_hint(self, registry: MemoryRegistry) -> None:
        said = complaint(lambda: started(registry))
        assert "set PEERSEAL_KEY_DIR, or TMPDIR" in said

    @pytest.mark.usefixtures("none")
    def test_a_key_folder_is_all_that_is_needed(self, registry: MemoryRegistry, tmp_path: Path) -> None:
        identity = started(registry, key_dir=tmp_path / "keys")
        assert identity.replay_guard().claim("client", "jti", NOW + 60)


class TestRegistryHome:
    def initialised(self, home: Path) -> None:
        settings = Settings.at(home)
        store = Store(create_engine(settings.database_url))
        try:
            initialise(settings, store, "test.internal")
        finally:
            store.engine.dispose()

    def test_a_volume_of_roots_is_used_and_serves_after_it_was_widened(self, volume: Path) -> None:
        if os.geteuid() == 0:
            os.chown(volume, 0, GROUP)
        volume.chmod(0o2775)
        as_container(lambda: self.initialised(volume))
        widen(volume)

        def again() -> set[int]:
            self.initialised(volume)
            return {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in volume.glob("s*ing-key.pem")}

        assert as_container(again) == {0}

    def test_a_home_that_cannot_be_written_is_named(self, volume: Path) -> None:
        volume.chmod(0o755)
        said = as_container(lambda: complaint(lambda: self.initialised(volume)))
        assert said.startswith(f"REGISTRY_HOME={volume}: not writable by uid {UID} (mode 0755, owner 0): ")

    def test_secrets_that_are_mounted_as_links_are_read(self, volume: Path) -> None:
        """As Kubernetes mounts them: a link to a link, of root's, for all to read."""
        (volume / "..2026").mkdir(mode=0o755)
        (volume / "..2026" / "key.pem").write_bytes(b"secret")
        (volume / "..2026" / "key.pem").chmod(0o444)
        (volume / "..data").symlink_to("..2026")
        (volume / "key.pem").symlink_to("..data/key.pem")
        assert as_container(lambda: read(volume / "key.pem", "signing key")) == b"secret"

    @pytest.mark.parametrize("name", ["signing-key.pem", "registry.sqlite3", "ledger-head"])
    def test_a_file_of_another_user_in_it_is_refused(self, volume: Path, name: str) -> None:
        if os.geteuid() == 0:
            os.chown(volume, UID, UID)
        as_container(lambda: self.initialised(volume))
        (volume / name).touch()
        if os.geteuid() == 0:
            os.chown(volume / name, UID + 1, UID + 1)
        said = as_container(lambda: complaint(lambda: self.initialised(volume)))
        assert f"{name}: not " in said
        assert f"owner {UID + 1})" in said

    def test_root_may_administer_the_home_of_the_registrys_user(self, volume: Path) -> None:
        if os.geteuid() == 0:
            os.chown(volume, UID, UID)
        as_container(lambda: self.initialised(volume))
        self.initialised(volume)
        assert LedgerMemory(volume).read() is not None

    def test_a_key_file_that_every_user_may_change_is_refused(self, volume: Path) -> None:
        write_new(volume / "key.pem", b"secret")
        (volume / "key.pem").chmod(0o666)
        said = as_container(lambda: complaint(lambda: read(volume / "key.pem", "signing key")))
        assert "every user may change it (mode 0666, owner 0)" in said


def test_a_copy_of_the_ledger_makes_its_folder_or_names_it(registry: MemoryRegistry, volume: Path) -> None:
    volume.chmod(0o755)

    def keep() -> None:
        LedgerMirror(volume / "ledger").update(None)  # type: ignore[arg-type]

    assert f"not writable by uid {UID} (mode 0755, owner 0)" in as_container(lambda: complaint(keep))
