"""From a new service's registration to its first accepted request, at a callee that never saw it.

The callee's trust store knows other services of the same registry and follows its changes, so each registration also
causes a look at the changes. A sample begins when the registry has answered the new service, whose first token is then
signed and verified. That takes one fetch of its key set, with every check, and one fetch of the proof that its ledger
continues the one seen before.
"""

import time
from collections.abc import Iterator

from benchmarks.figures import Figure, Goal
from benchmarks.newcomers import rsa_keys
from benchmarks.operators import Operator
from benchmarks.requests_made import AUDIENCE, TARGET, signed_request
from benchmarks.spread import percentile
from demo.stack import CLIENT, Stack
from peerseal import TrustStore, Verifier
from peerseal.protocol.names import service_id

SAMPLES = 120
_WARMING_UP = 10
_PAUSE = 0.05  # seconds: a callee fetches for 20 strangers a second and no more


def measure(stack: Stack) -> Iterator[Figure]:
    """The figures, with the ``stack``'s registry."""
    operator, trust = Operator.of(stack), TrustStore(stack.registry_url)
    verifier = Verifier(trust, audience=AUDIENCE, allow={"*": ()})
    trust.watch([service_id(stack.domain, CLIENT)])
    newcomers = [operator.newcomer(f"new-{at}", key) for at, key in enumerate(rsa_keys(SAMPLES + _WARMING_UP))]
    millis: list[float] = []
    try:
        for newcomer in newcomers:
            kid = operator.register(newcomer)
            began = time.perf_counter()
            verifier.verify(signed_request(kid, newcomer.key, stack.domain), method="GET", target=TARGET)
            millis.append(1e3 * (time.perf_counter() - began))
            time.sleep(_PAUSE)
    finally:
        trust.stop()
    measured, name = millis[_WARMING_UP:], "new key to first accepted request"
    yield Figure(f"{name}, p50", percentile(measured, 50), "ms", "SPIRE: 5 s")
    yield Figure(f"{name}, p99", percentile(measured, 99), "ms", "SPIRE: 5 s", goal=Goal("<", 20, "ms"))
