"""The transactional outbox: an event goes out if, and only if, the transaction that it tells of was committed.

The application adds a signed event within its own database transaction (SQLAlchemy, on PostgreSQL or SQLite; extra
``kafka`` or ``rabbitmq``), and a relay in the background sends it once the broker can be reached::

    OUTBOX = outbox_table(metadata)                       # beside the application's own tables
    outbox = Outbox(engine, OUTBOX)
    outbox.start(lambda: open_outlet("kafka://kafka:9092"))

    headers = identity.sign_event(payload, topic="OrderCreated", …)
    with engine.begin() as connection:                    # the order and its event: both or neither
        connection.execute(orders.insert().values(…))
        outbox.add(connection, "OrderCreated", payload, headers, key=b"order 7")
    outbox.wake()

Each event is sent at least once, in the order of its topic and key: consumers count it once (`peerseal.inbox`).
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
    """How an outbox does. ``waiting`` events are not confirmed by the broker yet, the oldest of them for ``oldest_age``
    seconds (0 where none waits); ``put_aside`` were refused for good. ``failure`` is the code of what the relay of this
    process failed at last, None where its last attempt succeeded."""

    waiting: int
    oldest_age: float
    put_aside: int
    failure: str | None

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        return asdict(self)


class Outbox:
    """The outbox ``table`` in the database of ``engine``. ``clock`` gives seconds since the epoch.

    Safe to use from threads and before a fork: once started it has a relay in this process and in each process that is
    forked from it, of which one works at a time, on however many hosts. Raises ConfigurationError on a database that is
    neither PostgreSQL nor SQLite in a file.
    """

    STOP_WITHIN = 10.0
    """Seconds for an attempt under way to end."""

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
        """Add an event with the headers that `Identity.sign_event` gave, in the transaction of ``connection``; → its
        number. Events of one topic and ``key`` go out in the order of their numbers; events without a key in any order.

        Call `wake` once the transaction is committed. Raises ConfigurationError for what no broker takes, or what
        SQLAlchemy raises.
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
        """Send what waits from now on, by the outlet that ``connect`` opens, in this process and in each that is forked
        from it. A second call changes nothing."""
        check_callable("connect", connect)
        if self._relay is None:
            self._relay = Relay(self._engine, self._rows, connect, self._limits, self._clock)
        self._relay.start()
        atexit.register(self.stop)

    def wake(self) -> None:
        """Have the relay of this process look into the outbox at once: a transaction with an event was committed."""
        if self._relay is not None:
            self._relay.wake()

    def stop(self, timeout: float = STOP_WITHIN) -> bool:
        """End the relay of this process, once an attempt under way has ended; → whether it did within ``timeout``
        seconds. What waits goes out by another relay, or after the next start."""
        atexit.unregister(self.stop)
        return self._relay is None or self._relay.stop(timeout)

    # ---- for operators and metrics

    def status(self) -> OutboxStatus:
        """How the outbox does now. Raises what SQLAlchemy raises."""
        with self._engine.connect() as connection:
            waiting, oldest, aside = self._rows.counts(connection)
        age = 0.0 if oldest is None else max(0.0, self._clock() - oldest)
        return OutboxStatus(waiting, age, aside, self._relay.failure if self._relay is not None else None)

    def put_aside(self, limit: int = 100) -> list[PutAside]:
        """Events that the broker refused for good, the oldest first. Raises what SQLAlchemy raises."""
        with self._engine.connect() as connection:
            return self._rows.aside(connection, limit)

    def retry(self, numbers: Iterable[int]) -> int:
        """Send events that were put aside once more, such as after the broker's limit was raised; → how many. Each goes
        out in the order of its number, which may be after later events of its key. Raises what SQLAlchemy raises."""
        with self._engine.begin() as connection:
            count = self._rows.retry(connection, numbers)
        self.wake()
        return count


def _is_ascii(text: object) -> bool:
    return isinstance(text, str) and text.isascii()
