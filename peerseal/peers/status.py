"""How a trust store does: for readiness checks and metrics. Values only."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from peerseal.peers.keysets import Slot


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """What is held of one service: how many ``keys``, how many seconds ago they were confirmed (``age``), for how many
    more they are believed (``good_for``), and how many renewals in a row have failed."""

    keys: int
    age: float
    good_for: float
    failures: int

    @classmethod
    def of(cls, slot: "Slot", now: float) -> Self:
        """As of that time."""
        keys, confirmed_at = (len(slot.known.keys), slot.known.confirmed_at) if slot.known else (0, 0)
        return cls(keys, now - confirmed_at, slot.good_until - now, slot.failures)


@dataclass(frozen=True, slots=True)
class TrustStatus:
    """One process's trust store. ``ready`` says that the registry's keys are known, so that callers can be verified;
    ``leads`` that it asks the registry what changed, for itself or for its whole host. ``hits`` counts the keys that
    memory had, ``misses`` those that it had not, ``fetches`` the documents asked of the registry, by kind."""

    ready: bool
    leads: bool
    hits: int
    misses: int
    fetches: Mapping[str, int]
    services: Mapping[str, ServiceStatus] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        return asdict(self)

    def metrics(self) -> str:
        """The same in Prometheus' text format (version 0.0.4)."""
        return "".join(f"peerseal_trust_{line}\n" for line in self._samples())

    def _samples(self) -> Iterator[str]:
        yield f"ready {int(self.ready)}"
        yield f"leads {int(self.leads)}"
        yield f"hits_total {self.hits}"
        yield f"misses_total {self.misses}"
        for kind, number in sorted(self.fetches.items()):
            yield f'fetches_total{{document="{kind}"}} {number}'
        for service, status in sorted(self.services.items()):
            for name, value in asdict(status).items():
                yield f'{name}{{service="{service}"}} {value}'
