"""The complete tiles of the ledger's tree that a process has read; proofs are computed from them."""

from sqlalchemy import Connection

from peerseal.errors import DocumentRefused
from peerseal.protocol.documents.history_statement import Head
from peerseal.protocol.ledger.checkpoint import TILE_HEIGHT, TILE_WIDTH, levels_of
from peerseal.protocol.ledger.merkle import (
    HASH_SIZE,
    Frontier,
    NodeReader,
    check_consistency,
    consistency_proof,
    root_hash,
)
from registry.domain.errors import LedgerContradicted
from registry.services.bounded_cache import BoundedCache
from registry.storage.queries import ledger

_TILES_KEPT = 512
"""Complete tiles in memory with the hashes above them, some 40 KiB each. They never change."""

Levels = list[list[bytes]]


class TileCache:
    """The complete tiles that a process has read."""

    def __init__(self) -> None:
        self._kept: BoundedCache[tuple[int, int], Levels] = BoundedCache(_TILES_KEPT)

    def reader(self, connection: Connection) -> NodeReader:
        """A function that reads nodes of the tree as the connection's transaction sees it."""
        kept, read = self._kept, dict[tuple[int, int], Levels]()

        def node(level: int, number: int) -> bytes:
            above = level % TILE_HEIGHT
            name = level // TILE_HEIGHT, (number << above) // TILE_WIDTH
            levels = kept.get(name) or read.get(name)
            if levels is None:
                tile = ledger.tile(connection, *name)
                levels = read[name] = levels_of(tile)
                if len(tile) == TILE_WIDTH * HASH_SIZE:
                    kept.put(name, levels)
            try:
                return levels[above][number % (TILE_WIDTH >> above)]
            except IndexError as error:
                raise ValueError("entries or tiles are missing") from error

        return node

    def root_at(self, connection: Connection, size: int) -> bytes:
        """The root hash of the first ``size`` entries. Raises LedgerContradicted where entries or tiles are missing."""
        try:
            return root_hash(size, self.reader(connection))
        except ValueError as error:
            raise LedgerContradicted(str(error)) from error

    def has_head(self, connection: Connection, edge: Frontier, head: Head) -> bool:
        """Whether the tree with that edge has the head: it held at that size. Raises LedgerContradicted."""
        return 0 < head.size <= edge.size and self.root_at(connection, head.size) == head.root

    def continues(self, connection: Connection, old: Head, edge: Frontier) -> bool:
        """Whether the tree with that edge extends the one with the head, by a consistency proof (RFC 9162). Raises
        LedgerContradicted where rows are missing."""
        try:
            proof = consistency_proof(old.size, edge.size, self.reader(connection))
            check_consistency(old.size, old.root, edge.size, edge.root, proof)
        except ValueError as error:
            raise LedgerContradicted(str(error)) from error
        except DocumentRefused:
            self._kept = BoundedCache(_TILES_KEPT)  # it may have complete tiles of the other ledger
            return False
        return True
