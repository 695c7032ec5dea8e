"""What a signed answer adds to a protected Flask route, in microseconds of one worker, with an ES256 and an RSA key.

A raw P-256 signature at the same place, after the route, is the limit: there it takes longer than in a loop, since the
work on a request empties the caches of its tables. Everything runs in this process (`benchmarks.one_process`), each
contender in turn.
"""

from collections.abc import Callable, Iterator

from flask import Response

from benchmarks.apps import protected_by
from benchmarks.figures import Figure, Goal
from benchmarks.one_process import served_by
from benchmarks.protected_route import with_token
from benchmarks.raw import raw_sign_p256_once
from benchmarks.timing import interleaved
from demo.stack import CLIENT, RESOURCE, Stack
from peerseal import Identity, MemoryReplayGuard, TrustLimits

ROUNDS = 25
BATCH = 100

_RAW = "a raw P-256 sign there"


def measure(stack: Stack, caller: Identity) -> Iterator[Figure]:
    """The figures. The callees of this process join the ``stack``'s registry."""
    quiet = TrustLimits(poll_interval=3600)
    callees = {
        alg: Identity(
            RESOURCE, registry=stack.registry_url, join_token=stack.join_token(RESOURCE), alg=alg, limits=quiet
        ).start()
        for alg in ("ES256", "RS256")
    }
    apps = {
        f"{alg} {signs}": protected_by(callee, MemoryReplayGuard(), [CLIENT], sign_responses=signs)[0]
        for alg, callee in callees.items()
        for signs in (False, True)
    }
    apps[_RAW] = protected_by(callees["ES256"], MemoryReplayGuard(), [CLIENT])[0]
    apps[_RAW].after_request(_signed_raw())
    batches = ([with_token(caller) for _ in range(BATCH)] for _ in range(ROUNDS))
    timings = interleaved({name: served_by(app) for name, app in apps.items()}, batches)
    raw = timings.micros(_RAW) - timings.micros("ES256 False")
    for alg, callee in callees.items():
        callee.stop()
        without = timings.micros(f"{alg} False")
        adds = timings.micros(f"{alg} True") - without
        against = f"{_RAW}: {raw:.0f} µs; without: {without:.0f} µs"
        goal = Goal("≤", 80, "µs") if alg == "ES256" else None
        yield Figure(f"a signed answer, {alg}, adds in one process", adds, "µs", against, adds / raw, goal)


def _signed_raw() -> Callable[[Response], Response]:
    """For ``after_request``: one raw signature and nothing else."""
    sign = raw_sign_p256_once()

    def after(response: Response) -> Response:
        sign()
        return response

    return after
