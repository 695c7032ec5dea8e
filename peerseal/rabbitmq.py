"""Events over RabbitMQ, by kombu and the py-amqp under it (extra ``rabbitmq``).

A topic is a durable fanout exchange of its name. Each group has a durable queue on it, ``<topic>/<group>``, so that
each group gets each event, as on Kafka; its members share that queue. Dead letters have one queue, ``<topic>.dlq`` like
their exchange, which is made with the first consumer of the topic and which every group that reads them shares.
What differs from Kafka: a group gets what is published once its queue is there (`declare` makes it beforehand), no
queue at all is an error of whoever publishes, and events of one key keep their order only within one member.

By kombu rather than pika: its URLs, TLS settings and logins are those that Celery's users know. It sends one message at
a time with its confirm awaited; here many are under way at once, through the py-amqp under it (see `peerseal.amqp`).
"""

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

from peerseal.amqp import FOR_GOOD, LOST, Letter, Link, Settings, fitting, headers_and_key, said
from peerseal.errors import BrokerUnavailable, ConfigurationError, MessageTooLarge
from peerseal.messaging import Inlet, Message, Outlet
from peerseal.runtime.extras import missing
from peerseal.runtime.options import check_texts, check_whole

try:
    from amqp import spec
    from amqp.exceptions import AMQPError, ConsumerCancelled
except ModuleNotFoundError as error:
    raise missing(error, "rabbitmq") from error

HEARTBEAT: Final = 60
"""Seconds. A consumer that works longer than twice that on one message loses its connection; then it comes again."""

_TICK = 0.5  # seconds between two looks at the heartbeat
_AGAIN = 0.5  # seconds between two attempts of `send` to connect
_DECLARED_WITHIN = 10.0  # seconds


def open_outlet(url: str, settings: Settings) -> Outlet:
    """See `peerseal.messaging.open_outlet`."""
    return RabbitMQOutlet(url, settings)


def open_inlet(url: str, group: str, topics: Sequence[str], settings: Settings) -> Inlet:
    """See `peerseal.messaging.open_inlet`."""
    return RabbitMQInlet(url, group, topics, settings)


def declare(url: str, group: str, topics: Sequence[str], settings: Settings | None = None) -> None:
    """Make the group's queues before its first member comes: what is published from now on waits for it. Raises
    BrokerUnavailable or ConfigurationError."""
    check_texts("topics", topics)
    link = Link(url, settings or {}, heartbeat=0)
    try:
        link.open(_DECLARED_WITHIN)
        for topic in topics:
            link.declare(topic, group)
    except LOST as error:
        raise BrokerUnavailable(f"cannot make the queues of {group}: {said(error)}") from error
    finally:
        link.close()


class RabbitMQOutlet:
    """Sends with publisher confirms; see `peerseal.messaging.Outlet`.

    What the broker did not confirm stays here, and goes out again with the next flush: a message may so arrive twice,
    and none that a flush was content with is lost.
    """

    WINDOW = 1000
    """Messages that may wait for their confirm; where there are more, `send` waits."""
    ROOM_WITHIN = 30.0
    """Seconds that it does."""

    def __init__(self, url: str, settings: Settings | None = None) -> None:
        # Nobody would send its heartbeats between two messages; TCP's own keep-alive finds a host that is gone.
        self._link = Link(url, {**(settings or {}), "heartbeat": 0}, heartbeat=0)
        self._lock = threading.Lock()
        self._unsent: deque[Letter] = deque()
        self._sent: dict[int, Letter] = {}  # by delivery tag on this connection
        self._returned: set[int] = set()  # tags that are about to be confirmed, though no queue took them
        self._turned_back: list[Letter] = []
        self._left: set[Letter] = set()  # waiting since a flush that failed: sending one again adds nothing
        self._try_at = 0.0

    def send(self, topic: str, payload: bytes, headers: Iterable[tuple[str, bytes]], key: bytes | None = None) -> None:
        """See Outlet."""
        letter = Letter(topic, payload, fitting(topic, headers), key)
        with self._held(self.ROOM_WITHIN):
            if self._left and letter in self._left:
                return
            if self._waiting >= self.WINDOW:
                self._settle(time.monotonic() + self.ROOM_WITHIN, until=self.WINDOW // 2)
            self._unsent.append(letter)
            if self._link.is_open or time.monotonic() >= self._try_at:
                self._begin()

    def flush(self, timeout: float) -> None:
        """See Outlet."""
        ends = time.monotonic() + timeout
        with self._held(timeout):
            try:
                self._settle(ends, until=0)
            except BrokerUnavailable:
                self._left = {*self._sent.values(), *self._unsent, *self._turned_back}
                raise
            self._left = set()

    def close(self) -> None:
        """See Outlet: what is not confirmed is given up."""
        with self._lock:
            self._link.close()

    @contextmanager
    def _held(self, timeout: float) -> Iterator[None]:
        """One thread at a time: another may be waiting for a broker that is away."""
        if not self._lock.acquire(timeout=timeout):
            raise BrokerUnavailable("the broker does not answer")
        try:
            yield
        finally:
            self._lock.release()

    @property
    def _waiting(self) -> int:
        return len(self._unsent) + len(self._sent) + len(self._turned_back)

    def _begin(self) -> None:
        """Let a message leave now, if it can: nobody may come to flush it."""
        try:
            self._push(0.0)
        except LOST as error:
            self._lose(error)
            self._try_at = time.monotonic() + _AGAIN

    def _settle(self, ends: float, until: int) -> None:
        """Wait until no more than ``until`` messages lack their confirm. Raises BrokerUnavailable."""
        self._unsent.extend(self._turned_back)
        self._turned_back.clear()
        why = ""
        while len(self._unsent) + len(self._sent) > until:
            left = ends - time.monotonic()
            if left <= 0:
                raise BrokerUnavailable(f"{self._waiting} messages are not confirmed{why}")
            try:
                self._push(left)
                if self._sent:
                    self._link.drain(left)
            except FOR_GOOD as error:
                self._lose(error)
                kind = MessageTooLarge if self._drop_if_too_large(error) else BrokerUnavailable
                raise kind(f"messages are not taken: {said(error)}") from error
            except LOST as error:
                self._lose(error)
                why = f": {said(error)}"
        if self._turned_back:
            raise BrokerUnavailable(f"no queue takes messages on {self._turned_back[0].topic}")

    def _push(self, timeout: float) -> None:
        """Write what is not sent yet."""
        if not self._link.is_open:
            self._link.open(timeout)
            self._link.confirm(self._confirmed, self._turned_away, self._came_back)
        while self._unsent:
            letter = self._unsent[0]
            self._link.declare(letter.topic)
            tag = self._link.publish(letter)
            self._sent[tag] = self._unsent.popleft()

    def _lose(self, error: Exception) -> None:
        """The connection is gone: all that was under way goes out anew, in order."""
        self._link.lose(error)
        self._unsent.extendleft(reversed(self._sent.values()))
        self._sent.clear()
        self._returned.clear()

    def _drop_if_too_large(self, error: AMQPError) -> bool:
        """Where the broker ends the channel over a message, it takes none so large, and would end the next one too."""
        if tuple(error.method_sig or ()) != spec.Basic.Publish or not self._unsent:
            return False
        self._unsent.remove(max(self._unsent, key=lambda letter: len(letter.payload)))
        return True

    def _confirmed(self, tag: int, multiple: bool) -> None:
        for one in self._tags(tag, multiple):
            letter = self._sent.pop(one)
            if one in self._returned:
                self._turned_back.append(letter)
        self._returned.intersection_update(self._sent)

    def _turned_away(self, tag: int, multiple: bool) -> None:
        self._turned_back += [self._sent.pop(one) for one in self._tags(tag, multiple)]

    def _came_back(self, _: Exception, exchange: str, routing_key: str, message: Any) -> None:
        self._returned.add(int(message.properties["message_id"]))

    def _tags(self, tag: int, multiple: bool) -> list[int]:
        return [one for one in self._sent if one <= tag] if multiple else [tag]


class RabbitMQInlet:
    """Receives as one of the group's members; see `peerseal.messaging.Inlet`.

    A lost connection is made again; what was not done by then is delivered anew, to whichever member.
    """

    PREFETCH = 20
    """Messages of each topic that are held here at once: the rest waits for other members too."""

    def __init__(self, url: str, group: str, topics: Sequence[str], settings: Settings | None = None) -> None:
        check_texts("topics", topics)
        check_texts("group", [group])
        if "/" in group:
            raise ConfigurationError("a group has a name, without a /")
        self._link = Link(url, settings or {}, heartbeat=HEARTBEAT)
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
        if self._link.is_open and number == self._link.number:
            try:
                self._link.channel.basic_ack(tag)
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
        self._link.close()

    def _is_ours(self, message: Message) -> bool:
        return self._link.is_open and bool(message.receipt[0] == self._link.number)

    def _wait(self, timeout: float) -> None:
        """Until something came from the broker, or a while. Raises BrokerUnavailable for what no waiting mends."""
        try:
            if not self._link.is_open:
                self._join(timeout)
            self._link.drain(min(timeout, _TICK))
        except LOST as error:
            self._lose(error)

    def _join(self, timeout: float) -> None:
        try:
            self._link.open(timeout)
            self._link.channel.basic_qos(0, self._prefetch, False)
            for topic in self._topics:
                queue = self._link.declare(topic, self._group)
                self._link.channel.basic_consume(
                    queue, callback=partial(self._take, topic, queue), on_cancel=_consumer_cancelled
                )
        except FOR_GOOD as error:
            self._lose(error)
            raise BrokerUnavailable(f"the consumer cannot go on: {said(error)}") from error

    def _take(self, topic: str, queue: str, message: Any) -> None:
        """The topic is the one whose queue it came by: what a message says of itself is anybody's word."""
        headers, key = headers_and_key(message.properties.get("application_headers") or {})
        receipt = self._link.number, message.delivery_info["delivery_tag"]
        payload = bytes(message.body) if message.body else b""
        self._ready.append(Message(topic, payload, headers, key, f"{queue}@{receipt[0]}.{receipt[1]}", receipt))

    def _lose(self, error: Exception) -> None:
        self._ready.clear()
        self._link.lose(error)


def _consumer_cancelled(tag: str) -> None:
    raise ConsumerCancelled(f"the queue of consumer {tag} is gone", spec.Basic.Cancel)
