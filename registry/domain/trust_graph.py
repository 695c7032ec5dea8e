"""Who may call whom, by the policies of all services: a graph from callers to callees."""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from peerseal.protocol.policies import ANYONE

Scopes = tuple[str, ...]
Callers = Mapping[str, Scopes]
"""The callers of one service, by short name or ``"*"``, each with its scopes in order."""


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
    size: int = field(init=False)
    services: int = field(init=False)

    def __post_init__(self) -> None:
        """Derives ``callees``, by caller; ``size``, the number of calls; and ``services``, the number of services that
        a policy is of, or names."""
        found: dict[str, dict[str, Scopes]] = {}
        for callee, callers in self.policies.items():
            for caller, scopes in callers.items():
                found.setdefault(caller, {})[callee] = scopes
        object.__setattr__(self, "callees", found)
        object.__setattr__(self, "size", sum(map(len, self.policies.values())))
        object.__setattr__(self, "services", len(self.policies.keys() | found.keys() - {ANYONE}))

    def knows(self, service: str) -> bool:
        """Whether a policy is of the service, or names it."""
        return service in self.policies or service in self.callees

    def calls(self) -> Iterator[Call]:
        """All calls, by callee and caller."""
        for callee in sorted(self.policies):
            yield from self.calls_of(callee)

    def calls_of(self, callee: str) -> Iterator[Call]:
        """The calls of one callee, by caller."""
        callers = self.policies.get(callee, {})
        return (Call(caller, callee, callers[caller]) for caller in sorted(callers))

    def calls_by(self, caller: str) -> Iterator[Call]:
        """The calls of one caller, by callee: those that name it, and those of anyone at services that do not."""
        named, anyone = self.callees.get(caller, {}), self.callees.get(ANYONE, {})
        for callee in sorted({*named, *anyone} - {caller}):
            yield Call(caller, callee, named[callee]) if callee in named else Call(ANYONE, callee, anyone[callee])

    def reached_from(self, start: str) -> list[Reached]:
        """All services that ``start`` reaches, directly or through others, the nearest first, each by one of its
        shortest paths."""
        before: dict[str, tuple[str, bool]] = {}
        distances, waiting = {start: 0}, deque((start,))
        anyone_used = False
        while waiting:
            caller = waiting.popleft()
            named = self.callees.get(caller, {})
            anyone = {} if anyone_used else self.callees.get(ANYONE, {})
            anyone_used = True
            for callee in sorted({*named, *anyone} - distances.keys()):
                before[callee] = caller, callee not in named
                distances[callee] = distances[caller] + 1
                waiting.append(callee)
        return [Reached(name, distance, _path(before, name)) for name, distance in distances.items() if name != start]


def _path(before: Mapping[str, tuple[str, bool]], service: str) -> tuple[str, ...]:
    found = [service]
    while service in before:
        service, by_anyone = before[service]
        found += [ANYONE, service] if by_anyone else [service]
    return tuple(reversed(found))
