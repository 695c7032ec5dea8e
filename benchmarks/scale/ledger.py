"""The ledger of a large registry, made in processes: real keys, proofs and vouchers, signed as services sign them.

Each service has a join token and ten keys: five that the token admitted, and five more that these vouched for, as after
a rotation. A family is one key and all that it vouched for. All keys are P-256 ones, since a million RSA keys
take hours.
"""

import multiprocessing
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from secrets import token_hex
from typing import Any

from benchmarks.requests_made import token_of
from peerseal.protocol.encoding import canonical_json
from peerseal.protocol.keys import KeyPair
from peerseal.protocol.ledger.entries import JOIN_TOKEN_CREATED, KEY_ADMITTED, Entry, evidence_digest
from peerseal.protocol.ledger.evidence import PROOF, VOUCH
from peerseal.protocol.names import make_kid, registry_id, service_id
from peerseal.protocol.tokens.proof import sign_proof
from registry.services.access.operators import LOCAL

KEYS_OF_A_SERVICE, JOINED = 10, 5
_LIVES = 7 * 24 * 3600
_CHUNK = 50
"""Services that one process makes at a time."""


@dataclass(frozen=True, slots=True)
class Written:
    """Entries in their order: the body of each, and its evidence, None for one without."""

    bodies: list[bytes] = field(default_factory=list)
    evidence: list[bytes | None] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Part:
    """Some services in a row: ``first`` is the number of their first entry, ``names`` are theirs with the number of
    keys that the join token and that other keys admit to each."""

    domain: str
    first: int
    now: int
    names: tuple[tuple[str, int, int], ...]

    @property
    def entries(self) -> int:
        """How many it makes."""
        return sum(1 + joined + vouched for _, joined, vouched in self.names)


@dataclass(frozen=True, slots=True)
class Size:
    """How many services there are, with ten keys each, and how many families, with how many ``descendants`` each."""

    services: int
    families: int
    descendants: int

    @property
    def keys(self) -> int:
        """Of all."""
        return self.services * KEYS_OF_A_SERVICE + self.families * (1 + self.descendants)


def parts(domain: str, before: int, now: int, size: Size) -> Iterator[Part]:
    """The parts of a ledger that has ``before`` entries already."""
    named = [(f"family-{at}", 1, size.descendants) for at in range(size.families)]
    named += [(f"s{at}", JOINED, KEYS_OF_A_SERVICE - JOINED) for at in range(size.services)]
    for begin in range(0, len(named), _CHUNK):
        part = Part(domain, before + 1, now, tuple(named[begin : begin + _CHUNK]))
        before += part.entries
        yield part


def written(made: Iterator[Part], processes: int) -> Iterator[Written]:
    """The entries of each part, in order. A few parts are made ahead, so that memory stays bounded."""
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        ahead = deque[Future[Written]]()
        for part in made:
            ahead.append(pool.submit(write, part))
            if len(ahead) > 2 * processes:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def write(part: Part) -> Written:
    """The entries of one part."""
    found, numbers = Written(), count(part.first)
    for name, joined, vouched in part.names:
        _Service(part.domain, name, part.now, numbers, found).write(joined, vouched)
    return found


@dataclass(frozen=True, slots=True)
class _Service:
    """Writes the entries of one service."""

    domain: str
    name: str
    now: int
    numbers: Iterator[int]
    found: Written

    def write(self, joined: int, vouched: int) -> None:
        token = token_hex(8)
        told = {"id": token, "expires_at": self.now + _LIVES, "uses": joined}
        self._add(JOIN_TOKEN_CREATED, LOCAL, told)
        first = [self._admit({"join_token": token}, None) for _ in range(joined)]
        for at in range(vouched):
            voucher = first[at % joined]
            self._admit({"kid": self._kid(voucher)}, voucher)

    def _admit(self, by: dict[str, str], voucher: KeyPair | None) -> KeyPair:
        key = KeyPair.generate("ES256")
        registry = registry_id(self.domain)
        proof = sign_proof(key, issuer=service_id(self.domain, self.name), audience=registry, now=self.now)
        evidence = {PROOF: proof}
        if voucher is not None:
            body, target = canonical_json({PROOF: proof}), f"/v1/services/{self.name}/keys"
            kid, alg = self._kid(voucher), voucher.public.alg
            evidence[VOUCH] = token_of(kid, alg, voucher.sign, registry, self.now, ("POST", target), body)
        window = {"active_from": self.now, "expires_at": self.now + _LIVES}
        data = {"alg": key.public.alg, "jwk": dict(key.public.jwk), **window}
        self._add(KEY_ADMITTED, by, data, self._kid(key), canonical_json(evidence))
        return key

    def _kid(self, key: KeyPair) -> str:
        return make_kid(service_id(self.domain, self.name), key.public.thumbprint)

    def _add(
        self, kind: str, by: Any, data: dict[str, Any], kid: str | None = None, evidence: bytes | None = None
    ) -> None:
        digest = None if evidence is None else evidence_digest(evidence)
        entry = Entry(next(self.numbers), self.now, kind, self.name, kid, by, digest, data)
        self.found.bodies.append(entry.encode())
        self.found.evidence.append(evidence)
