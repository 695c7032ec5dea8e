"""A flood of tokens with unregistered keys, at a protected Flask route that serves good calls meanwhile.

One gunicorn worker of eight threads on the servers' core, real HTTP to the registry. Ten services may call. Their good
calls come at one rate. Additional calls come at another rate, in windows that take turns: none; more good calls; tokens
in the names of the same ten, each with another unknown kid; tokens of made-up services; tokens of a service of another
trust domain, whose registry takes connections and never answers. Any additional requests make good calls queue now and
then, so the flood is compared with as many good requests: the remaining difference is the effect of an unknown kid.
What a hanging foreign registry adds is the difference to unknown kids of the own domain, whose registry answers. One
window of each kind makes a round; the good calls of all rounds count. A window is as long as a cooldown: shorter
windows with pauses between them would contain more fetches than a continuous flood.
"""

import json
import secrets
import socket
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.request import urlopen

from benchmarks import cores, load
from benchmarks.figures import Figure, Goal
from benchmarks.newcomers import rsa_keys
from benchmarks.operators import Operator
from benchmarks.paced import Stream, drive
from benchmarks.requests_made import TARGET, request_token, signed_request
from benchmarks.spread import percentile
from demo.processes import LOOPBACK, Server, free_port, gunicorn
from demo.stack import RESOURCE, Stack
from peerseal import TrustLimits
from peerseal.protocol.encoding import b64url
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.names import make_kid, service_id, split_kid

SERVICES = 10
ROUNDS = 2
FLOOD, PER_SECOND = 5_000, 1_000.0  # calls in a window, and calls a second
GOOD, GOOD_PER_SECOND = 1_000, 200.0
_WARMING_UP = 200

FOREIGN = "partner.example"
"""A trust domain whose registry hangs."""

_ALONE, _GOOD, _UNKNOWN, _MADE_UP = "alone", "with as many good calls", "unknown kids", "made-up services"
_FOREIGN = "foreign kids"
_STATUSES: dict[str, tuple[int, ...]] = {
    _ALONE: (),
    _GOOD: (200,),
    _UNKNOWN: (401, 503),
    _MADE_UP: (403,),
    _FOREIGN: (503,),
}
_KINDS = list(_STATUSES)
_COOLDOWN = TrustLimits().cooldown


@dataclass(frozen=True, slots=True)
class _Callers:
    """The services that may call, each with its key by kid."""

    domain: str
    keys: Sequence[tuple[str, KeyPair]]

    def good(self, at: int) -> bytes:
        """A call of one of them."""
        return _with(signed_request(*self.keys[at % SERVICES], self.domain))

    def forged(self, at: int) -> bytes:
        """A call in its name, with an unregistered key."""
        return _forged(split_kid(self.keys[at % SERVICES][0])[0], self.domain)

    def made_up(self, _: int) -> bytes:
        """A call of a made-up service."""
        return _forged(service_id(self.domain, f"made-up-{secrets.token_hex(8)}"), self.domain)

    def foreign(self, _: int) -> bytes:
        """A call of the other domain's service."""
        return _forged(service_id(FOREIGN, "billing"), self.domain)


def measure(stack: Stack) -> Iterator[Figure]:
    """The figures. All services are registered at the ``stack``'s registry."""
    operator, (servers_cores, load_cores) = Operator.of(stack), cores.shared_out()
    names = [f"flooded-{at}" for at in range(SERVICES)]
    newcomers = [operator.newcomer(name, key) for name, key in zip(names, rsa_keys(SERVICES), strict=True)]
    callers = _Callers(stack.domain, [(operator.register(one), one.key) for one in newcomers])
    with cores.on(servers_cores):
        server = _serve(stack, [*names, service_id(FOREIGN, "billing")])
    with cores.on(load_cores), _hanging_registry(stack):
        load.drive(server.url, [callers.good(at) for at in range(_WARMING_UP)])
        warm = time.monotonic()  # the callers' keys are known: a fetch that finds the key lifts its cooldown
        seconds: dict[str, list[float]] = {kind: [] for kind in _KINDS}
        for number in range(ROUNDS):
            turn = number % len(_KINDS)  # each round begins with another one
            for kind in _KINDS[turn:] + _KINDS[:turn]:
                seconds[kind] += _window(server.url, kind, callers, number)
    yield from _fetches(server, names, warm)
    yield from _latencies(seconds)


def _fetches(server: Server, names: Sequence[str], since: float) -> Iterator[Figure]:
    with urlopen(f"{server.url}/asked") as answer:  # noqa: S310 - a URL of ours
        asked = json.load(answer)
    times: dict[str, list[float]] = defaultdict(list)
    for at, path in asked:
        if at > since and path.startswith("/v1/services/") and "/jwks.jwt" in path:
            times[path.split("/")[3]].append(at)
    name, against = f"fetches under {ROUNDS * FLOOD:,} unknown kids", "atlassian-jwt-auth: 1 a token"
    most = max(_most_in_a_cooldown(times[service]) for service in names)
    yield Figure(f"{name}, a service and cooldown", most, "fetches", against, goal=Goal("≤", 1, "fetches"))
    others = sum(len(times[service]) for service in times.keys() - set(names))
    yield Figure(f"{name} of services that may not call", others, "fetches", against, goal=Goal("<", 1, "fetches"))


def _most_in_a_cooldown(times: Sequence[float]) -> int:
    """The most of these times within one cooldown; a cooldown begins a moment before its fetch."""
    return max(sum(0 <= other - at < 0.98 * _COOLDOWN for other in times) for at in times)


def _latencies(seconds: Mapping[str, Sequence[float]]) -> Iterator[Figure]:
    p99 = {kind: 1e3 * percentile(seconds[kind], 99) for kind in _KINDS}
    for kind, what in (
        (_UNKNOWN, "a flood of unknown kids"),
        (_MADE_UP, "a flood of made-up services"),
        (_FOREIGN, "a flood of foreign kids, their registry hangs"),
    ):
        for beside, goal in ((_GOOD, Goal("<", 2)), (_ALONE, None)):
            against = f"{beside}: {p99[beside]:.1f} ms"
            yield Figure(f"p99 of good calls in {what}", p99[kind], "ms", against, p99[kind] / p99[beside], goal)
    name, against = (
        "p99 of good calls, what a hanging foreign registry adds",
        f"own unknown kids: {p99[_UNKNOWN]:.1f} ms",
    )
    yield Figure(name, p99[_FOREIGN], "ms", against, p99[_FOREIGN] / p99[_UNKNOWN], Goal("<", 1.25))


def _window(url: str, kind: str, callers: _Callers, seed: int) -> Sequence[float]:
    """The seconds that the good calls took."""
    good = Stream(url, [callers.good(at) for at in range(GOOD)], GOOD_PER_SECOND, (200,), seed)
    makers = {_GOOD: callers.good, _UNKNOWN: callers.forged, _MADE_UP: callers.made_up, _FOREIGN: callers.foreign}
    make = makers.get(kind)
    others = [make(at) for at in range(FLOOD)] if make else []
    drive(good, Stream(url, others, PER_SECOND, _STATUSES[kind], seed + ROUNDS))
    return good.seconds


def _forged(owner: str, domain: str) -> bytes:
    """With a kid and a signature of random bits."""
    kid = make_kid(owner, b64url(secrets.token_bytes(32)))
    return _with(request_token(kid, "RS256", lambda _: secrets.token_bytes(256), domain))


def _with(token: str) -> bytes:
    return load.get(TARGET, f"Authorization: Bearer {token}")


def _serve(stack: Stack, callers: Sequence[str]) -> Server:
    settings, log = stack.service_settings(RESOURCE, host="flooded"), stack.log("flooded")
    target = f"benchmarks.apps:flooded_route({callers!r})"
    server = stack.keep(gunicorn("flooded", target, port=free_port(), log=log, settings=settings, workers=1))
    return server.wait_until_answers(f"{server.url}/ready")


@contextmanager
def _hanging_registry(stack: Stack) -> Iterator[None]:
    """The registry of the other domain, which the own one names: it takes connections, and never answers."""
    with socket.create_server((LOOPBACK, 0), backlog=1_000) as server:
        url, pin = f"http://{LOOPBACK}:{server.getsockname()[1]}", b64url(secrets.token_bytes(32))
        stack.operate("federation", "add", FOREIGN, "--url", url, "--pin", pin, "--unchecked")
        yield
        stack.operate("federation", "remove", FOREIGN)
