"""How many requests until a registry that shows two histories is found: a model of who tells whom, without a network.

``python -m benchmarks.split_view`` prints the table of docs/explanation/split-views.md and draws its picture. The
registry shows k of n services another history. Requests follow the call graph at random, each of its calls as often as
any other. A request tells its callee the caller's checkpoint once after each change of it, as
`peerseal.trust.peer_checkpoints` does. The alarm comes with the first request that tells a service of the other side a
checkpoint which that service can compare: one that is not larger than its own.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass
from math import log10
from pathlib import Path
from typing import Final

PICTURE: Final = Path(__file__).parent.parent / "docs" / "explanation" / "split-views.svg"
SERVICES: Final = 60
DECEIVED: Final = (1, 5, 15, 30)
RUNS: Final = 300
MOST: Final = 50 * SERVICES
"""Requests after which a run ends without an alarm."""
PER_CHANGE: Final = 10 * SERVICES
"""Requests between two changes of the ledger."""
_CANDIDATES: Final = 400
_MESH: Final = 4

Call = tuple[int, int]
"""The caller and the callee."""
Graph = tuple[Call, ...]


def graphs(n: int, chance: random.Random) -> dict[str, Graph]:
    """Call graphs of n services: an edge that calls all others, a chain, a tree of two callees for each service, and a
    mesh of four random callees for each."""
    mesh = {(caller, callee) for caller in range(n) for callee in chance.sample(range(n), _MESH) if caller != callee}
    return {
        "star": tuple((0, callee) for callee in range(1, n)),
        "chain": tuple((service, service + 1) for service in range(n - 1)),
        "tree": tuple(((service - 1) // 2, service) for service in range(1, n)),
        "mesh": tuple(sorted(mesh)),
    }


@dataclass(frozen=True, slots=True)
class Lie:
    """The ``deceived`` services are shown the other history. If it ``lags``, it stays at the size of the fork, while
    the true one grows; else both grow alike. ``both_ways``: answers tell checkpoints, too."""

    deceived: frozenset[int]
    lags: bool
    both_ways: bool

    def size(self, service: int, changes: int) -> int:
        """Entries after the fork that the service has seen, one at least."""
        return 1 if self.lags and service in self.deceived else 1 + changes + self.lags


def requests_until_alarm(graph: Graph, lie: Lie, chance: random.Random) -> int | None:
    """One run: the number of the request that raises the alarm; None where none of `MOST` does."""
    told = dict[Call, int]()
    for number in range(1, MOST + 1):
        caller, callee = chance.choice(graph)
        changes = number // PER_CHANGE
        for teller, hearer in ((caller, callee), (callee, caller))[: 1 + lie.both_ways]:
            size = lie.size(teller, changes)
            if told.get((teller, hearer)) == size:
                continue
            told[teller, hearer] = size
            if (teller in lie.deceived) is not (hearer in lie.deceived) and size <= lie.size(hearer, changes):
                return number
    return None


def crossing(graph: Graph, deceived: frozenset[int]) -> int:
    """Calls between the two sides."""
    return sum((caller in deceived) is not (callee in deceived) for caller, callee in graph)


def best_hidden(graph: Graph, k: int, chance: random.Random) -> frozenset[int]:
    """The k services that the liar would choose: with few calls to and from the others. Of random ones, and of
    neighbourhoods of each service."""
    services = sorted({service for call in graph for service in call})
    random_sets = (frozenset(chance.sample(services, k)) for _ in range(_CANDIDATES))
    near = (_neighbourhood(graph, service, k) for service in services)
    return min((*random_sets, *near), key=lambda deceived: crossing(graph, deceived))


def _neighbourhood(graph: Graph, service: int, k: int) -> frozenset[int]:
    found, at = [service], 0
    while len(found) < k and at < len(found):
        near = [other for call in graph if found[at] in call for other in call if other not in found]
        found += list(dict.fromkeys(near))[: k - len(found)]
        at += 1
    return frozenset(found)


@dataclass(frozen=True, slots=True)
class Row:
    """Requests until the alarm: in half of the runs, and in 99 of 100; in 99 of 100 where the lie lags, and where it
    lags and answers tell checkpoints, too. None where fewer runs found it."""

    shape: str
    chosen: str
    k: int
    half: int | None
    most: int | None
    lagging: int | None
    both_ways: int | None


def rows(chance: random.Random) -> list[Row]:
    """The table."""
    found = []
    for shape, graph in graphs(SERVICES, chance).items():
        for chosen in ("at random", "by the liar"):
            for k in DECEIVED:
                sets = [_deceived(graph, chosen, k, chance) for _ in range(RUNS if chosen == "at random" else 1)]
                plain, lagging, both = (
                    _times(graph, sets, lags, both_ways, chance)
                    for lags, both_ways in ((False, False), (True, False), (True, True))
                )
                found.append(
                    Row(shape, chosen, k, _at(plain, 0.5), _at(plain, 0.99), _at(lagging, 0.99), _at(both, 0.99))
                )
    return found


def _deceived(graph: Graph, chosen: str, k: int, chance: random.Random) -> frozenset[int]:
    if chosen == "by the liar":
        return best_hidden(graph, k, chance)
    return frozenset(chance.sample(range(SERVICES), k))


def _times(
    graph: Graph, sets: list[frozenset[int]], lags: bool, both_ways: bool, chance: random.Random
) -> list[int | None]:
    lies = (Lie(sets[run % len(sets)], lags, both_ways) for run in range(RUNS))
    return [requests_until_alarm(graph, lie, chance) for lie in lies]


def _at(times: Iterable[int | None], part: float) -> int | None:
    """The time within which that part of the runs ended; None where fewer did."""
    ordered = sorted(MOST + 1 if time is None else time for time in times)
    found = ordered[min(len(ordered) - 1, int(part * len(ordered)))]
    return None if found > MOST else found


def table(found: Iterable[Row]) -> str:
    """The rows, in Markdown."""
    head = "| calls | deceived | k | half of the runs | 99 of 100 | the lie lags | it lags, and answers tell |"
    lines = [head, "|---|---|---|---|---|---|---|"]
    for row in found:
        times = (row.half, row.most, row.lagging, row.both_ways)
        cells = " | ".join("never" if time is None else f"{time:,}" for time in times)
        lines.append(f"| {row.shape} | {row.chosen} | {row.k} | {cells} |")
    return "\n".join(lines)


_COLOURS: Final = {"star": "#b3402e", "chain": "#2f5d8a", "tree": "#2f7d4f", "mesh": "#8a5a00"}
_LEFT, _TOP, _WIDE, _HIGH = 70, 60, 300, 220  # pixels of one of the two pictures
_DECADES: Final = (1, 10, 100, 1_000)


def picture(found: Iterable[Row]) -> str:
    """An SVG: requests until 99 of 100 runs had the alarm, by k; services at random, and as the liar chooses them."""
    found = list(found)
    parts = "".join(
        _panel(number, chosen, [row for row in found if row.chosen == chosen])
        for number, chosen in enumerate(("at random", "by the liar"))
    )
    width, height = 2 * (_WIDE + _LEFT) + 110, _TOP + _HIGH + 60
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"
  font-family="system-ui, sans-serif" font-size="12">
<rect width="{width}" height="{height}" fill="#ffffff"/>
<text x="12" y="22" font-size="15" font-weight="bold">Requests until two histories are found, in 99 of 100 runs</text>
<text x="12" y="42" fill="#555555">{SERVICES} services in all; a shape without a point was not found</text>
{parts}{_legend(width - 90)}</svg>
"""


def _panel(number: int, chosen: str, found: list[Row]) -> str:
    left = _LEFT + number * (_WIDE + _LEFT)
    drawn = [f'<text x="{left}" y="{_TOP - 2}" fill="#333333">services deceived: chosen {chosen}</text>']
    for decade in _DECADES:
        y = _y(decade)
        drawn.append(f'<line x1="{left}" y1="{y:.1f}" x2="{left + _WIDE}" y2="{y:.1f}" stroke="#dddddd"/>')
        drawn.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end" fill="#555555">{decade:,}</text>')
    for at, k in enumerate(DECEIVED):
        drawn.append(f'<text x="{_x(left, at)}" y="{_TOP + _HIGH + 24}" text-anchor="middle">k = {k}</text>')
    for shape, colour in _COLOURS.items():
        times = [(DECEIVED.index(row.k), row.most) for row in found if row.shape == shape]
        points = [(_x(left, at), _y(most)) for at, most in times if most is not None]
        path = " ".join(f"{x},{y:.1f}" for x, y in points)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        drawn += [f'<circle cx="{x}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in points]
    return "\n".join(drawn) + "\n"


def _x(left: int, at: int) -> float:
    return left + 30 + at * (_WIDE - 60) / (len(DECEIVED) - 1)


def _y(requests: int) -> float:
    return _TOP + 10 + (_HIGH - 10) * (1 - log10(requests) / log10(_DECADES[-1]))


def _legend(left: int) -> str:
    return "".join(
        f'<rect x="{left}" y="{_TOP + 20 * at}" width="12" height="12" fill="{colour}"/>'
        f'<text x="{left + 18}" y="{_TOP + 10 + 20 * at}">{shape}</text>\n'
        for at, (shape, colour) in enumerate(_COLOURS.items())
    )


def main() -> None:
    """Prints the table, and draws the picture."""
    found = rows(random.Random(18))  # noqa: S311 - a model
    print(table(found))
    PICTURE.write_text(picture(found))


if __name__ == "__main__":
    main()
