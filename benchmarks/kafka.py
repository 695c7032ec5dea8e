"""Events through a consumer on a real Apache Kafka, compared with the same records read without verification."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from statistics import median

import peerseal
from benchmarks.events import AUDIENCE, PAYLOAD, SCOPE, TOPIC
from benchmarks.figures import Figure, Goal
from peerseal.messaging import EventConsumer, EventPublisher, Inlet, open_inlet, open_outlet
from tests.support.apache_kafka import JARS, ApacheKafka

EVENTS = 5_000
ROUNDS = 3


def measure(publisher: peerseal.Identity, folder: Path) -> Iterator[Figure]:
    """The figures: events a second with and without verification, and the verification's part of the difference.
    ``publisher`` signs with RS256; the broker's data goes to ``folder``. None if Apache Kafka is not installed."""
    if shutil.which("java") is None or not any(JARS.glob("kafka_*.jar")):
        print("  left out: Apache Kafka is not here; `make kafka` fetches it, and it needs Java 17", file=sys.stderr)
        return
    with ApacheKafka(folder) as kafka:
        kafka.create_topic(TOPIC, 1)
        publish(publisher, kafka.url)
        seconds: dict[str, list[float]] = {"unsigned": [], "signed": []}
        for number in range(ROUNDS):
            seconds["unsigned"].append(read(open_inlet(kafka.url, f"unsigned-{number}", [TOPIC])))
            seconds["signed"].append(consumed(publisher, kafka.url, f"signed-{number}"))
    unsigned, signed = (median(seconds[name]) / EVENTS for name in ("unsigned", "signed"))
    against = f"the same records unverified: {1 / unsigned:,.0f}/s"
    yield Figure(
        "events of 1 KB through a consumer on Kafka",
        1 / signed,
        "/s",
        against,
        unsigned / signed,
        Goal("≥", 25_000, "/s"),
    )
    checked = verification(publisher)
    against = f"consumer's {signed * 1e6:.0f} µs an event, {unsigned * 1e6:.0f} of them Kafka's"
    yield Figure("verification within the consumer", checked * 1e6, "µs", against, checked / signed)


def publish(publisher: peerseal.Identity, url: str) -> None:
    """EVENTS signed events, on the broker when it returns."""
    with EventPublisher(publisher, open_outlet(url)) as events:
        for number in range(EVENTS):
            events.publish(
                TOPIC,
                PAYLOAD,
                audience=AUDIENCE,
                scope=SCOPE,
                event_id=f"e-{number}",
                transaction_id=f"t-{number}",
                subject="ada",
            )


def read(inlet: Inlet) -> float:
    """Seconds to read them all from the first one on, each acknowledged."""
    try:
        return _timed(lambda: _received(inlet))
    finally:
        inlet.close()


def consumed(publisher: peerseal.Identity, url: str, group: str) -> float:
    """The same through an `EventConsumer` whose application does nothing."""
    consumer = EventConsumer(publisher, verifier(publisher), open_inlet(url, group, [TOPIC]), open_outlet(url))
    try:
        return _timed(lambda: consumer.run_once(lambda _: None, 10.0) is not None)
    finally:
        consumer.close()


def verifier(publisher: peerseal.Identity) -> peerseal.EventVerifier:
    """Of the events of `publish`."""
    allow = {publisher.service: {SCOPE}}
    return peerseal.EventVerifier(publisher.trust, audience=AUDIENCE, allow=allow, max_age=timedelta(days=7))


def verification(publisher: peerseal.Identity) -> float:
    """Seconds for one verification, over as many different events."""
    verify, messages = verifier(publisher).verify, [_signed(publisher, number) for number in range(500)]
    began = time.perf_counter()
    for headers in messages:
        verify(PAYLOAD, headers, topic=TOPIC)
    return (time.perf_counter() - began) / len(messages)


def _signed(publisher: peerseal.Identity, number: int) -> dict[str, str]:
    return publisher.sign_event(
        PAYLOAD,
        topic=TOPIC,
        audience=AUDIENCE,
        scope=SCOPE,
        event_id=f"e-{number}",
        transaction_id=f"t-{number}",
        subject="ada",
    )


def _received(inlet: Inlet) -> bool:
    message = inlet.receive(10.0)
    if message is not None:
        inlet.done(message)
    return message is not None


def _timed(one: Callable[[], bool]) -> float:
    """From the first event, which waits for the group, to the last."""
    if not one():
        raise RuntimeError("no event came")
    began = time.perf_counter()
    for _ in range(EVENTS - 1):
        if not one():
            raise RuntimeError("an event is missing")
    return time.perf_counter() - began
