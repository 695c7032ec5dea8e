"""A store that stops does not wait for the registry to answer a question that it keeps."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from peerseal.errors import FetchError
from peerseal.transport.fetch import HttpFetcher


@pytest.fixture
def keeping() -> Iterator[str]:
    """A server that takes every request and answers none."""
    taken = []

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                taken.append(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        for connection in taken:
            connection.close()


def asking(fetcher: HttpFetcher, wait: float) -> tuple[threading.Thread, list[str]]:
    """A thread that asks, and what became of it."""
    outcome: list[str] = []

    def ask() -> None:
        try:
            fetcher.ask("/v1/changes", lambda answer: answer, wait=wait)
        except FetchError as error:
            outcome.append(error.code)

    thread = threading.Thread(target=ask)
    thread.start()
    return thread, outcome


def test_a_question_that_is_kept_ends_when_the_asker_hangs_up(keeping: str) -> None:
    fetcher = HttpFetcher([keeping])
    thread, outcome = asking(fetcher, wait=60)
    began = time.monotonic()
    while thread.is_alive() and time.monotonic() - began < 10:
        fetcher.hang_up()
        thread.join(0.01)
    assert outcome in (["fetch_failed"], ["answer_too_slow"])
    assert not fetcher._kept


def test_other_calls_go_on(keeping: str) -> None:
    fetcher = HttpFetcher([keeping])
    thread, _ = asking(fetcher, wait=0)
    for _ in range(20):
        fetcher.hang_up()
        thread.join(0.01)
    assert thread.is_alive()
