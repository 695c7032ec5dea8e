"""The state of a trust store, as values: for readiness checks and metrics."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, Self

from peerseal.runtime.metrics import MOST, Metric, counted, metrics

if TYPE_CHECKING:
    from peerseal.trust.beliefs import KnownService
    from peerseal.trust.shelf import CachedSubject


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """What is held about one service: how many ``keys``, how many seconds ago they were confirmed (``age``), for how
    many more seconds they are believed (``good_for``), and how many renewals in a row failed."""

    keys: int
    age: float
    good_for: float
    failures: int

    @classmethod
    def of(cls, item: "CachedSubject[KnownService]", now: float) -> Self:
        """As of that time."""
        keys, confirmed_at = (len(item.known.keys), item.known.confirmed_at) if item.known else (0, 0)
        return cls(keys, now - confirmed_at, item.good_until - now, item.failures)


@dataclass(frozen=True, slots=True)
class TrustStatus:
    """One process's trust store. ``ready`` says that the registry's keys are known, so that callers can be verified;
    ``leads`` that it asks the registry what changed, for itself or for its whole host. ``hits`` counts the keys that
    memory had, and ``misses`` the others. ``fetches`` counts the documents fetched from the registry, by kind, and
    ``failed`` those among them that could not be fetched, or were refused."""

    ready: bool
    leads: bool
    hits: int
    misses: int
    fetches: Mapping[str, int]
    services: Mapping[str, ServiceStatus] = field(default_factory=dict)
    failed: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The status as a JSON object."""
        return asdict(self)

    def metrics(self) -> str:
        """The same in Prometheus' text format (version 0.0.4)."""
        return metrics(self.collect)

    def collect(self) -> list[Metric]:
        """The same as metrics; of the first hundred services, by name."""
        return list(self._collected())

    def _collected(self) -> Iterator[Metric]:
        yield _gauge("ready", "1 where the registry's keys are known.", int(self.ready))
        yield _gauge("leads", "1 where this process asks what changed.", int(self.leads))
        yield Metric("peerseal_trust_hits_total", "counter", "Keys that were in memory.", (({}, self.hits),))
        yield Metric("peerseal_trust_misses_total", "counter", "Keys that were not in memory.", (({}, self.misses),))
        fetches, failed = dict(sorted(self.fetches.items())), dict(sorted(self.failed.items()))
        yield counted("peerseal_trust_fetches_total", "Documents asked of the registry.", "document", fetches)
        failures = "Documents that could not be fetched, or were refused."
        yield counted("peerseal_trust_fetch_failures_total", failures, "document", failed)
        services = sorted(self.services.items())[:MOST]
        for name, (metric, help) in _OF_SERVICES.items():
            samples = tuple(({"service": service}, getattr(status, name)) for service, status in services)
            yield Metric(f"peerseal_trust_{metric}", "gauge", help, samples)


_OF_SERVICES: Final = {
    "keys": ("keys", "Keys that are held of a service."),
    "age": ("age_seconds", "Since the keys of a service were confirmed."),
    "good_for": ("good_for_seconds", "For how long the keys of a service are believed."),
    "failures": ("renewal_failures", "Renewals of a service's keys that failed in a row."),
}


def _gauge(name: str, help: str, value: float) -> Metric:
    return Metric(f"peerseal_trust_{name}", "gauge", help, (({}, value),))
