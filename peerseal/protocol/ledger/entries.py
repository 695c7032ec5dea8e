"""Entries of the ledger: every change of the registry's state, one entry each, in one canonical spelling
(docs/protocol.md).

The public state can be rebuilt from the entries alone. They hold no data about persons: operators and join tokens
appear by id. They hold no tokens either: the registry stores the evidence of a change elsewhere, such as a proof of
possession and the request token of the key that vouches. The entry commits to it by digest."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, Final, Self

from peerseal.errors import MalformedToken
from peerseal.protocol.encoding import b64url, canonical_json, strict_json_object
from peerseal.protocol.keys import PublicKey
from peerseal.protocol.ledger.merkle import leaf_hash
from peerseal.protocol.names import make_kid, service_id
from peerseal.protocol.plain import kind_of, plain_bytes
from peerseal.protocol.tokens.claims import number_claim, time_claim

MAX_ENTRY = 64 * 1024 - 1
"""The longest entry, in bytes: an entry bundle stores the length in two bytes."""

REGISTRY_CREATED: Final = "registry_created"
REGISTRY_KEYS_ISSUED: Final = "registry_keys_issued"
OPERATOR_CREATED: Final = "operator_created"
OPERATOR_REVOKED: Final = "operator_revoked"
JOIN_TOKEN_CREATED: Final = "join_token_created"
JOIN_TOKEN_WITHDRAWN: Final = "join_token_withdrawn"
KEY_ADMITTED: Final = "key_admitted"
KEY_RETIRED: Final = "key_retired"
KEY_REVOKED: Final = "key_revoked"
POLICY_SET: Final = "policy_set"
DOMAIN_SET: Final = "domain_set"
FEDERATION_SET: Final = "federation_set"
REGISTRY_RESTORED: Final = "registry_restored"
"""The registry's database was lost and restored. ``data`` is ``{"first", "last"}``: the entries from
``first`` to ``last`` came back from public copies, and their evidence is lost."""
HISTORY_DECLARED: Final = "history_declared"
"""Entries were lost for good, and the root declares where the ledger continues. ``data`` is ``{"statement"}``: the
compact JWS of a `peerseal.protocol.documents.history_statement.HistoryStatement`."""

_OPTIONAL = (str, NoneType)
_MEMBERS: Mapping[str, tuple[type, ...]] = {
    "seq": (int,),
    "time": (int,),
    "type": (str,),
    "service": _OPTIONAL,
    "kid": _OPTIONAL,
    "by": (dict,),
    "evidence": _OPTIONAL,
    "data": (dict,),
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One change.

    ``seq`` counts from 1 without gaps; the entry's index in the tree is ``seq - 1``. ``time`` is in seconds since the
    epoch, ``service`` a short name. ``by`` is what allowed the change: ``{"join_token": id}``, ``{"kid": vouching
    kid}``, ``{"oidc": issuer, "subject": hash}``, ``{"operator": id}`` or ``{"self": kid}``. ``evidence`` is the digest
    of the tokens that prove it (`evidence_digest`), ``data`` the rest of the change."""

    seq: int
    time: int
    type: str
    service: str | None = None
    kid: str | None = None
    by: Mapping[str, str] = field(default_factory=dict)
    evidence: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def index(self) -> int:
        """The index of the leaf in the tree."""
        return self.seq - 1

    @property
    def leaf(self) -> bytes:
        """The RFC 6962 leaf hash. Raises ValueError where the entry is too long."""
        return leaf_hash(self.encode())

    def encode(self) -> bytes:
        """The canonical bytes, whose hash is the leaf. Raises ValueError where they exceed MAX_ENTRY."""
        body = canonical_json({name: getattr(self, name) for name in _MEMBERS})
        if len(body) > MAX_ENTRY:
            raise ValueError("a ledger entry is too long")
        return body

    @classmethod
    def decode(cls, body: bytes) -> Self:
        """Reads the bytes. Raises MalformedToken unless they are the canonical form of an entry."""
        octets = plain_bytes(body)
        if octets is None:
            raise MalformedToken(f"a ledger entry is bytes, and this is {kind_of(body)}")
        if len(octets) > MAX_ENTRY:
            raise MalformedToken("longer than a ledger entry may be")
        members = strict_json_object(octets)
        if members.keys() != _MEMBERS.keys() or any(type(members[name]) not in _MEMBERS[name] for name in _MEMBERS):
            raise MalformedToken("not a ledger entry")
        if canonical_json(members) != octets:
            raise MalformedToken("a ledger entry in another spelling")
        number_claim(members, "seq")
        time_claim(members, "time")
        return cls(**members)


@dataclass(frozen=True, slots=True)
class Admission:
    """The members of a ``key_admitted`` entry except the key. Documents repeat them, so that a reader can rebuild the
    entry and check its inclusion.

    ``index`` is the index of that entry, ``active_from`` and ``expires_at`` are the key's window as admitted, in
    seconds since the epoch; ``by`` and ``evidence`` are those of `Entry`.
    """

    index: int
    active_from: int
    expires_at: int
    by: Mapping[str, str]
    evidence: str | None

    def entry(self, domain: str, service: str, key: PublicKey) -> Entry:
        """The entry that admitted that key for the service (short name) of the trust domain."""
        kid = make_kid(service_id(domain, service), key.thumbprint)
        data = {
            "alg": key.alg,
            "jwk": dict(key.jwk),
            "active_from": self.active_from,
            "expires_at": self.expires_at,
        }
        seq, time = self.index + 1, self.active_from  # a key is active from its admission
        return Entry(seq, time, KEY_ADMITTED, service, kid, self.by, self.evidence, data)

    @classmethod
    def of(cls, entry: Entry) -> Self:
        """The admission in a ``key_admitted`` entry."""
        return cls(entry.index, entry.data["active_from"], entry.data["expires_at"], entry.by, entry.evidence)


def evidence_digest(evidence: bytes) -> str:
    """How an entry commits to its evidence: base64url SHA-256."""
    return b64url(hashlib.sha256(evidence).digest())
