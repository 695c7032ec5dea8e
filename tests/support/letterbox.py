"""A broker in a file, which processes share: it keeps what it confirmed, in order, and fails as it is told to."""

import json
import os
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from peerseal.errors import BrokerUnavailable, MessageNotTaken, MessageTooLarge
from peerseal.messaging import Headers, Outlet


@dataclass(frozen=True)
class Letter:
    """A message as it was sent, and the process that sent it."""

    topic: str
    key: bytes | None
    payload: bytes
    headers: Headers
    pid: int


class Letterbox:
    """``away`` says for which letters the broker cannot be reached, ``refuses`` which it never takes."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._file.touch()
        self.away: Callable[[Letter], bool] = lambda _: False
        self.refuses: Callable[[Letter], bool] = lambda _: False
        self.before_confirming: Callable[[], object] = lambda: None
        self.after_confirming: Callable[[], object] = lambda: None
        self.attempts = 0
        """How many flushes there were in this process."""

    def connect(self) -> Outlet:
        """A way in."""
        return _Way(self)

    def letters(self) -> list[Letter]:
        """All that was confirmed, in order."""
        return [_read(line) for line in self._file.read_text().splitlines()]

    def payloads(self, topic: str | None = None) -> list[bytes]:
        """The same, payloads only; of one topic, if it is named."""
        return [letter.payload for letter in self.letters() if topic in (None, letter.topic)]

    def take(self, letters: list[Letter]) -> None:
        """Confirm letters, in one write. Raises BrokerUnavailable or MessageNotTaken for one of them."""
        self.attempts += 1
        self.before_confirming()
        away, refused = ([asked(letter) for letter in letters] for asked in (self.away, self.refuses))  # asked once
        taken = [letter for letter, *not_taken in zip(letters, away, refused, strict=True) if not any(not_taken)]
        with self._file.open("ab", buffering=0) as file:
            file.write(b"".join(_written(letter) for letter in taken))
        if any(refused):
            raise MessageNotTaken("a message was not taken")
        if any(away):
            raise BrokerUnavailable("messages are not confirmed")
        self.after_confirming()


class _Way:
    """See `peerseal.messaging.Outlet`."""

    LARGEST = 100_000  # bytes

    def __init__(self, box: Letterbox) -> None:
        self._box = box
        self._letters = threading.local()

    def send(self, topic: str, payload: bytes, headers: Iterable[tuple[str, bytes]], key: bytes | None = None) -> None:
        if len(payload) > self.LARGEST:
            raise MessageTooLarge("a message was not taken: it is too large")
        self._waiting().append(Letter(topic, key, payload, tuple(headers), os.getpid()))

    def flush(self, timeout: float) -> None:
        letters = self._waiting()[:]
        self._waiting().clear()
        self._box.take(letters)

    def close(self) -> None:
        pass

    def _waiting(self) -> list[Letter]:
        found: list[Letter] = self._letters.__dict__.setdefault("waiting", [])
        return found


def _written(letter: Letter) -> bytes:
    headers = [[name, value.decode()] for name, value in letter.headers]
    key = None if letter.key is None else letter.key.hex()
    return json.dumps([letter.topic, key, letter.payload.hex(), headers, letter.pid]).encode() + b"\n"


def _read(line: str) -> Letter:
    topic, key, payload, headers, pid = json.loads(line)
    pairs = tuple((name, value.encode()) for name, value in headers)
    return Letter(topic, None if key is None else bytes.fromhex(key), bytes.fromhex(payload), pairs, pid)
