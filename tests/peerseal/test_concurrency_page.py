"""docs/explanation/concurrency.md: what it says of threads is so, and its lines run as they stand there."""

import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from flask import Flask
from werkzeug.exceptions import ServiceUnavailable

import peerseal
from peerseal import Transaction, carrying, current_transaction, propagate
from peerseal.errors import TooManyCalls
from peerseal.flask import PeerAuth, current_peer
from peerseal.requests import PeerSession
from peerseal.testing import MemoryRegistry
from peerseal.transport.deadline import no_longer_than, time_left
from tests.support.misbehaving import misbehaving
from tests.support.waiting import until
from tests.support.wire import NOW, Answer, Keys, RawServer, Service

PAGE = (Path(__file__).parents[2] / "docs/explanation/concurrency.md").read_text()
[OPTIONS, BULKHEAD, POOL] = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)


@pytest.fixture
def session(server: RawServer) -> Iterator[PeerSession]:
    with PeerSession(Service("caller", Keys(), now=NOW), "callee", server.url) as session:
        yield session


def ada() -> Transaction:
    return Transaction("t", "ada", frozenset(("read",)), {}, {}, "d/edge", "d/edge", lambda: "token of ada")


def test_the_options_are_those_of_a_session() -> None:
    with MemoryRegistry() as registry:
        names: dict[str, Any] = {"identity": registry.identity("shop")}
        exec(OPTIONS, names)
        assert isinstance(names["stock"], PeerSession)


def test_a_bulkhead_refuses_at_once_what_finds_no_place_and_lets_in_again() -> None:
    over = threading.Event()

    def answers_when_it_is_told_to(connection: socket.socket) -> None:
        assert over.wait(30)
        connection.sendall(Answer(body=b"{}").encode())

    with misbehaving(answers_when_it_is_told_to) as server, MemoryRegistry() as registry:
        names: dict[str, Any] = {
            "peerseal": peerseal,
            "identity": registry.identity("shop"),
            "TooManyCalls": TooManyCalls,
            "ServiceUnavailable": ServiceUnavailable,
        }
        exec(BULKHEAD.replace("http://reports:8080", server.url), names)
        with ThreadPoolExecutor(16) as pool:
            running = [pool.submit(names["report"], number) for number in range(16)]
            until(lambda: server.asked == 16)
            with pytest.raises(ServiceUnavailable):
                names["report"](17)
            over.set()
            assert [future.result() for future in running] == [{}] * 16
        assert names["report"](18) == {}
    assert server.asked == 17


def test_its_numbers_are_the_defaults() -> None:
    limits = peerseal.CallLimits()
    connect, read = limits.connect_timeout, limits.read_timeout
    assert f"`deadline` ({limits.deadline:g} s)" in PAGE
    assert f"the connection ({connect:g} s) and the wait for the next bytes ({read:g} s)" in " ".join(PAGE.split())
    assert f"{limits.max_running} places by default" in PAGE


def test_through_propagate_each_piece_of_work_is_for_the_user_and_in_a_plain_pool_for_none() -> None:
    def price_of(_: object) -> str | None:
        current = current_transaction()
        return None if current is None else current.user

    names: dict[str, Any] = {
        "peerseal": peerseal,
        "ThreadPoolExecutor": ThreadPoolExecutor,
        "price_of": price_of,
        "items": [1, 2, 3],
    }
    with carrying(ada()):
        exec(POOL, names)
        with ThreadPoolExecutor(1) as plain:
            assert plain.submit(price_of, 1).result() is None
    assert names["prices"] == ["ada"] * 3
    names["pool"].shutdown()


def test_the_caller_of_a_flask_view_goes_along_through_propagate_only() -> None:
    with MemoryRegistry() as registry, ThreadPoolExecutor(1) as plain:
        client, app = registry.identity("client"), Flask(__name__)
        PeerAuth(app, registry.identity("callee"), allow={"client": ()})

        @app.get("/")
        def view() -> dict[str, Any]:
            def caller() -> str:
                return current_peer.service

            lost: str | None
            try:
                lost = plain.submit(caller).result()
            except RuntimeError:  # Flask knows of no request there
                lost = None
            return {"plain": lost, "propagated": propagate(plain).submit(caller).result()}

        token = client.sign_request("callee", method="GET", target="/")
        answer = app.test_client().get("/", headers={"Authorization": f"Bearer {token}"})
        assert answer.get_json() == {"plain": None, "propagated": "client"}


def test_neither_ctx_nor_deadline_of_a_call_under_way_goes_along(session: PeerSession, server: RawServer) -> None:
    with ThreadPoolExecutor(1) as plain:
        left: list[float] = []

        def call() -> None:
            left.append(time_left())
            session.get("/in-a-thread")

        def elsewhere(prepared: requests.PreparedRequest) -> requests.PreparedRequest:
            propagate(plain).submit(call).result()
            return prepared

        with no_longer_than(30):
            session.get("/first", ctx={"a": 1}, auth=elsewhere)
    assert left == [float("inf")]
    assert {seen.target: seen.claims.get("ctx") for seen in server.seen} == {"/in-a-thread": None, "/first": {"a": 1}}


def test_a_session_keeps_ten_connections_and_makes_more_where_they_are_needed(session: PeerSession) -> None:
    adapter = session.get_adapter("http://callee.test")
    assert isinstance(adapter, requests.adapters.HTTPAdapter)
    pool = adapter.poolmanager.connection_from_url("http://callee.test")
    assert pool.pool is not None
    assert (pool.pool.maxsize, pool.block) == (10, False)
