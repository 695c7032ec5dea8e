"""Events over Apache Kafka, by confluent-kafka (extra ``kafka``).

Settings are those of librdkafka, including TLS and SASL. Two of them are fixed, because delivery depends on them:
offsets are committed after the work, and a message counts as sent when all in-sync replicas have it.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from operator import methodcaller
from typing import Any, Final
from urllib.parse import urlsplit

from peerseal.errors import BrokerUnavailable, ConfigurationError, MessageNotTaken, MessageTooLarge, PeersealError
from peerseal.identity.identity import Identity
from peerseal.messaging import EventConsumer, EventPublisher, Headers, Inlet, Message, Outlet
from peerseal.protocol.hosts import is_usable_url
from peerseal.runtime.extras import missing
from peerseal.runtime.options import check_texts
from peerseal.verify.event import EventVerifier

try:
    from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
    from confluent_kafka import Message as Record
except ModuleNotFoundError as error:
    raise missing(error, "kafka") from error

log = logging.getLogger("peerseal.kafka")

Settings = Mapping[str, Any]
Partition = tuple[str, int]
"""A topic and the number of one of its partitions."""

_OUT_FORCED: Final[Settings] = {"enable.idempotence": True, "acks": "all"}
_OUT_DEFAULTS: Final[Settings] = {"linger.ms": 5, "message.timeout.ms": 30_000}
_IN_FORCED: Final[Settings] = {"enable.auto.commit": False, "enable.auto.offset.store": False}
_IN_DEFAULTS: Final[Settings] = {"auto.offset.reset": "earliest"}
_CLASSIC_DEFAULTS: Final[Settings] = {"partition.assignment.strategy": "cooperative-sticky"}
"""For the classic group protocol; with ``group.protocol=consumer`` the broker of Kafka 4 assigns partitions."""
_POLL = 0.1  # seconds
_read_headers = methodcaller("headers")
"""``record.headers()``. For a name that is no text it raises, and returns a list with a null pointer as well. Python
detects that in a call through `methodcaller`, but not in specialized bytecode (since 3.11), where the process dies."""


class KafkaOutlet:
    """Sends with one producer; see `peerseal.messaging.Outlet`. ``settings`` need ``bootstrap.servers``."""

    ROOM_WITHIN = 30.0
    """Seconds to wait while the producer's queue is full."""
    messaging_system: Final = "kafka"
    """The name of the broker in OpenTelemetry's conventions."""

    def __init__(self, settings: Settings) -> None:
        self._settings = _settings(settings, _OUT_DEFAULTS, _OUT_FORCED)
        self._begin()

    def _begin(self) -> None:
        with _configuring():
            self._producer = Producer(self._settings, logger=log)
        self._of_thread = _Deliveries()
        self._pid = os.getpid()

    def _in_this_process(self) -> None:
        """A forked child has none of the producer's threads: it makes a producer of its own. The parent sends the
        messages that it has queued."""
        if self._pid != os.getpid():
            self._parents = self._producer  # never closed: that would wait for its threads
            self._begin()

    def send(self, topic: str, payload: bytes, headers: Iterable[tuple[str, bytes]], key: bytes | None = None) -> None:
        """See Outlet."""
        self._in_this_process()
        ends, delivery = time.monotonic() + self.ROOM_WITHIN, _Delivery()
        kept: list[tuple[str, str | bytes | None]] = list(headers)
        while True:
            try:
                self._producer.produce(topic, payload, key, headers=kept, on_delivery=delivery.took)
            except BufferError as error:
                if time.monotonic() >= ends:
                    raise BrokerUnavailable(f"the producer's queue is full for {self.ROOM_WITHIN:g} s") from error
                self._producer.poll(_POLL)
            except KafkaException as error:
                raise _unavailable(error.args[0]) from error
            else:
                self._of_thread.add(delivery)
                self._producer.poll(0)
                return

    def flush(self, timeout: float) -> None:
        """See Outlet. Reports the messages of this thread only."""
        self._in_this_process()
        try:
            self._producer.flush(timeout)
        except KafkaException as error:
            raise _unavailable(error.args[0]) from error
        failed, confirmed = self._of_thread.outcome()
        if failed is not None:
            raise _unavailable(failed)
        if not confirmed:
            raise BrokerUnavailable(f"messages are not confirmed after {timeout} s")

    def close(self) -> None:
        """See Outlet."""
        self._in_this_process()
        self._producer.purge()
        with suppress(KafkaException):  # a fatal error, which `send` and `flush` report
            self._producer.flush(1.0)


class _Delivery:
    """The outcome of one message. The thread that polls calls `took`."""

    __slots__ = ("done", "error")

    def __init__(self) -> None:
        self.done = False
        self.error: KafkaError | None = None

    def took(self, error: KafkaError | None, _: Record) -> None:
        self.error, self.done = error, True


class _Deliveries(threading.local):
    """The messages of this thread since its last flush: those without an outcome, and the first error. A thread that
    never flushes keeps at most as many as the producer's queue."""

    def __init__(self) -> None:
        self._pending: deque[_Delivery] = deque()
        self._error: KafkaError | None = None

    def add(self, delivery: _Delivery) -> None:
        self._pending.append(delivery)
        while self._pending and self._pending[0].done:
            self._note(self._pending.popleft())

    def outcome(self) -> tuple[KafkaError | None, bool]:
        """The first error, if any, and whether all are confirmed; begins again with the next message."""
        for delivery in self._pending:
            self._note(delivery)
        error, confirmed = self._error, all(delivery.done for delivery in self._pending)
        self._pending, self._error = deque(), None
        return error, confirmed

    def _note(self, delivery: _Delivery) -> None:
        if self._error is None:
            self._error = delivery.error


class KafkaInlet:
    """Receives as a member of ``group.id``; see `peerseal.messaging.Inlet`.

    Offsets of finished messages are committed in the background within a second, and at once when a partition moves to
    another member and at the end.
    """

    COMMIT_EVERY = 1.0
    """Seconds between two commits at most: after a crash, the messages of that time are delivered again."""
    messaging_system: Final = "kafka"
    """The name of the broker in OpenTelemetry's conventions."""

    def __init__(
        self, settings: Settings, topics: Sequence[str], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if not settings.get("group.id"):
            raise ConfigurationError("settings have no group.id: a consumer needs one")
        check_texts("topics", topics)
        classic = {} if settings.get("group.protocol") == "consumer" else _CLASSIC_DEFAULTS
        with _configuring():
            self._consumer = Consumer(_settings(settings, {**_IN_DEFAULTS, **classic}, _IN_FORCED), logger=log)
        self._pid = os.getpid()
        self._clock = clock
        self._uncommitted: dict[Partition, int] = {}  # the next offset of each
        self._commit_at = 0.0
        self._lost: set[Partition] = set()
        self._consumer.subscribe(list(topics), on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._gone)

    def receive(self, timeout: float) -> Message | None:
        """See Inlet."""
        if self._pid != os.getpid():
            raise BrokerUnavailable(f"the consumer was made in process {self._pid}: make one in each process")
        self._commit_if_due()
        record = self._poll(timeout)
        return None if record is None else _message(record)

    def done(self, message: Message) -> None:
        """See Inlet."""
        partition = _partition(message.receipt)
        if partition in self._lost:
            return
        if not self._uncommitted:
            self._commit_at = self._clock() + self.COMMIT_EVERY
        self._uncommitted[partition] = message.receipt.offset + 1
        self._commit_if_due()

    def hold(self, message: Message, seconds: float) -> bool:
        """See Inlet. All partitions are paused, and the consumer is polled, so that it stays in the group."""
        partition, ends = _partition(message.receipt), self._clock() + seconds
        paused = self._consumer.assignment()
        self._consumer.pause(paused)
        try:
            while (left := ends - self._clock()) > 0 and partition not in self._lost:
                self._commit_if_due()
                record = self._poll(min(left, _POLL))
                if record is not None:  # of a partition that was assigned just now: receive it again later
                    position = _position(record)
                    self._consumer.seek(position)
                    self._consumer.pause([position])
                    paused = [*paused, position]
        finally:
            assigned = {_partition(one) for one in self._consumer.assignment()}
            self._consumer.resume([one for one in paused if _partition(one) in assigned])
        return partition not in self._lost

    def close(self) -> None:
        """See Inlet."""
        if self._pid != os.getpid():
            return  # the consumer of the parent
        self._commit(wait=True)
        self._consumer.close()

    # ---- the group

    def _assigned(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        self._lost.difference_update(map(_partition, partitions))

    def _revoked(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        self._commit(wait=True)
        self._gone(_, partitions)

    def _gone(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        """Another member owns the partitions now. It receives messages again whose offsets were not committed."""
        for partition in map(_partition, partitions):
            self._lost.add(partition)
            self._uncommitted.pop(partition, None)

    def _poll(self, timeout: float) -> Record | None:
        record = self._consumer.poll(timeout)
        if record is None:
            return None
        error = record.error()
        if error is None:
            return record
        if error.fatal():
            raise BrokerUnavailable(f"the consumer cannot go on: {error}")
        log.warning("waiting for the broker: %s", error)
        return None

    def _commit_if_due(self) -> None:
        if self._uncommitted and self._clock() >= self._commit_at:
            self._commit(wait=False)

    def _commit(self, *, wait: bool) -> None:
        """Commit the offsets. If that fails, the messages come again, and the application counts them once."""
        if not self._uncommitted:
            return
        offsets = [TopicPartition(*partition, offset) for partition, offset in self._uncommitted.items()]
        self._uncommitted = {}
        try:
            if wait:
                self._consumer.commit(offsets=offsets, asynchronous=False)
            else:
                self._consumer.commit(offsets=offsets)
        except KafkaException as error:
            log.warning("offsets are not committed, and messages may come again: %s", error)


def producer(identity: Identity, settings: Settings) -> EventPublisher:
    """A publisher that signs with the key of ``identity``."""
    return EventPublisher(identity, KafkaOutlet(settings))


def consumer(
    identity: Identity, verifier: EventVerifier, settings: Settings, topics: Sequence[str], **options: Any
) -> EventConsumer:
    """A consumer of those topics; refused messages go to ``<topic>.dlq`` on the same broker. ``settings`` are those of
    the consumer; the producer of dead letters uses the ones that it knows. ``options`` are those of EventConsumer."""
    producers = {name: value for name, value in settings.items() if not name.startswith(_CONSUMERS_ONLY)}
    return EventConsumer(identity, verifier, KafkaInlet(settings, topics), KafkaOutlet(producers), **options)


def oauthbearer(identity: Identity, name: str) -> dict[str, Any]:
    """The settings with which a service logs in at a broker by its own key, without a password (OAUTHBEARER, RFC 7628).

    The registry issues access tokens for the broker, which the domain's settings call ``name``. librdkafka asks for the
    next token in time, while the client is polled. Add ``ssl.ca.location`` if a private authority issued the broker's
    certificate. If there is no token, that is logged, and librdkafka tries again some seconds later; a new producer or
    consumer waits ten seconds for its first token, and then raises BrokerUnavailable.
    """

    def token(_: str) -> tuple[str, float]:
        try:
            found = identity.access_token(name)
        except PeersealError as error:
            log.warning("%s cannot log in at %s: %s", identity.service, name, error)
            raise
        return found.text, found.expires_at

    return {"security.protocol": "SASL_SSL", "sasl.mechanisms": "OAUTHBEARER", "oauth_cb": token}


def open_outlet(url: str, settings: Settings) -> Outlet:
    """See `peerseal.messaging.open_outlet`."""
    return KafkaOutlet({**settings, "bootstrap.servers": _servers(url)})


def open_inlet(url: str, group: str, topics: Sequence[str], settings: Settings) -> Inlet:
    """See `peerseal.messaging.open_inlet`."""
    return KafkaInlet({**settings, "bootstrap.servers": _servers(url), "group.id": group}, topics)


_CONSUMERS_ONLY = ("auto.offset", "enable.auto", "fetch.", "group.", "max.poll", "partition.assignment", "session.")
_TOO_LARGE: Final = (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE)
_NOT_TAKEN: Final = (
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._INVALID_ARG,
    KafkaError.TOPIC_EXCEPTION,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.INVALID_MSG,
    KafkaError.INVALID_RECORD,
    KafkaError.INVALID_TIMESTAMP,
    KafkaError.POLICY_VIOLATION,
)
"""Errors about a message, its topic or its sender that another attempt does not mend."""


def _unavailable(error: KafkaError) -> BrokerUnavailable:
    code = error.code()
    kind = MessageTooLarge if code in _TOO_LARGE else MessageNotTaken if code in _NOT_TAKEN else BrokerUnavailable
    return kind(f"a message was not taken: {error}")


def _servers(url: str) -> str:
    parts = urlsplit(url)
    servers = [f"kafka://{server}" for server in parts.netloc.split(",") if server]
    if not servers or parts.path.strip("/") or parts.query or not all(map(is_usable_url, servers)):
        raise ConfigurationError("the broker's URL is not kafka://host:port,host:port; the rest is settings")
    return parts.netloc


@contextmanager
def _configuring() -> Iterator[None]:
    """Raises ConfigurationError for settings that librdkafka does not accept, and BrokerUnavailable if the first access
    token is missing (`oauthbearer`)."""
    try:
        yield
    except (KafkaException, TypeError, ValueError) as error:
        if isinstance(error, KafkaException) and error.args[0].code() == KafkaError.SASL_AUTHENTICATION_FAILED:
            raise BrokerUnavailable(f"no access token to log in with: {error}") from error
        raise ConfigurationError(f"librdkafka does not take these settings: {error}") from error


def _settings(given: Settings, defaults: Settings, forced: Settings) -> dict[str, Any]:
    """The settings for librdkafka. Raises ConfigurationError if one contradicts a forced one."""
    for name, value in forced.items():
        if name in given and str(given[name]).lower() != str(value).lower():
            raise ConfigurationError(f"{name}={given[name]}: expected {value}, on which delivery depends")
    return {**defaults, **given, **forced}


def _message(record: Record) -> Message:
    position = _position(record)
    origin = f"{position.topic}/{position.partition}@{position.offset}"
    payload, key = _bytes(record.value()) or b"", _bytes(record.key())
    return Message(position.topic, payload, _headers(record, origin), key, origin, position)


def _headers(record: Record, origin: str) -> Headers:
    """The headers; none if one has a name that is no text: confluent-kafka then fails, and must not be called again."""
    try:
        headers = _read_headers(record) or []
    except Exception:  # SystemError, UnicodeError, or an error of a later release
        log.warning("the headers of %s cannot be read", origin)
        return ()
    pairs = headers.items() if isinstance(headers, dict) else headers
    return tuple((name, _bytes(value) or b"") for name, value in pairs)


def _position(record: Record) -> TopicPartition:
    return TopicPartition(str(record.topic()), int(record.partition() or 0), int(record.offset() or 0))


def _partition(one: TopicPartition) -> Partition:
    return one.topic, one.partition


def _bytes(value: str | bytes | None) -> bytes | None:
    return value.encode("utf-8") if isinstance(value, str) else value
