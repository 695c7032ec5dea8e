"""The chart's own commands, as real processes on PostgreSQL: init, migrate, nodes, monitor and mirror.

The volumes are laid out as a kubelet does; the keys are made as docs/how-to/kubernetes.md says. In containers:
e2e/test_chart_in_containers.
"""

import json
import os
import signal
import ssl
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from sqlalchemy import make_url

import peerseal
from peerseal.protocol.join import JoinToken
from tests.support.balancer import Balancer
from tests.support.certificates import Authority
from tests.support.issuer import Issuer, running_issuer
from tests.support.pods import Contents, Pod, config_maps, named, write_mounted
from tests.support.postgres import Postgres
from tests.support.processes import Process, Server
from tests.support.revoked import is_revoked
from tests.support.stack import Stack
from tests.support.traffic import Traffic, Watcher
from tests.support.waiting import until
from tools.chart import ROOT, rendered

NAME = "peerseal-registry"
DOMAIN = "acme.internal"
SHORT = ("--set=drain.preStopSeconds=1", "--set=drain.seconds=2", "--set=workers=1")
ACCOUNT = "system:serviceaccount:shop:billing"
KEYS = ("signing-key.pem", "ledger-key.pem", "sealing.key")


class Cluster:
    """A release of the chart: Secrets, a database with its roles, the cluster's authority and issuer, and pods that are
    started here."""

    def __init__(self, stack: Stack, postgres: Postgres, authority: Authority, issuer: Issuer) -> None:
        self.stack, self.authority, self.issuer = stack, authority, issuer
        stack.operate("init", "--keys-only")
        self.home = Path(stack.registry_settings["REGISTRY_HOME"])
        self.url = postgres.new_database()
        stack.registry_settings["REGISTRY_DATABASE_URL"] = self.url  # what people type works as a superuser
        stack.operate("roles", "--apply")
        self.secrets: Contents = {
            "peerseal-registry-keys": {name: (self.home / name).read_text() for name in KEYS},
            "peerseal-registry-root": {"root-key.pem": (self.home / "root-key.pem").read_text()},
            "peerseal-registry-database": {"url": self.url_of("peerseal_app")},
            "peerseal-registry-owner": {"url": self.url_of("peerseal_owner")},
        }
        self._pods = 0
        self.objects = self.rendered()

    def url_of(self, role: str) -> str:
        return make_url(self.url).set(username=role).render_as_string(hide_password=False)

    def rendered(self, *options: str) -> list[dict[str, Any]]:
        account = "--set=serviceAccounts.services.shop/billing=billing"
        issuer = f"--set=serviceAccounts.issuer={self.issuer.url}"
        return rendered(ROOT / "tests/chart/values/small.yaml", *SHORT, account, issuer, *options)

    def pod(self, kind: str, name: str, objects: list[dict[str, Any]] | None = None) -> Pod:
        """A new pod of that Deployment or Job."""
        self._pods += 1
        found = objects or self.objects
        contents = {**config_maps(found), "kube-root-ca.crt": {"ca.crt": self.authority.file.read_text()}}
        template = named(found, kind, name)["spec"]["template"]
        return Pod(template, self.stack.root / f"pod-{self._pods}", self.secrets, contents)

    def run_job(self, name: str) -> str:
        """What the containers of a Job print, one after the other."""
        pod = self.pod("Job", f"{NAME}-{name}")
        return "".join(finished(self.stack, pod, container) for container in pod.containers)

    def start_node(self) -> "Node":
        return Node(self.stack, self.pod("Deployment", NAME))


def finished(stack: Stack, pod: Pod, container: str) -> str:
    """What a container prints that ends by itself, with 0."""
    process = Process(
        container,
        pod.process_command(container),
        log=stack.root / f"{pod.folder.name}-{container}.log",
        settings=pod.process_settings(container),
    )
    with process:
        until(lambda: not process.running, 100)
    assert process.exit_code == 0, process.output()
    return process.output()


class Node:
    """A running pod of the registry."""

    def __init__(self, stack: Stack, pod: Pod) -> None:
        self.pod, self.url, self.metrics = pod, pod.url(8080), pod.url(9090)
        command, settings = pod.process_command("registry"), pod.process_settings("registry")
        log = stack.log(pod.folder.name)
        self.process = stack.keep(Server("registry", command, url=self.url, log=log, settings=settings))
        (self.container,) = pod.spec["containers"]
        self.process.wait_until_answers(self.url + self.container["startupProbe"]["httpGet"]["path"])

    def ready(self) -> "Node":
        """The same, once its readiness probe passes."""
        self.process.wait_until_answers(self.url + self.container["readinessProbe"]["httpGet"]["path"])
        return self

    def remove(self) -> None:
        """What a kubelet does to a pod that is deleted: preStop, SIGTERM, and SIGKILL at the end of the grace period,
        which must not be needed."""
        before_stop = self.container["lifecycle"]["preStop"]["exec"]["command"]
        began = time.monotonic()
        subprocess.run(before_stop, check=True)
        os.kill(self.process.pid, signal.SIGTERM)
        until(lambda: not self.process.running, self.pod.spec["terminationGracePeriodSeconds"])
        assert time.monotonic() - began >= 3  # preStop and drain
        assert self.process.exit_code == 0


@contextmanager
def a_cluster(postgres: Postgres, folder: Path) -> Iterator[Cluster]:
    """A cluster in which no Job has run."""
    authority = Authority.make(folder, "cluster")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*authority.issue("api-server", server=True))
    with Stack(folder) as stack, running_issuer(tls=tls) as issuer:
        yield Cluster(stack, postgres, authority, issuer)


@pytest.fixture(scope="module")
def cluster(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A release that is installed: its init Job has run."""
    with a_cluster(postgres, tmp_path_factory.mktemp("cluster")) as found:
        printed = found.run_job("init")
        pin = found.stack.operate_json("init")["pin"]
        assert f"root pin: {pin}" in printed
        assert printed.endswith("privileges granted\n")
        yield found


@pytest.fixture(scope="module")
def node(cluster: Cluster) -> Node:
    return cluster.start_node().ready()


def test_init_may_run_again_and_makes_nothing(cluster: Cluster) -> None:
    assert "made: " not in cluster.run_job("init")


def test_a_pod_that_starts_before_init_is_ready_after_it(postgres: Postgres, tmp_path: Path) -> None:
    with a_cluster(postgres, tmp_path) as empty:
        node = empty.start_node()
        assert requests.get(f"{node.url}/readyz", timeout=20).status_code == 503
        empty.run_job("init")
        node.ready()


def test_a_node_serves_and_writes_as_a_role_that_owns_nothing(cluster: Cluster, node: Node) -> None:
    ready = requests.get(f"{node.url}/readyz?for=write", timeout=20)
    assert (ready.status_code, ready.json()["schema"]) == (200, True)
    assert "peerseal_app" in node.pod.secrets["peerseal-registry-database"]["url"]


def test_metrics_are_answered_at_their_own_port_only(node: Node) -> None:
    assert requests.get(f"{node.url}/metrics", timeout=20).status_code == 404
    found = requests.get(f"{node.metrics}/metrics", timeout=20)
    assert "registry_waiting_calls 0.0" in found.text


def test_a_node_serves_tls_with_the_certificate_of_a_secret(cluster: Cluster) -> None:
    certificate, key = (file.read_text() for file in cluster.authority.issue("registry", server=True))
    cluster.secrets = {**cluster.secrets, "registry-tls": {"tls.crt": certificate, "tls.key": key}}
    pod = cluster.pod("Deployment", NAME, cluster.rendered("--set=tls.secret=registry-tls"))
    command, settings = pod.process_command("registry"), pod.process_settings("registry")
    url = pod.url(8080).replace("http:", "https:")
    with Server("registry", command, url=url, log=cluster.stack.log("tls"), settings=settings) as server:
        server.wait_until_prints("Booting worker")
        until(lambda: answers(f"{url}/healthz", cluster.authority.file), 60)


def answers(url: str, authority: Path) -> bool:
    try:
        return requests.get(url, verify=str(authority), timeout=20).status_code == 200
    except requests.ConnectionError:
        return False


def test_a_pod_joins_by_its_service_account(cluster: Cluster, node: Node, tmp_path: Path) -> None:
    token = cluster.issuer.token(ACCOUNT, [f"{DOMAIN}/registry"])
    billing = peerseal.Identity("billing", registry=node.url, oidc_token=token, key_dir=tmp_path, alg="ES256").start()
    try:
        listed = requests.get(f"{node.url}/v1/services/billing/jwks.json", timeout=20).json()["keys"]
        assert billing.credentials.key_id in [key["kid"] for key in listed]
    finally:
        billing.stop()


def test_the_migration_of_an_upgrade_leaves_nodes_ready(cluster: Cluster, node: Node) -> None:
    printed = cluster.run_job("migrate")
    assert printed.startswith("schema revision: ")
    assert printed.endswith("privileges granted\n")
    assert requests.get(f"{node.url}/readyz?for=write", timeout=20).status_code == 200


def test_nodes_take_over_a_signing_key_that_is_exchanged_in_the_secret(cluster: Cluster, node: Node) -> None:
    before = keys_of(node)
    cluster.stack.operate("root", "roll", "signing")
    keys = {name: (cluster.home / name).read_text() for name in KEYS}
    write_mounted(node.pod.volumes["keys"], keys, node.pod.group)
    cluster.secrets = {**cluster.secrets, "peerseal-registry-keys": keys}
    until(lambda: len(keys_of(node)) == 2 and keys_of(node)[0] not in before, 60)
    assert requests.get(f"{node.url}/readyz?for=write", timeout=20).status_code == 200


def keys_of(node: Node) -> list[str]:
    return [key["kid"] for key in requests.get(f"{node.url}/.well-known/jwks.json", timeout=20).json()["keys"]]


def test_the_monitor_reports_a_key_that_the_owner_does_not_know(cluster: Cluster, node: Node, tmp_path: Path) -> None:
    pin = cluster.stack.operate_json("init")["pin"]
    options = (
        f"--set=monitor.registryUrl={node.url}",
        f"--set=monitor.pin={pin}",
        "--set-json=monitor.services.shop={}",
    )
    pod = cluster.pod("Deployment", f"{NAME}-monitor-shop", cluster.rendered(*options))
    command, settings = pod.process_command("monitor"), pod.process_settings("monitor")
    watching = cluster.stack.keep(Process("monitor", command, log=cluster.stack.log("monitor"), settings=settings))
    token = cluster.stack.operate("join-token", "create", "shop").strip()
    shop = peerseal.Identity("shop", registry=node.url, join_token=token, key_dir=tmp_path, alg="ES256").start()
    shop.stop()
    reported = json.loads(watching.wait_until_prints("unknown_key"))
    assert shop.credentials.key_id in json.dumps(reported)
    watching.stop()


def test_a_mirror_is_ready_when_it_is_complete_and_tells_its_peers_of_a_revocation(
    cluster: Cluster, node: Node, tmp_path: Path
) -> None:
    token = cluster.stack.operate("join-token", "create", "mirrored").strip()
    joined = peerseal.Identity("mirrored", registry=node.url, join_token=token, key_dir=tmp_path, alg="ES256").start()
    pin, kid = cluster.stack.operate_json("init")["pin"], joined.credentials.key_id
    joined.stop()
    options = (f"--set=mirror.registryUrl={node.url}", f"--set=mirror.pin={pin}", "--set=mirror.enabled=true")
    pod = cluster.pod("Deployment", f"{NAME}-mirror", cluster.rendered(*options))
    command, settings, url = pod.process_command("mirror"), pod.process_settings("mirror"), pod.url(8080)
    mirror = cluster.stack.keep(Process("mirror", command, log=cluster.stack.log("mirror"), settings=settings))
    mirror.wait_until_answers(url + pod.containers["mirror"]["readinessProbe"]["httpGet"]["path"])
    assert "peerseal_mirror_waiting_calls_limit 1000" in requests.get(f"{url}/metrics", timeout=20).text
    trust = peerseal.TrustStore(url, pin=pin)
    assert trust.key(kid).kid == kid
    cluster.stack.operate("revoke", kid)
    until(lambda: is_revoked(trust, kid))
    trust.stop()
    mirror.stop()


def test_no_call_fails_while_every_pod_is_replaced_one_by_one(cluster: Cluster) -> None:
    token = JoinToken.parse(cluster.stack.operate("join-token", "create", "billing", "--uses", "1000").strip())
    old = [cluster.start_node().ready() for _ in range(2)]
    new = [cluster.pod("Deployment", NAME) for _ in old]
    with Balancer([*(each.url for each in old), *(pod.url(8080) for pod in new)]) as balancer:
        until(lambda: balancer.ready == 2)
        with Traffic(balancer.url, DOMAIN, "billing", token) as traffic:
            for number, pod in enumerate(new):  # at most one pod more than wanted, and none less
                Node(cluster.stack, pod).ready()
                until(lambda: balancer.ready == 3)
                old[number].remove()
                until(lambda: balancer.ready == 2)
                traffic.goes_on()
    assert traffic.failed == {}


def test_a_call_that_waits_is_answered_by_a_pod_that_is_removed(cluster: Cluster) -> None:
    node = cluster.start_node().ready()
    watcher = Watcher(node.url, wait=20)
    with requests.Session() as session, ThreadPoolExecutor(1) as pool:
        watcher.ask(session)
        waiting = pool.submit(watcher.ask, session)
        until(lambda: "registry_waiting_calls 1.0" in requests.get(f"{node.metrics}/metrics", timeout=20).text)
        node.remove()
        assert waiting.result(20).status_code == 200
