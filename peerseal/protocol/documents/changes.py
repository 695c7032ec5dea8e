"""What changed in the registry since an entry of its ledger (docs/protocol.md)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, ClassVar, Final, Self

from peerseal.errors import InvalidName, MalformedToken
from peerseal.protocol.documents.frame import Frame
from peerseal.protocol.ledger.checkpoint import decode_proof, encode_proof
from peerseal.protocol.ledger.merkle import Proof
from peerseal.protocol.names import check_service, split_kid, split_service_id
from peerseal.protocol.tokens.claims import claim, number_claim

CHANGES_LIFETIME = 60
MAX_WATCHED: Final = 800
"""Characters of the services that a waiting question names: its request line then has less than 1 KiB, which all
servers and proxies accept."""
_COMMA: Final = ","


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes(Frame):
    """Which services (ids) changed after entry ``since``, up to entry ``seq``, the newest (the head). The subject is
    the domain.

    If the registry's own id is in the list, its keys, the domain's settings or the federation changed. ``reset`` is
    true if there are too many changes to list, or if ``since`` is of another ledger: then fetch everything again.
    ``checkpoint`` is the signed head of the ledger at size ``seq``. ``seqs`` has for each of the services the entry
    that last changed it: a client asks for a document that covers this entry. Registries of a release before 0.4 do not
    say it; then it is empty. ``revoked`` has the kids that entries after ``since`` revoked; if there are very many,
    only the newest. A client refuses these keys at once, before it fetches their key sets. ``proof`` is the consistency
    proof from size ``since`` to size ``seq``, so a client that saw size ``since`` needs no further call for it.
    """

    TYP: ClassVar[str] = "peerseal-changes+jwt"
    MAX_SIZE: ClassVar[int] = 1024 * 1024
    since: int
    seq: int
    checkpoint: str = field(repr=False)
    services: tuple[str, ...]
    seqs: tuple[int, ...] = ()
    reset: bool = False
    revoked: tuple[str, ...] = ()
    proof: Proof | None = field(default=None, repr=False)
    last_changes: Mapping[str, int] = field(init=False, repr=False, compare=False)
    """For each service that changed (its id), the entry that a document must cover to have the change."""

    def __post_init__(self) -> None:
        """See dataclass."""
        object.__setattr__(self, "last_changes", dict(zip(self.services, self.seqs or repeat(self.seq), strict=False)))

    def members(self) -> dict[str, Any]:
        """The claims that only changes have."""
        proof = {} if self.proof is None else {"proof": encode_proof(self.proof)}
        place = {"since": self.since, "seq": self.seq, "checkpoint": self.checkpoint}
        lists = {"services": list(self.services), "revoked": list(self.revoked)}
        seqs = {"seqs": list(self.seqs)} if self.seqs else {}
        return {**place, **proof, **lists, **seqs, "reset": self.reset}

    @classmethod
    def read_members(cls, claims: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that only changes have."""
        # A registry of a release before 0.3 lists no revoked kids.
        revoked = _texts(claims, "revoked") if "revoked" in claims else ()
        for kid in revoked:
            split_kid(kid)
        return {
            **{name: number_claim(claims, name) for name in ("since", "seq")},
            "checkpoint": claim(claims, "checkpoint", str),
            "services": _service_ids(claims),
            "seqs": _seqs(claims),
            "revoked": revoked,
            "reset": claim(claims, "reset", bool),
            "proof": decode_proof(claims["proof"]) if "proof" in claims else None,
        }


def _service_ids(claims: Mapping[str, Any]) -> tuple[str, ...]:
    services = _texts(claims, "services")
    for name in services:
        split_service_id(name)
    return services


def _seqs(claims: Mapping[str, Any]) -> tuple[int, ...]:
    if "seqs" not in claims:
        return ()
    seqs = tuple(claim(claims, "seqs", list))
    since, seq = number_claim(claims, "since"), number_claim(claims, "seq")
    if len(seqs) != len(claims["services"]) or not all(type(one) is int and since < one <= seq for one in seqs):
        raise MalformedToken("claim seqs does not have an entry from since + 1 to seq for each of the services")
    return seqs


def _texts(claims: Mapping[str, Any], name: str) -> tuple[str, ...]:
    values = claim(claims, name, list)
    if not all(type(value) is str for value in values):
        raise MalformedToken(f"claim {name} has a value that is not a string")
    return tuple(values)


@dataclass(frozen=True, slots=True)
class Watched:
    """The services whose changes are to end a wait: ``names`` holds their short names. None stands for all services."""

    names: frozenset[str] | None = None

    @classmethod
    def of(cls, names: Iterable[str]) -> Self:
        """These services; all, where their names do not fit into a question."""
        each = frozenset(names)
        return cls(each if len(_COMMA.join(each)) <= MAX_WATCHED else None)

    @classmethod
    def read(cls, text: str) -> Self:
        """From the text of a question. Raises InvalidName, also for more than MAX_WATCHED characters."""
        if len(text) > MAX_WATCHED:
            raise InvalidName(f"the services have {len(text)} characters, and {MAX_WATCHED} are read at most")
        return cls(frozenset(map(check_service, text.split(_COMMA))))

    @property
    def text(self) -> str:
        """The names in a question, separated by commas; empty for all services."""
        return _COMMA.join(sorted(self.names or ()))

    def __or__(self, other: "Watched") -> "Watched":
        """The services of both."""
        return Watched() if self.names is None or other.names is None else Watched.of(self.names | other.names)

    def __ge__(self, other: "Watched") -> bool:
        """Whether all services of the other are among these."""
        return self.names is None or (other.names is not None and self.names >= other.names)
