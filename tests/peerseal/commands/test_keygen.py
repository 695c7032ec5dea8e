"""``peerseal keygen`` writes a key that services can use, and never replaces a file."""

import json
import re
from contextlib import suppress
from pathlib import Path

import pytest

from peerseal.__main__ import main
from peerseal.commands.keygen import pair_in
from peerseal.errors import ConfigurationError
from peerseal.protocol.keys import KeyPair

PASSPHRASE = "PEERSEAL_KEY_PASSPHRASE"


@pytest.fixture(autouse=True)
def without_passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PASSPHRASE, raising=False)
    monkeypatch.delenv(f"{PASSPHRASE}_FILE", raising=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "billing.pem"


def test_the_key_is_rsa_in_a_private_file(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keygen", str(file)]) == 0
    public = KeyPair.from_pem(file.read_bytes()).public
    assert (public.alg, file.stat().st_mode & 0o777) == ("RS256", 0o600)
    assert capsys.readouterr().out == f"private key  {file}, not encrypted\nthumbprint   {public.thumbprint}\n"


def test_json_names_the_file_and_the_thumbprint(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keygen", "--json", str(file), "--alg", "ES256"]) == 0
    thumbprint = KeyPair.from_pem(file.read_bytes()).public.thumbprint
    shown = {"file": str(file), "alg": "ES256", "thumbprint": thumbprint, "encrypted": False}
    assert json.loads(capsys.readouterr().out) == shown


def test_with_a_passphrase_the_file_is_encrypted(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSPHRASE, "a long enough passphrase")
    assert main(["keygen", str(file), "--alg", "ES256"]) == 0
    assert b"ENCRYPTED PRIVATE KEY" in file.read_bytes()
    assert pair_in(file).public.alg == "ES256"
    monkeypatch.delenv(PASSPHRASE)
    with pytest.raises(ConfigurationError, match=f"{PASSPHRASE} is not set"):
        pair_in(file)


def test_a_file_is_never_replaced(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("mine")
    assert main(["keygen", str(file), "--alg", "ES256"]) == 2
    assert file.read_text() == "mine"
    assert f"{file} exists" in capsys.readouterr().err


def test_a_link_to_nowhere_is_not_followed(file: Path) -> None:
    file.symlink_to(file.with_name("elsewhere"))
    assert main(["keygen", str(file), "--alg", "ES256"]) == 2
    assert not file.with_name("elsewhere").exists()


def test_a_missing_folder_is_named(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = file.parent / "missing" / "billing.pem"
    assert main(["keygen", str(missing), "--alg", "ES256"]) == 2
    assert f"{missing}: its folder does not exist" in capsys.readouterr().err
    assert not missing.parent.exists()


def test_a_size_is_for_rsa_only(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keygen", str(file), "--alg", "ES256", "--bits", "4096"]) == 2
    assert "--bits is for RS256" in capsys.readouterr().err


@pytest.mark.parametrize("bits", ["0", "1024", "8193", "-1"])
def test_a_size_that_no_registry_accepts_is_refused(file: Path, bits: str) -> None:
    assert main(["keygen", str(file), f"--bits={bits}"]) == 2
    assert not file.exists()


@pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_file_without_a_key_is_refused_in_words(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    file.chmod(0o600)
    with pytest.raises(ConfigurationError, match="holds no key that a service may have"):
        pair_in(file)


@pytest.mark.parametrize("content", [b"127.0.0.1 localhost\n", KeyPair.generate("ES256").to_pem()])
def test_a_file_that_is_named_as_a_key_keeps_its_mode(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    file.chmod(0o644)
    link = file.with_name("link.pem")
    link.symlink_to(file)
    with suppress(ConfigurationError):
        pair_in(link)
    assert file.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(("mode", "warnings"), [(0o644, 1), (0o660, 1), (0o400, 0)])
def test_a_key_that_others_can_read_or_change_is_used_with_a_warning(
    file: Path, mode: int, warnings: int, caplog: pytest.LogCaptureFixture
) -> None:
    pair = KeyPair.generate("ES256")
    file.write_bytes(pair.to_pem())
    file.chmod(mode)
    assert pair_in(file).public == pair.public
    assert [f"{file}: others have access to this private key (mode {mode:04o}" in line for line in caplog.messages] == [
        True
    ] * warnings


@pytest.mark.parametrize(
    ("name", "says"),
    [("absent.pem", "No such file"), (".", "Is a directory"), ("large.pem", "larger than 65536 bytes")],
)
def test_a_path_that_is_no_key_file_is_named(file: Path, name: str, says: str) -> None:
    file.with_name("large.pem").write_bytes(bytes(65537))
    path = file.parent / name
    with pytest.raises(ConfigurationError, match=f"{re.escape(str(path))}: .*{says}"):
        pair_in(path)
