"""A service's key over its life (docs/protocol.md)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache

from peerseal.errors import KeyRefused
from peerseal.protocol.keys import PublicKey
from registry.domain.errors import LedgerContradicted

KEYS_PARSED = 4096
"""Parsed public keys in memory, each below 4 KiB. They never change, and parsing one takes as long as a
verification."""


class KeyState(StrEnum):
    """The states of a key."""

    PENDING = "pending"
    ACTIVE = "active"
    RETIRED = "retired"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """The record of one key.

    Times are seconds since the epoch. ``active_until`` is the key's natural end, or the time of its retirement;
    ``expires_at`` stays the natural end. ``admitted_by`` names the right by which it was admitted, as the entry does.
    ``admitted_seq`` and ``revoked_seq`` are the entries that admitted and revoked it.
    """

    thumbprint: str
    service: str
    spki: bytes = field(repr=False)
    admitted_seq: int
    admitted_by: Mapping[str, str]
    active_from: int
    active_until: int
    expires_at: int
    revoked_at: int | None = None
    revoked_seq: int | None = None

    @property
    def public(self) -> PublicKey:
        """The key itself, ready to verify. Raises LedgerContradicted for an altered row."""
        return parsed_key(self.spki)

    @property
    def index(self) -> int:
        """The index of the ledger entry that admitted the key."""
        return self.admitted_seq - 1

    def state(self, now: float) -> KeyState:
        """The state at a time. After its natural end a key counts as retired, without an entry."""
        if self.revoked_at is not None:
            return KeyState.REVOKED
        return KeyState.ACTIVE if now < self.active_until else KeyState.RETIRED


@dataclass(frozen=True, slots=True)
class Applicant:
    """A pending key. ``proof`` proves that its sender holds the key; the sender has no right to the service's name. The
    key waits for an operator until ``expires_at``, in no entry and no document. Times are seconds since the epoch."""

    thumbprint: str
    service: str
    proof: str = field(repr=False)
    created_at: int
    expires_at: int


@lru_cache(KEYS_PARSED)
def parsed_key(spki: bytes) -> PublicKey:
    """The public key of a SubjectPublicKeyInfo that was checked when it was admitted. Raises LedgerContradicted for one
    that is no key: its row was altered."""
    try:
        return PublicKey.from_spki(spki)
    except KeyRefused as error:
        raise LedgerContradicted(f"the row of a key was altered ({error}): run peerseal-registry verify") from error
