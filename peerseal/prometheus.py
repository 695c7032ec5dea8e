"""The service's metrics in a registry of ``prometheus_client`` (extra ``prometheus``), with those of the application::

    prometheus_client.REGISTRY.register(PeersealCollector(identity))

`Identity.metrics` returns the same metrics as text, without that library.
"""

from collections.abc import Iterable, Iterator
from typing import Protocol

from peerseal.runtime.extras import missing
from peerseal.runtime.metrics import Metric, merged

try:
    from prometheus_client import metrics_core
    from prometheus_client.registry import Collector
except ModuleNotFoundError as error:
    raise missing(error, "prometheus") from error

__all__ = ["PeersealCollector"]


class CollectsMetrics(Protocol):
    """An `Identity`, a `PeerAuth`, an `EventConsumer`."""

    def collect(self) -> Iterable[Metric]:
        """The metrics as of now."""


class PeersealCollector(Collector):
    """Reports the metrics of ``source``: those of one name together, as `peerseal.metrics` does."""

    def __init__(self, source: CollectsMetrics) -> None:
        self._source = source

    def describe(self) -> list[metrics_core.Metric]:
        """Nothing: the set of metrics is known only when they are collected."""
        return []

    def collect(self) -> Iterator[metrics_core.Metric]:
        """See Collector."""
        for metric in merged(self._source.collect()):
            family = metrics_core.Metric(metric.name.removesuffix("_total"), metric.help, metric.kind)
            for labels, number in metric.samples:
                family.add_sample(metric.name, dict(labels), number)
            yield family
