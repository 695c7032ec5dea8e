"""Entries of the ledger: every change of the registry's state, one entry each, in one canonical spelling (SPEC 5).

The entries alone rebuild the public state. They hold nothing about persons: ids for operators and join tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import NoneType
from typing import Any, Final, Self

from peerseal.errors import MalformedToken
from peerseal.protocol.encoding import canonical_json, strict_json_object

MAX_ENTRY = 64 * 1024
"""The longest entry, in bytes."""

REGISTRY_CREATED: Final = "registry_created"
OPERATOR_CREATED: Final = "operator_created"
OPERATOR_REVOKED: Final = "operator_revoked"
JOIN_TOKEN_CREATED: Final = "join_token_created"
JOIN_TOKEN_WITHDRAWN: Final = "join_token_withdrawn"
KEY_ADMITTED: Final = "key_admitted"
KEY_RETIRED: Final = "key_retired"
KEY_REVOKED: Final = "key_revoked"

_OPTIONAL = (str, NoneType)
_MEMBERS: Mapping[str, tuple[type, ...]] = {
    "seq": (int,),
    "time": (int,),
    "type": (str,),
    "service": _OPTIONAL,
    "kid": _OPTIONAL,
    "by": (dict,),
    "proof": _OPTIONAL,
    "data": (dict,),
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One change.

    ``seq`` counts from 1 without gaps (the entry's index in the tree is ``seq - 1``), ``time`` is in seconds since the
    epoch, ``service`` a short name, ``by`` what the change rests on (``{"join_token": id}``, ``{"kid": vouching kid}``,
    ``{"operator": id}``, ``{"self": kid}``), ``proof`` the JWS that justified it, ``data`` what else is needed to
    rebuild the state.
    """

    seq: int
    time: int
    type: str
    service: str | None = None
    kid: str | None = None
    by: Mapping[str, str] = field(default_factory=dict)
    proof: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)

    def encode(self) -> bytes:
        """The canonical bytes, which are the leaf. Raises ValueError where they exceed MAX_ENTRY."""
        body = canonical_json({name: getattr(self, name) for name in _MEMBERS})
        if len(body) > MAX_ENTRY:
            raise ValueError("a ledger entry is too long")
        return body

    @classmethod
    def decode(cls, body: bytes) -> Self:
        """Back from the bytes. Raises MalformedToken for bytes that no entry encodes to."""
        if len(body) > MAX_ENTRY:
            raise MalformedToken("longer than a ledger entry may be")
        members = strict_json_object(body)
        if members.keys() != _MEMBERS.keys() or any(type(members[name]) not in _MEMBERS[name] for name in _MEMBERS):
            raise MalformedToken("not a ledger entry")
        if canonical_json(members) != body:
            raise MalformedToken("a ledger entry in another spelling")
        return cls(**members)
