"""What protection adds to one request on a Flask route, in microseconds of one worker, by Peerseal and by others.

Everything runs in this process (`benchmarks.one_process`), each contender in turn, so that a few microseconds show.
"""

from collections.abc import Iterator
from pathlib import Path

from benchmarks.apps import open_route, protected_by, route_with_raw_verify
from benchmarks.figures import Figure, Goal
from benchmarks.one_process import served_by
from benchmarks.peer_routes import ROUTES
from benchmarks.protected_route import keys_and_audience, with_token
from benchmarks.timing import interleaved
from demo.stack import CLIENT, RESOURCE, Stack
from peerseal import FileReplayGuard, Identity, MemoryReplayGuard, TrustLimits

ROUNDS = 25
BATCH = 100

_OPEN = "the open route"
_RAW = "a raw RSA-2048 verify"
_SHARED = "Peerseal, host-shared guard"
_MEMORY = "Peerseal, guard in memory"


def measure(stack: Stack, caller: Identity, folder: Path) -> Iterator[Figure]:
    """The figures. ``caller`` signs with RS256; the callee of this process joins the ``stack``'s registry."""
    token, quiet = stack.join_token(RESOURCE), TrustLimits(poll_interval=3600)
    callee = Identity(RESOURCE, registry=stack.registry_url, join_token=token, limits=quiet).start()
    keys = keys_and_audience(stack, caller)
    folder.mkdir(mode=0o700)
    apps = {
        _OPEN: open_route(),
        _RAW: route_with_raw_verify(),
        _SHARED: protected_by(callee, FileReplayGuard(folder / "replay"), [CLIENT])[0],
        _MEMORY: protected_by(callee, MemoryReplayGuard(), [CLIENT])[0],
        **{name: make(*keys) for name, make in ROUTES.items()},
    }
    batches = ([with_token(caller) for _ in range(BATCH)] for _ in range(ROUNDS))
    timings = interleaved({name: served_by(app) for name, app in apps.items()}, batches)
    callee.stop()
    adds = {name: timings.micros(name) - timings.micros(_OPEN) for name in apps}
    against = f"{_RAW}: {adds[_RAW]:.0f} µs; {_OPEN}: {timings.micros(_OPEN):.0f} µs"
    for name in [name for name in adds if name not in (_OPEN, _RAW)]:
        goal = Goal("≤", 3) if name == _SHARED else None
        yield Figure(f"{name}, adds in one process", adds[name], "µs", against, adds[name] / adds[_RAW], goal)
