"""A protected service under each sort of gunicorn's workers, the application loaded before the fork or after it: it
verifies, and hears of rotations and revocations, in every worker.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from peerseal import Identity, RotationSchedule
from tests.support.load import get
from tests.support.patient import PatientRegistry, served
from tests.support.servers import gunicorn_with

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

CLIENT = "client-service"
WORKERS = 2
AT_A_TIME = 8
LEAD = 1.0
"""Seconds in which both workers fetch a new key."""
SOON = 15.0
"""Seconds in which a revocation reaches both workers, on a busy machine too."""
APP = "tests.support.callee:create_app()"

EACH = [(sort, preload) for sort in ("sync", "gthread", "gevent") for preload in (False, True)]
QUICK = ("gthread", True)
VARIANTS = [
    pytest.param(
        sort,
        preload,
        marks=[] if (sort, preload) == QUICK else [pytest.mark.thorough],
        id=f"{sort}-{'preload' if preload else 'plain'}",
    )
    for sort, preload in EACH
]


@pytest.fixture
def registry() -> Iterator[PatientRegistry]:
    with PatientRegistry() as registry:
        yield registry


@dataclass
class Calls:
    """Calls by ``caller`` to the service at ``url``."""

    caller: Identity
    url: str

    def answers(self, times: int) -> Counter[tuple[int, str | None]]:
        """Status and code of so many calls, some at a time, so that every worker has its share."""
        with ThreadPoolExecutor(AT_A_TIME) as pool:
            return Counter(pool.map(self._call, range(times)))

    def _call(self, number: int) -> tuple[int, str | None]:
        target = f"/x/{number}"
        token = self.caller.sign_request("callee", method="GET", target=target)
        status, body = get(f"{self.url}{target}", {"Authorization": f"Bearer {token}"})
        return status, json.loads(body).get("code")


Serve = Callable[..., Calls]


@pytest.fixture
def serve(registry: PatientRegistry, tmp_path: Path) -> Iterator[Serve]:
    """Starts the callee, and a host of the caller in this process."""
    with ExitStack() as opened:
        url = opened.enter_context(served(registry))

        def serve(sort: str, preload: bool) -> Calls:
            settings = {
                "PEERSEAL_SERVICE": "callee",
                "PEERSEAL_REGISTRY_URL": url,
                "PEERSEAL_JOIN_TOKEN": registry.join_token("callee"),
                "PEERSEAL_KEY_DIR": str(tmp_path / "keys"),
                "PEERSEAL_CACHE_DIR": str(tmp_path / "cache"),
            }
            server = gunicorn_with(sort, APP, log=tmp_path / "log", settings=settings, preload=preload, workers=WORKERS)
            opened.enter_context(server).wait_until_answers(f"{server.url}/my-public-credentials")
            return Calls(registry.identity(CLIENT, rotation=RotationSchedule(lead=LEAD)), server.url)

        yield serve


def after(condition: Callable[[], bool], within: float) -> float:
    """How many seconds it took until the condition held."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < within, f"not within {within} s"
        time.sleep(0.05)
    return time.monotonic() - began


@pytest.mark.parametrize(("sort", "preload"), VARIANTS)
def test_calls_rotations_and_revocations(registry: PatientRegistry, serve: Serve, sort: str, preload: bool) -> None:
    calls = serve(sort, preload)
    assert calls.answers(60) == {(200, None): 60}, "the first ones come while nothing is in memory"

    before = calls.caller.credentials.key_id
    calls.caller.rotate()
    seen: Counter[tuple[int, str | None]] = Counter()
    while calls.caller.credentials.key_id == before:
        seen += calls.answers(10)
    seen += calls.answers(40)
    assert set(seen) == {(200, None)}, "no call was refused while the keys changed"

    registry.revoke(calls.caller.credentials.key_id)
    after(lambda: set(calls.answers(20)) == {(401, "revoked_key")}, SOON)
    assert calls.answers(40) == {(401, "revoked_key"): 40}
