"""The cost of a hundred times as many keys: the same calls at two registries in one process, one small and one large.

Both are on one PostgreSQL server, and are asked in turn: for a registration, and for a signed JWK Set that is not in
memory, inclusion proofs and all.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

from sqlalchemy import insert

from benchmarks.figures import Figure, Goal
from benchmarks.measured_registry import MeasuredRegistry
from peerseal.protocol.keys import KeyPair, PublicKey
from peerseal.protocol.ledger.entries import KEY_ADMITTED
from peerseal.protocol.names import make_kid, service_id
from registry.domain.keys import KeyRecord
from registry.services.registry import Registry
from registry.services.setup.initialise import initialise
from registry.settings import Settings
from registry.storage.batched_writes import Write
from registry.storage.engine import create_engine
from registry.storage.queries import keys, ledger
from registry.storage.queries.ledger import Change
from registry.storage.tables import services
from registry.storage.unit import Store
from tests.support.postgres import Postgres

DOMAIN = "bench.internal"
SMALL, LARGE = 1_000, 100_000
KEYS_OF_A_SERVICE = 10
CALLS = 300
_BATCH = 1_000
_LIVES = 7 * 24 * 3600
_GOAL = Goal("<", 1.5)
_PROOF = "." * 900  # as long as the proof of a P-256 key


def measure(folder: Path, postgres: Postgres) -> Iterator[Figure]:
    """The median of each call at 100,000 keys, compared with the same at 1,000."""
    small, large = (filled(folder / str(size), postgres.new_database(), size) for size in (SMALL, LARGE))
    what: dict[str, Callable[[MeasuredRegistry, int], object]] = {
        "a registration": MeasuredRegistry.register,
        "a signed JWK Set, not in memory": MeasuredRegistry.key_set,
    }
    for name, call in what.items():
        times: dict[int, list[float]] = {SMALL: [], LARGE: []}
        for number in range(CALLS + 20):
            for one in (small, large) if number % 2 else (large, small):
                started = time.perf_counter()
                call(one, number % (SMALL // KEYS_OF_A_SERVICE))
                times[one.size].append(time.perf_counter() - started)
        before, after = (1e3 * median(times[size][20:]) for size in (SMALL, LARGE))
        yield Figure(
            f"{name}, {LARGE:,} keys", after, "ms", f"with {SMALL:,} keys: {before:.2f} ms", after / before, _GOAL
        )


def filled(home: Path, database_url: str, size: int) -> MeasuredRegistry:
    """A registry that is initialised, and has ten keys for each service."""
    settings = Settings.from_environ({"REGISTRY_HOME": str(home), "REGISTRY_DATABASE_URL": database_url})
    initialise(settings, Store(create_engine(database_url)), DOMAIN)
    _fill(Registry(settings), size)
    return MeasuredRegistry.of(settings, size)


def _fill(registry: Registry, size: int) -> None:
    """The rows of keys and their entries, ten for each service."""
    now = int(time.time())
    for first in range(0, size, _BATCH):
        names = [f"s{at // KEYS_OF_A_SERVICE}" for at in range(first, first + _BATCH)]
        pairs = [(name, KeyPair.generate("ES256").public) for name in names]
        changes = [_admission(service, key, now) for service, key in pairs]
        with registry.store.write() as connection:
            seqs = [entry.seq for entry in ledger.append(connection, now, *changes).entries]
            rows = [_row(service, key, seq, now) for (service, key), seq in zip(pairs, seqs, strict=True)]
            connection.execute(rows[0].statement, [row.parameters for row in rows])
            named = {service: seq for (service, _), seq in zip(pairs, seqs, strict=True)}
            connection.execute(insert(services), [{"name": name, "seq": seq} for name, seq in named.items()])


def _admission(service: str, key: PublicKey, now: int) -> Change:
    kid = make_kid(service_id(DOMAIN, service), key.thumbprint)
    data = {"alg": key.alg, "jwk": dict(key.jwk), "active_from": now, "expires_at": now + _LIVES}
    return Change(KEY_ADMITTED, service, kid, {}, {"proof": _PROOF}, data)


def _row(service: str, key: PublicKey, seq: int, now: int) -> Write:
    end = now + _LIVES
    return keys.addition(KeyRecord(key.thumbprint, service, key.spki, seq, {}, now, end, end), None)
