"""Who may call whom, by the policies of all services: a graph from callers to callees."""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from heapq import merge
from itertools import groupby, islice
from typing import Final, NamedTuple

from peerseal.protocol.policies import ANYONE

REACHED: Final = 5_000
"""Services of one answer about what a service reaches."""

Scopes = tuple[str, ...]
Callers = Mapping[str, Scopes]
"""The callers of one service, by short name or ``"*"``, those of foreign trust domains by id; each with its scopes in
order."""


def is_foreign(name: str) -> bool:
    """Whether a caller is of a foreign trust domain: ``"*"`` never means it."""
    return "/" in name


class Call(NamedTuple):
    """An edge: ``caller``, which may be ``"*"``, may call ``callee`` with these scopes, if with any."""

    caller: str
    callee: str
    scopes: Scopes


class Reached(NamedTuple):
    """A service that another one reaches in ``distance`` calls. ``path`` has the services in between, the first caller
    first; before a callee of anyone stands ``"*"``."""

    service: str
    distance: int
    path: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TrustGraph:
    """The policies, by short name of their services. Those in ``restricted`` are not public; those in ``unreadable``
    were lost or altered, and have no edge. ``complete`` is False where there were more calls than a graph may have."""

    policies: Mapping[str, Callers] = field(default_factory=dict)
    restricted: frozenset[str] = frozenset()
    unreadable: frozenset[str] = frozenset()
    complete: bool = True
    callees: Mapping[str, Mapping[str, Scopes]] = field(init=False, repr=False)
    ordered: tuple[str, ...] = field(init=False, repr=False)
    size: int = field(init=False)
    services: int = field(init=False)

    def __post_init__(self) -> None:
        """Derives ``callees``, by caller, those of each in order; ``ordered``, the services with a policy; ``size``,
        the number of calls; and ``services``, the number of services that a policy is of, or names."""
        found: dict[str, dict[str, Scopes]] = {}
        object.__setattr__(self, "ordered", tuple(sorted(self.policies)))
        for callee in self.ordered:
            for caller, scopes in self.policies[callee].items():
                found.setdefault(caller, {})[callee] = scopes
        object.__setattr__(self, "callees", found)
        object.__setattr__(self, "size", sum(map(len, self.policies.values())))
        object.__setattr__(self, "services", len(self.policies.keys() | found.keys() - {ANYONE}))

    def knows(self, service: str) -> bool:
        """Whether a policy is of the service, or names it."""
        return service in self.policies or service in self.callees

    def after(self, service: str) -> Iterator[str]:
        """The services with a policy after that name, in order."""
        return islice(self.ordered, bisect_right(self.ordered, service), None)

    def calls(self) -> Iterator[Call]:
        """All calls, by callee and caller."""
        for callee in self.ordered:
            yield from self.calls_of(callee)

    def calls_of(self, callee: str) -> Iterator[Call]:
        """The calls of one callee, by caller."""
        callers = self.policies.get(callee, {})
        return (Call(caller, callee, callers[caller]) for caller in sorted(callers))

    def calls_by(self, caller: str, after: str = "") -> Iterator[Call]:
        """The calls of one caller, by callee, at those after the name ``after``: calls that name the caller, and those
        of anyone at services that do not."""
        named, anyone = self.callees.get(caller, {}), self._open_to(caller)
        for callee, _ in groupby(name for name in merge(named, anyone) if name > after and name != caller):
            yield Call(caller, callee, named[callee]) if callee in named else Call(ANYONE, callee, anyone[callee])

    def calls_from(self, domain: str) -> Iterator[Call]:
        """The calls of all services of that foreign trust domain, by caller and callee."""
        for caller in sorted(name for name in self.callees if name.startswith(f"{domain}/")):
            yield from self.calls_by(caller)

    def _open_to(self, caller: str) -> Mapping[str, Scopes]:
        return {} if is_foreign(caller) else self.callees.get(ANYONE, {})

    def reached_from(self, start: str, most: int = REACHED) -> "Reach":
        """The services that ``start`` reaches, directly or through others; ``most`` of them, the nearest ones."""
        before: dict[str, Step] = {}
        distances, waiting, anyone = {start: 0}, deque((start,)), self.callees.get(ANYONE, {})
        while waiting and len(distances) <= most + 1:
            caller = waiting.popleft()
            named = self.callees.get(caller, {})
            open_to = {} if is_foreign(caller) else anyone
            for callee in sorted(name for name in {*named, *open_to} if name not in distances):
                before[callee] = Step(caller, by_anyone=callee not in named)
                distances[callee] = distances[caller] + 1
                waiting.append(callee)
            anyone = anyone if is_foreign(caller) else {}  # they are reached now
        more = len(distances) > most + 1  # the start is one of them
        for name in list(distances)[most + 1 :]:
            del distances[name]
        return Reach(start, distances, before, more=more)


class Step(NamedTuple):
    """The caller before a service on a path, and whether it calls as anyone does."""

    caller: str
    by_anyone: bool


@dataclass(frozen=True, slots=True)
class Reach:
    """What ``start`` reaches: the distance of each service, the nearest first. ``more`` says that there may be others,
    further away."""

    start: str
    distances: Mapping[str, int]
    before: Mapping[str, Step] = field(repr=False)
    more: bool

    def __len__(self) -> int:
        """The number of services, without the start."""
        return len(self.distances) - 1

    def nearest(self, number: int) -> list[Reached]:
        """The nearest of them, each with one of its shortest paths."""
        names = islice(self.distances.items(), 1, number + 1)
        return [Reached(name, distance, self._path(name)) for name, distance in names]

    def _path(self, service: str) -> tuple[str, ...]:
        found = [service]
        while service in self.before:
            step = self.before[service]
            service = step.caller
            found += [ANYONE, service] if step.by_anyone else [service]
        return tuple(reversed(found))
