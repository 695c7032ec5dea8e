"""What a lying registry says does not reach a terminal raw; pipes, Ctrl-C and closed outputs end no command badly."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from unittest.mock import ANY

import click
import pytest
from click.testing import CliRunner

from demo.processes import ROOT, environment
from peerseal.__main__ import COMMANDS, listed_kids
from peerseal.__main__ import main as peerseal_main
from peerseal.protocol.keys import KeyPair
from peerseal.runtime.terminal import INTERRUPTED, PIPE_CLOSED, printable, say, say_json
from registry.__main__ import main
from registry.app import create_app
from registry.settings import Settings
from tests.registry.driver import Driver

ESCAPES = {
    "clear the screen": "\x1b[2J\x1b[H",
    "cursor up": "\x1b[1A\x1b[2K",
    "window title": "\x1b]0;all is well\x07",
    "8-bit control": "\x9b2J",
    "carriage return": "ALERT\rfine ",
    "line break": "fine\n2026-01-01T00:00:00Z INFO nothing",
    "backspace": "ALERT\b\b\b\b\bfine",
    "delete": "\x7f",
    "null": "\0",
    "right to left": "\u202efdp.exe",
    "isolate": "\u2066a\u2069",
    "zero width": "a\u200bb\ufeff",
    "line separator": "a\u2028b\u2029c",
    "half a surrogate pair": "\ud800",
    "tag characters": "\U000e0041",
}


@pytest.mark.parametrize("text", ESCAPES.values(), ids=ESCAPES)
def test_one_field_stays_one_visible_field(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    say(f"before {text} after")
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert out[:-1].isprintable()
    assert "\\" in out


@pytest.mark.parametrize("text", ESCAPES.values(), ids=ESCAPES)
def test_json_stays_json_and_ascii(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    say_json({"a": text})
    out = capsys.readouterr().out
    assert out.isascii()
    assert out[:-1].isprintable()
    assert json.loads(out) == {"a": text}


def test_words_of_every_language_stay_as_they_are() -> None:
    assert printable("Grüße, 日本語, مرحبا, 👋") == "Grüße, 日本語, مرحبا, 👋"


def run(code: str, **more: object) -> subprocess.CompletedProcess[bytes]:
    settings = environment({}) | {"LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=settings, capture_output=True, check=False, **more
    )  # type: ignore[call-overload,no-any-return]


def test_a_terminal_without_unicode_gets_escapes_and_no_error() -> None:
    ended = run("from peerseal.runtime.terminal import say; say('Gr\\xfc\\xdfe \\ud800')")
    assert (ended.returncode, ended.stdout) == (0, b"Gr\\xfc\\xdfe \\ud800\n")


# ---- through the commands


@pytest.fixture
def home(tmp_path: Path) -> Path:
    driver = Driver(f"sqlite:///{tmp_path / 'registry.sqlite3'}", tmp_path)
    for _ in range(3):
        driver.joined(KeyPair.generate("ES256"), "billing")
    driver.close()
    return tmp_path


def registry_command(home: Path, *arguments: str) -> str:
    return (
        f"import os; os.environ['REGISTRY_HOME'] = {str(home)!r}; import sys; sys.argv = ['peerseal-registry',"
        f" *{list(arguments)!r}]; from registry.__main__ import main; main()"
    )


def test_head_closes_the_pipe_and_nothing_is_said(home: Path) -> None:
    shown = run(registry_command(home, "keys", "billing"))
    assert shown.returncode == 0
    process = subprocess.Popen(
        [
            "/bin/sh",
            "-c",
            '"$0" -c "$1"; echo "code $?" >&2',
            sys.executable,
            registry_command(home, "keys", "billing"),
        ],
        cwd=ROOT,
        env=environment({}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.close()  # before it prints: as `| head -0` does
    assert process.stderr is not None
    assert process.stderr.read().decode() == f"code {PIPE_CLOSED}\n"
    process.wait()


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&-"])
@pytest.mark.thorough
def test_a_closed_output_is_no_error(home: Path, closed: str) -> None:
    command = f'"$0" -c "$1" {closed}'
    ended = subprocess.run(
        ["/bin/sh", "-c", command, sys.executable, registry_command(home, "services")],
        cwd=ROOT,
        env=environment({}),
        capture_output=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_ctrl_c_ends_a_command_without_a_traceback() -> None:
    program = "from peerseal import __main__ as cli; import signal, sys, time; "
    assert_interrupted_quietly(f"{program}{_SLEEPER}; sys.exit(cli.main(['sleep']))", b"ready\n")


def assert_interrupted_quietly(code: str, ready: bytes) -> None:
    """Python code that is interrupted once it has printed ``ready`` ends with 130 and prints no error."""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment({}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == ready
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == b""
        assert process.wait(20) == INTERRUPTED


_SLEEPER = (  # a shell starts what runs in its background with Ctrl-C ignored
    "signal.signal(signal.SIGINT, signal.default_int_handler); "
    "add = lambda commands: commands.add_parser('sleep').set_defaults("
    "run=lambda _: (print('ready', flush=True), time.sleep(60))); cli.COMMANDS = (add,)"
)


@pytest.mark.parametrize("program", ["peerseal", "registry"])
def test_ctrl_c_while_modules_load_ends_without_a_traceback(program: str) -> None:
    code = _SLOW_IMPORTS + f"runpy.run_module({program!r}, run_name='__main__')"
    assert_interrupted_quietly(code, b"loading\n")


_SLOW_IMPORTS = """
import runpy, signal, sys, time
class Slow:
    def find_spec(self, name, *_):
        if name == "jose":
            print("loading", flush=True)
            time.sleep(60)
sys.meta_path.insert(0, Slow())
signal.signal(signal.SIGINT, signal.default_int_handler)
"""


def test_an_argument_that_is_no_text_is_refused_without_a_traceback(home: Path) -> None:
    arguments = [sys.executable, "-m", "registry", "keys", b"\xff\xfe"]
    ended = subprocess.run(
        arguments, cwd=ROOT, env=environment({"REGISTRY_HOME": str(home)}), capture_output=True, check=False
    )
    assert ended.returncode == 1
    assert b"Traceback" not in ended.stderr
    assert b"\xff" not in ended.stderr


# ---- what every command has


def commands(group: click.Group = main, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


@pytest.mark.parametrize(("path", "command"), [pytest.param(*each, id=" ".join(each[0])) for each in commands()])
def test_every_command_of_a_registry_prints_json_and_helps(path: tuple[str, ...], command: click.Command) -> None:
    shown = CliRunner().invoke(main, [*path, "--help"])
    assert shown.exit_code == 0
    assert len((command.help or "").split()) >= 3
    assert path == ("serve",) or "--json" in shown.output


def test_every_command_of_a_service_prints_json_and_helps_with_two_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    import argparse

    monkeypatch.setenv("COLUMNS", "80")
    parser = argparse.ArgumentParser()
    added = parser.add_subparsers()
    for add in COMMANDS:
        add(added)
    assert len(added.choices) == len(COMMANDS)
    for name, command in added.choices.items():
        shown = command.format_help()
        assert "--json" in shown, name
        assert command.description, name
        assert shown.partition("\nexamples:\n")[2].count(f"peerseal {name}") >= 2, name
        assert max(map(len, shown.splitlines())) <= 80, name


@pytest.mark.parametrize("module", ["peerseal", "registry"])
def test_both_programs_tell_their_version(module: str) -> None:
    ended = run(f"import runpy, sys; sys.argv = ['x', '--version']; runpy.run_module('{module}', run_name='__main__')")
    assert ended.returncode == 0
    assert version("peerseal").encode() in ended.stdout


def invoke(home: Path, *arguments: str) -> tuple[int, str]:
    ended = CliRunner().invoke(main, [*arguments], env={"REGISTRY_HOME": str(home)})
    return ended.exit_code, ended.output


def test_what_is_changed_is_said_in_json(home: Path) -> None:
    kid = json.loads(invoke(home, "keys", "billing", "--json")[1])[0]["kid"]
    assert json.loads(invoke(home, "revoke", kid, "--json")[1]) == {"kid": kid, "state": "revoked"}
    invoke(home, "join-token", "create", "billing")
    token = json.loads(invoke(home, "join-token", "list", "--json")[1])[0]["id"]
    assert json.loads(invoke(home, "join-token", "revoke", token, "--json")[1]) == {"id": token, "withdrawn": True}
    operator = json.loads(invoke(home, "operator-token", "list", "--json")[1])[0]["id"]
    assert json.loads(invoke(home, "operator-token", "revoke", operator, "--json")[1]) == {
        "id": operator,
        "revoked": True,
    }


def test_the_audit_trail_names_the_service_of_a_join_token(home: Path) -> None:
    rows = json.loads(invoke(home, "audit", "--json")[1])
    created = [row for row in rows if row["act"] == "join_token_created"]
    assert created
    assert {row["service"] for row in created} == {"billing"}
    assert "billing" in invoke(home, "audit")[1]


def test_a_policy_for_a_service_that_nobody_registered_is_warned_of(home: Path) -> None:
    assert "warning" not in invoke(home, "policy", "set", "billing", "--allow", "shop")[1]
    code, output = invoke(home, "policy", "set", "biling", "--allow", "shop")
    assert (code, "no key of biling was ever registered" in output) == (0, True)


def test_init_over_a_ledger_that_is_shorter_than_it_was_is_refused_with_1(home: Path) -> None:
    (home / "ledger-head").unlink()
    (home / "ledger-size").write_text("1000000")
    code, output = invoke(home, "init")
    assert (code, "Error" in output) == (1, True)


KNOWN = ["{kid}\n", "\ufeff{kid}\r\n", "\r\n  {kid}  \r\n\r\n", "# ours\n{kid} # since May\n", '"{kid}"\n', "{kid}"]


@pytest.mark.parametrize("written", KNOWN)
def test_a_file_of_known_kids_is_read_as_people_write_it(written: str, tmp_path: Path) -> None:
    kid = f"acme.internal/billing/{'A' * 43}"
    file = tmp_path / "known"
    file.write_bytes(written.format(kid=kid).encode())
    assert listed_kids(file.read_bytes().decode("utf-8-sig")) == {kid}


MARK = b"\xef\xbb\xbf"


def test_files_that_begin_with_a_byte_order_mark_are_read(home: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "file", tmp_path / "out"
    settings = json.loads(invoke(home, "domain", "get", "--json")[1])["setting"]
    file.write_bytes(MARK + json.dumps(settings).encode())
    assert invoke(home, "domain", "set", str(file))[0] == 0
    file.write_bytes(MARK + b'{"allow": {"shop": []}}\r\n')
    assert invoke(home, "policy", "set", "billing", "--file", str(file))[0] == 0
    assert invoke(home, "root", "request", "--out", str(out))[0] == 0
    file.write_bytes(MARK + out.read_bytes())
    assert invoke(home, "root", "sign", str(file), "--root-key", str(home / "root-key.pem"), "--out", str(out))[0] == 0
    file.write_bytes(MARK + out.read_bytes() + b"\r\n")
    assert invoke(home, "root", "publish", str(file))[0] == 0
    registry = create_app(Settings.at(home)).test_client()
    file.write_bytes(MARK + registry.get("/ledger/checkpoint").data.replace(b"\n", b"\r\n"))
    assert invoke(home, "verify", "--checkpoint", str(file)) == (0, ANY)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "no value"),
        (b"{", "not strict JSON"),
        (b"\xff", "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'"\\ud800"', "half a surrogate"),
    ],
)
def test_a_file_that_is_no_json_is_refused_in_words(home: Path, tmp_path: Path, content: bytes, why: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    code, output = invoke(home, "domain", "set", str(file))
    assert (code, why in output) == (1, True), output


@pytest.mark.parametrize("row", ["-1", "9" * 18, "9" * 19, "1_0", "\u0663"])
def test_the_audit_trail_begins_behind_any_row_or_says_what_a_row_is(home: Path, row: str) -> None:
    ended = CliRunner().invoke(main, ["audit", f"--after={row}"], env={"REGISTRY_HOME": str(home)})
    assert (ended.exit_code, ended.exception is None or "--after" in ended.output) == (0 if len(row) == 18 else 2, True)


@pytest.mark.parametrize("file", ["/nowhere", "/", "/dev/zero"])
def test_a_file_of_known_kids_that_cannot_be_read_is_said_though_the_registry_is_away(
    file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["monitor", "shop", "--once", "--registry", "http://127.0.0.1:9", "--known-file", file]
    assert peerseal_main(asked) == 2
    assert f"{file}: " in capsys.readouterr().err


def test_known_kids_may_come_through_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"not a kid\n")
    os.close(writing)
    file = f"/dev/fd/{reading}"
    assert peerseal_main(["monitor", "shop", "--once", "--registry", "http://127.0.0.1:9", "--known-file", file]) == 3
    assert os.read(reading, 100) == b"not a kid\n", "it is read when the ledger is compared, and only then"
    os.close(reading)


def test_keep_ledger_makes_its_folder(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copies" / "of" / "ours"
    ended = run(
        f"from peerseal.__main__ import main; import sys; sys.exit(main(['keep-ledger', {str(folder)!r}, '--once',"
        " '--registry', 'http://127.0.0.1:9']))"
    )
    assert ended.returncode == 3, ended.stderr
    assert folder.is_dir()
