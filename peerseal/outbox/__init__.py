"""The transactional outbox: an event is sent if, and only if, the transaction that it reports was committed.

The application adds a signed event in its own database transaction (SQLAlchemy, on PostgreSQL or SQLite; extra
``kafka`` or ``rabbitmq``). A relay in the background sends it when the broker can be reached::

    OUTBOX = outbox_table(metadata)                       # next to the application's tables
    outbox = Outbox(engine, OUTBOX)
    outbox.start(lambda: open_outlet("kafka://kafka:9092"))

    headers = identity.sign_event(payload, topic="OrderCreated", …)
    with engine.begin() as connection:                    # the order and its event: both or neither
        connection.execute(orders.insert().values(…))
        outbox.add(connection, "OrderCreated", payload, headers, key=b"order 7")
    outbox.wake()

Each event is sent at least once, in the order of its topic and key; consumers count it once (`peerseal.inbox`).
"""

import atexit
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from peerseal.errors import ConfigurationError
from peerseal.outbox.relay import Connect, OutboxLimits, Relay
from peerseal.outbox.rows import PutAside, Rows, outbox_table
from peerseal.runtime.extras import missing
from peerseal.runtime.options import check_callable, check_is
from peerseal.tables import check_dialect, create_tables

try:
    from sqlalchemy import Connection, Engine, Table
except ModuleNotFoundError as error:
    raise missing(error, "kafka") from error

__all__ = ["Connect", "Outbox", "OutboxLimits", "OutboxStatus", "PutAside", "create_tables", "outbox_table"]

_LONGEST_TOPIC = 249  # characters: what Kafka takes, and the column


@dataclass(frozen=True, slots=True)
class OutboxStatus:
    """The state of an outbox. ``waiting`` events are not confirmed yet, the oldest for ``oldest_age`` seconds (0
    without any). ``put_aside`` events were refused for good. ``failure`` is the code of the last error of the relay in
    this process; None if its last attempt succeeded."""

    waiting: int
    oldest_age: float
    put_aside: int
    failure: str | None

    def to_json(self) -> dict[str, Any]:
        """The state as JSON members."""
        return asdict(self)


class Outbox:
    """The outbox ``table`` in the database of ``engine``. ``clock`` gives seconds since the epoch.

    Safe to use from threads and before a fork. After `start` this process and each process that is forked from it has a
    relay, but a master of uWSGI has none; of all relays on all hosts one works at a time. Raises ConfigurationError for
    a database that is neither PostgreSQL nor SQLite in a file.
    """

    STOP_WITHIN = 10.0
    """Seconds for the current attempt to end."""

    def __init__(
        self,
        engine: Engine,
        table: Table,
        *,
        limits: OutboxLimits | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        check_is("engine", engine, Engine, "an Engine of SQLAlchemy")
        check_is("table", table, Table, "a table that outbox_table made")
        check_dialect(engine.dialect.name)
        if engine.dialect.name == "sqlite" and engine.url.database in (None, "", ":memory:"):
            raise ConfigurationError("the database is SQLite in memory: an outbox needs a file")
        check_callable("clock", clock)
        self._engine = engine
        self._rows = Rows(table)
        self._limits = limits or OutboxLimits()
        self._clock = clock
        self._relay: Relay | None = None

    # ---- in the application's transaction

    def add(
        self,
        connection: Connection,
        topic: str,
        payload: bytes,
        headers: Mapping[str, str],
        *,
        key: bytes | None = None,
    ) -> int:
        """Add an event with the headers of `Identity.sign_event` in the transaction of ``connection``; returns its
        number. Events of one topic and ``key`` are sent in the order of their numbers, events without a key in any.

        Call `wake` after the commit. Raises ConfigurationError for an event that no broker accepts, or an error of
        SQLAlchemy.
        """
        check_is("topic", topic, str, "a text")
        check_is("payload", payload, bytes, "bytes")
        if not 0 < len(topic) <= _LONGEST_TOPIC:
            raise ConfigurationError(f"topic has {len(topic)} characters: expected 1 to {_LONGEST_TOPIC}")
        if not all(_is_ascii(part) for pair in headers.items() for part in pair):
            raise ConfigurationError("the headers of an event are not ASCII texts: expected those of sign_event")
        return self._rows.add(connection, topic, payload, dict(headers), key, self._clock())

    # ---- the relay

    def start(self, connect: Connect) -> None:
        """Start the relay of this process, and of each process that is forked from it. ``connect`` opens the outlet. A
        second call changes nothing."""
        check_callable("connect", connect)
        if self._relay is None:
            self._relay = Relay(self._engine, self._rows, connect, self._limits, self._clock)
        self._relay.start()
        atexit.register(self.stop)

    def wake(self) -> None:
        """Let the relay check the outbox at once, after the commit of a transaction with an event."""
        if self._relay is not None:
            self._relay.wake()

    def stop(self, timeout: float = STOP_WITHIN) -> bool:
        """End the relay of this process after the current attempt; returns whether it ended within ``timeout`` seconds.
        Another relay, or the next start, sends the events that wait."""
        atexit.unregister(self.stop)
        return self._relay is None or self._relay.stop(timeout)

    # ---- for operators and metrics

    def status(self) -> OutboxStatus:
        """The state of the outbox. Raises an error of SQLAlchemy."""
        with self._engine.connect() as connection:
            waiting, oldest, aside = self._rows.counts(connection)
        age = 0.0 if oldest is None else max(0.0, self._clock() - oldest)
        return OutboxStatus(waiting, age, aside, self._relay.failure if self._relay is not None else None)

    def put_aside(self, limit: int = 100) -> list[PutAside]:
        """Events that the broker refused for good, the oldest first. Raises an error of SQLAlchemy."""
        with self._engine.connect() as connection:
            return self._rows.aside(connection, limit)

    def retry(self, numbers: Iterable[int]) -> int:
        """Send events again that were put aside; returns their number. An event may then arrive after later events of
        its key. Raises an error of SQLAlchemy."""
        with self._engine.begin() as connection:
            count = self._rows.retry(connection, numbers)
        self.wake()
        return count


def _is_ascii(text: object) -> bool:
    return isinstance(text, str) and text.isascii()
