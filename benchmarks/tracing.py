"""What a verification costs with spans and metrics of OpenTelemetry's SDK, which exports nothing here. Without them,
`traced` methods are the plain functions; what is left looks whether spans are made."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider

import peerseal
import peerseal.otel
from benchmarks.figures import Figure
from benchmarks.timing import Contender, interleaved
from benchmarks.verification import ALLOW, AUDIENCE, BODY, HEADERS, METHOD, SCOPE, TARGET, signed_batch, verification
from peerseal.runtime.tracing import of_call, of_messages, span
from peerseal.verify.context import request_span

ROUNDS = 15
BATCH = 200

_PLAIN, _SPANS = "a verification", "a verification with OpenTelemetry's spans"
_OFF = "without spans: all that one request, one event and one fetch look for"


def measure(caller: peerseal.Identity) -> Iterator[Figure]:
    """The figures."""
    contenders: dict[str, Contender[str]] = {
        _PLAIN: verification(caller.trust),
        _OFF: _looking,
        _SPANS: partial(_with_spans, peerseal.Verifier(caller.trust, audience=AUDIENCE, allow=ALLOW)),
    }
    timings = interleaved(contenders, (signed_batch(caller, BATCH) for _ in range(ROUNDS)))
    against = f"{_PLAIN}: {timings.micros(_PLAIN):.1f} µs"
    for name in (_OFF, _SPANS):
        yield Figure(name, timings.micros(name), "µs", against, timings.ratio(name, _PLAIN))


def _looking(tokens: Sequence[str]) -> Callable[[], None]:
    def run() -> None:
        for _ in tokens:
            request_span(METHOD)
            with span("peerseal.consume", "consumer", lambda: of_messages("process", "OrderCreated", "kafka")):
                pass
            with span("peerseal.fetch", "client", lambda: of_call(METHOD, "http://registry:8080")):
                pass

    return run


def _with_spans(verifier: peerseal.Verifier, tokens: Sequence[str]) -> Callable[[], None]:
    def run() -> None:
        peerseal.otel.start(tracer_provider=TracerProvider(), meter_provider=MeterProvider())
        try:
            for token in tokens:
                verifier.verify(token, method=METHOD, target=TARGET, body=BODY, headers=HEADERS, scope=SCOPE)
        finally:
            peerseal.otel.stop()

    return run
