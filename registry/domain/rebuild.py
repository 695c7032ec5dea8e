"""The public state, rebuilt from the ledger's entries alone.

Whoever holds the entries can do this; the registry's tables must say the same. It is also the plainest description of
what each type of entry means.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from peerseal.protocol import ledger
from peerseal.protocol.keys import PublicKey
from peerseal.protocol.ledger import Entry
from peerseal.protocol.names import split_kid
from registry.domain.keys import KeyRecord

REGISTRY_KEYS_ISSUED: Final = "registry_keys_issued"
"""The root signed a further version of the registry keys document; ``proof`` is the document."""


@dataclass(frozen=True, slots=True)
class JoinTokenState:
    """What the public may know of a join token."""

    service: str
    expires_at: int
    uses: int
    used: int = 0
    withdrawn: bool = False


@dataclass(frozen=True, slots=True)
class OperatorState:
    """What the public may know of an operator token."""

    role: str
    expires_at: int
    revoked: bool = False


@dataclass(slots=True)
class PublicState:
    """Everything public. ``services`` maps names to the entry that last changed them, ``keys`` thumbprints to
    records, the tokens' ids to their states; ``documents`` holds the root-signed documents, oldest first."""

    size: int = 0
    documents: list[str] = field(default_factory=list)
    services: dict[str, int] = field(default_factory=dict)
    keys: dict[str, KeyRecord] = field(default_factory=dict)
    join_tokens: dict[str, JoinTokenState] = field(default_factory=dict)
    operators: dict[str, OperatorState] = field(default_factory=dict)


def rebuild(entries: Iterable[Entry]) -> PublicState:
    """The state after these entries, which begin with the first. Raises ValueError where they have a gap, KeyError
    for an entry about something that none before it made."""
    state = PublicState()
    for entry in entries:
        if entry.seq != state.size + 1:
            raise ValueError(f"entry {entry.seq} follows entry {state.size}")
        _RULES[entry.type](state, entry)
        state.size = entry.seq
    return state


def _document_issued(state: PublicState, entry: Entry) -> None:
    state.documents.append(entry.proof or "")


def _key_admitted(state: PublicState, entry: Entry) -> None:
    public = PublicKey.from_jwk(entry.data["jwk"], entry.data["alg"])
    service, start, end = entry.service or "", entry.data["active_from"], entry.data["expires_at"]
    record = KeyRecord(public.thumbprint, service, public.spki, entry.seq, entry.by, start, end, end)
    state.keys[public.thumbprint] = record
    state.services[service] = entry.seq
    if "join_token" in entry.by:
        token = state.join_tokens[entry.by["join_token"]]
        state.join_tokens[entry.by["join_token"]] = replace(token, used=token.used + 1)


def _key_retired(state: PublicState, entry: Entry) -> None:
    _end_key(state, entry, lambda key: replace(key, active_until=entry.time))


def _key_revoked(state: PublicState, entry: Entry) -> None:
    _end_key(state, entry, lambda key: replace(key, revoked_at=entry.time, revoked_seq=entry.seq))


def _end_key(state: PublicState, entry: Entry, ended: Callable[[KeyRecord], KeyRecord]) -> None:
    thumbprint = split_kid(entry.kid or "")[1]
    state.keys[thumbprint] = ended(state.keys[thumbprint])
    state.services[entry.service or ""] = entry.seq


def _join_token_created(state: PublicState, entry: Entry) -> None:
    token = JoinTokenState(entry.service or "", entry.data["expires_at"], entry.data["uses"])
    state.join_tokens[entry.data["id"]] = token


def _join_token_withdrawn(state: PublicState, entry: Entry) -> None:
    token_id = entry.data["id"]
    state.join_tokens[token_id] = replace(state.join_tokens[token_id], withdrawn=True)


def _operator_created(state: PublicState, entry: Entry) -> None:
    state.operators[entry.data["id"]] = OperatorState(entry.data["role"], entry.data["expires_at"])


def _operator_revoked(state: PublicState, entry: Entry) -> None:
    token_id = entry.data["id"]
    state.operators[token_id] = replace(state.operators[token_id], revoked=True)


_RULES: Final[dict[str, Callable[[PublicState, Entry], None]]] = {
    ledger.REGISTRY_CREATED: _document_issued,
    REGISTRY_KEYS_ISSUED: _document_issued,
    ledger.KEY_ADMITTED: _key_admitted,
    ledger.KEY_RETIRED: _key_retired,
    ledger.KEY_REVOKED: _key_revoked,
    ledger.JOIN_TOKEN_CREATED: _join_token_created,
    ledger.JOIN_TOKEN_WITHDRAWN: _join_token_withdrawn,
    ledger.OPERATOR_CREATED: _operator_created,
    ledger.OPERATOR_REVOKED: _operator_revoked,
}
