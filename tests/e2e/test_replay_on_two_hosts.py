"""The same token at once: to the two workers of a host, and to two hosts that share a Redis. Accepted exactly once."""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from urllib.parse import urlsplit

import pytest

import peerseal
from tests.support.load import get
from tests.support.processes import LOOPBACK, Server
from tests.support.redis import Redis, running_redis
from tests.support.stack import CLIENT, Stack
from tests.support.wire import raw_request

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ROUNDS = 1000
COPIES = 4
CALLEE = "callee"
TARGET = "/anything"


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("fleet")) as stack:
        stack.start_registry()
        yield stack


@pytest.fixture(scope="module")
def caller(stack: Stack) -> Iterator[peerseal.Identity]:
    identity = peerseal.Identity.from_env(stack.service_settings(CLIENT, host="test")).start()
    yield identity
    identity.stop()


def host(stack: Stack, name: str, *, workers: int = 2, **settings: str) -> Server:
    """The service on one more host: keys and cache of its own."""
    everything = stack.service_settings(CALLEE, host=name) | settings
    return stack.start_service(
        CALLEE, "tests.support.callee:create_app()", settings=everything, workers=workers, preload=True
    )


@pytest.fixture(scope="module")
def two_hosts(stack: Stack, redis: Redis) -> list[Server]:
    return [host(stack, name, PEERSEAL_REPLAY_URL=redis.url) for name in ("one", "two")]


def token_for(caller: peerseal.Identity) -> dict[str, str]:
    return {"Authorization": f"Bearer {caller.sign_request(CALLEE, method='GET', target=TARGET)}"}


def status(server: Server, headers: dict[str, str]) -> int:
    return get(server.url + TARGET, headers)[0]


def race(caller: peerseal.Identity, servers: Sequence[Server], rounds: int) -> Counter[tuple[int, ...]]:
    """How often each outcome came about when COPIES of a fresh token went to the servers at once, each on a connection
    of its own, which any worker may take."""
    outcomes: Counter[tuple[int, ...]] = Counter()
    with ThreadPoolExecutor(COPIES) as pool:
        for _ in range(rounds):
            headers, together = token_for(caller), Barrier(COPIES)

            def send(number: int, headers: dict[str, str] = headers, together: Barrier = together) -> int:
                together.wait(30)
                return status(servers[number % len(servers)], headers)

            outcomes[tuple(sorted(pool.map(send, range(COPIES))))] += 1
    return outcomes


ONCE = (200,) + (401,) * (COPIES - 1)


@pytest.mark.thorough
def test_the_same_token_at_once_to_two_workers_is_accepted_once_1000_times_out_of_1000(
    stack: Stack, caller: peerseal.Identity
) -> None:
    server = host(stack, "alone")
    assert race(caller, [server], ROUNDS) == {ONCE: ROUNDS}
    server.stop()


def test_the_same_token_at_once_to_two_hosts_is_accepted_once_1000_times_out_of_1000(
    caller: peerseal.Identity, two_hosts: list[Server], redis: Redis
) -> None:
    assert race(caller, two_hosts, ROUNDS) == {ONCE: ROUNDS}
    assert redis.do("DBSIZE") == ROUNDS, "one key a token"


def test_a_token_is_refused_by_another_host_and_after_the_service_has_restarted(
    stack: Stack, caller: peerseal.Identity, two_hosts: list[Server], redis: Redis
) -> None:
    headers = token_for(caller)
    one, two = two_hosts
    assert [status(server, headers) for server in (one, two, one)] == [200, 401, 401]
    one.stop()
    again = host(stack, "one", PEERSEAL_REPLAY_URL=redis.url)
    assert [status(again, headers), status(again, token_for(caller))] == [401, 200]


@pytest.mark.thorough
def test_with_nothing_to_share_two_workers_and_two_hosts_accept_it_twice(
    stack: Stack, caller: peerseal.Identity
) -> None:
    """The test of the tests: what they count does happen, and both workers are reached."""
    alone = host(stack, "three", PEERSEAL_KEY_DIR="", PEERSEAL_CACHE_DIR="")
    assert race(caller, [alone], 100)[200, 200, 401, 401] > 0
    servers = [host(stack, name) for name in ("four", "five")]
    assert race(caller, servers, 10) == {(200, 200, 401, 401): 10}
    for server in (alone, *servers):
        server.stop()


@pytest.mark.thorough
def test_while_redis_is_down_callers_hear_503_and_when_to_come_back(
    stack: Stack, caller: peerseal.Identity, tmp_path: Path
) -> None:
    with running_redis(tmp_path) as redis:
        server = host(stack, "six", workers=1, PEERSEAL_REPLAY_URL=redis.url)
        unsafe = host(stack, "seven", workers=1, PEERSEAL_REPLAY_URL=redis.url, PEERSEAL_REPLAY_UNSAFE_FALLBACK="1")
        assert status(server, token_for(caller)) == 200
        redis.kill()
        headers = token_for(caller)
        answer = raw_request((LOOPBACK, urlsplit(server.url).port or 0), TARGET, headers=headers)
        assert (answer.status, answer.code, answer.headers["retry-after"]) == (503, "trust_unavailable", "1")
        assert [status(unsafe, headers) for _ in range(2)] == [200, 401], "as its owner chose"
        assert "UNSAFE" in unsafe.output()
        redis.start()
        assert status(server, headers) == 200
    server.stop()
    unsafe.stop()
