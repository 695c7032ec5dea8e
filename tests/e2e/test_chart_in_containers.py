"""The chart's own commands in containers of the registry's image, bounded as its pods are: install, upgrade, drain."""

import os
import subprocess
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from demo.processes import ROOT
from tests.support.brokers import eventually
from tests.support.containers import inspected, need_engine, run
from tests.support.helm import need_helm
from tests.support.pods import Contents, Pod, config_maps, named
from tests.support.traffic import Watcher
from tools.chart import rendered

pytestmark = [pytest.mark.compose, pytest.mark.slow, pytest.mark.timeout(900)]

NAME = IMAGE = "peerseal-registry"
LOCAL = f"{IMAGE}:local"
KEYS = ("signing-key.pem", "ledger-key.pem", "sealing.key", "root-key.pem")
PASSWORD = "only-in-this-test"
ROLES = "".join(f"ALTER ROLE peerseal_{role} PASSWORD '{PASSWORD}';" for role in ("owner", "app"))


class Release:
    """A release of the chart on one network of the engine, with a PostgreSQL of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.network = run("docker", "network", "create", f"peerseal-{uuid.uuid4().hex[:8]}").strip()
        self.containers: list[str] = []
        self.objects = rendered(ROOT / "tests/chart/values/small.yaml", "--set=drain.seconds=2")

    def start_postgres(self) -> None:
        """With the roles of migrations/roles.sql, as a person makes them."""
        options = (
            "--network-alias",
            "postgres",
            "--env",
            f"POSTGRES_PASSWORD={PASSWORD}",
            "--env",
            "POSTGRES_DB=peerseal",
        )
        script = ("--volume", f"{ROOT / 'migrations/roles.sql'}:/roles.sql:ro")
        self.postgres = self.start("docker", "run", *options, "--env", "LANG=C.UTF-8", *script, "postgres:17")
        eventually(lambda: self.psql("--command", "SELECT 1"), "PostgreSQL answers over TCP", within=120)
        assert self.psql("--file", "/roles.sql")
        assert self.psql("--command", ROLES)

    def psql(self, *arguments: str) -> bool:
        """Whether psql ends with 0, as the superuser."""
        command = ("psql", "--host", "127.0.0.1", "--username", "postgres", "--dbname", "peerseal", *arguments)
        secret = ("--env", f"PGPASSWORD={PASSWORD}")
        return subprocess.run(["docker", "exec", *secret, self.postgres, *command], capture_output=True).returncode == 0

    def start(self, docker: str, command: str, *options: str) -> str:
        """A container that runs on, until the release is removed."""
        container = run(docker, command, "--detach", "--network", self.network, *options).strip()
        self.containers.append(container)
        return container

    def secrets(self) -> Contents:
        """With keys from ``init --keys-only`` in a container."""
        made = self.folder / "made"
        made.mkdir()
        settings = ("--env", "REGISTRY_HOME=/made", "--user", f"{os.getuid()}:{os.getgid()}")
        run("docker", "run", "--rm", *settings, "--volume", f"{made}:/made", LOCAL, NAME, "init", "--keys-only")
        keys = {name: (made / name).read_text() for name in KEYS}
        urls = {role: f"postgresql://peerseal_{role}:{PASSWORD}@postgres/peerseal" for role in ("owner", "app")}
        return {
            "peerseal-registry-keys": keys,
            "peerseal-registry-root": keys,
            "peerseal-registry-database": {"url": urls["app"]},
            "peerseal-registry-owner": {"url": urls["owner"]},
        }

    def pod(self, kind: str, name: str, secrets: Contents) -> Pod:
        folder = self.folder / f"{kind}-{name}"
        return Pod(named(self.objects, kind, name)["spec"]["template"], folder, secrets, config_maps(self.objects))

    def run_job(self, name: str, secrets: Contents) -> str:
        """What the containers of a Job print, one after the other."""
        pod = self.pod("Job", f"{NAME}-{name}", secrets)
        options = ("--rm", "--network", self.network)
        return "".join(run(*pod.docker_command(each, *options, image=LOCAL)) for each in pod.containers)

    def remove(self) -> None:
        for container in self.containers:
            run("docker", "rm", "--force", "--volumes", container)
        run("docker", "network", "rm", self.network)


@pytest.fixture
def release(tmp_path: Path) -> Iterator[Release]:
    need_engine()
    need_helm()
    run("make", "image")
    found = Release(tmp_path)
    try:
        yield found
    finally:
        found.remove()


def test_a_release_is_installed_upgraded_and_drained(release: Release) -> None:
    release.start_postgres()
    secrets = release.secrets()
    assert release.run_job("init", secrets).endswith("privileges granted\n")
    pod = release.pod("Deployment", NAME, secrets)
    published = ("--publish", "127.0.0.1::8080", "--publish", "127.0.0.1::9090")
    docker, command, *rest = pod.docker_command("registry", *published, image=LOCAL)
    node = release.start(docker, command, *rest)
    url, metrics = (f"http://{run('docker', 'port', node, f'{port}/tcp').split()[0]}" for port in (8080, 9090))
    eventually(lambda: answers(f"{url}/readyz?for=write"), "the node is ready", within=60)
    assert release.run_job("migrate", secrets).endswith("privileges granted\n")
    assert answers(f"{url}/readyz?for=write")
    assert not answers(f"{url}/metrics")
    watcher = Watcher(url, wait=20)
    with requests.Session() as session, ThreadPoolExecutor(1) as pool:
        watcher.ask(session)
        waiting = pool.submit(watcher.ask, session)
        eventually(lambda: "registry_waiting_calls 1.0" in text(f"{metrics}/metrics"), "the call waits", within=20)
        (container,) = pod.spec["containers"]
        run("docker", "exec", node, *container["lifecycle"]["preStop"]["exec"]["command"])
        run("docker", "stop", "-t", str(pod.spec["terminationGracePeriodSeconds"]), node)
        assert waiting.result(30).status_code == 200
    assert inspected(node)[0]["State"]["ExitCode"] == 0, run("docker", "logs", node)


def answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=20).status_code == 200
    except requests.ConnectionError:
        return False


def text(url: str) -> str:
    return requests.get(url, timeout=20).text
