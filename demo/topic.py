"""The topic of the orders, as a client with access to the broker sees it."""

import time
import uuid
from dataclasses import dataclass

from demo.stack import DEAD_LETTERS, TOPIC
from peerseal.messaging import CODE_HEADER, ORIGIN_HEADER, Message, open_inlet, open_outlet

_PARTITION = b"one"  # one key for all messages, so that they are read in the order in which they were sent


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A dead letter: its code and its origin."""

    code: str
    origin: str


class Topic:
    """``OrderCreated`` and its dead letters at the broker of that URL."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._outlet = open_outlet(url)

    def close(self) -> None:
        """Close the connection."""
        self._outlet.close()

    def send(self, payload: bytes, headers: dict[str, str]) -> None:
        """Send a message and wait for the broker's confirmation."""
        raw = [(name, value.encode("ascii")) for name, value in headers.items()]
        self._outlet.send(TOPIC, payload, raw, _PARTITION)
        self._outlet.flush(10)

    def orders(self, count: int) -> list[Message]:
        """The first messages of the topic."""
        return self._read(TOPIC, count)

    def dead_letters(self, count: int) -> list[DeadLetter]:
        """The first dead letters, in order of arrival."""
        said = [dict(message.headers) for message in self._read(DEAD_LETTERS, count)]
        return [DeadLetter(headers[CODE_HEADER].decode(), headers[ORIGIN_HEADER].decode()) for headers in said]

    def _read(self, topic: str, count: int, timeout: float = 30) -> list[Message]:
        """Raises TimeoutError."""
        group = f"reader-{uuid.uuid4().hex[:8]}"
        inlet = open_inlet(self._url, group, [topic], settings={"group.protocol": "consumer"})
        found: list[Message] = []
        deadline = time.monotonic() + timeout
        try:
            while len(found) < count:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{len(found)} of {count} messages on {topic}")
                message = inlet.receive(0.2)
                found += [message] if message is not None else []
        finally:
            inlet.close()
        return found
