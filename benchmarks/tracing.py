"""What a verification costs with spans and metrics of OpenTelemetry's SDK, which exports nothing here. Without them,
`traced` methods are the plain functions, so there is nothing to measure."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider

import peerseal
import peerseal.otel
from benchmarks.figures import Figure
from benchmarks.timing import Contender, interleaved
from benchmarks.verification import ALLOW, AUDIENCE, BODY, HEADERS, METHOD, SCOPE, TARGET, signed_batch, verification

ROUNDS = 15
BATCH = 200

_PLAIN, _SPANS = "a verification", "a verification with OpenTelemetry's spans"


def measure(caller: peerseal.Identity) -> Iterator[Figure]:
    """The figure."""
    contenders: dict[str, Contender[str]] = {
        _PLAIN: verification(caller.trust),
        _SPANS: partial(_with_spans, peerseal.Verifier(caller.trust, audience=AUDIENCE, allow=ALLOW)),
    }
    timings = interleaved(contenders, (signed_batch(caller, BATCH) for _ in range(ROUNDS)))
    against = f"{_PLAIN}: {timings.micros(_PLAIN):.1f} µs"
    yield Figure(_SPANS, timings.micros(_SPANS), "µs", against, timings.ratio(_SPANS, _PLAIN))


def _with_spans(verifier: peerseal.Verifier, tokens: Sequence[str]) -> Callable[[], None]:
    def run() -> None:
        peerseal.otel.start(tracer_provider=TracerProvider(), meter_provider=MeterProvider())
        try:
            for token in tokens:
                verifier.verify(token, method=METHOD, target=TARGET, body=BODY, headers=HEADERS, scope=SCOPE)
        finally:
            peerseal.otel.stop()

    return run
