"""An applicant gets in, with real processes on either database: the registry, the operator's command, the service."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from demo.processes import BIN, ROOT, environment
from peerseal.transport.fetch import HttpFetcher
from tests.support.processes import Process
from tests.support.stack import Stack

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SERVICE = """
import sys
from peerseal import Identity
identity = Identity.from_env()
identity.start(timeout=60)
print("runs with", identity.credentials.key_id, flush=True)
sys.stdin.read()
identity.stop()
"""


def until(found: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 30
    while not (value := found()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return value


def operate(stack: Stack, *arguments: str) -> str:
    """``peerseal-registry ARGUMENTS --url …`` with the first operator's token, and no database at hand."""
    token = (stack.root / "registry" / "operator-token").read_text().strip()
    command = [str(BIN / "peerseal-registry"), *arguments, "--url", stack.registry_url]
    settings = environment({"PEERSEAL_OPERATOR_TOKEN": token, "REGISTRY_HOME": "/nonexistent"})
    run = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, encoding="utf-8")
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_a_service_starts_pending_and_runs_once_an_operator_approves_it(stack: Stack, tmp_path: Path) -> None:
    stack.registry_settings["REGISTRY_APPLICANTS"] = "on"
    stack.start_registry()
    pin = stack.operate_json("init")["pin"]
    settings = {
        "PEERSEAL_SERVICE": "billing",
        "PEERSEAL_REGISTRY_URL": stack.registry_url,
        "PEERSEAL_REGISTRY_PIN": pin,
        "PEERSEAL_KEY_DIR": str(tmp_path / "keys"),
        "PYTHONPATH": os.fspath(ROOT),
    }
    service = Process("billing", [sys.executable, "-c", SERVICE], log=stack.log("billing"), settings=settings)
    with service:
        listing = until(lambda: [line for line in operate(stack, "keys", "--pending").splitlines()[1:] if line])
        kid = listing[0].split()[0]
        assert "runs with" not in service.output()
        operate(stack, "approve", kid)
        until(lambda: f"runs with {kid}" in service.output())
        assert kid in operate(stack, "keys", "billing")
        assert kid not in operate(stack, "keys", "--pending")
    assert "key_admitted" in operate(stack, "audit")
    answer = HttpFetcher([stack.registry_url]).call("GET", "/v1/services/billing/jwks.jwt")
    assert answer.status == 200


def test_a_registry_that_takes_no_applicants_ends_the_start(stack: Stack, tmp_path: Path) -> None:
    stack.start_registry()
    settings = {
        "PEERSEAL_SERVICE": "billing",
        "PEERSEAL_REGISTRY_URL": stack.registry_url,
        "PEERSEAL_REGISTRY_PIN": stack.operate_json("init")["pin"],
    }
    with Process("billing", [sys.executable, "-c", SERVICE], log=stack.log("billing"), settings=settings) as service:
        until(lambda: not service.running)
        assert "no join token" in service.output()
