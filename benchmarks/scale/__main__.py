"""``python -m benchmarks.scale``: loads the keys, measures, and prints one table. A million take half an hour."""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.figures import Figure, Goal
from benchmarks.measured_registry import MeasuredRegistry
from benchmarks.newcomers import rsa_keys
from benchmarks.operators import Operator
from benchmarks.report import table
from benchmarks.scale import calls, watchers
from benchmarks.scale.ledger import Size
from benchmarks.scale.loading import DOMAIN, Place, copied, put_evidence_back
from tests.support.postgres import Postgres, running_postgres

SMALL = 100
"""Services of the small registry, with ten keys each, and the families of the large one."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured: the sizes of both registries, which have the same families, the peers that watch, and how many
    revocations they learn of."""

    large: Size
    small: Size
    peers: int
    revocations: int = 30

    @classmethod
    def of(cls, services: int, peers: int) -> "Plan":
        """With that many services in the large registry."""
        large = Size(services, families=5, descendants=1_000)
        return cls(large, replace(large, services=min(SMALL, services)), peers)


def main() -> int:
    """Measures, and prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--services", type=int, default=100_000, help="with ten keys each (default: 100,000)")
    parser.add_argument("--peers", type=int, default=5_000, help="that watch (default: 5,000)")
    arguments, found = parser.parse_args(), list[Figure]()
    try:
        with tempfile.TemporaryDirectory(prefix="peerseal-scale-") as folder, running_postgres() as postgres:
            for figure in measure(Path(folder), postgres, Plan.of(arguments.services, arguments.peers)):
                say(f"{figure.figure}: {figure.value:,.2f} {figure.unit}")
                found.append(figure)
    finally:  # what was measured before an error, too
        print(table(found))
    return 0


def measure(folder: Path, postgres: Postgres, plan: Plan) -> Iterator[Figure]:
    """All figures."""
    small, large = (Place.made(folder / name, postgres.new_database()) for name in ("small", "large"))
    yield from load(small, folder / "small-copy", plan.small)
    yield from load(large, folder / "large-copy", plan.large)
    yield from calls.started(large, small, folder)
    yield from watched(large, folder, plan)
    opened = (
        MeasuredRegistry.of(large.settings(), plan.large.keys),
        MeasuredRegistry.of(small.settings(), plan.small.keys),
    )
    yield from calls.compared(*opened, plan.small)


def load(place: Place, copy: Path, size: Size) -> Iterator[Figure]:
    """Makes the ledger, restores the database from its copy, and verifies it."""
    began, name = time.monotonic(), f"{size.keys:,} keys"
    for made in copied(place, copy, size):
        progress(f"made: {made:,} entries in {time.monotonic() - began:.0f} s")
    say(f"made: {made:,} entries in {time.monotonic() - began:.0f} s")
    restored = place.command("restore", "--from", str(copy))
    yield Figure(f"restore, {name}", restored.seconds, "s")
    yield Figure(f"restore, {name}, memory", restored.memory, "MiB")
    put_evidence_back(place)
    yield Figure(f"database on disk, {name}", place.megabytes(), "MiB")
    verified = place.command("verify")
    assert verified.printed.startswith("whole: "), verified.printed
    yield Figure(f"verify, {name}", verified.seconds, "s", goal=Goal("<", 600, "s"))
    yield Figure(f"verify, {name}, memory of the largest process", verified.memory, "MiB")


def watched(place: Place, folder: Path, plan: Plan) -> Iterator[Figure]:
    """The figures of peers that watch."""
    with calls.node(place, folder / "watched.log", workers=2) as server:
        server.wait_until_answers(f"{server.url}/readyz", timeout=120)
        operator = Operator(DOMAIN, server.url, place.home)
        newcomers = [operator.newcomer("revoked-service", key) for key in rsa_keys(plan.revocations)]
        kids = [operator.register(one) for one in newcomers]
        yield from watchers.measured((server.url, server.pid), operator, kids, plan.peers, folder / "nginx")


def progress(text: str) -> None:
    """Shows a line that the next one replaces, on a terminal only."""
    if sys.stderr.isatty():
        print(f"\r{text}", end="\x1b[K", flush=True, file=sys.stderr)


def say(text: str) -> None:
    """Shows a line as soon as it is known; the table on standard output comes last."""
    progress("")
    print(text, flush=True, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
