"""How much memory a cached key takes: thousands of services' signed JWK Sets, read by a real trust store."""

import gc
import tracemalloc
from collections.abc import Callable, Iterator

from benchmarks.figures import Figure, Goal
from benchmarks.many_services import DOMAIN, ManyServices, shaped_like_a_key
from peerseal import TrustStore
from peerseal.protocol.names import service_id

KEYS = 2_000


def measure() -> Iterator[Figure]:
    """Python's own memory, which `tracemalloc` sees, per key: its service, kid, JWK, DER and ready Key."""
    tracemalloc.start()
    try:
        traced = _growth(lambda: tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    yield Figure(f"memory of a cached key, of {KEYS:,}", traced / KEYS / 1024, "KiB", goal=Goal("<", 4, "KiB"))


def _growth(bytes_in_use: Callable[[], int]) -> int:
    """The growth of a store that fetches the keys of KEYS services."""
    services = ["warm-up", *(f"service-{number}" for number in range(KEYS))]
    registry = ManyServices({service: [shaped_like_a_key()] for service in services})
    store = TrustStore("http://127.0.0.1:1", fetcher=registry)
    store.watch([service_id(DOMAIN, services[0])])
    gc.collect()
    before = bytes_in_use()
    store.watch([service_id(DOMAIN, service) for service in services[1:]])
    gc.collect()
    return bytes_in_use() - before
