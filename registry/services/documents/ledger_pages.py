"""The entries of the ledger for people who look: a page of them, or one with all that is stored of it.

What is read is reported as it is, altered rows too: a look at the ledger is for the case that something is wrong.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from peerseal.audit.entry_words import changes_in_words
from peerseal.errors import MalformedToken
from peerseal.protocol.ledger.entries import FEDERATION_SET, POLICY_SET, REGISTRY_KEYS_ISSUED, Entry, evidence_digest
from peerseal.protocol.ledger.merkle import leaf_hash
from peerseal.protocol.tokens.claims import number_claim
from registry.domain.errors import NotFound
from registry.services.use_case import UseCase
from registry.storage.queries import documents, ledger

ENTRIES = 50
"""Entries of one page."""


@dataclass(frozen=True, slots=True)
class ShownEntry:
    """The entry ``seq``. ``entry`` is None where its row is missing or cannot be read."""

    seq: int
    entry: Entry | None


@dataclass(frozen=True, slots=True)
class LedgerPage:
    """The entries up to ``at``, the newest first, of a ledger of ``size`` entries."""

    at: int
    size: int
    entries: tuple[ShownEntry, ...]


@dataclass(frozen=True, slots=True)
class StoredEntry(ShownEntry):
    """An entry of a ledger of ``size`` entries, its bytes, their leaf hash, and its evidence.

    ``evidence`` is None where there is none, and for a restricted policy, whose salt is shown to no one. ``sound`` says
    whether the row's leaf hash is that of the bytes, and whether the evidence, where it is stored, is the one that the
    entry commits to. ``changes`` says in words what an entry about the registry itself changed.
    """

    size: int
    body: bytes
    leaf: bytes
    evidence: bytes | None
    sound: bool
    changes: tuple[str, ...] = ()


class LedgerPages(UseCase):
    """Reads entries."""

    def page(self, at: int = 0) -> LedgerPage:
        """The entries up to number ``at``; the newest for 0."""
        with self._store.read() as connection:
            size = ledger.head(connection)
            last = min(at or size, size)
            first = max(last - ENTRIES, 0)
            rows = dict(ledger.read_numbered(connection, first, last))
        shown = (ShownEntry(seq, _entry(rows.get(seq, b""))) for seq in range(last, first, -1))
        return LedgerPage(last, size, tuple(shown))

    def entry(self, seq: int) -> StoredEntry:
        """One entry. Raises NotFound."""
        with self._store.read() as connection:
            size = ledger.head(connection)
            row = ledger.stored(connection, seq) if seq <= size else None
            found = None if row is None else _entry(row.body)
            changes = () if found is None else changes_in_words(found, _data_before(connection, found))
        if row is None:
            raise NotFound("entry_not_found", f"there is no entry {seq} in a ledger of {size} entries")
        leaf = leaf_hash(row.body)
        sound = found is not None and found.seq == seq and row.leaf == leaf and _commits_to(found, row.evidence)
        hidden = found is not None and found.type == POLICY_SET
        return StoredEntry(seq, found, size, row.body, leaf, None if hidden else row.evidence, sound, changes)


def _entry(body: bytes) -> Entry | None:
    try:
        return Entry.decode(body)
    except MalformedToken:
        return None


def _data_before(connection: Connection, entry: Entry) -> Mapping[str, Any] | None:
    """The data of the entry about the registry itself that this one replaces, as far as it can be read."""
    try:
        if entry.type == FEDERATION_SET:
            before = documents.federation_bodies(connection, entry.seq, 1)
            return Entry.decode(before[0]).data if before else None
        if entry.type == REGISTRY_KEYS_ISSUED:
            jws = documents.registry_keys_of(connection, number_claim(entry.data, "version") - 1)
            return None if jws is None else {"document": jws}
    except MalformedToken:
        pass
    return None


def _commits_to(entry: Entry, evidence: bytes | None) -> bool:
    """Evidence may have been lost with a database (`peerseal.protocol.ledger.entries.REGISTRY_RESTORED`)."""
    return evidence is None or evidence_digest(evidence) == entry.evidence
