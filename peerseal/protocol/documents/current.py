"""Which services have not changed since the entry that last changed them (docs/protocol.md): the evidence that an older
document is still true."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

from peerseal.errors import MalformedToken
from peerseal.protocol.documents.frame import Frame
from peerseal.protocol.names import split_service_id
from peerseal.protocol.tokens.claims import claim, number_claim

BLOCK: Final = 1024
"""Entries in one block. A list of all services that one block changed last has some 60 KB."""


def block_of(seq: int) -> int:
    """The number of the block with that entry. Entries count from 1, blocks from 0."""
    return (seq - 1) // BLOCK


@dataclass(frozen=True, slots=True, kw_only=True)
class CurrentServices(Frame):
    """The services (ids) that an entry of one ``block`` of the ledger changed last, each with that entry, as of entry
    ``seq``, the newest (the head). The subject is the domain; ``checkpoint`` is the signed head of the ledger at size
    ``seq``.

    A document as of entry N about a service is still true if the list of N's block has the service with no later entry.
    A service that is not in the list was changed after the block, or never in it.
    """

    TYP: ClassVar[str] = "peerseal-current+jwt"
    MAX_SIZE: ClassVar[int] = 1024 * 1024
    block: int
    seq: int
    checkpoint: str = field(repr=False)
    services: Mapping[str, int]

    def members(self) -> dict[str, Any]:
        """The claims that only this kind has."""
        return {
            "block": self.block,
            "seq": self.seq,
            "checkpoint": self.checkpoint,
            "services": dict(self.services),
        }

    @classmethod
    def read_members(cls, claims: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that only this kind has."""
        numbers, services = (
            {name: number_claim(claims, name) for name in ("block", "seq")},
            claim(claims, "services", dict),
        )
        for name, entry in services.items():
            split_service_id(name)
            if type(entry) is not int or block_of(entry) != numbers["block"] or not 0 < entry <= numbers["seq"]:
                raise MalformedToken(f"entry {entry} of {name} is not in block {numbers['block']}")
        return {**numbers, "checkpoint": claim(claims, "checkpoint", str), "services": services}
