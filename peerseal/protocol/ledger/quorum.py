"""A quorum: the witnesses of a ledger, and the number of them that must cosign each checkpoint (docs/protocol.md)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from peerseal.errors import MalformedToken
from peerseal.protocol.ledger.cosignature import WITNESS_KEY, Note, NoteKey, cosigned_at
from peerseal.protocol.plain import is_json_object, kind_of
from peerseal.protocol.tokens.claims import at_least, claim, number_claim

MAX_WITNESSES: Final = 16
"""Witnesses of one quorum, at most: a note with all their cosignatures stays far below its limit."""


@dataclass(frozen=True, slots=True)
class Quorum:
    """The ``witnesses``, and how many of them are ``needed``. No two have one name or one key: each counts once."""

    witnesses: tuple[NoteKey, ...]
    needed: int

    @classmethod
    def of(cls, witnesses: Iterable[str], needed: int) -> Self:
        """From the witnesses' keys in the text form of signed-note, ``NAME+ID+KEY``. Raises MalformedToken."""
        keys = tuple(NoteKey.parse(text, WITNESS_KEY) for text in witnesses)
        if not 0 < len(keys) <= MAX_WITNESSES:
            raise MalformedToken(f"{len(keys)} witnesses, expected 1 to {MAX_WITNESSES}")
        if type(needed) is not int or not 0 < needed <= len(keys):
            raise MalformedToken(f"a quorum of {needed!r:.20}, expected 1 to {len(keys)}, the number of the witnesses")
        for what, values in (("name", {key.name for key in keys}), ("key", {key.public for key in keys})):
            if len(values) < len(keys):
                raise MalformedToken(f"two witnesses have the same {what}: a witness counts once")
        return cls(keys, needed)

    @property
    def vkeys(self) -> tuple[str, ...]:
        """The witnesses' keys in the text form of signed-note."""
        return tuple(map(str, self.witnesses))

    def members(self) -> dict[str, Any]:
        """The claims of a document that names the quorum: ``witnesses`` and ``quorum``."""
        named = [{"name": key.name, "key": str(key)} for key in self.witnesses]
        return {"witnesses": named, "quorum": self.needed}

    @classmethod
    def read(cls, claims: Mapping[str, Any]) -> Self | None:
        """From the claims of a document; None where it names no quorum. Raises MalformedToken."""
        if is_json_object(claims) and not claims.keys() & {"witnesses", "quorum"}:
            return None
        at_least(claims, {"witnesses", "quorum"})
        return cls.of(map(_vkey, claim(claims, "witnesses", list)), number_claim(claims, "quorum"))

    def cosigned_at(self, note: Note) -> int | None:
        """When the quorum had cosigned the note, in seconds since the epoch: the time of the ``needed``-th latest
        cosignature. None where fewer witnesses cosigned it."""
        found = (cosigned_at(note, witness) for witness in self.witnesses)
        times = sorted((at for at in found if at is not None), reverse=True)
        return times[self.needed - 1] if len(times) >= self.needed else None


def _vkey(witness: Any) -> str:
    """The key of a witness in a document, which has its name too. Raises MalformedToken."""
    if type(witness) is not dict:
        raise MalformedToken(f"a witness is an object, and this is {kind_of(witness)}")
    name, vkey = claim(witness, "name", str), claim(witness, "key", str)
    if vkey.partition("+")[0] != name:
        raise MalformedToken(f"the key of the witness {name!r:.80} has another name: {vkey!r:.80}")
    return vkey
