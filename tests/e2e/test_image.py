"""The registry's image by itself, as docs/how-to/operations.md runs it: SQLite in a volume, under several user ids."""

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import requests

import peerseal
from tests.support.brokers import eventually
from tests.support.containers import crash, inspected, need_engine, run, serves

pytestmark = [pytest.mark.compose, pytest.mark.slow, pytest.mark.timeout(900)]

IMAGE = "peerseal-registry:local"
HARDENED = ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
USERS = {"its own": (), "one of group 0": ("--user", "12345:0"), "a number alone": ("--user", "1000660000")}
"""The user that the image names, and those of a platform that chooses one."""


@pytest.fixture(scope="module")
def image() -> str:
    need_engine()
    run("make", "image")
    return IMAGE


@pytest.fixture
def volumes() -> Iterator[tuple[str, str]]:
    """Fresh ones for the registry's home and for its root key."""
    need_engine()
    home, root = (run("docker", "volume", "create", f"peerseal-{uuid.uuid4().hex[:8]}").strip() for _ in range(2))
    yield home, root
    run("docker", "volume", "rm", home, root)


@pytest.fixture(params=USERS)
def registry(request: pytest.FixtureRequest, image: str, volumes: tuple[str, str]) -> Iterator[str]:
    """A container that serves, from a volume that another one initialised."""
    home, root = volumes
    options = (*USERS[request.param], *HARDENED, "--volume", f"{home}:/var/lib/peerseal")
    init = ("peerseal-registry", "init", "--trust-domain", "acme.internal", "--root-key-out", "/root-key/root-key.pem")
    run("docker", "run", "--rm", *options, "--volume", f"{root}:/root-key", image, *init)
    serving = ("--detach", "--restart", "unless-stopped", "--publish", "127.0.0.1::8080")
    container = run("docker", "run", *serving, *options, image).strip()
    try:
        eventually(lambda: serves(state(container)), "the image's own health check passes", within=60)
        yield container
    except AssertionError as failure:
        raise AssertionError(f"{failure}\n{run('docker', 'logs', container)}") from failure
    finally:
        run("docker", "rm", "--force", container)


def state(container: str) -> Any:
    """What the engine says of it."""
    return inspected(container)[0]


def url(container: str) -> str:
    """Where it answers. Another port each time that it starts."""
    return f"http://{run('docker', 'port', container, '8080/tcp').split()[0]}"


def is_ready(container: str) -> bool:
    """Whether it can answer calls, asked from outside."""
    try:
        return requests.get(f"{url(container)}/readyz", timeout=5).status_code == 200
    except (requests.ConnectionError, AssertionError, IndexError):
        return False


def test_a_service_joins_and_is_known_after_a_crash(registry: str) -> None:
    token = run("docker", "exec", registry, "peerseal-registry", "join-token", "create", "billing").strip()
    billing = peerseal.Identity("billing", registry=url(registry), join_token=token, retire_at_exit=False).start()
    kid = billing.credentials.key_id
    billing.stop()
    before = state(registry)
    crash(before)
    eventually(
        lambda: is_ready(registry) and state(registry)["State"]["Pid"] != before["State"]["Pid"],
        "it is started again",
        within=60,
    )
    listed = requests.get(f"{url(registry)}/v1/services/billing/jwks.json", timeout=5).json()
    assert [key["kid"] for key in listed["keys"]] == [kid]


def test_it_names_a_user_by_number_and_a_port_that_needs_no_privilege(image: str) -> None:
    (config,) = json.loads(run("docker", "image", "inspect", "--format", "[{{json .Config}}]", image))
    assert config["User"] == "10001:0"
    assert config["ExposedPorts"] == {"8080/tcp": {}}


def test_it_holds_no_example_and_nothing_of_the_demo(image: str) -> None:
    names = "client_service", "resource_service", "demo", "tests", "httpie", "confluent_kafka"
    find = f"from importlib.util import find_spec; print([name for name in {names} if find_spec(name)])"
    assert run("docker", "run", "--rm", image, "python3", "-c", find).strip() == "[]"


def test_only_root_and_group_0_can_write_its_folders(image: str) -> None:
    shown = run("docker", "run", "--rm", image, "stat", "--format", "%a %u:%g %n", "/var/lib/peerseal", "/root-key")
    assert shown.splitlines() == ["770 0:0 /var/lib/peerseal", "770 0:0 /root-key"]
