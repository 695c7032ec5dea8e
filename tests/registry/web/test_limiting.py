"""How often one address may be refused: counted in memory, and in Redis where there are several nodes."""

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from limits.storage import MemoryStorage
from werkzeug.test import TestResponse

from demo.processes import Process, free_port
from peerseal.errors import ConfigurationError
from registry.app import create_app
from registry.limits import Limits
from registry.web.limiting import UNREADABLE_ACCOUNTS, WINDOW, RefusalLimit, calling_account
from tests.registry.driver import Clock, Driver, settings_at
from tests.support.keys import key
from tests.support.redis import redis_server

LIMIT = 5
LIMITS = Limits(refusals_per_minute=LIMIT)

Node = Callable[..., Driver]


@pytest.fixture
def node(sqlite_url: str, tmp_path: Path) -> Iterator[Node]:
    nodes = []

    def make(**changes: Any) -> Driver:
        nodes.append(Driver(sqlite_url, tmp_path / "home", **{"limits": LIMITS, **changes}))
        return nodes[-1]

    yield make
    for each in nodes:
        each.close()


def refused(registry: Driver, address: str = "192.0.2.1", forwarded: str | None = None) -> TestResponse:
    """A registration without a right."""
    headers = {"Content-Type": "application/json", **({"X-Forwarded-For": forwarded} if forwarded else {})}
    environ = {"REMOTE_ADDR": address}
    return registry.client.post("/v1/services/billing/keys", data=b"{}", headers=headers, environ_overrides=environ)


def statuses(registry: Driver, count: int, *where: Any) -> list[int]:
    return [refused(registry, *where).status_code for _ in range(count)]


def test_an_address_that_is_refused_too_often_has_to_wait(node: Node) -> None:
    registry = node()
    assert statuses(registry, LIMIT) == [400] * LIMIT
    answer = refused(registry)
    assert (answer.status_code, answer.content_type) == (429, "application/problem+json")
    assert answer.get_json()["code"] == "too_many_refusals"
    assert answer.headers["Retry-After"] == "60"
    assert refused(registry, "192.0.2.2").status_code == 400, "others do not"


def test_the_log_names_the_address_that_has_to_wait(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    registry = node()
    with caplog.at_level(logging.INFO):
        statuses(registry, LIMIT)
        assert "192.0.2.1" not in caplog.text
        refused(registry)
    assert f"more than {LIMIT} refusals per minute: account=192.0.2.1" in caplog.messages


def test_all_refused_writes_of_an_address_count_together(node: Node) -> None:
    registry = node()
    environ = {"REMOTE_ADDR": "192.0.2.1"}
    calls = [
        ("POST", "/v1/services/billing/keys", 415),
        ("DELETE", f"/v1/services/billing/keys/{'A' * 43}?reason=retired", 401),
        ("POST", f"/v1/services/billing/keys/{'A' * 43}/approve", 401),
        ("POST", "/v1/join-tokens", 401),
        ("DELETE", "/v1/operator-tokens/x", 401),
    ]
    for method, path, status in calls:
        assert registry.client.open(path, method=method, environ_overrides=environ).status_code == status
    for method, path, _ in calls:
        assert registry.client.open(path, method=method, environ_overrides=environ).status_code == 429


def test_a_right_is_not_looked_at_while_the_address_has_to_wait(node: Node) -> None:
    registry = node()
    token, mine = registry.join_token("billing"), key()
    statuses(registry, LIMIT + 1, "127.0.0.1")
    assert registry.join(mine, "billing", token).status_code == 429
    assert registry.client.get("/v1/join-tokens", headers=registry.operator).get_json()["join_tokens"][0]["used"] == 0
    answer = registry.client.get(f"/v1/services/billing/keys/{mine.public.thumbprint}")
    assert answer.status_code == 404, "reading is answered as ever"


def test_calls_that_succeed_are_not_counted(node: Node) -> None:
    registry = node()
    mine = registry.joined(key(), "billing")
    for _ in range(3 * LIMIT):
        assert registry.rotate(mine, mine := key(), "billing").status_code == 201
        assert registry.join(mine, "billing", registry.join_token("billing")).status_code == 200
    made = registry.client.post("/v1/join-tokens", json={"service": "billing"}, headers=registry.operator)
    assert registry.client.delete(made.headers["Location"], headers=registry.operator).status_code == 204
    assert statuses(registry, LIMIT + 1, "127.0.0.1") == [400] * LIMIT + [429]


def test_reading_is_not_counted(node: Node) -> None:
    registry = node()
    for _ in range(3 * LIMIT):
        assert registry.client.get("/v1/services/nobody/jwks.jwt").status_code == 404
        assert registry.client.get("/v1/services").status_code == 401
    assert statuses(registry, 1, "127.0.0.1") == [400]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("", "nonsense", True),
    ],
)
def test_an_ipv6_host_counts_by_its_64(node: Node, one: str, other: str, same: bool) -> None:
    registry = node()
    assert statuses(registry, LIMIT + 1, one)[-1] == 429
    assert refused(registry, other).status_code == (429 if same else 400)


def test_a_forwarded_address_is_believed_only_from_a_proxy_that_was_named(node: Node) -> None:
    direct = node()
    for number in range(LIMIT):
        refused(direct, "192.0.2.1", f"203.0.113.{number}")
    assert refused(direct, "192.0.2.1", "203.0.113.99").status_code == 429, "who makes addresses up gains nothing"
    behind = node(proxies=1)
    for _ in range(LIMIT):
        refused(behind, "192.0.2.1", "198.51.100.7")
    assert refused(behind, "192.0.2.1", "198.51.100.7").status_code == 429
    assert refused(behind, "192.0.2.1", "198.51.100.8").status_code == 400
    assert refused(behind, "192.0.2.1", "198.51.100.8, 198.51.100.7").status_code == 429, "the proxy's own word counts"


def test_a_million_applicants_from_one_address_are_stopped_by_the_limit(node: Node) -> None:
    registry = node(applicants=True)
    for number in range(4 * LIMIT):
        service = f"s{number}"
        status = registry.post_key(service, {"proof": registry.proof(key(), service)}).status_code
        assert status == (202 if number < LIMIT else 429)
    waiting = registry.client.get("/v1/applicants", headers=registry.operator).get_json()["applicants"]
    assert len(waiting) == LIMIT


def test_a_storage_that_is_none_is_a_wrong_setting(sqlite_url: str, tmp_path: Path) -> None:
    Driver(sqlite_url, tmp_path / "home").close()
    for storage in ("nonsense", "ftp://x/y"):
        with pytest.raises(ConfigurationError, match="REGISTRY_RATE_LIMIT_STORAGE"):
            create_app(settings_at(sqlite_url, tmp_path / "home", rate_limit_storage=storage))


# Redis


@pytest.fixture
def redis_port() -> int:
    return free_port()


@pytest.fixture
def redis(redis_port: int, tmp_path: Path) -> Iterator[Process]:
    with redis_server(redis_port, tmp_path / "redis.log") as server:
        wait_for(redis_port)
        yield server


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_several_nodes_count_together_in_redis(node: Node, redis: Process, redis_port: int) -> None:
    first, second = (node(rate_limit_storage=f"redis://127.0.0.1:{redis_port}/0") for _ in range(2))
    assert statuses(first, LIMIT - 1) + statuses(second, 1) == [400] * LIMIT
    assert [refused(each).status_code for each in (first, second)] == [429, 429]


def test_while_redis_is_down_each_node_counts_for_itself(
    node: Node, redis: Process, redis_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    registry = node(rate_limit_storage=f"redis://:a-password@127.0.0.1:{redis_port}/0")
    caplog.set_level(logging.INFO)
    assert statuses(registry, 1) == [400]
    redis.kill()
    assert statuses(registry, LIMIT + 1, "192.0.2.7") == [400] * LIMIT + [429], "never a 500, and never no limit"
    assert registry.joined(key(), "billing")
    assert "a-password" not in caplog.text


def test_a_redis_that_falls_silent_is_waited_for_briefly(node: Node, redis_port: int) -> None:
    with socket.create_server(("127.0.0.1", redis_port)):
        registry = node(rate_limit_storage=f"redis://127.0.0.1:{redis_port}/0")
        began = time.monotonic()
        assert statuses(registry, LIMIT + 1) == [400] * LIMIT + [429]
        assert time.monotonic() - began < 20


@pytest.mark.parametrize("storage", ["memory://", "MEMORY://", "memory:", " memory://x", "redis://127.0.0.1:1/0"])
def test_making_an_application_starts_no_thread(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: str
) -> None:
    """uWSGI forks its workers then, and one that is forked while a thread runs may hang for ever."""
    Driver(sqlite_url, tmp_path / "home").close()
    started: list[threading.Thread] = []
    monkeypatch.setattr(threading.Thread, "start", started.append)
    create_app(settings_at(sqlite_url, tmp_path / "home", console=True, rate_limit_storage=storage))
    assert started == []


class FailingStorage(MemoryStorage):
    """A storage that answers only while it ``works``, and counts the questions."""

    works = True
    asked = 0

    def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        self._answer()
        return super().incr(key, expiry, amount)

    def get(self, key: str) -> int:
        self._answer()
        return super().get(key)

    def _answer(self) -> None:
        self.asked += 1
        if not self.works:
            raise ConnectionError("redis://:a-password@redis")


def test_a_storage_that_fails_is_asked_again_after_pauses_that_grow(caplog: pytest.LogCaptureFixture) -> None:
    storage, clock = FailingStorage(), Clock()
    limit = RefusalLimit(storage, 2, clock)
    limit.add("a")
    storage.works, storage.asked = False, 0
    for pause in (1, 2, 4, 8, 16, 32, 32):
        limit.add("a")
        limit.add("a")
        assert limit.exceeded("a"), "memory counts meanwhile"
        assert storage.asked == 1
        clock.forward(pause - 0.5)
        limit.add("a")
        assert storage.asked == 1
        clock.forward(0.5)
        storage.asked = 0
    assert len(caplog.records) == 1
    assert "a-password" not in caplog.text
    storage.works = True
    limit.add("a")
    assert not limit.exceeded("b")
    assert storage.asked > 1, "every question is asked again"


def test_the_storage_is_asked_only_about_accounts_that_this_process_refused_lately() -> None:
    storage, clock = FailingStorage(), Clock()
    limit = RefusalLimit(storage, 1, clock)
    assert not limit.exceeded("a")
    assert storage.asked == 0
    limit.add("a")
    assert limit.exceeded("a")
    clock.forward(WINDOW)
    storage.asked = 0
    assert not limit.exceeded("a")
    assert storage.asked == 0


SAME = [
    "203.0.113.7",
    "203.0.113.7:50123",
    " 203.0.113.7 ",
    '"203.0.113.7:80"',
    "203.0.113.7:_port",
    "::ffff:203.0.113.7",
    "[::ffff:203.0.113.7]:80",
    "::ffff:203.0.113.7:50123",
    "64:ff9b::203.0.113.7",
    "[64:ff9b::cb00:7107]:80",
    "2002:cb00:7107:5::1",
]
SAME_V6 = [
    "2001:db8::1",
    "[2001:db8::1]",
    "[2001:db8::1]:443",
    '"[2001:db8::1]:443"',
    "2001:db8::ffff",
    "2001:db8::1%eth0",
    "[2001:DB8::1%25eth0]:1",
    "2001:db8:0:0:1:2:3:4:443",
    "2001:db8::1:50123",
]


@pytest.mark.parametrize("spellings", [SAME, SAME_V6], ids=["v4", "v6"])
def test_an_address_counts_as_one_however_a_proxy_spells_it(node: Node, spellings: list[str]) -> None:
    registry = node(proxies=1)
    answers = [refused(registry, "192.0.2.1", spelling).status_code for spelling in (spellings * LIMIT)[: LIMIT + 1]]
    assert answers == [400] * LIMIT + [429]


@pytest.mark.parametrize("form", ["203.0.113.{}:50123", "[2001:db8:{}::1]:443", "_hidden{}", '"203.0.113.{}"'])
def test_a_flooder_behind_a_proxy_with_ports_stops_no_newcomer(node: Node, form: str) -> None:
    registry = node(proxies=1)
    assert statuses(registry, LIMIT + 1, "192.0.2.1", form.format(7))[-1] == 429
    assert refused(registry, "192.0.2.1", form.format(8)).status_code == 400


UNREADABLE = [
    "unknown",
    "unknown:80",
    "host.example",
    "300.1.2.3",
    "[::1",
    "\x7f",
    "1.2.3.4.5:6",
    "_hidden",
    "a" * 9000,
]


@pytest.mark.parametrize("text", UNREADABLE)
def test_who_cannot_be_told_apart_is_limited_and_stops_nobody_else(node: Node, text: str) -> None:
    registry = node(proxies=1)
    assert statuses(registry, LIMIT + 1, "192.0.2.1", text)[-1] == 429
    for other in (*UNREADABLE, "203.0.113.9", "2001:db8:9::1"):
        if other != text:
            assert refused(registry, "192.0.2.1", other).status_code == 400
    assert refused(registry, "192.0.2.2", text).status_code == 400, "behind another proxy"
    assert refused(registry, "192.0.2.1").status_code == 400, "the proxy itself"


def test_a_flooder_whose_text_changes_with_each_call_does_not_escape(node: Node) -> None:
    registry = node(proxies=1, limits=Limits(refusals_per_minute=1))
    answers = [refused(registry, "192.0.2.1", f"host.example#{number}").status_code for number in range(3000)]
    assert answers.count(400) <= UNREADABLE_ACCOUNTS
    assert answers[-1] == 429


@pytest.mark.parametrize("claimed", ['"', '"a', "a\\", '"[', ",,", "x, ,", '"203.0.113.9', "\t", "for=1.2.3.4;by="])
def test_what_a_client_writes_before_its_address_does_not_matter(node: Node, claimed: str) -> None:
    """An open quotation mark would swallow what the proxy adds, if quoted strings were read across commas."""
    registry = node(proxies=1)
    answers = statuses(registry, LIMIT + 1, "192.0.2.1", f"{claimed}, 198.51.100.7")
    assert answers == [400] * LIMIT + [429]
    assert refused(registry, "192.0.2.1", "198.51.100.7").status_code == 429
    assert refused(registry, "192.0.2.1", f"{claimed}, 198.51.100.8").status_code == 400


@pytest.mark.parametrize("written", ["198.51.100.7,", "198.51.100.7, ,", " , 198.51.100.7 ,", "x,\t198.51.100.7"])
def test_empty_members_of_the_header_do_not_count(node: Node, written: str) -> None:
    registry = node(proxies=1)
    statuses(registry, LIMIT + 1, "192.0.2.1", written)
    assert refused(registry, "192.0.2.1", "198.51.100.7").status_code == 429


def test_of_two_proxies_the_outer_one_tells_the_client(node: Node) -> None:
    registry = node(proxies=2)
    statuses(registry, LIMIT + 1, "192.0.2.1", "198.51.100.7:4711, 10.0.0.1:80")
    assert refused(registry, "192.0.2.1", "1.2.3.4, 198.51.100.7, 10.0.0.2").status_code == 429
    assert refused(registry, "192.0.2.1", "198.51.100.7, 198.51.100.8, 10.0.0.1").status_code == 400
    assert refused(registry, "192.0.2.1", "198.51.100.7").status_code == 400, "not through both: the peer's account"


def test_a_registry_on_a_socket_file_tells_clients_apart(node: Node) -> None:
    registry = node(proxies=1)
    for text in ("198.51.100.7:1", "host.example"):
        assert statuses(registry, LIMIT + 1, "", text)[-1] == 429
    for text in ("198.51.100.8:1", "other.example"):
        assert refused(registry, "", text).status_code == 400


def test_an_address_that_cannot_be_read_is_logged_once(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    registry = node(proxies=1)
    for text in (*UNREADABLE, "\x1b[2J"):
        refused(registry, "192.0.2.1", text)
    [warning] = [record for record in caplog.records if "is no address" in record.getMessage()]
    assert "REGISTRY_PROXIES" in warning.getMessage()
    assert len(warning.getMessage()) < 400


def test_calls_that_wait_are_counted_by_the_same_address(node: Node) -> None:
    registry = node(proxies=1, limits=Limits(waiting_calls_of_address=1, wait=2))
    waiting = registry.registry.changes.waiting
    with registry.app.test_request_context(headers={"X-Forwarded-For": "203.0.113.7:1"}):
        one = calling_account()
    with registry.app.test_request_context(headers={"X-Forwarded-For": '"203.0.113.7:2"'}):
        assert calling_account() == one
    with registry.app.test_request_context(headers={"X-Forwarded-For": "203.0.113.8:2"}):
        other = calling_account()
    newest = registry.changes(0).seq
    assert waiting.add(newest, one) is not None
    assert waiting.add(newest, one) is None
    assert waiting.add(newest, other) is not None
    waiting.end()
