"""The set-up that the benchmarks share."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import cores
from demo.stack import CLIENT, Stack
from peerseal import Identity, TrustLimits

_QUIET = TrustLimits(poll_interval=3600)  # the background threads of this process stay out of what is timed


@dataclass(frozen=True, slots=True)
class World:
    """A folder, a registry on SQLite that is idle during other measurements, and a caller for each algorithm."""

    folder: Path
    stack: Stack
    caller: Identity
    caller_es256: Identity


@contextmanager
def world() -> Iterator[World]:
    """The running set-up; stopped and removed at the end."""
    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="peerseal-bench-")))
        with cores.on(cores.shared_out()[1]):
            stack = running.enter_context(Stack(folder / "shared"))
            stack.start_registry()
        callers = [_started(stack, CLIENT, "RS256"), _started(stack, "client-es256", "ES256")]
        for caller in callers:
            running.callback(caller.stop)
        yield World(folder, stack, *callers)


def _started(stack: Stack, service: str, alg: str) -> Identity:
    token = stack.join_token(service)
    return Identity(service, registry=stack.registry_url, join_token=token, alg=alg, limits=_QUIET).start()
