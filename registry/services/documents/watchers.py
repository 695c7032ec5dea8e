"""Which waiting calls a change concerns, without a look at all calls.

There is an index of the calls by the services that they watch. For calls that come after a change, there are the
services that the last entries changed.

Both are bounded, the index for each address too. A call for which there is no room in the index waits for any change. A
call from before the remembered entries is answered at once, and once many services are remembered, all calls are told
and a new memory begins.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final, Generic, Protocol, TypeVar

from peerseal.protocol.names import REGISTRY
from registry.storage.queries.services import ServiceRecord


class Waiting(Protocol):
    """A call from ``address`` that waits for a change after the entry ``since``. It can be hashed."""

    since: int
    address: str


C = TypeVar("C", bound=Waiting)

MOST_WATCHED: Final = 100_000
"""Services in the index, counted once for each call that watches them, some 30 MB: ten for each of the 10,000 calls
that a worker holds."""
_SHARE: Final = 2
"""One address or IPv6 /64 has one in so many places of the index: those of a NAT gateway through which a fleet calls.
The others stay free for other addresses, as half of the waiting calls do (`Limits.waiting_calls_of_address`)."""


class RecentChanges:
    """The services that the entries after ``begins``, up to ``ends``, changed."""

    def __init__(self, at: int) -> None:
        self.begins = self.ends = at
        self._seqs: dict[str, int] = {}

    def __len__(self) -> int:
        """The number of services."""
        return len(self._seqs)

    def add(self, changed: Iterable[ServiceRecord], ends: int) -> None:
        """Adds all that changed after ``ends``, up to the given entry or a later one."""
        self._seqs |= {service.name: service.seq for service in changed}
        self.ends = ends

    def spare(self, since: int, services: Iterable[str]) -> bool:
        """Whether none of the services changed after that entry, nor the registry's own documents. False where the
        entry is older than what is remembered."""
        return since >= self.begins and all(self._seqs.get(name, 0) <= since for name in (REGISTRY, *services))


class Watchers(Generic[C]):
    """The waiting calls that watch some services only, by service."""

    def __init__(self) -> None:
        self._services: dict[C, frozenset[str]] = {}
        self._calls: dict[str, set[C]] = {}
        self._watched = 0
        self._of_address: Counter[str] = Counter()

    def __iter__(self) -> Iterator[C]:
        """All of them."""
        return iter(self._services)

    def __len__(self) -> int:
        """Their number."""
        return len(self._services)

    def add(self, call: C, services: frozenset[str]) -> bool:
        """Adds a call. False where there is no room for it, or for more from its address."""
        of_address = self._of_address[call.address] + len(services)
        if of_address > MOST_WATCHED // _SHARE or self._watched + len(services) > MOST_WATCHED:
            return False
        self._services[call] = services
        self._watched += len(services)
        self._of_address[call.address] = of_address
        for name in services:
            self._calls.setdefault(name, set()).add(call)
        return True

    def discard(self, call: C) -> None:
        """Removes a call, if it is among these."""
        services = self._services.pop(call, None)
        if services is None:
            return
        self._watched -= len(services)
        self._of_address[call.address] -= len(services)
        if not self._of_address[call.address]:
            del self._of_address[call.address]
        for name in services:
            calls = self._calls[name]
            calls.discard(call)
            if not calls:
                del self._calls[name]

    def of(self, changed: Iterable[ServiceRecord]) -> set[C]:
        """The calls that these changes concern: of a service that they watch, or of the registry's own documents."""
        return {
            call
            for service in changed
            for call in (self._services if service.name == REGISTRY else self._calls.get(service.name, ()))
            if call.since < service.seq
        }
