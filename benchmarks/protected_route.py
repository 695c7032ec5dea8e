"""A protected route under gunicorn (Flask) and uvicorn (Starlette), compared with the same route unprotected and with
the same route protected by other libraries.

Every server has as many workers of the same class on the same core (two, from three on); the load runs on another. All
get the same requests, tokens and all, in windows that take turns. The cost of a raw RSA verify alone at the same
place is measured too: other work fills the processor's caches between two requests, so it takes twice as long as in a
loop. Requests per second vary by a twentieth from one start of a server to the next, so the processor time of the
workers for one request is measured as well.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from statistics import median
from tempfile import TemporaryDirectory

import peerseal
from benchmarks import cores
from benchmarks.cores import processor_seconds
from benchmarks.figures import Figure, Goal
from benchmarks.load import Window, drive, get
from benchmarks.peer_routes import ROUTES
from demo.processes import Server, free_port, gunicorn, uvicorn
from demo.stack import CLIENT, RESOURCE, Stack

ROUNDS = 6
REQUESTS = 1_000  # in a window, with a token each, signed before the window begins

PATH = "/profiles/42"

_OPEN = "unprotected"
_SHARED = "protected by Peerseal"
_MEMORY = "protected by Peerseal, guard in memory"
_IN_TMPFS = "protected by Peerseal, guard in a tmpfs"
_RAW = "a raw RSA-2048 verify alone"

Start = Callable[[str, int, str, Mapping[str, str]], Server]
"""Starts a server: name, port, target, settings."""


@dataclass(frozen=True, slots=True)
class _Turn:
    """One window of one server: requests per second, and microseconds of its workers' processor time a request."""

    window: Window
    micros: float


def measure(stack: Stack, caller: peerseal.Identity) -> Iterator[Figure]:
    """The figures of the Flask route. ``caller`` signs with RS256; the callees join the ``stack``'s registry."""
    keys = ", ".join(map(repr, keys_and_audience(stack, caller)))
    contenders = {
        _SHARED: ("benchmarks.apps:protected_route(True)", stack.service_settings(RESOURCE, host="one")),
        _MEMORY: ("benchmarks.apps:protected_route(False)", stack.service_settings(RESOURCE, host="another")),
        _RAW: ("benchmarks.apps:route_with_raw_verify()", {}),
        _OPEN: ("benchmarks.apps:open_route()", {}),
        **{name: (f"benchmarks.peer_routes:{make.__name__}({keys})", {}) for name, make in ROUTES.items()},
    }
    yield from _figures("Flask route", stack, caller, contenders, partial(_gunicorn, stack), tuple(ROUTES))


def measure_asgi(stack: Stack, caller: peerseal.Identity) -> Iterator[Figure]:
    """The figures of the ASGI route. The goals are for a replay guard in a tmpfs, as docs/how-to/asgi.md advises."""
    with TemporaryDirectory(dir="/dev/shm") as guard_folder:
        yield from _asgi_figures(stack, caller, guard_folder)


def _asgi_figures(stack: Stack, caller: peerseal.Identity, guard_folder: str) -> Iterator[Figure]:
    peer = "PyJWT + PyJWKClient"
    keys = dict(zip(("BENCH_KEYS_URL", "BENCH_AUDIENCE"), keys_and_audience(stack, caller), strict=True))
    protected = "benchmarks.asgi_apps:protected_route"
    in_tmpfs = stack.service_settings(RESOURCE, host="four") | {"PEERSEAL_REPLAY_DIR": guard_folder}
    contenders = {
        _SHARED: (protected, stack.service_settings(RESOURCE, host="three")),
        _IN_TMPFS: (protected, in_tmpfs),
        _RAW: ("benchmarks.asgi_apps:route_with_raw_verify", {}),
        _OPEN: ("benchmarks.asgi_apps:open_route", {}),
        peer: ("benchmarks.asgi_apps:pyjwt_route", keys),
    }
    yield from _figures("ASGI route", stack, caller, contenders, partial(_uvicorn, stack), (peer,), _IN_TMPFS)


def keys_and_audience(stack: Stack, caller: peerseal.Identity) -> tuple[str, str]:
    """What the other libraries need: the URL of the caller's JWK Set, and the callee's id."""
    return f"{stack.registry_url}/v1/services/{CLIENT}/jwks.json", f"{caller.domain}/{RESOURCE}"


def _figures(
    route: str,
    stack: Stack,
    caller: peerseal.Identity,
    contenders: Mapping[str, tuple[str, Mapping[str, str]]],
    start: Start,
    peers: tuple[str, ...],
    ours: str = _SHARED,
) -> Iterator[Figure]:
    servers_cores, load_cores = cores.shared_out()
    with cores.on(servers_cores):
        servers = {
            name: start(f"{route.split()[0].lower()}-{number}", free_port(), target, settings)
            for number, (name, (target, settings)) in enumerate(contenders.items())
        }
        for server in servers.values():
            server.wait_until_answers(f"{server.url}/ready")
    with cores.on(load_cores):
        rounds = [_round(caller, servers, number) for number in range(ROUNDS + 1)][1:]  # one warms up
    for server in servers.values():
        server.stop()
    rates = {name: median(turns[name].window.per_second for turns in rounds) for name in servers}
    micros = {name: median(turns[name].micros for turns in rounds) for name in servers}
    against = f"the same unprotected: {rates[_OPEN]:.0f}/s"
    for name in (ours, *(other for other in servers if other not in (ours, _OPEN))):
        ratio = median(turns[name].window.per_second / turns[_OPEN].window.per_second for turns in rounds)
        goal = Goal("≥", 0.70) if name == ours else None
        yield Figure(f"{route}, {name}", rates[name], "requests/s", against, ratio, goal)
    best = max(peers, key=lambda name: rates[name])
    ratio = median(turns[ours].window.per_second / turns[best].window.per_second for turns in rounds)
    fastest = f"the fastest peer, {best}: {rates[best]:.0f}/s"
    yield Figure(f"{route}, {ours}", rates[ours], "requests/s", fastest, ratio, Goal("≥", 1))
    adds, raw_adds, peer_adds = (micros[name] - micros[_OPEN] for name in (ours, _RAW, best))
    against = f"a raw RSA-2048 verify there: {raw_adds:.0f} µs; {best}: {peer_adds:.0f} µs"
    yield Figure(f"{route}, processor time that protection adds", adds, "µs", against, adds / raw_adds, Goal("≤", 3))
    busy = median(turn.window.busy for turns in rounds for turn in turns.values())
    yield Figure(f"{route}, the load's own share of its core", busy * 100, "%")


def _gunicorn(stack: Stack, name: str, port: int, target: str, settings: Mapping[str, str]) -> Server:
    return stack.keep(gunicorn(name, target, port=port, log=stack.log(name), settings=settings))


def _uvicorn(stack: Stack, name: str, port: int, target: str, settings: Mapping[str, str]) -> Server:
    return stack.keep(uvicorn(name, target, port=port, log=stack.log(name), settings=settings))


def _round(caller: peerseal.Identity, servers: Mapping[str, Server], number: int) -> dict[str, _Turn]:
    """One window each. Each round begins with another one."""
    requests = [with_token(caller) for _ in range(REQUESTS)]
    order = list(servers)
    turn = number % len(order)
    return {name: _turn(servers[name], requests) for name in order[turn:] + order[:turn]}


def _turn(server: Server, requests: list[bytes]) -> _Turn:
    before = processor_seconds(server.pid)
    window = drive(server.url, requests)
    return _Turn(window, 1e6 * (processor_seconds(server.pid) - before) / len(requests))


def with_token(caller: peerseal.Identity) -> bytes:
    """A GET of the route with a new request token."""
    token = caller.sign_request(RESOURCE, method="GET", target=PATH)
    return get(PATH, f"Authorization: Bearer {token}")
