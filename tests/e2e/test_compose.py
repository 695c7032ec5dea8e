"""docker-compose.yml, for real: built, started, called from its own HTTPie container, and taken down."""

import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from demo.processes import ROOT

pytestmark = [pytest.mark.compose, pytest.mark.slow, pytest.mark.timeout(1500)]

Compose = Callable[..., str]


def compose_command() -> list[str]:
    """The compose program of this machine: the engine's plug-in, or the older program of its own."""
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "version"], capture_output=True).returncode != 0:
        pytest.skip("no container engine can be reached")
    if subprocess.run([docker, "compose", "version"], capture_output=True).returncode == 0:
        return [docker, "compose"]
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    pytest.skip("no docker compose")


@pytest.fixture(scope="module")
def compose() -> Iterator[Compose]:
    """A function that runs ``docker compose ARGUMENTS`` in a project of this run's own, everything in it started."""
    command = [*compose_command(), "--project-name", f"peerseal-{secrets.token_hex(4)}"]
    made = {"POSTGRES_PASSWORD": secrets.token_hex(24), "CLIENT_OPERATOR_SECRET": secrets.token_hex(24)}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [*command, *arguments], cwd=ROOT, env=os.environ | made, capture_output=True, encoding="utf-8"
        )
        assert done.returncode == 0, f"{' '.join(arguments)}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
        return done.stdout

    try:
        run("up", "--build", "--detach")
        yield run
    except AssertionError as failure:
        raise AssertionError(f"{failure}\n{run('logs', '--no-color', '--tail=60')}") from failure
    finally:
        run("down", "--volumes", "--timeout", "5")


def ask(compose: Compose, *request: str) -> Any:
    """What HTTPie gets in its container. ``--check-status``: any other answer than a 2xx fails the command."""
    return json.loads(compose("exec", "-T", "httpservice", "http", "--ignore-stdin", "--check-status", "-b", *request))


def test_public_credentials_are_shown(compose: Compose) -> None:
    credentials = ask(compose, "http://client-service/my-public-credentials")
    assert credentials["keyId"].startswith("demo.internal/client-service/")
    assert credentials.keys() == {"keyId", "publicKey"}


def test_a_call_passes_through_both_services(compose: Compose) -> None:
    profile = ask(compose, "http://client-service/profiles/1")
    assert (profile["id"], profile["caller"]) == ("1", "client-service")


def test_the_join_tokens_are_only_their_services_to_read(compose: Compose) -> None:
    listing = compose("exec", "-T", "client-service", "ls", "-ln", "/join/client-service/token", "/join")
    assert listing.splitlines()[0].startswith("-rw------- 1 10001 10001")


def test_a_service_restarts_with_the_key_that_it_has(compose: Compose) -> None:
    before = ask(compose, "http://client-service/my-public-credentials")
    compose("restart", "client-service")
    wait = (
        "until http --ignore-stdin --check-status -q http://client-service/profiles/2 2>/dev/null; do sleep 0.5; done"
    )
    compose("exec", "-T", "httpservice", "timeout", "60", "sh", "-c", wait)
    assert ask(compose, "http://client-service/my-public-credentials") == before


def test_services_run_as_nobody_special(compose: Compose) -> None:
    for service in ("registry", "client-service", "resource-service"):
        assert compose("exec", "-T", service, "id", "-u").strip() == "10001"
