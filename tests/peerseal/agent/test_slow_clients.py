"""A real agent and clients that do not send a whole request, or do not read the answer: each is cut in time."""

import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack

import pytest

from tests.support.impatient_agent import LAST, LIMITS, WHOLE, ImpatientAgent, answer_on, until_closed
from tests.support.processes import free_port
from tests.support.waiting import until

pytestmark = pytest.mark.e2e

on_one_place = pytest.mark.parametrize("agent", ["unix"], indirect=True)
"""Saves seconds: the protocol is the same on loopback, where an unread answer fills megabytes."""


def takes(client: socket.socket, data: bytes) -> bool:
    """Whether the connection is still open when it is sent this, as far as there is room."""
    try:
        client.send(data, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return True
    except ConnectionError:
        return False
    return True


@pytest.fixture(scope="module", params=["unix", "loopback"])
def agent(
    request: pytest.FixtureRequest, settings: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ImpatientAgent]:
    folder = tmp_path_factory.mktemp("run")
    place = folder / "agent.sock" if request.param == "unix" else free_port()
    with ImpatientAgent(place, log=folder / "log", settings=settings) as agent:
        until(lambda: not agent.running or agent.answers(), what="an agent")
        assert agent.running, agent.output()
        yield agent


def test_more_connections_than_it_may_have_do_not_keep_a_caller_out(agent: ImpatientAgent) -> None:
    with ExitStack() as held:
        clients = [held.enter_context(agent.connection(b"G")) for _ in range(LIMITS.connections + 2)]
        until(agent.answers, what="an answer")
        assert [until_closed(client) for client in clients] == [b""] * len(clients)


@on_one_place
def test_a_first_request_that_does_not_end_is_cut(agent: ImpatientAgent) -> None:
    half_a_body = b"POST /sign HTTP/1.1\r\nHost: agent\r\nContent-Length: 2\r\n\r\n{"
    with ExitStack() as held:
        clients = [held.enter_context(agent.connection(sent)) for sent in (b"", b"G", WHOLE[:-2], half_a_body)]
        assert [until_closed(client) for client in clients] == [b""] * 4


@on_one_place
def test_a_later_request_that_does_not_end_is_cut(agent: ImpatientAgent) -> None:
    with agent.connection(WHOLE) as later, agent.connection(WHOLE) as empty, agent.connection(WHOLE + b"G") as same:
        for client, sent in ((later, b"G"), (empty, b"\r\n"), (same, b"")):
            assert answer_on(client).startswith(b"HTTP/1.1 200 ")
            client.sendall(sent)
        assert [until_closed(client) for client in (later, empty, same)] == [b""] * 3


@on_one_place
def test_a_client_that_sends_a_byte_at_a_time_gets_no_more_time(agent: ImpatientAgent) -> None:
    with agent.connection(b"GET /") as client:
        until(lambda: not takes(client, b"a"), what="the end of the connection")


@on_one_place
def test_a_client_that_does_not_read_is_cut(agent: ImpatientAgent) -> None:
    with agent.connection(WHOLE) as client:
        until(lambda: not takes(client, WHOLE), what="the end of the connection", every=0)


@on_one_place
def test_an_idle_connection_is_kept(agent: ImpatientAgent) -> None:
    with agent.connection(WHOLE) as idle:
        assert answer_on(idle).startswith(b"HTTP/1.1 200 ")
        with agent.connection(b"G") as later:
            until_closed(later)
        idle.sendall(LAST)
        assert until_closed(idle).startswith(b"HTTP/1.1 200 ")
