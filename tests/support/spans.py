"""The spans and metrics that OpenTelemetry's SDK gets in this process."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import peerseal.otel

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GIVEN = f"00-{TRACE}-{SPAN}-01"
"""A ``traceparent`` that is sampled."""


class Seen:
    """What OpenTelemetry's SDK got."""

    def __init__(self) -> None:
        self._exporter, self._reader = InMemorySpanExporter(), InMemoryMetricReader()
        tracers = TracerProvider()
        tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        peerseal.otel.start(tracer_provider=tracers, meter_provider=MeterProvider([self._reader]))

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        """The spans that have ended, in this order."""
        return self._exporter.get_finished_spans()

    @property
    def names(self) -> list[str]:
        """Their names."""
        return [span.name for span in self.spans]

    def named(self, name: str) -> ReadableSpan:
        """The one span of that name."""
        (found,) = [span for span in self.spans if span.name == name]
        return found

    def forget(self) -> None:
        """Begin again."""
        self._exporter.clear()

    def durations(self) -> list[Mapping[str, Any]]:
        """The attributes of all durations."""
        data: Any = self._reader.get_metrics_data()
        (metric,) = data.resource_metrics[0].scope_metrics[0].metrics
        assert (metric.name, metric.unit) == ("peerseal.operation.duration", "s")
        return [dict(point.attributes) for point in metric.data.data_points]


@contextmanager
def seeing() -> Iterator[Seen]:
    """Spans are made within the block."""
    try:
        yield Seen()
    finally:
        peerseal.otel.stop()


def parent_of(span: ReadableSpan) -> str | None:
    """The id of the span around it, or of the caller's."""
    return f"{span.parent.span_id:016x}" if span.parent is not None else None


def id_of(span: ReadableSpan) -> str:
    """Its id."""
    return f"{span.context.span_id:016x}"
