"""Key statements: what the registry says about one key, past or present (docs/protocol.md)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from peerseal.errors import MalformedToken
from peerseal.protocol.documents.frame import LedgerFrame
from peerseal.protocol.documents.key_set import ACTIVE, RETIRED, REVOKED, admission_from, admission_json
from peerseal.protocol.keys import PublicKey
from peerseal.protocol.ledger.entries import Admission
from peerseal.protocol.ledger.merkle import Proof
from peerseal.protocol.names import make_kid
from peerseal.protocol.tokens.claims import at_least, claim, time_claim


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyStatement(LedgerFrame):
    """The registry's signed answer about one key, past or present. The subject is the service that owns it;
    ``admission`` and ``proof`` are those of `ListedKey`."""

    TYP: ClassVar[str] = "peerseal-key+jwt"
    MAX_SIZE: ClassVar[int] = 64 * 1024
    kid: str
    public: PublicKey = field(repr=False)
    state: str
    active_until: int
    revoked_at: int | None
    admission: Admission
    proof: Proof = field(repr=False)

    @property
    def active_from(self) -> int:
        """When the key was admitted."""
        return self.admission.active_from

    def members(self) -> dict[str, Any]:
        """The claims that only the key statement has."""
        ours = {name: getattr(self, name) for name in ("kid", "state", "active_until", "revoked_at")}
        key = {"jwk": dict(self.public.jwk), "alg": self.public.alg}
        return {**self.ledger_claims(), **ours, **admission_json(self.admission, self.proof), **key}

    @classmethod
    def read_members(cls, claims: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that only the key statement has."""
        at_least(claims, {"revoked_at"})
        public = PublicKey.from_jwk(claim(claims, "jwk", dict), claim(claims, "alg", str))
        kid, state, owner = (claim(claims, name, str) for name in ("kid", "state", "sub"))
        if kid != make_kid(owner, public.thumbprint) or state not in (ACTIVE, RETIRED, REVOKED):
            raise MalformedToken("the key's kid or state is wrong")
        revoked_at = time_claim(claims, "revoked_at") if state == REVOKED else None
        if claims["revoked_at"] != revoked_at:
            raise MalformedToken("revoked_at is set, but the key is not revoked")
        active_until = time_claim(claims, "active_until")
        ours: dict[str, Any] = {"kid": kid, "public": public, "state": state, "active_until": active_until}
        admission, proof = admission_from(claims)
        return {
            **cls.read_ledger_claims(claims),
            **ours,
            "revoked_at": revoked_at,
            "admission": admission,
            "proof": proof,
        }
