"""The registry's key files on a command line or in a setting: a wrong name changes no file."""

import stat
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from peerseal.errors import ConfigurationError
from registry.services.setup import keyfiles

READ = {
    "root key": lambda path: keyfiles.read_key_pair(path, "root key"),
    "ledger key": keyfiles.read_ledger_key,
    "sealing key": keyfiles.read_sealer,
}
MADE = {
    "root key": keyfiles.new_root_key,
    "ledger key": keyfiles.new_ledger_key,
    "sealing key": Fernet.generate_key,
}


def mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "file"
    file.touch()
    file.chmod(0o644)
    return file


@pytest.mark.parametrize("what", READ)
def test_a_file_without_a_key_is_refused_and_keeps_its_mode(file: Path, what: str) -> None:
    file.write_text("minutes of a meeting")
    with pytest.raises(ConfigurationError, match="key"):
        READ[what](file)
    assert mode(file) == 0o644


def test_a_key_of_another_kind_is_refused_and_keeps_its_mode(file: Path) -> None:
    for what, other in (("root key", "ledger key"), ("ledger key", "root key")):
        file.write_bytes(MADE[other]())
        with pytest.raises(ConfigurationError, match="key"):
            READ[what](file)
        assert mode(file) == 0o644


@pytest.mark.parametrize("what", READ)
def test_a_key_that_others_may_read_is_read_and_its_file_tightened(file: Path, what: str) -> None:
    file.write_bytes(MADE[what]())
    READ[what](file)
    assert mode(file) == 0o600
