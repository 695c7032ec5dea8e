"""The cost of more services in a trust store: a look-up by kid, and a whole verification.

Stores of ten, of a thousand and of ten thousand services, filled from one registry in memory, are asked in turn for the
keys of the ten services that all know. A look-up of a random one of ten thousand finds little in the processor's
caches; so does a look-up in a plain dict of the same size, which is measured too.
"""

import random
from collections.abc import Callable, Iterator, Sequence

from benchmarks.figures import Figure, Goal
from benchmarks.many_services import DOMAIN, ManyServices, shaped_like_a_key
from benchmarks.newcomers import rsa_keys
from benchmarks.requests_made import AUDIENCE, TARGET, signed_request
from benchmarks.timing import Contender, Timings, interleaved
from peerseal import TrustLimits, TrustStore, Verifier
from peerseal.protocol.names import service_id

SIZES = FEW, MANY, MOST = 10, 1_000, 10_000
ROUNDS = 9
LOOKUPS, TOKENS = 2_000, 200  # of a round

_QUIET = TrustLimits(poll_interval=3600)  # no background thread while this is timed
_GOAL = Goal("<", 1.5)
_ANY, _DICT = f"a look-up of any of {MOST:,} services", "a dict"


def measure() -> Iterator[Figure]:
    """The figures."""
    keys = list(rsa_keys(FEW))
    services = {f"s{at}": [keys[at].public if at < FEW else shaped_like_a_key()] for at in range(MOST)}
    registry = ManyServices(services)
    kids = [registry.kids(service)[0] for service in services]
    stores = {size: _store(registry, list(services)[:size]) for size in SIZES}

    looked_up = {str(size): _look_up(store.key, kids[:FEW]) for size, store in stores.items()}
    looked_up[_ANY] = _look_up(stores[MOST].key, kids)
    looked_up[_DICT] = _look_up({kid[:1] + kid[1:]: [kid] for kid in kids}.get, kids)  # whose strings are others, too
    places = ([random.random() for _ in range(LOOKUPS)] for _ in range(ROUNDS))  # noqa: S311 - which kid
    timings = interleaved(looked_up, places)
    yield from _figures("a look-up by kid", timings)
    against = f"a dict of as many: {timings.micros(_DICT):.2f} µs"
    yield Figure(_ANY, timings.micros(_ANY), "µs", against, timings.ratio(_ANY, _DICT))

    verified = {str(size): _verify(store) for size, store in stores.items()}
    tokens = ([signed_request(kids[at % FEW], keys[at % FEW], DOMAIN) for at in range(TOKENS)] for _ in range(ROUNDS))
    yield from _figures("full verification", interleaved(verified, tokens))


def _figures(what: str, timings: Timings) -> Iterator[Figure]:
    few = str(FEW)
    for size in (MANY, MOST):
        against = f"of {FEW}: {timings.micros(few):.2f} µs"
        ratio = timings.ratio(str(size), few)
        yield Figure(f"{what}, store of {size:,} services", timings.micros(str(size)), "µs", against, ratio, _GOAL)


def _store(registry: ManyServices, services: Sequence[str]) -> TrustStore:
    store = TrustStore("http://127.0.0.1:1", fetcher=registry, limits=_QUIET)
    store.watch([service_id(DOMAIN, service) for service in services])
    return store


def _look_up(look_up: Callable[[str], object], kids: Sequence[str]) -> Contender[float]:
    def prepare(places: Sequence[float]) -> Callable[[], None]:
        asked = [kids[int(place * len(kids))] for place in places]

        def run() -> None:
            for kid in asked:
                look_up(kid)

        return run

    return prepare


def _verify(store: TrustStore) -> Contender[str]:
    verify = Verifier(store, audience=AUDIENCE, allow={"*": ()}).verify

    def prepare(tokens: Sequence[str]) -> Callable[[], None]:
        def run() -> None:
            for token in tokens:
                verify(token, method="GET", target=TARGET)

        return run

    return prepare
