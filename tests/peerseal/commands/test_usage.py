"""How each command ends where it is used wrongly, or cannot print: the exit code, and the line that says why."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from peerseal.__main__ import main
from peerseal.runtime.terminal import FAILED, ended_quietly


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
@pytest.mark.parametrize("arguments", [("--help",), ("call", "--help"), ("--version",)], ids=" ".join)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_help_that_cannot_be_printed_is_an_error(arguments: tuple[str, ...], unbuffered: str) -> None:
    with open("/dev/full", "wb") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "peerseal", *arguments],
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
        )
    assert ended.returncode == FAILED
    assert ended.stderr == b"Error: standard output: No space left on device\n"


def test_an_error_without_a_file_is_not_blamed_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=str(FAILED)), ended_quietly():
        raise OSError("no certificates at /nowhere")
    assert capsys.readouterr().err == "Error: no certificates at /nowhere\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["doctor", "--nope"], "usage: peerseal doctor [-h] [--json] [URL]\n"),
        (["call", "billing", "GET", ":8080", "--nope"], "usage: peerseal call [OPTION...] AUDIENCE METHOD URL"),
        (["call"], "the following arguments are required: AUDIENCE, METHOD, URL\n"),
    ],
)
def test_wrong_arguments_are_answered_with_the_command_s_own_usage(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert says in capsys.readouterr().err


def test_items_of_one_call_are_none_of_the_next(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["call", "billing", "GET", ":8080", "--json", "bad"]) == 2
    assert "'bad' is no item" in capsys.readouterr().err
    assert main(["call", "billing", "GET", ":8080"]) == 2
    assert "bad" not in capsys.readouterr().err


def test_authorities_that_are_not_there_are_named_before_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "absent.pem"))
    assert main(["call", "billing", "GET", "https://billing.test"]) == 2
    assert f"REQUESTS_CA_BUNDLE={tmp_path / 'absent.pem'}: no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["call", "billing", "GET", "ftp://billing"], "URL='ftp://billing': "),
        (["call", "billing", "GET", ""], "URL='': "),
        (["sign", "billing", "GET", "ftp://billing"], "URL='ftp://billing': "),
        (["keep-ledger", "ledger", "--registry", "ftp://r"], "--registry: a registry URL must read http(s)://"),
        (["keep-ledger", "ledger", "--registry", "ftp://r"], "and not 'ftp://r'"),
        (["keep-ledger", "ledger", "--registry", ""], "--registry: "),
        (["keep-ledger", "ledger", "--registry", "http://r", "--pin", "short"], "--pin: "),
        (["monitor", "billing", "--registry", "http://127.0.0.1:1", "--webhook", "hook"], "--webhook: "),
    ],
)
def test_a_url_or_pin_that_is_none_is_named_with_its_argument(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("command", [["call", "billing", "GET"], ["sign", "billing", "GET"], ["keep-ledger", "l"]])
def test_a_password_in_a_url_is_not_shown(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    option = ["--registry"] if command[0] == "keep-ledger" else []
    assert main([*command, *option, "ftp://ada:secret@host"]) == 2
    assert "secret" not in capsys.readouterr().err


@pytest.mark.parametrize("value", ["a\nb", "a\rb", "a\0b", "snow ☃"])
def test_a_header_that_cannot_be_sent_is_wrong_usage(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["call", "billing", "GET", ":8080", f"X-A:{value}"]) == 2
    assert capsys.readouterr().err.startswith("Error: X-A: ")


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_nothing_in_the_place_of_a_token_is_said(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").write_text("\n")
    monkeypatch.setattr("sys.stdin", (tmp_path / "empty").open())
    for argument, named in (("", "the argument TOKEN"), ("-", "standard input"), (f"@{tmp_path / 'empty'}", "/empty")):
        assert main([command, argument]) == 2
        assert f"{named} is empty: expected a token or a document\n" in capsys.readouterr().err


def test_a_number_that_is_none_is_named_with_its_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["mirror", "folder", "--waiting", "many"])
    assert "argument --waiting: 'many': expected a number such as 1000" in capsys.readouterr().err
