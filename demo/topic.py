"""The topic of the orders, for a client that can read and write there: any client, if the broker allows it."""

import time
import uuid
from dataclasses import dataclass

from demo.stack import DEAD_LETTERS, TOPIC
from peerseal.messaging import CODE_HEADER, ORIGIN_HEADER, Message, open_inlet, open_outlet

_PARTITION = b"one"  # the key of all that is sent here, so that it is read in the order in which it was sent


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """What the consumer put aside: why, and where it was."""

    code: str
    origin: str


class Topic:
    """``OrderCreated`` and its dead letters at the broker of that URL."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._outlet = open_outlet(url)

    def close(self) -> None:
        """Give the connection up."""
        self._outlet.close()

    def send(self, payload: bytes, headers: dict[str, str]) -> None:
        """Any message, confirmed by the broker."""
        raw = [(name, value.encode("ascii")) for name, value in headers.items()]
        self._outlet.send(TOPIC, payload, raw, _PARTITION)
        self._outlet.flush(10)

    def orders(self, count: int) -> list[Message]:
        """The first messages that are there."""
        return self._read(TOPIC, count)

    def dead_letters(self, count: int) -> list[DeadLetter]:
        """The first that were put aside, in order of arrival."""
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
