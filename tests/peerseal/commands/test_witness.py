"""``peerseal witness`` as a process."""

import json
import signal
import subprocess
import sys
from http.client import HTTPConnection
from pathlib import Path

import pytest
import requests

from peerseal.__main__ import main
from peerseal.protocol.ledger.cosignature import WITNESS_KEY, Note, NoteKey, cosigned_at
from peerseal.testing import MemoryRegistry
from tests.peerseal.served import served
from tests.support.foreign_log import ForeignLog
from tests.support.processes import free_port


def test_it_serves_until_it_is_interrupted_and_goes_on_after_a_restart(tmp_path: Path) -> None:
    log = ForeignLog()
    first = Run(tmp_path, log)
    status, line = first.post(log.submission(0, 5))
    assert status == 200
    assert cosigned_at(Note.parse(log.note(5) + line), first.key) is not None
    assert json.loads(first.line()) == {"status": 200, "cosignature": line.rstrip("\n")}
    assert first.stop() == 0
    again = Run(tmp_path, log)
    assert again.key == first.key
    assert again.post(log.fork().submission(0, 5)) == (409, "5\n")
    assert json.loads(again.line())["status"] == 409
    assert again.post(log.submission(5, 8))[0] == 200
    assert again.stop() == 0


def test_a_killed_one_forgets_nothing_that_it_cosigned(tmp_path: Path) -> None:
    log = ForeignLog()
    first = Run(tmp_path, log)
    assert first.post(log.submission(0, 5))[0] == 200
    first.process.kill()
    first.process.communicate()
    again = Run(tmp_path, log)
    assert again.post(log.fork().submission(0, 6)) == (409, "5\n")
    again.stop()


@pytest.mark.parametrize("key", ["", "log.example", "log.example+00000000+AAAA"])
def test_a_log_that_is_no_key_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["witness", str(tmp_path), "--name", "witness.example", "--log", key])
    assert caught.value.code == 2
    assert "verifier key" in capsys.readouterr().err


def test_a_name_that_no_note_may_have_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["witness", str(tmp_path / "w"), "--name", "a b", "--log", str(ForeignLog().key)]) == 2
    assert "--name: 'a b' is no name of a key" in capsys.readouterr().err


def test_no_log_at_all_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["witness", str(tmp_path / "w"), "--name", "witness.example"]) == 2
    assert "no registry URL is given" in capsys.readouterr().err


def test_a_registry_that_is_away_ends_the_start(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    assert main(["witness", str(tmp_path / "w"), "--name", "witness.example", "--registry", url]) == 3


def test_it_witnesses_the_ledger_of_a_registry(tmp_path: Path) -> None:
    registry = MemoryRegistry()
    with served(registry) as url:
        run = Run(tmp_path, registry=url)
        note = requests.get(f"{url}/ledger/checkpoint", timeout=60).content.decode()
        status, line = run.post(f"old 0\n\n{note}".encode())
        assert status == 200, line
        assert cosigned_at(Note.parse(note + line), run.key) is not None
        assert run.stop() == 0


class Run:
    """One run of the command with the state in a folder."""

    def __init__(self, folder: Path, log: ForeignLog | None = None, *, registry: str | None = None) -> None:
        command = [sys.executable, "-m", "peerseal", "witness", str(folder / "witness"), "--name", "witness.example"]
        command += ["--registry", registry] if registry else []
        command += ["--log", str(log.key)] if log else []
        self.process = subprocess.Popen(
            [*command, "--listen", "127.0.0.1:0", "--json"], stdout=subprocess.PIPE, text=True
        )
        told = json.loads(self.line())
        self.port, self.key = told["port"], NoteKey.parse(told["key"], WITNESS_KEY)

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def post(self, body: bytes) -> tuple[int, str]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("POST", "/add-checkpoint", body)
        answer = connection.getresponse()
        told = answer.status, answer.read().decode()
        connection.close()
        return told

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=60)
        return self.process.returncode
