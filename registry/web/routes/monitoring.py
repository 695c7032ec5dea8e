"""For load balancers, orchestrators and Prometheus: what this node can answer, and what all workers have counted."""

from collections.abc import Iterator
from contextlib import suppress

from flask import Blueprint, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from registry.domain.errors import BadRequest, StorageUnavailable
from registry.services.registry import Registry
from registry.storage.queries import ledger
from registry.web.metrics import WORKERS, answered
from registry.web.wire import parameter, private_json, registry

health_blueprint = Blueprint("health", __name__)
metrics_blueprint = Blueprint("metrics", __name__)
BLUEPRINTS = (health_blueprint, metrics_blueprint)


@health_blueprint.get("/healthz")
def healthz() -> Response:
    """This process answers. It does not ask the database: a restart would not repair that."""
    return private_json({"status": "ok"})


@health_blueprint.get("/readyz")
def readyz() -> Response:
    """Whether this node can answer calls that read; with ``?for=write`` whether it can answer all calls."""
    purpose = parameter("for")
    if purpose not in (None, "write"):
        raise BadRequest("invalid_parameter", "for is other than write")
    found = registry().readiness()
    ready = found.can_write if purpose == "write" else found.can_read
    members = {"ready": ready, "can_read": found.can_read, "can_write": found.can_write}
    return private_json({**members, **found.reading, **found.writing}, 200 if ready else 503)


@metrics_blueprint.get("/metrics")
def metrics() -> Response:
    """The counts of all workers. Not for the public: the proxy in front does not pass this path on."""
    answered.count()
    told = CollectorRegistry()
    told.register(WORKERS)
    told.register(_Ledger(registry()))
    return Response(generate_latest(told), content_type=CONTENT_TYPE_LATEST)


class _Ledger(Collector):
    """The size of the ledger, read at each scrape and left out while the database is down, and whether the ledger
    forked."""

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
