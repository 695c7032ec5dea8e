"""The signed set of a service's keys, a part of a large set, and a key as signed documents name it (docs/protocol.md).

A large key set lists no keys. It names 64 parts, each by the digest of its content, and a part is a signed document
that lists keys. The first character of a key's thumbprint decides to which part the key belongs. So a change of one key
changes one part.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, ClassVar, Final, Self

from peerseal.errors import MalformedToken
from peerseal.protocol.documents.frame import MAX_DOCUMENT, LedgerFrame
from peerseal.protocol.encoding import b64url, canonical_json
from peerseal.protocol.keys import PublicKey
from peerseal.protocol.ledger.checkpoint import decode_proof, encode_proof
from peerseal.protocol.ledger.entries import Admission
from peerseal.protocol.ledger.merkle import Proof
from peerseal.protocol.names import make_kid, split_kid
from peerseal.protocol.tokens.claims import at_least, claim, number_claim, time_claim

ACTIVE: Final = "active"
RETIRED: Final = "retired"
REVOKED: Final = "revoked"

_INITIALS: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
"""The alphabet of base64url (RFC 4648 section 5): the value of a thumbprint's first character is its part's number."""
PARTS: Final = len(_INITIALS)
"""The parts of a large key set."""
LONGEST_LIFE: Final = 30 * 24 * 3600
"""Seconds for which a registry admits a key, at most."""
_DIGEST: Final = 43
"""Characters of a digest."""


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


def part_of(thumbprint: str) -> int:
    """The number of the part to which the key with that thumbprint belongs, from 0 to 63."""
    return _INITIALS.index(thumbprint[0])


def part_path(service: str, number: int) -> str:
    """The path of a part at the registry. ``service`` is a short name."""
    return f"/v1/services/{service}/jwks/{number}.jwt"


def initial_of(part: int) -> str:
    """The first character of the thumbprints in the part with that number."""
    return _INITIALS[part]


@dataclass(frozen=True, slots=True)
class PartName:
    """A part as its set names it: the ledger entry that last changed one of its keys, and the digest of what the part
    says (`keys_digest`)."""

    seq: int
    digest: str

    def to_json(self) -> dict[str, Any]:
        """``{"seq", "digest"}``."""
        return {"seq": self.seq, "digest": self.digest}

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """Raises MalformedToken."""
        if type(value) is not dict:
            raise MalformedToken("the name of a part is not an object")
        digest = claim(value, "digest", str)
        if len(digest) != _DIGEST:
            raise MalformedToken(f"the digest of a part has {len(digest)} characters, expected {_DIGEST}")
        return cls(number_claim(value, "seq"), digest)


def keys_digest(ends: Mapping[str, int], revoked: Iterable[RevokedKey]) -> str:
    """The digest of a part: SHA-256, in base64url, of the canonical JSON of ``{"keys": [{"kid", "active_until"}],
    "revoked": [{"kid", "revoked_at", "index"}]}``, both sorted by kid. ``ends`` maps kids to ``active_until``.

    The kid fixes the key, and the end fixes the state. Proofs, which change with the tree, are not in it.
    """
    listed = [{"kid": kid, "active_until": ends[kid]} for kid in sorted(ends)]
    gone = [key.to_json() for key in sorted(revoked, key=attrgetter("kid"))]
    return b64url(hashlib.sha256(canonical_json({"keys": listed, "revoked": gone})).digest())


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySetDocument(LedgerFrame):
    """The registry's signed answer about the current keys of a service, which is the subject. With ``parts`` it lists
    no keys itself: it names 64 parts by number, with None for a part without keys."""

    TYP: ClassVar[str] = "jwk-set+jwt"
    MAX_SIZE: ClassVar[int] = MAX_DOCUMENT
    keys: tuple[ListedKey, ...]
    revoked: tuple[RevokedKey, ...] = ()
    parts: tuple[PartName | None, ...] = ()

    def members(self) -> dict[str, Any]:
        """A JWK Set (RFC 7517 section 5) in the format of OpenID Federation's signed JWK Set."""
        parts = {"parts": [name and name.to_json() for name in self.parts]} if self.parts else {}
        return {**self.ledger_claims(), **_lists(self.keys, self.revoked), **parts}

    @classmethod
    def read_members(cls, claims: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that only the key set has."""
        lists, parts = _read_lists(claims), _read_parts(claims) if "parts" in claims else ()
        if parts and any(lists.values()):
            raise MalformedToken("a key set with parts lists keys itself")
        return {**cls.read_ledger_claims(claims), **lists, "parts": parts}


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySetPart(LedgerFrame):
    """The registry's signed answer about the keys in the part with the number ``part`` of a service's large set.

    It has a type of its own, so that no client takes it for a whole set. ``seq`` is the entry that last changed one of
    its keys. It is believed only while the newest key set names its ``digest``, which is that of the signed content.
    """

    TYP: ClassVar[str] = "jwk-set-part+jwt"
    MAX_SIZE: ClassVar[int] = MAX_DOCUMENT
    part: int
    keys: tuple[ListedKey, ...]
    revoked: tuple[RevokedKey, ...]
    digest: str

    def members(self) -> dict[str, Any]:
        """A JWK Set (RFC 7517 section 5), and the number of the part."""
        return {**self.ledger_claims(), "part": self.part, **_lists(self.keys, self.revoked)}

    @classmethod
    def read_members(cls, claims: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that only a part has."""
        part, lists = number_claim(claims, "part"), _read_lists(claims)
        if any(part_of(split_kid(key.kid)[1]) != part for listed in lists.values() for key in listed):
            raise MalformedToken(f"part {part} lists a key of another part")
        ends = {key.kid: key.active_until for key in lists["keys"]}
        return {**cls.read_ledger_claims(claims), "part": part, **lists, "digest": keys_digest(ends, lists["revoked"])}


def _lists(keys: Iterable[ListedKey], revoked: Iterable[RevokedKey]) -> dict[str, Any]:
    return {"keys": [key.to_json() for key in keys], "revoked": [key.to_json() for key in revoked]}


def _read_lists(claims: Mapping[str, Any]) -> dict[str, Any]:
    owner = claim(claims, "sub", str)
    keys = tuple(ListedKey.from_json(key, owner) for key in claim(claims, "keys", list))
    revoked = tuple(RevokedKey.from_json(key, owner) for key in claim(claims, "revoked", list))
    return {"keys": keys, "revoked": revoked}


def _read_parts(claims: Mapping[str, Any]) -> tuple[PartName | None, ...]:
    names = claim(claims, "parts", list)
    if len(names) != PARTS:
        raise MalformedToken(f"a key set names {len(names)} parts, expected {PARTS}")
    return tuple(None if name is None else PartName.from_json(name) for name in names)
