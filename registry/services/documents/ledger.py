"""The public answers about the ledger: checkpoint, tiles, bundles of entries, proofs (docs/protocol.md)."""

import time
from collections.abc import Callable, Iterable
from typing import Any

from sqlalchemy import Connection

from peerseal.protocol.ledger.checkpoint import TILE_HEIGHT, TILE_WIDTH, encode_bundle, encode_proof, parse_checkpoint
from peerseal.protocol.ledger.merkle import (
    HASH_SIZE,
    Frontier,
    Proof,
    consistency_proof,
    frontier_at,
    inclusion_proof,
)
from peerseal.protocol.names import service_id, split_kid
from registry.domain.errors import BadRequest, Lagging, LedgerContradicted, LedgerForked, NotFound
from registry.limits import TILES_CACHED
from registry.services.authority.authority import Authority, AuthoritySource
from registry.services.documents.answer_cache import BYTES, NOTE, PublicAnswer
from registry.services.documents.tile_cache import TileCache
from registry.storage.queries import keys, ledger
from registry.storage.revisions import Revisions
from registry.storage.unit import Store


class LedgerView:
    """Makes the answers about the ledger."""

    def __init__(
        self,
        store: Store,
        revisions: Revisions,
        authority: AuthoritySource,
        clock: Callable[[], float] = time.time,
        remembered: Callable[[], str | None] = lambda: None,
        tiles_cached: int = TILES_CACHED,
    ) -> None:
        """``remembered`` returns the newest checkpoint of the ledger that this host has seen, and ``tiles_cached`` is
        the number of bytes of tiles that are kept in memory."""
        self._store = store
        self._revisions = revisions
        self._authority = authority
        self._clock = clock
        self._remembered = remembered
        self._tiles = TileCache(tiles_cached)
        self._newest: tuple[Authority, PublicAnswer] | None = None
        authority.when_changed(self._forget)

    @property
    def held(self) -> int:
        """Bytes of the tiles in memory."""
        return self._tiles.held

    def proofs(self, connection: Connection, indexes: Iterable[int], size: int) -> list[Proof]:
        """Inclusion proofs of leaves in the tree of that size. Raises LedgerContradicted where rows are missing."""
        node = self._tiles.reader(connection)
        try:
            return [inclusion_proof(index, size, node) for index in indexes]
        except ValueError as error:
            raise LedgerContradicted(str(error)) from error

    def edge_at(self, connection: Connection, size: int) -> Frontier:
        """The right edge that the tree had at that size. Raises LedgerContradicted where rows are missing."""
        ledger.frontier(connection)  # which the guard checks
        try:
            return frontier_at(size, self._tiles.reader(connection))
        except ValueError as error:
            raise LedgerContradicted(str(error)) from error

    def checkpoint(self) -> PublicAnswer:
        """The signed head of the ledger. Where the database holds another ledger than this host has seen, the newest
        signed head of that one: it tells other nodes which ledger was seen. Raises StorageUnavailable, LedgerForked."""
        try:
            return self._signed()
        except LedgerForked:
            note = self._remembered()
            if note is None:
                raise
        size, now = parse_checkpoint(note).size, int(self._clock())
        return PublicAnswer.of(note.encode("utf-8"), NOTE, size, size, now, now)

    def _signed(self) -> PublicAnswer:
        size, authority = self._revisions.head(), self._authority.current()
        if self._newest is not None and self._newest[0] is authority and self._newest[1].head == size:
            return self._newest[1]
        with self._store.look() as connection:
            edge = ledger.frontier(connection)
        note, now = authority.checkpoint(edge).encode("utf-8"), int(self._clock())
        self._newest = authority, PublicAnswer.of(note, NOTE, edge.size, edge.size, now, now)
        return self._newest[1]

    def tile(self, level: int, number: int, width: int) -> PublicAnswer:
        """A tile of the tree, cut to ``width`` hashes. Raises NotFound where the tree does not reach that far."""
        with self._store.look() as connection:
            _check_reached(connection, (number * TILE_WIDTH + width) << (TILE_HEIGHT * level))
            tile = ledger.tile(connection, level, number)[: width * HASH_SIZE]
        if len(tile) != width * HASH_SIZE:
            raise NotFound("tile_not_found")
        return self._lasting(tile)

    def bundle(self, number: int, width: int) -> PublicAnswer:
        """The first ``width`` entries of a bundle. Raises NotFound where the ledger has fewer."""
        first = number * TILE_WIDTH
        with self._store.look() as connection:
            _check_reached(connection, first + width)
            bodies = ledger.read_bodies(connection, first, first + width)
        if len(bodies) != width:
            raise NotFound("tile_not_found")
        return self._lasting(encode_bundle(bodies))

    def inclusion(self, kid: str) -> dict[str, Any]:
        """``{"kid", "index", "size", "leaf", "proof", "checkpoint"}``: where the ledger holds the key's admission.

        Raises InvalidName or NotFound.
        """
        owner, thumbprint = split_kid(kid)
        authority = self._authority.current()
        with self._store.read() as connection:
            record = keys.find(connection, thumbprint)
            if record is None or service_id(authority.domain, record.service) != owner:
                raise NotFound("key_not_found")
            edge = ledger.frontier(connection)
            [proof] = self.proofs(connection, [record.index], edge.size)
            [entry] = ledger.read_some(connection, [record.admitted_seq])
        members = {"kid": kid, "index": record.index, "size": edge.size, "leaf": encode_proof((entry.leaf,))[0]}
        return {**members, "proof": encode_proof(proof), "checkpoint": authority.checkpoint(edge)}

    def consistency(self, old: int, new: int) -> dict[str, Any]:
        """``{"from", "to", "proof"}``: the proof that the ledger of size ``new`` extends the one of size ``old``.

        Raises BadRequest unless 0 < ``old`` <= ``new``, and Lagging where the ledger is shorter than ``new``.
        """
        if not 0 < old <= new:
            raise BadRequest("invalid_parameter", f"from={old} and to={new}: from must be 1 or more, to at least from")
        with self._store.read() as connection:
            if (size := ledger.frontier(connection).size) < new:
                raise Lagging(f"the ledger has {size} entries, not {new}")
            proof = self.consistency_in(connection, old, new)
        return {"from": old, "to": new, "proof": encode_proof(proof)}

    def consistency_in(self, connection: Connection, old: int, new: int) -> Proof:
        """The same proof, within a transaction. Raises LedgerContradicted where rows are missing."""
        try:
            return consistency_proof(old, new, self._tiles.reader(connection))
        except ValueError as error:
            raise LedgerContradicted(str(error)) from error

    def _forget(self) -> None:
        """Drops tiles and the signed head, which may belong to a history that was given up."""
        self._tiles.forget()
        self._newest = None

    def _lasting(self, body: bytes) -> PublicAnswer:
        now = int(self._clock())
        return PublicAnswer.of(body, BYTES, 0, 0, now, now)


def _check_reached(connection: Connection, entries: int) -> None:
    """Raises NotFound where the ledger has fewer entries. It comes first: a number may exceed the database's range."""
    if ledger.frontier(connection).size < entries:
        raise NotFound("tile_not_found")
