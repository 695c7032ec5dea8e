"""The registry as an operator lays it out: two nodes on the cluster's database, with haproxy in front.

Each node has a home of its own with copies of the keys, and serves as ``peerseal_app``. haproxy is configured as in
deploy/haproxy-registry.cfg.
"""

import csv
import json
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import psycopg
import requests

from demo.processes import BIN, LOOPBACK, ROOT, environment, free_port, status_of
from tests.ha.cluster import Cluster, until
from tests.support.restartable import RestartableServer

DOMAIN: Final = "acme.internal"
DATABASE: Final = "registry"
NODES: Final = ("node-1", "node-2")
WORKERS: Final = 2
OWNER: Final = "peerseal_owner"
SERVES_AS: Final = "peerseal_app"
KEYS_OF_A_NODE: Final = ("signing-key.pem", "ledger-key.pem", "sealing.key")

_RECIPE: Final = ROOT / "deploy/haproxy-registry.cfg"


class Node(RestartableServer):
    """One node, under gunicorn with the registry's own configuration."""

    def __init__(self, name: str, home: Path, settings: Mapping[str, str], log: Path) -> None:
        super().__init__(name, log)
        self.port = free_port()
        self.url = f"http://{LOOPBACK}:{self.port}"
        self.settings = {"REGISTRY_HOME": str(home), **settings}
        self.name = name

    def start(self) -> None:
        """Start it and wait until it answers; it need not be ready."""
        command = [str(BIN / "gunicorn"), "registry.wsgi:app", "--config", "python:registry.gunicorn_conf"]
        command += ["--workers", str(WORKERS), "--bind", f"{LOOPBACK}:{self.port}"]
        self._run(command, self.settings)

    def ready(self, purpose: str = "") -> tuple[int | None, dict[str, Any]]:
        """Status and body of its readiness, for ``write`` or for anything; no status where it does not answer."""
        try:
            answer = requests.get(f"{self.url}/readyz", params={"for": purpose} if purpose else None, timeout=5)
        except requests.RequestException:
            return None, {}
        return answer.status_code, answer.json()

    def metric(self, name: str) -> float | None:
        """The value of a metric without labels; None where it is not told."""
        try:
            lines = requests.get(f"{self.url}/metrics", timeout=5).text.splitlines()
        except requests.RequestException:
            return None
        return next((float(line.split()[1]) for line in lines if line.startswith(f"{name} ")), None)

    def _answers(self) -> bool:
        return status_of(f"{self.url}/healthz") == 200


class Balancer(RestartableServer):
    """haproxy before the nodes."""

    def __init__(self, nodes: list[Node], folder: Path, log: Path) -> None:
        super().__init__("haproxy", log)
        self.url = f"http://{LOOPBACK}:{free_port()}"
        self._status_url = f"http://{LOOPBACK}:{free_port()}"
        places = {"10.0.0.21:8080": nodes[0].url, "10.0.0.22:8080": nodes[1].url}
        places |= {"bind :8080": f"bind {self.url}", "127.0.0.1:8404": self._status_url}
        configured = _RECIPE.read_text()
        for place, url in places.items():
            assert place in configured
            configured = configured.replace(place, url.replace("http://", ""))
        self._file = folder / "haproxy.cfg"
        self._file.write_text(configured)

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._run([shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin") or "haproxy", "-f", str(self._file)])

    def sends_to(self, backend: str) -> set[str]:
        """The names of the nodes that get calls of ``readers`` or ``writers``."""
        rows = csv.DictReader(requests.get(f"{self._status_url}/;csv", timeout=5).text.removeprefix("# ").splitlines())
        return {row["svname"] for row in rows if row["pxname"] == backend and row["status"] == "UP"} - {"BACKEND"}

    def _answers(self) -> bool:
        return status_of(self._status_url) == 200


class Deployment:
    """All of it, on a cluster that runs. As a context manager it is set up, and stopped at the end."""

    def __init__(self, cluster: Cluster, folder: Path, logs: Path) -> None:
        self._cluster = cluster
        self._folder = folder
        self._passwords = {role: secrets.token_hex(8) for role in (OWNER, SERVES_AS)}
        settings = {
            "REGISTRY_DATABASE_URL": self.database_url(SERVES_AS),
            "REGISTRY_PROXIES": "1",
            "REGISTRY_DRAIN_SECONDS": "3",  # the balancer notices within one and a half
        }
        self.nodes = [Node(name, folder / name, settings, logs / f"{name}.log") for name in NODES]
        self.balancer = Balancer(self.nodes, folder, logs / "haproxy.log")
        self.url = self.balancer.url
        self.pin = self._operator_token = ""
        self._running = ExitStack()

    def __enter__(self) -> Self:
        try:
            self._initialise()
            for server in (*self.nodes, self.balancer):
                self._running.enter_context(server)
            self.wait_until_serving()
        except BaseException:
            self._running.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.close()

    def operate(self, *arguments: str, node: int = 0, role: str = SERVES_AS, exits: Collection[int] = (0,)) -> str:
        """What ``peerseal-registry ARGUMENTS`` prints on that node, on the database as ``role``. Raises AssertionError
        where it ends with another exit code."""
        settings = self.nodes[node].settings | {"REGISTRY_DATABASE_URL": self.database_url(role)}
        command = [str(BIN / "peerseal-registry"), *arguments]
        run = subprocess.run(command, cwd=ROOT, env=environment(settings), capture_output=True, encoding="utf-8")
        assert run.returncode in exits, f"peerseal-registry {' '.join(arguments)}: exit {run.returncode}\n{run.stderr}"
        return run.stdout

    def grant(self) -> None:
        """Let the serving role use the tables that there are now."""
        with psycopg.connect(self.database_url(OWNER), autocommit=True) as connection:
            connection.execute((ROOT / "migrations/roles.sql").read_bytes())

    def join_token(self, service: str, uses: int = 1) -> str:
        """A fresh join token, made over HTTP."""
        headers = {"Authorization": f"Bearer {self._operator_token}", "Content-Type": "application/json"}
        asked = json.dumps({"service": service, "ttl": 3600, "uses": uses})
        made = requests.post(f"{self.url}/v1/join-tokens", asked, headers=headers, timeout=10)
        assert made.status_code == 201, made.text
        return str(made.json()["token"])

    def keep_ledger(self) -> Path:
        """The folder with the public ledger, copied as it is now."""
        folder = self._folder / "kept-ledger"
        command = [str(BIN / "peerseal"), "keep-ledger", str(folder), "--once"]
        subprocess.run([*command, "--registry", self.url, "--pin", self.pin], cwd=ROOT, env=environment({}), check=True)
        return folder

    def restore(self, copy: Path) -> None:
        """Put the entries that the database lost back, from a copy of the ledger, while the nodes run."""
        self.operate("restore", "--from", str(copy), role=OWNER)

    def declare_new_history(self) -> None:
        """Have the root say that what the nodes have seen is lost: on the node that has seen most, and then where the
        root key is."""
        request, statement = self._folder / "history-request", self._folder / "history-statement"
        seen = [json.loads(self.operate("status", "--json", node=node, exits=(0, 1))) for node in range(len(NODES))]
        node = max(range(len(NODES)), key=lambda number: seen[number]["remembered"]["size"])
        self.operate("history", "request", "--out", str(request), node=node)
        root_key = str(self._folder / NODES[0] / "root-key.pem")
        self.operate("history", "sign", str(request), "--root-key", root_key, "--out", str(statement))
        self.operate("history", "publish", str(statement), role=OWNER)

    def roll(self, **settings: str) -> None:
        """Restart one node after the other, with further settings, each once the one before gets calls that read."""
        for node in self.nodes:
            node.stop()
            node.settings |= settings
            node.start()
            self.wait_until_among("readers")

    def wait_until_serving(self) -> None:
        """Until both nodes get calls of both sorts."""
        self.wait_until_among("readers")
        self.wait_until_among("writers")

    def wait_until_among(self, backend: str) -> None:
        """Until both nodes get calls of that sort."""
        until(lambda: self.balancer.sends_to(backend) == set(NODES), f"both nodes are among the {backend}", patience=30)

    def seconds_until_forked(self, patience: float = 20.0) -> float:
        """How long it takes from now until both nodes say that the ledger forked."""
        began = time.monotonic()
        for node in self.nodes:
            until(lambda: node.metric("registry_ledger_forked") == 1, f"{node.name} sees the fork", patience)  # noqa: B023
        return time.monotonic() - began

    def _initialise(self) -> None:
        primary = self._cluster.wait_until_whole()
        with self._cluster.session(primary) as connection:
            connection.execute(f"CREATE DATABASE {DATABASE}".encode())
        with self._cluster.session(primary, DATABASE) as connection:
            connection.execute((ROOT / "migrations/roles.sql").read_bytes())
            for role, password in self._passwords.items():
                connection.execute(f"ALTER ROLE {role} PASSWORD '{password}'".encode())
        made = self.operate("init", "--trust-domain", DOMAIN, "--json", role=OWNER)
        self.pin = json.loads(made)["pin"]
        self.grant()
        self._operator_token = (self._folder / NODES[0] / "operator-token").read_text().strip()
        first, *others = (self._folder / name for name in NODES)
        for home in others:
            home.mkdir(mode=0o700)
            for name in KEYS_OF_A_NODE:
                shutil.copy2(first / name, home / name)

    def database_url(self, role: str) -> str:
        """The database as ``role`` reaches it."""
        return self._cluster.url(role, self._passwords[role], DATABASE)
