"""A service of 10,000 hosts that rotate daily: what its key set costs the registry and a client, and how long the
revocation of a key takes that vouched for all the others.

The service has 10,000 active keys, and 60,000 that were retired within the week. A change is a rotation: one key is
admitted, and one is retired.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

from sqlalchemy import insert

from benchmarks.figures import Figure
from peerseal import TrustLimits, TrustStore
from peerseal.errors import PeersealError
from peerseal.protocol.documents.key_set import PARTS, part_of
from peerseal.protocol.encoding import canonical_json
from peerseal.protocol.keys import KeyPair, PublicKey
from peerseal.protocol.ledger.entries import KEY_ADMITTED, KEY_RETIRED
from peerseal.protocol.names import make_kid, service_id
from peerseal.transport.fetch import Answer, Fetcher
from registry.domain import lifecycle
from registry.domain.keys import KeyRecord
from registry.services.access.operators import LOCAL
from registry.services.keys.records import Reason
from registry.services.registry import Registry
from registry.services.setup.initialise import initialise
from registry.settings import Settings
from registry.storage.engine import create_engine
from registry.storage.queries import keys, ledger
from registry.storage.queries import services as service_rows
from registry.storage.queries.ledger import Change
from registry.storage.tables import services
from registry.storage.unit import Store

DOMAIN, SERVICE = "bench.internal", "fleet"
OWNER = service_id(DOMAIN, SERVICE)
HOSTS, ROTATIONS, CHANGES = 10_000, 6, 20
_BATCH = 1_000
_LIVES = 7 * 24 * 3600


def measure(folder: Path, database: str, database_url: str | None = None) -> Iterator[Figure]:
    """The figures for a registry of its own on that database."""
    fleet = Fleet(folder, database_url or f"sqlite:///{folder}.db")
    yield fleet.figure(f"a key set of {HOSTS:,} keys, nothing remembered ({database})", fleet.key_set)
    sets, parts = list[float](), list[float]()
    for _ in range(CHANGES):
        number = part_of(fleet.rotate().thumbprint)
        sets.append(seconds(fleet.key_set))
        parts.append(seconds(partial(fleet.part, number)))
    yield Figure(f"the same after a rotation ({database})", 1e3 * median(sets), "ms")
    yield Figure(f"a part that changed ({database})", 1e3 * median(parts), "ms")
    yield from _figures_of_client(fleet, database)
    yield fleet.figure(f"revocation of {1 + (1 + ROTATIONS) * HOSTS:,} keys ({database})", fleet.revoke)
    yield fleet.figure(f"the key set after it ({database})", fleet.key_set)


def _figures_of_client(fleet: "Fleet", database: str) -> Iterator[Figure]:
    """A client that knows all keys. The registry has made all documents before it is asked."""
    fetcher = _Direct(fleet)
    fleet.make_all()
    limits = TrustLimits(poll_interval=3600.0, wait=0.0)
    trust = TrustStore("http://registry.bench", pin=fleet.pin, fetcher=fetcher, limits=limits)
    kids = [make_kid(OWNER, record.thumbprint) for record in fleet.active]
    yield fleet.figure(f"a client gets all {HOSTS:,} keys ({database})", lambda: [trust.key(kid) for kid in kids])
    yield Figure(f"bytes of that ({database})", fetcher.received / 1e6, "MB")
    times, received = list[float](), list[float]()
    for _ in range(CHANGES):
        before, new = fetcher.received, fleet.rotate()
        fleet.make_all()
        times.append(seconds(trust.refresh))
        received.append(fetcher.received - before)
        trust.key(make_kid(OWNER, new.thumbprint))
    yield Figure(f"a client follows a rotation ({database})", 1e3 * median(times), "ms")
    yield Figure(f"bytes of that ({database})", median(received) / 1e3, "kB")
    trust.stop()


def seconds(call: Callable[[], object]) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


class Fleet:
    """A registry with that service, in this process. ``root`` vouched for all other keys."""

    def __init__(self, home: Path, database_url: str) -> None:
        settings = Settings.from_environ({"REGISTRY_HOME": str(home), "REGISTRY_DATABASE_URL": database_url})
        self.pin = initialise(settings, Store(create_engine(database_url)), DOMAIN).pin
        self.registry = Registry(settings)
        with self.registry.store.write() as connection:
            connection.execute(insert(services), [{"name": SERVICE, "seq": 0}])
        [self.root] = self.admit(1, None)
        for _ in range(ROTATIONS):
            self.retire(self.admit(HOSTS, self.root.thumbprint))
        self.active = self.admit(HOSTS, self.root.thumbprint)
        with self.registry.store.engine.connect() as connection:
            connection.exec_driver_sql("ANALYZE")  # as the server does by itself within a minute
            connection.commit()

    def admit(self, number: int, voucher: str | None) -> list[KeyRecord]:
        """So many new keys."""
        made = [KeyPair.generate("ES256").public for _ in range(number)]
        admitted = list[KeyRecord]()
        for first in range(0, number, _BATCH):
            admitted += self._admit(made[first : first + _BATCH], voucher)
        return admitted

    def _admit(self, made: list[PublicKey], voucher: str | None) -> list[KeyRecord]:
        now, by = int(time.time()), {} if voucher is None else {"kid": make_kid(OWNER, voucher)}
        with self.registry.store.write(SERVICE) as connection:
            changes = [_admission(public, by, now) for public in made]
            entries = ledger.append(connection, now, *changes).entries
            records = [
                lifecycle.admitted(public, SERVICE, by, seq=entry.seq, start=now, end=now + _LIVES)
                for public, entry in zip(made, entries, strict=True)
            ]
            additions = [keys.addition(record, voucher) for record in records]
            connection.execute(additions[0].statement, [addition.parameters for addition in additions])
            service_rows.changed(connection, SERVICE, entries[-1].seq)
        return records

    def retire(self, records: list[KeyRecord]) -> None:
        """Retire these keys, an hour ago."""
        then = int(time.time()) - 3600
        changes = [Change(KEY_RETIRED, SERVICE, make_kid(OWNER, record.thumbprint), LOCAL) for record in records]
        with self.registry.store.write(SERVICE) as connection:
            entries = ledger.append(connection, then, *changes).entries
            keys.end(connection, [replace(record, active_until=then) for record in records])
            service_rows.changed(connection, SERVICE, entries[-1].seq)

    def rotate(self) -> KeyRecord:
        """One host rotates; returns its new key."""
        [new] = self.admit(1, self.root.thumbprint)
        self.registry.ending.end(SERVICE, self.active.pop().thumbprint, Reason.RETIRED, LOCAL)
        self.active.insert(0, new)
        return new

    def revoke(self) -> None:
        """Revoke the key that vouched for all."""
        self.registry.ending.end(SERVICE, self.root.thumbprint, Reason.COMPROMISED, LOCAL)

    def key_set(self, at_least: int = 0) -> bytes:
        """The signed set."""
        return self.registry.publisher.signed_key_set(SERVICE, at_least).body

    def part(self, number: int, at_least: int = 0) -> bytes:
        """A part of it."""
        return self.registry.publisher.part(SERVICE, number, at_least).body

    def make_all(self) -> None:
        """Have the registry make the set and its parts."""
        self.key_set()
        for number in range(PARTS):
            self.part(number)

    def figure(self, name: str, call: Callable[[], object]) -> Figure:
        """How long one call takes."""
        return Figure(name, seconds(call), "s")


def _admission(public: PublicKey, by: Mapping[str, str], now: int) -> Change:
    data = {"alg": public.alg, "jwk": dict(public.jwk), "active_from": now, "expires_at": now + _LIVES}
    proof = {"proof": "." * 900}  # as long as the proof of a P-256 key
    return Change(KEY_ADMITTED, SERVICE, make_kid(OWNER, public.thumbprint), by, proof, data)


class _Direct(Fetcher):
    """A client's calls, without HTTP. ``received`` counts the bytes of the answers."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.received = 0

    def target(self, path: str) -> str:
        return path

    def call(self, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        plain, _, query = path.partition("?")
        asked = {name: int(value) for name, _, value in (one.partition("=") for one in query.split("&") if one)}
        try:
            found = self._body(plain, asked)
        except PeersealError:
            return Answer(404, b"")
        self.received += len(found)
        return Answer(200, found)

    def _body(self, path: str, asked: Mapping[str, int]) -> bytes:
        registry, name = self._fleet.registry, path.rpartition("/")[2].removesuffix(".jwt")
        if path == "/.well-known/peerseal-registry":
            return registry.authority.newest().jws.encode()
        if path == "/v1/changes":
            return registry.changes.since(asked["since"]).body
        if path == "/ledger/proof":
            return canonical_json(registry.ledger.consistency(asked["from"], asked["to"]))
        if "/current/" in path:
            return registry.current.block(int(name)).body
        if name == "jwks":
            return self._fleet.key_set(asked.get("seq", 0))
        return self._fleet.part(int(name), asked.get("seq", 0))
