"""A typing mistake on a command line may name any file or folder: none gets another mode."""

import os
import stat
from pathlib import Path

import pytest

from peerseal.__main__ import main
from peerseal.agent.listening import secret_in

REGISTRY = ("--registry", "http://127.0.0.1:1", "--pin", "A" * 43)  # no server listens there


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder that its group, and every user, may change."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o2777)
    return folder


@pytest.mark.parametrize(
    "command",
    [
        ("keep-ledger", "shared", "--once", *REGISTRY),
        ("mirror", "shared", "--once", *REGISTRY),
        ("mirror", "new", "--once", "--metrics", "shared/metrics", *REGISTRY),
        ("agent", "--socket", "shared/agent.sock"),
        ("keygen", "shared/key.pem"),
        ("monitor", "billing", "--state", "shared/state", "--once", *REGISTRY),
    ],
    ids=" ".join,
)
def test_a_folder_that_a_command_names_keeps_its_mode(
    shared: Path, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shared.parent)
    main(command)
    assert mode_of(shared) == 0o2777


@pytest.mark.parametrize(
    "command",
    [
        ("keep-ledger", "shared", "--once", *REGISTRY),
        ("mirror", "shared", "--once", *REGISTRY),
        ("agent", "--socket", "shared/agent.sock"),
    ],
)
def test_a_folder_that_others_may_change_is_refused(
    shared: Path, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(shared.parent)
    assert main(command) == 2
    assert f"(mode 2777, owner {os.geteuid()}): name another folder" in capsys.readouterr().err
    assert not list(shared.iterdir())


def test_a_file_that_is_no_state_keeps_its_mode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("my notes")
    file.chmod(0o644)
    assert main(["monitor", "billing", "--state", str(file), "--once", *REGISTRY]) == 2
    assert "is not the state of a monitor" in capsys.readouterr().err
    assert mode_of(file) == 0o644


def test_the_advice_about_a_folder_in_place_of_a_file_removes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["monitor", "billing", "--state", str(tmp_path), "--once", *REGISTRY]) == 2
    said = capsys.readouterr().err
    assert "not a regular file" in said
    assert "name another one" in said
    assert "remove" not in said


@pytest.mark.parametrize(("mode", "warns"), [(0o644, True), (0o620, True), (0o600, False)])
def test_a_secret_that_others_can_read_or_change_is_used_with_a_warning(
    tmp_path: Path, mode: int, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "agent.secret"
    file.write_text("s" * 32)
    file.chmod(mode)
    assert secret_in(file) == "s" * 32
    assert (f"--secret-file={file}: others have access to this secret (mode {mode:04o}" in caplog.text) is warns
    assert mode_of(file) == mode
