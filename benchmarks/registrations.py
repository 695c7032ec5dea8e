"""Registrations per second, ledger entry included, compared with the same INSERTs alone.

The registry has two gunicorn workers, its database and the load run on the same cores, and every request was made
beforehand: an RSA-2048 key, its proof of possession, the MAC of a join token. Each uses a connection of its own, as
new services do; the two workers would share a few kept connections unevenly. For comparison two processes write the
same rows with the same statements, and do nothing else.
"""

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from multiprocessing.synchronize import Barrier as BarrierType
from pathlib import Path
from statistics import median

from benchmarks.figures import Figure, Goal
from benchmarks.load import drive
from benchmarks.newcomers import Newcomer, newcomers
from demo.stack import Stack
from peerseal.protocol.keys import PublicKey
from peerseal.protocol.ledger.entries import KEY_ADMITTED
from peerseal.protocol.names import make_kid, service_id
from registry.domain.keys import KeyRecord
from registry.storage.engine import create_engine
from registry.storage.queries import keys, ledger, services
from registry.storage.queries.ledger import Addition, Change
from registry.storage.unit import Store

ROUNDS = 4
REQUESTS = 300  # in a window
WORKERS = 2
_CREATED = (201,)
_PROOF = "." * 1_300  # as long as the proof of an RSA-2048 key


def measure(root: Path, database: str, goal: float, database_url: str | None = None) -> Iterator[Figure]:
    """The figures for a registry of its own on that database, everything of it in the folder ``root``."""
    with Stack(root, database_url=database_url) as stack:
        registry = stack.start_registry(workers=WORKERS)
        everybody = newcomers(stack, "newcomer", (2 * ROUNDS + 1) * REQUESTS)
        windows = iter([everybody[at : at + REQUESTS] for at in range(0, len(everybody), REQUESTS)])
        drive(
            registry.url,
            [one.request(stack.domain, time.time()) for one in next(windows)],
            statuses=_CREATED,
            kept=False,
        )
        registered, written, busy = [], [], []
        for _ in range(ROUNDS):
            requests = [one.request(stack.domain, time.time()) for one in next(windows)]
            window = drive(registry.url, requests, statuses=_CREATED, kept=False)
            registered.append(window.per_second)
            busy.append(window.busy)
            written.append(_write_alone(stack, next(windows)))
    ratio = median(mine / bare for mine, bare in zip(registered, written, strict=True))
    against = f"the same INSERTs alone: {median(written):.0f}/s"
    yield Figure(f"registrations ({database})", median(registered), "/s", against, ratio, Goal("≥", goal, "/s"))
    yield Figure(f"the load's own share of a core ({database})", 100 * median(busy), "%")


def _write_alone(stack: Stack, some: Sequence[Newcomer]) -> float:
    """Keys per second that two processes write."""
    url = stack.registry_settings.get("REGISTRY_DATABASE_URL") or f"sqlite:///{stack.root}/registry/registry.sqlite3"
    context = multiprocessing.get_context("spawn")
    ready, begin = context.Barrier(WORKERS + 1), context.Barrier(WORKERS + 1)
    shares = [[(one.service, one.key.public.spki) for one in some[start::WORKERS]] for start in range(WORKERS)]
    writers = [context.Process(target=_write, args=(url, stack.domain, share, ready, begin)) for share in shares]
    for writer in writers:
        writer.start()
    ready.wait()
    started = time.perf_counter()
    begin.wait()
    for writer in writers:
        writer.join()
    elapsed = time.perf_counter() - started
    assert all(writer.exitcode == 0 for writer in writers)
    return len(some) / elapsed


def _write(url: str, domain: str, share: Sequence[tuple[str, bytes]], ready: BarrierType, begin: BarrierType) -> None:
    """One process's share: the writes of checked registrations, one transaction each."""
    store, now = Store(create_engine(url)), int(time.time())
    rows = [(service, PublicKey.from_spki(spki)) for service, spki in share]
    with store.look() as connection:
        ledger.head(connection)
    ready.wait()
    begin.wait()
    for service, key in rows:
        kid = make_kid(service_id(domain, service), key.thumbprint)
        data = {"alg": key.alg, "jwk": dict(key.jwk), "active_from": now, "expires_at": now + 1}
        with store.write() as connection:
            before = ledger.lock_frontier(connection)
            appended = ledger.grown(before, now, Change(KEY_ADMITTED, service, kid, {}, {"proof": _PROOF}, data))
            seq = appended.entry.seq
            record = KeyRecord(key.thumbprint, service, key.spki, seq, {}, now, now + 1, now + 1)
            change = services.change(connection, service, seq)
            ledger.append_each(connection, [Addition(appended, (keys.addition(record, None), change))])
