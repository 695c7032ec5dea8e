"""The public state, rebuilt from the ledger's entries alone.

Every holder of the entries can rebuild it, and the registry's tables must match it. This module also defines what each
type of entry means.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from peerseal.protocol.encoding import b64url_decode
from peerseal.protocol.keys import PublicKey
from peerseal.protocol.ledger import entries as ledger
from peerseal.protocol.ledger.entries import Entry
from peerseal.protocol.names import REGISTRY, split_kid
from peerseal.protocol.policies import CallPolicy, DomainSettings
from registry.domain import lifecycle
from registry.domain.admission import JoinTokenUses
from registry.domain.keys import KeyRecord
from registry.domain.policy import RESTRICTED


@dataclass(frozen=True, slots=True)
class JoinTokenState(JoinTokenUses):
    """The public part of a join token."""

    service: str
    created_at: int
    expires_at: int
    uses: int
    used: int = 0
    withdrawn: bool = False


@dataclass(frozen=True, slots=True)
class OperatorState:
    """The public part of an operator token."""

    role: str
    created_at: int
    expires_at: int
    secret_hash: bytes
    revoked: bool = False


@dataclass(slots=True)
class PublicState:
    """Everything public. ``services`` maps names to the entry that last changed them, ``keys`` thumbprints to records,
    the tokens' ids to their states; ``documents`` holds the root-signed documents, oldest first. ``policies`` and
    ``settings`` come with the entry that set them; of a restricted policy the entry's number is all that is public."""

    size: int = 0
    documents: list[str] = field(default_factory=list)
    services: dict[str, int] = field(default_factory=dict)
    keys: dict[str, KeyRecord] = field(default_factory=dict)
    policies: dict[str, tuple[int, CallPolicy | None]] = field(default_factory=dict)
    settings: tuple[int, DomainSettings] = (0, DomainSettings())
    join_tokens: dict[str, JoinTokenState] = field(default_factory=dict)
    operators: dict[str, OperatorState] = field(default_factory=dict)

    def without_past_tokens(self, before: float) -> "PublicState":
        """The state without tokens that ended at or before that time: housekeeping removes their rows at some time, so
        tables and entries may differ about them."""
        join_tokens = {name: token for name, token in self.join_tokens.items() if token.expires_at > before}
        operators = {name: token for name, token in self.operators.items() if token.expires_at > before}
        return replace(self, join_tokens=join_tokens, operators=operators)


def keys_of(entries: Iterable[Entry]) -> dict[str, KeyRecord]:
    """The keys by thumbprint that these entries, in their order, admitted, retired and revoked; other entries may be
    missing in between. Raises KeyError for the end of a key without its admission."""
    state = PublicState()
    for entry in entries:
        _KEY_RULES[entry.type](state, entry)
    return state.keys


def rebuild(entries: Iterable[Entry]) -> PublicState:
    """The state after these entries, which begin with the first. Raises ValueError for a gap, and KeyError for an entry
    about an object that no entry before it made."""
    state = PublicState()
    for entry in entries:
        apply(state, entry)
    return state


def apply(state: PublicState, entry: Entry) -> None:
    """Applies one more entry. Raises as `rebuild` does."""
    if entry.seq != state.size + 1:
        raise ValueError(f"entry {entry.seq} follows entry {state.size}, expected {state.size + 1}")
    _RULES[entry.type](state, entry)
    _join_token_used(state, entry)
    state.size = entry.seq


def _document_issued(state: PublicState, entry: Entry) -> None:
    state.documents.append(entry.data["document"])
    state.services[REGISTRY] = entry.seq


def _key_admitted(state: PublicState, entry: Entry) -> None:
    public = PublicKey.from_jwk(entry.data["jwk"], entry.data["alg"])
    service, start, end = entry.service or "", entry.data["active_from"], entry.data["expires_at"]
    record = lifecycle.admitted(public, service, entry.by, seq=entry.seq, start=start, end=end)
    state.keys[public.thumbprint] = record
    state.services[service] = entry.seq


def _join_token_used(state: PublicState, entry: Entry) -> None:
    if "join_token" in entry.by:
        token = state.join_tokens[entry.by["join_token"]]
        state.join_tokens[entry.by["join_token"]] = replace(token, used=token.used + 1)


def _key_retired(state: PublicState, entry: Entry) -> None:
    _end_key(state, entry, lambda key: lifecycle.retired(key, entry.time))


def _key_revoked(state: PublicState, entry: Entry) -> None:
    _end_key(state, entry, lambda key: lifecycle.revoked(key, entry.time, entry.seq))


def _end_key(state: PublicState, entry: Entry, ended: Callable[[KeyRecord], KeyRecord]) -> None:
    thumbprint = split_kid(entry.kid or "")[1]
    state.keys[thumbprint] = ended(state.keys[thumbprint])
    state.services[entry.service or ""] = entry.seq


def _policy_set(state: PublicState, entry: Entry) -> None:
    service, policy = entry.service or "", entry.data["policy"]
    if policy is None:
        del state.policies[service]
    else:
        state.policies[service] = entry.seq, None if policy == RESTRICTED else CallPolicy.from_json(policy)
    state.services[service] = entry.seq


def _domain_set(state: PublicState, entry: Entry) -> None:
    state.settings = entry.seq, DomainSettings.from_json(entry.data["settings"])
    state.services[REGISTRY] = entry.seq


def _federation_set(state: PublicState, entry: Entry) -> None:
    """The entry itself is the only record of the federation: no table repeats it."""
    state.services[REGISTRY] = entry.seq


def _join_token_created(state: PublicState, entry: Entry) -> None:
    token = JoinTokenState(entry.service or "", entry.time, entry.data["expires_at"], entry.data["uses"])
    state.join_tokens[entry.data["id"]] = token


def _join_token_withdrawn(state: PublicState, entry: Entry) -> None:
    token_id = entry.data["id"]
    state.join_tokens[token_id] = replace(state.join_tokens[token_id], withdrawn=True)


def _operator_created(state: PublicState, entry: Entry) -> None:
    said = entry.data["role"], entry.time, entry.data["expires_at"], b64url_decode(entry.data["secret_hash"])
    state.operators[entry.data["id"]] = OperatorState(*said)


def _operator_revoked(state: PublicState, entry: Entry) -> None:
    token_id = entry.data["id"]
    state.operators[token_id] = replace(state.operators[token_id], revoked=True)


def _nothing_changed(_state: PublicState, _entry: Entry) -> None:
    """A restore and a new history change nothing: the entries before them define the state."""


_KEY_RULES: Final[dict[str, Callable[[PublicState, Entry], None]]] = {
    ledger.KEY_ADMITTED: _key_admitted,
    ledger.KEY_RETIRED: _key_retired,
    ledger.KEY_REVOKED: _key_revoked,
}

_RULES: Final[dict[str, Callable[[PublicState, Entry], None]]] = {
    ledger.REGISTRY_CREATED: _document_issued,
    ledger.REGISTRY_KEYS_ISSUED: _document_issued,
    **_KEY_RULES,
    ledger.POLICY_SET: _policy_set,
    ledger.DOMAIN_SET: _domain_set,
    ledger.FEDERATION_SET: _federation_set,
    ledger.JOIN_TOKEN_CREATED: _join_token_created,
    ledger.JOIN_TOKEN_WITHDRAWN: _join_token_withdrawn,
    ledger.OPERATOR_CREATED: _operator_created,
    ledger.OPERATOR_REVOKED: _operator_revoked,
    ledger.REGISTRY_RESTORED: _nothing_changed,
    ledger.HISTORY_DECLARED: _nothing_changed,
}
