"""What happened: the entries of the ledger, joined with the acts of operators that made none."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from sqlalchemy import Connection

from peerseal.audit.entry_words import in_words
from peerseal.errors import MalformedToken
from peerseal.protocol.encoding import canonical_json, natural, strict_json_object
from peerseal.protocol.ledger.entries import Entry
from registry.domain.errors import BadRequest
from registry.services.use_case import UseCase
from registry.storage.queries import activity, ledger
from registry.storage.queries.activity import ActRow, EntryRow, Span, Wanted

WINDOW: Final = 2_000
"""A filtered list looks at this many of the newest entries, and of the newest acts: no index has their filters."""
SHOWN: Final = 50
"""Events of one answer."""
_LONGEST: Final = 300


class Position(NamedTuple):
    """A place between events: the number of an entry, and of a row of the audit trail."""

    seq: int
    act: int

    def __str__(self) -> str:
        """As it stands in an address."""
        return f"{self.seq}.{self.act}"

    @classmethod
    def read(cls, text: str) -> "Position":
        """Raises BadRequest."""
        seq, _, act = text.partition(".")
        numbers = natural(seq), natural(act)
        if numbers[0] is None or numbers[1] is None:
            raise BadRequest("invalid_parameter", f"a position is {text!r:.40}, expected two numbers such as 812.40")
        return cls(numbers[0], numbers[1])


@dataclass(frozen=True, slots=True)
class Filter:
    """What is wanted: events of one type, about one service, by one operator (its id)."""

    type: str | None = None
    service: str | None = None
    operator: str | None = None

    @property
    def any(self) -> bool:
        """Whether something is filtered."""
        return bool(self.type or self.service or self.operator)

    def wanted(self, domain: str) -> Wanted:
        """As queries take it. Raises BadRequest."""
        for text in (self.type, self.service, self.operator):
            if text is not None and len(text) > _LONGEST:
                raise BadRequest("invalid_parameter", f"a filter has more than {_LONGEST} characters")
        by = canonical_json({"operator": self.operator}).decode("utf-8") if self.operator else None
        return Wanted(self.type or None, self.service or None, f"{domain}/{self.service}/", by)


@dataclass(frozen=True, slots=True)
class Event:
    """One entry, or one act that made none. ``by`` is None where the bytes of the entry were altered; ``seq`` and
    ``act`` are its numbers in the ledger and in the audit trail; ``said`` is what an entry about the registry itself
    says, in words."""

    time: int
    type: str
    service: str | None
    subject: str | None
    by: Mapping[str, str] | None
    seq: int | None
    act: int | None = None
    said: str | None = None


@dataclass(frozen=True, slots=True)
class Events:
    """Events in order. ``end`` is the position after the last of them, ``more`` says whether others follow, and
    ``head`` is the position of the newest event of all."""

    events: tuple[Event, ...]
    end: Position
    more: bool
    head: Position


class Activity(UseCase):
    """Lists events. An act that made an entry is that entry's event; filtered by operator, the events are the acts."""

    def older(self, before: Position | None, only: Filter, limit: int = SHOWN) -> Events:
        """The newest events before that position; the newest of all for None. Raises BadRequest, StorageUnavailable."""
        wanted = only.wanted(self._authority.in_force().domain)
        with self._store.read() as connection:
            head = _head(connection)
            start = Position(*map(min, before or head, head))
            floor = _floor(head) if only.any else Position(0, 0)
            entries = Span(floor.seq, start.seq + 1, newest_first=True, limit=limit)
            acts = Span(floor.act, start.act + 1, newest_first=True, limit=limit)
            return Events(*_joined(connection, (entries, acts), wanted, start), head)

    def newer(self, after: Position, only: Filter, limit: int = SHOWN) -> Events:
        """The events after that position, oldest first: within the window of the newest. Raises as `older` does."""
        wanted = only.wanted(self._authority.in_force().domain)
        with self._store.read() as connection:
            head = _head(connection)
            start = Position(*map(max, after, _floor(head)))
            entries = Span(start.seq, head.seq + 1, newest_first=False, limit=limit)
            acts = Span(start.act, head.act + 1, newest_first=False, limit=limit)
            events, end, more = _joined(connection, (entries, acts), wanted, start)
        return Events(events, end if more else head, more, head)


def _head(connection: Connection) -> Position:
    return Position(ledger.head(connection), activity.newest_act(connection))


def _floor(head: Position) -> Position:
    return Position(max(0, head.seq - WINDOW), max(0, head.act - WINDOW))


def _joined(
    connection: Connection, spans: tuple[Span, Span], wanted: Wanted, start: Position
) -> tuple[tuple[Event, ...], Position, bool]:
    """Both lists as one, each in its own order, whatever the clocks of the nodes were: no event is lost between two
    pages. A page ends early where one list has more than was read of it."""
    entries = [] if wanted.by is not None else activity.entry_rows(connection, spans[0], wanted)
    acts = activity.act_rows(connection, spans[1], wanted)
    newest_first, limit = spans[0].newest_first, spans[0].limit
    full = len(entries) == limit, len(acts) == limit
    (seq, act), events, step = start, list[Event](), -1 if newest_first else 0
    while len(events) < limit and (entries or acts) and (entries or not full[0]) and (acts or not full[1]):
        if acts and (not entries or (acts[0].time >= entries[0].time) == newest_first):
            row = acts.pop(0)
            act = row.id + step
            if row.seq is None or wanted.by is not None:
                events.append(_of_act(row))
        else:
            entry = entries.pop(0)
            seq = entry.seq + step
            events.append(_of_entry(entry))
    return tuple(events), Position(seq, act), bool(entries or acts or any(full))


def _of_entry(row: EntryRow) -> Event:
    try:
        entry = Entry.decode(row.body)
    except MalformedToken:
        return Event(row.time, row.type, row.service, row.kid, None, row.seq)
    token_id = entry.data.get("id")  # entries about tokens have it
    subject = row.kid or (token_id if isinstance(token_id, str) else None)
    return Event(row.time, row.type, row.service, subject, entry.by, row.seq, said=in_words(entry))


def _of_act(row: ActRow) -> Event:
    return Event(
        row.time, row.act, row.service, row.subject, strict_json_object(row.by.encode("utf-8")), row.seq, row.id
    )
