"""A real agent with time for each client, and more clients than it may have. They ask nothing, or lack the secret."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack

import pytest

from tests.support.impatient_agent import LIMITS, SECRET, WHOLE, ImpatientAgent, answer_on, until_closed
from tests.support.processes import free_port
from tests.support.waiting import until

pytestmark = pytest.mark.e2e

AN_HOUR = 3600
CROWD = LIMITS.connections + 2
WITH_SECRET = WHOLE.replace(b"\r\n\r\n", f"\r\npeerseal-agent-secret: {SECRET}\r\n\r\n".encode())
HALF_A_BODY = WITH_SECRET.replace(b"GET /healthz", b"POST /sign").replace(
    b"\r\n\r\n", b"\r\nContent-Length: 2\r\n\r\n{"
)
WITHOUT = b"POST /sign HTTP/1.1\r\nHost: agent\r\npeerseal-agent-secret: %s\r\nContent-Length: 2\r\n\r\n{}"


@pytest.fixture(scope="module", params=["unix", "loopback"])
def agent(
    request: pytest.FixtureRequest, settings: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ImpatientAgent]:
    folder = tmp_path_factory.mktemp("run")
    place = folder / "agent.sock" if request.param == "unix" else free_port()
    with ImpatientAgent(place, log=folder / "log", settings=settings, transfer=AN_HOUR) as agent:
        until(lambda: not agent.running or agent.answers(), what="an agent")
        assert agent.running, agent.output()
        yield agent


on_loopback = pytest.mark.parametrize("agent", ["loopback"], indirect=True)


@pytest.mark.parametrize(
    "sent", [b"", b"G", WHOLE[:-2], HALF_A_BODY], ids=["nothing", "a byte", "half a head", "half a body"]
)
def test_a_crowd_without_a_whole_request_keeps_no_caller_out(agent: ImpatientAgent, sent: bytes) -> None:
    with ExitStack() as held:
        for _ in range(CROWD):
            held.enter_context(agent.connection(sent))
        until(agent.answers, what="an answer")


def test_a_caller_that_was_answered_keeps_its_connection_in_a_crowd(agent: ImpatientAgent) -> None:
    with ExitStack() as held:
        caller = held.enter_context(agent.connection(WITH_SECRET))
        answer_on(caller)
        for _ in range(CROWD):
            held.enter_context(agent.connection(b""))
        until(agent.answers, what="an answer")
        caller.sendall(WITH_SECRET)
        assert answer_on(caller).startswith(b"HTTP/1.1 200 ")


@on_loopback
@pytest.mark.parametrize("given", [b"", b"wrong"], ids=["none", "wrong"])
def test_a_program_without_the_secret_is_refused_and_keeps_no_connection(agent: ImpatientAgent, given: bytes) -> None:
    with agent.connection(WITHOUT % given) as client:
        assert until_closed(client).startswith(b"HTTP/1.1 403 ")


@on_loopback
def test_the_health_of_the_agent_is_told_without_the_secret_and_no_connection_is_kept(agent: ImpatientAgent) -> None:
    with agent.connection(WHOLE) as client:
        assert until_closed(client).startswith(b"HTTP/1.1 200 ")


@on_loopback
def test_a_crowd_with_wrong_secrets_keeps_no_caller_out(agent: ImpatientAgent) -> None:
    with ExitStack() as held:
        crowd = [held.enter_context(agent.connection(WITHOUT % b"wrong")) for _ in range(CROWD)]
        until(agent.answers, what="an answer")
        assert all(until_closed(client)[:13] in (b"", b"HTTP/1.1 403 ", b"HTTP/1.1 503 ") for client in crowd)
        until(agent.answers, what="an answer after it")
