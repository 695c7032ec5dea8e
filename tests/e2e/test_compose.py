"""docker-compose.yml, for real: built, started, called from its own HTTPie container, and taken down."""

import json
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from demo.processes import ROOT

pytestmark = [pytest.mark.compose, pytest.mark.slow, pytest.mark.timeout(1500)]

Compose = Callable[..., str]

PASSWORD = secrets.token_hex(24)


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
    made = {name: secrets.token_hex(24) for name in ("POSTGRES_PASSWORD", "CLIENT_OPERATOR_SECRET")}
    made |= {"CLIENT_DEMO_PASSWORD": PASSWORD}

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


def as_user(compose: Compose, user: str) -> str:
    """HTTPie's argument for a fresh login."""
    login = ask(compose, "POST", "http://client-service/authenticate", f"user={user}", f"password={PASSWORD}")
    return f"Authorization:Bearer {login['access_token']}"


def invoices_of(compose: Compose, user: str, count: int) -> list[Any]:
    """The user's invoices, once there are so many."""
    token, deadline = as_user(compose, user), time.monotonic() + 60
    while len(found := ask(compose, "http://client-service/invoices", token)["invoices"]) < count:
        assert time.monotonic() < deadline, compose("logs", "--no-color", "--tail=40", "invoicing", "client-service")
        time.sleep(0.5)
    return list(found)


def test_public_credentials_are_shown(compose: Compose) -> None:
    credentials = ask(compose, "http://client-service/my-public-credentials")
    assert credentials["keyId"].startswith("demo.internal/client-service/")
    assert credentials.keys() == {"keyId", "publicKey"}


def test_a_call_passes_through_both_services(compose: Compose) -> None:
    profile = ask(compose, "http://client-service/profiles/1")
    assert (profile["id"], profile["caller"]) == ("1", "client-service")


def test_an_order_becomes_an_invoice(compose: Compose) -> None:
    ada = as_user(compose, "ada")
    items = 'items:=[{"itemID": "slide-rule", "quantity": 2}]'
    placed = ask(compose, "POST", "http://client-service/orders", ada, items)
    (invoice,) = invoices_of(compose, "ada", 1)
    assert invoice["transactionID"] == placed["transactionID"]
    assert (invoice["userID"], invoice["amount"]) == ("ada", 9800)


def test_an_order_is_taken_while_kafka_is_down(compose: Compose) -> None:
    compose("stop", "--timeout", "10", "kafka")
    items = 'items:=[{"itemID": "pen", "quantity": 1}]'
    ask(compose, "POST", "http://client-service/orders", as_user(compose, "grace"), items)
    compose("start", "kafka")
    assert [invoice["amount"] for invoice in invoices_of(compose, "grace", 1)] == [250]


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
    for service in ("registry", "client-service", "resource-service", "invoicing"):
        assert compose("exec", "-T", service, "id", "-u").strip() == "10001"
