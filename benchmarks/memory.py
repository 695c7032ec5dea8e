"""How much memory a cached key takes: thousands of services' signed JWK Sets, read by a real trust store."""

import gc
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from secrets import randbits

from benchmarks.figures import Figure, Goal
from peerseal import TrustStore
from peerseal.peers.fetch import Answer, Fetcher
from peerseal.protocol.documents import ACTIVE, JwkSetDocument, RegistryKeys, SignedKey, sign_document
from peerseal.protocol.encoding import b64url
from peerseal.protocol.keys import KeyPair, PublicKey
from peerseal.protocol.ledger import Admission
from peerseal.protocol.names import make_kid, registry_id, service_id
from peerseal.testing import MemoryLedger

KEYS = 5_000
DOMAIN = "bench.internal"


def measure() -> Iterator[Figure]:
    """Python's own memory, which `tracemalloc` sees, per key: its service, kid, JWK, DER and ready Key."""
    tracemalloc.start()
    try:
        traced = _growth(lambda: tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    yield Figure(f"memory of a cached key, of {KEYS:,}", traced / KEYS / 1024, "KiB", goal=Goal("<", 4, "KiB"))


def _growth(bytes_in_use: Callable[[], int]) -> int:
    """By how much a store grows that fetches KEYS services' keys."""
    services = ["warm-up", *(f"service-{number}" for number in range(KEYS))]
    store = TrustStore("http://127.0.0.1:1", fetcher=_Registry(services))
    store.watch([service_id(DOMAIN, services[0])])
    gc.collect()
    before = bytes_in_use()
    store.watch([service_id(DOMAIN, service) for service in services[1:]])
    gc.collect()
    return bytes_in_use() - before


class _Registry(Fetcher):
    """A Fetcher that answers for these services, each with one RSA-2048 key in the ledger. The keys are only shaped
    like keys: a modulus of random bits takes as much room as one that somebody spent a tenth of a second on."""

    def __init__(self, services: list[str]) -> None:
        self._root, self._signing = KeyPair.generate("ES256"), KeyPair.generate("ES256")
        self._now = int(time.time())
        self._ledger = MemoryLedger(DOMAIN)
        self._keys = {service: self._admitted(service) for service in services}
        self._checkpoint = self._ledger.checkpoint()

    def call(self, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        """The root's document, or a service's signed set."""
        if path.startswith("/.well-known"):
            return Answer(200, self._root_document().encode("ascii"))
        return Answer(200, self._key_set(path.split("/")[3]).encode("ascii"))

    def target(self, path: str) -> str:
        """See Fetcher."""
        return path

    def _admitted(self, service: str) -> tuple[PublicKey, Admission]:
        """A new key, and what the ledger says of it."""
        public, by = _shaped_like_a_key(), {"join_token": "a" * 16}
        admission = Admission(len(self._ledger.entries), self._now, self._now + 3600, by, "A" * 43)
        self._ledger.append(admission.entry(DOMAIN, service, public))
        return public, admission

    def _root_document(self) -> str:
        frame = registry_id(DOMAIN), DOMAIN, self._now, self._now + 3600
        return sign_document(
            RegistryKeys(*frame, 1, self._root.public, (self._signing.public,), self._ledger.jwk), self._root
        )

    def _key_set(self, service: str) -> str:
        subject, size = service_id(DOMAIN, service), len(self._ledger.entries)
        public, admission = self._keys[service]
        kid, proof = make_kid(subject, public.thumbprint), self._ledger.inclusion(admission.index)
        key = SignedKey(kid, public, ACTIVE, admission.expires_at, admission, proof)
        frame = registry_id(DOMAIN), subject, self._now, self._now + 3600
        return sign_document(JwkSetDocument(*frame, size, size, self._checkpoint, (key,)), self._signing)


def _shaped_like_a_key() -> PublicKey:
    modulus = 1 << 2047 | randbits(2047) | 1
    return PublicKey.from_jwk({"kty": "RSA", "n": b64url(modulus.to_bytes(256, "big")), "e": "AQAB"})
