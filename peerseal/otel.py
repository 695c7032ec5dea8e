"""Spans and metrics by OpenTelemetry (extra ``otel``, which brings its API only)::

    trace.set_tracer_provider(…)       # the application chooses SDK and exporter, as OpenTelemetry's pages describe
    peerseal.otel.start()

Spans: ``peerseal.serve`` (only where no other instrumentation has begun a span), ``call``, ``sign``, ``verify``,
``fetch``, ``register``, ``rotate``, ``publish`` and ``consume``. Each continues the trace of the request or message
that it belongs to; signed calls, events and calls to the registry carry ``traceparent`` (W3C Trace Context). No span
has a token, a header, a query or the text of an error: an error is its code.

The histogram ``peerseal.operation.duration`` (seconds) has the attributes ``peerseal.operation`` and, for errors,
``error.type``.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from peerseal.errors import PeersealError
from peerseal.protocol.trace_context import TRACEPARENT
from peerseal.runtime.extras import missing
from peerseal.runtime.tracing import Attributes, Kind, install
from peerseal.verify.context import current_trace

try:
    from opentelemetry import metrics, trace
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ModuleNotFoundError as error:
    raise missing(error, "otel") from error

__all__ = ["start", "stop"]

_NAME: Final = "peerseal"
_KINDS: Final = {kind.name.lower(): kind for kind in trace.SpanKind}
_W3C: Final = TraceContextTextMapPropagator()


def start(
    *, tracer_provider: trace.TracerProvider | None = None, meter_provider: metrics.MeterProvider | None = None
) -> None:
    """Make spans and metrics in this process and its forked children from now on, with these providers, or the global
    ones."""
    tracer = trace.get_tracer(_NAME, tracer_provider=tracer_provider)
    meter = metrics.get_meter(_NAME, meter_provider=meter_provider)
    install(_Tracer(tracer, meter))


def stop() -> None:
    """Make no further spans and metrics."""
    install(None)


class _Tracer:
    """See `peerseal.runtime.tracing.Tracer`."""

    def __init__(self, tracer: trace.Tracer, meter: metrics.Meter) -> None:
        self._tracer = tracer
        self._durations = meter.create_histogram(
            "peerseal.operation.duration", unit="s", description="Duration of signing, verifying and other work."
        )

    def traceparent(self) -> str | None:
        """See Tracer."""
        carrier: dict[str, str] = {}
        _W3C.inject(carrier)
        return carrier.get(TRACEPARENT)

    @contextmanager
    def span(self, name: str, kind: Kind) -> Iterator[Callable[[Attributes], object]]:
        """See Tracer."""
        if kind == "server" and _in_a_span():  # of another instrumentation, or of an outer adapter
            yield lambda _: None
            return
        began, labels = time.perf_counter(), {"peerseal.operation": name.removeprefix("peerseal.")}
        with self._tracer.start_as_current_span(
            name, _parent(), _KINDS[kind], record_exception=False, set_status_on_exception=False
        ) as made:
            if kind == "server":
                self._continue_in_streams()
            try:
                yield made.set_attributes
            except Exception as error:
                labels["error.type"] = error.code if isinstance(error, PeersealError) else type(error).__name__
                made.set_attribute("error.type", labels["error.type"])
                made.set_status(trace.StatusCode.ERROR)
                raise
            finally:
                self._durations.record(time.perf_counter() - began, labels)

    def _continue_in_streams(self) -> None:
        """Bodies are streamed after the request's span, and continue its trace."""
        request = current_trace()
        if request is not None:
            request.traceparent = self.traceparent()


def _in_a_span() -> bool:
    return trace.get_current_span().get_span_context().is_valid


def _parent() -> Context | None:
    """The current span; without one, the span that the request or message came from."""
    request = None if _in_a_span() else current_trace()
    given = None if request is None else request.traceparent
    return None if given is None else _W3C.extract({TRACEPARENT: given})
