"""The published documents about keys, made from records."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from peerseal.protocol.documents.key_set import KeySetDocument, KeySetPart, ListedKey, PartName, RevokedKey, keys_digest
from peerseal.protocol.documents.statement import KeyStatement
from peerseal.protocol.keys import PublicCredentials
from peerseal.protocol.ledger.entries import Admission
from peerseal.protocol.ledger.merkle import Proof
from peerseal.protocol.names import make_kid, registry_id, service_id
from registry.domain.keys import KeyRecord, KeyState


def period_start(service: str, now: float, period: int) -> int:
    """The newest time at which the unchanged documents about a service are signed again, once in each ``period``
    (seconds). The name says at which time of the period, so that not all documents are signed at once."""
    offset = _offset(service, period)
    return int(now - offset) // period * period + offset


@lru_cache(10_000)
def _offset(service: str, period: int) -> int:
    return int.from_bytes(hashlib.sha256(service.encode("ascii")).digest()[:4]) % period


@dataclass(frozen=True, slots=True)
class AnswerFrame:
    """The common part of the signed answers about a service: trust domain, service (short name), times, and position in
    the ledger. ``seq`` is the entry that last changed the service, ``head`` the number of entries, ``checkpoint`` the
    signed head."""

    domain: str
    service: str
    issued_at: int
    expires_at: int
    seq: int
    head: int
    checkpoint: str

    @property
    def owner(self) -> str:
        """The service's id."""
        return service_id(self.domain, self.service)

    def members(self) -> dict[str, Any]:
        """The fields of the documents."""
        parties = {"issuer": registry_id(self.domain), "subject": self.owner}
        times = {"issued_at": self.issued_at, "expires_at": self.expires_at}
        return {**parties, **times, "seq": self.seq, "head": self.head, "checkpoint": self.checkpoint}


@dataclass(frozen=True, slots=True)
class ProvenKey:
    """A key's record, its admission's entry, and the proof that the frame's checkpoint includes the entry."""

    record: KeyRecord
    admission: Admission
    proof: Proof


def key_set(frame: AnswerFrame, keys: Iterable[ProvenKey], revoked: Iterable[KeyRecord]) -> KeySetDocument:
    """The signed set: active and recently retired keys in full, revoked ones by kid."""
    return KeySetDocument(**frame.members(), **_lists(frame, keys, revoked))


def large_key_set(frame: AnswerFrame, parts: tuple[PartName | None, ...]) -> KeySetDocument:
    """The signed set of a service with many keys, which names its parts."""
    return KeySetDocument(**frame.members(), keys=(), parts=parts)


def key_set_part(
    frame: AnswerFrame, number: int, keys: Sequence[ProvenKey], revoked: Sequence[KeyRecord]
) -> KeySetPart:
    """The part with that number. The frame's ``seq`` is the entry that last changed it."""
    digest = part_digest(frame.owner, [*(key.record for key in keys), *revoked])
    return KeySetPart(**frame.members(), part=number, **_lists(frame, keys, revoked), digest=digest)


def part_digest(owner: str, records: Iterable[KeyRecord]) -> str:
    """The digest of the part that lists these keys. ``owner`` is the service's id."""
    ends, revoked = dict[str, int](), list[RevokedKey]()
    for record in records:
        gone = _revoked(owner, record)
        if gone is None:
            ends[make_kid(owner, record.thumbprint)] = record.active_until
        else:
            revoked.append(gone)
    return keys_digest(ends, revoked)


def _lists(frame: AnswerFrame, keys: Iterable[ProvenKey], revoked: Iterable[KeyRecord]) -> dict[str, Any]:
    signed = []
    for key in keys:
        record = key.record
        kid, state = make_kid(frame.owner, record.thumbprint), record.state(frame.issued_at)
        signed.append(ListedKey(kid, record.public, state.value, record.active_until, key.admission, key.proof))
    gone = (_revoked(frame.owner, record) for record in revoked)
    return {"keys": tuple(signed), "revoked": tuple(key for key in gone if key is not None)}


def _revoked(owner: str, record: KeyRecord) -> RevokedKey | None:
    """The key as sets list it by kid, where it was revoked."""
    if record.revoked_at is None or record.revoked_seq is None:
        return None
    return RevokedKey(make_kid(owner, record.thumbprint), record.revoked_at, record.revoked_seq - 1)


def plain_key_set(frame: AnswerFrame, keys: Iterable[ProvenKey]) -> dict[str, Any]:
    """A JWK Set (RFC 7517 section 5) for any JWT library. Active keys only: it cannot express until when a
    retired one is valid."""
    records = (key.record for key in keys)
    return {"keys": [_jwk(frame, record) for record in records if record.state(frame.issued_at) is KeyState.ACTIVE]}


def statement(frame: AnswerFrame, key: ProvenKey) -> KeyStatement:
    """The key statement about one key, past or present."""
    record = key.record
    return KeyStatement(
        **frame.members(),
        kid=make_kid(frame.owner, record.thumbprint),
        public=record.public,
        state=record.state(frame.issued_at).value,
        active_until=record.active_until,
        revoked_at=record.revoked_at,
        admission=key.admission,
        proof=key.proof,
    )


def record_json(domain: str, record: KeyRecord, now: float) -> dict[str, Any]:
    """A key's record as the unsigned answers show it."""
    owner, public = service_id(domain, record.service), record.public
    credentials = PublicCredentials.of(owner, public)
    by: Mapping[str, str] = record.admitted_by
    return {
        "kid": credentials.key_id,
        "alg": public.alg,
        "state": record.state(now).value,
        "active_from": record.active_from,
        "active_until": record.active_until,
        "revoked_at": record.revoked_at,
        "admitted_by": dict(by),
        "index": record.index,
        "jwk": dict(public.jwk),
        "publicKey": credentials.public_key,
    }


def _jwk(frame: AnswerFrame, record: KeyRecord) -> dict[str, str]:
    public = record.public
    return {**public.jwk, "kid": make_kid(frame.owner, record.thumbprint), "alg": public.alg, "use": "sig"}
