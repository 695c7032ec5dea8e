"""A warm signed JWK Set from the registry, compared with a Flask route that returns the same bytes and nothing else.

Both are served by one gunicorn worker of the same class, on the same core, the load on another; the windows take turns.
One worker, because each one signs a set of its own, with an ETag of its own.
"""

from collections.abc import Iterator
from pathlib import Path
from statistics import median
from urllib.request import urlopen

from benchmarks import cores
from benchmarks.figures import Figure, Goal
from benchmarks.load import Window, drive, get
from demo.processes import Server, free_port, gunicorn
from demo.stack import CLIENT, Stack
from peerseal import Identity

ROUNDS = 5
REQUESTS = 2_500  # in a window

PATH = f"/v1/services/{CLIENT}/jwks.jwt"

_NO_SLOWER = Goal("≥", 0.97)  # the usual difference of two equal windows
_SET = "signed JWK Set, warm"
_NOT_MODIFIED = "304 for a signed JWK Set"


def measure(root: Path, database: str, database_url: str | None = None) -> Iterator[Figure]:
    """The figures for a registry of its own on that database, everything of it in the folder ``root``."""
    servers, load = cores.shared_out()
    with Stack(root, database_url=database_url) as stack:
        with cores.on(servers):
            registry = stack.start_registry(workers=1)
            caller = Identity(CLIENT, registry=registry.url, join_token=stack.join_token(CLIENT)).start()
            constant = _serve_constant(stack, _fetch(registry)[0])
        try:
            with cores.on(load):
                windows = [_round(registry, constant, number) for number in range(ROUNDS + 1)][1:]
        finally:
            caller.stop()
    yield from _figures(database, *zip(*windows, strict=True))


def _figures(
    database: str, sets: tuple[Window, ...], not_modified: tuple[Window, ...], constants: tuple[Window, ...]
) -> Iterator[Figure]:
    whole, short, flask = (median(window.per_second for window in kind) for kind in (sets, not_modified, constants))
    to_constant = f"a Flask route with the same bytes: {flask:.0f}/s"
    yield Figure(f"{_SET} ({database})", whole, "requests/s", to_constant, _ratio(sets, constants), Goal("≥", 0.85))
    to_set = f"the set itself: {whole:.0f}/s"
    yield Figure(f"{_NOT_MODIFIED} ({database})", short, "requests/s", to_set, _ratio(not_modified, sets), _NO_SLOWER)


def _round(registry: Server, constant: Server, number: int) -> tuple[Window, ...]:
    """One window each: the set, 304, the constant. Each round begins with another one."""
    etag = _fetch(registry)[1]
    plans = [
        (registry, get(PATH), (200,)),
        (registry, get(PATH, f"If-None-Match: {etag}"), (304, 200)),  # the set is signed again once a minute
        (constant, get("/ready"), (200,)),
    ]
    windows = {}
    for turn in range(len(plans)):
        which = (turn + number) % len(plans)
        server, request, statuses = plans[which]
        windows[which] = drive(server.url, [request] * REQUESTS, statuses=statuses)
    return windows[0], windows[1], windows[2]


def _fetch(registry: Server) -> tuple[bytes, str]:
    """The signed set and its ETag."""
    with urlopen(registry.url + PATH) as answer:  # noqa: S310 - a URL of ours
        return answer.read(), answer.headers["ETag"]


def _serve_constant(stack: Stack, body: bytes) -> Server:
    file = stack.root / "constant.jwt"
    file.write_bytes(body)
    target = f"benchmarks.apps:constant({str(file)!r})"
    server = gunicorn("constant", target, port=free_port(), log=stack.log("constant"), settings={}, workers=1)
    return stack.keep(server).wait_until_answers(f"{server.url}/ready")


def _ratio(mine: tuple[Window, ...], theirs: tuple[Window, ...]) -> float:
    return median(one.per_second / other.per_second for one, other in zip(mine, theirs, strict=True))
