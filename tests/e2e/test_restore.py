"""The registry's database is lost and comes back from a backup, in real processes: clients and a monitor go on."""

import json
import shutil
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import peerseal
from demo.processes import BIN, LOOPBACK, Process, environment
from peerseal.errors import EnrolmentRefused, RevokedKey
from peerseal.protocol.ledger.checkpoint import TILE_HEIGHT, TILE_WIDTH, tile_path
from peerseal.protocol.tokens.claims import new_jti
from registry.commands.operator_client import LocalOperatorClient
from registry.limits import Limits
from registry.services.authority.ledger_memory import FILE
from registry.services.keys.records import Reason
from registry.services.recovery.verify import verify
from registry.services.registry import Registry
from registry.settings import Settings
from registry.storage.queries.ledger import Change, append
from tests.support.stack import Stack
from tests.support.waiting import until

pytestmark = pytest.mark.e2e

ALLOW = {"early": {"read"}, "late": {"read"}, "newcomer": {"read"}}
PATIENCE = 20.0


class Files(SimpleHTTPRequestHandler):
    """A folder over HTTP, as any web server shows it."""

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    server = ThreadingHTTPServer((LOOPBACK, 0), partial(Files, directory=str(folder)))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://{LOOPBACK}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def keep(url: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What runs every minute on another host."""
    folder.mkdir(exist_ok=True)
    command = [str(BIN / "peerseal"), "keep-ledger", str(folder), "--once", "--registry", url]
    return subprocess.run(command, capture_output=True, encoding="utf-8", env=environment({}))


def back_up(database: Path, backup: Path) -> None:
    """Of a database that is in use."""
    with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(backup)) as target:
        source.backup(target)


def come_back(backup: Path, database: Path) -> None:
    for lost in database.parent.glob(f"{database.name}*"):
        lost.unlink()
    shutil.copy(backup, database)


def registry_of(stack: Stack) -> Registry:
    return Registry(Settings.from_environ(stack.registry_settings))


class Domain:
    """A registry, the operator's acts on it, services that join, and one that is called."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.url = stack.registry_url
        self.pin = registry_of(stack).authority.current().pin
        self.trust = peerseal.TrustStore(self.url, pin=self.pin, cache_dir=stack.root / "callee")
        self.verifier = peerseal.Verifier(self.trust, audience="callee", allow=ALLOW)

    def operator(self) -> LocalOperatorClient:
        """On the registry's own host, on the database that is there now."""
        return LocalOperatorClient(registry_of(self.stack))

    def token(self, service: str) -> str:
        return str(self.operator().create_join_token(service, 600, 1)["token"])

    def joined(self, service: str, token: str) -> peerseal.Identity:
        return peerseal.Identity(
            service, registry=self.url, join_token=token, alg="ES256", retire_at_exit=False
        ).start()

    def call(self, caller: peerseal.Identity) -> str:
        """A call that the callee verifies; which service it took the caller for."""
        token = caller.sign_request("callee", method="GET", target="/x")
        return self.verifier.verify(token, method="GET", target="/x", body=b"", headers={}, scope="read").service

    def refused(self, caller: peerseal.Identity) -> bool:
        try:
            self.call(caller)
        except RevokedKey:
            return True
        return False


def monitor(domain: Domain, known: str, state: Path) -> Process:
    options = ["--registry", domain.url, "--pin", domain.pin, "--known", known, "--state", str(state), "--json"]
    command = [str(BIN / "python"), "-m", "peerseal", "monitor", "late", "--interval", "0.1", *options]
    return domain.stack.keep(Process("monitor", command, log=domain.stack.log("monitor")))


def read_up_to(state: Path) -> int:
    return int(json.loads(state.read_bytes())["size"]) if state.exists() else 0


def restore(stack: Stack, source: str, **settings: str) -> Any:
    command = [str(BIN / "peerseal-registry"), "restore", "--from", source, "--json"]
    run = subprocess.run(command, env=environment(stack.registry_settings | settings), capture_output=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_clients_and_a_monitor_go_on_and_nothing_that_was_taken_back_is_good_again(tmp_path: Path) -> None:
    with Stack(tmp_path) as stack:
        registry = stack.start_registry(workers=1)
        domain, database = Domain(stack), tmp_path / "registry/registry.sqlite3"
        early, token = domain.joined("early", domain.token("early")), domain.token("late")
        backup, copy, state = tmp_path / "backup", tmp_path / "copy", tmp_path / "state"
        back_up(database, backup)

        late = domain.joined("late", token)
        watching = monitor(domain, late.credentials.key_id, state)
        assert [domain.call(caller) for caller in (early, late)] == ["early", "late"]
        domain.operator().end_key(early.credentials.key_id, Reason.COMPROMISED)
        until(lambda: domain.refused(early))
        assert keep(domain.url, copy).returncode == 0
        lost = int((copy / "ledger/checkpoint").read_text().split("\n")[1])
        until(lambda: read_up_to(state) == lost)
        registry.kill()

        come_back(backup, database)
        with served(copy) as mirror:
            come_back(backup, tmp_path / "elsewhere")
            over_http = restore(stack, mirror, REGISTRY_DATABASE_URL=f"sqlite:///{tmp_path / 'elsewhere'}")
        done = restore(stack, str(copy))
        assert (done["last"], done["size"], done["lost"]["evidence"]) == (lost, lost + 1, 1)
        same = done.keys() - {"source", "root", "closed_until"}  # the time of the last entry is another
        assert {name: over_http[name] for name in same} == {name: done[name] for name in same}
        stack.start_registry(workers=1)

        assert domain.call(late) == "late"
        assert domain.refused(early)
        with pytest.raises(EnrolmentRefused):
            domain.joined("late", token)
        assert domain.call(domain.joined("newcomer", domain.token("newcomer"))) == "newcomer"
        until(lambda: read_up_to(state) == lost + 3)
        told = [json.loads(line)["event"] for line in watching.output().splitlines()]
        assert told.count("registry_restored") == 1
        assert not {"inconsistent_ledger", "unknown_key"} & set(told)
        assert watching.running
        assert keep(domain.url, copy).returncode == 0, "the copy goes on, too"
        found = verify(registry_of(stack).store, Limits())
        assert (found.whole, found.unproven) == (True, 1)


def test_a_copy_is_not_replaced_by_another_history(tmp_path: Path) -> None:
    with Stack(tmp_path) as stack:
        stack.operate("init", "--trust-domain", stack.domain)
    shown, copy = tmp_path / "shown", tmp_path / "copy"
    registry = registry_of(stack)
    database = tmp_path / "registry/registry.sqlite3"
    back_up(database, tmp_path / "backup")

    def grown(entries: int) -> None:
        """The folder shows a ledger that has so many entries more."""
        changes = [Change("operator_revoked", data={"id": new_jti()}) for _ in range(entries)]
        if changes:
            with registry.store.write() as connection:
                append(connection, int(time.time()), *changes)
        head = registry.ledger.checkpoint().body.decode()
        size = int(head.split("\n")[1])
        for level, hashes in (("entries", size), (0, size), (1, size >> TILE_HEIGHT)):
            for number in range(-(-hashes // TILE_WIDTH)):
                width = min(TILE_WIDTH, hashes - TILE_WIDTH * number)
                of_level = registry.ledger.bundle if level == "entries" else partial(registry.ledger.tile, int(level))
                tile = shown / "ledger" / tile_path(level, number, width)
                tile.parent.mkdir(parents=True, exist_ok=True)
                tile.write_bytes(of_level(number, width).body)
        (shown / "ledger/checkpoint").write_text(head)
        (shown / ".well-known").mkdir(exist_ok=True)
        (shown / ".well-known/peerseal-registry").write_text(registry.authority.current().jws)

    grown(1)
    with served(shown) as url:
        for more in (0, 3, 252, 5, 0):
            grown(more)
            assert keep(url, copy).returncode == 0
        files = sorted(path.relative_to(copy).as_posix() for path in copy.rglob("[!.]*") if path.is_file())
        assert {"ledger/checkpoint", "ledger/tile/entries/000", "ledger/tile/entries/001.p/7"} <= set(files)
        kept = {path: (copy / path).read_bytes() for path in files}
        shutil.rmtree(shown)
        come_back(tmp_path / "backup", database)
        (database.parent / FILE).unlink()  # or the registry would show no other history
        registry = registry_of(stack)
        for more in (1, 261, 1):
            grown(more)
            answer = keep(url, copy)
            assert (answer.returncode, "the ledger was rewritten" in answer.stderr) == (4, True)
            assert {path: (copy / path).read_bytes() for path in files} == kept
