"""1,000 interleaved requests of ten users, and of none, through a thread pool and an event loop: each call downstream
is for its own user."""

import json
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from demo.processes import LOOPBACK, Server, free_port
from tests.support.stack import Stack

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

REQUESTS = 1_000
USERS = [None, *(f"user-{number}" for number in range(10))]


@pytest.fixture
def registry_database(sqlite_url: str) -> str:
    """One database is enough: the registry has no part in this."""
    return sqlite_url


def start_relay(stack: Stack, callee: Server) -> Server:
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "--factory", "--host", LOOPBACK, "--port", str(port)]
    command += ["--log-level", "warning", "tests.support.mixing:relay"]
    settings = stack.service_settings("relay") | {"CALLEE_URL": callee.url}
    server = Server("relay", command, url=f"http://{LOOPBACK}:{port}", log=stack.log("relay"), settings=settings)
    return stack.keep(server).wait_until_answers(f"{server.url}/my-public-credentials")


def test_each_downstream_call_carries_its_own_user(stack: Stack) -> None:
    stack.start_registry()
    settings = stack.root / "domain.json"
    settings.write_text(json.dumps({"minters": ["edge"], "issuers": []}))
    stack.operate("domain", "set", str(settings))
    callee = stack.start_service("callee", "tests.support.mixing:callee()", workers=2)
    relay = start_relay(stack, callee)
    urls = {"CALLEE_URL": callee.url, "RELAY_URL": relay.url}
    edge = stack.start_service("edge", "tests.support.mixing:edge()", settings=urls, workers=1, threads=8)

    def ask(number: int) -> tuple[str | None, bool]:
        user = USERS[number % len(USERS)]
        answer = requests.get(f"{edge.url}/fan-out", headers={"X-User": user} if user else {}, timeout=60)
        return user, answer.status_code == 200 and answer.json() == {"users": [user] * 2, "own": None}

    with ThreadPoolExecutor(16) as pool:
        found = Counter(pool.map(ask, range(REQUESTS)))
    assert {right for _, right in found} == {True}, found
    assert set(found) == {(user, True) for user in USERS}
