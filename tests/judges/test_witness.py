"""Our witness and torchwood's, each with a log of the other side, verified by the other side.

litewitness is torchwood's witness; the Go program in witness/ is everything else on that side."""

import json
import os
import shutil
import sqlite3
import subprocess
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import pytest
import requests

from peerseal.audit.witness import Witness, read_log_key
from peerseal.audit.witness_server import witnessing
from peerseal.protocol.documents.registry_keys import read_registry_keys
from peerseal.protocol.encoding import b64url_decode
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.ledger.checkpoint import parse_checkpoint, signed_note_key
from peerseal.protocol.ledger.cosignature import WITNESS_KEY, Note, NoteKey, cosigned_at
from registry.witness_addresses import WitnessAddress
from tests.judges.conftest import missing
from tests.registry.driver import Driver
from tests.support.processes import LOOPBACK, free_port
from tests.support.stack import DOMAIN, Stack
from tests.support.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.judge]

GO_FILES = Path(__file__).parent / "witness"
EMPTY = b64encode(sha256(b"").digest()).decode()


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with litewitness and our Go program. A first build compiles SQLite, which takes minutes."""
    go = shutil.which("go", path=f"{os.environ.get('PATH', '')}:/usr/local/go/bin")
    if go is None:
        missing("the program go is not there (Debian: apt-get install golang-go)")
    folder = tmp_path_factory.mktemp("go")
    build = [go, "build", "-buildvcs=false", "-o", f"{folder}/", ".", "filippo.io/torchwood/cmd/litewitness"]
    built = subprocess.run(build, cwd=GO_FILES, capture_output=True, encoding="utf-8", timeout=900)
    if built.returncode != 0:
        missing(f"go build failed: {built.stderr[-500:]}")
    return folder


def judge(programs: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [str(programs / "witness-judge"), *arguments]
    return subprocess.run(command, env=environment(), capture_output=True, encoding="utf-8", timeout=120)


def environment() -> dict[str, str]:
    return os.environ | {"NO_PROXY": LOOPBACK}


class LiteWitness:
    """torchwood's witness of one log, with its key in an ssh-agent."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._database = folder / "litewitness.db"
        self._log = folder / "litewitness.log"
        self._agent = subprocess.Popen(
            [str(programs / "witness-judge"), "agent", str(folder / "agent")], stdout=subprocess.PIPE, text=True
        )
        assert self._agent.stdout is not None
        fingerprint = self._agent.stdout.readline().strip()
        port = free_port()
        self.url = f"http://{LOOPBACK}:{port}"
        command = [
            str(programs / "litewitness"),
            "-db",
            str(self._database),
            "-name",
            "lite.example",
            "-key",
            fingerprint,
        ]
        with self._log.open("wb") as log:
            self._witness = subprocess.Popen(
                [*command, "-ssh-agent", str(folder / "agent"), "-listen", f"{LOOPBACK}:{port}"], stderr=log, stdout=log
            )
        until(lambda: "msg=listening" in self._log.read_text(), 60, what="the start of litewitness")
        told = self._log.read_text().partition("vkey=")[2].split()[0]
        self.key = NoteKey.parse(told.strip('"'), WITNESS_KEY)

    def add_log(self, key: str) -> None:
        """As ``witnessctl add-log`` and ``add-key`` do, which need another module."""
        origin = key.partition("+")[0]
        with closing(sqlite3.connect(self._database, timeout=60)) as database, database:
            database.execute("INSERT INTO log (origin, tree_size, tree_hash) VALUES (?, 0, ?)", (origin, EMPTY))
            database.execute("INSERT INTO key (origin, key) VALUES (?, ?)", (origin, key))

    def stop(self) -> None:
        for process in (self._witness, self._agent):
            process.terminate()
            process.communicate(timeout=60)


@pytest.fixture
def lite(programs: Path, tmp_path: Path) -> Iterator[LiteWitness]:
    found = LiteWitness(programs, tmp_path)
    yield found
    found.stop()


class Ledger:
    """The ledger of the running registry, which grows with each join token."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        jws = self.get("/.well-known/peerseal-registry").text
        self.key = signed_note_key(DOMAIN, read_registry_keys(jws, pin=None, now=time.time()).ledger_key)

    def get(self, path: str) -> requests.Response:
        answer = requests.get(self._stack.registry_url + path, timeout=60)
        answer.raise_for_status()
        return answer

    def grow(self) -> None:
        self._stack.join_token("witnessed")

    def note(self) -> str:
        return self.get("/ledger/checkpoint").content.decode()

    def submit(self, url: str, old: int) -> tuple[requests.Response, str]:
        """The answer of a witness to the newest checkpoint, and that checkpoint."""
        note = self.note()
        lines = self._proof(old, parse_checkpoint(note).size) if old else []
        body = "".join(f"{line}\n" for line in (f"old {old}", *lines, "")) + note
        return requests.post(f"{url}/add-checkpoint", data=body.encode(), timeout=60), note

    def _proof(self, old: int, new: int) -> list[str]:
        parts = self.get(f"/ledger/proof?from={old}&to={new}").json()["proof"]
        return [b64encode(b64url_decode(part)).decode() for part in parts]


def test_torchwoods_witness_cosigns_a_registrys_ledger(running_registry: Stack, lite: LiteWitness) -> None:
    ledger, old = Ledger(running_registry), 0
    lite.add_log(ledger.key)
    for _ in range(3):
        ledger.grow()
        answer, note = ledger.submit(lite.url, old)
        assert answer.status_code == 200, answer.text
        assert cosigned_at(Note.parse(note + answer.content.decode()), lite.key) is not None
        old = parse_checkpoint(note).size


def test_both_witnesses_refuse_the_same(running_registry: Stack, lite: LiteWitness, tmp_path: Path) -> None:
    ledger = Ledger(running_registry)
    ledger.grow()
    lite.add_log(ledger.key)
    ours = Witness(tmp_path / "witness", "ours.example", [read_log_key(ledger.key)])
    with witnessing(ours, f"{LOOPBACK}:0") as port:
        for url in (lite.url, f"http://{LOOPBACK}:{port}"):
            answer, note = ledger.submit(url, 0)
            assert answer.status_code == 200
            again, _ = ledger.submit(url, 0)
            size = parse_checkpoint(note).size
            assert (again.status_code, again.headers["Content-Type"]) == (409, "text/x.tlog.size")
            assert again.text == f"{size}\n"
            for body, status in (
                (f"old {size}\n\n{note.replace(DOMAIN, 'other.example')}", 404),
                (f"old {size}\n\n{note.replace(f'{size}', f'{size + 1}', 1)}", 403),
                (f"old {size + 1}\n\n{note}", 400),
                (f"old {size}\n{EMPTY}\n\n{note}", 422),
                ("", 400),
            ):
                assert requests.post(f"{url}/add-checkpoint", data=body.encode(), timeout=60).status_code == status, (
                    body
                )


def test_our_witness_cosigns_a_log_of_torchwoods(programs: Path, tmp_path: Path) -> None:
    key = json.loads(judge(programs, "key", "go.example/log").stdout)
    witness = Witness(tmp_path, "ours.example", [read_log_key(key["verifier"])])
    sizes = ["0", "1", "2", "3", "3", "255", "256", "257", "1000"]
    with witnessing(witness, f"{LOOPBACK}:0") as port:
        url = f"http://{LOOPBACK}:{port}"
        run = judge(programs, "submit", url, str(witness.key), key["signer"], *sizes)
        assert run.returncode == 0, run.stderr
        assert [each["size"] for each in json.loads(run.stdout)] == [int(size) for size in sizes]
        assert witness.sizes() == {"go.example/log": 1000}
        again = judge(programs, "submit", url, str(witness.key), key["signer"], "5")
        assert "409 Conflict: 1000" in again.stderr
        stranger = judge(programs, "submit", url, str(witness.key), _other(programs), "5")
        assert "403 Forbidden" in stranger.stderr


def test_torchwoods_verifier_can_say_no(programs: Path, tmp_path: Path) -> None:
    key = json.loads(judge(programs, "key", "go.example/log").stdout)
    logs = [read_log_key(key["verifier"])]
    witness, other = (Witness(tmp_path / name, "ours.example", logs) for name in ("one", "other"))
    with witnessing(witness, f"{LOOPBACK}:0") as port:
        run = judge(programs, "submit", f"http://{LOOPBACK}:{port}", str(other.key), key["signer"], "5")
    assert (run.returncode, run.stderr) == (1, "note has no verifiable signatures\n")


def _other(programs: Path) -> str:
    signer: str = json.loads(judge(programs, "key", "go.example/log").stdout)["signer"]
    return signer


def test_a_registry_submits_to_torchwoods_witness_and_torchwood_opens_what_it_serves(
    lite: LiteWitness, programs: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    database = f"sqlite:///{home / 'registry.sqlite3'}"
    with closing(Driver(database, home, witnesses=(WitnessAddress(lite.key, lite.url),))) as node:
        log = signed_note_key(node.initialised.domain, node.registry.authority.in_force().keys.ledger_key)
        lite.add_log(log)
        node.registry.cosigning.start()
        try:
            for number in range(3):
                node.joined(KeyPair.generate("ES256"), f"service-{number}")
                served, size = cosigned_by_all(node), node.changes(0).seq
                assert json.loads(opened_by(programs, str(lite.key), log, served).stdout)["size"] == size
            other = cosigned_by_all(node).replace(b"\n\n", b"other\n\n", 1)
            assert opened_by(programs, str(lite.key), log, other).returncode == 1
        finally:
            node.registry.cosigning.stop()


def cosigned_by_all(node: Driver) -> bytes:
    """The newest checkpoint, once all witnesses have cosigned it."""
    size = node.changes(0).seq
    until(lambda: {state.size for state in node.registry.cosigning.states().values()} == {size}, what="it is cosigned")
    served: bytes = node.client.get("/ledger/checkpoint.cosigned").data
    return served


def opened_by(programs: Path, witness: str, log: str, note: bytes) -> "subprocess.CompletedProcess[bytes]":
    command = [str(programs / "witness-judge"), "open", witness, log]
    return subprocess.run(command, input=note, env=environment(), capture_output=True, timeout=120)
