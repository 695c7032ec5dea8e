"""A load at a fixed rate, whatever the server does. It measures the time of each answer.

Calls come at random, like those of many callers, and do not wait for each other's answers. If all connections are busy
the call waits, and its time runs from the moment when it was due: a slow server cannot hide by getting fewer calls.
"""

import random
import selectors
import time
from collections import deque
from collections.abc import Collection, Sequence
from functools import partial
from itertools import accumulate

from benchmarks.load import TIMEOUT, Connection

_CONNECTIONS = 32  # of a stream, at most
_IDLE = 1.0  # seconds after which a connection is not used again: gunicorn closes it after two


class Stream:
    """Calls to the server at ``url``, so many ``per_second`` on average, each answered by one of the ``statuses``. A
    connection is made when all others are busy, and has something to send at once, or gunicorn would wait for that."""

    def __init__(self, url: str, requests: Sequence[bytes], per_second: float, statuses: Collection[int], seed: int):
        gaps = random.Random(seed)  # noqa: S311 - the same in every window
        dues = accumulate(gaps.expovariate(per_second) for _ in requests)
        self._calls = deque(zip(dues, requests, strict=True))
        self._new = partial(Connection, url, statuses)
        self._free: list[tuple[float, Connection]] = []  # with when it was used last, the latest last
        self._under_way: dict[Connection, float] = {}
        self.seconds: list[float] = []
        """The time of each answer, in the order of the answers."""

    def send_due(self, now: float, waiting: selectors.BaseSelector) -> None:
        """Send what is due after ``now`` seconds, as far as there are connections."""
        while self._calls and self._calls[0][0] <= now and len(self._under_way) < _CONNECTIONS:
            due, request = self._calls.popleft()
            connection = self._connection(now)
            connection.send_next(iter((request,)))
            self._under_way[connection] = due
            waiting.register(connection.socket, selectors.EVENT_READ, (self, connection))

    def _connection(self, now: float) -> Connection:
        if not self._free:
            return self._new()
        used, connection = self._free.pop()
        if now - used > _IDLE:
            connection.reconnect()
        return connection

    def next_due(self) -> float | None:
        """When it has something to send again; None where it has not before an answer comes."""
        return self._calls[0][0] if self._calls and len(self._under_way) < _CONNECTIONS else None

    def has_answered(self, connection: Connection, now: float, waiting: selectors.BaseSelector) -> None:
        """Something came in on that connection."""
        if connection.has_answered():
            waiting.unregister(connection.socket)
            self.seconds.append(now - self._under_way.pop(connection))
            self._free.append((now, connection))

    @property
    def is_over(self) -> bool:
        """Whether every call was answered."""
        return not self._calls and not self._under_way

    def close(self) -> None:
        """Close its connections, once it is over."""
        for _, connection in self._free:
            connection.socket.close()


def drive(*streams: Stream) -> None:
    """Run the streams at the same time until all calls are answered. Raises as `benchmarks.load.drive` does."""
    with selectors.SelectSelector() as waiting:  # whose timeouts are exact; those of epoll are in milliseconds
        began = time.perf_counter()
        while not all(stream.is_over for stream in streams):
            now = time.perf_counter() - began
            for stream in streams:
                stream.send_due(now, waiting)
            dues = [due for stream in streams if (due := stream.next_due()) is not None]
            pause = max(0.0, min(dues) - (time.perf_counter() - began)) if dues else TIMEOUT
            ready = waiting.select(pause) if waiting.get_map() else _sleep(pause)
            assert ready or dues, "no answer"
            now = time.perf_counter() - began
            for key, _ in ready:
                stream, connection = key.data
                stream.has_answered(connection, now, waiting)
    for stream in streams:
        stream.close()


def _sleep(seconds: float) -> Sequence[tuple[selectors.SelectorKey, int]]:
    time.sleep(seconds)
    return ()
