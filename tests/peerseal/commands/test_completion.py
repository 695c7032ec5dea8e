"""``peerseal completion`` and ``peerseal-registry completion``: what shells make of the scripts."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from demo.processes import BIN, environment
from peerseal.__main__ import COMMANDS, main
from peerseal.commands.completion import SHELLS
from registry.__main__ import main as registry_main


def names() -> set[str]:
    added = argparse.ArgumentParser().add_subparsers()
    for add in COMMANDS:
        add(added)
    return set(added.choices)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["completion", *arguments]) == 0
    return capsys.readouterr().out


def in_bash(script: str, *words: str) -> set[str]:
    """What bash offers for the last of the words."""
    typed = " ".join(f"'{word}'" for word in words)
    asking = (
        f"{script}\nCOMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; COMP_TYPE=9\n"
        f"function=$(complete -p {words[0]} | sed 's/.*-F \\([^ ]*\\).*/\\1/')\n"
        f"$function {words[0]} '{words[-1]}' '{words[-2]}' 2>/dev/null\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"\n"
    )
    path = {"PATH": f"{BIN}:/usr/bin:/bin"}
    ended = subprocess.run(
        ["bash", "-c", asking], env=environment(path), capture_output=True, text=True, timeout=60, check=True
    )
    return set(ended.stdout.split())


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_gets_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    script = printed(capsys, shell)
    assert {name for name in names() if name not in script} == set()
    assert json.loads(printed(capsys, shell, "--json")) == {"shell": shell, "script": script.removesuffix("\n")}


def test_zsh_describes_each_command_in_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    sentence = "Retires all keys of this host at the registry, and deletes them here"
    assert f"retire:'{sentence}'\n" in printed(capsys, "zsh")


def test_bash_completes_commands_options_and_files(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = printed(capsys, "bash")
    assert in_bash(script, "peerseal", "re") == {"retire"}
    assert in_bash(script, "peerseal", "") >= names()
    assert in_bash(script, "peerseal", "join", "--") == {"--help", "--json", "--key", "--wait"}
    (tmp_path / "made.pem").touch()
    monkeypatch.chdir(tmp_path)
    assert in_bash(script, "peerseal", "join", "--key", "m") == {"made.pem"}


def test_without_its_library_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "pip install 'peerseal[completion]'" in capsys.readouterr().err


def test_an_unknown_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["completion", "dos"])
    assert "bash" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_registrys_program_has_completion_too(shell: str) -> None:
    ended = CliRunner().invoke(registry_main, ["completion", shell, "--json"])
    shown = json.loads(ended.output)
    assert (ended.exit_code, shown["shell"]) == (0, shell)
    assert "peerseal-registry" in shown["script"]


def test_bash_completes_the_commands_of_the_registrys_program() -> None:
    script = CliRunner().invoke(registry_main, ["completion", "bash"]).output
    assert in_bash(script, "peerseal-registry", "op") == {"operator-token"}
