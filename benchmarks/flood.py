"""A flood of tokens whose keys nobody has, against a protected Flask route that serves good calls meanwhile.

One gunicorn worker of eight threads on the servers' core, real HTTP to the registry. Good calls come at a rate, and
beside them, at another, in windows that take turns: nothing; more good calls; tokens in the name of services that may
call, with kids that they do not have, another one each; tokens of services that are made up. Any requests beside the
good calls have them stand in a queue now and then. So the flood is held against as many good requests: what is left of
the difference is what an unknown kid does. A window of each kind makes a round; the good calls of all rounds count.
"""

import json
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from urllib.request import urlopen

import peerseal
from benchmarks import cores
from benchmarks.figures import Figure, Goal
from benchmarks.load import get
from benchmarks.newcomers import rsa_keys
from benchmarks.operators import Operator
from benchmarks.paced import Stream, drive
from benchmarks.requests_made import AUDIENCE, TARGET, request_token
from benchmarks.spread import percentile
from demo.processes import Server, free_port, gunicorn
from demo.stack import CLIENT, RESOURCE, Stack
from peerseal import TrustLimits
from peerseal.protocol.encoding import b64url
from peerseal.protocol.names import make_kid, service_id

ROUNDS = 4
FLOOD, PER_SECOND = 2_500, 1_000.0  # of a window: tokens, and as many a second
GOOD, GOOD_PER_SECOND = 500, 200.0
KNOWN = [CLIENT, *(f"flooded-{at}" for at in range(9))]
"""The services that may call, all of which are flooded, the good caller's too."""

_ALONE, _GOOD, _UNKNOWN, _MADE_UP = "alone", "beside as many good calls", "unknown kids", "made-up services"
_STATUSES: dict[str, tuple[int, ...]] = {_ALONE: (), _GOOD: (200,), _UNKNOWN: (401, 503), _MADE_UP: (403,)}
_KINDS = list(_STATUSES)
_COOLDOWN = TrustLimits().cooldown


def measure(stack: Stack, caller: peerseal.Identity) -> Iterator[Figure]:
    """The figures. ``caller`` sends the good calls; everybody is registered at the ``stack``'s registry."""
    operator = Operator(stack)
    for service, key in zip(KNOWN[1:], rsa_keys(len(KNOWN) - 1), strict=True):
        operator.register(operator.newcomer(service, key))
    servers, load = cores.shared_out()
    with cores.on(servers):
        server = _serve(stack)
    with cores.on(load):
        _window(server.url, _ALONE, caller, ROUNDS)
        warm = time.monotonic()  # the good caller's keys are known: a fetch that found a key starts no cooldown
        seconds: dict[str, list[float]] = {kind: [] for kind in _KINDS}
        for number in range(ROUNDS):
            turn = number % len(_KINDS)  # the first is another one every time
            for kind in _KINDS[turn:] + _KINDS[:turn]:
                seconds[kind] += _window(server.url, kind, caller, number)
    yield from _fetches(server, warm)
    yield from _latencies(seconds)


def _fetches(server: Server, since: float) -> Iterator[Figure]:
    with urlopen(f"{server.url}/asked") as answer:  # noqa: S310 - a URL of ours
        asked = json.load(answer)
    times: dict[str, list[float]] = defaultdict(list)
    for at, path in asked:
        if at > since and path.startswith("/v1/services/") and "/jwks.jwt" in path:
            times[path.split("/")[3]].append(at)
    name, against = f"fetches under {ROUNDS * FLOOD:,} unknown kids", "atlassian-jwt-auth: 1 a token"
    most = max(_most_in_a_cooldown(times[service]) for service in KNOWN)
    yield Figure(f"{name}, a service and cooldown", most, "fetches", against, goal=Goal("≤", 1, "fetches"))
    others = sum(len(times[service]) for service in times.keys() - set(KNOWN))
    yield Figure(f"{name} of services that may not call", others, "fetches", against, goal=Goal("<", 1, "fetches"))


def _most_in_a_cooldown(times: Sequence[float]) -> int:
    """How many of these times lie within one cooldown at most, which begins a moment before its fetch does."""
    return max(sum(0 <= other - at < 0.98 * _COOLDOWN for other in times) for at in times)


def _latencies(seconds: Mapping[str, Sequence[float]]) -> Iterator[Figure]:
    p99 = {kind: 1e3 * percentile(seconds[kind], 99) for kind in _KINDS}
    for kind, what in ((_UNKNOWN, "a flood of unknown kids"), (_MADE_UP, "a flood of made-up services")):
        for beside, goal in ((_GOOD, Goal("<", 2)), (_ALONE, None)):
            against = f"{beside}: {p99[beside]:.1f} ms"
            yield Figure(f"p99 of good calls in {what}", p99[kind], "ms", against, p99[kind] / p99[beside], goal)


def _window(url: str, kind: str, caller: peerseal.Identity, seed: int) -> Sequence[float]:
    """The seconds that the good calls took."""
    good = Stream(url, [_good(caller) for _ in range(GOOD)], GOOD_PER_SECOND, (200,), seed)
    make: dict[str, Callable[[int], bytes]] = {
        _GOOD: lambda _: _good(caller),
        _UNKNOWN: lambda at: _forged(KNOWN[at % len(KNOWN)], caller.domain),
        _MADE_UP: lambda _: _forged(f"made-up-{secrets.token_hex(8)}", caller.domain),
    }
    others = [make[kind](at) for at in range(FLOOD)] if kind in make else []
    drive(good, Stream(url, others, PER_SECOND, _STATUSES[kind], seed + ROUNDS))
    return good.seconds


def _good(caller: peerseal.Identity) -> bytes:
    return _with(caller.sign_request(AUDIENCE, method="GET", target=TARGET))


def _forged(service: str, domain: str) -> bytes:
    """With a kid and a signature of random bits."""
    kid = make_kid(service_id(domain, service), b64url(secrets.token_bytes(32)))
    return _with(request_token(kid, "RS256", lambda _: secrets.token_bytes(256), domain))


def _with(token: str) -> bytes:
    return get(TARGET, f"Authorization: Bearer {token}")


def _serve(stack: Stack) -> Server:
    settings, log = stack.service_settings(RESOURCE, host="flooded"), stack.log("flooded")
    target = f"benchmarks.apps:flooded_route({KNOWN!r})"
    server = stack.keep(gunicorn("flooded", target, port=free_port(), log=log, settings=settings, workers=1))
    return server.wait_until_answers(f"{server.url}/ready")
