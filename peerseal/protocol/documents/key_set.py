"""The signed set of a service's keys, and a key as signed documents name it (docs/protocol.md)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Self

from peerseal.errors import MalformedToken
from peerseal.protocol.documents.frame import MAX_DOCUMENT, LedgerFrame
from peerseal.protocol.keys import PublicKey
from peerseal.protocol.ledger.checkpoint import decode_proof, encode_proof
from peerseal.protocol.ledger.entries import Admission
from peerseal.protocol.ledger.merkle import Proof
from peerseal.protocol.names import make_kid, split_kid
from peerseal.protocol.tokens.claims import at_least, claim, number_claim, time_claim

ACTIVE: Final = "active"
RETIRED: Final = "retired"
REVOKED: Final = "revoked"


@dataclass(frozen=True, slots=True)
class ListedKey:
    """A key in a key set: valid for tokens whose ``iat`` lies between ``active_from`` and ``active_until``.

    ``state`` is active, or retired: listed for a while, so that requests under way still verify. ``admission`` is the
    ledger entry that admitted the key, and ``proof`` leads from that entry to the document's checkpoint.
    """

    kid: str
    public: PublicKey = field(repr=False)
    state: str
    active_until: int
    admission: Admission
    proof: Proof = field(repr=False)

    @property
    def active_from(self) -> int:
        """When the key was admitted."""
        return self.admission.active_from

    def to_json(self) -> dict[str, Any]:
        """A JWK with extra members (RFC 7517 section 4)."""
        ours = {"kid": self.kid, "state": self.state, "active_until": self.active_until}
        return {
            **self.public.jwk,
            **ours,
            **admission_json(self.admission, self.proof),
            "alg": self.public.alg,
            "use": "sig",
        }

    @classmethod
    def from_json(cls, jwk: Any, owner: str) -> Self:
        """Checked: the kid is computed from the key and names ``owner``. Raises MalformedToken or KeyRefused."""
        if type(jwk) is not dict:
            raise MalformedToken("a key is not an object")
        public = PublicKey.from_jwk(jwk)
        kid, state = claim(jwk, "kid", str), claim(jwk, "state", str)
        if kid != make_kid(owner, public.thumbprint) or state not in (ACTIVE, RETIRED):
            raise MalformedToken("a key's kid or state is wrong")
        return cls(kid, public, state, time_claim(jwk, "active_until"), *admission_from(jwk))


@dataclass(frozen=True, slots=True)
class RevokedKey:
    """A key that was revoked, listed until it would have expired, so that a callee can say why it refuses."""

    kid: str
    revoked_at: int
    index: int

    def to_json(self) -> dict[str, Any]:
        """``{"kid", "revoked_at", "index"}``; the index is that of the ledger entry that revoked the key."""
        return {"kid": self.kid, "revoked_at": self.revoked_at, "index": self.index}

    @classmethod
    def from_json(cls, value: Any, owner: str) -> Self:
        """Raises MalformedToken."""
        if type(value) is not dict:
            raise MalformedToken("a revoked key is not an object")
        kid = claim(value, "kid", str)
        if split_kid(kid)[0] != owner:
            raise MalformedToken("a revoked key of another service")
        return cls(kid, time_claim(value, "revoked_at"), number_claim(value, "index"))


def admission_json(admission: Admission, proof: Proof) -> dict[str, Any]:
    """The members that name the entry which admitted a key, and its inclusion proof in the checkpoint."""
    window = {"active_from": admission.active_from, "expires_at": admission.expires_at}
    ours = {"index": admission.index, "by": dict(admission.by), "evidence": admission.evidence}
    return {**window, **ours, "proof": encode_proof(proof)}


def admission_from(members: Mapping[str, Any]) -> tuple[Admission, Proof]:
    """Reads the members that `admission_json` writes. Raises MalformedToken."""
    at_least(members, {"evidence", "proof"})
    window = time_claim(members, "active_from"), time_claim(members, "expires_at")
    by, evidence = claim(members, "by", dict), members["evidence"]
    if evidence is not None and type(evidence) is not str:
        raise MalformedToken("evidence is of the wrong type")
    return Admission(number_claim(members, "index"), *window, by, evidence), decode_proof(members["proof"])


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySetDocument(LedgerFrame):
    """The registry's signed answer about the current keys of a service, which is the subject."""

    TYP: ClassVar[str] = "jwk-set+jwt"
    MAX_SIZE: ClassVar[int] = MAX_DOCUMENT
    keys: tuple[ListedKey, ...]
    revoked: tuple[RevokedKey, ...] = ()

    def members(self) -> dict[str, Any]:
        """A JWK Set (RFC 7517 section 5) in the format of OpenID Federation's signed JWK Set."""
        keys = [key.to_json() for key in self.keys]
        return {**self.ledger_claims(), "keys": keys, "revoked": [key.to_json() for key in self.revoked]}

    @classmethod
    def read_members(cls, claims: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that only the key set has."""
        owner = claim(claims, "sub", str)
        keys = tuple(ListedKey.from_json(key, owner) for key in claim(claims, "keys", list))
        revoked = tuple(RevokedKey.from_json(key, owner) for key in claim(claims, "revoked", list))
        return {**cls.read_ledger_claims(claims), "keys": keys, "revoked": revoked}
