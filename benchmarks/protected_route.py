"""A protected Flask route under gunicorn, compared with the same route unprotected.

Every server has as many workers of the same class on the same core (two, from three on); the load runs on another. All
get the same requests, tokens and all, in windows that take turns. The cost of a raw RSA verify alone at the same
place is measured too: other work fills the processor's caches between two requests, so it takes twice as long as in a
loop.
"""

from collections.abc import Iterator
from statistics import median

import peerseal
from benchmarks import cores
from benchmarks.figures import Figure, Goal
from benchmarks.load import Window, drive, get
from demo.processes import Server, free_port, gunicorn
from demo.stack import RESOURCE, Stack

ROUNDS = 6
REQUESTS = 1_500  # in a window, with a token each, signed before the window begins

PATH = "/profiles/42"

_OPEN = "unprotected"
_SHARED = "protected Flask route"
_MEMORY = "protected Flask route, guard in memory"
_RAW = "the route with a raw RSA-2048 verify alone"


def measure(stack: Stack, caller: peerseal.Identity) -> Iterator[Figure]:
    """The figures. ``caller`` signs with RS256; the callees join the ``stack``'s registry."""
    servers_cores, load_cores = cores.shared_out()
    with cores.on(servers_cores):
        servers = _serve(stack)
    with cores.on(load_cores):
        rounds = [_round(caller, servers, number) for number in range(ROUNDS + 1)][1:]  # one warms up
    rates = {name: median(windows[name].per_second for windows in rounds) for name in servers}
    against = f"the same unprotected: {rates[_OPEN]:.0f}/s"
    for name, goal in ((_SHARED, Goal("≥", 0.85)), (_MEMORY, None), (_RAW, None)):
        ratio = median(windows[name].per_second / windows[_OPEN].per_second for windows in rounds)
        yield Figure(name, rates[name], "requests/s", against, ratio, goal)
    adds, raw_adds = (1e6 / rates[name] - 1e6 / rates[_OPEN] for name in (_SHARED, _RAW))
    yield Figure(
        "protection adds to a request", adds, "µs", f"a raw RSA-2048 verify: {raw_adds:.0f} µs", adds / raw_adds
    )
    busy = median(window.busy for windows in rounds for window in windows.values())
    yield Figure("the load's own share of its core", busy * 100, "%")


def _serve(stack: Stack) -> dict[str, Server]:
    """One server for each contender."""
    contenders = {
        _SHARED: ("protected_route(True)", stack.service_settings(RESOURCE, host="one")),
        _MEMORY: ("protected_route(False)", stack.service_settings(RESOURCE, host="another")),
        _RAW: ("route_with_raw_verify()", {}),
        _OPEN: ("open_route()", {}),
    }
    servers = {}
    for number, (name, (factory, settings)) in enumerate(contenders.items()):
        target, log = f"benchmarks.apps:{factory}", stack.log(f"bench-{number}")
        server = stack.keep(gunicorn(name, target, port=free_port(), log=log, settings=settings))
        servers[name] = server.wait_until_answers(f"{server.url}/ready")
    return servers


def _round(caller: peerseal.Identity, servers: dict[str, Server], number: int) -> dict[str, Window]:
    """One window each. Each round begins with another one."""
    requests = [_with_token(caller) for _ in range(REQUESTS)]
    order = list(servers)
    turn = number % len(order)
    return {name: drive(servers[name].url, requests) for name in order[turn:] + order[:turn]}


def _with_token(caller: peerseal.Identity) -> bytes:
    token = caller.sign_request(RESOURCE, method="GET", target=PATH)
    return get(PATH, f"Authorization: Bearer {token}")
