"""AMQP 0-9-1 as `peerseal.rabbitmq` needs it: one connection, its exchanges and queues, and messages as they travel.

kombu reads URLs, speaks TLS and opens channels. Reconnection is done here, since kombu checks the certificate of the
second broker in a list against the name of the first one.
"""

import logging
import os
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Self
from urllib.parse import urlsplit

from peerseal.errors import ConfigurationError, MessageTooLarge
from peerseal.messaging import DEAD_LETTERS, Headers
from peerseal.protocol.hosts import can_be_reached, has_one_host
from peerseal.runtime.extras import missing

try:
    import amqp
    import kombu
    from amqp.exceptions import AccessRefused, AMQPError, NotAllowed, PreconditionFailed
    from amqp.method_framing import frame_handler
except ModuleNotFoundError as error:
    raise missing(error, "rabbitmq") from error

log = logging.getLogger("peerseal.rabbitmq")

Settings = Mapping[str, Any]
"""``prefetch``, messages that a member holds at once; ``queue_arguments`` of every queue, such as ``x-queue-type``;
``declare``, False where exchanges and queues are made by somebody else; and what `kombu.Connection` takes: ``ssl``,
``heartbeat``, ``connect_timeout``, ``login_method``, ``transport_options``."""

LOST: Final = AMQPError, OSError
"""What a connection that is no good any more raises."""
FOR_GOOD: Final = AccessRefused, NotAllowed, PreconditionFailed
"""Those of them that connecting again does not mend."""
HEADERS_ROOM: Final = 100_000
"""Bytes for all headers of a message: with its other properties they go into one frame, of 128 KiB by default."""

_ROUTING: Final = {"CC": "original-CC", "BCC": "original-BCC"}
"""Headers by which RabbitMQ sends copies to other queues: what a publisher wrote there must not steer a dead letter."""
_OURS = ("prefetch", "queue_arguments", "declare")
_FRAME_BESIDE_HEADERS: Final = 512  # bytes of a frame for itself and for the other properties
_KEY = "peerseal-key"
_BESIDE_A_VALUE: Final = 20  # bytes of a header beside its name and value: lengths, types, and a prefix of ours
_LONGEST_NAME: Final = 240  # bytes, of 255 with such a prefix
_DELIVER: Final = b"\x00\x3c\x00\x3c"
_PATIENCE = 10  # seconds for the broker to answer or to take bytes
_AGAIN = 0.5  # seconds between two attempts to connect
_TELL_EVERY = 30.0  # seconds between two complaints about the same outage


@dataclass(frozen=True, slots=True)
class Letter:
    """A message on its way out."""

    topic: str
    payload: bytes = field(repr=False)
    headers: Headers = field(repr=False)

    @classmethod
    def of(cls, topic: str, payload: bytes, headers: Iterable[tuple[str, bytes]], key: bytes | None) -> Self:
        """The key goes as a header. Raises MessageTooLarge."""
        named = [] if key is None else [(_KEY, key)]
        return cls(topic, payload, fitting(topic, [*named, *headers]))

    @property
    def is_dead(self) -> bool:
        """Whether it is a dead letter, which its consumer sends again where it is not taken."""
        return self.topic.endswith(DEAD_LETTERS)

    def message(self, tag: int, frame: int) -> Any:
        """As py-amqp sends it, in frames of so many bytes at most. A header that comes more than once is a list.
        Raises MessageTooLarge."""
        table: dict[str, Any] = {}
        for name, value in fitting(self.topic, self.headers, min(HEADERS_ROOM, frame - _FRAME_BESIDE_HEADERS)):
            table.setdefault(_ROUTING.get(name, name), []).append(value)
        single = {name: values[0] if len(values) == 1 else values for name, values in table.items()}
        return amqp.Message(self.payload, application_headers=single, delivery_mode=2, message_id=str(tag))


class Link:
    """One connection with one channel at a time. ``number`` counts them: a receipt of an earlier one is worth nothing.

    Whoever gets one of `LOST` from it calls `lose`, and may `open` it again.
    """

    def __init__(self, url: str, settings: Settings, *, heartbeat: int) -> None:
        self._urls = [_checked(one) for one in url.split(";")]
        self._settings = {"heartbeat": heartbeat, **{k: v for k, v in settings.items() if k not in _OURS}}
        self._declares = bool(settings.get("declare", True))
        self._queue_arguments = dict(settings.get("queue_arguments", {}))
        self._connection: Any = None
        self._declared: set[tuple[str, str | None]] = set()
        self._published = 0
        self._tell_at = 0.0
        self._pid = os.getpid()
        self.channel: Any = None
        self.number = 0

    @property
    def is_open(self) -> bool:
        """Whether there is a channel, as far as is known here. A parent's connection is not a forked child's."""
        if self._pid != os.getpid():
            self._forget()
        return self.channel is not None

    def open(self, timeout: float) -> None:
        """Connect to the first broker that answers, trying for so long. Raises one of LOST."""
        ends = time.monotonic() + timeout
        while True:
            try:
                self._connect(self._urls[0])
            except FOR_GOOD:
                raise
            except LOST as error:
                self._urls.append(self._urls.pop(0))
                left = ends - time.monotonic()
                if left <= 0:
                    raise
                self.lose(error)
                time.sleep(min(left, _AGAIN))
            else:
                return

    def _connect(self, url: str) -> None:
        self._connection = kombu.Connection(url, **_connection_settings(url, self._settings))
        self._connection.ensure_connection(max_retries=0, reraise_as_library_errors=False)
        channel = self._connection.channel()
        channel.auto_decode = False  # a payload stays the bytes that were signed, whatever encoding it claims
        self.channel, self._published = channel, 0
        self.number += 1
        if self._tell_at:
            log.warning("connected to the broker again")
            self._tell_at = 0.0

    def lose(self, error: Exception) -> None:
        """Give the connection up, without a word to the broker."""
        if time.monotonic() >= self._tell_at:
            log.warning("waiting for the broker: %s", said(error))
            self._tell_at = time.monotonic() + _TELL_EVERY
        with suppress(*LOST):
            if self._connection is not None and self._pid == os.getpid():
                self._connection.collect()
        self._forget()

    def close(self) -> None:
        """Give the connection up, once the broker has read what was written."""
        with suppress(*LOST):
            if self._connection is not None and self._pid == os.getpid():
                self._connection.release()
        self._forget()

    def _forget(self) -> None:
        if self._pid != os.getpid():
            self._parents = self._connection  # never closed: the parent goes on with it
        self._connection = self.channel = None
        self._declared.clear()
        self._pid = os.getpid()

    def declare(self, topic: str, group: str | None = None) -> str:
        """Make the topic's exchange, its dead letters', and the group's queue. The name of the queue."""
        dead, is_dead = topic + DEAD_LETTERS, topic.endswith(DEAD_LETTERS)
        queue = topic if is_dead else f"{topic}/{group}"
        if self._declares and (topic, group) not in self._declared:
            self._exchange(topic)
            if is_dead or group is not None:
                self._queue(topic, queue)
            if group is not None and not is_dead:
                self._exchange(dead)
                self._queue(dead, dead)
            self._declared.add((topic, group))
        return queue

    def _exchange(self, name: str) -> None:
        self.channel.exchange_declare(name, "fanout", durable=True, auto_delete=False)

    def _queue(self, exchange: str, name: str) -> None:
        self.channel.queue_declare(name, durable=True, auto_delete=False, arguments=self._queue_arguments)
        self.channel.queue_bind(name, exchange)

    def confirm(self, acked: Callable[..., None], nacked: Callable[..., None], returned: Callable[..., None]) -> None:
        """Have the broker say of each message whether it has it."""
        self.channel.confirm_select()
        self.channel.events["basic_ack"].add(acked)
        self.channel.events["basic_nack"].add(nacked)
        self.channel.events["basic_return"].add(returned)

    def publish(self, letter: Letter) -> int:
        """Write it. The tag that its confirm will carry. Raises MessageTooLarge for headers that this broker's frames
        have no room for."""
        tag = self._published + 1
        message = letter.message(tag, self.channel.connection.frame_max)
        self.channel.basic_publish(message, letter.topic, "", mandatory=True, timeout=_PATIENCE)
        self._published = tag
        return tag

    def drain(self, timeout: float) -> None:
        """Wait for something from the broker and work it in; heartbeats go out."""
        with suppress(TimeoutError):
            self._connection.drain_events(timeout=max(timeout, 0.001))
        self._connection.heartbeat_check()


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        reachable = can_be_reached(parts.hostname, parts.port) and has_one_host(parts.netloc.rpartition("@")[2])
    except ValueError:
        raise ConfigurationError("the broker's URL cannot be read") from None  # it may hold a password
    if parts.scheme not in ("amqp", "amqps") or not reachable or parts.query or parts.fragment:
        raise ConfigurationError("a broker's URL reads amqps://user:password@host:port/vhost; the rest is settings")
    return url


def _connection_settings(url: str, settings: Settings) -> dict[str, Any]:
    """For kombu, anew for each connection: it writes into them."""
    given = settings.get("ssl")
    tls = dict(given) if isinstance(given, Mapping) else {}
    secure = url.startswith("amqps:") or given
    options = {"read_timeout": _PATIENCE, "write_timeout": _PATIENCE, **settings.get("transport_options", {})}
    return {
        **settings,
        # None: the host's name in the URL. kombu on its own checks no name.
        "ssl": {"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": None, **tls} if secure else False,
        "transport_options": {**options, "confirm_publish": False, "frame_handler": _forgiving},
    }


def fitting(topic: str, headers: Iterable[tuple[str, bytes]], room: int = HEADERS_ROOM) -> Headers:
    """A message must not keep its refusal from being put aside: of a dead letter, the last headers that fit into
    ``room`` bytes are kept, which are those that say what it is. Raises MessageTooLarge for any other message with too
    many."""
    kept: list[tuple[str, bytes]] = []
    left = room
    for name, value in reversed(list(headers)):
        encoded = name.encode("utf-8", "backslashreplace")
        size = len(encoded) + len(value) + _BESIDE_A_VALUE
        if size <= left and len(encoded) <= _LONGEST_NAME:
            left -= size
            kept.append((name, value))
        elif not topic.endswith(DEAD_LETTERS):
            raise MessageTooLarge(
                f"cannot send to {topic}: its headers take more than {room} bytes, or the name of one more than"
                f" {_LONGEST_NAME}"
            )
    return tuple(reversed(kept))


def headers_and_key(table: Mapping[str | bytes, Any]) -> tuple[Headers, bytes | None]:
    """A message's headers and its key. Lists are headers that come more than once; tables are left out. What is
    no UTF-8 in a name is escaped: py-amqp passes half a surrogate pair, which could not be sent on."""
    found: list[tuple[str, bytes]] = []
    for name, value in table.items():
        text = (name if isinstance(name, str) else name.decode("latin-1")).encode("utf-8", "backslashreplace").decode()
        found += [(text, raw) for one in (value if isinstance(value, list) else [value]) for raw in _raw(one)]
    keys = [value for name, value in found if name == _KEY]
    return tuple(pair for pair in found if pair[0] != _KEY), keys[0] if keys else None


def _raw(value: Any) -> list[bytes]:
    if isinstance(value, str):
        return [value.encode("utf-8", "surrogatepass")]
    if isinstance(value, bytes | bytearray | memoryview):
        return [bytes(value)]
    if isinstance(value, dict | list):
        return []
    return [b"" if value is None else str(value).encode("ascii", "ignore")]


def _forgiving(connection: Any, callback: Callable[..., Any]) -> Callable[[Any], Any]:
    """py-amqp's reader of frames, for messages that it cannot read: a broker hands on properties and routing keys as
    anybody wrote them, and one that ends the connection would come again with the next. Such a message has none."""
    read = frame_handler(connection, callback)

    def on_frame(frame: tuple[int, int, Any]) -> Any:
        kind, channel, content = frame
        if kind == 1 and bytes(content[:4]) == _DELIVER:
            return read((kind, channel, _without_routing_key(bytes(content))))
        if kind != 2:
            return read(frame)
        try:
            return read(frame)
        except Exception as error:
            log.warning("a message's properties cannot be read: %s", type(error).__name__)
            return read((kind, channel, bytes(content[:12]) + b"\0\0"))

    return on_frame


def _without_routing_key(deliver: bytes) -> bytes:
    """AMQP 0-9-1 ``basic.deliver``: consumer tag, delivery tag (8 bytes), redelivered (1), exchange, routing key."""
    exchange = 4 + 1 + deliver[4] + 8 + 1
    return deliver[: exchange + 1 + deliver[exchange]] + b"\0"


def said(error: Exception) -> str:
    """For logs and errors. A broker's error names no password."""
    return f"{type(error).__name__}: {str(error)[:200]}"
