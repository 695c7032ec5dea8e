"""One worker of the registry under gunicorn, with many peers that wait for a change at once."""

import json
import selectors
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self, Unpack

import psycopg
import pytest
from sqlalchemy import make_url

from demo.processes import ServerOptions
from demo.stack import Stack
from peerseal import Identity, TrustLimits, TrustStore
from peerseal.protocol.encoding import b64url_decode
from registry.limits import Limits
from registry.services.registry import Registry
from registry.serving import gunicorn_conf
from registry.settings import Settings
from tests.registry.web.test_metrics import samples_of
from tests.support.load import at_a_time, get
from tests.support.processes import LOOPBACK, Server, gunicorn
from tests.support.revoked import is_revoked
from tests.support.waiting import until

BY = {"local": "test"}


class Peers:
    """Connections, each with one call that waits."""

    def __init__(self, server: Server, count: int, path: str) -> None:
        self._path = path
        self._stack = ExitStack()
        self._waiting = self._stack.enter_context(selectors.DefaultSelector())
        port = int(server.url.rpartition(":")[2])
        for _ in range(count):
            connection = self._stack.enter_context(socket.create_connection((LOOPBACK, port)))
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            self._waiting.register(connection, selectors.EVENT_READ)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def answers(self, within: float) -> list[bytes]:
        """The body of each answer that comes in that time, of which none may be refused."""
        received: dict[object, bytes] = {}
        found: list[bytes] = []
        deadline = time.monotonic() + within
        while self._waiting.get_map() and time.monotonic() < deadline:
            for ready, _ in self._waiting.select(0.1):
                piece = ready.fileobj.recv(65536)  # type: ignore[union-attr]
                received[ready.fileobj] = received.get(ready.fileobj, b"") + piece
                head, _, body = received[ready.fileobj].partition(b"\r\n\r\n")
                if not piece or (body and len(body) >= int(head.lower().partition(b"content-length: ")[2].split()[0])):
                    assert head.startswith(b"HTTP/1.1 200 "), head
                    self._waiting.unregister(ready.fileobj)
                    found.append(body)
        return found


@contextmanager
def served(stack: Stack, **options: Unpack[ServerOptions]) -> Iterator[tuple[Server, Registry]]:
    """One worker, and another node on the same database, in this process."""
    stack.operate("init", "--trust-domain", stack.domain)
    own = gunicorn(
        "registry",
        "registry.wsgi:app",
        port=stack.registry_port,
        log=stack.log("registry"),
        settings=stack.registry_settings,
        **{"workers": 1, "config": "python:registry.gunicorn_conf", **options},
    )
    node = Registry(Settings.from_environ(stack.registry_settings))
    node.join_tokens.create("warm", 600, 1, BY)
    try:
        yield stack.keep(own).wait_until_answers(f"{stack.registry_url}/readyz"), node
    finally:
        node.store.engine.dispose()


def head_of(server: Server) -> int:
    return int(json.loads(b64url_decode(get(f"{server.url}/v1/changes")[1].split(b".")[1].decode()))["seq"])


def waiting(server: Server) -> float:
    found = samples_of(get(f"{server.url}/metrics")[1].decode())
    return found.get(("registry_waiting_calls", frozenset()), 0)


@contextmanager
def peers(server: Server, count: int, wait: int = 20, services: str = "", besides: int = 0) -> Iterator[Peers]:
    """So many that wait, once they all do ``besides`` others: for changes of some services, or of all."""
    filtered = services and f"&services={services}"
    with Peers(server, count, f"/v1/changes?since={head_of(server)}&wait={wait}{filtered}") as some:
        until(lambda: waiting(server) == besides + count)
        yield some


def assert_told(answers: list[bytes], count: int) -> None:
    """One and the same list, for each of them."""
    assert len(answers) == count
    assert len(set(answers)) == 1


@pytest.fixture
def on_sqlite(tmp_path: Path) -> Iterator[Stack]:
    with Stack(tmp_path) as stack:
        yield stack


@pytest.mark.e2e
@pytest.mark.parametrize("preload", [False, True], ids=["loaded after the fork", "before the fork"])
def test_more_peers_wait_than_calls_are_served_at_once_and_all_are_told(on_sqlite: Stack, preload: bool) -> None:
    count = 5 * gunicorn_conf.threads
    on_sqlite.registry_settings["REGISTRY_PRELOAD"] = str(int(preload))
    with served(on_sqlite) as (server, node), peers(server, count) as some:
        assert at_a_time(4, 40, lambda: get(f"{server.url}/readyz")[0]) == {200: 40}
        node.join_tokens.create("billing", 600, 1, BY)
        assert_told(some.answers(within=10), count)


@pytest.mark.e2e
def test_a_change_is_told_only_to_the_peers_that_watch_its_service(on_sqlite: Stack) -> None:
    with (
        served(on_sqlite) as (server, node),
        peers(server, 20, services="billing,shop") as billing,
        peers(server, 10, services="shipping", besides=20) as shipping,
    ):
        node.policies.set_policy("shipping", {"allow": {}}, {0}, BY)
        assert_told(shipping.answers(within=10), 10)
        assert waiting(server) == 20
        node.policies.set_policy("billing", {"allow": {}}, {0}, BY)
        assert_told(billing.answers(within=10), 20)


@pytest.mark.e2e
def test_a_store_is_told_at_once_of_a_service_that_it_began_to_know_while_it_waited(on_sqlite: Stack) -> None:
    """The registry would hold its question for 50 s."""
    on_sqlite.registry_settings["REGISTRY_WAIT"] = "50"
    with served(on_sqlite) as (server, _), ExitStack() as stack:
        quiet = TrustLimits(poll_interval=3600.0)
        kids = list[str]()
        for name in ("first", "second"):
            token = on_sqlite.join_token(name)
            identity = Identity(name, registry=server.url, join_token=token, limits=quiet).start()
            stack.callback(identity.stop)
            kids.append(identity.credentials.key_id)
        trust = TrustStore(server.url, limits=TrustLimits(wait=50.0))
        stack.callback(trust.stop)
        for kid in kids:
            trust.key(kid)
            until(lambda: waiting(server) == 1)
        on_sqlite.operate("revoke", kids[1])
        until(lambda: is_revoked(trust, kids[1]))
        assert trust.key(kids[0]).kid == kids[0]


@pytest.mark.e2e
def test_a_worker_that_is_told_to_stop_answers_all_who_wait(on_sqlite: Stack) -> None:
    with served(on_sqlite) as (server, _), peers(server, 30) as some:
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 8
        assert len(some.answers(within=10)) == 30


@pytest.mark.e2e
@pytest.mark.thorough
def test_500_peers_wait_at_one_worker_and_others_are_served_meanwhile(stack: Stack) -> None:
    with served(stack) as (server, node):
        for round_ in range(3):
            with peers(server, 500) as some:
                assert connections(stack) <= 30, "none for a call that waits; this process has some, too"
                assert threads(server) <= 2 * gunicorn_conf.threads
                began = time.monotonic()
                assert at_a_time(8, 400, lambda: get(f"{server.url}/.well-known/peerseal-registry")[0]) == {200: 400}
                assert time.monotonic() - began < 10
                node.join_tokens.create(f"billing{round_}", 600, 1, BY)
                assert_told(some.answers(within=15), 500)


@pytest.mark.e2e
def test_a_client_that_goes_away_while_it_waits_leaves_its_place_at_once(on_sqlite: Stack) -> None:
    on_sqlite.registry_settings["REGISTRY_WAITING_CALLS"] = "20"
    with served(on_sqlite) as (server, node):
        for _ in range(3):
            with peers(server, 20):
                began = time.monotonic()
                assert len(Peers(server, 5, f"/v1/changes?since={head_of(server)}&wait=20").answers(10)) == 5
                assert time.monotonic() - began < 10, "there are too many, so these are answered at once"
        with peers(server, 20) as some:
            node.join_tokens.create("billing", 600, 1, BY)
            assert_told(some.answers(within=10), 20)


@pytest.mark.e2e
def test_a_client_that_goes_away_before_it_waits_takes_no_place(on_sqlite: Stack) -> None:
    with served(on_sqlite) as (server, _):
        path = f"/v1/changes?since={head_of(server)}&wait=20"
        for _ in range(50):
            with Peers(server, 1, path):
                pass
        until(lambda: b"registry_waiting_calls 0.0" in get(f"{server.url}/metrics")[1], patience=10)
        time.sleep(1)  # each of them was served meanwhile
        assert b"registry_waiting_calls 0.0" in get(f"{server.url}/metrics")[1]


def threads(server: Server) -> int:
    """Of its one worker."""
    [worker] = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    return len(list(Path(f"/proc/{worker}/task").iterdir()))


def connections(stack: Stack) -> int:
    """To the registry's PostgreSQL, of whatever process; none where it is on SQLite."""
    url = make_url(stack.registry_settings["REGISTRY_DATABASE_URL"])
    if url.get_backend_name() == "sqlite":
        return 0
    with psycopg.connect(host=str(url.query["host"]), user="postgres", dbname=url.database) as own:
        row = own.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()").fetchone()
        assert row is not None
        return int(row[0])


def test_one_address_leaves_places_to_others() -> None:
    assert Limits().waiting_calls_of_address <= gunicorn_conf.WAITING_CALLS / 2
