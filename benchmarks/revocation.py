"""From a revocation to its refusal, at 200 peers that watch.

Each peer is a trust store like that of a separate host, with its own connections and no shared folder. The peers share
four processes of this machine, and its cores with the registry (two workers, PostgreSQL). The time runs from the moment
when the operator's call is sent, so it includes the registry's work on the revocation. It ends with the first look in a
peer's memory that finds the key revoked. With the push path cut the same peers ask once
a second.
"""

import multiprocessing
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

from benchmarks.figures import Figure, Goal
from benchmarks.newcomers import rsa_keys
from benchmarks.operators import Operator
from benchmarks.spread import percentile
from benchmarks.watching import watch
from demo.stack import Stack
from peerseal import TrustLimits

PEERS = 200
PROCESSES = 4
PUSHED, POLLED = 5, 2  # rounds, a key each
SERVICE = "revoked-service"

_PUSH, _POLL = TrustLimits(), TrustLimits(wait=0)
_SETTLE = 1.5  # seconds: within one, each peer fetches the key set of the round before
_MARGIN = 0.5  # seconds: the spread of the polls, two fetches, and 200 peers on these cores


@dataclass(frozen=True, slots=True)
class _Round:
    """Milliseconds until each peer refused the key, and those of CPU that all took."""

    millis: Sequence[float]
    cpu: float


def measure(root: Path, database_url: str) -> Iterator[Figure]:
    """The figures for a registry of its own on that database, everything of it in the folder ``root``."""
    with Stack(root, database_url=database_url) as stack:
        stack.start_registry()
        operator, kids = Operator.of(stack), list[str]()
        for key in rsa_keys(PUSHED + POLLED):
            kids.append(operator.register(operator.newcomer(SERVICE, key)))
        pushed = _rounds(stack, operator, _PUSH, kids[:PUSHED])
        polled = _rounds(stack, operator, _POLL, kids[PUSHED:])
    name = f"revocation to refusal, {PEERS} watching peers"
    yield from _figures(name, pushed, (200, 600), "Envoy's default: 10 min; Athenz: 24 h")
    yield Figure("CPU of one of these peers for it", median(one.cpu for one in pushed) / PEERS, "ms")
    within = None, 1000 * (_POLL.poll_interval + _MARGIN)
    yield from _figures(f"{name} that poll", polled, within, f"they ask every {_POLL.poll_interval:g} s")


def _figures(name: str, rounds: Sequence[_Round], limits: tuple[float | None, float], against: str) -> Iterator[Figure]:
    millis = [at for one in rounds for at in one.millis]
    for percent, limit in zip((50, 99), limits, strict=True):
        goal = None if limit is None else Goal("≤", limit, "ms")
        yield Figure(f"{name}, p{percent}", percentile(millis, percent), "ms", against, goal=goal)


def _rounds(stack: Stack, operator: Operator, limits: TrustLimits, kids: Sequence[str]) -> list[_Round]:
    """One for each of the keys."""
    with _watching(stack.registry_url, kids[0], limits) as peers:
        time.sleep(2 * limits.poll_interval)  # until each has begun to watch
        return [_round(operator, peers, kid) for kid in kids]


def _round(operator: Operator, peers: Sequence[Connection], kid: str) -> _Round:
    for peer in peers:
        peer.send(kid)
    _await_all(peers)
    time.sleep(_SETTLE + random.random())  # noqa: S311 - all wait again, or ask out of step with this
    sent = time.monotonic()
    operator.revoke(kid)
    answers = [peer.recv() for peer in peers]
    millis = [1e3 * (at - sent) for times, _ in answers for at in times]
    assert len(millis) == PEERS, f"{PEERS - len(millis)} peers never refused the key"
    return _Round(millis, 1e3 * sum(cpu for _, cpu in answers))


@contextmanager
def _watching(url: str, known: str, limits: TrustLimits) -> Iterator[list[Connection]]:
    """The processes of the peers, which know all keys of the service."""
    context = multiprocessing.get_context("spawn")
    with ExitStack() as running:
        peers: list[Connection] = []
        for _ in range(PROCESSES):
            ours, theirs = context.Pipe()
            arguments = (url, known, PEERS // PROCESSES, limits, theirs)
            process = context.Process(target=watch, args=arguments, daemon=True)
            process.start()
            running.callback(process.join, 30)
            running.callback(ours.send, None)
            peers.append(ours)
        _await_all(peers)
        yield peers


def _await_all(peers: Sequence[Connection]) -> None:
    for peer in peers:
        peer.recv()
