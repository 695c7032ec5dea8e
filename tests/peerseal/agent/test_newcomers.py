"""Which connections of a crowd are closed, at settable times."""

import asyncio
import logging

import pytest

from peerseal.agent.newcomers import Newcomers
from peerseal.testing import Clock


class Connection(asyncio.Transport):
    """A connection that knows whether it was closed."""

    closed = False

    def abort(self) -> None:
        self.closed = True


@pytest.fixture
def clock() -> Clock:
    return Clock()


def joined(newcomers: Newcomers, number: int) -> list[Connection]:
    """So many new connections."""
    connections = [Connection() for _ in range(number)]
    for connection in connections:
        newcomers.add(connection)
    return connections


def closed(connections: list[Connection]) -> list[bool]:
    return [connection.closed for connection in connections]


def test_the_oldest_is_closed_for_a_new_one(clock: Clock) -> None:
    newcomers = Newcomers(2, clock=clock)
    connections = joined(newcomers, 2)
    clock.advance(1)
    connections += joined(newcomers, 1)
    assert closed(connections) == [True, False, False]


def test_of_many_at_once_none_is_closed_before_it_could_be_read(clock: Clock) -> None:
    newcomers = Newcomers(2, clock=clock)
    connections = joined(newcomers, 5)
    assert closed(connections) == [False] * 5
    clock.advance(1)
    connections += joined(newcomers, 1)
    assert closed(connections) == [True] * 4 + [False] * 2


def test_one_that_was_answered_is_no_newcomer(clock: Clock) -> None:
    newcomers = Newcomers(2, clock=clock)
    connections = joined(newcomers, 2)
    newcomers.discard(connections[0])
    newcomers.discard(connections[0])
    clock.advance(1)
    connections += joined(newcomers, 2)
    assert closed(connections) == [False, True, False, False]


def test_the_log_has_a_line_a_minute(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    newcomers = Newcomers(1, clock=clock)
    for _ in range(61):
        joined(newcomers, 1)
        clock.advance(1)
    assert len(caplog.messages) == 1
    assert caplog.records[0].levelno == logging.WARNING
    clock.advance(1)
    joined(newcomers, 1)
    assert len(caplog.messages) == 2
