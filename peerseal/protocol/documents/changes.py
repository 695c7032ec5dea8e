"""What changed in the registry since an entry of its ledger (docs/protocol.md)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from peerseal.errors import MalformedToken
from peerseal.protocol.documents.frame import Frame
from peerseal.protocol.ledger.checkpoint import decode_proof, encode_proof
from peerseal.protocol.ledger.merkle import Proof
from peerseal.protocol.names import split_service_id
from peerseal.protocol.tokens.claims import claim, number_claim

CHANGES_LIFETIME = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes(Frame):
    """Which services (ids) changed after entry ``since``, up to entry ``seq``, the newest (the head). The subject is
    the domain.

    If the registry's own id is in the list, its keys or the domain's settings changed. ``reset`` is true if there are
    too many changes to list, or if ``since`` is of another ledger: then fetch everything again. ``checkpoint`` is the
    signed head of the ledger at size ``seq``. ``proof`` shows that the ledger begins with the one of size ``since``, so
    that a client which saw that size needs no further call.
    """

    TYP: ClassVar[str] = "peerseal-changes+jwt"
    MAX_SIZE: ClassVar[int] = 1024 * 1024
    since: int
    seq: int
    checkpoint: str = field(repr=False)
    services: tuple[str, ...]
    reset: bool = False
    proof: Proof | None = field(default=None, repr=False)

    def members(self) -> dict[str, Any]:
        """The claims that only changes have."""
        proof = {} if self.proof is None else {"proof": encode_proof(self.proof)}
        place = {"since": self.since, "seq": self.seq, "checkpoint": self.checkpoint}
        return {**place, **proof, "services": list(self.services), "reset": self.reset}

    @classmethod
    def read_members(cls, claims: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that only changes have."""
        services = claim(claims, "services", list)
        for name in services:
            if type(name) is not str:
                raise MalformedToken("a service that is not a string")
            split_service_id(name)
        return {
            **{name: number_claim(claims, name) for name in ("since", "seq")},
            "checkpoint": claim(claims, "checkpoint", str),
            "services": tuple(services),
            "reset": claim(claims, "reset", bool),
            "proof": decode_proof(claims["proof"]) if "proof" in claims else None,
        }
