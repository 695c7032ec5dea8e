"""AMQP 0-9-1 for `peerseal.rabbitmq`: one connection with its exchanges and queues, and messages on the wire.

kombu parses URLs, speaks TLS and opens channels. This module reconnects by itself, since kombu checks the certificate
of the second broker in a list against the name of the first one.
"""

import logging
import os
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from operator import methodcaller
from typing import Any, Final, Self
from urllib.parse import urlsplit

from peerseal.errors import ConfigurationError, MessageTooLarge
from peerseal.messaging import DEAD_LETTERS, Headers
from peerseal.protocol.hosts import has_one_host, is_valid_host
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
"""``prefetch``: how many messages a member holds; ``queue_arguments`` of every queue, such as ``x-queue-type``;
``declare``: False if operators create exchanges and queues; and arguments of `kombu.Connection`: ``ssl``,
``heartbeat``, ``connect_timeout``, ``login_method``, ``transport_options``."""

LOST: Final = AMQPError, OSError
"""Errors of a connection that is lost."""
FOR_GOOD: Final = AccessRefused, NotAllowed, PreconditionFailed
"""Those of LOST that occur again after a new connection."""
HEADERS_ROOM: Final = 100_000
"""Bytes for all headers of a message. They share one frame, of 128 KiB by default, with its other properties."""

_ROUTING: Final = {"CC": "original-CC", "BCC": "original-BCC"}
"""Headers by which RabbitMQ sends copies to other queues, and their names in a dead letter: a publisher must not route
it."""
_OURS = ("prefetch", "queue_arguments", "declare")
_FRAME_OVERHEAD: Final = 512  # bytes of a frame for itself and for the other properties
_KEY = "peerseal-key"
_HEADER_OVERHEAD: Final = 20  # bytes of a header for lengths, types and a prefix
_LONGEST_NAME: Final = 240  # bytes, of 255 with such a prefix
_DELIVER: Final = b"\x00\x3c\x00\x3c"
_TIMEOUT = 10  # seconds for the broker to answer or to take bytes
_PAUSE = 0.5  # seconds between two attempts to connect
_WARN_EVERY = 30.0  # seconds between two warnings about the same outage


@dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """A message to send; it is sent again if the connection is lost."""

    topic: str
    payload: bytes = field(repr=False)
    headers: Headers = field(repr=False)

    @classmethod
    def of(cls, topic: str, payload: bytes, headers: Iterable[tuple[str, bytes]], key: bytes | None) -> Self:
        """With the key as a header. Raises MessageTooLarge."""
        named = [] if key is None else [(_KEY, key)]
        return cls(topic, payload, fitting(topic, [*named, *headers]))

    @property
    def is_dead(self) -> bool:
        """Whether it is a dead letter; its consumer sends it again if the broker refuses it."""
        return self.topic.endswith(DEAD_LETTERS)

    def message(self, tag: int, frame: int) -> Any:
        """The message for py-amqp, in frames of at most ``frame`` bytes. A header that occurs more than once is a list.
        Raises MessageTooLarge."""
        table: dict[str, Any] = {}
        for name, value in fitting(self.topic, self.headers, min(HEADERS_ROOM, frame - _FRAME_OVERHEAD)):
            table.setdefault(_ROUTING.get(name, name), []).append(value)
        single = {name: values[0] if len(values) == 1 else values for name, values in table.items()}
        return amqp.Message(self.payload, application_headers=single, delivery_mode=2, message_id=str(tag))


class Connection:
    """One connection with one channel. ``number`` counts connections: a receipt is valid for its own connection only.

    After one of the errors `LOST`, the caller calls `lose`, and may `open` it again.
    """

    def __init__(self, url: str, settings: Settings, *, heartbeat: int) -> None:
        self._urls = [_checked(one) for one in url.split(";")]
        self._settings = {"heartbeat": heartbeat, **{k: v for k, v in settings.items() if k not in _OURS}}
        self._declares = bool(settings.get("declare", True))
        self._queue_arguments = dict(settings.get("queue_arguments", {}))
        self._connection: Any = None
        self._declared: set[tuple[str, str | None]] = set()
        self._published = 0
        self._warn_at = 0.0
        self._pid = os.getpid()
        self.channel: Any = None
        self.number = 0

    @property
    def is_open(self) -> bool:
        """Whether there is a channel that is not known to be lost. A forked child does not use its parent's."""
        if self._pid != os.getpid():
            self._forget()
        return self.channel is not None

    def open(self, timeout: float) -> None:
        """Connect to the first broker that answers within ``timeout`` seconds. Raises one of LOST."""
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
                time.sleep(min(left, _PAUSE))
            else:
                return

    def _connect(self, url: str) -> None:
        self._connection = kombu.Connection(url, **_connection_settings(url, self._settings))
        self._connection.ensure_connection(max_retries=0, reraise_as_library_errors=False)
        channel = self._connection.channel()
        channel.auto_decode = False  # the payload stays the bytes that were signed
        self.channel, self._published = channel, 0
        self.number += 1
        if self._warn_at:
            log.warning("connected to the broker again")
            self._warn_at = 0.0

    def lose(self, error: Exception) -> None:
        """Drop a connection that is lost, without a message to the broker."""
        if time.monotonic() >= self._warn_at:
            log.warning("waiting for the broker: %s", described(error))
            self._warn_at = time.monotonic() + _WARN_EVERY
        self._drop(methodcaller("collect"))

    def close(self) -> None:
        """Close the connection after the broker has read all that was written."""
        self._drop(methodcaller("release"))

    def _drop(self, end: Callable[[Any], object]) -> None:
        with suppress(*LOST):
            if self._connection is not None and self._pid == os.getpid():
                end(self._connection)
        self._forget()

    def _forget(self) -> None:
        if self._pid != os.getpid():
            self._parents = self._connection  # never closed: the parent uses it
        self._connection = self.channel = None
        self._declared.clear()
        self._pid = os.getpid()

    def declare(self, topic: str, group: str | None = None) -> str:
        """Create the exchanges of the topic and of its dead letters, and the queue of the group; returns its name."""
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
        """Have the broker confirm each message."""
        self.channel.confirm_select()
        self.channel.events["basic_ack"].add(acked)
        self.channel.events["basic_nack"].add(nacked)
        self.channel.events["basic_return"].add(returned)

    def publish(self, outgoing: OutgoingMessage) -> int:
        """Send a message; returns the tag of its confirmation. Raises MessageTooLarge if the headers do not fit into a
        frame of this broker."""
        tag = self._published + 1
        message = outgoing.message(tag, self.channel.connection.frame_max)
        self.channel.basic_publish(message, outgoing.topic, "", mandatory=True, timeout=_TIMEOUT)
        self._published = tag
        return tag

    def drain(self, timeout: float) -> None:
        """Wait for the broker, handle what it sends, and send heartbeats."""
        with suppress(TimeoutError):
            self._connection.drain_events(timeout=max(timeout, 0.001))
        self._connection.heartbeat_check()


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        reachable = is_valid_host(parts.hostname, parts.port) and has_one_host(parts.netloc.rpartition("@")[2])
    except ValueError:
        raise ConfigurationError("the broker's URL cannot be read") from None  # the cause may show a password
    if parts.scheme not in ("amqp", "amqps") or not reachable or parts.query or parts.fragment:
        raise ConfigurationError("the broker's URL is not amqps://user:password@host:port/vhost; the rest is settings")
    return url


def _connection_settings(url: str, settings: Settings) -> dict[str, Any]:
    """New settings for each connection: kombu changes them."""
    given = settings.get("ssl")
    tls = dict(given) if isinstance(given, Mapping) else {}
    secure = url.startswith("amqps:") or given
    options = {"read_timeout": _TIMEOUT, "write_timeout": _TIMEOUT, **settings.get("transport_options", {})}
    return {
        **settings,
        # None is the host name of the URL. By default kombu checks no host name.
        "ssl": {"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": None, **tls} if secure else False,
        "transport_options": {**options, "confirm_publish": False, "frame_handler": _tolerant},
    }


def fitting(topic: str, headers: Iterable[tuple[str, bytes]], room: int = HEADERS_ROOM) -> Headers:
    """The headers that fit into ``room`` bytes. A dead letter keeps the last ones, which name the refusal. Raises
    MessageTooLarge for any other message with too many headers."""
    kept: list[tuple[str, bytes]] = []
    left = room
    for name, value in reversed(list(headers)):
        encoded = name.encode("utf-8", "backslashreplace")
        size = len(encoded) + len(value) + _HEADER_OVERHEAD
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
    """A message's headers and its key. A list is a header that occurs more than once; tables are left out. Names are
    escaped where they are no UTF-8: half a surrogate pair could not be sent again."""
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


def _tolerant(connection: Any, callback: Callable[..., Any]) -> Callable[[Any], Any]:
    """py-amqp's frame handler, which also survives messages that it cannot read.

    A broker forwards properties and routing keys as any publisher wrote them. A message that ended the connection would
    be delivered again on the next one, so such a message is delivered without properties."""
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


def described(error: Exception) -> str:
    """The error for logs and messages. An error of a broker contains no password."""
    return f"{type(error).__name__}: {str(error)[:200]}"
