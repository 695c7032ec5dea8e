"""Events over Apache Kafka, by confluent-kafka (extra ``kafka``).

Settings are librdkafka's own and pass through, TLS and SASL among them; what correctness rests on cannot be set
otherwise: offsets are committed after the work, and a message counts as sent once all replicas in sync have it.
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
from peerseal.protocol.hosts import can_be_asked
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

_OUT_FORCED: Final[Settings] = {"enable.idempotence": True, "acks": "all"}
_OUT_DEFAULTS: Final[Settings] = {"linger.ms": 5, "message.timeout.ms": 30_000}
_IN_FORCED: Final[Settings] = {"enable.auto.commit": False, "enable.auto.offset.store": False}
_IN_DEFAULTS: Final[Settings] = {"auto.offset.reset": "earliest"}
_CLASSIC_DEFAULTS: Final[Settings] = {"partition.assignment.strategy": "cooperative-sticky"}
"""Of the older group protocol; in Kafka 4's (``group.protocol=consumer``) the broker assigns."""
_POLL = 0.1  # seconds
_read_headers = methodcaller("headers")
"""``record.headers()``. Where a name is not text that raises, and returns a list with a hole in it all the same. Python
sees to it, except in code that has run often (since 3.11), where the process dies of the hole. Here it always does."""


class KafkaOutlet:
    """Sends by one producer; see `peerseal.messaging.Outlet`. ``settings`` need ``bootstrap.servers``."""

    ROOM_WITHIN = 30.0
    """Seconds to wait for room in the producer's queue, where messages come faster than the broker takes them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = _settings(settings, _OUT_DEFAULTS, _OUT_FORCED)
        self._begin()

    def _begin(self) -> None:
        with _configuring():
            self._producer = Producer(self._settings, logger=log)
        self._of_thread = _Sent()
        self._pid = os.getpid()

    def _in_this_process(self) -> None:
        """The producer's threads are gone in a forked child, which begins with one of its own: what its parent has not
        sent is its parent's to send."""
        if self._pid != os.getpid():
            self._parents = self._producer  # never used, and never closed: that would wait for its threads
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
                    raise BrokerUnavailable("the broker takes no more messages") from error
                self._producer.poll(_POLL)
            except KafkaException as error:
                raise _unavailable(error.args[0]) from error
            else:
                self._of_thread.add(delivery)
                self._producer.poll(0)
                return

    def flush(self, timeout: float) -> None:
        """See Outlet. It answers for what this thread has sent, and not for what others did."""
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
        """See Outlet: what is not confirmed is given up."""
        self._in_this_process()
        self._producer.purge()
        with suppress(KafkaException):  # a fatal error, which `send` and `flush` tell
            self._producer.flush(1.0)


class _Delivery:
    """What became of one message: `took` is called by whichever thread polls."""

    __slots__ = ("done", "error")

    def __init__(self) -> None:
        self.done = False
        self.error: KafkaError | None = None

    def took(self, error: KafkaError | None, _: Record) -> None:
        self.error, self.done = error, True


class _Sent(threading.local):
    """What this thread has sent since its last flush: what is under way, and the first error. Whoever never flushes
    keeps no more than the producer's queue holds."""

    def __init__(self) -> None:
        self._under_way: deque[_Delivery] = deque()
        self._error: KafkaError | None = None

    def add(self, delivery: _Delivery) -> None:
        self._under_way.append(delivery)
        while self._under_way and self._under_way[0].done:
            self._note(self._under_way.popleft())

    def outcome(self) -> tuple[KafkaError | None, bool]:
        """The first error, if any, and whether all is confirmed. What is sent from now on is counted anew."""
        for delivery in self._under_way:
            self._note(delivery)
        error, confirmed = self._error, all(delivery.done for delivery in self._under_way)
        self._under_way, self._error = deque(), None
        return error, confirmed

    def _note(self, delivery: _Delivery) -> None:
        if self._error is None:
            self._error = delivery.error


class KafkaInlet:
    """Receives as a member of ``group.id``; see `peerseal.messaging.Inlet`.

    What is done is committed in the background, a second later at most, and at once where a partition goes to another
    member and at the end.
    """

    COMMIT_EVERY = 1.0
    """Seconds between two commits, at most: after a crash no more than that is delivered again."""

    def __init__(
        self, settings: Settings, topics: Sequence[str], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if not settings.get("group.id"):
            raise ConfigurationError("a consumer needs a group.id")
        check_texts("topics", topics)
        classic = {} if settings.get("group.protocol") == "consumer" else _CLASSIC_DEFAULTS
        with _configuring():
            self._consumer = Consumer(_settings(settings, {**_IN_DEFAULTS, **classic}, _IN_FORCED), logger=log)
        self._pid = os.getpid()
        self._clock = clock
        self._stored: dict[tuple[str, int], int] = {}  # the next offset of each partition, not committed yet
        self._commit_at = 0.0
        self._lost: set[tuple[str, int]] = set()
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
        partition: TopicPartition = message.receipt
        place = partition.topic, partition.partition
        if place in self._lost:
            return
        if not self._stored:
            self._commit_at = self._clock() + self.COMMIT_EVERY
        self._stored[place] = partition.offset + 1
        self._commit_if_due()

    def hold(self, message: Message, seconds: float) -> bool:
        """See Inlet. All partitions are paused meanwhile, and the consumer is polled, so that the group keeps it."""
        partition: TopicPartition = message.receipt
        place, ends = (partition.topic, partition.partition), self._clock() + seconds
        paused = self._consumer.assignment()
        self._consumer.pause(paused)
        try:
            while (left := ends - self._clock()) > 0 and place not in self._lost:
                self._commit_if_due()
                stray = self._poll(min(left, _POLL))
                if stray is not None:  # assigned while we wait, and so not paused: it comes again
                    newcomer = _place_of(stray)
                    self._consumer.seek(newcomer)
                    self._consumer.pause([newcomer])
                    paused = [*paused, newcomer]
        finally:
            held = {(one.topic, one.partition) for one in self._consumer.assignment()}
            self._consumer.resume([one for one in paused if (one.topic, one.partition) in held])
        return place not in self._lost

    def close(self) -> None:
        """See Inlet."""
        if self._pid != os.getpid():
            return  # its parent's
        self._commit(wait=True)
        self._consumer.close()

    # ---- the group

    def _assigned(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        self._lost.difference_update((one.topic, one.partition) for one in partitions)

    def _revoked(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        self._commit(wait=True)
        self._gone(_, partitions)

    def _gone(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        """They are another member's now: what was done there and not committed, it will do again."""
        for one in partitions:
            self._lost.add((one.topic, one.partition))
            self._stored.pop((one.topic, one.partition), None)

    # ---- small parts

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
        if self._stored and self._clock() >= self._commit_at:
            self._commit(wait=False)

    def _commit(self, *, wait: bool) -> None:
        """Tell the broker what is done. Where that fails, it comes again, and is counted once by the application."""
        if not self._stored:
            return
        offsets = [TopicPartition(*place, offset) for place, offset in self._stored.items()]
        self._stored = {}
        try:
            if wait:
                self._consumer.commit(offsets=offsets, asynchronous=False)
            else:
                self._consumer.commit(offsets=offsets)
        except KafkaException as error:
            log.warning("what was done could not be committed, and may come again: %s", error)


def producer(identity: Identity, settings: Settings) -> EventPublisher:
    """A publisher in the name of ``identity``."""
    return EventPublisher(identity, KafkaOutlet(settings))


def consumer(
    identity: Identity, verifier: EventVerifier, settings: Settings, topics: Sequence[str], **options: Any
) -> EventConsumer:
    """A consumer of those topics; refusals go to ``<topic>.dlq`` on the same broker. ``settings`` are the consumer's;
    those that a producer does not know are left out for the dead letters. ``options`` are EventConsumer's own."""
    ours = {name: value for name, value in settings.items() if not name.startswith(_CONSUMERS_ONLY)}
    return EventConsumer(identity, verifier, KafkaInlet(settings, topics), KafkaOutlet(ours), **options)


def oauthbearer(identity: Identity, name: str) -> dict[str, Any]:
    """The settings with which a service logs in at a broker by its own key, and with no password (OAUTHBEARER, RFC
    7628): the registry's access tokens for the resource server ``name`` in the domain's settings, which must name the
    broker. librdkafka asks for the next one in time, while the client is polled. Add ``ssl.ca.location`` where the
    broker's certificate is of an authority of your own.

    Where no token can be had, that is logged, and librdkafka tries again some seconds later; a new producer or consumer
    waits ten seconds for its first one, and raises BrokerUnavailable then.
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
"""What the broker, or its client, says of a message, its topic or its sender, and will say again."""


def _unavailable(error: KafkaError) -> BrokerUnavailable:
    code = error.code()
    kind = MessageTooLarge if code in _TOO_LARGE else MessageNotTaken if code in _NOT_TAKEN else BrokerUnavailable
    return kind(f"a message was not taken: {error}")


def _servers(url: str) -> str:
    parts = urlsplit(url)
    servers = [f"kafka://{server}" for server in parts.netloc.split(",") if server]
    if not servers or parts.path.strip("/") or parts.query or not all(map(can_be_asked, servers)):
        raise ConfigurationError("a broker's URL reads kafka://host:port,host:port; the rest is settings")
    return parts.netloc


@contextmanager
def _configuring() -> Iterator[None]:
    """Raises ConfigurationError for settings that librdkafka does not know or take, and BrokerUnavailable where the
    first access token cannot be had (`oauthbearer`)."""
    try:
        yield
    except KafkaException as error:
        if error.args[0].code() == KafkaError.SASL_AUTHENTICATION_FAILED:
            raise BrokerUnavailable(f"no access token to log in with: {error}") from error
        raise ConfigurationError(f"librdkafka does not take these settings: {error}") from error
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"librdkafka does not take these settings: {error}") from error


def _settings(given: Settings, defaults: Settings, forced: Settings) -> dict[str, Any]:
    """librdkafka's settings. Raises ConfigurationError where one would undo what correctness rests on."""
    for name, value in forced.items():
        if name in given and str(given[name]).lower() != str(value).lower():
            raise ConfigurationError(f"{name} must be {value}")
    return {**defaults, **given, **forced}


def _message(record: Record) -> Message:
    place = _place_of(record)
    return Message(
        topic=place.topic,
        payload=_bytes(record.value()) or b"",
        headers=_headers(record, place),
        key=_bytes(record.key()),
        origin=f"{place.topic}/{place.partition}@{place.offset}",
        receipt=place,
    )


def _headers(record: Record, place: TopicPartition) -> Headers:
    """None where one's name is not text: confluent-kafka gives up on all of them, and must not be asked again."""
    try:
        headers = _read_headers(record) or []
    except Exception:  # SystemError, UnicodeError, and whatever the next release of the library raises
        log.warning("the headers of %s/%d@%d cannot be read", place.topic, place.partition, place.offset)
        return ()
    pairs = headers.items() if isinstance(headers, dict) else headers
    return tuple((name, _bytes(value) or b"") for name, value in pairs)


def _place_of(record: Record) -> TopicPartition:
    return TopicPartition(str(record.topic()), int(record.partition() or 0), int(record.offset() or 0))


def _bytes(value: str | bytes | None) -> bytes | None:
    return value.encode("utf-8") if isinstance(value, str) else value
