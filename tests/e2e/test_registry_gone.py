"""The registry is stopped for the rest of the test: known callers go on, unknown ones are told to come back later."""

import json
from pathlib import Path

import pytest

import peerseal
from tests.support.load import at_a_time, get
from tests.support.stack import CLIENT, Stack

pytestmark = pytest.mark.e2e


def test_cached_callers_go_on_and_an_allowed_caller_never_seen_gets_503(tmp_path: Path) -> None:
    with Stack(tmp_path) as stack:
        registry = stack.start_registry()
        callee = stack.start_service("callee", "tests.support.callee:create_app()", workers=1)
        lasting = {"PEERSEAL_RETIRE_AT_EXIT": "0"}
        known = peerseal.Identity.from_env(stack.service_settings(CLIENT) | lasting).start()
        never_seen = peerseal.Identity.from_env(stack.service_settings("second-service") | lasting).start()

        def call(caller: peerseal.Identity) -> tuple[int, str | None]:
            token = caller.sign_request("callee", method="GET", target="/x")
            status, body = get(f"{callee.url}/x", {"Authorization": f"Bearer {token}"})
            return status, json.loads(body).get("code")

        assert call(known) == (200, None)

        registry.kill()

        assert at_a_time(4, 200, lambda: call(known)) == {(200, None): 200}
        assert call(never_seen) == (503, "trust_unavailable")
        assert call(known) == (200, None)
