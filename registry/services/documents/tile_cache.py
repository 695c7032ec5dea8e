"""The complete tiles of the ledger's tree that a process has read: what proofs are made of."""

from threading import Lock

from sqlalchemy import Connection

from peerseal.protocol.ledger.checkpoint import TILE_HEIGHT, TILE_WIDTH, levels_of
from peerseal.protocol.ledger.merkle import HASH, NodeReader
from registry.storage.queries import ledger

_TILES_KEPT = 512
"""Complete tiles in memory with the hashes above them, some 40 KiB each. They never change."""

Levels = list[list[bytes]]


class TileCache:
    """The complete tiles that a process read. Reading takes no lock."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, int], Levels] = {}
        self._changing = Lock()

    def reader(self, connection: Connection) -> NodeReader:
        """Reads nodes of the tree as the connection's transaction sees it; what it has read it remembers."""
        read: dict[tuple[int, int], Levels] = {}

        def node(level: int, number: int) -> bytes:
            above = level % TILE_HEIGHT
            place = level // TILE_HEIGHT, (number << above) // TILE_WIDTH
            levels = self._kept.get(place) or read.get(place)
            if levels is None:
                tile = ledger.tile(connection, *place)
                levels = read[place] = levels_of(tile)
                if len(tile) == TILE_WIDTH * HASH:
                    self._keep(place, levels)
            try:
                return levels[above][number % (TILE_WIDTH >> above)]
            except IndexError as error:
                raise ValueError("entries or tiles are missing") from error

        return node

    def _keep(self, place: tuple[int, int], levels: Levels) -> None:
        with self._changing:
            if len(self._kept) >= _TILES_KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[place] = levels
