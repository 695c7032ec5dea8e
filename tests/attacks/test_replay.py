"""Attacks by repetition: the same token again, at once, in another worker, after a restart; and floods of forgeries."""

import multiprocessing
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from peerseal.errors import PeersealError, Replayed
from peerseal.protocol.encoding import b64url
from peerseal.protocol.keys import KeyPair
from peerseal.verify.replay.guards import FileReplayGuard, MemoryReplayGuard, ReplayGuard
from peerseal.verify.replay.redis import RedisReplayGuard
from tests.attacks.forge import CALLER, JTI, NOW, OTHER, Callee, claims, forge, header, honest_token, rsa_key
from tests.support.redis import Redis, running_redis

WORKERS = 4
ROUNDS = 25


def clock() -> float:
    return NOW


def test_same_token_twice(callee: Callee, key: KeyPair) -> None:
    token = honest_token(key)
    callee.accepts(token)
    for _ in range(3):
        callee.refuses(token, "replayed")


def test_same_jti_with_other_claims(callee: Callee, key: KeyPair) -> None:
    """A caller that uses a jti twice is refused, whatever else it signed."""
    callee.accepts(honest_token(key))
    callee.refuses(honest_token(key, ctx={"a": 1}, exp=NOW + 61), "replayed")


def test_jti_of_another_caller_is_another_token(callee: Callee, key: KeyPair) -> None:
    """No caller can use up the jti of another."""
    callee.accepts(honest_token(rsa_key("other"), OTHER))
    assert callee.accepts(honest_token(key)).id == CALLER


def test_another_key_of_the_caller_buys_no_second_call(callee: Callee, key: KeyPair, p256: KeyPair) -> None:
    callee.accepts(honest_token(key))
    callee.refuses(honest_token(p256), "replayed")


def test_replay_until_the_last_moment(callee: Callee, key: KeyPair) -> None:
    """As long as the token would be good, the guard knows it; one second later the token has expired."""
    token = honest_token(key, exp=NOW + 300)
    callee.accepts(token)
    for number in range(1, 330):
        callee.now = NOW + number
        callee.refuses(token, "replayed")
        if number % 7 == 0:  # other calls go on, and make the guard drop what has expired
            times = {"iat": NOW + number, "nbf": NOW + number, "exp": NOW + number + 60}
            callee.accepts(honest_token(key, jti=b64url(number.to_bytes(16, "big")), **times))
    callee.now = NOW + 330
    callee.refuses(token, "expired")


def test_refused_call_does_not_use_up_the_token(callee: Callee, key: KeyPair) -> None:
    """An eavesdropper cannot use a token by sending it with another request."""
    token = honest_token(key)
    callee.refuses(token, "wrong_binding", target="/other")
    callee.refuses(token, "wrong_binding", body=b"other")
    callee.refuses(token, "insufficient_scope", scope="admin")
    callee.accepts(token)


def test_flood_of_forged_tokens_does_not_fill_the_guard(key: KeyPair, attacker: KeyPair) -> None:
    guard = MemoryReplayGuard(limit=10, clock=clock)
    callee = Callee(replay=guard)
    for number in range(1000):
        callee.refuses(honest_token(attacker, jti=b64url(number.to_bytes(16, "big"))), "unknown_key")
    forged = forge(header(key), claims(), b"\0" * 256)
    for _ in range(1000):
        callee.refuses(forged, "bad_signature")
    assert len(guard) == 0
    callee.accepts(honest_token(key))


def test_full_guard_refuses_rather_than_forgets(key: KeyPair) -> None:
    guard = MemoryReplayGuard(limit=1, clock=clock)
    callee = Callee(replay=guard)
    first = honest_token(key)
    callee.accepts(first)
    with pytest.raises(PeersealError) as caught:
        callee.accepts(honest_token(key, jti=f"B{JTI[1:]}"))
    assert (caught.value.code, caught.value.status) == ("trust_unavailable", 503)
    with pytest.raises(PeersealError):
        callee.accepts(first)


def test_same_token_at_once_in_one_process(key: KeyPair) -> None:
    callee = Callee()
    for number in range(ROUNDS):
        assert _accepted_at_once(callee, honest_token(key, jti=_jti(number))) == 1


def test_same_token_at_once_in_two_workers(key: KeyPair, tmp_path: Path) -> None:
    """Two verifiers with nothing in common but the host's file."""
    path = tmp_path / "replay.sqlite3"
    one, two = (Callee(replay=FileReplayGuard(path, clock=clock)) for _ in range(2))
    for number in range(ROUNDS):
        token = honest_token(key, jti=_jti(number))
        assert _accepted_at_once(one, token, threads=4) + _accepted_at_once(two, token, threads=4) == 1


def test_same_token_at_once_in_real_processes(key: KeyPair, tmp_path: Path) -> None:
    """Accepted once among processes that fork from one with the guard already open, as gunicorn's preload does."""
    guard = FileReplayGuard(tmp_path / "replay.sqlite3", clock=clock)
    callee = Callee(replay=guard)
    callee.accepts(honest_token(key))
    tokens = [honest_token(key, jti=_jti(number)) for number in range(1, 201)]
    context = multiprocessing.get_context("fork")
    barrier, accepted = context.Barrier(WORKERS), context.Queue()

    def worker() -> None:
        barrier.wait(30)
        accepted.put([number for number, token in enumerate(tokens) if _is_accepted(callee, token)])

    workers = [context.Process(target=worker) for _ in range(WORKERS)]
    for process in workers:
        process.start()
    answers = [number for _ in workers for number in accepted.get(timeout=60)]
    for process in workers:
        process.join(30)
    assert sorted(answers) == list(range(200))


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


def host(redis: Redis, **options: ReplayGuard) -> Callee:
    """The callee on one more host: nothing in common with the others but Redis."""
    return Callee(replay=RedisReplayGuard(redis.url, "resource-service", clock=clock, **options))


def test_same_token_on_two_hosts(key: KeyPair, redis: Redis) -> None:
    token = honest_token(key)
    host(redis).accepts(token)
    host(redis).refuses(token, "replayed")


def test_same_token_at_once_on_two_hosts(key: KeyPair, redis: Redis) -> None:
    one, two = host(redis), host(redis)
    for number in range(ROUNDS):
        token = honest_token(key, jti=_jti(1000 + number))
        with ThreadPoolExecutor(2) as pool:
            accepted = [pool.submit(_accepted_at_once, callee, token, threads=4) for callee in (one, two)]
            assert sum(count.result() for count in accepted) == 1


def test_flood_of_forged_tokens_does_not_reach_redis(key: KeyPair, attacker: KeyPair, redis: Redis) -> None:
    callee, before = host(redis), redis.do("DBSIZE")
    for number in range(100):
        callee.refuses(honest_token(attacker, jti=_jti(number)), "unknown_key")
    callee.refuses(forge(header(key), claims(), b"\0" * 256), "bad_signature")
    assert redis.do("DBSIZE") == before


def test_redis_that_may_forget_lets_nobody_in(key: KeyPair, tmp_path: Path) -> None:
    with running_redis(tmp_path, "--maxmemory-policy", "allkeys-lru") as forgetful:
        _lets_nobody_in(host(forgetful), key)
        _lets_nobody_in(host(forgetful, unsafe_fallback=MemoryReplayGuard(clock=clock)), key)


def test_redis_that_is_down_or_frozen_lets_nobody_in(key: KeyPair, tmp_path: Path) -> None:
    with running_redis(tmp_path) as redis:
        callee = host(redis)
        with redis.frozen():
            _lets_nobody_in(callee, key)
        redis.kill()
        _lets_nobody_in(host(redis), key)


def test_replay_after_a_restart(key: KeyPair, tmp_path: Path) -> None:
    path = tmp_path / "replay"
    token = honest_token(key)
    Callee(replay=FileReplayGuard(path, clock=clock)).accepts(token)
    Callee(replay=FileReplayGuard(path, clock=clock)).refuses(token, "replayed")
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}


def test_guard_that_cannot_write_lets_nobody_in(key: KeyPair, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing" / "replay.sqlite3"):
        _lets_nobody_in(Callee(replay=FileReplayGuard(path, clock=clock)), key)


def test_guard_whose_file_is_garbage_lets_nobody_in(key: KeyPair, tmp_path: Path) -> None:
    path = tmp_path / "replay.sqlite3"
    path.write_bytes(b"not a database " * 100)
    _lets_nobody_in(Callee(replay=FileReplayGuard(path, clock=clock)), key)


def _lets_nobody_in(callee: Callee, key: KeyPair) -> None:
    with pytest.raises(PeersealError) as caught:
        callee.accepts(honest_token(key))
    assert (caught.value.code, caught.value.status) == ("trust_unavailable", 503)


def _jti(number: int) -> str:
    return b64url(number.to_bytes(16, "big"))


def _is_accepted(callee: Callee, token: str) -> bool:
    try:
        callee.accepts(token)
    except Replayed:
        return False
    return True


def _accepted_at_once(callee: Callee, token: str, threads: int = 8) -> int:
    barrier = threading.Barrier(threads)

    def call(_: int) -> bool:
        barrier.wait(30)
        return _is_accepted(callee, token)

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(call, range(threads)))
