"""Every benchmark, one after the other: ``python -m benchmarks``; or some of them, by name.

Prints one table; a whole run also writes results.json and results.svg next to this module. It exits 0 whatever was
measured: a slow machine is no error.
"""

import argparse
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack

from benchmarks import (
    agent,
    cold_start,
    console,
    cores,
    events,
    flood,
    growth,
    kafka,
    key_sets,
    large_sets,
    ledger_checks,
    many_peers,
    memory,
    new_key,
    protected_route,
    registrations,
    report,
    revocation,
    route_cost,
    signed_answers,
    signing,
    tracing,
    verification,
)
from benchmarks.figures import Figure
from benchmarks.world import World, world
from tests.support.postgres import running_postgres


def on_postgresql(shared: World) -> Iterator[Figure]:
    """The signed JWK Set from a registry on PostgreSQL, which keeps off the registry's core: elsewhere it has a machine
    of its own."""
    with ExitStack() as running:
        with cores.on(cores.shared_out()[1]):
            server = running.enter_context(running_postgres())
        yield from key_sets.measure(shared.folder / "postgresql", "PostgreSQL", server.new_database())


def registrations_on_postgresql(shared: World) -> Iterator[Figure]:
    """Registrations on PostgreSQL, on whose cores everything runs."""
    with running_postgres() as server:
        yield from registrations.measure(shared.folder / "reg-pg", "PostgreSQL", 650, server.new_database())


def revocation_on_postgresql(shared: World) -> Iterator[Figure]:
    """Revocations, seen by peers that watch."""
    with running_postgres() as server:
        yield from revocation.measure(shared.folder / "revocation", server.new_database())


def growth_on_postgresql(shared: World) -> Iterator[Figure]:
    """What more keys cost."""
    with running_postgres() as server:
        yield from growth.measure(shared.folder / "growth", server)


def large_sets_on_postgresql(shared: World) -> Iterator[Figure]:
    """A service of 10,000 hosts on PostgreSQL."""
    with running_postgres() as server:
        yield from large_sets.measure(shared.folder / "large-pg", "PostgreSQL", server.new_database())


def console_on_postgresql(shared: World) -> Iterator[Figure]:
    """The pages that operators look at."""
    with running_postgres() as server:
        yield from console.measure(shared.folder / "console", server.new_database())


GROUPS: dict[str, Callable[[World], Iterator[Figure]]] = {
    "verification": lambda shared: verification.measure(shared.caller, shared.folder),
    "events": lambda shared: events.measure(shared.caller),
    "kafka": lambda shared: kafka.measure(shared.caller, shared.folder / "kafka"),
    "signing": lambda shared: signing.measure(shared.caller, shared.caller_es256),
    "tracing": lambda shared: tracing.measure(shared.caller),
    "protected-route": lambda shared: protected_route.measure(shared.stack, shared.caller),
    "route-cost": lambda shared: route_cost.measure(shared.stack, shared.caller, shared.folder / "route-cost"),
    "signed-answers": lambda shared: signed_answers.measure(shared.stack, shared.caller),
    "asgi-route": lambda shared: protected_route.measure_asgi(shared.stack, shared.caller),
    "agent": lambda shared: agent.measure(shared.stack, shared.folder / "agent"),
    "key-sets": lambda shared: key_sets.measure(shared.folder / "sqlite", "SQLite"),
    "key-sets-postgresql": on_postgresql,
    "registrations": lambda shared: registrations.measure(shared.folder / "reg-sqlite", "SQLite", 600),
    "registrations-postgresql": registrations_on_postgresql,
    "revocation": revocation_on_postgresql,
    "new-key": lambda shared: new_key.measure(shared.stack),
    "flood": lambda shared: flood.measure(shared.stack),
    "growth": growth_on_postgresql,
    "console": console_on_postgresql,
    "large-sets": lambda shared: large_sets.measure(shared.folder / "large", "SQLite"),
    "large-sets-postgresql": large_sets_on_postgresql,
    "cold-start": lambda shared: cold_start.measure(shared.stack),
    "many-peers": lambda _: many_peers.measure(),
    "ledger-checks": lambda _: ledger_checks.measure(),
    "memory": lambda _: memory.measure(),
}


def main() -> None:
    """Run the groups that the command line names, or all."""
    names = _names()
    logging.disable(logging.WARNING)
    figures: list[Figure] = []
    try:
        with world() as shared:
            for name in names:
                started = time.monotonic()
                figures += GROUPS[name](shared)
                print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
        if len(names) == len(GROUPS):
            report.write(figures)
    finally:  # what was measured before an error, too
        print(report.table(figures))


def _names() -> list[str]:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Every benchmark, or some of them.")
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"of {', '.join(GROUPS)}; all by default")
    names: list[str] = parser.parse_args().groups or list(GROUPS)
    unknown = set(names) - GROUPS.keys()
    if unknown:
        parser.error(f"no such group: {', '.join(sorted(unknown))}")
    return names


if __name__ == "__main__":
    main()
