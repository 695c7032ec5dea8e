"""The geometry of a time line of keys, which a template draws as SVG. Lengths are in SVG's units, whole numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from registry.domain.keys import KeyRecord, KeyState

LEFT: Final = 130
"""The width of the labels, left of the bars."""
BARS: Final = 560
RIGHT: Final = 80
"""The width of the states, right of the bars."""
ROW: Final = 22
TOP: Final = 24
"""The height of the dates."""
_HOUR: Final = 3600
_DAY: Final = 24 * _HOUR
_STEPS: Final = (60, 300, 900, _HOUR, 6 * _HOUR, *(days * _DAY for days in (1, 2, 7, 28, 91, 364, 3640)))
"""Seconds from one date to the next."""
_TICKS: Final = 7
"""Dates that have room above the bars."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A key: ``start`` and ``end`` are where its bar begins and ends, ``y`` is the middle of its row, and ``revoked``
    where it was revoked, if it was."""

    record: KeyRecord
    state: KeyState
    start: int
    end: int
    y: int
    revoked: int | None


@dataclass(frozen=True, slots=True)
class TimeLine:
    """The bars, the dates above them with their places, and the place of the present, None where it is not shown."""

    bars: Sequence[Bar]
    ticks: Sequence[tuple[int, str]]
    now: int | None
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class _Scale:
    first: int
    last: int

    def x(self, at: float) -> int:
        inside = min(max(at, self.first), self.last)
        return LEFT + round(BARS * (inside - self.first) / (self.last - self.first))


def time_line(records: Sequence[KeyRecord], now: float) -> TimeLine:
    """The time line of these keys, one at least, in their order."""
    first = min(key.active_from for key in records)
    scale = _Scale(first, max(first + 1, *(_end(key) for key in records)))
    bars = [
        Bar(
            key,
            key.state(now),
            scale.x(key.active_from),
            scale.x(_end(key)),
            TOP + row * ROW + ROW // 2,
            None if key.revoked_at is None else scale.x(key.revoked_at),
        )
        for row, key in enumerate(records)
    ]
    present = scale.x(now) if scale.first <= now <= scale.last else None
    return TimeLine(bars, _ticks(scale), present, LEFT + BARS + RIGHT, TOP + len(records) * ROW + ROW // 2)


def _end(key: KeyRecord) -> int:
    """Where the bar of a key ends: no token of a revoked key counts."""
    return key.active_until if key.revoked_at is None else max(key.active_from, min(key.active_until, key.revoked_at))


def _ticks(scale: _Scale) -> list[tuple[int, str]]:
    length = scale.last - scale.first
    step = next((step for step in _STEPS if length <= step * _TICKS), length)
    times = range(-(-scale.first // step) * step, scale.last, step)
    shape = "%Y-%m-%d" if step >= _DAY else "%m-%d %H:%M"
    return [(scale.x(at), format(datetime.fromtimestamp(at, UTC), shape)) for at in times]
