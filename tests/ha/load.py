"""Calls from outside at a steady pace, each noted: what was refused and for how long, and what was acknowledged."""

import http.client
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Final, Self
from urllib.parse import urlsplit

from benchmarks.newcomers import Newcomer
from peerseal.protocol.join import JoinToken
from peerseal.protocol.keys import KeyPair
from tests.ha.deployment import DOMAIN

TIMEOUT: Final = 10.0
"""Seconds after which a caller gives up."""
AT_ONCE: Final = 100
"""Calls of one sort under way at most. While that many hang, no further one is made."""


def call(method: str, url: str, body: bytes | None = None) -> int:
    """The status of one call, on a connection of its own. Raises OSError or http.client.HTTPException."""
    parts = urlsplit(url)
    headers = {"Content-Type": "application/json"} if body else {}
    with closing(http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT)) as connection:
        connection.request(method, parts.path, body, headers)
        answer = connection.getresponse()
        answer.read()
        return answer.status


@dataclass(frozen=True, slots=True)
class Attempt:
    """One call, from ``began`` to ``ended`` (monotonic seconds); ``refusal`` is its status or error, None where it
    succeeded."""

    began: float
    ended: float
    refusal: str | None

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended - self.began


@dataclass(slots=True)
class Series:
    """All calls of one sort."""

    attempts: list[Attempt] = field(default_factory=list)

    @property
    def refused(self) -> list[Attempt]:
        """Those that did not succeed."""
        return [attempt for attempt in self.attempts if attempt.refusal is not None]

    @property
    def outage(self) -> float:
        """Seconds from the beginning of the first refused call to the end of the first good one after the last."""
        refused = self.refused
        if not refused:
            return 0.0
        last = max(attempt.began for attempt in refused)
        after = [attempt.ended for attempt in self.attempts if attempt.refusal is None and attempt.began > last]
        return min(after, default=max(attempt.ended for attempt in refused)) - min(one.began for one in refused)

    def succeeded_since(self, moment: float) -> bool:
        """Whether a call that began after that moment has succeeded."""
        return any(attempt.refusal is None and attempt.began > moment for attempt in tuple(self.attempts))


def longest(attempts: Sequence[Attempt]) -> float:
    """Seconds that the slowest took."""
    return max((attempt.seconds for attempt in attempts), default=0.0)


class Trickle:
    """Makes ``attempt`` so many times a second until it is left, however long each takes. ``attempt`` says what was
    refused, or None."""

    def __init__(self, attempt: Callable[[], str | None], per_second: float) -> None:
        self.series = Series()
        self._attempt = attempt
        self._pause = 1 / per_second
        self._room = threading.Semaphore(AT_ONCE)
        self._stopping = threading.Event()
        self._thread = threading.Thread()  # not started

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Begin, or begin again."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        """Make no further call, and wait for the answers of all that were made."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            due = time.monotonic()
            while not self._stopping.wait(max(0.0, due - time.monotonic())):
                if self._room.acquire(blocking=False):
                    pool.submit(self._once)
                due += self._pause

    def _once(self) -> None:
        began = time.monotonic()
        try:
            refusal = self._attempt()
        except (OSError, http.client.HTTPException) as error:
            refusal = type(error).__name__
        self.series.attempts.append(Attempt(began, time.monotonic(), refusal))
        self._room.release()


def reading(urls: Sequence[str]) -> Callable[[], str | None]:
    """Attempts to read these in turn."""
    turns = itertools.cycle(urls)

    def attempt() -> str | None:
        status = call("GET", next(turns))
        return None if status == 200 else str(status)

    return attempt


class Registrations:
    """Attempts to register a new key each, by join tokens of several services."""

    def __init__(self, url: str, tokens: dict[str, JoinToken]) -> None:
        self.acknowledged: list[Newcomer] = []
        self._url = url
        self._turns = itertools.cycle(tokens.items())

    def attempt(self) -> str | None:
        """One more. Whatever answer came, 201 alone is an acknowledgement."""
        service, token = next(self._turns)
        newcomer = Newcomer(service, KeyPair.generate("ES256"), token)
        status = call("POST", f"{self._url}/v1/services/{service}/keys", newcomer.body(DOMAIN, time.time()))
        if status != 201:
            return str(status)
        self.acknowledged.append(newcomer)
        return None
