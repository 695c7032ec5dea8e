"""How much memory a cached key takes: thousands of services' signed JWK Sets, read by a real trust store."""

import gc
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from secrets import randbits

from benchmarks.figures import Figure, Goal
from peerseal import TrustStore
from peerseal.peers.fetch import Answer
from peerseal.protocol.documents import ACTIVE, JwkSetDocument, RegistryKeys, SignedKey, sign_document
from peerseal.protocol.encoding import b64url
from peerseal.protocol.keys import KeyPair, PublicKey
from peerseal.protocol.names import make_kid, registry_id, service_id

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
    store = TrustStore("http://127.0.0.1:1", fetcher=_Registry())
    store.watch([service_id(DOMAIN, "warm-up")])
    gc.collect()
    before = bytes_in_use()
    store.watch([service_id(DOMAIN, f"service-{number}") for number in range(KEYS)])
    gc.collect()
    return bytes_in_use() - before


class _Registry:
    """A Fetcher that answers for any service with one RSA-2048 key. The keys are only shaped like keys: a modulus of
    random bits takes as much room as one that somebody spent a tenth of a second on."""

    def __init__(self) -> None:
        self._root, self._signing = KeyPair.generate("ES256"), KeyPair.generate("ES256")
        self._now = int(time.time())

    def call(self, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        """The root's document, or a service's signed set."""
        if path.startswith("/.well-known"):
            return Answer(200, self._root_document().encode("ascii"))
        return Answer(200, self._key_set(path.split("/")[3]).encode("ascii"))

    def target(self, path: str) -> str:
        """See Fetcher."""
        return path

    def _root_document(self) -> str:
        ledger_key = {"kty": "OKP", "crv": "Ed25519", "x": b64url(bytes(32))}
        frame = registry_id(DOMAIN), DOMAIN, self._now, self._now + 3600
        return sign_document(
            RegistryKeys(*frame, 1, self._root.public, (self._signing.public,), ledger_key), self._root
        )

    def _key_set(self, service: str) -> str:
        subject, public = service_id(DOMAIN, service), _shaped_like_a_key()
        key = SignedKey(make_kid(subject, public.thumbprint), public, ACTIVE, self._now, self._now + 3600, 0)
        document = JwkSetDocument(registry_id(DOMAIN), subject, self._now, self._now + 3600, 1, 1, (key,))
        return sign_document(document, self._signing)


def _shaped_like_a_key() -> PublicKey:
    modulus = 1 << 2047 | randbits(2047) | 1
    return PublicKey.from_jwk({"kty": "RSA", "n": b64url(modulus.to_bytes(256, "big")), "e": "AQAB"})
