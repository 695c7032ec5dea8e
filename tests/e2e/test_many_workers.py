"""Four preloaded workers a service, recycled all the time, two registry workers: nothing is refused, nothing twice."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

import peerseal
from tests.support.load import at_a_time, get
from tests.support.stack import CLIENT, RESOURCE, Stack

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ROTATING = {"PEERSEAL_ROTATE_EVERY": "2", "PEERSEAL_ROTATE_LEAD": "1.5", "PEERSEAL_ROTATE_OVERLAP": "3"}
CALLS = 4000
WORKERS = 4


@pytest.fixture(scope="module")
def rotating(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("rotating")) as stack:
        stack.settings |= ROTATING
        stack.start_registry(workers=2)
        yield stack


@pytest.mark.thorough
def test_4000_calls_during_rotations_every_2_seconds_are_all_accepted(rotating: Stack) -> None:
    resource = rotating.start_resource_service(workers=WORKERS, preload=True, max_requests=200)
    client = rotating.start_client_service(resource.url, workers=WORKERS, preload=True, max_requests=200)

    answers = at_a_time(8, CALLS, lambda: get(f"{client.url}/profiles/1")[0])

    assert answers == {200: CALLS}
    keys = json.loads(get(f"{rotating.registry_url}/v1/services/{CLIENT}/keys")[1])["keys"]
    assert len(keys) >= 4, "the keys rotated while the calls went on"
    assert {key["state"] for key in keys} <= {"active", "retired"}


def test_the_same_token_sent_to_all_workers_at_once_is_accepted_exactly_once(
    rotating: Stack, request: pytest.FixtureRequest
) -> None:
    callee = rotating.start_service("callee", "tests.support.callee:create_app()", workers=WORKERS, preload=True)
    caller = peerseal.Identity.from_env(rotating.service_settings(CLIENT, host="test")).start()
    request.addfinalizer(caller.stop)
    target = "/anything"
    with ThreadPoolExecutor(WORKERS * 2) as pool:
        for attempt in range(200):
            token = caller.sign_request("callee", method="GET", target=target)
            together = Barrier(WORKERS * 2)

            def send(token: str = token, together: Barrier = together) -> int:
                together.wait()
                return get(f"{callee.url}{target}", {"Authorization": f"Bearer {token}"})[0]

            statuses = sorted(future.result() for future in [pool.submit(send) for _ in range(WORKERS * 2)])
            assert statuses == [200] + [401] * (WORKERS * 2 - 1), attempt


def test_workers_of_one_host_show_one_key(tmp_path: Path) -> None:
    with Stack(tmp_path) as stack:
        stack.start_registry(workers=2)
        resource = stack.start_resource_service(workers=WORKERS, preload=False)
        seen = at_a_time(8, 80, lambda: get(f"{resource.url}/my-public-credentials")[1])
        assert len(seen) == 1
        keys = json.loads(get(f"{stack.registry_url}/v1/services/{RESOURCE}/keys")[1])["keys"]
        assert len(keys) == 1

        resource.stop()

        keys = json.loads(get(f"{stack.registry_url}/v1/services/{RESOURCE}/keys")[1])["keys"]
        assert [key["state"] for key in keys] == ["active"], "it lies in the key folder, for the next start"
