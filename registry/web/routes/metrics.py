"""What the registry has counted, for Prometheus."""

from collections.abc import Iterator
from contextlib import suppress

from flask import Blueprint, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from registry.domain.errors import StorageUnavailable
from registry.services.registry import Registry
from registry.storage.queries import ledger
from registry.web.counting import SHARED, answered
from registry.web.wire import registry

blueprint = Blueprint("metrics", __name__)


@blueprint.get("/metrics")
def metrics() -> Response:
    """All counts, of all workers. Not for the public: the proxy in front does not pass it on."""
    answered.count()
    told = CollectorRegistry()
    told.register(SHARED)
    told.register(_Ledger(registry()))
    return Response(generate_latest(told), content_type=CONTENT_TYPE_LATEST)


class _Ledger(Collector):
    """The ledger's size, which is looked up at each scrape and left out while the database is down, and whether the
    ledger forked."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """See Collector."""
        with suppress(StorageUnavailable), self._registry.store.look() as connection:
            size = ledger.head(connection)
            self._registry.watch.passes(connection)
            yield GaugeMetricFamily("registry_ledger_size", "Entries in the ledger.", size)
        forked = self._registry.fork_guard.fork is not None
        yield GaugeMetricFamily("registry_ledger_forked", "1: another ledger than the one that was seen.", forked)
