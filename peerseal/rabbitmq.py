"""Events over RabbitMQ, by kombu and the py-amqp under it (extra ``rabbitmq``).

A topic is a durable fanout exchange. Each group has a durable queue ``<topic>/<group>`` on it, which its members share,
so that each group receives each event, as on Kafka. Dead letters have one exchange and one queue ``<topic>.dlq``; the
first consumer of the topic creates them, and all groups that read dead letters share them.

There are three differences from Kafka. A group receives events only after its queue was created (`declare` creates it
before the first member). Publishing fails if there is no queue. Events of one key keep their order only in one member.

Users of Celery know the URLs, TLS settings and logins of kombu: so it is kombu and not pika. kombu waits for the
confirmation of each message; this module sends many at once through py-amqp (`peerseal.amqp`).
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

from peerseal.amqp import FOR_GOOD, LOST, Connection, OutgoingMessage, Settings, described, headers_and_key
from peerseal.errors import BrokerUnavailable, ConfigurationError, MessageNotTaken, MessageTooLarge
from peerseal.messaging import Headers, Inlet, Message, Outlet
from peerseal.runtime.extras import missing
from peerseal.runtime.options import check_texts, check_whole

try:
    from amqp import spec
    from amqp.exceptions import AMQPError, ConsumerCancelled, NotFound, PreconditionFailed
except ModuleNotFoundError as error:
    raise missing(error, "rabbitmq") from error

log = logging.getLogger("peerseal.rabbitmq")

HEARTBEAT: Final = 60
"""Seconds. A consumer that works on one message for more than twice that time loses its connection; the message comes
again."""

_CONNECTION = (10,)  # the class of methods that concern a connection as a whole
_HEARTBEAT_CHECK = 0.5  # seconds between two checks of the heartbeat
_PAUSE = 0.5  # seconds between two attempts of `send` to connect
_DECLARE_TIMEOUT = 10.0  # seconds


def open_outlet(url: str, settings: Settings) -> Outlet:
    """See `peerseal.messaging.open_outlet`."""
    return RabbitMQOutlet(url, settings)


def open_inlet(url: str, group: str, topics: Sequence[str], settings: Settings) -> Inlet:
    """See `peerseal.messaging.open_inlet`."""
    return RabbitMQInlet(url, group, topics, settings)


def declare(url: str, group: str, topics: Sequence[str], settings: Settings | None = None) -> None:
    """Create the queues of a group before its first member connects, so that they keep events from now on. Raises
    BrokerUnavailable or ConfigurationError."""
    check_texts("topics", topics)
    connection = Connection(url, settings or {}, heartbeat=0)
    try:
        connection.open(_DECLARE_TIMEOUT)
        for topic in topics:
            connection.declare(topic, group)
    except LOST as error:
        raise BrokerUnavailable(f"cannot make the queues of {group}: {described(error)}") from error
    finally:
        connection.close()


class RabbitMQOutlet:
    """Sends with publisher confirms; see `peerseal.messaging.Outlet`.

    Messages without a confirmation are sent again by the next flush: a message may arrive twice, and none is lost after
    a successful flush. Two kinds are dropped, with MessageNotTaken: messages that break the rules of the broker, and
    dead letters that the broker refuses, because their consumer sends them again.
    """

    WINDOW = 1000
    """Messages that may wait for their confirmation. When there are more, `send` waits."""
    ROOM_WITHIN = 30.0
    """Seconds for which `send` waits at most."""
    messaging_system: Final = "rabbitmq"
    """The name of the broker in OpenTelemetry's conventions."""

    def __init__(self, url: str, settings: Settings | None = None) -> None:
        # Without heartbeats, which no thread would send between two messages; TCP keep-alive detects a lost host.
        self._connection = Connection(url, {**(settings or {}), "heartbeat": 0}, heartbeat=0)
        self._lock = threading.Lock()
        self._unsent: deque[OutgoingMessage] = deque()
        self._sent: dict[int, OutgoingMessage] = {}  # by delivery tag on this connection
        self._returned: set[int] = set()  # tags of messages without a queue; the broker confirms them next
        self._refused: list[OutgoingMessage] = []
        self._kept: set[OutgoingMessage] = set()  # since a flush that failed: sending one of them again adds nothing
        self._singly = False  # one message at a time, to find the one that ends the channel
        self._try_at = 0.0

    def send(self, topic: str, payload: bytes, headers: Iterable[tuple[str, bytes]], key: bytes | None = None) -> None:
        """See Outlet."""
        message = OutgoingMessage.of(topic, payload, headers, key)
        with self._locked(self.ROOM_WITHIN):
            if self._kept and message in self._kept:
                return
            if self._waiting >= self.WINDOW:
                self._settle(time.monotonic() + self.ROOM_WITHIN, until=self.WINDOW // 2)
            self._unsent.append(message)
            if self._connection.is_open or time.monotonic() >= self._try_at:
                self._try_to_send()

    def flush(self, timeout: float) -> None:
        """See Outlet."""
        ends = time.monotonic() + timeout
        with self._locked(timeout):
            try:
                self._settle(ends, until=0)
            except BrokerUnavailable:
                self._kept = {*self._sent.values(), *self._unsent, *self._refused}
                raise
            self._kept = set()

    def close(self) -> None:
        """See Outlet."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def _locked(self, timeout: float) -> Iterator[None]:
        """Exclude other threads; one of them may be waiting for a broker that does not answer."""
        if not self._lock.acquire(timeout=timeout):
            raise BrokerUnavailable("the broker does not answer")
        try:
            yield
        finally:
            self._lock.release()

    @property
    def _waiting(self) -> int:
        return len(self._unsent) + len(self._sent) + len(self._refused)

    def _try_to_send(self) -> None:
        """Send now if possible: a flush may come much later."""
        try:
            self._send_unsent(0.0)
        except LOST as error:
            self._lose(error)
            self._try_at = time.monotonic() + _PAUSE

    def _settle(self, ends: float, until: int) -> None:
        """Wait until at most ``until`` messages have no confirmation. Raises BrokerUnavailable or MessageNotTaken."""
        self._unsent.extend(self._refused)
        self._refused.clear()
        why = ""
        while len(self._unsent) + len(self._sent) > until:
            left = ends - time.monotonic()
            if left <= 0:
                raise BrokerUnavailable(f"{self._waiting} messages are not confirmed{why}")
            try:
                self._send_unsent(left)
                if self._sent:
                    self._connection.drain(left)
            except LOST as error:
                self._lose(error)
                why = f": {described(error)}"
                if self._is_final(error):
                    raise self._refusal(error) from error
        self._singly = self._singly and until > 0
        if self._refused:
            topic = self._refused[0].topic
            self._refused = [message for message in self._refused if not message.is_dead]
            raise MessageNotTaken(f"no queue takes messages on {topic}, or it is full")

    def _is_final(self, error: Exception) -> bool:
        """Whether the broker ended the connection or channel for a reason that remains. If one of several messages was
        the reason, each is sent alone from now on, to find that one."""
        if not isinstance(error, (*FOR_GOOD, NotFound)):
            return False
        if not self._unsent:
            return isinstance(error, FOR_GOOD)
        alone = self._singly or len(self._unsent) == 1
        self._singly = self._singly or _is_over_a_message(error)
        return not self._singly or (alone and (isinstance(error, FOR_GOOD) or self._unsent[0].is_dead))

    def _refusal(self, error: AMQPError) -> BrokerUnavailable:
        """The error for the flush. The message that caused it is dropped, unless the broker may accept it later: with
        another login, or after a queue was created."""
        text = f"messages are not taken: {described(error)}"
        if not self._unsent or not _is_over_a_message(error):
            return BrokerUnavailable(text)
        if not self._unsent[0].is_dead and not _is_against_rules(error):
            return MessageNotTaken(text)
        self._unsent.popleft()
        return MessageTooLarge(text) if _is_against_rules(error) and " size " in text else MessageNotTaken(text)

    def _send_unsent(self, timeout: float) -> None:
        if not self._connection.is_open:
            self._connection.open(timeout)
            self._connection.confirm(self._on_ack, self._on_nack, self._on_return)
        while self._unsent and not (self._singly and self._sent):
            message = self._unsent[0]
            self._connection.declare(message.topic)
            try:
                tag = self._connection.publish(message)
            except MessageTooLarge:
                self._unsent.popleft()
                raise
            self._sent[tag] = self._unsent.popleft()

    def _lose(self, error: Exception) -> None:
        """The connection is lost: all messages without a confirmation are sent again, in order."""
        self._connection.lose(error)
        self._unsent.extendleft(reversed(self._sent.values()))
        self._sent.clear()
        self._returned.clear()

    def _on_ack(self, tag: int, multiple: bool) -> None:
        for one in self._tags(tag, multiple):
            message = self._sent.pop(one)
            if one in self._returned:
                self._refused.append(message)
        self._returned.intersection_update(self._sent)

    def _on_nack(self, tag: int, multiple: bool) -> None:
        self._refused += [self._sent.pop(one) for one in self._tags(tag, multiple)]

    def _on_return(self, _: Exception, exchange: str, routing_key: str, message: Any) -> None:
        self._returned.add(int(message.properties["message_id"]))

    def _tags(self, tag: int, multiple: bool) -> list[int]:
        return [one for one in self._sent if one <= tag] if multiple else [tag]


class RabbitMQInlet:
    """Receives as a member of the group; see `peerseal.messaging.Inlet`.

    After a lost connection it connects again; messages that were not done are delivered again, to any member.
    """

    PREFETCH = 20
    """Messages of each topic that this member holds; the others stay available to all members."""
    messaging_system: Final = "rabbitmq"
    """The name of the broker in OpenTelemetry's conventions."""

    def __init__(self, url: str, group: str, topics: Sequence[str], settings: Settings | None = None) -> None:
        check_texts("topics", topics)
        check_texts("group", [group])
        if "/" in group:
            raise ConfigurationError(f"group={group!r}: expected a name without a slash")
        self._connection = Connection(url, settings or {}, heartbeat=HEARTBEAT)
        self._prefetch = (settings or {}).get("prefetch", self.PREFETCH)
        check_whole("prefetch", self._prefetch, at_least=1)
        self._group = group
        self._topics = tuple(topics)
        self._ready: deque[Message] = deque()

    def receive(self, timeout: float) -> Message | None:
        """See Inlet."""
        ends = time.monotonic() + timeout
        while not self._ready:
            left = ends - time.monotonic()
            if left < 0:
                return None
            self._wait(left)
        return self._ready.popleft()

    def done(self, message: Message) -> None:
        """See Inlet."""
        number, tag = message.receipt
        if self._connection.is_open and number == self._connection.number:
            try:
                self._connection.channel.basic_ack(tag)
            except LOST as error:
                self._lose(error)

    def hold(self, message: Message, seconds: float) -> bool:
        """See Inlet."""
        ends = time.monotonic() + seconds
        while self._is_ours(message) and (left := ends - time.monotonic()) > 0:
            self._wait(left)
        return self._is_ours(message)

    def close(self) -> None:
        """See Inlet."""
        self._ready.clear()
        self._connection.close()

    def _is_ours(self, message: Message) -> bool:
        return self._connection.is_open and bool(message.receipt[0] == self._connection.number)

    def _wait(self, timeout: float) -> None:
        """Wait for the broker, or a short time. Raises BrokerUnavailable if waiting does not help."""
        try:
            if not self._connection.is_open:
                self._join(timeout)
            self._connection.drain(min(timeout, _HEARTBEAT_CHECK))
        except LOST as error:
            self._lose(error)

    def _join(self, timeout: float) -> None:
        try:
            self._connection.open(timeout)
            self._connection.channel.basic_qos(0, self._prefetch, False)
            for topic in self._topics:
                queue = self._connection.declare(topic, self._group)
                self._connection.channel.basic_consume(
                    queue, callback=partial(self._take, topic, queue), on_cancel=_consumer_cancelled
                )
        except FOR_GOOD as error:
            self._lose(error)
            raise BrokerUnavailable(f"the consumer cannot go on: {described(error)}") from error

    def _take(self, topic: str, queue: str, message: Any) -> None:
        """The topic is that of the queue: any publisher can write another one into the message."""
        headers, key = _read_headers(message)
        receipt = self._connection.number, message.delivery_info["delivery_tag"]
        payload = bytes(message.body) if message.body else b""
        self._ready.append(Message(topic, payload, headers, key, f"{queue}@{receipt[0]}.{receipt[1]}", receipt))

    def _lose(self, error: Exception) -> None:
        self._ready.clear()
        self._connection.lose(error)


def _read_headers(message: Any) -> tuple[Headers, bytes | None]:
    """The headers and the key; none if they cannot be read: an error would end the consumer, and the message would come
    again."""
    try:
        return headers_and_key(message.properties.get("application_headers") or {})
    except Exception as error:
        log.warning("a message's headers cannot be read: %s", type(error).__name__)
        return (), None


def _is_over_a_message(error: AMQPError) -> bool:
    """Whether the error is about a message, or the exchange or queue that the message needs."""
    return tuple(error.method_sig or ())[:1] not in ((), _CONNECTION)


def _is_against_rules(error: AMQPError) -> bool:
    return isinstance(error, PreconditionFailed) and tuple(error.method_sig or ()) == spec.Basic.Publish


def _consumer_cancelled(tag: str) -> None:
    raise ConsumerCancelled(f"the queue of consumer {tag} is gone", spec.Basic.Cancel)
