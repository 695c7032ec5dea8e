"""One process of many peers that watch the registry. Each peer is like a separate host: it has its own trust store,
thread and connections, and shares no folder.

One thread looks at all of them every few milliseconds, in memory, as a verifier does at a request.
"""

import logging
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection

from peerseal import TrustLimits, TrustStore
from tests.support.revoked import is_revoked

LOOK = 0.02
"""Seconds between two looks, and the greatest error of a measured time."""
_PATIENCE = 60.0  # seconds until a peer that did not refuse is given up


def watch(url: str, known: str, peers: int, limits: TrustLimits, parent: Connection) -> None:
    """Have that many peers know the keys of the service that has the kid ``known``.

    For each received kid: check that all peers accept it, and confirm. Once all refuse it, send the time of each
    peer's first refusal, and the seconds of CPU in between. None ends the process, and the peers' threads with it.
    """
    logging.disable(logging.WARNING)
    stores = [TrustStore(url, limits=limits) for _ in range(peers)]
    for store in stores:
        store.key(known)  # fetches its service's keys, and begins to watch
        time.sleep(limits.poll_interval / peers)  # so that those who poll do not ask in step
    parent.send(None)
    while (kid := parent.recv()) is not None:
        for store in stores:
            store.key(kid)
        parent.send(None)
        cpu = time.process_time()
        times = _first_refusals(stores, kid)
        parent.send((times, time.process_time() - cpu))


def _first_refusals(stores: Sequence[TrustStore], kid: str) -> list[float]:
    """By the clock that all processes share (`time.monotonic`), for each peer that refused."""
    accepting, times, deadline = list(stores), list[float](), time.monotonic() + _PATIENCE
    while accepting and time.monotonic() < deadline:
        time.sleep(LOOK)
        refused = [store for store in accepting if is_revoked(store, kid)]
        times += [time.monotonic()] * len(refused)
        accepting = [store for store in accepting if store not in refused]
    return times
