"""The ledger, judged by other people's code over HTTP from a real registry process: Go's checksum database (its tiles,
proofs and signed notes) and `pymerkle` (the tree alone)."""

import json
import os
import shutil
import subprocess
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pymerkle
import pytest
import requests
from sqlalchemy import delete, update

from peerseal.protocol.documents.registry_keys import read_registry_keys
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.ledger import checkpoint as tlog
from peerseal.protocol.ledger.entries import JOIN_TOKEN_CREATED
from peerseal.protocol.ledger.merkle import Frontier, leaf_hash
from peerseal.protocol.names import make_kid, service_id
from registry.services.authority import ledger_memory
from registry.storage.queries.ledger import Change, append, read_bodies
from registry.storage.tables import entries, ledger_head
from tests.registry.driver import BY, DOMAIN, Driver
from tests.support.processes import gunicorn
from tests.support.stack import Stack

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

GO_FILES = Path(__file__).parent / "go"
SIZES = (1, 2, 255, 256, 257, 1_000)
LARGE = 70_000
BATCH = 1_000


@dataclass
class Judged:
    """A real registry process whose ledger grows through another node of the same registry, in this process."""

    url: str
    node: Driver
    verifier_key: str
    kid: str = ""

    @property
    def size(self) -> int:
        return int(self.note.split("\n")[1])

    @property
    def note(self) -> str:
        return self.get("/ledger/checkpoint").decode("utf-8")

    def get(self, path: str) -> bytes:
        response = requests.get(self.url + path, timeout=30)
        assert response.status_code == 200, response.text
        return response.content

    def grow(self, size: int) -> None:
        """Up to that size; the last entry is a key's admission, by the use case, where there is room for one."""
        while (missing := size - self.size) > 0:
            if missing == 2:
                mine = self.node.joined(KeyPair.generate("ES256"), "billing")
                self.kid = make_kid(service_id(DOMAIN, "billing"), mine.public.thumbprint)
            else:
                self._append(1 if missing < 3 else min(BATCH, missing - 2))

    def _append(self, count: int) -> None:
        with self.node.store.write() as connection:
            now, size = int(self.node.clock()), self.size
            made = [{"id": f"made-up-{size + number}", "expires_at": now + 60, "uses": 1} for number in range(count)]
            append(connection, now, *(Change(JOIN_TOKEN_CREATED, "billing", by=BY, data=data) for data in made))


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judged]:
    """With a ledger of one entry, as it is between two statements of ``init``."""
    with Stack(tmp_path_factory.mktemp("ledger"), domain=DOMAIN) as stack:
        home = Path(stack.registry_settings["REGISTRY_HOME"])
        home.mkdir(parents=True)
        node = Driver(f"sqlite:///{home / 'registry.sqlite3'}", home)
        with node.store.write() as connection:
            [first] = read_bodies(connection, 0, 1)
            connection.execute(delete(entries).where(entries.c.seq > 1))
            edge = Frontier().appended(leaf_hash(first))
            connection.execute(update(ledger_head).values(size=1, frontier=edge.encode()))
        (home / ledger_memory.FILE).unlink()  # the registry would not go on from a ledger that became shorter
        registry = gunicorn(
            "registry",
            "registry.wsgi:app",
            port=stack.registry_port,
            log=stack.log("registry"),
            settings=stack.registry_settings,
            workers=1,
            config="python:registry.gunicorn_conf",
        )
        stack.keep(registry).wait_until_answers(f"{stack.registry_url}/healthz")
        jws = requests.get(f"{stack.registry_url}/.well-known/peerseal-registry", timeout=30).text
        jwk = read_registry_keys(jws, pin=node.pin, now=node.clock()).ledger_key
        yield Judged(stack.registry_url, node, tlog.signed_note_key(DOMAIN, jwk))
        node.close()


@pytest.fixture(scope="module")
def go_judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Go program, built."""
    go = shutil.which("go", path=f"{os.environ.get('PATH', '')}:/usr/local/go/bin")
    if go is None:
        _missing("the program go is not there (Debian: apt-get install golang-go)")
    program = tmp_path_factory.mktemp("go") / "judge"
    build = [go, "build", "-buildvcs=false", "-o", str(program), "."]
    built = subprocess.run(build, cwd=GO_FILES, capture_output=True, encoding="utf-8", timeout=200)
    if built.returncode != 0:
        _missing(f"go build failed: {built.stderr[-500:]}")
    return program


def _missing(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def ask(program: Path, judged: Judged, old: int, key: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [str(program), judged.url, key or judged.verifier_key, str(old), *([judged.kid] if judged.kid else [])]
    environment = os.environ | {"NO_PROXY": "127.0.0.1"}
    return subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=120)


def agree(program: Path, judged: Judged, old: int, size: int) -> dict[str, Any]:
    """What the Go program says, which must be what we say."""
    judged.grow(size)
    run = ask(program, judged, old)
    assert run.returncode == 0, run.stderr
    told: dict[str, Any] = json.loads(run.stdout)
    assert (told["origin"], told["size"], told["root"]) == tuple(_lines(judged.note))
    return told


def _lines(note: str) -> tuple[str, int, str]:
    origin, size, root, *_ = note.split("\n")
    return origin, int(size), root


@pytest.mark.thorough
def test_the_go_checksum_database_agrees_at_every_size(go_judge: Path, judged: Judged) -> None:
    roots: dict[int, str] = {}
    for size in SIZES:
        for old in [*roots, size]:
            told = agree(go_judge, judged, old, size)
            assert told["old_root"] == roots.setdefault(old, told["root"])
        if size > 2:
            assert told["kid_index"] < size


@pytest.mark.thorough
def test_pymerkle_agrees(judged: Judged) -> None:
    judged.grow(max(SIZES))
    tree, bodies = pymerkle.InmemoryTree(algorithm="sha256"), list[bytes]()
    for number in range(-(-judged.size // 256)):
        width = min(256, judged.size - number * 256)
        bodies += tlog.decode_bundle(judged.get(f"/ledger/{tlog.tile_path('entries', number, width)}"))
    for body in bodies:
        tree.append_entry(body)
    origin, size, root = _lines(judged.note)
    assert (origin, size, b64decode(root)) == (DOMAIN, tree.get_size(), tree.get_root())
    pymerkle.verify_inclusion(tree.get_leaf(size), tree.get_root(), tree.prove_inclusion(size, size))
    pymerkle.verify_consistency(tree.get_root(257), tree.get_root(), tree.prove_consistency(257, size))


@pytest.mark.judge
def test_it_is_a_judge_that_can_say_no(go_judge: Path, judged: Judged) -> None:
    """Another ledger's key, and a ledger whose rows were altered, are refused."""
    judged.grow(257)
    other = f"{DOMAIN}+{judged.verifier_key.split('+')[1]}+{'A' * 44}"
    assert ask(go_judge, judged, 1, other).returncode == 1
    with judged.node.store.write() as connection:
        row = connection.execute(entries.select().where(entries.c.seq == judged.size)).one()
        connection.execute(update(entries).where(entries.c.seq == row.seq).values(body=row.body + b" "))
    refused = ask(go_judge, judged, 1)
    assert (refused.returncode, refused.stderr) == (1, "an entry is not what its tile says\n")
    with judged.node.store.write() as connection:
        connection.execute(update(entries).where(entries.c.seq == row.seq).values(body=row.body))
    assert ask(go_judge, judged, 1).returncode == 0


@pytest.mark.judge
def test_the_go_checksum_database_agrees_at_70_000(go_judge: Path, judged: Judged) -> None:
    judged.grow(max(SIZES))
    for old in (1, 2, 255, 256, 257, 1_000, 65_536, LARGE):
        agree(go_judge, judged, old, LARGE)
