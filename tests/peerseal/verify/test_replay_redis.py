"""The replay guard in a real Redis: the suite of every guard, and what becomes of it when Redis does not play along."""

import contextlib
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from peerseal import FileReplayGuard, Identity, MemoryReplayGuard, RedisReplayGuard
from peerseal.errors import ConfigurationError, TrustUnavailable
from peerseal.testing import Clock
from peerseal.verify.replay.guards import ReplayGuard
from tests.peerseal.served import Child, in_children
from tests.peerseal.verify.test_replay import START, UNTIL, ReplayGuardContract
from tests.support.certificates import Authority
from tests.support.redis import Redis, running_redis

SERVICE = "resource-service"
SETTINGS = {"PEERSEAL_SERVICE": SERVICE, "PEERSEAL_REGISTRY_URL": "http://127.0.0.1:9"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis(shared: Redis) -> Redis:
    """A Redis with nothing in it, that must not be harmed."""
    shared.do("FLUSHALL")
    shared.do("CONFIG", "RESETSTAT")
    return shared


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Redis]:
    """A Redis of this test's own, to stop and to start."""
    with running_redis(tmp_path) as server:
        yield server


@pytest.fixture
def clock() -> Clock:
    return Clock(START)


class Yes:
    """A guard that lets everything pass."""

    def claim(self, issuer: str, jti: str, until: float) -> bool:
        return True


def guard_at(redis: Redis, clock: Callable[[], float] = time.time, **options: object) -> RedisReplayGuard:
    return RedisReplayGuard(redis.url, SERVICE, clock=clock, **options)  # type: ignore[arg-type]


def refuses(guard: ReplayGuard, jti: str = "jti") -> str:
    """Why it cannot say."""
    with pytest.raises(TrustUnavailable) as caught:
        guard.claim("issuer", jti, UNTIL)
    assert caught.value.retry_after > 0
    return str(caught.value)


def sets(redis: Redis) -> int:
    """How many SET commands Redis has carried out."""
    return int(redis.do("INFO", "commandstats").get("cmdstat_set", {"calls": 0})["calls"])


class TestRedisReplayGuard(ReplayGuardContract):
    @pytest.fixture
    def guard(self, clock: Clock, redis: Redis) -> RedisReplayGuard:  # type: ignore[override]
        return guard_at(redis, clock)

    def test_it_is_forgotten_within_a_purge_or_two_after_that(
        self, guard: ReplayGuard, clock: Clock, redis: Redis
    ) -> None:
        """Redis goes by its own clock, so what counts is the time that it is given."""
        guard.claim("issuer", "jti", UNTIL)
        (key,) = redis.do("KEYS", "*")
        left = redis.do("PTTL", key) / 1000
        assert left == pytest.approx(UNTIL - START + RedisReplayGuard.CLOCK_SPREAD, abs=2)

    def test_redis_itself_forgets_it_then(self, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(RedisReplayGuard, "CLOCK_SPREAD", 0)
        guard = guard_at(redis)
        assert guard.claim("issuer", "jti", time.time() + 0.2)
        time.sleep(0.3)
        assert redis.do("DBSIZE") == 0

    def test_a_host_whose_clock_is_behind_still_finds_it(self, redis: Redis) -> None:
        """A second later the first host takes the token for expired, and the other does two minutes later."""
        assert guard_at(redis, Clock(UNTIL - 1)).claim("issuer", "jti", UNTIL)
        assert redis.do("PTTL", redis.do("KEYS", "*")[0]) > 120_000

    def test_one_claim_is_one_command(self, guard: ReplayGuard, redis: Redis) -> None:
        for _ in range(3):
            guard.claim("issuer", "jti", UNTIL)
        assert sets(redis) == 3

    def test_it_holds_no_name_of_a_caller_and_no_jti(self, guard: ReplayGuard, redis: Redis) -> None:
        guard.claim("test.internal/client", "a-jti-in-clear", UNTIL)
        (key,) = redis.do("KEYS", "*")
        assert key.startswith(f"peerseal:replay:{SERVICE}:")
        assert "client" not in key
        assert "a-jti" not in key
        assert redis.do("GET", key) == "1"

    def test_services_that_share_a_redis_do_not_meet(self, guard: ReplayGuard, redis: Redis) -> None:
        assert guard.claim("issuer", "jti", UNTIL)
        assert RedisReplayGuard(redis.url, "invoicing").claim("issuer", "jti", UNTIL)

    @pytest.mark.usefixtures("quiet_collector")
    def test_eight_processes_that_start_at_once_accept_each_of_200_tokens_once(self, guard: ReplayGuard) -> None:
        accepted = in_children(8, lambda _: sum(guard.claim("issuer", str(number), UNTIL) for number in range(200)))
        assert sum(accepted) == 200

    @pytest.mark.usefixtures("quiet_collector")
    def test_no_connection_crosses_a_fork(self, guard: ReplayGuard, redis: Redis) -> None:
        guard.claim("issuer", "before", UNTIL)

        def ids() -> set[str]:
            return {line.split()[0] for line in redis.do("CLIENT", "LIST", "TYPE", "normal").splitlines()}

        def claim_and_look() -> tuple[bool, int]:
            before = ids()
            return guard.claim("issuer", "child", UNTIL), len(ids() - before)

        accepted, new = Child(claim_and_look).result()
        assert accepted
        assert new == 2, "the child's guard made a connection, and so did whoever looked"
        assert guard.claim("issuer", "after", UNTIL), "the parent's still works"

    def test_it_can_go_on_after_it_was_closed(self, redis: Redis) -> None:
        guard = guard_at(redis)
        guard.claim("issuer", "jti", UNTIL)
        guard.close()
        assert not guard.claim("issuer", "jti", UNTIL)

    def test_another_process_knows_what_one_has_accepted_and_so_does_a_service_that_restarted(
        self, redis: Redis
    ) -> None:
        program = f"""
import peerseal
guard = peerseal.RedisReplayGuard({redis.url!r}, {SERVICE!r})
print(guard.claim("issuer", "jti", {time.time() + 90}))
"""
        run = [subprocess.run([sys.executable, "-c", program], capture_output=True, check=True) for _ in range(2)]
        assert [ended.stdout for ended in run] == [b"True\n", b"False\n"]


# ---- what it is made of


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost",
        "http://localhost",
        "redis://:secret@host:port",
        "redis://h?socket_timeout=secret",
        "redis://h?nonsense=secret",
        "redis://h?protocol=9&password=secret",
        "redis://:secret@h..svc:6379",
        "rediss://:secret@.h",
        "redis://:secret@h?socket_timeout=nan",
        "redis://:secret@h?socket_connect_timeout=inf",
        "redis://:secret@h?socket_timeout=-1",
    ],
)
def test_a_url_that_is_none_is_a_wrong_setting_and_is_not_shown(url: str) -> None:
    with pytest.raises(ConfigurationError, match="redis://host:6379") as caught:
        RedisReplayGuard(url, SERVICE)
    assert "secret" not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("until", [float("nan"), float("inf"), -float("inf"), 10**400])
def test_a_token_that_ends_at_no_time_is_refused(redis: Redis, until: float) -> None:
    """With the fallback too: that Redis is down is no reason."""
    guard = guard_at(redis, unsafe_fallback=Yes())
    with pytest.raises(TrustUnavailable):
        guard.claim("issuer", "jti", until)


def test_nothing_is_connected_before_the_first_claim() -> None:
    RedisReplayGuard("rediss://nowhere.invalid:6379/0?ssl_ca_certs=/nowhere", SERVICE).close()


def test_without_the_library_the_error_names_the_extra_and_importing_peerseal_does_not_need_it() -> None:
    program = """
import sys
sys.modules["redis"] = None
import peerseal
identity = peerseal.Identity("s", registry="http://127.0.0.1:9", replay_url="redis://127.0.0.1:9")
try:
    identity.replay_guard()
except peerseal.errors.ConfigurationError as error:
    print(error)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "peerseal[redis]" in ended.stdout


def test_importing_peerseal_does_not_load_the_library() -> None:
    program = "import sys, peerseal; print('redis' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).stdout == b"False\n"


class TestWhichGuardAServiceGets:
    def test_redis_where_there_is_a_url_whatever_folders_there_are(self, redis: Redis, tmp_path: Path) -> None:
        settings = SETTINGS | {"PEERSEAL_REPLAY_URL": redis.url, "PEERSEAL_CACHE_DIR": str(tmp_path / "cache")}
        guard = Identity.from_env(settings).replay_guard()
        assert isinstance(guard, RedisReplayGuard)
        assert guard.claim("issuer", "jti", UNTIL)
        assert not guard_at(redis).claim("issuer", "jti", UNTIL)
        assert not (tmp_path / "cache").exists(), "nothing is kept on the host"

    def test_the_host_s_file_and_then_memory_where_there_is_none(self, tmp_path: Path) -> None:
        folder = {"PEERSEAL_CACHE_DIR": str(tmp_path)}
        assert isinstance(Identity.from_env(SETTINGS | folder).replay_guard(), FileReplayGuard)
        assert isinstance(Identity.from_env(SETTINGS).replay_guard(), MemoryReplayGuard)

    def test_while_redis_is_down_it_is_closed_unless_the_owner_said_otherwise(self, own: Redis, tmp_path: Path) -> None:
        settings = SETTINGS | {"PEERSEAL_REPLAY_URL": own.url, "PEERSEAL_CACHE_DIR": str(tmp_path / "cache")}
        closed = Identity.from_env(settings).replay_guard()
        unsafe = [
            Identity.from_env(settings | {"PEERSEAL_REPLAY_UNSAFE_FALLBACK": "1"}).replay_guard() for _ in range(2)
        ]
        own.kill()
        assert "cannot be used" in refuses(closed)
        assert [guard.claim("issuer", "jti", time.time() + 90) for guard in unsafe] == [True, False], "one host's file"


# ---- eviction


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-random", "volatile-ttl", "volatile-lru"])
def test_a_redis_that_may_forget_is_refused_and_says_why(own: Redis, policy: str) -> None:
    own.do("CONFIG", "SET", "maxmemory-policy", policy)
    guard = guard_at(own)
    assert f"maxmemory-policy is {policy}" in refuses(guard)
    assert "may forget" in refuses(guard_at(own, unsafe_fallback=MemoryReplayGuard(), assume_noeviction=True))
    assert sets(own) == 0
    own.do("CONFIG", "SET", "maxmemory-policy", "noeviction")
    assert guard.claim("issuer", "jti", UNTIL), "at once when it was put right"


def test_a_policy_that_changes_later_is_noticed(own: Redis, clock: Clock) -> None:
    guard = guard_at(own, clock)
    assert guard.claim("issuer", "1", UNTIL)
    own.do("CONFIG", "SET", "maxmemory-policy", "allkeys-lfu")
    clock.advance(RedisReplayGuard.CHECK_EVERY - 1)
    assert guard.claim("issuer", "2", UNTIL)
    clock.advance(1)
    assert "allkeys-lfu" in refuses(guard)


def test_the_policy_is_asked_once_a_minute_and_not_at_every_claim(redis: Redis, clock: Clock) -> None:
    guard = guard_at(redis, clock)
    for number in range(120):
        guard.claim("issuer", str(number), UNTIL)
        clock.advance(1)
    assert redis.do("INFO", "commandstats")["cmdstat_info"]["calls"] == 2


@pytest.mark.parametrize("rights", ["+info", "+config|get"])
def test_either_way_of_asking_for_the_policy_will_do(own: Redis, rights: str) -> None:
    own.do("ACL", "SETUSER", "guard", "on", ">word", "~peerseal:*", "+set", rights)
    url = own.url.replace("redis://", "redis://guard:word@")
    assert RedisReplayGuard(url, SERVICE).claim("issuer", "jti", UNTIL)
    own.do("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    assert "allkeys-lru" in refuses(RedisReplayGuard(url, SERVICE), "other")


def test_a_redis_that_tells_its_policy_to_nobody_is_refused_unless_its_owner_vouches(own: Redis) -> None:
    own.do("ACL", "SETUSER", "guard", "on", ">word", "~peerseal:*", "+set")
    url = own.url.replace("redis://", "redis://guard:word@")
    assert "policy is None" in refuses(RedisReplayGuard(url, SERVICE))
    assert RedisReplayGuard(url, SERVICE, assume_noeviction=True).claim("issuer", "jti", UNTIL)


def test_a_full_redis_refuses_and_forgets_nothing(own: Redis) -> None:
    guard = guard_at(own)
    assert guard.claim("issuer", "jti", UNTIL)
    own.do("CONFIG", "SET", "maxmemory", "1")
    assert "maxmemory" in refuses(guard, "other")
    assert "maxmemory" in refuses(guard_at(own, unsafe_fallback=MemoryReplayGuard()), "other")
    own.do("CONFIG", "SET", "maxmemory", "0")
    assert not guard.claim("issuer", "jti", UNTIL)


# ---- outages


def test_while_redis_is_down_nothing_is_accepted_and_the_next_claim_after_its_restart_is(own: Redis) -> None:
    guard = guard_at(own)
    assert guard.claim("issuer", "1", UNTIL)
    own.kill()
    for jti in ("1", "2", "2"):
        assert "cannot be used" in refuses(guard, jti)
    own.start()
    assert guard.claim("issuer", "2", UNTIL)
    assert not guard.claim("issuer", "2", UNTIL)


def test_a_restart_between_two_claims_is_not_even_noticed(own: Redis) -> None:
    guard = guard_at(own)
    assert guard.claim("issuer", "1", UNTIL)
    own.kill()
    own.start()
    assert guard.claim("issuer", "2", UNTIL)


def test_a_frozen_redis_is_waited_for_once_in_a_while_and_not_by_every_request(own: Redis, clock: Clock) -> None:
    guard = guard_at(own, clock)
    assert guard.claim("issuer", "1", UNTIL)
    longest = RedisReplayGuard.CONNECT_TIMEOUT + RedisReplayGuard.ANSWER_TIMEOUT
    with own.frozen():
        began = time.monotonic()
        assert "Timeout" in refuses(guard, "2")
        assert time.monotonic() - began < 2 * longest
        for _ in range(2):
            assert "a moment ago" in refuses(guard, "2"), "it is not asked"
        clock.advance(RedisReplayGuard.COOLDOWN)
        began = time.monotonic()
        assert "Timeout" in refuses(guard, "3")
        assert time.monotonic() - began < 2 * longest
    clock.advance(RedisReplayGuard.COOLDOWN)
    assert guard.claim("issuer", "4", UNTIL)


def test_eight_threads_at_a_frozen_redis_all_have_their_answer_in_that_time(own: Redis) -> None:
    guard = guard_at(own)
    began, answers = time.monotonic(), []
    with own.frozen():
        threads = [threading.Thread(target=lambda n=n: answers.append(refuses(guard, str(n)))) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(answers) == 8
    one = RedisReplayGuard.CONNECT_TIMEOUT + RedisReplayGuard.ANSWER_TIMEOUT
    assert time.monotonic() - began < 3 * one, "they wait at once, and not one after the other"


def test_a_wrong_password_is_never_taken_for_an_outage(own: Redis) -> None:
    own.do("CONFIG", "SET", "requirepass", "word")
    guard = guard_at(own, unsafe_fallback=MemoryReplayGuard())
    assert "word" not in refuses(guard)
    assert refuses(RedisReplayGuard(own.url.replace("//", "//:wrong@"), SERVICE, unsafe_fallback=MemoryReplayGuard()))
    assert RedisReplayGuard(own.url.replace("//", "//:word@"), SERVICE).claim("issuer", "jti", UNTIL)


def test_a_replica_that_takes_no_writes_accepts_nothing(own: Redis) -> None:
    own.do("REPLICAOF", "127.0.0.1", "9")
    assert "read only" in refuses(guard_at(own))
    assert guard_at(own, unsafe_fallback=MemoryReplayGuard()).claim("issuer", "jti", UNTIL), "a fail-over is an outage"


class TestTheUnsafeFallback:
    def test_it_decides_while_redis_is_down_and_says_so_loudly(
        self, own: Redis, clock: Clock, caplog: pytest.LogCaptureFixture
    ) -> None:
        guard = guard_at(own, clock, unsafe_fallback=MemoryReplayGuard(clock=clock))
        assert "will accept tokens that other hosts have accepted" in caplog.text
        own.kill()
        for _ in range(3):
            assert guard.claim("issuer", f"{clock.now}", UNTIL)
            assert not guard.claim("issuer", f"{clock.now}", UNTIL)
            clock.advance(RedisReplayGuard.WARN_EVERY - 1)
        assert len([record for record in caplog.records if record.message.startswith("UNSAFE")]) == 2

    def test_what_was_accepted_here_is_not_accepted_again_when_redis_goes_or_comes_back(self, own: Redis) -> None:
        guard = guard_at(own, unsafe_fallback=MemoryReplayGuard())
        assert guard.claim("issuer", "before", time.time() + 90)
        own.kill()
        assert not guard.claim("issuer", "before", time.time() + 90)
        assert guard.claim("issuer", "meanwhile", time.time() + 90)
        own.start()
        assert not guard.claim("issuer", "meanwhile", time.time() + 90)

    def test_while_redis_is_there_another_host_s_tokens_are_known(self, redis: Redis) -> None:
        one, other = (guard_at(redis, unsafe_fallback=MemoryReplayGuard()) for _ in range(2))
        assert one.claim("issuer", "jti", time.time() + 90)
        assert not other.claim("issuer", "jti", time.time() + 90)


# ---- a lost reply


class Relay:
    """Stands between guard and Redis, and speaks TLS where it is given a ``context``. With ``lose_replies`` it passes
    commands on and cuts the line when they are answered."""

    def __init__(self, redis: Redis, context: ssl.SSLContext | None = None) -> None:
        self._context = context
        self._redis = redis
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        self.lose_replies = False
        self.connections = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with contextlib.suppress(OSError):
                near = self._context.wrap_socket(near, server_side=True) if self._context else near
                far = socket.create_connection(("127.0.0.1", self._redis.port))
                for source, sink, replies in ((near, far, False), (far, near, True)):
                    threading.Thread(target=self._pass, args=(source, sink, replies), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, replies: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if replies and self.lose_replies:
                    break
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("options", ["", "?retry_on_timeout=true", "?retry=9"])
def test_where_the_reply_is_lost_the_token_is_refused_and_not_asked_about_again(redis: Redis, options: str) -> None:
    """Redis has carried the command out, and a second one would be told that the token is known, or worse."""
    relay = Relay(redis)
    guard = RedisReplayGuard(relay.url + options, SERVICE)
    assert guard.claim("issuer", "before", UNTIL)
    relay.lose_replies = True
    assert "cannot be used" in refuses(guard)
    assert sets(redis) == 2
    assert relay.connections == 1
    relay.lose_replies = False
    assert not guard.claim("issuer", "jti", UNTIL), "it is used up: the caller signs another"
    assert sets(redis) == 3
    relay.close()


def test_a_reply_that_comes_too_late_is_not_taken_for_the_next_one_s(own: Redis, clock: Clock) -> None:
    guard = guard_at(own, clock)
    assert guard.claim("issuer", "known", UNTIL)
    with own.frozen():
        refuses(guard, "new")
    clock.advance(RedisReplayGuard.COOLDOWN)
    assert not guard.claim("issuer", "known", UNTIL), "the reply to `new` was OK, and is nobody's"


def test_over_tls_a_redis_is_believed_only_with_a_certificate_that_we_trust(redis: Redis, tmp_path: Path) -> None:
    ours, others = (Authority.make(tmp_path, name) for name in ("ours", "others"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*ours.issue("redis", server=True))
    relay = Relay(redis, context)
    url = relay.url.replace("redis://", "rediss://")
    assert "certificate" in refuses(RedisReplayGuard(f"{url}?ssl_ca_certs={others.file}", SERVICE))
    assert sets(redis) == 0
    guard = RedisReplayGuard(f"{url}?ssl_ca_certs={ours.file}", SERVICE)
    assert [guard.claim("issuer", "jti", UNTIL) for _ in range(2)] == [True, False]
    relay.close()
