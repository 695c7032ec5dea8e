"""What is published about keys, from records."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from peerseal.protocol.documents import JwkSetDocument, KeyStatement, RevokedKey, SignedKey
from peerseal.protocol.keys import PublicCredentials
from peerseal.protocol.names import make_kid, registry_id, service_id
from registry.domain.keys import KeyRecord, KeyState


@dataclass(frozen=True, slots=True)
class Frame:
    """What every signed answer about a service says: whose registry, which service (short name), when, until when,
    and as of which entries (``seq``: the one that last changed the service, ``head``: how many there are)."""

    domain: str
    service: str
    issued_at: int
    expires_at: int
    seq: int
    head: int

    @property
    def owner(self) -> str:
        """The service's id."""
        return service_id(self.domain, self.service)

    def members(self) -> tuple[str, str, int, int, int, int]:
        """The first members of the documents, in their order."""
        return registry_id(self.domain), self.owner, self.issued_at, self.expires_at, self.seq, self.head


def key_set(frame: Frame, records: Iterable[KeyRecord]) -> JwkSetDocument:
    """The signed set: active and lately retired keys in full, revoked ones by kid."""
    signed, revoked = [], []
    for record in records:
        kid = make_kid(frame.owner, record.thumbprint)
        state = record.state(frame.issued_at)
        if record.revoked_at is not None and record.revoked_seq is not None:
            revoked.append(RevokedKey(kid, record.revoked_at, record.revoked_seq - 1))
        else:
            window = record.active_from, record.active_until
            signed.append(SignedKey(kid, record.public, state.value, *window, record.index))
    return JwkSetDocument(*frame.members(), tuple(signed), tuple(revoked))


def plain_key_set(frame: Frame, records: Iterable[KeyRecord]) -> dict[str, Any]:
    """A JWK Set (RFC 7517 section 5) for any JWT library. Active keys only: it has no way to say until when a retired
    one is good."""
    return {"keys": [_jwk(frame, key) for key in records if key.state(frame.issued_at) is KeyState.ACTIVE]}


def statement(frame: Frame, record: KeyRecord) -> KeyStatement:
    """The key statement about one key, past or present."""
    return KeyStatement(
        *frame.members(),
        kid=make_kid(frame.owner, record.thumbprint),
        public=record.public,
        state=record.state(frame.issued_at).value,
        active_from=record.active_from,
        active_until=record.active_until,
        revoked_at=record.revoked_at,
        index=record.index,
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


def _jwk(frame: Frame, record: KeyRecord) -> dict[str, str]:
    public = record.public
    return {**public.jwk, "kid": make_kid(frame.owner, record.thumbprint), "alg": public.alg, "use": "sig"}
