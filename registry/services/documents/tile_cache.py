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
from registry.limits import TILES_CACHED
from registry.services.bounded_cache import BoundedCache
from registry.storage.queries import ledger

Levels = list[list[bytes]]

_HASH_IN_MEMORY = 80
"""Bytes of one hash: an object of bytes, and its place in a list."""


def size_of_tile(levels: Levels) -> int:
    """Bytes of a tile with the hashes above it: 40 KiB for a complete one."""
    return _HASH_IN_MEMORY * sum(map(len, levels))


class TileCache:
    """The complete tiles that a process has read, of ``limit`` bytes at most. They never change."""

    def __init__(self, limit: int = TILES_CACHED) -> None:
        self._limit = limit
        self.forget()

    @property
    def held(self) -> int:
        """Bytes of the tiles in memory."""
        return self._kept.held

    def forget(self) -> None:
        """Drops the tiles, which may belong to a history that was given up. What a thread reads meanwhile goes to the
        cache that was dropped."""
        self._kept: BoundedCache[tuple[int, int], Levels] = BoundedCache(self._limit, size_of_tile)

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
            self.forget()  # it may have complete tiles of the other ledger
            return False
        return True
