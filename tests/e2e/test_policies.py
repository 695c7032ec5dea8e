"""An operator's policy, from another terminal: what code allows is refused within two seconds, and allowed again."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

import peerseal
from demo.processes import BIN, environment
from tests.support.load import get
from tests.support.stack import CLIENT, DOMAIN, Stack

pytestmark = pytest.mark.e2e

AT_MOST = 2.0
"""Seconds until a policy is in force at a callee: it looks every second."""


def operate(stack: Stack, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``peerseal-registry ARGUMENTS --url …``, with the operator's token and nothing of the registry's own host."""
    token = (stack.root / "registry" / "operator-token").read_text().strip()
    command = [str(BIN / "peerseal-registry"), *arguments, "--url", stack.registry_url]
    settings = environment({"PEERSEAL_OPERATOR_TOKEN": token, "REGISTRY_HOME": os.devnull})
    return subprocess.run(command, env=settings, capture_output=True, encoding="utf-8", check=False)


@pytest.mark.parametrize("restricted", [False, True])
def test_a_policy_denies_what_code_allows_and_its_removal_allows_it_again(tmp_path: Path, restricted: bool) -> None:
    with Stack(tmp_path) as stack:
        stack.start_registry()
        callee = stack.start_service("callee", "tests.support.callee:create_app()", workers=2)
        client = peerseal.Identity.from_env(stack.service_settings(CLIENT)).start()
        second = peerseal.Identity.from_env(stack.service_settings("second-service")).start()

        def call(caller: peerseal.Identity) -> tuple[int, str | None]:
            token = caller.sign_request("callee", method="GET", target="/x")
            status, body = get(f"{callee.url}/x", {"Authorization": f"Bearer {token}"})
            return status, json.loads(body).get("code")

        def in_force(answer: tuple[int, str | None]) -> None:
            """On every worker, AT_MOST seconds after the change committed."""
            deadline = time.monotonic() + AT_MOST
            while {call(client) for _ in range(8)} != {answer}:
                assert time.monotonic() < deadline, f"still not {answer}"
            assert call(second) == (200, None), "whom the policy names is let in throughout"

        try:
            in_force((200, None))
            rules = ["--allow", "second-service=read", *(["--restricted"] if restricted else [])]
            done = operate(stack, "policy", "set", "callee", *rules)
            assert done.returncode == 0, done.stderr
            in_force((403, "caller_not_allowed"))
            why = operate(stack, "policy", "explain", CLIENT, "callee", "read")
            assert why.returncode == 1
            assert f"{DOMAIN}/{CLIENT}" in why.stdout

            assert operate(stack, "policy", "set", "callee", *rules, "--allow", CLIENT).returncode == 0
            in_force((403, "insufficient_scope"))
            assert operate(stack, "policy", "remove", "callee").returncode == 0
            in_force((200, None))
            assert operate(stack, "policy", "explain", CLIENT, "callee", "read").returncode == 0
        finally:
            client.stop()
            second.stop()
