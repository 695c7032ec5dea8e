"""A registry in memory with thousands of services that is quick to fill, for costs that grow with their number."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from secrets import randbits
from typing import Any
from urllib.parse import parse_qs, urlsplit

from peerseal.protocol.documents.changes import Changes
from peerseal.protocol.documents.frame import sign_document
from peerseal.protocol.documents.key_set import ACTIVE, KeySetDocument, ListedKey
from peerseal.protocol.documents.policy import PolicyDocument
from peerseal.protocol.documents.registry_keys import RegistryKeys
from peerseal.protocol.encoding import b64url, canonical_json
from peerseal.protocol.keys import KeyPair, PublicKey
from peerseal.protocol.ledger.checkpoint import encode_proof
from peerseal.protocol.ledger.entries import REGISTRY_CREATED, Admission, Entry
from peerseal.protocol.names import make_kid, registry_id, service_id
from peerseal.testing import MemoryLedger
from peerseal.transport.fetch import Answer, Fetcher

DOMAIN = "bench.internal"


@dataclass(frozen=True, slots=True)
class _Key:
    public: PublicKey
    admission: Admission


class ManyServices(Fetcher):
    """A Fetcher that answers for ``services``, each with its keys, all of them in the ledger, and none changing."""

    def __init__(self, services: Mapping[str, Sequence[PublicKey]]) -> None:
        self._root, self.signing = KeyPair.generate("ES256"), KeyPair.generate("ES256")
        self._now = int(time.time())
        self.ledger = MemoryLedger(DOMAIN)
        self._keys = {service: [self._admitted(service, key) for key in keys] for service, keys in services.items()}
        self._checkpoint = self.ledger.checkpoint()

    def call(self, method: str, path: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Answer:
        """The registry keys document, a consistency proof, a service's key set, an absent policy, or no changes."""
        parts = urlsplit(path)
        *_, service, name = parts.path.split("/")
        answer: dict[str, Callable[[], str]] = {
            "peerseal-registry": self._root_document,
            "proof": lambda: self._proof(parse_qs(parts.query)),
            "jwks.jwt": lambda: self.key_set(service),
            "policy.jwt": lambda: self._no_policy(service),
            "changes": lambda: self._no_changes(int(parse_qs(parts.query)["since"][0])),
        }
        return Answer(200, answer[name]().encode("ascii"))

    def target(self, path: str) -> str:
        """See Fetcher."""
        return path

    def hang_up(self) -> None:
        """See Fetcher: no question is kept."""

    def reconnect(self) -> None:
        """See Fetcher: no question is kept."""

    def kids(self, service: str) -> list[str]:
        """Those of its keys."""
        return [make_kid(service_id(DOMAIN, service), key.public.thumbprint) for key in self._keys[service]]

    def grow(self) -> None:
        """Append an entry about another key; documents cover it from now on."""
        seq = len(self.ledger.entries) + 1
        self.ledger.append(Entry(seq, self._now, REGISTRY_CREATED, None, None, {}, None, {}))
        self._checkpoint = self.ledger.checkpoint()

    def key_set(self, service: str) -> str:
        """The signed set, as of now."""
        subject, size = service_id(DOMAIN, service), len(self.ledger.entries)
        keys = tuple(self._signed(subject, key) for key in self._keys[service])
        document = KeySetDocument(**self._frame(subject), **self._place(size), keys=keys)
        return sign_document(document, self.signing)

    def _no_policy(self, service: str) -> str:
        frame = self._frame(service_id(DOMAIN, service)) | self._place(0)
        return sign_document(PolicyDocument(**frame, policy=None), self.signing)

    def _no_changes(self, since: int) -> str:
        """No change since that entry: for a store that asks because it did not run for longer than a poll."""
        size = len(self.ledger.entries)
        return sign_document(
            Changes(
                **self._frame(DOMAIN), since=since, seq=size, checkpoint=self._checkpoint, services=(), reset=False
            ),
            self.signing,
        )

    def _frame(self, subject: str) -> dict[str, Any]:
        times = {"issued_at": self._now, "expires_at": self._now + 3600}
        return {"issuer": registry_id(DOMAIN), "subject": subject, **times}

    def _place(self, seq: int) -> dict[str, Any]:
        return {"seq": seq, "head": len(self.ledger.entries), "checkpoint": self._checkpoint}

    def _signed(self, subject: str, key: _Key) -> ListedKey:
        kid, admission = make_kid(subject, key.public.thumbprint), key.admission
        proof = self.ledger.inclusion(admission.index)
        return ListedKey(kid, key.public, ACTIVE, admission.expires_at, admission, proof)

    def _admitted(self, service: str, public: PublicKey) -> _Key:
        """A new key, and what the ledger says of it."""
        by = {"join_token": "a" * 16}
        admission = Admission(len(self.ledger.entries), self._now, self._now + 3600, by, "A" * 43)
        self.ledger.append(admission.entry(DOMAIN, service, public))
        return _Key(public, admission)

    def _root_document(self) -> str:
        keys = RegistryKeys(
            **self._frame(DOMAIN),
            version=1,
            root=self._root.public,
            signing_keys=(self.signing.public,),
            ledger_key=self.ledger.jwk,
        )
        return sign_document(keys, self._root)

    def _proof(self, query: Mapping[str, Sequence[str]]) -> str:
        old, new = int(query["from"][0]), int(query["to"][0])
        proof = encode_proof(self.ledger.consistency(old, new))
        return canonical_json({"from": old, "to": new, "proof": proof}).decode("ascii")


def shaped_like_a_key() -> PublicKey:
    """An RSA-2048 key that is only stored: random bits take as much memory as a real modulus, whose generation takes a
    tenth of a second."""
    modulus = 1 << 2047 | randbits(2047) | 1
    return PublicKey.from_jwk({"kty": "RSA", "n": b64url(modulus.to_bytes(256, "big")), "e": "AQAB"})
