"""How long a process needs to import the SDK, and from there to its first signed request; each in fresh processes."""

import json
import subprocess
import sys
from collections.abc import Iterator
from statistics import median
from typing import Any

from benchmarks.figures import Figure, Goal
from demo.stack import Stack

ROUNDS = 9
SERVICE = "cold-service"

_LIBRARIES = "import time; t = time.perf_counter(); import requests, jose; print((time.perf_counter() - t) * 1e3)"


def measure(stack: Stack) -> Iterator[Figure]:
    """The figures. Every start registers a new key at the ``stack``'s registry, over HTTP."""
    token = stack.join_token(SERVICE, uses=ROUNDS)
    starts, libraries = [], []
    for _ in range(ROUNDS):
        starts.append(_run("-m", "benchmarks.cold_process", SERVICE, stack.registry_url, token))
        libraries.append(float(_run("-c", _LIBRARIES)))
    peer = median(libraries)
    against = f"import requests, jose: {peer:.0f} ms"
    goals = ("import peerseal", "import", Goal("≤", 1.4)), ("cold start, key generation apart", "start", None)
    for figure, member, goal in goals:
        millis = [start[member] for start in starts]
        ratio = median(mine / theirs for mine, theirs in zip(millis, libraries, strict=True))
        yield Figure(figure, median(millis), "ms", against, ratio, goal)


def _run(*arguments: str) -> Any:
    command = [sys.executable, *arguments]
    run = subprocess.run(command, check=True, capture_output=True, encoding="utf-8")  # noqa: S603 - this very Python
    return json.loads(run.stdout)
