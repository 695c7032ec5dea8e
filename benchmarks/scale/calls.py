"""The same calls at a registry of a million keys and at a small one, in one process and in turns."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

from benchmarks.cores import memory_of_workers
from benchmarks.figures import Figure, Goal
from benchmarks.measured_registry import MeasuredRegistry
from benchmarks.scale.ledger import Size
from benchmarks.scale.loading import Place
from demo.processes import Server, free_port, gunicorn

CALLS = 200
GOAL = Goal("<", 1.5)
_UNTIMED = 20
_CALLS: dict[str, Callable[[MeasuredRegistry, int], object]] = {
    "a registration": MeasuredRegistry.register,
    "a rotation": MeasuredRegistry.rotate,
    "a signed key set from memory": MeasuredRegistry.warm_key_set,
    "a signed key set made again": MeasuredRegistry.key_set,
    "a key statement made again": MeasuredRegistry.statement,
    "recent changes": MeasuredRegistry.warm_changes,
    "changes since some entry, made again": MeasuredRegistry.changes,
}


def compared(large: MeasuredRegistry, small: MeasuredRegistry, shared: Size) -> Iterator[Figure]:
    """The median of each call at both, for what both have."""
    for name, call in _CALLS.items():
        yield _compared(name, call, (large, small), CALLS, shared.services)
    name = f"a revocation with {shared.descendants:,} descendants"
    yield _compared(name, MeasuredRegistry.revoke, (large, small), shared.families, shared.families, untimed=0)


def _compared(
    name: str,
    call: Callable[[MeasuredRegistry, int], object],
    both: tuple[MeasuredRegistry, MeasuredRegistry],
    calls: int,
    services: int,
    untimed: int = _UNTIMED,
) -> Figure:
    times: dict[int, list[float]] = {one.size: [] for one in both}
    for number in range(calls + untimed):
        for one in both if number % 2 else both[::-1]:
            began = time.perf_counter()
            call(one, number % services)
            times[one.size].append(time.perf_counter() - began)
    large, small = (1e3 * median(times[one.size][untimed:]) for one in both)
    against = f"with {both[1].size:,} keys: {small:.2f} ms"
    return Figure(f"{name}, {both[0].size:,} keys", large, "ms", against, large / small, GOAL)


def started(large: Place, small: Place, folder: Path) -> Iterator[Figure]:
    """How long a node takes to start, and the memory of its one worker."""
    found = {name: _started(place, folder / f"{name}.log") for name, place in (("large", large), ("small", small))}
    for at, (what, unit) in enumerate((("the start of a node", "s"), ("memory of a worker", "MiB"))):
        value, other = found["large"][at], found["small"][at]
        yield Figure(f"{what}, large", value, unit, f"small: {other:.1f} {unit}", value / other, GOAL)


def _started(place: Place, log: Path) -> tuple[float, float]:
    began = time.monotonic()
    with node(place, log, workers=1) as server:
        server.wait_until_answers(f"{server.url}/readyz")
        return time.monotonic() - began, memory_of_workers(server.pid) / 2**20


def node(place: Place, log: Path, workers: int) -> Server:
    """A node of that registry, which is about to start."""
    return gunicorn(
        "node",
        "registry.wsgi:app",
        port=free_port(),
        log=log,
        settings=place.environ,
        config="python:registry.gunicorn_conf",
        workers=workers,
    )
