"""Declares a new history: the operator's last resort when no copy of the lost entries exists.

Three steps, as for new keys (`registry.services.setup.ceremony`), since the root key may be offline:
`HistoryDeclarations.requested` finds the three heads, `signed` has the root sign them, `HistoryDeclarations.publish`
writes the statement into the ledger. Each node and each client reads it there and decides by itself
(`peerseal.protocol.documents.history_statement`).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from sqlalchemy import Connection

from peerseal.errors import CodedError, ConfigurationError, DocumentRefused, InvalidName, MalformedToken
from peerseal.identity.key_passphrase import KeyPassphrase
from peerseal.protocol.documents.history_statement import (
    MAX_STATEMENTS,
    Head,
    HistoryStatement,
    encode_statements,
    excused_by,
    read_history,
    sign_history,
)
from peerseal.protocol.documents.registry_keys import RegistryKeys, read_registry_keys
from peerseal.protocol.encoding import canonical_json, strict_json_object
from peerseal.protocol.ledger.checkpoint import verify_checkpoint
from peerseal.protocol.ledger.entries import HISTORY_DECLARED
from peerseal.protocol.ledger.merkle import Frontier
from registry.services.access.operators import LOCAL
from registry.services.authority.ledger_memory import Remembered
from registry.services.authority.statements import statements
from registry.services.documents.tile_cache import TileCache
from registry.services.setup import keyfiles
from registry.settings import NO_PASSPHRASE
from registry.storage.queries import audit, documents, ledger
from registry.storage.queries.ledger import Change, append
from registry.storage.unit import Store

KEPT_FOR: Final = 1.0
"""Seconds for which the list of all statements is kept in memory."""


class HistoryRefused(CodedError):
    """No new history is declared. Codes: ``nothing_lost``, ``no_common_head``, ``statement_refused``,
    ``statement_contradicted``."""


class HistoryDeclarations:
    """``store`` is the database without a guard: the guard refuses the ledger until the statement is in it."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._published = b""
        self._read_at = float("-inf")

    def published(self) -> bytes:
        """All statements for clients, at most a second old: after a fork every client asks. Raises
        StorageUnavailable."""
        now = self._clock()
        if not 0 <= now - self._read_at < KEPT_FOR:
            with self._store.look() as connection:
                self._published = encode_statements(list(statements(connection, now))[-MAX_STATEMENTS:])
            self._read_at = now
        return self._published

    def requested(self, remembered: Remembered | None, notes: Mapping[str, str]) -> HistoryStatement:
        """The unsigned statement. Of the heads that this host remembers and those of the checkpoints ``notes``, the
        database lacks the one lost, and has the common one, each the largest; the new head is the database's own.

        Raises HistoryRefused, DocumentRefused for a note that no ledger key signed, StorageUnavailable.
        """
        with self._store.read() as connection:
            keys, edge = self._keys(connection), ledger.frontier(connection)
            heads = [*_heads_of(remembered), *(_head_of(note, keys) for note in notes.values())]
            there = [head for head in heads if TileCache().has_head(connection, edge, head)]
        lost = max((head for head in heads if head not in there), key=lambda head: head.size, default=None)
        if not heads:
            raise HistoryRefused("nothing_lost", "this host remembers no head: name a lost one with --checkpoint")
        if lost is None:
            raise HistoryRefused("nothing_lost", "the database has every head that is remembered or named")
        common = max((head for head in there if head.size < lost.size), key=lambda head: head.size, default=None)
        if common is None:
            raise HistoryRefused(
                "no_common_head",
                "the database has none of the heads that are remembered or named: name a checkpoint from before the "
                "loss with --checkpoint",
            )
        return HistoryStatement(keys.subject, int(self._clock()), common, lost, Head(edge.size, edge.root))

    def publish(self, jws: Sequence[str]) -> Sequence[HistoryStatement]:
        """Writes statements that the root signed into the ledger, oldest first. Known ones are skipped.

        Raises HistoryRefused, StorageUnavailable.
        """
        with self._store.write() as connection:
            keys, edge, now = self._keys(connection), ledger.lock_frontier(connection), int(self._clock())
            known = statements(connection, now)
            read = {one: self._read(one, keys) for one in jws}
            every = [*known.values(), *read.values()]
            new = {one: statement for one, statement in read.items() if one not in known}
            for statement in new.values():
                _check(connection, edge, statement, every)
            if new:
                changes = [Change(HISTORY_DECLARED, by=LOCAL, data={"statement": one}) for one in new]
                seq = append(connection, now, *changes).entry.seq
                audit.record(connection, now, LOCAL, HISTORY_DECLARED, keys.subject, seq)
        return list(read.values())

    def _keys(self, connection: Connection) -> RegistryKeys:
        newest = documents.registry_keys(connection)
        if newest is None:
            raise ConfigurationError("the database has no registry keys document: run peerseal-registry init")
        return read_registry_keys(newest, pin=None, now=self._clock())

    def _read(self, jws: str, keys: RegistryKeys) -> HistoryStatement:
        try:
            return read_history(jws, keys.root, domain=keys.subject, now=self._clock())
        except DocumentRefused as error:
            raise HistoryRefused("statement_refused", f"{error.code}: {error}") from error


def written(statement: HistoryStatement) -> bytes:
    """The request for the machine of the root key: the claims to sign, as readable JSON."""
    return canonical_json(statement.claims())


def signed(request: bytes, root_key_file: Path, passphrase: KeyPassphrase = NO_PASSPHRASE) -> str:
    """The statement, signed by the root. Raises ConfigurationError for a request that cannot be read."""
    try:
        statement = HistoryStatement.from_claims(strict_json_object(request))
    except (MalformedToken, InvalidName) as error:
        raise ConfigurationError(f"the request cannot be read: {error}") from error
    return sign_history(statement, keyfiles.read_key_pair(root_key_file, "root key", passphrase))


def _heads_of(remembered: Remembered | None) -> Sequence[Head]:
    if remembered is None or remembered.head is None:
        return ()
    return (*remembered.before, remembered.head)


def _head_of(note: str, keys: RegistryKeys) -> Head:
    checkpoint = verify_checkpoint(note, keys.subject, keys.ledger_keys)
    return Head(checkpoint.size, checkpoint.root)


def is_in(store: Store, head: Head | None) -> bool:
    """Whether the database's ledger has that head. Raises StorageUnavailable."""
    with store.read() as connection:
        return head is not None and TileCache().has_head(connection, ledger.frontier(connection), head)


def _check(
    connection: Connection, edge: Frontier, statement: HistoryStatement, every: Sequence[HistoryStatement]
) -> None:
    """Passes a statement that agrees with this ledger: it has the common head and the new one, or a later statement
    declares the new one lost. Raises HistoryRefused."""
    tiles = TileCache()
    later = [one for one in every if one.issued_at >= statement.issued_at and one != statement]
    if not tiles.has_head(connection, edge, statement.common):
        raise HistoryRefused("statement_contradicted", f"this ledger has no {statement.common}")
    lost_again = excused_by(later, statement.new, statement.issued_at) is not None
    if not lost_again and not tiles.has_head(connection, edge, statement.new):
        raise HistoryRefused("statement_contradicted", f"this ledger has no {statement.new}")
    if tiles.has_head(connection, edge, statement.lost):
        raise HistoryRefused("nothing_lost", f"this ledger has {statement.lost}")
