"""Spans and metrics by OpenTelemetry (extra ``otel``, which brings its API only)::

    trace.set_tracer_provider(…)       # the application chooses SDK and exporter, as OpenTelemetry's pages describe
    peerseal.otel.start()

The operations are ``serve`` (only where no other instrumentation has begun a span), ``call``, ``sign``, ``verify``,
``fetch``, ``register``, ``rotate``, ``publish``, ``send`` and ``consume``. Spans of HTTP and of messages have the names
of OpenTelemetry's semantic conventions, others such as ``peerseal.sign`` (docs/how-to/seeing.md). Each continues the
trace of the request or message that it belongs to; signed calls, events and calls to the registry carry ``traceparent``
(W3C Trace Context). No span has a token, a header, a path, a query or the text of an error: an error is its code.

The histogram ``peerseal.operation.duration`` (seconds) has the attributes ``peerseal.operation`` and, for errors,
``error.type``.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from peerseal.errors import PeersealError
from peerseal.protocol.trace_context import TRACEPARENT
from peerseal.runtime.extras import missing
from peerseal.runtime.tracing import NONE, Attributes, Kind, install
from peerseal.verify.context import current_trace

try:
    from opentelemetry import metrics, trace
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ModuleNotFoundError as error:
    raise missing(error, "otel") from error

__all__ = ["Instrumentor", "start", "stop"]

_NAME: Final = "peerseal"
_METHOD: Final = "http.request.method"
_ROUTE: Final = "http.route"
_STATUS: Final = "http.response.status_code"
_MESSAGING: Final = "messaging.operation.name"
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


class Instrumentor:
    """Lets ``opentelemetry-instrument`` call `start` in each process of a program, without a line in the program: the
    entry point ``peerseal`` in the group ``opentelemetry_instrumentor``."""

    def instrument(self, **_: object) -> None:
        """See opentelemetry.instrumentation.instrumentor.BaseInstrumentor."""
        start()


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
    def span(
        self, name: str, kind: Kind, attributes: Attributes = NONE, links: Sequence[str] = ()
    ) -> Iterator[Callable[[Attributes], object]]:
        """See Tracer."""
        if kind == "server" and _in_a_span():  # of another instrumentation, or of an outer adapter
            yield lambda _: None
            return
        began, labels = time.perf_counter(), {"peerseal.operation": name.removeprefix("peerseal.")}
        with self._tracer.start_as_current_span(
            _title(attributes) or name,
            _parent(),
            _KINDS[kind],
            {**labels, **attributes},
            _linked(links),
            record_exception=False,
            set_status_on_exception=False,
        ) as made:
            known = _Known(made, kind, attributes, labels)
            if kind == "server":
                self._continue_in_streams()
            try:
                yield known.add
            except Exception as error:
                known.failed(error.code if isinstance(error, PeersealError) else type(error).__name__)
                raise
            finally:
                self._durations.record(time.perf_counter() - began, labels)

    def _continue_in_streams(self) -> None:
        """Bodies are streamed after the request's span, and continue its trace."""
        request = current_trace()
        if request is not None:
            request.traceparent = self.traceparent()


class _Known:
    """What becomes known of a span that has begun, and of the ``labels`` of its duration."""

    def __init__(self, made: trace.Span, kind: Kind, attributes: Attributes, labels: dict[str, str]) -> None:
        self._span, self._kind, self._attributes, self._labels = made, kind, attributes, labels

    def add(self, attributes: Attributes) -> None:
        """Add attributes; the route of a request becomes a part of the name."""
        if self._span.is_recording():  # not any more where a stream has its head after the span
            self._span.set_attributes(attributes)
            if _ROUTE in attributes:
                self._span.update_name(_title({**self._attributes, **attributes}) or "")
        status = attributes.get(_STATUS)
        if isinstance(status, int) and status >= (500 if self._kind == "server" else 400):
            self.failed(str(status))

    def failed(self, code: str) -> None:
        """Mark the span as failed, with a code."""
        self._labels["error.type"] = code
        if self._span.is_recording():
            self._span.set_attribute("error.type", code)
            self._span.set_status(trace.StatusCode.ERROR)


def _title(attributes: Attributes) -> str | None:
    """The name that OpenTelemetry's semantic conventions give to spans of HTTP and of messages."""
    if _METHOD in attributes:
        method = "HTTP" if attributes[_METHOD] == "_OTHER" else attributes[_METHOD]
        return f"{method} {attributes.get(_ROUTE, '')}".strip()
    if _MESSAGING in attributes:
        return f"{attributes[_MESSAGING]} {attributes['messaging.destination.name']}"
    return None


def _linked(traceparents: Sequence[str]) -> list[trace.Link]:
    contexts = [trace.get_current_span(_extracted(given)).get_span_context() for given in traceparents]
    return [trace.Link(context) for context in contexts if context.is_valid]


def _in_a_span() -> bool:
    return trace.get_current_span().get_span_context().is_valid


def _parent() -> Context | None:
    """The current span; without one, the span that the request or message came from."""
    request = None if _in_a_span() else current_trace()
    given = None if request is None else request.traceparent
    return None if given is None else _extracted(given)


def _extracted(traceparent: str) -> Context:
    return _W3C.extract({TRACEPARENT: traceparent}, Context())
