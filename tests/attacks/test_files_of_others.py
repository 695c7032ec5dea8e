"""Another user of the host, who may rename what lies in a parent folder, or puts links and files in our way."""

import logging
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from peerseal import FileReplayGuard, Identity
from peerseal.errors import ConfigurationError, PeersealError, TrustUnavailable
from peerseal.peers.copies import LOCKS, CopyFolder
from peerseal.peers.keyfolder import HeldKey, HeldKeys, KeyFolder
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.names import make_kid
from peerseal.runtime.files import PrivateFolder
from peerseal.testing import MemoryRegistry
from tests.peerseal.served import Child

OTHER = 4711
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder in which every user may rename, as an emptyDir of Kubernetes."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    return folder


@pytest.fixture
def registry() -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as registry:
        yield registry


def start(registry: MemoryRegistry, folder: Path, **options: object) -> Identity:
    return registry.identity("client", key_dir=folder, **options)  # type: ignore[arg-type]


def key_of(service: str) -> HeldKey:
    pair = KeyPair.generate("ES256")
    return HeldKey(make_kid(f"test.internal/{service}", pair.public.thumbprint), pair)


def put_in_place(other: Path, ours: Path) -> None:
    """As the other user does it: ours is renamed away."""
    ours.rename(ours.with_name("away"))
    other.rename(ours)


def a_folder_with(path: Path, key: HeldKey) -> Path:
    KeyFolder(path).save(HeldKeys("test.internal", None, (key,)))
    return path


# ---- the key folder


def test_a_folder_that_is_swapped_after_the_start_is_never_read(registry: MemoryRegistry, shared: Path) -> None:
    identity = start(registry, shared)
    candidate = key_of("client")
    put_in_place(a_folder_with(shared / "theirs", candidate), shared / "client")
    identity.rotate()
    identity.look_after_keys()
    registered = {key.public.thumbprint for key in registry.jwk_set("client").keys}
    assert len(registered) == 2
    assert candidate.thumbprint not in registered


def test_nothing_is_removed_from_a_folder_that_is_swapped(registry: MemoryRegistry, shared: Path) -> None:
    identity = start(registry, shared, retire_at_exit=True)
    theirs = a_folder_with(shared / "theirs", key_of("client"))
    names = {file.name for file in theirs.iterdir()}
    put_in_place(theirs, shared / "client")
    identity.rotate()
    identity.stop()
    assert {file.name for file in (shared / "client").iterdir()} >= names


def test_a_link_in_the_folders_place_is_not_followed(registry: MemoryRegistry, shared: Path, tmp_path: Path) -> None:
    program = tmp_path / "another-program"
    program.mkdir()
    (program / "tls.pem").write_text("theirs")
    (program / f"{'A' * 43}.pem").write_text("theirs, too")
    (shared / "client").symlink_to(program)
    with pytest.raises(ConfigurationError, match=r"PEERSEAL_KEY_DIR: .*symbolic link"):
        start(registry, shared)
    assert {file.name for file in program.iterdir()} == {"tls.pem", f"{'A' * 43}.pem"}


def test_files_of_other_names_stay(registry: MemoryRegistry, shared: Path) -> None:
    (shared / "client").mkdir(mode=0o700)
    for name in ("tls.pem", "ca.pem", "a.new-x", ".newest", f"{'A' * 42}.pem"):
        (shared / "client" / name).write_text("another program's")
    start(registry, shared).rotate()
    assert {"tls.pem", "ca.pem", "a.new-x", ".newest", f"{'A' * 42}.pem"} <= {
        file.name for file in (shared / "client").iterdir()
    }


@pytest.mark.parametrize("name", ["keys.json", "lock", "holders"])
@pytest.mark.parametrize("how", [os.symlink, os.mkfifo, os.mkdir], ids=["link", "pipe", "folder"])
def test_what_is_no_file_of_ours_in_a_files_place_is_refused(
    registry: MemoryRegistry, shared: Path, tmp_path: Path, name: str, how: Callable[..., None]
) -> None:
    (shared / "client").mkdir(mode=0o700)
    (tmp_path / "target").write_text("{}")
    how(tmp_path / "target", shared / "client" / name) if how is os.symlink else how(shared / "client" / name)
    with pytest.raises((PeersealError, OSError)):
        start(registry, shared)
    assert (tmp_path / "target").read_text() == "{}"


def test_a_private_key_under_another_keys_name_is_refused(shared: Path) -> None:
    folder = KeyFolder(shared / "client", "client")
    one, two = key_of("client"), key_of("client")
    folder.save(HeldKeys("test.internal", None, (one, two)))
    (shared / "client" / f"{one.thumbprint}.pem").replace(shared / "client" / f"{two.thumbprint}.pem")
    with pytest.raises(ConfigurationError, match=r"holds another key than its name says|names a private key"):
        KeyFolder(shared / "client", "client").load()


def test_the_folder_of_another_service_of_ours_is_refused(shared: Path) -> None:
    a_folder_with(shared / "billing", key_of("billing"))
    (shared / "billing").rename(shared / "client")
    with pytest.raises(ConfigurationError, match="is the folder of client"):
        KeyFolder(shared / "client", "client").load()


@as_root
@pytest.mark.parametrize("place", ["folder", "keys.json", "above"])
def test_a_folder_or_file_of_another_user_is_refused(registry: MemoryRegistry, shared: Path, place: str) -> None:
    a_folder_with(shared / "client", key_of("client"))
    places = {"folder": shared / "client", "keys.json": shared / "client/keys.json", "above": shared}
    os.chown(places[place], OTHER, OTHER)
    with pytest.raises(ConfigurationError, match=f"another user .*owner {OTHER}"):
        start(registry, shared)


@as_root
def test_another_user_really_cannot_bring_in_a_key(registry: MemoryRegistry, shared: Path, tmp_path: Path) -> None:
    """A process of that user renames the folder away and makes one of its own, before and after the start."""
    let_others_in(tmp_path)

    def attack() -> str:
        become_another_user()
        (shared / "client").rename(shared / "away")
        a_folder_with(shared / "client", key_of("client"))
        return "done"

    identity = start(registry, shared)
    assert Child(attack).result() == "done"
    identity.rotate()
    assert len(registry.jwk_set("client").keys) == 2
    identity.stop()
    with pytest.raises(ConfigurationError, match="another user"):
        start(registry, shared)


def become_another_user() -> None:
    os.setgroups([])
    os.setresgid(OTHER, OTHER, OTHER)
    os.setresuid(OTHER, OTHER, OTHER)


def let_others_in(folder: Path) -> None:
    """The folders of tests are their user's alone; another one can go through from now on."""
    for above in (folder, *folder.parents):
        if not above.stat().st_mode & 0o001:
            above.chmod(above.stat().st_mode | 0o001)


# ---- the other folders


def test_the_cache_folder_is_not_followed_through_a_link(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (shared / "documents-x").symlink_to(tmp_path / "theirs")
    shared.chmod(0o755)
    CopyFolder(shared, "documents-x").write("keys-a.jwt", "a.b.c", 1.0)
    assert list((tmp_path / "theirs").iterdir()) == []


def test_a_replay_file_in_a_folder_that_was_swapped_still_counts(shared: Path) -> None:
    ours = shared / "cache"
    guard = FileReplayGuard(ours / "replay.sqlite3", clock=lambda: 1000.0)
    assert guard.claim("issuer", "1", 2e9)
    (shared / "theirs").mkdir()
    put_in_place(shared / "theirs", ours)
    guard.close()
    assert not guard.claim("issuer", "1", 2e9), "it is opened in the folder that it was in"


@pytest.mark.parametrize("how", [os.symlink, os.mkfifo], ids=["link", "pipe"])
def test_a_replay_file_that_is_no_file_lets_nobody_in(shared: Path, tmp_path: Path, how: Callable[..., None]) -> None:
    shared.chmod(0o700)
    place = shared / "replay.sqlite3"
    how(tmp_path / "elsewhere", place) if how is os.symlink else how(place)
    with pytest.raises(TrustUnavailable, match="no regular file"):
        FileReplayGuard(place).claim("issuer", "1", 2e9)


def test_made_up_services_leave_a_fixed_number_of_files(tmp_path: Path) -> None:
    folder = CopyFolder(tmp_path / "cache", "documents-x")
    for number in range(3000):
        with folder.locked(f"keys-made-up-{number}.jwt") as alone:
            assert alone
    assert len(list((tmp_path / "cache/documents-x").iterdir())) <= LOCKS


def test_strangers_that_call_leave_a_fixed_number_of_files(registry: MemoryRegistry, tmp_path: Path) -> None:
    trust = registry.trust_store(cache_dir=tmp_path / "cache")
    known = registry.identity("known").credentials.key_id
    trust.key(known)

    def files() -> int:
        return sum(len(names) for _, __, names in os.walk(tmp_path / "cache"))

    before = files()
    for number in range(400):
        with pytest.raises(PeersealError):
            trust.key(f"{registry.domain}/made-up-{number}/{'A' * 43}")
    assert files() - before <= LOCKS
    trust.stop()


# ---- what Kubernetes does to folders and users


@pytest.mark.parametrize("mode", [0o770, 0o775, 0o2770, 0o2775, 0o777])
def test_what_fsgroup_widened_is_tightened_with_a_warning(
    registry: MemoryRegistry, tmp_path: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    start(registry, tmp_path / "keys").stop()
    folder = tmp_path / "keys/client"
    folder.chmod(mode)
    for file in folder.iterdir():
        file.chmod(0o660)
    start(registry, tmp_path / "keys")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.glob("*.pem")} == {0o600}
    assert "tightened" in caplog.text


@as_root
def test_a_folder_of_roots_in_which_we_may_write_holds_one_of_ours(tmp_path: Path) -> None:
    root = tmp_path / "volume"
    root.mkdir()
    root.chmod(0o777)
    let_others_in(tmp_path)

    def job() -> str:
        become_another_user()
        folder = PrivateFolder(root, "PEERSEAL_CACHE_DIR", readable=True)
        folder.write("a", b"b")
        return str(folder.path)

    assert Child(job).result() == str(root / f"peerseal-{OTHER}")


@as_root
@pytest.mark.parametrize("missing", [True, False])
def test_a_folder_that_cannot_be_written_is_one_clear_error(
    registry: MemoryRegistry, tmp_path: Path, missing: bool
) -> None:
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o755)
    let_others_in(tmp_path)
    if not missing:
        (folder / "client").mkdir(mode=0o700)

    def job() -> str:
        become_another_user()
        with pytest.raises(ConfigurationError) as refused:
            start(registry, folder)
        return str(refused.value)

    said = Child(job).result()
    assert said.startswith(f"PEERSEAL_KEY_DIR: {folder / 'client'}: ")
    assert str(OTHER) in said
    assert "owner 0" in said


def test_without_any_temporary_folder_the_error_names_the_setting(
    registry: MemoryRegistry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigurationError, match="PEERSEAL_KEY_DIR"):
        registry.identity("client")


def test_a_read_only_folder_of_copies_is_logged_and_nothing_else(
    registry: MemoryRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    (tmp_path / "file").write_text("")
    trust = registry.trust_store(cache_dir=tmp_path / "file" / "cache")
    kid = registry.identity("known").credentials.key_id
    assert trust.key(kid).kid == kid
    assert "no copies of documents can be kept" in caplog.text
    trust.stop()
