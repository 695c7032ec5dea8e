"""A protected Flask route under gunicorn, beside the same route unprotected.

Both are served by as many workers of the same class, on the same core or cores; the load runs on another, and each
sends the same requests, tokens and all. The windows take turns.
"""

from collections.abc import Iterator
from statistics import median

import peerseal
from benchmarks import cores
from benchmarks.figures import Figure, Goal
from benchmarks.load import Window, drive, get
from demo.processes import Server, free_port, gunicorn
from demo.stack import RESOURCE, Stack

ROUNDS = 8
REQUESTS = 1_500  # in a window, with a token each, signed before the window begins

PATH = "/profiles/42"

_NO_TOKEN = "unprotected, callers without a token"


def measure(stack: Stack, caller: peerseal.Identity) -> Iterator[Figure]:
    """The figures. ``caller`` signs with RS256; the callee joins the ``stack``'s registry."""
    servers, load = cores.shared_out()
    with cores.on(servers):
        protected = _serve(stack, protected=True)
        unprotected = _serve(stack, protected=False)
    with cores.on(load):
        windows = [_round(caller, protected, unprotected, number) for number in range(ROUNDS + 1)][1:]  # one warms up
    with_token, without, bare = zip(*windows, strict=True)
    ratio = median(mine.per_second / other.per_second for mine, other in zip(with_token, without, strict=True))
    rate, other = _per_second(with_token), _per_second(without)
    yield Figure(
        "protected Flask route", rate, "requests/s", f"the same unprotected: {other:.0f}/s", ratio, Goal("≥", 0.85)
    )
    to_bare = median(mine.per_second / other.per_second for mine, other in zip(with_token, bare, strict=True))
    yield Figure("protected Flask route", rate, "requests/s", f"{_NO_TOKEN}: {_per_second(bare):.0f}/s", to_bare)
    busy = median(window.busy for window in (*with_token, *without))
    yield Figure("the load's own share of its core", busy * 100, "%")


def _round(caller: peerseal.Identity, protected: Server, unprotected: Server, number: int) -> tuple[Window, ...]:
    """One window each: protected, unprotected, unprotected without tokens. The first is another one every time."""
    signed = [_with_token(caller) for _ in range(REQUESTS)]
    plans = [(protected, signed), (unprotected, signed), (unprotected, [get(PATH)] * REQUESTS)]
    windows = {}
    for turn in range(3):
        which = (turn + number) % 3
        server, requests = plans[which]
        windows[which] = drive(server.url, requests)
    return windows[0], windows[1], windows[2]


def _with_token(caller: peerseal.Identity) -> bytes:
    token = caller.sign_request(RESOURCE, method="GET", target=PATH)
    return get(PATH, f"Authorization: Bearer {token}")


def _serve(stack: Stack, *, protected: bool) -> Server:
    name = "protected" if protected else "unprotected"
    server = gunicorn(
        name,
        f"benchmarks.apps:route({protected})",
        port=free_port(),
        log=stack.log(name),
        settings=stack.service_settings(RESOURCE) if protected else {},
    )
    return stack.keep(server).wait_until_answers(f"{server.url}/ready")


def _per_second(windows: tuple[Window, ...]) -> float:
    return median(window.per_second for window in windows)
