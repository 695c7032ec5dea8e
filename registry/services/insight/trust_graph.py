"""Keeps the graph of who may call whom, and follows the policies."""

import json
import threading
from collections.abc import Iterator
from sys import intern
from typing import Final, NamedTuple

from sqlalchemy import Connection

from peerseal.errors import InvalidName, MalformedToken
from peerseal.protocol.names import split_service_id
from peerseal.protocol.policies import ANYONE, CallPolicy
from registry.domain.trust_graph import Scopes, TrustGraph
from registry.services.use_case import Node, UseCase
from registry.storage.queries import ledger, policies, services

CALLS_KEPT: Final = 200_000
"""Calls of one graph, which bounds the memory of each process whose console is used."""
_SLICE: Final = 1_000


class GraphAt(NamedTuple):
    """The graph as of an entry."""

    graph: TrustGraph
    seq: int


class TrustGraphs(UseCase):
    """The newest graph. The first look of a process reads all policies, some at a time; later ones read those of
    services that an entry changed since."""

    def __init__(self, node: Node, most: int = CALLS_KEPT) -> None:
        super().__init__(node)
        self._most = most
        self._known: GraphAt | None = None
        self._reading = threading.Lock()
        node.authority.when_changed(self._forget)

    def current(self) -> GraphAt:
        """The graph. Raises StorageUnavailable."""
        with self._reading, self._store.look() as connection:
            seq, known = ledger.head(connection), self._known  # the head first: a later change is read next time
            if known is None or seq < known.seq:
                known = GraphAt(self._changed(TrustGraph(), _all(connection)), seq)
            elif seq > known.seq:
                changed = self._changed(known.graph, _since(connection, known.seq))
                if changed is not known.graph and not changed.complete:  # there may be room again
                    changed = self._changed(TrustGraph(), _all(connection))
                known = GraphAt(changed, seq)
            self._known = known
            return known

    def _forget(self) -> None:
        self._known = None  # another history may be in force

    def _changed(self, graph: TrustGraph, changes: Iterator[tuple[str, str | None]]) -> TrustGraph:
        """The graph with the policies of these services replaced, or removed. Most changes of services are those of
        keys, and leave it as it is."""
        draft = _Draft(graph, self._most, self._authority.in_force().domain)
        for service, body in changes:
            draft.put(service, body)
        return draft.graph() if draft.changed else graph


def _all(connection: Connection) -> Iterator[tuple[str, str | None]]:
    after = ""
    while page := policies.page(connection, after, _SLICE):
        yield from page
        after = page[-1][0]


def _since(connection: Connection, seq: int) -> Iterator[tuple[str, str | None]]:
    while page := services.changed_since(connection, seq, _SLICE):
        bodies = policies.of(connection, [service.name for service in page])
        yield from ((service.name, bodies.get(service.name)) for service in page)
        seq = page[-1].seq


class _Draft:
    """A graph that is being changed."""

    def __init__(self, before: TrustGraph, most: int, domain: str) -> None:
        self._policies = dict(before.policies)
        self._restricted = set(before.restricted)
        self._unreadable = set(before.unreadable)
        self._complete = before.complete
        self._room = most - before.size
        self._domain = domain
        self._known_scopes: dict[Scopes, Scopes] = {}
        self.changed = False

    def put(self, service: str, body: str | None) -> None:
        """Replaces the policy of a service by the one in ``body``; None removes it."""
        if body is None:
            if service in self._policies or service in self._unreadable:
                self._remove(service)
            return
        read = self._read(body)
        if read is None:
            self._remove(service)
            self._unreadable.add(intern(service))
        elif read != (self._policies.get(service), service in self._restricted):
            self._remove(service)
            self._add(intern(service), *read)

    def _read(self, body: str) -> tuple[dict[str, Scopes], bool] | None:
        """Callers with their scopes, and whether the policy is restricted; None for an altered row."""
        try:
            policy = CallPolicy.from_json(json.loads(body))
            return {self._name(who): self._scopes(scopes) for who, scopes in policy.allow.items()}, policy.restricted
        except (MalformedToken, InvalidName, ValueError, RecursionError):
            return None

    def _remove(self, service: str) -> None:
        self.changed = True
        self._room += len(self._policies.pop(service, {}))
        self._restricted.discard(service)
        self._unreadable.discard(service)

    def _add(self, service: str, callers: dict[str, Scopes], restricted: bool) -> None:
        if len(callers) > self._room:
            self._complete = False
            return
        self._room -= len(callers)
        self._policies[service] = callers
        if restricted:
            self._restricted.add(service)

    def _name(self, who: str) -> str:
        """The short name of a service of this domain; the id of a foreign one, which may have the same short name."""
        if who == ANYONE:
            return who
        domain, service = split_service_id(who)
        return intern(service if domain == self._domain else who)

    def _scopes(self, scopes: frozenset[str]) -> Scopes:
        """The same value for the same scopes, which many policies have."""
        ordered = tuple(sorted(scopes))
        return self._known_scopes.setdefault(ordered, ordered)

    def graph(self) -> TrustGraph:
        """The graph as it is now."""
        return TrustGraph(
            self._policies, frozenset(self._restricted), frozenset(self._unreadable), complete=self._complete
        )
