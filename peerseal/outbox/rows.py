"""The table of the outbox, and every statement on it."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from peerseal.errors import PeersealError, printable
from peerseal.runtime.extras import missing

try:
    import sqlalchemy as sa
except ModuleNotFoundError as error:
    raise missing(error, "kafka") from error

_LONGEST_DETAIL = 500  # characters


@dataclass(frozen=True, slots=True)
class Waiting:
    """An event that waits for the broker. ``number`` counts events as they were added; ``failures`` counts how often
    the broker refused this one."""

    number: int
    topic: str
    key: bytes | None = field(repr=False)
    payload: bytes = field(repr=False)
    headers: Sequence[tuple[str, bytes]] = field(repr=False)
    failures: int


@dataclass(frozen=True, slots=True)
class PutAside:
    """An event that the broker refused as often as the limits allow. ``size`` is that of the payload in bytes, ``code``
    and ``detail`` describe the last refusal, times are seconds since the epoch."""

    number: int
    topic: str
    key: bytes | None = field(repr=False)
    size: int
    failures: int
    code: str
    detail: str
    added_at: float
    put_aside_at: float


def outbox_table(metadata: sa.MetaData, name: str = "peerseal_outbox") -> sa.Table:
    """The table, in the application's metadata: its migrations or `create_tables` create it."""
    failures = sa.Column("failures", sa.Integer, nullable=False, server_default="0")
    return sa.Table(
        name,
        metadata,
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("topic", sa.String(249), nullable=False),
        sa.Column("key", sa.LargeBinary),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("headers", sa.JSON, nullable=False),
        sa.Column("added_at", sa.Double, nullable=False),
        failures,
        sa.Column("not_before", sa.Double, nullable=False, server_default="0"),
        sa.Column("code", sa.String(200)),
        sa.Column("detail", sa.String(_LONGEST_DETAIL)),
        sa.Column("put_aside_at", sa.Double),
        sa.Index(f"ix_{name}_failures", "topic", "key", postgresql_where=failures > 0, sqlite_where=failures > 0),
        sqlite_autoincrement=True,  # no number is used twice
    )


class Rows:
    """The rows of the outbox ``table``. All methods work in the caller's transaction."""

    def __init__(self, table: sa.Table) -> None:
        self.table = table

    def add(
        self,
        connection: sa.Connection,
        topic: str,
        payload: bytes,
        headers: dict[str, str],
        key: bytes | None,
        now: float,
    ) -> int:
        """Add an event; returns its number."""
        row = {"topic": topic, "payload": payload, "headers": headers, "key": key, "added_at": now}
        return int(connection.execute(self.table.insert().values(row).returning(self.table.c.number)).scalar_one())

    def next_batch(
        self,
        connection: sa.Connection,
        size: int,
        now: float,
        *,
        longest_pause: float,
        paused: Iterable[str],
        failing: Collection[str],
    ) -> list[Waiting]:
        """Events of one topic to send now, among the ``size`` oldest: the first one of each key, so that no later event
        overtakes it if the broker refuses it. An event that failed before is returned alone, and on ``failing`` topics
        after all others. Topics in ``paused`` are left out. A wait of more than ``longest_pause`` means that the clock
        was wrong at the refusal: such an event is sent now."""
        row = self.table.c
        free = self._may_go(now, longest_pause) & row.topic.not_in(list(paused))
        untried = free & ((row.failures == 0) | row.topic.not_in(list(failing)))
        oldest = self._oldest(connection, untried, size) or (self._oldest(connection, free, size) if failing else [])
        if not oldest:
            return []
        chosen = [oldest[0].number] if oldest[0].failures else _first_of_each_key(oldest, oldest[0].topic)
        found = connection.execute(sa.select(self.table).where(row.number.in_(chosen)).order_by(row.number))
        return [_waiting(one) for one in found]

    def _oldest(self, connection: sa.Connection, which: sa.ColumnElement[bool], size: int) -> Sequence[Any]:
        row = self.table.c
        query = sa.select(row.number, row.topic, row.key, row.failures).where(which).order_by(row.number).limit(size)
        return connection.execute(query).all()

    def _may_go(self, now: float, longest_pause: float) -> sa.ColumnElement[bool]:
        row, earlier = self.table.c, sa.alias(self.table).c
        follows_a_failed_one = sa.exists().where(
            earlier.topic == row.topic,
            earlier.key == row.key,
            earlier.number < row.number,
            earlier.failures > 0,
            earlier.put_aside_at.is_(None),
        )
        is_due = (row.not_before <= now) | (row.not_before > now + longest_pause)
        return row.put_aside_at.is_(None) & is_due & ~follows_a_failed_one

    def forget(self, connection: sa.Connection, numbers: Iterable[int]) -> None:
        """Delete events that the broker has confirmed."""
        connection.execute(sa.delete(self.table).where(self.table.c.number.in_(list(numbers))))

    def note_refusal(self, connection: sa.Connection, number: int, error: Exception, **until: float) -> None:
        """Note a refusal, and ``not_before``, the time of the next attempt, or ``put_aside_at`` after the last one."""
        said = {"code": code_of(error), "detail": printable(error)[:_LONGEST_DETAIL]}
        noted = {**said, **until, "failures": self.table.c.failures + 1}
        connection.execute(sa.update(self.table).where(self.table.c.number == number).values(noted))

    def retry(self, connection: sa.Connection, numbers: Iterable[int]) -> int:
        """Let events that were put aside wait again; returns their number."""
        row = self.table.c
        chosen = row.number.in_(list(numbers)), row.put_aside_at.is_not(None)
        again = {"failures": 0, "not_before": 0, "code": None, "detail": None, "put_aside_at": None}
        return connection.execute(sa.update(self.table).where(*chosen).values(again)).rowcount

    def aside(self, connection: sa.Connection, limit: int) -> list[PutAside]:
        """Events that were put aside, the oldest first."""
        row = self.table.c
        said = row.number, row.topic, row.key, sa.func.length(row.payload), row.failures, row.code, row.detail
        query = sa.select(*said, row.added_at, row.put_aside_at).where(row.put_aside_at.is_not(None))
        return [PutAside(*one) for one in connection.execute(query.order_by(row.number).limit(limit))]

    def counts(self, connection: sa.Connection) -> tuple[int, float | None, int]:
        """The number of waiting events, when the oldest of them was added, and the number of events put aside."""
        row = self.table.c
        waits = row.put_aside_at.is_(None)
        counted = sa.select(
            sa.func.count().filter(waits), sa.func.min(row.added_at).filter(waits), sa.func.count().filter(~waits)
        ).select_from(self.table)
        waiting, oldest, aside = connection.execute(counted).one()
        return waiting, oldest, aside


def code_of(error: Exception) -> str:
    """The stable code of a PeersealError, or the name of the class of any other error."""
    return (error.code or type(error).__name__) if isinstance(error, PeersealError) else type(error).__name__


def _first_of_each_key(oldest: Sequence[Any], topic: str) -> list[int]:
    """The number of the first event of each key on the topic, and of all events without a key, if they never failed."""
    firsts: dict[bytes | int, int] = {}
    for row in oldest:
        if row.topic == topic and not row.failures:
            firsts.setdefault(row.number if row.key is None else row.key, row.number)
    return list(firsts.values())


def _waiting(row: Any) -> Waiting:
    headers = tuple((name, value.encode("ascii")) for name, value in row.headers.items())
    return Waiting(row.number, row.topic, row.key, row.payload, headers, row.failures)
