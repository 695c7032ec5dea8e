"""What it costs a registry to tell waiting calls of changes: ``python -m benchmarks.waiting_calls``.

2,000 calls wait at one worker, as those of 2,000 hosts that watch ten of 1,000 services each, and one service changes
each second. In one half of the run the calls name the services that they watch, in the other they name none. Both
halves are on the same registry, with one core for the registry and another for the calls.
"""

import asyncio
import base64
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final
from urllib.parse import urlsplit

from benchmarks import cores
from benchmarks.figures import Figure
from benchmarks.load import get
from benchmarks.operators import Operator
from benchmarks.spread import percentile
from demo.processes import Server
from demo.stack import Stack
from tests.support.postgres import running_postgres

CALLS: Final = 2_000
SERVICES: Final = 1_000
WATCHED: Final = 10
WAIT: Final = 15
"""Seconds for which a call asks to wait, as a trust store does."""
CHANGES: Final = 20
"""Changes of each half, one a second: longer than a wait, so that waits end as well. Where all calls are told, the next
change comes once they are."""
_AT_ONCE: Final = 50


@dataclass(frozen=True, slots=True)
class Told:
    """The result of one half. ``millis`` has for each call that a change concerned the milliseconds from the operator's
    call to the answer; ``answers`` counts all answers, and ``lists`` the different ones."""

    millis: Sequence[float]
    cpu: float
    answers: int
    lists: int


@dataclass(slots=True)
class _Fleet:
    """The calls, and what they are told."""

    url: str
    changed: dict[str, float] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)
    lists: set[tuple[int, int]] = field(default_factory=set)
    answers: int = 0
    started: int = 0

    async def wait(self, watched: Collection[str], named: bool, start: asyncio.Semaphore) -> None:
        """One host: it asks again and again, about the services that it watches where these are ``named``."""
        parts = urlsplit(self.url)
        async with start:
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            since = (await _answer(reader, writer, get("/v1/changes?since=0")))["seq"]
        self.started += 1
        services = f"&services={','.join(watched)}" if named else ""
        while True:
            told = await _answer(reader, writer, get(f"/v1/changes?since={since}&wait={WAIT}{services}"))
            now = time.monotonic()
            self.answers += 1
            self.lists.add((since, told["seq"]))
            names = {name.partition("/")[2] for name in told["services"]}
            self.seconds += [now - self.changed[name] for name in names & set(watched) if name in self.changed]
            since = told["seq"]

    def reset(self) -> None:
        """Count from now on."""
        self.seconds, self.lists, self.answers = [], set(), 0


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> dict[str, Any]:
    """The claims of a list of changes. The signature is not checked: hosts do that on processors of their own."""
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    length = int(head.lower().partition(b"content-length:")[2].partition(b"\r")[0])
    payload = (await reader.readexactly(length)).split(b".")[1]
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + b"=="))
    return claims


async def _told(registry: Server, change: Callable[[str], object], names: Sequence[str], named: bool) -> Told:
    """``change`` changes each of ``names``, one a second."""
    fleet, start = _Fleet(registry.url), asyncio.Semaphore(_AT_ONCE)
    chosen = random.Random(7)  # noqa: S311 - which services a host watches
    each = [chosen.sample([f"s{number}" for number in range(SERVICES)], WATCHED) for _ in range(CALLS)]
    hosts = [asyncio.create_task(fleet.wait(watched, named, start)) for watched in each]
    while fleet.started < CALLS:
        await asyncio.sleep(0.1)
    await asyncio.sleep(2)
    fleet.reset()
    before = cores.processor_seconds(registry.pid)
    for number, name in enumerate(names):
        began = fleet.changed[name] = time.monotonic()
        await asyncio.to_thread(change, name)
        await asyncio.sleep(max(0.0, 1 - (time.monotonic() - began)))
        while not named and fleet.answers < (number + 1) * CALLS:
            await asyncio.sleep(0.02)
    cpu = cores.processor_seconds(registry.pid) - before
    for host in hosts:
        host.cancel()
    await asyncio.gather(*hosts, return_exceptions=True)
    return Told([1e3 * at for at in fleet.seconds], 1e3 * cpu / len(names), fleet.answers, len(fleet.lists))


def told(registry: Server, operator: Operator, *, named: bool) -> Told:
    """One half of the run, with the services named or without; each half once at most."""
    names = [f"s{number}" for number in range(2 * CHANGES)]
    with cores.on(cores.shared_out()[1]):
        return asyncio.run(_told(registry, operator.set_policy, names[:CHANGES] if named else names[CHANGES:], named))


def measure(root: Path, database_url: str) -> Iterator[Figure]:
    """The figures for a registry of its own on that database, everything of it in the folder ``root``."""
    with Stack(root, database_url=database_url) as stack:
        with cores.on(cores.shared_out()[0]):
            registry = stack.start_registry(workers=1)
        operator = Operator.of(stack)
        named, unnamed = told(registry, operator, named=True), told(registry, operator, named=False)
    name = f"{CALLS:,} waiting calls that name {WATCHED} of {SERVICES:,} services"
    against = f"all told: {unnamed.cpu:,.0f} ms"
    yield Figure(f"{name}: CPU of a change", named.cpu, "ms", against, named.cpu / unnamed.cpu)
    for part, of in (("p50", median), ("p99", lambda times: percentile(times, 99))):
        found, other = of(named.millis), of(unnamed.millis)
        yield Figure(f"{name}: told, {part}", found, "ms", f"all told: {other:,.0f} ms", found / other)
    for what, one in (("named", named), ("not named", unnamed)):
        yield Figure(f"answers of a change, {what}", one.answers / CHANGES, "", f"{one.lists / CHANGES:.1f} lists")


def main() -> int:
    """Measures, and prints the figures."""
    with tempfile.TemporaryDirectory(prefix="peerseal-waiting-") as folder, running_postgres() as server:
        for one in measure(Path(folder), server.new_database()):
            ratio = "" if one.ratio is None else f", ratio {one.ratio:.2f}"
            print(f"{one.figure}: {one.value:,.1f} {one.unit} ({one.against}{ratio})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
