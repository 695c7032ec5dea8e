"""A model of fleets from 1,000 to 10,000,000 hosts: ``python -m benchmarks.fleet``.

It measures what single questions cost a registry on PostgreSQL in this run, and multiplies them by how often a fleet
asks. It prints one table, and writes a picture into docs/explanation. Each host is an instance of one service and calls
or is called by ten others; see `Fleet` for all assumptions, and docs/explanation/scaling.md.
"""

import math
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

import requests

from benchmarks import cores, waiting_calls
from benchmarks.growth import CALLS, SMALL, filled
from benchmarks.load import drive, get
from benchmarks.operators import Operator
from demo.stack import CLIENT, Stack
from peerseal import Identity
from tests.support.postgres import running_postgres

SIZES: Final = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
PICTURE: Final = Path(__file__).parent.parent / "docs" / "explanation" / "scaling.svg"
_REQUESTS: Final = 2_000
_DAY: Final = 24 * 3600
_HEAD: Final = 400
"""Bytes of an answer's headers, about."""
_LIST: Final = 1_000
"""Bytes of an empty list of changes, with checkpoint, proof and signature, about."""
_LONG: Final = 500
"""Services in a list at which the registry ends a wait."""
_SERVICE: Final = 50
"""Bytes of one service in a list, with its id of some 25 characters, about."""


class Cost(NamedTuple):
    """What one question costs: seconds of the registry's processor, and bytes of the answer."""

    seconds: float
    size: int

    def times(self, rate: float) -> "Load":
        """The load of so many questions in a second."""
        return Load(self.seconds * rate, self.size * rate)


class Load(NamedTuple):
    """Processor cores that are busy, and bytes in a second."""

    busy: float = 0.0
    bytes_out: float = 0.0


@dataclass(frozen=True, slots=True)
class UnitCosts:
    """What was measured in this run. ``told`` is an answer to a waiting call that names its services, with its share of
    the lists that are signed. ``registration`` has the signed statement, and not the database's own work. ``worker`` is
    the memory of one worker in bytes."""

    document: Cost
    not_modified: Cost
    recent: Cost
    current: Cost
    told: Cost
    cold_document: Cost
    registration: Cost
    worker: int


@dataclass(frozen=True, slots=True)
class Fleet:
    """How often a fleet asks. A service has ten hosts and ten neighbours, so a hundred hosts watch it. A host replaces
    its key once a day (two entries of the ledger), restarts once a day, and looks every five minutes whether what it
    holds is the newest. Mirrors have the statements of keys that were admitted in the last ``statements_for`` days, or
    none. Without them each host that watches a service asks the registry for the statement of a key that signs events,
    after each change of the service."""

    hosts: int
    hosts_of_a_service: int = 10
    watched: int = 10
    refresh: float = 300.0
    wait: float = 15.0
    hosts_of_a_mirror: int = 10_000
    statements_for: int = 0

    @property
    def services(self) -> int:
        return max(1, self.hosts // self.hosts_of_a_service)

    @property
    def changes(self) -> float:
        """Entries in a second."""
        return 2 * self.hosts / _DAY

    @property
    def registrations(self) -> float:
        """Keys in a second."""
        return self.hosts / _DAY

    @property
    def watchers(self) -> int:
        """Hosts that watch one service."""
        return self.hosts_of_a_service * self.watched

    @property
    def statements(self) -> int:
        """Statements of a service that a mirror has."""
        return self.hosts_of_a_service * self.statements_for

    @property
    def told(self) -> float:
        """Answers in a second to one host's waiting calls: at a change of a service that it watches, or of its own; and
        at the end of a wait, or when a list has grown long."""
        concerned = (self.watched + 1) * self.changes / self.services
        return concerned + max(1 / self.wait, self.changes / _LONG)

    @property
    def told_size(self) -> int:
        """Bytes of a list of the changes during a wait."""
        return _HEAD + _LIST + _SERVICE * math.ceil(min(self.services, self.changes * self.wait, _LONG))

    @property
    def blocks(self) -> int:
        """Blocks of the ledger in which services changed last: those of half a day."""
        return max(1, math.ceil(min(self.services, self.changes * _DAY / 2) / 1024))

    @property
    def mirrors(self) -> int:
        return max(1, math.ceil(self.hosts / self.hosts_of_a_mirror))

    @property
    def recent_size(self) -> int:
        """Bytes of the list of recent changes."""
        return _HEAD + _SERVICE * min(300, self.services)

    @property
    def current_size(self) -> int:
        """Bytes of a list of current services."""
        return _HEAD + _SERVICE * min(1024, self.services)

    def of_a_mirror(self, costs: UnitCosts) -> float:
        """Bytes in a second that a mirror or cache sends to its hosts. Each asks for the recent changes once a second,
        and gets the list where something changed."""
        hosts, changed = min(self.hosts, self.hosts_of_a_mirror), min(self.changes, 1.0)
        told = changed * self.recent_size + (1 - changed) * _HEAD
        fetched = self.changes * self.watchers * hosts / self.hosts * costs.document.size
        return hosts * (told + (self.watched + 2) / self.refresh * _HEAD) + fetched


Shape = Callable[[Fleet, UnitCosts], Sequence[Load]]


def direct(fleet: Fleet, costs: UnitCosts) -> Sequence[Load]:
    """All hosts ask the registry, and wait there for changes of the services that they watch."""
    fetched = fleet.changes * min(fleet.watchers, fleet.hosts)
    refreshed = fleet.hosts * (fleet.watched + 2) / fleet.refresh
    started = fleet.hosts * 2 * (fleet.watched + 2) / _DAY
    return (
        costs.told._replace(size=fleet.told_size).times(fleet.hosts * fleet.told),
        costs.document.times(fetched + started),
        costs.not_modified.times(refreshed),
        costs.cold_document.times(fleet.changes),
    )


def through_caches(fleet: Fleet, costs: UnitCosts) -> Sequence[Load]:
    """A cache for each ten thousand hosts. It asks for the recent changes once a second, and for a list each half
    minute. It asks for a document when it changed, and after half a minute where a host asked."""
    documents = 2 * fleet.services
    asked = min(documents / 30, fleet.hosts_of_a_mirror * (fleet.watched + 2) / fleet.refresh)
    return (
        costs.recent._replace(size=fleet.recent_size).times(fleet.mirrors),
        costs.current._replace(size=fleet.current_size).times(fleet.mirrors * fleet.blocks / 30),
        costs.document.times(fleet.mirrors * fleet.changes * 2),
        costs.not_modified.times(fleet.mirrors * asked),
        costs.cold_document.times(fleet.changes * 2),
    )


def through_mirrors(fleet: Fleet, costs: UnitCosts) -> Sequence[Load]:
    """A mirror for each ten thousand hosts, ten at most at the registry itself: further mirrors follow those. A mirror
    asks for what changed, all statements of a service that changed among it, and for all lists once a minute."""
    at_registry, changed = min(fleet.mirrors, 10), fleet.changes * (4 + fleet.statements)
    renewed = (2 + fleet.statements) * fleet.services / (_DAY / 2)
    direct = 0 if fleet.statements else fleet.changes
    return (
        costs.recent._replace(size=fleet.recent_size).times(2 * at_registry),  # with the ledger's checkpoint
        costs.current._replace(size=fleet.current_size).times(at_registry * fleet.blocks / 60),
        costs.document.times(at_registry * (changed + renewed) + direct * min(fleet.watchers, fleet.hosts)),
        costs.cold_document.times(changed + renewed + direct * fleet.hosts_of_a_service),
    )


SHAPES: Final[Mapping[str, Shape]] = {
    "direct": direct,
    "through caches": through_caches,
    "through mirrors": through_mirrors,
    "… with statements": lambda fleet, costs: through_mirrors(replace(fleet, statements_for=30), costs),
}


@dataclass(frozen=True, slots=True)
class Needs:
    """What a fleet needs at the registry, writing calls included. ``first`` is what takes most of the processors."""

    hosts: int
    shape: str
    busy: float
    first: str
    workers: int
    connections: int
    memory: float
    megabits: float
    each_mirror: float | None


_PARTS: Final[Mapping[str, Sequence[str]]] = {
    "direct": ("telling of changes", "documents", "refreshes", "signing"),
    "through caches": ("recent changes", "lists", "changed documents", "refreshes", "signing"),
    "through mirrors": ("recent changes", "lists", "documents", "signing"),
    "… with statements": ("recent changes", "lists", "documents", "signing"),
}
CONNECTIONS: Final = 4
"""Connections to PostgreSQL of a worker."""
_BUSY: Final = 0.6
"""The part of a core that a worker may be busy, so that a burst finds it free."""


def needs(fleet: Fleet, shape: str, costs: UnitCosts) -> Needs:
    """What a fleet of that shape needs."""
    loads = {
        **dict(zip(_PARTS[shape], SHAPES[shape](fleet, costs), strict=True)),
        "registrations": costs.registration.times(fleet.registrations),
    }
    busy = sum(load.busy for load in loads.values())
    workers = max(2, math.ceil(busy / _BUSY))
    return Needs(
        fleet.hosts,
        shape,
        busy,
        max(loads, key=lambda part: loads[part].busy),
        workers,
        workers * CONNECTIONS,
        workers * costs.worker / 2**30,
        sum(load.bytes_out for load in loads.values()) * 8 / 1e6,
        None if shape == "direct" else fleet.of_a_mirror(costs) * 8 / 1e6,
    )


def measured(folder: Path) -> UnitCosts:
    """What single questions cost, of one worker on a core of its own."""
    servers, load = cores.shared_out()
    with running_postgres() as server, Stack(folder / "stack", database_url=server.new_database()) as stack:
        with cores.on(servers):
            registry = stack.start_registry(workers=1)
        caller = Identity(CLIENT, registry=registry.url, join_token=stack.join_token(CLIENT)).start()
        path = f"/v1/services/{CLIENT}/jwks.jwt"

        def cost(target: str, *headers: str, statuses: Sequence[int] = (200,)) -> Cost:
            many = [get(target, *headers)] * _REQUESTS
            with cores.on(load):
                drive(registry.url, many[:200], statuses=statuses)
                before = cores.processor_seconds(registry.pid)
                drive(registry.url, many, statuses=statuses)
            seconds = (cores.processor_seconds(registry.pid) - before) / len(many)
            return Cost(seconds, _HEAD if headers else _HEAD + len(answer(target).content))

        def answer(target: str) -> requests.Response:
            return requests.get(registry.url + target, timeout=30)

        try:
            document = cost(path)
            not_modified = cost(path, f"If-None-Match: {answer(path).headers['ETag']}", statuses=(304,))
            recent, current = cost("/v1/changes/recent.jwt"), cost("/v1/current/0.jwt")
        finally:
            caller.stop()
        worker = cores.memory_of_workers(registry.pid)
        told = waiting_calls.told(registry, Operator.of(stack), named=True)
        alone = filled(folder / "alone", server.new_database(), SMALL)
        cold = _processor_time(alone.key_set, CALLS)
        registration = _processor_time(alone.register, CALLS)
    of_an_answer = Cost(told.cpu / 1e3 / (told.answers / waiting_calls.CHANGES), 0)
    costs = document, not_modified, recent, current, of_an_answer, Cost(cold, 0), Cost(registration, 2_000)
    return UnitCosts(*costs, worker)


def _processor_time(call: Callable[[int], object], calls: int) -> float:
    for number in range(20):
        call(number)
    before = time.process_time()
    for number in range(calls):
        call(number % 100)
    return (time.process_time() - before) / calls


def table(found: Sequence[Needs]) -> str:
    """A Markdown table."""
    head = (
        "hosts",
        "shape",
        "cores busy",
        "most of it",
        "workers",
        "connections",
        "memory",
        "registry sends",
        "each cache or mirror sends",
    )
    rows = [head, *(_row(one) for one in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    rule = "|".join("-" * (width + 2) for width in widths)
    return "\n".join([f"| {lines[0]} |", f"|{rule}|", *(f"| {line} |" for line in lines[1:])])


def _row(one: Needs) -> tuple[str, ...]:
    numbers = (f"{one.workers:,}", f"{one.connections:,}", f"{one.memory:,.1f} GiB", f"{one.megabits:,.1f} Mbit/s")
    each = "–" if one.each_mirror is None else f"{one.each_mirror:,.0f} Mbit/s"
    return f"{one.hosts:,}", one.shape, f"{one.busy:,.2f}", one.first, *numbers, each


def main() -> int:
    """Measures, and prints the table."""
    with tempfile.TemporaryDirectory(prefix="peerseal-fleet-") as folder:
        costs = measured(Path(folder))
    for name in ("document", "not_modified", "recent", "current", "told", "cold_document", "registration"):
        cost: Cost = getattr(costs, name)
        print(f"{name.replace('_', ' ')}: {1e6 * cost.seconds:,.0f} µs, {cost.size:,} bytes", file=sys.stderr)
    found = [needs(Fleet(hosts), shape, costs) for hosts in SIZES for shape in SHAPES]
    print(table(found))
    PICTURE.write_text(picture(found), encoding="utf-8")
    return 0


_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 760, 420, 70, 40, 170, 50
_COLOURS: Final = {"direct": "#b3402e", "through caches": "#c08a1e", "through mirrors": "#2f7d4f"}
_LEAST, _MOST = -3, 5  # powers of ten of cores


def picture(found: Sequence[Needs]) -> str:
    """An SVG: cores that are busy at the registry, by hosts, for each shape; both axes are logarithmic."""

    def at(hosts: float, busy: float) -> tuple[float, float]:
        across = (math.log10(hosts) - math.log10(SIZES[0])) / (math.log10(SIZES[-1]) - math.log10(SIZES[0]))
        up = (math.log10(max(busy, 10**_LEAST)) - _LEAST) / (_MOST - _LEAST)
        width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
        return round(_LEFT + across * width, 1), round(_HEIGHT - _BOTTOM - up * height, 1)

    lines = []
    for power in range(_LEAST, _MOST + 1):
        x, y = at(SIZES[0], 10**power)
        lines.append(f'<line x1="{x}" y1="{y}" x2="{_WIDTH - _RIGHT}" y2="{y}" stroke="#dddddd"/>')
        lines.append(f'<text x="{x - 8}" y="{y + 4}" text-anchor="end" fill="#555555">{10**power:g}</text>')
    for hosts in SIZES:
        x, y = at(hosts, 10**_LEAST)
        lines.append(f'<text x="{x}" y="{y + 20}" text-anchor="middle" fill="#555555">{hosts:,}</text>')
    for shape, colour in _COLOURS.items():
        points = [at(one.hosts, one.busy) for one in found if one.shape == shape]
        path = " ".join(f"{x},{y}" for x, y in points)
        lines.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        lines.append(f'<text x="{points[-1][0] + 8}" y="{points[-1][1] + 4}" fill="{colour}">{shape}</text>')
    body = "\n".join(lines)
    size = f'width="{_WIDTH}" height="{_HEIGHT}"'
    title = "Cores that are busy at the registry, by hosts of the fleet"
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" {size}
  font-family="system-ui, sans-serif" font-size="12">
<rect {size} fill="#ffffff"/>
<text x="{_LEFT}" y="24" font-size="15" font-weight="bold">{title}</text>
{body}
</svg>
"""


if __name__ == "__main__":
    sys.exit(main())
