"""Every benchmark, one after the other: ``python -m benchmarks``; or some of them, by name.

Prints one table; a whole run also writes results.json and results.svg beside this module. It exits 0 whatever was
measured: a slow machine is no error.
"""

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks import cold_start, cores, key_sets, memory, protected_route, report, signing, verification
from benchmarks.figures import Figure
from demo.stack import CLIENT, Stack
from peerseal import Identity, TrustLimits
from tests.support.postgres import running_postgres

_ES256_CALLER = "client-es256"
_QUIET = TrustLimits(poll_interval=3600)  # the background threads of this process stay out of what is timed


class World:
    """What the benchmarks share: a folder, a registry on SQLite that does nothing while they run, two callers."""

    def __init__(self, folder: Path, stack: Stack) -> None:
        self.folder = folder
        self.stack = stack
        self.caller = self._identity(CLIENT, "RS256")
        self.caller_es256 = self._identity(_ES256_CALLER, "ES256")

    def _identity(self, service: str, alg: str) -> Identity:
        token = self.stack.join_token(service)
        return Identity(service, registry=self.stack.registry_url, join_token=token, alg=alg, limits=_QUIET).start()

    def stop(self) -> None:
        """End the callers' background work."""
        self.caller.stop()
        self.caller_es256.stop()


def on_postgresql(world: World) -> Iterator[Figure]:
    """The signed JWK Set from a registry on PostgreSQL."""
    with running_postgres() as server:
        yield from key_sets.measure(world.folder / "postgresql", "PostgreSQL", server.new_database())


GROUPS: dict[str, Callable[[World], Iterator[Figure]]] = {
    "verification": lambda world: verification.measure(world.caller, world.caller.trust, world.folder),
    "signing": lambda world: signing.measure(world.caller, world.caller_es256),
    "protected-route": lambda world: protected_route.measure(world.stack, world.caller),
    "key-sets": lambda world: key_sets.measure(world.folder / "sqlite", "SQLite"),
    "key-sets-postgresql": on_postgresql,
    "cold-start": lambda world: cold_start.measure(world.stack),
    "memory": lambda _: memory.measure(),
}


def main() -> None:
    """Run the groups that the command line names, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(GROUPS)}; all by default")
    names = parser.parse_args().groups or list(GROUPS)
    unknown = set(names) - GROUPS.keys()
    if unknown:
        parser.error(f"no such group: {', '.join(sorted(unknown))}")
    logging.disable(logging.WARNING)
    figures: list[Figure] = []
    with _world() as world:
        for name in names:
            started = time.monotonic()
            figures += GROUPS[name](world)
            print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    if len(names) == len(GROUPS):
        report.write(figures)
    print(report.table(figures))


@contextmanager
def _world() -> Iterator[World]:
    with ExitStack() as open_things:
        folder = Path(open_things.enter_context(tempfile.TemporaryDirectory(prefix="peerseal-bench-")))
        with cores.on(cores.shared_out()[1]):
            stack = open_things.enter_context(Stack(folder / "shared"))
            stack.start_registry()
        world = World(folder, stack)
        open_things.callback(world.stop)
        yield world


if __name__ == "__main__":
    main()
