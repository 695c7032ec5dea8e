"""A lagging replica is promoted: two nodes and several watching peers, in real processes, on PostgreSQL."""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from sqlalchemy import make_url

import peerseal
from demo.processes import BIN, Server, environment, free_port, gunicorn
from peerseal.errors import PeersealError
from peerseal.protocol.tokens.claims import new_jti
from registry.commands.operator_client import LocalOperatorClient
from registry.services.registry import Registry
from registry.settings import Settings
from tests.support.postgres import Postgres
from tests.support.stack import Stack
from tests.support.waiting import until

pytestmark = pytest.mark.e2e

PEERS = 4
NOTICED_WITHIN = 2.0
"""Seconds from the promotion until every node has logged the fork, with no call but those of peers."""
COMES_BACK_WITHIN = 30.0
"""Seconds from a recovery until nodes sign and peers believe again."""


class Cluster:
    """A primary, and a replica that holds what the primary had at `replicate`."""

    def __init__(self, postgres: Postgres) -> None:
        self._postgres = postgres
        self.url = postgres.new_database()
        self._name = str(make_url(self.url).database)
        self._replica, self._former = (f"test_{new_jti()[:16].lower().replace('-', '_')}" for _ in range(2))

    def _alone(self, *statements: str) -> None:
        """While no node is connected. They connect again by themselves."""
        self._postgres.execute(f'ALTER DATABASE "{self._name}" WITH ALLOW_CONNECTIONS false')
        self._postgres.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{self._name}'")
        time.sleep(0.2)
        for statement in statements:
            self._postgres.execute(statement)

    def replicate(self) -> None:
        self._alone(
            f'CREATE DATABASE "{self._replica}" TEMPLATE "{self._name}"',
            f'ALTER DATABASE "{self._name}" WITH ALLOW_CONNECTIONS true',
        )

    def promote(self) -> None:
        """The replica stands where the primary was."""
        self._alone(
            f'ALTER DATABASE "{self._name}" RENAME TO "{self._former}"',
            f'ALTER DATABASE "{self._replica}" RENAME TO "{self._name}"',
            f'ALTER DATABASE "{self._name}" WITH ALLOW_CONNECTIONS true',
        )


class Domain:
    """Two nodes, and peers that know both."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.nodes = [stack.start_registry(workers=1), self._second_node()]
        self.registry = Registry(Settings.from_environ(stack.registry_settings))
        self.pin = self.registry.authority.in_force().pin
        self.urls = ",".join(node.url for node in self.nodes)
        self.peers = [self._peer(number) for number in range(PEERS)]

    def _second_node(self) -> Server:
        home = self.stack.root / "registry-2"
        home.mkdir()
        for file in Path(self.stack.registry_settings["REGISTRY_HOME"]).iterdir():
            if file.suffix in (".pem", ".key"):
                (home / file.name).write_bytes(file.read_bytes())
                (home / file.name).chmod(0o600)
        settings = self.stack.registry_settings | {"REGISTRY_HOME": str(home)}
        options: dict[str, Any] = {"port": free_port(), "workers": 1, "config": "python:registry.gunicorn_conf"}
        log = self.stack.log("registry-2")
        node = gunicorn("registry-2", "registry.wsgi:app", log=log, settings=settings, **options)
        return self.stack.keep(node).wait_until_answers(f"{node.url}/readyz")

    def _peer(self, number: int) -> peerseal.TrustStore:
        return peerseal.TrustStore(self.urls, pin=self.pin, cache_dir=self.stack.root / f"peer-{number}")

    def joined(self, service: str) -> str:
        """The kid of a service that registers over HTTP."""
        token = str(LocalOperatorClient(self.registry).create_join_token(service, 600, 1)["token"])
        options: dict[str, Any] = {"join_token": token, "alg": "ES256", "retire_at_exit": False}
        identity = peerseal.Identity(service, registry=self.nodes[0].url, **options).start()
        kid = identity.credentials.key_id
        identity.stop()
        return kid

    def believed_by(self, kid: str) -> int:
        """How many peers take the key for good."""
        return sum(self._believes(peer, kid) for peer in self.peers)

    @staticmethod
    def _believes(peer: peerseal.TrustStore, kid: str) -> bool:
        try:
            peer.key(kid)
        except PeersealError:
            return False
        return True

    def noticed(self) -> bool:
        """Whether every node has logged the fork. To ask for readiness or metrics would have it look."""
        return all("LEDGER FORKED" in node.output() for node in self.nodes)

    def forked(self) -> list[bool]:
        """What each node says of itself."""
        return [
            requests.get(f"{node.url}/readyz", timeout=5).json()["ledger"] is False
            and "registry_ledger_forked 1.0" in requests.get(f"{node.url}/metrics", timeout=5).text
            for node in self.nodes
        ]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(BIN / "peerseal-registry"), *arguments]
        settings = environment(self.stack.registry_settings)
        return subprocess.run(command, env=settings, capture_output=True, encoding="utf-8")


@pytest.fixture
def cluster(postgres: Postgres) -> Cluster:
    return Cluster(postgres)


@pytest.fixture
def domain(cluster: Cluster, tmp_path: Path) -> Iterator[Domain]:
    with Stack(tmp_path, database_url=cluster.url) as stack:
        domain = Domain(stack)
        yield domain
        for peer in domain.peers:
            peer.stop()


def entries_in(domain: Domain) -> int:
    told = requests.get(f"{domain.nodes[0].url}/metrics", timeout=5).text
    [size] = re.findall(r"^registry_ledger_size (\S+)$", told, re.MULTILINE)
    return int(float(size))


def fork(domain: Domain, cluster: Cluster) -> tuple[str, str]:
    """The kids of a service that the replica knows, and of one that it does not; all peers have seen both."""
    before = domain.joined("before")
    cluster.replicate()
    until(lambda: domain.believed_by(before) == PEERS)
    late = domain.joined("late")
    until(lambda: domain.believed_by(late) == PEERS)
    time.sleep(1.5)  # each node has written down what it signed
    cluster.promote()
    return before, late


def test_both_nodes_notice_and_peers_come_back_once_the_root_says_where_it_goes_on(
    domain: Domain, cluster: Cluster
) -> None:
    fork(domain, cluster)
    until(domain.noticed, NOTICED_WITHIN)
    assert domain.forked() == [True, True]
    size = entries_in(domain)
    for node in domain.nodes:
        assert requests.get(f"{node.url}/v1/changes?since=1", timeout=5).json()["code"] == "ledger_contradicted"
        log = node.output()
        assert log.count("LEDGER FORKED") == 1, "said once"
    with pytest.raises(PeersealError):
        domain.joined("branch")
    assert entries_in(domain) == size, "nothing was appended"
    status = domain.run("status", "--json")
    assert (status.returncode, json.loads(status.stdout)["state"]) == (1, "forked")

    declared = domain.run("history", "declare")
    assert declared.returncode == 0, declared.stderr
    until(lambda: not any(domain.forked()), COMES_BACK_WITHIN)
    newcomer = domain.joined("newcomer")
    until(lambda: domain.believed_by(newcomer) == PEERS, COMES_BACK_WITHIN)
    assert domain.run("status").returncode == 0
    assert domain.run("verify").returncode == 0


def test_peers_come_back_when_the_lost_entries_do(domain: Domain, cluster: Cluster) -> None:
    copy = domain.stack.root / "copy"
    copy.mkdir()
    before = domain.joined("before")
    cluster.replicate()
    until(lambda: domain.believed_by(before) == PEERS)
    late = domain.joined("late")
    until(lambda: domain.believed_by(late) == PEERS)
    time.sleep(1.5)
    keep = [str(BIN / "peerseal"), "keep-ledger", str(copy), "--once", "--registry", domain.nodes[0].url]
    subprocess.run([*keep, "--pin", domain.pin], check=True, env=environment({}))
    cluster.promote()
    until(domain.noticed, NOTICED_WITHIN)
    restored = domain.run("restore", "--from", str(copy), "--json")
    assert restored.returncode == 0, restored.stderr
    until(lambda: not any(domain.forked()), COMES_BACK_WITHIN)
    newcomer = domain.joined("newcomer")
    until(lambda: domain.believed_by(newcomer) == domain.believed_by(late) == PEERS, COMES_BACK_WITHIN)
    assert domain.run("verify").returncode == 0
