"""What a signed answer adds to a protected Flask route, in microseconds of one worker, with an ES256 and an RSA key.

Everything runs in this process (`benchmarks.one_process`), each contender in turn.
"""

from collections.abc import Iterator

from benchmarks.apps import protected_by
from benchmarks.figures import Figure, Goal
from benchmarks.one_process import served_by
from benchmarks.protected_route import with_token
from benchmarks.raw import raw_sign_p256
from benchmarks.timing import interleaved
from demo.stack import CLIENT, RESOURCE, Stack
from peerseal import Identity, MemoryReplayGuard, TrustLimits

ROUNDS = 25
BATCH = 100

_RAW = "cryptography's P-256 sign"
_MESSAGE = b"x" * 600  # bytes of a response token before its signature


def measure(stack: Stack, caller: Identity) -> Iterator[Figure]:
    """The figures. The callees of this process join the ``stack``'s registry."""
    quiet = TrustLimits(poll_interval=3600)
    callees = {
        alg: Identity(
            RESOURCE, registry=stack.registry_url, join_token=stack.join_token(RESOURCE), alg=alg, limits=quiet
        )
        for alg in ("ES256", "RS256")
    }
    apps = {
        (alg, signs): protected_by(callee.start(), MemoryReplayGuard(), [CLIENT], sign_responses=signs)[0]
        for alg, callee in callees.items()
        for signs in (False, True)
    }
    batches = ([with_token(caller) for _ in range(BATCH)] for _ in range(ROUNDS))
    contenders = {f"{alg} {signs}": served_by(app) for (alg, signs), app in apps.items()}
    timings = interleaved(contenders, batches)
    raw = interleaved({_RAW: raw_sign_p256(_MESSAGE)}, (range(BATCH) for _ in range(ROUNDS))).micros(_RAW)
    for alg, callee in callees.items():
        callee.stop()
        without = timings.micros(f"{alg} False")
        adds = timings.micros(f"{alg} True") - without
        against = f"{_RAW}: {raw:.0f} µs; without: {without:.0f} µs"
        goal = Goal("≤", 80, "µs") if alg == "ES256" else None
        yield Figure(f"a signed answer, {alg}, adds in one process", adds, "µs", against, adds / raw, goal)
