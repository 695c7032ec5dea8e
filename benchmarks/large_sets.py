"""A service of 10,000 hosts that rotate daily: what its key set costs the registry and a client, and how long the
revocation of a key takes that vouched for all the others.

The hosts' keys are 10,000 active ones and 60,000 that were retired within the week. A change is a rotation: one key is
admitted, and one is retired.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

from sqlalchemy import insert

from benchmarks.figures import Figure
from peerseal import TrustLimits, TrustStore
from peerseal.errors import FetchError, PeersealError
from peerseal.protocol.documents.key_set import part_of
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.ledger.entries import KEY_ADMITTED, KEY_RETIRED
from peerseal.protocol.names import make_kid, registry_id, service_id
from peerseal.transport.fetch import Answer, Fetcher
from registry.domain import lifecycle
from registry.domain.keys import KeyRecord
from registry.limits import Limits
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
HOSTS, ROTATIONS, CHANGES = 10_000, 6, 30
_BATCH = 1_000
_LIVES = 7 * 24 * 3600


class LargeSet:
    """A registry with that service, in this process. ``root`` vouched for all other keys."""

    def __init__(self, home: Path, database_url: str) -> None:
        environ = {"REGISTRY_HOME": str(home), "REGISTRY_DATABASE_URL": database_url}
        self.settings = Settings.from_environ(environ, limits=Limits())
        self.pin = initialise(self.settings, Store(create_engine(database_url)), DOMAIN).pin
        self.registry = Registry(self.settings)
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
        admitted, now = list[KeyRecord](), int(time.time())
        by = {"local": "bench"} if voucher is None else {"kid": make_kid(OWNER, voucher)}
        for first in range(0, number, _BATCH):
            made = [KeyPair.generate("ES256").public for _ in range(first, min(first + _BATCH, number))]
            changes = [
                Change(
                    KEY_ADMITTED,
                    SERVICE,
                    make_kid(OWNER, key.thumbprint),
                    by,
                    {"proof": "." * 900},
                    {"alg": key.alg, "jwk": dict(key.jwk), "active_from": now, "expires_at": now + _LIVES},
                )
                for key in made
            ]
            with self.registry.store.write(SERVICE) as connection:
                entries = ledger.append(connection, now, *changes).entries
                for key, entry in zip(made, entries, strict=True):
                    times = {"seq": entry.seq, "start": now, "end": now + _LIVES}
                    admitted.append(lifecycle.admitted(key, SERVICE, by, **times))
                    addition = keys.addition(admitted[-1], voucher)
                    connection.execute(addition.statement, addition.parameters)
                service_rows.changed(connection, SERVICE, entries[-1].seq)
        return admitted

    def retire(self, records: list[KeyRecord]) -> None:
        """Retire these keys, an hour ago as far as lists are concerned."""
        now = int(time.time())
        for first in range(0, len(records), _BATCH):
            batch = records[first : first + _BATCH]
            changes = [Change(KEY_RETIRED, SERVICE, make_kid(OWNER, record.thumbprint), LOCAL) for record in batch]
            with self.registry.store.write(SERVICE) as connection:
                entries = ledger.append(connection, now - 3600, *changes).entries
                keys.end(connection, [replace(record, active_until=now - 3600) for record in batch])
                service_rows.changed(connection, SERVICE, entries[-1].seq)

    def rotate(self) -> KeyRecord:
        """One host rotates; returns its new key."""
        [new] = self.admit(1, self.root.thumbprint)
        self.registry.ending.end(SERVICE, self.active.pop().thumbprint, Reason.RETIRED, LOCAL)
        self.active.insert(0, new)
        return new

    def key_set(self) -> bytes:
        """The signed set."""
        return self.registry.publisher.signed_key_set(SERVICE).body


class _Direct(Fetcher):
    """A client's calls, without HTTP. ``received`` counts the bytes of the documents about the service."""

    def __init__(self, large: LargeSet) -> None:
        self._registry, self.received = large.registry, 0

    def target(self, path: str) -> str:
        return path

    def call(self, method: str, path: str, **_: object) -> Answer:
        plain, _, query = path.partition("?")
        try:
            body = self._body(plain, query)
        except PeersealError as error:
            raise FetchError(str(error), 404) from error
        self.received += len(body) if "/services/" in plain else 0
        return Answer(200, body)

    def _body(self, path: str, query: str) -> bytes:
        registry = self._registry
        asked = dict(one.split("=") for one in query.split("&") if one)
        if path == "/.well-known/peerseal-registry":
            return registry.authority.newest().jws.encode()
        if path == "/v1/changes":
            return registry.changes.since(int(asked["since"])).body
        if path == "/ledger/proof":
            import json

            return json.dumps(registry.ledger.consistency(int(asked["from"]), int(asked["to"]))).encode()
        if path.endswith("/jwks.jwt"):
            return registry.publisher.signed_key_set(SERVICE, int(asked.get("seq", 0))).body
        if "/jwks/" in path:
            number = int(path.rpartition("/")[2].removesuffix(".jwt"))
            return registry.publisher.part(SERVICE, number, int(asked.get("seq", 0))).body
        raise FetchError(path, 404)
